"""Answers to one prompt as a trie of their tokens: what several begin with alike is read once, and all are read in one
row, each token of which sees the prompt and what it follows in its own answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """Nodes are what is read: every beginning of an answer but the whole one, whose last token is only predicted.

    `tokens`: each node's, a parent before its children. `parents`: 0 is the prompt, i the node i - 1. `sayings`: of
    each answer the tokens and what each is predicted by, numbered like parents.
    """

    tokens: list[int]
    parents: list[int]
    sayings: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> Trie:
        children: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        sayings = []
        for answer in answers:
            said, at = [], 0
            for token in answer[:-1]:
                said.append((token, at))
                if (at, token) not in children:
                    tokens.append(token)
                    parents.append(at)
                    children[at, token] = len(tokens)
                at = children[at, token]
            sayings.append([*said, (answer[-1], at)])
        return cls(tokens, parents, sayings)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        """Whether each node follows the one before: then it is ordinary text."""
        return self.parents == list(range(len(self)))

    @cached_property
    def seen(self) -> Tensor:
        """[nodes, nodes] bool: the nodes that each node sees, itself and those it follows."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                seen[node] |= seen[parent - 1]
        return seen

    def scores(self, logits: Tensor) -> Tensor:
        """The log-probability of each answer [answers] float32, from the logits [1 + nodes, V] after the prompt and
        after each node."""
        owner = [number for number, said in enumerate(self.sayings) for _ in said]
        token, place = torch.tensor([pair for said in self.sayings for pair in said], device=logits.device).T
        said = (logits[place, token] - logits.logsumexp(1)[place]).float()
        index = torch.tensor(owner, device=said.device)
        return torch.zeros(len(self.sayings), device=said.device).index_add_(0, index, said)
