"""What kind of head is it? Every head of a recording, scored by what it attends to.

A score is a share of attention: a mean of weights over queries, between 0 and 1 unless its entry in
`SCORES` says otherwise. p_ij is the weight of key j for query i, t_i the token at i. The queries
that count are those that are no special tokens ([CLS], padding, …); where a batch has several
elements, all their queries count alike.

    previous token   p_{i, i−1}, over queries i ≥ 1
    next token       p_{i, i+1}, over queries that are not the last
    itself           p_{ii}
    first token      p_{i, 0}, over queries i ≥ 1: what a sink takes
    special tokens   Σ p_ij over the special keys j ≥ 1, such as [SEP]
    duplicate token  Σ p_ij over j ≠ i with t_j = t_i, over the queries that have such a key
    induction        Σ p_ij over j ≠ i + 1 with t_{j−1} = t_i, over the queries that have such a
                     key: what came after the same token elsewhere
    nearby           Σ p_ij over |j − i| ≤ 3
    distance         Σ p_ij |j − i|, in tokens
    entropy          −Σ p_ij log p_ij / log n, with n the number of keys that any query sees (in
                     causal attention those up to i): 1 is uniform
    effective keys   1 / Σ p_ij²: among how many keys the weight is spread
    max weight       max_j p_ij

Those by position or token need as many queries as keys, and those by token the tokens. What cannot
be known is NaN. A query that sees nothing does not count.

Memory is linear in length: read-outs of the operator, and rows a few at a time.

Sources: Clark et al., "What Does BERT Look At?" (2019), for position and separators; Elhage et al.,
"A Mathematical Framework for Transformer Circuits" (2021), for induction and duplicates.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import OptionError, ShapeError
from regard.operator import AttentionWeights

__all__ = ["KINDS", "SCORES", "HeadRow", "HeadTable", "table"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

SCORES: dict[str, str] = {
    "previous token": "Share of a token's attention that goes to the token before it.",
    "next token": "Share that goes to the token after it.",
    "itself": "Share that stays on the token itself.",
    "first token": "Share that goes to the first token: a sink, when it is large.",
    "special tokens": "Share that goes to special tokens other than the first, such as [SEP].",
    "duplicate token": "Share that goes to other occurrences of the same token, if there are any.",
    "induction": "Share that goes to what came after other occurrences of the same token.",
    "nearby": "Share that goes to tokens at most 3 positions away, itself included.",
    "distance": "Mean distance of what is attended to, in tokens.",
    "entropy": "How spread out attention is: 0 = all on one token, 1 = the same on all.",
    "effective keys": "Among how many tokens attention is spread: 1 / Σ p².",
    "max weight": "The largest weight of a query, on average.",
}

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
_NEAR = 3  # positions

KINDS: dict[str, str] = {
    **{kind: SCORES[score] for score, kind in _PATTERNS.items()},
    "nearby tokens": f"No single place, but at least {_NEARBY:.0%} within {_NEAR} positions.",
    "broad": f"Spread over nearly everything: entropy {_BROAD} or more.",
    "mixed": "None of the other kinds: what it attends to depends on the words.",
    "unknown": "No query that counts.",
}

_BY_TOKEN = ("duplicate token", "induction")
_NOTHING = -1  # no token's number

# Weights of all heads that are held at once where rows are needed: 32 MB.
_AT_ONCE = 1 << 22


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
        order = np.argsort(-values, kind="stable")
        return [self.rows[n] for n in order[:count] if not np.isnan(values[n])]

    def telling(self, count: int | None = None) -> list[HeadRow]:
        """The heads with a pattern of their own, the clearest first."""
        named = [row for row in self.rows if row.named]
        return sorted(named, key=lambda row: -row.strength)[:count]

    def kinds(self) -> dict[str, int]:
        """How many heads are of each kind, the most frequent first."""
        return dict(Counter(row.kind for row in self.rows).most_common())

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
        return "\n".join([f"{len(self)} heads: {counts}", *map(str, self.telling())])


def table(
    recording: Iterable[AttentionWeights], token_ids: Any = None, special: Any = None
) -> HeadTable:
    """Every head of every call with its scores and its kind; the module's docstring defines them.

    Args:
        recording: operators of shape (B, H, Lq, Lk) or (H, Lq, Lk), such as `regard.watch` gives.
        token_ids: (L,) or (B, L) integers, equal where tokens are equal. Without them the
            recording's own `tokens` are compared, if it has any.
        special: (L,) or (B, L) booleans, True for tokens that are no text.

    Raises: ShapeError when token_ids and special differ in shape, or are for fewer texts.
    """
    if token_ids is None:
        token_ids = _codes(getattr(recording, "tokens", None))
    ids = None if token_ids is None else np.atleast_2d(np.asarray(token_ids))
    flags = None if special is None else np.atleast_2d(np.asarray(special, bool))
    if ids is not None and flags is not None and ids.shape != flags.shape:
        raise ShapeError(f"token_ids {ids.shape} and special {flags.shape}", "one shape")
    rows = []
    kept = getattr(recording, "kept_heads", None)
    for call, weights in enumerate(recording):
        name = weights.name or f"call {call}"
        numbers = kept or range(weights.shape[-3])
        for head, scores in zip(numbers, _scores(weights, ids, flags), strict=True):
            kind, evidence = _kind(scores)
            rows.append(HeadRow(call, layer_of(name, call), head, name, kind, evidence, scores))
    return HeadTable(tuple(rows))


def layer_of(name: str, call: int) -> int:
    """The one number in a module's dotted name, such as 3 in "encoder.layer.3.attention"."""
    numbers = [part for part in name.split(".") if re.fullmatch(r"\d+", part)]
    return int(numbers[0]) if len(numbers) == 1 else call


def elements(weights: AttentionWeights) -> Iterator[AttentionWeights]:
    """Each batch element's operator (H, Lq, Lk), in order."""
    for index in itertools.product(*map(range, weights.shape[:-3])):
        yield weights[index] if index else weights


def _codes(tokens: Any) -> Integers | None:
    """Numbers that are equal where the recording's tokens (L,) or (B, L) are."""
    if tokens is None or not len(tokens):
        return None
    lengths = {len(row) for row in tokens if not isinstance(row, str)}
    if len(lengths) > 1:
        return None
    _, codes = np.unique(np.asarray(tokens, dtype=str), return_inverse=True)
    return codes.reshape(np.shape(tokens)).astype(np.int64)


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


def _scores(
    weights: AttentionWeights, ids: Integers | None, flags: Booleans | None
) -> list[dict[str, float]]:
    """Scores of each head of one call: means over the queries of all batch elements."""
    heads = weights.shape[-3]
    sums = {name: np.zeros(heads) for name in SCORES}
    counts = dict.fromkeys(SCORES, 0)
    for n, element in enumerate(elements(weights)):
        length = element.shape[-1]
        head = _Heads(element, _of_element(ids, n, length), _of_element(flags, n, length))
        for name, (values, counted) in head.scores():
            sums[name] += values[:, counted].sum(axis=1)
            counts[name] += int(counted.sum())
    means = {name: sums[name] / (counts[name] or np.nan) for name in SCORES}
    return [{name: float(values[head]) for name, values in means.items()} for head in range(heads)]


def _of_element(array: Any, element: int, length: int) -> Any:
    """One batch element's (L,) of (B, L); one row serves all. None where the length is another."""
    if array is None or array.shape[1] != length:
        return None
    if element >= len(array) > 1:
        raise ShapeError(f"tokens of {len(array)} texts", "one, or as many as were read")
    return array[element if len(array) > 1 else 0]


class _Heads:
    """The heads (H, Lq, Lk) of one batch element.

    `scores` yields a score's name, its value for each query (H, Lq), and which queries count (Lq,).
    """

    def __init__(
        self, weights: AttentionWeights, ids: Integers | None, special: Booleans | None
    ) -> None:
        queries, keys = weights.shape[-2:]
        self.weights, self.ids = weights, ids
        self.special = np.zeros(keys, bool) if special is None else special
        self.square = queries == keys
        groups = np.where(self.special, 0, -1)
        groups[:1] = 1
        self.read = sweep(
            weights,
            mass={"keys": groups},
            offsets={"offsets": range(-_NEAR, _NEAR + 1)},
            received={"reduce": "max"},
            **{name: {} for name in ("distance", "entropy", "effective_keys", "max_weight")},
        )
        self.counted = self.read["effective_keys"].any(axis=0)  # it saw something
        if self.square:
            self.counted &= ~self.special
        self.seen = self.read["received"].any(axis=0)
        self.causal = self._is_causal()

    def scores(self) -> Iterator[tuple[str, tuple[Floats, Booleans]]]:
        read, counted = self.read, self.counted
        later = np.arange(len(counted)) > 0
        special, first = np.moveaxis(read["mass"], -1, 0)
        yield "first token", (first, counted & later)
        yield "special tokens", (special, counted)
        yield "entropy", self._entropy()
        yield "effective keys", (read["effective_keys"], counted)
        yield "max weight", (read["max_weight"], counted)
        if self.square:
            near = read["offsets"]
            yield "previous token", (near[..., _NEAR - 1], counted & later)
            yield "next token", (near[..., _NEAR + 1], counted & later[::-1])
            yield "itself", (near[..., _NEAR], counted)
            yield "nearby", (near.sum(axis=-1), counted)
            yield "distance", (read["distance"], counted)
            if self.ids is not None:
                yield from self._by_token(self.ids)

    def _is_causal(self) -> bool:
        """Whether no query sees a later key: then none before it has a weight on the last one."""
        seen = np.flatnonzero(self.seen)
        if not self.square or not len(seen):
            return False
        last = int(seen[-1])
        return not _floats(self.weights.columns([last]))[:, :last].any()

    def _entropy(self) -> tuple[Floats, Booleans]:
        """Entropy over that of equal weights on all keys that are there to be seen."""
        visible = np.full(len(self.counted), self.seen.sum())
        if self.causal:
            visible = np.cumsum(self.seen)
        most = np.log(np.maximum(visible, 2))
        return self.read["entropy"] / most, self.counted & (visible > 1)

    def _by_token(self, ids: Integers) -> Iterator[tuple[str, tuple[Floats, Booleans]]]:
        """Duplicate token and induction, for the queries whose token occurs elsewhere.

        In causal attention "elsewhere" is earlier. Special keys are no occurrences.
        """
        length = len(ids)
        before = np.concatenate([[_NOTHING], np.where(self.special, _NOTHING, ids)[:-1]])
        here = np.where(self.special, _NOTHING, ids)
        heads = self.weights.shape[0]
        found = {name: np.zeros((heads, length)) for name in _BY_TOKEN}
        counted = {name: np.zeros(length, bool) for name in _BY_TOKEN}
        step = max(1, _AT_ONCE // (length * heads))
        for rows in np.split(np.flatnonzero(self.counted), range(step, length, step)):
            if not len(rows):
                continue
            weights = _floats(self.weights.rows(rows))
            keys = np.arange(length)
            for name, tokens, own in zip(_BY_TOKEN, (here, before), (0, 1), strict=True):
                same = (tokens == ids[rows, None]) & (keys != rows[:, None] + own) & self.seen
                if self.causal:
                    same &= keys <= rows[:, None]
                found[name][:, rows] = np.einsum("hij,ij->hi", weights, same)
                counted[name][rows] = same.any(axis=1)
        for name in _BY_TOKEN:
            yield name, (found[name], counted[name])


def sweep(weights: AttentionWeights, **wanted: Any) -> dict[str, Any]:
    """Read-outs as NumPy arrays, in one sweep; `wanted` names each with its keywords."""
    found = vars(weights.read(**wanted))
    return {name: _as_numpy(result) for name, result in found.items()}


def _as_numpy(result: Any) -> Any:
    if isinstance(result, tuple):
        return type(result)(*map(as_numpy, result))
    return as_numpy(result)


def _floats(array: Any) -> Floats:
    return np.asarray(as_numpy(array), np.float64)
