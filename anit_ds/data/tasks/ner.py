"""Named entity recognition: `type: span; type: span`; an entity counts when type and span text are exact."""

from __future__ import annotations

from anit_ds.data.tasks.answers import SetTask

NER = SetTask("ner", ("type", "span"))
