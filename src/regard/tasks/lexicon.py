"""IBM Model 1: which pieces translate which, counted in parallel text; no network.

It is what attention is compared with where nobody has linked words by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from regard.tasks.batches import Example

__all__ = ["Links", "Lexicon", "intersection"]

Links = set[tuple[int, int]]  # (source position, target position)

_NULL = -1  # a source piece that stands for nothing; every sentence has one


class Lexicon:
    """t(target piece | source piece), by expectation-maximisation (Brown et al., 1993).

    examples: parallel text in pieces. iterations: of EM, from equal probabilities.
    """

    def __init__(self, examples: Sequence[Example], iterations: int = 5) -> None:
        keys, groups, start = [], [], 0
        for source, target in examples:
            keys.append(_keys(source, target).ravel())
            places = np.arange(start, start + len(target))
            groups.append(np.tile(places, len(source) + 1))
            start += len(target)
        self._keys, entry = np.unique(np.concatenate(keys), return_inverse=True)
        group = np.concatenate(groups)  # of each candidate link: the target position it is for
        of_source = np.unique(self._keys >> 32, return_inverse=True)[1]
        self._table = np.ones(len(self._keys))
        for _ in range(iterations):
            share = self._table[entry]
            share /= np.bincount(group, share)[group]
            counts = np.bincount(entry, share)
            self._table = counts / np.bincount(of_source, counts)[of_source]

    def align(self, example: Example) -> Links:
        """Each target piece with the source piece that most probably gave it, if one did."""
        keys = _keys(example.source, example.target)
        place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        table = np.where(self._keys[place] == keys, self._table[place], 0)
        best = table.argmax(axis=0)  # the row after the last source piece stands for nothing
        return {
            (int(s), t) for t, s in enumerate(best) if s < len(example.source) and table[s, t] > 0
        }


def intersection(examples: Sequence[Example], forwards: Lexicon, backwards: Lexicon) -> list[Links]:
    """The links that both directions find; backwards: a lexicon from target to source."""
    return [
        forwards.align(one) & {(s, t) for t, s in backwards.align(Example(one.target, one.source))}
        for one in examples
    ]


def _keys(source: Sequence[int], target: Sequence[int]) -> npt.NDArray[np.int64]:
    """(S + 1, T): a number for each pair of pieces; in the last row, of nothing and a piece."""
    rows = np.array([*source, _NULL], np.int64)
    return (rows[:, None] << 32) | np.array(target, np.int64)[None]
