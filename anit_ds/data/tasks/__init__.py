"""The five tasks: how a set of gold items becomes an answer, and what a model says becomes items again.

`TASKS[name].render(items, words)` and `.parse(answer, words)` are inverse to each other on every non-empty span
(docs/method.md section 1), and `score` compares parsed answers with gold ones (section 6).
"""

from __future__ import annotations

from anit_ds.data.tasks.absa import ABSA
from anit_ds.data.tasks.answers import NONE, Parsed, Task
from anit_ds.data.tasks.classification import CLASSIFICATION
from anit_ds.data.tasks.multilabel import MULTILABEL
from anit_ds.data.tasks.ner import NER
from anit_ds.data.tasks.relation import RELATION
from anit_ds.data.tasks.scoring import Score, score

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, MULTILABEL, NER, RELATION, ABSA)}

__all__ = ["NONE", "TASKS", "Parsed", "Score", "Task", "score"]
