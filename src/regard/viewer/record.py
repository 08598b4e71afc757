"""What the page shows: texts, and the attention calls that read them.

Letters: H heads, Lq queries, Lk keys, G cells of a pooled map, k stored keys per query. Weights are
softmax probabilities, so each row over the keys sums to 1 at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import OptionError, ShapeError
from regard.viewer.text import Text

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

# Of dense weights: the keys that are kept for each query, the rows and columns of pooled maps.
_TOP_KEYS, _CELLS = 8, 64


@dataclass(frozen=True)
class Call:
    """One attention call: what its H heads read.

    name: the module's path, such as "encoder.layer.3.attention".
    layer: its number, shown beside its row of the map.
    kinds: H plain words, one per head, such as "previous token". "", "broad", "mixed", "other" and
        "unknown" are drawn in grey, every other kind has its colour.
    scores: name → (H,) numbers to sort, filter and colour heads by. NaN means unknown.
    pooled_sum: (H, G, G'): weights summed over cells; query i lies in cell row i * G // Lq,
        key j in cell column j * G' // Lk.
    pooled_max: (H, G, G'): the largest weight in each cell.
    top_keys: (H, Lq, k) integers: the keys with the largest weights, descending; −1 = none.
    top_weights: (H, Lq, k): their weights.
    received: (H, Lk): weights summed over the queries.
    entropy: (H, Lq): −Σ p log p over the keys, in nats.
    dense: (H, Lq, Lk): all weights, or None. The page keeps them when its size allows.
    query_text, key_text: which text of the record the queries and the keys are.
    first_query: the token that query 0 stands for (greater than 0 with a key-value cache).
    head_numbers: H numbers by which the heads are called, if some of the model's are left out.

    Raises ShapeError when sizes do not agree, OptionError when a number cannot be a weight.
    """

    name: str
    layer: int
    kinds: Sequence[str]
    scores: Mapping[str, Floats]
    pooled_sum: Floats
    pooled_max: Floats
    top_keys: Integers
    top_weights: Floats
    received: Floats
    entropy: Floats
    dense: Floats | None = None
    query_text: int = 0
    key_text: int = 0
    first_query: int = 0
    head_numbers: Sequence[int] | None = None

    @property
    def heads(self) -> int:
        """H"""
        return int(self.received.shape[0])

    @property
    def queries(self) -> int:
        """Lq"""
        return int(self.entropy.shape[-1])

    @property
    def keys(self) -> int:
        """Lk"""
        return int(self.received.shape[-1])

    def __post_init__(self) -> None:
        for name in ("received", "entropy"):
            if getattr(self, name).ndim != 2:
                self._refuse_shape(name, getattr(self, name), "two axes: (H, Lk) or (H, Lq)")
        h, lq, lk = self.heads, self.queries, self.keys
        if not h:
            raise ShapeError(f"{self.name}: no heads", "one head at least")
        self._check_shape("entropy", self.entropy, (h, lq))
        self._check_shape("pooled_sum", self.pooled_sum, (h, None, None))
        self._check_shape("pooled_max", self.pooled_max, self.pooled_sum.shape)
        self._check_shape("top_keys", self.top_keys, (h, lq, None))
        self._check_shape("top_weights", self.top_weights, self.top_keys.shape)
        if self.dense is not None:
            self._check_shape("dense", self.dense, (h, lq, lk))
        for name, score in self.scores.items():
            self._check_shape(f"scores[{name!r}]", score, (h,))
        for name, wanted in (("kinds", "one plain word"), ("head_numbers", "one number")):
            entries = getattr(self, name)
            if entries is not None and len(entries) != h:
                raise ShapeError(
                    f"{self.name}: {name} has {len(entries)} entries for {h} heads",
                    f"{wanted} per head",
                )
        self._check_values()

    def _check_shape(self, name: str, array: Any, wanted: tuple[int | None, ...]) -> None:
        fits = len(wanted) == array.ndim and all(
            w is None or w == n for w, n in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            self._refuse_shape(name, array, str(tuple("any" if w is None else w for w in wanted)))

    def _refuse_shape(self, name: str, array: Any, wanted: str) -> None:
        raise ShapeError(f"{self.name}: {name} has shape {array.shape}", wanted)

    def _check_values(self) -> None:
        if self.top_keys.size and not (
            -1 <= self.top_keys.min() <= self.top_keys.max() < self.keys
        ):
            raise OptionError(
                f"{self.name}: top_keys runs from {self.top_keys.min()} to {self.top_keys.max()}",
                f"keys from 0 to {self.keys - 1}, or -1 for none",
            )
        for name in ("top_weights", "pooled_max", "dense"):
            array = getattr(self, name)
            # NaN fails both comparisons, so it is refused here too
            if array is not None and array.size and not (array.min() >= 0 and array.max() <= 1.001):
                raise OptionError(
                    f"{self.name}: {name} runs from {array.min()} to {array.max()}",
                    "weights between 0 and 1",
                    "give weights after the softmax",
                )
        for name in ("pooled_sum", "received", "entropy"):
            array = getattr(self, name)
            if not np.isfinite(array).all() or (array.size and array.min() < -1e-3):
                raise OptionError(
                    f"{self.name}: {name} is negative or not finite somewhere",
                    "finite numbers from 0 up",
                )

    @classmethod
    def from_weights(
        cls,
        weights: Floats,
        *,
        name: str,
        layer: int,
        kinds: Sequence[str] = (),
        scores: Mapping[str, Floats] | None = None,
        **places: Any,
    ) -> Call:
        """Everything that a call needs, from dense weights (H, Lq, Lk).

        places: query_text, key_text, first_query, head_numbers. Raises as the class does.
        """
        if weights.ndim != 3:
            raise ShapeError(f"{name}: weights have shape {weights.shape}", "(H, Lq, Lk)")
        h, lq, lk = weights.shape
        k = min(_TOP_KEYS, lk)
        keys = np.argsort(-weights, axis=-1, kind="stable")[..., :k]
        best = np.take_along_axis(weights, keys, axis=-1)
        logs = np.log(np.where(weights > 0, weights, 1))
        grid = min(_CELLS, lq), min(_CELLS, lk)
        return cls(
            name=name,
            layer=layer,
            kinds=kinds or [""] * h,
            scores=scores or {},
            pooled_sum=pool(weights, grid, np.add),
            pooled_max=pool(weights, grid, np.maximum),
            top_keys=np.where(best > 0, keys, -1).astype(np.int32),
            top_weights=best,
            received=weights.sum(1),
            entropy=-(weights * logs).sum(-1),
            dense=weights,
            **places,
        )


def pool(maps: Floats, grid: tuple[int, int], reduce: np.ufunc) -> Floats:
    """(H, R, C) maps reduced to (H, *grid); row i falls in cell row i * grid[0] // R."""
    for axis, cells in zip((1, 2), grid, strict=True):
        maps = reduce.reduceat(maps, cell_edges(maps.shape[axis], cells)[:-1], axis=axis)
    return maps


def cell_edges(size: int, cells: int) -> Integers:
    """(cells + 1,): cell c holds edges[c] … edges[c + 1] − 1, which is every i with
    c = i * cells // size.
    """
    return -(-np.arange(cells + 1) * size // max(cells, 1))


@dataclass(frozen=True)
class Record:
    """Everything that the page shows.

    title: the page's heading. model: which model read the text.
    texts: one, or several for encoder and decoder. calls: in the order in which they happened.
    notes: what a reader must know ("the text was cut at 512 tokens"); shown at the top.
    glossary: a kind's or a score's name → one sentence that explains it.
    rollouts: what each token read through all layers, residual connections included: calls of one
        head each, one for each pair of texts at most. Only the reader and the links show them.
    kinds: all kinds that there may be: the nth has the nth colour, on every page alike. Kinds that
        are not among them come after, by the alphabet.

    Raises OptionError when there is no call, or when a call names a text that does not exist;
    ShapeError when a call has more queries or keys than its text has tokens.
    """

    title: str
    model: str
    texts: Sequence[Text]
    calls: Sequence[Call]
    notes: Sequence[str] = ()
    glossary: Mapping[str, str] = field(default_factory=dict)
    kinds: Sequence[str] = ()
    rollouts: Sequence[Call] = ()

    def __post_init__(self) -> None:
        if not self.calls:
            raise OptionError("the record holds no attention call", "one call at least")
        for rollout in self.rollouts:
            if rollout.heads != 1:
                raise ShapeError(f"{rollout.name}: {rollout.heads} heads", "a rollout has one")
        for call in [*self.calls, *self.rollouts]:
            for side, text, size in (
                ("query", call.query_text, call.first_query + call.queries),
                ("key", call.key_text, call.keys),
            ):
                self._check_text(call.name, side, text, size)

    def _check_text(self, call: str, side: str, text: int, size: int) -> None:
        if not 0 <= text < len(self.texts):
            raise OptionError(
                f"{call}: {side}_text is {text}", f"a number from 0 to {len(self.texts) - 1}"
            )
        tokens = len(self.texts[text].tokens)
        if size > tokens:
            raise ShapeError(
                f"{call}: the {side} side needs {size} tokens, text {text} has {tokens}",
                "a token for every query and key",
                "give the whole text, special tokens included",
            )
