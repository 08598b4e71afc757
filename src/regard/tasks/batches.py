"""Pairs of sequences in batches of about the same number of tokens, alike in length.

A batch of sentences of one length wastes nothing on padding. Which batches there are, and in what
order, depends on the seed and the epoch alone, and the place in an epoch is part of a checkpoint:
so a run that was killed goes on with the batch that would have come next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard.errors import OptionError
from regard.tasks.vocabulary import BEGIN, END, PAD

__all__ = ["Batches", "Example", "SequenceBatch", "collate", "padded"]


class Example(NamedTuple):
    """The numbers of a source's and a target's pieces."""

    source: Sequence[int]
    target: Sequence[int]


class SequenceBatch(NamedTuple):
    """B pairs: source (B, Ls), its lengths (B,), and target (B, Lt) from begin to end, padded."""

    source: Tensor
    lengths: Tensor
    target: Tensor


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, L) of rows of different lengths."""
    longest = max(map(len, rows))
    full = np.full((len(rows), longest), PAD, np.int64)
    for place, row in zip(full, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(full)


def collate(examples: Sequence[Example]) -> SequenceBatch:
    """The examples as one batch."""
    sources = [example.source for example in examples]
    targets = [[BEGIN, *example.target, END] for example in examples]
    lengths = torch.tensor([len(source) for source in sources])
    return SequenceBatch(padded(sources), lengths, padded(targets))


class Batches:
    """Batches of examples whose longer side, padded, has at most `tokens` tokens in all.

    Iterating gives one epoch, or what is left of it. seed: shuffle, anew each epoch; None: keep
    the order of lengths. rank, world: of so many processes, which one this is; each gets batches
    of its own, as many as the others.

    Raises: OptionError for an example of more than `tokens` tokens, or where there is none.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokens: int,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._examples, self._seed, self._rank, self._world = examples, seed, rank, world
        sizes = [(len(target) + 2, len(source)) for source, target in examples]
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        longest = int(self._sizes.max(initial=0))
        if not 0 < longest <= tokens:
            given = (
                f"a text of {longest} tokens in batches of {tokens}" if longest else "no example"
            )
            raise OptionError(
                given, "larger batches, or shorter texts" if longest else "one at least"
            )
        self._edges = self._cut(tokens)
        if len(self) == 0:
            raise OptionError(
                f"{len(self._edges) - 1} batches for {world} processes", "one for each"
            )
        self._epoch = self._position = 0

    def __len__(self) -> int:
        return (len(self._edges) - 1) // self._world

    def __iter__(self) -> Iterator[SequenceBatch]:
        if self._position == len(self):
            self._epoch, self._position = self._epoch + 1, 0
        rows, order = self._shuffled()
        mine = order[self._rank :: self._world][: len(self)]
        while self._position < len(self):
            batch = int(mine[self._position])
            self._position += 1
            chosen = rows[self._edges[batch] : self._edges[batch + 1]]
            yield collate([self._examples[int(row)] for row in chosen])

    def state_dict(self) -> dict[str, Any]:
        """The place: the epoch, and how many of its batches were given."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place."""
        self._epoch, self._position = state["epoch"], state["position"]

    def _cut(self, tokens: int) -> npt.NDArray[np.int64]:
        """Where batches begin, in the order of lengths; the same for every shuffle."""
        ordered = self._sizes[np.lexsort(self._sizes.T[::-1])]
        edges, widest = [0], 0
        for row, size in enumerate(ordered.max(axis=1)):
            widest = max(widest, int(size))
            if (row + 1 - edges[-1]) * widest > tokens:
                edges.append(row)
                widest = int(size)
        return np.array([*edges, len(ordered)] if len(ordered) else edges)

    def _shuffled(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Examples by length, those of one length at random; and batches in a random order."""
        count = len(self._edges) - 1
        if self._seed is None:
            return np.lexsort(self._sizes.T[::-1]), np.arange(count)
        random = np.random.default_rng((self._seed, self._epoch))
        mixed = random.permutation(len(self._examples))
        rows = mixed[np.lexsort(self._sizes[mixed].T[::-1])]
        return rows, random.permutation(count)
