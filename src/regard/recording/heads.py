"""What kind of head is it? A table of every head of a recording, with its scores and a plain word.

The scores are defined in scores.py. A head is named after the largest of those that stand for a
pattern, if that reaches a third or so; the score is its evidence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard.errors import OptionError, ShapeError
from regard.recording.entry import entries_of
from regard.recording.scores import NEAR, SCORES, Floats, codes, scores
from regard.recording.summary import Weights

__all__ = ["KINDS", "SCORES", "HeadRow", "HeadTable", "table"]

# A head is named after the largest of these shares, if that reaches _NAMED.
_PATTERNS = {
    "previous token": "previous token",
    "next token": "next token",
    "itself": "itself",
    "first token": "first-token sink",
    "special tokens": "special-token sink",
    "duplicate token": "duplicate token",
    "induction": "induction",
}
_NAMED, _NEARBY, _BROAD = 0.3, 0.5, 0.8

KINDS: dict[str, str] = {
    **{kind: SCORES[score] for score, kind in _PATTERNS.items()},
    "nearby tokens": f"No single place, but at least {_NEARBY:.0%} within {NEAR} positions.",
    "broad": f"Spread over nearly everything: entropy {_BROAD} or more.",
    "mixed": "None of the other kinds: what it attends to depends on the words.",
    "unknown": "No query that counts.",
}


@dataclass(frozen=True)
class HeadRow:
    """One head: where it is, what kind it is, and the numbers.

    call: which attention call of the recording. layer: the number in the module's name, or `call`
    where the name has none, or several. evidence: the name of the score that the kind rests on.
    """

    call: int
    layer: int
    head: int
    name: str
    kind: str
    evidence: str
    scores: dict[str, float]

    @property
    def strength(self) -> float:
        """The score that the kind rests on."""
        return self.scores[self.evidence]

    @property
    def named(self) -> bool:
        """Whether it has a pattern of its own: neither broad nor mixed."""
        return self.kind in _PATTERNS.values() or self.kind == "nearby tokens"

    def __str__(self) -> str:
        return f"{self.layer:>3}.{self.head:<3} {self.kind:<19} {self.evidence} {self.strength:.2f}"


@dataclass(frozen=True)
class HeadTable(Sequence[HeadRow]):
    """All heads of a recording, call by call; print it, index it, sort it."""

    rows: tuple[HeadRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def score(self, name: str) -> Floats:
        """(heads,): one score of every head, in the order of the rows. Raises OptionError."""
        if name not in SCORES:
            raise OptionError(f"score {name!r}", f"one of {', '.join(SCORES)}")
        return np.array([row.scores[name] for row in self.rows])

    def top(self, name: str, count: int = 1) -> list[HeadRow]:
        """The heads with the largest score of that name, falling; NaN never counts."""
        values = self.score(name)
        _check_count(count)
        order = np.argsort(-values, kind="stable")
        return [self.rows[n] for n in order[:count] if not np.isnan(values[n])]

    def telling(self, count: int | None = None) -> list[HeadRow]:
        """The heads with a pattern of their own, the clearest first."""
        if count is not None:
            _check_count(count)
        named = [row for row in self.rows if row.named]
        return sorted(named, key=lambda row: -row.strength)[:count]

    def kinds(self) -> dict[str, int]:
        """How many heads are of each kind, the most frequent first."""
        return dict(Counter(row.kind for row in self.rows).most_common())

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
        return "\n".join([f"{len(self)} heads: {counts}", *map(str, self.telling())])


def table(recording: Iterable[Weights], token_ids: Any = None, special: Any = None) -> HeadTable:
    """Every head of every call with its scores and its kind; the module's docstring defines them.

    Args:
        recording: operators of shape (B, H, Lq, Lk) or (H, Lq, Lk), such as `regard.watch` gives.
        token_ids: (L,) or (B, L) integers, equal where tokens are equal. Without them the
            recording's own `tokens` are compared, if it has any.
        special: (L,) or (B, L) booleans, True for tokens that are no text.

    Raises: ShapeError when token_ids and special differ in shape, or are for fewer texts.
    """
    if token_ids is None:
        token_ids = codes(getattr(recording, "tokens", None))
    ids = None if token_ids is None else np.atleast_2d(np.asarray(token_ids))
    flags = None if special is None else np.atleast_2d(np.asarray(special, bool))
    if ids is not None and flags is not None and ids.shape != flags.shape:
        raise ShapeError(f"token_ids {ids.shape} and special {flags.shape}", "one shape")
    rows = []
    for call, entry in enumerate(entries_of(recording)):
        name, layer = entry.name, layer_of(entry.name, call)
        found = scores(entry.weights, ids, flags, entry.kind == "cross")
        for head, numbers in zip(entry.numbers, found, strict=True):
            kind, evidence = _kind(numbers)
            rows.append(HeadRow(call, layer, head, name, kind, evidence, numbers))
    return HeadTable(tuple(rows))


def _check_count(count: Any) -> None:
    if not isinstance(count, (int, np.integer)) or count < 0:
        raise OptionError(f"count={count!r}", "a number of heads")


def layer_of(name: str, call: int) -> int:
    """The one number in a module's dotted name, such as 3 in "encoder.layer.3.attention"."""
    numbers = [part for part in name.split(".") if re.fullmatch(r"\d+", part)]
    return int(numbers[0]) if len(numbers) == 1 else call


def _kind(scores: dict[str, float]) -> tuple[str, str]:
    """(kind, the score that it rests on)."""
    shares = {name: scores[name] for name in _PATTERNS if not np.isnan(scores[name])}
    largest = max(shares, key=lambda name: shares[name], default="")
    if largest and shares[largest] >= _NAMED:
        return _PATTERNS[largest], largest
    if np.isnan(scores["entropy"]):
        return "unknown", "entropy"
    if scores["entropy"] >= _BROAD:
        return "broad", "entropy"
    if scores["nearby"] >= _NEARBY:
        return "nearby tokens", "nearby"
    return "mixed", largest or "entropy"
