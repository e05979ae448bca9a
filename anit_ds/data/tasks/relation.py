"""Relation extraction: `relation: head, tail; ...`; a triple counts when relation, head and tail are exact."""

from __future__ import annotations

from anit_ds.data.tasks.answers import SetTask

RELATION = SetTask("relation", ("relation", "head", "tail"))
