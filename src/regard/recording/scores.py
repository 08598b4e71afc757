"""Scores of heads: what each of them attends to, in numbers.

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
    concentration    1 + Σ_j r_j log r_j / log n, with r_j = Σ_i p_ij / Σ_ij p_ij what j receives

Those by position or token need as many queries as keys of the same text, and those by token the
tokens. What cannot be known is NaN: of a call of which only read-outs were kept, what these do not
tell. A query that sees nothing does not count.

Memory is linear in length: read-outs of the operator, and rows a few at a time.

Sources: Clark et al., "What Does BERT Look At?" (2019), for position and separators; Elhage et al.,
"A Mathematical Framework for Transformer Circuits" (2021), for induction and duplicates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import ShapeError
from regard.operator import AttentionWeights
from regard.recording.summary import Summary, Weights

__all__ = ["NEAR", "SCORES", "codes", "elements", "scores", "sweep"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# A score's name, its value for each query (H, Lq), and which queries count (Lq,).
_Score = tuple[str, tuple[Floats, Booleans]]

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
    "concentration": "How few tokens receive it all: 0 = all the same, 1 = one token everything.",
}

NEAR = 3  # positions
_BY_TOKEN = ("duplicate token", "induction")
_NOTHING = -1  # no token's number

# Weights of all heads that are held at once where rows are needed: 32 MB.
_AT_ONCE = 1 << 22


def codes(tokens: Any) -> Integers | None:
    """Numbers that are equal where the recording's tokens (L,) or (B, L) are."""
    if tokens is None or not len(tokens):
        return None
    lengths = {len(row) for row in tokens if not isinstance(row, str)}
    if len(lengths) > 1:
        return None
    _, codes = np.unique(np.asarray(tokens, dtype=str), return_inverse=True)
    return codes.reshape(np.shape(tokens)).astype(np.int64)


def elements(weights: AttentionWeights) -> Iterator[AttentionWeights]:
    """Each batch element's operator (H, Lq, Lk), in order."""
    for index in itertools.product(*map(range, weights.shape[:-3])):
        yield weights[index] if index else weights


def scores(
    weights: Weights,
    ids: Integers | None = None,
    flags: Booleans | None = None,
    crosses: bool = False,
) -> list[dict[str, float]]:
    """Scores of each head of one call: means over the queries of all batch elements.

    ids, flags: (B|1, L), each token's number, and True for what is no text. crosses: whether
    queries and keys are of two texts.
    """
    if isinstance(weights, Summary):
        return weights.scores or _means(weights.shape[-3], [_of_summary(weights, crosses)])
    found = []
    for n, element in enumerate(elements(weights)):
        length = element.shape[-1]
        of_element = _of_element(ids, n, length), _of_element(flags, n, length)
        found.append(_Heads(element, *of_element, crosses).scores())
    return _means(weights.shape[-3], found)


def _means(heads: int, parts: Iterable[Iterable[_Score]]) -> list[dict[str, float]]:
    sums = {name: np.zeros(heads) for name in SCORES}
    counts = dict.fromkeys(SCORES, 0)
    for name, (values, counted) in itertools.chain.from_iterable(parts):
        sums[name] += values[:, counted].sum(axis=1)
        counts[name] += int(counted.sum())
    means = {name: sums[name] / (counts[name] or np.nan) for name in SCORES}
    return [{name: float(values[head]) for name, values in means.items()} for head in range(heads)]


def _of_summary(summary: Summary, crosses: bool) -> Iterator[_Score]:
    """What read-outs that were kept say: all queries of the batch in a row."""
    batch, heads, queries, keys = summary.shape
    kept = {name: keywords for name, (keywords, _) in summary.kept.items()}
    visible = np.broadcast_to(summary.visible, (batch, heads, queries))[:, 0].reshape(-1)
    counted = visible > 0
    later = counted & (np.tile(np.arange(queries), batch) > 0)
    if "entropy" in kept:
        share = _in_a_row(summary.entropy()) / np.log(np.maximum(visible, 2))
        yield "entropy", (share, counted & (visible > 1))
    for name in ("effective keys", "max weight"):
        if name.replace(" ", "_") in kept:
            yield name, (_in_a_row(getattr(summary, name.replace(" ", "_"))()), counted)
    if kept.get("mass") == {"keys": 1}:
        yield "first token", (_in_a_row(summary.mass()), later)
    given = {key: value for key, value in kept.get("received", {}).items() if value is not None}
    if given == {"reduce": "sum"}:
        for element in _floats(summary.received()):
            yield "concentration", _concentration(element, element.any(axis=0))
    if queries == keys and not crosses:
        yield from _of_places(summary, counted, later)


def _of_places(summary: Summary, counted: Booleans, later: Booleans) -> Iterator[_Score]:
    """The scores that compare places, where queries and keys are the same tokens."""
    kept = {name: keywords for name, (keywords, _) in summary.kept.items()}
    if kept.get("distance") == {"offset": 0}:
        yield "distance", (_in_a_row(summary.distance()), counted)
    if kept.get("distance_bins") == {"offset": 0}:
        bins = _floats(summary.distance_bins())  # 0, 1, 2–3, …
        yield "nearby", (_in_a_row(bins[..., :3].sum(axis=-1)), counted)
    if "offsets" in kept:
        near = _floats(summary.kept["offsets"][1])
        places = np.atleast_1d(as_numpy(kept["offsets"]["offsets"])).tolist()
        queries = summary.shape[2]
        sooner = counted & np.tile(np.arange(queries) < queries - 1, summary.shape[0])
        of_place = {
            -1: ("previous token", later),
            0: ("itself", counted),
            1: ("next token", sooner),
        }
        for offset, (name, rows) in of_place.items():
            if offset in places:
                yield name, (_in_a_row(near[..., places.index(offset)]), rows)


def _in_a_row(values: Any) -> Floats:
    """(H, B · Lq) from (B, H, Lq)."""
    found = np.moveaxis(_floats(values), 1, 0)
    return found.reshape(len(found), -1)


def _concentration(received: Floats, seen: Booleans) -> tuple[Floats, Booleans]:
    """1 − the entropy of what keys receive, over that of equal shares; received (H, Lk)."""
    total = received.sum(axis=-1, keepdims=True)
    share = received / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1)
    found = 1 - entropy / np.log(max(int(seen.sum()), 2))
    return found[:, None], np.array([seen.sum() > 1])


def _of_element(array: Any, element: int, length: int) -> Any:
    """One batch element's (L,) of (B, L); one row serves all. None where the length is another."""
    if array is None or array.shape[1] != length:
        return None
    if element >= len(array) > 1:
        raise ShapeError(f"tokens of {len(array)} texts", "one, or as many as were read")
    return array[element if len(array) > 1 else 0]


class _Heads:
    """The heads (H, Lq, Lk) of one batch element."""

    def __init__(
        self,
        weights: AttentionWeights,
        ids: Integers | None,
        special: Booleans | None,
        crosses: bool,
    ) -> None:
        queries, keys = weights.shape[-2:]
        self.weights, self.ids = weights, ids
        self.special = np.zeros(keys, bool) if special is None else special
        self.square = queries == keys and not crosses
        groups = np.where(self.special, 0, -1)
        groups[:1] = 1
        self.read = sweep(
            weights,
            mass={"keys": groups},
            offsets={"offsets": range(-NEAR, NEAR + 1)},
            received={},
            **{name: {} for name in ("distance", "entropy", "effective_keys", "max_weight")},
        )
        self.counted = self.read["effective_keys"].any(axis=0)  # it saw something
        if self.square:
            self.counted &= ~self.special
        self.seen = self.read["received"].any(axis=0)
        self.causal = self._is_causal()

    def scores(self) -> Iterator[_Score]:
        read, counted = self.read, self.counted
        later = np.arange(len(counted)) > 0
        special, first = np.moveaxis(read["mass"], -1, 0)
        yield "first token", (first, counted & later)
        yield "special tokens", (special, counted)
        yield "entropy", self._entropy()
        yield "effective keys", (read["effective_keys"], counted)
        yield "max weight", (read["max_weight"], counted)
        yield "concentration", _concentration(_floats(read["received"]), self.seen)
        if self.square:
            near = read["offsets"]
            yield "previous token", (near[..., NEAR - 1], counted & later)
            yield "next token", (near[..., NEAR + 1], counted & later[::-1])
            yield "itself", (near[..., NEAR], counted)
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

    def _by_token(self, ids: Integers) -> Iterator[_Score]:
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


def sweep(weights: Weights, **wanted: Any) -> dict[str, Any]:
    """Read-outs as NumPy arrays, in one sweep; `wanted` names each with its keywords."""
    return {name: _as_numpy(result) for name, result in vars(weights.read(**wanted)).items()}


def _as_numpy(result: Any) -> Any:
    if isinstance(result, tuple):
        return type(result)(*map(as_numpy, result))
    return as_numpy(result)


def _floats(array: Any) -> Floats:
    return np.asarray(as_numpy(array), np.float64)
