"""Aspect sentiment triplets: `sentiment: aspect, opinion; ...`; a triplet counts when all three parts are exact."""

from __future__ import annotations

from anit_ds.data.tasks.answers import SetTask

ABSA = SetTask("absa", ("sentiment", "aspect", "opinion"))
