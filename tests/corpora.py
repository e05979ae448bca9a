"""What a loaded corpus holds, for the tests of its readers."""

from __future__ import annotations

from anit_ds.data.corpora import Corpus


def labels_of(corpus: Corpus) -> tuple[str, ...]:
    """The raw labels that occur in any split, sorted."""
    splits = corpus.train, corpus.dev, corpus.test
    return tuple(sorted({item[0] for split in splits for example in split for item in example.items}))
