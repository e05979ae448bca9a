"""Which tag each number stands for on the hub, for Parquet files that hold numbers without their names.

The orders are those of the data sets' cards: eriktks/conll2003, leondz/wnut_17, tner/ontonotes5 and
ontonotes/conll2012_ontonotesv5.
"""

from __future__ import annotations


def _pairs(*kinds: str) -> tuple[str, ...]:
    """O, then B- and I- of each type in turn."""
    return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))


TAG_NAMES: dict[str, tuple[str, ...]] = {
    "conll2003": _pairs("PER", "ORG", "LOC", "MISC"),
    "wnut17": _pairs("corporation", "creative-work", "group", "location", "person", "product"),
    "ontonotes5": (
        "O", "B-CARDINAL", "B-DATE", "I-DATE", "B-PERSON", "I-PERSON", "B-NORP", "B-GPE", "I-GPE", "B-LAW", "I-LAW",
        "B-ORG", "I-ORG", "B-PERCENT", "I-PERCENT", "B-ORDINAL", "B-MONEY", "I-MONEY", "B-WORK_OF_ART",
        "I-WORK_OF_ART", "B-FAC", "B-TIME", "I-CARDINAL", "B-LOC", "B-QUANTITY", "I-QUANTITY", "I-NORP", "I-LOC",
        "B-PRODUCT", "I-TIME", "B-EVENT", "I-EVENT", "I-FAC", "B-LANGUAGE", "I-PRODUCT", "I-ORDINAL", "I-LANGUAGE",
    ),
}  # fmt: skip

CONLL2012_NAMES = _pairs(
    "PERSON", "NORP", "FAC", "ORG", "GPE", "LOC", "PRODUCT", "DATE", "TIME", "PERCENT", "MONEY", "QUANTITY",
    "ORDINAL", "CARDINAL", "EVENT", "WORK_OF_ART", "LAW", "LANGUAGE",
)  # fmt: skip
