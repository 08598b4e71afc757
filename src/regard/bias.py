"""What is added to the scores for the distance of key and query; it never becomes a matrix.

    alibi(slopes)          −slope_h · |distance|
    relative_bias(table)   table[h, distance]; of farther distances, of the farthest that it has
    t5_bias(weight)        weight[bucket of the distance, h]

The distance of query i and key j is j − (i + offset), where `align` says the offset as it does for
masks: 0 for "upper_left", Lk − Lq for "lower_right" (the last query stands on the last key, as with
a cache), or it is given, as an integer or as an array (B,) with one for each batch element. Without
`align`, Lq must equal Lk.

All of them come down to a number for each head and each j − i, a table (H, Lq + Lk − 1), which
kernels read as it is and whose gradient they make in memory linear in length. What it was made of
gets its gradient from there, by the framework's own rules. They are passed as `bias=`, and added
where a bias is: after scale and softcap. Along the edges of a graph they are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from regard._arrays import as_array, dtype_name, is_array
from regard.errors import DtypeError, OptionError, ShapeError
from regard.masks import Extent
from regard.masks.positions import Align, checked_align, offset_of

__all__ = [
    "LEAST_SCORE",
    "Bias",
    "alibi",
    "alibi_slopes",
    "arrays_in",
    "buckets_fit",
    "distance_count",
    "relative_bias",
    "spread",
    "t5_bias",
]

# A finite score below it, after its bias, counts as that: where all are, as in a row that -1e9 or
# the lowest number hides as a whole, the logarithm of their sum would be too large to hold what
# weights are. Nowhere else does it change a weight.
LEAST_SCORE = -131072.0


@dataclass(frozen=True, eq=False, repr=False)
class Bias:
    """A bias by distance; its functions are what makes one."""

    array: Any  # what its numbers are made of
    align: Align
    constant: bool  # the array was made here, and is of no framework

    name: ClassVar[str]  # of the function that makes one
    __array_ufunc__: ClassVar[None] = None  # NumPy must leave `array + bias` to this class

    def __add__(self, other: object) -> Bias:
        raise OptionError(
            f"a sum of {self!r} and another bias",
            "one bias a call, since a sum of two is a matrix again",
            "add arrays (H, Lq, Lk), or the tables of two biases",
        )

    __radd__ = __add__

    def __repr__(self) -> str:
        align = "" if self.align is None else f", align={self.align!r}"
        return f"{self.name}(array{tuple(self.array.shape)}{align})"

    def table(self, front: ModuleType, like: Any, extent: Extent, dtype: str) -> Any:
        """(*batch | 1, H | 1, 1, Lq + Lk − 1), for the distances −(Lq − 1) … Lk − 1 of j − i.

        An array of the front end's framework, as `like`, of a type that sums are held in.

        Raises: ShapeError, OptionError, MaskError.
        """
        self._check_heads(extent)
        offset = offset_of(self.align, extent, self.name, OptionError)
        steps = np.arange(distance_count(extent)) - max(extent.queries - 1, 0)
        array = front.cast(
            front.from_numpy(self.array, like) if self.constant else self.array, dtype
        )
        if not is_array(offset):
            return self._entries(front, array, front.from_numpy(steps - offset, like))[..., None, :]
        each = tuple(offset.shape) not in ((), (1,))
        offset = front.from_numpy(offset, like) if isinstance(offset, np.ndarray) else offset
        offset = offset.reshape((*extent.batch, 1) if each else (1,) * (len(extent.batch) + 1))
        return self._entries(front, array, front.from_numpy(steps, like) - offset)[..., None, :]

    def _entries(self, front: ModuleType, array: Any, distances: Any) -> Any:
        """(…, H, n) for distances (n,), or (*batch, n)."""
        raise NotImplementedError

    def _check_heads(self, extent: Extent) -> None:
        raise NotImplementedError


class Alibi(Bias):
    """−slope · |distance|; array: the slopes (…, H)."""

    name = "alibi"

    def _entries(self, front: ModuleType, array: Any, distances: Any) -> Any:
        away = front.cast(abs(distances), dtype_name(array))
        return -array[..., None] * away[..., None, :]

    def _check_heads(self, extent: Extent) -> None:
        shape = tuple(self.array.shape)
        if not Extent(extent.batch, extent.heads, 0, 0).fits((*shape, 0, 0)):
            raise ShapeError(f"slopes {shape}", f"(H,) or (B, H) = {extent.shape[:-2]}")


class Relative(Bias):
    """The entry of a distance; array: (…, H | 1, 2 R + 1) for distances −R … R."""

    name = "relative_bias"

    def _entries(self, front: ModuleType, array: Any, distances: Any) -> Any:
        furthest = array.shape[-1] // 2
        if len(array.shape) > 2 and len(distances.shape) > 1:
            raise OptionError(
                "relative_bias() with a table and an align for each batch element",
                "one of the two shared by all",
            )
        return front.take(array, distances.clip(-furthest, furthest) + furthest)

    def _check_heads(self, extent: Extent) -> None:
        shape = tuple(self.array.shape)
        if not Extent(extent.batch, extent.heads, 0, 0).fits((*shape[:-1], 0, 0)):
            raise ShapeError(f"a table {shape}", f"(H, 2 R + 1) with H = {extent.heads}")


@dataclass(frozen=True, eq=False, repr=False)
class T5(Bias):
    """The weight of a distance's bucket; array: (buckets, H)."""

    bidirectional: bool
    max_distance: int

    name = "t5_bias"

    def _entries(self, front: ModuleType, array: Any, distances: Any) -> Any:
        ranges = _buckets(array.shape[0], self.bidirectional, self.max_distance)
        furthest = len(ranges) // 2
        bucket = front.from_numpy(ranges, array)[distances.clip(-furthest, furthest) + furthest]
        return front.take(array.swapaxes(0, 1), bucket)

    def _check_heads(self, extent: Extent) -> None:
        if self.array.shape[1] not in (1, extent.heads):
            shape = tuple(self.array.shape)
            raise ShapeError(f"a weight {shape}", f"(buckets, H) with H = {extent.heads}")


def alibi(slopes: Any, align: Align = None) -> Bias:
    """bias_hij = −slope_h · |j − (i + offset)|: attention with linear biases.

    Under a causal mask this is the original, −slope_h · (i − j); without one it is the form that
    encoders use.

    Args:
        slopes: (H,), or (B, H); an array of the framework of queries and keys, which gets a
            gradient, or a list of numbers. An integer H stands for the authors' slopes,
            2^(−8 (h + 1) / H) for head h; where H is no power of two, those of the next lower one
            are followed by every other one of the next higher one.
        align: which key query i stands on, as in `regard.causal`.

    Source: Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input
    Length Extrapolation" (2022).

    Raises: ShapeError, DtypeError, OptionError.
    """
    if isinstance(slopes, (int, np.integer)) and not isinstance(slopes, bool):
        slopes = alibi_slopes(int(slopes)).tolist()
    array, constant = _array(slopes, "slopes")
    if not array.shape:
        raise ShapeError(f"slopes {tuple(array.shape)}", "(H,) or (B, H)", "pass slopes[None]")
    return Alibi(array, checked_align(align, "alibi"), constant)


def relative_bias(table: Any, align: Align = None) -> Bias:
    """bias_hij = table[h, R + d] with the distance d = j − (i + offset), cut to −R … R.

    Args:
        table: (H, 2 R + 1), or (1, 2 R + 1) for all heads: its middle is distance 0. An array of
            the framework of queries and keys, which gets a gradient.
        align: which key query i stands on, as in `regard.causal`.

    Source: Shaw, Uszkoreit, Vaswani, "Self-Attention with Relative Position Representations"
    (2018), where distances are cut so; the bias a number for each, as in Raffel et al., "Exploring
    the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020).

    Raises: ShapeError, DtypeError, OptionError.
    """
    array, constant = _array(table, "table")
    shape = tuple(array.shape)
    if len(shape) < 2 or shape[-1] % 2 == 0:
        raise ShapeError(
            f"a table {shape}",
            "(H, 2 R + 1), for the distances −R … R",
            "an odd number of entries has one for distance 0 in the middle",
        )
    return Relative(array, checked_align(align, "relative_bias"), constant)


def t5_bias(
    weight: Any, *, bidirectional: bool = True, max_distance: int = 128, align: Align = None
) -> Bias:
    """bias_hij = weight[bucket(j − (i + offset)), h], with T5's buckets of distances.

    With bidirectional=True half of the buckets are for keys after the query; otherwise these share
    bucket 0. Half of a direction's buckets are single distances, the others grow with the logarithm
    of the distance, and the last one is for max_distance and all beyond: as Hugging Face's
    `T5Attention.compute_bias` has it, rounding included.

    Args:
        weight: (buckets, H), as `relative_attention_bias.weight` of a T5 model. An array of the
            framework of queries and keys, which gets a gradient.
        align: which key query i stands on, as in `regard.causal`.

    T5 does not scale its scores: pass scale=1.0 with it.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer" (2020).

    Raises: ShapeError, DtypeError, OptionError.
    """
    array, constant = _array(weight, "weight")
    if len(array.shape) != 2:
        raise ShapeError(f"a weight {tuple(array.shape)}", "(buckets, H)")
    if not isinstance(max_distance, int):
        raise OptionError(f"max_distance={max_distance!r}", "an integer")
    if not buckets_fit(array.shape[0], bidirectional, max_distance):
        raise OptionError(
            f"{array.shape[0]} buckets, max_distance={max_distance}, bidirectional={bidirectional}",
            "at least 2 buckets a direction, and a distance beyond those that stand alone",
        )
    checked = checked_align(align, "t5_bias")
    return T5(array, checked, constant, bool(bidirectional), int(max_distance))


def buckets_fit(count: int, bidirectional: bool, max_distance: int) -> bool:
    """Whether T5's buckets can be made: 2 a direction, and a distance beyond the single ones."""
    one_way = count // 2 if bidirectional else count
    return one_way >= 2 and max_distance > one_way // 2


def alibi_slopes(heads: int) -> npt.NDArray[np.float64]:
    """(H,): the slopes of the authors of ALiBi. Raises: OptionError."""
    if heads < 1:
        raise OptionError(f"slopes of {heads} heads", "a number of heads, 1 or more")
    power = 2 ** int(math.log2(heads))
    step = np.concatenate([np.arange(1, power + 1), np.arange(heads - power) + 0.5])
    found: npt.NDArray[np.float64] = 2.0 ** (-8 * step / power)
    return found


def arrays_in(bias: Any) -> dict[str, Any]:
    """The arrays of a bias by name: its own, or itself."""
    if not isinstance(bias, Bias):
        return {"bias": bias}
    return {} if bias.constant else {"what the bias is made of": bias.array}


def distance_count(extent: Extent) -> int:
    """How many entries a table by distance has: Lq + Lk − 1, of nothing 0."""
    return max(extent.queries + extent.keys - 1, 0)


def spread(table: npt.NDArray[Any], extent: Extent) -> npt.NDArray[Any]:
    """(…, Lq, Lk) of a table (…, 1, Lq + Lk − 1): a view, of neighbours that overlap."""
    lead = table.shape[:-2]
    if not extent.queries or not extent.keys:
        return np.zeros((*lead, extent.queries, extent.keys), table.dtype)
    rows = np.lib.stride_tricks.sliding_window_view(table[..., 0, :], extent.keys, axis=-1)
    return rows[..., ::-1, :]


def _array(given: Any, name: str) -> tuple[Any, bool]:
    """An array of floats, and whether it was made here."""
    if not is_array(given):
        found = as_array(given, name)
        if found.dtype.kind not in "biuf":
            raise DtypeError(f"{name} of type {found.dtype}", "numbers")
        return found.astype(np.float64), True
    if "float" not in dtype_name(given):
        raise DtypeError(f"{name} of type {dtype_name(given)}", "floats", "convert it")
    return given, False


def _buckets(count: int, bidirectional: bool, max_distance: int) -> npt.NDArray[np.int64]:
    """The bucket of each distance −max_distance … max_distance."""
    distances = np.arange(-max_distance, max_distance + 1)
    one_way = count // 2 if bidirectional else count
    away = abs(distances) if bidirectional else np.maximum(-distances, 0)
    single = one_way // 2
    # In float32, as Hugging Face has it: it decides on which side of a border some distances fall.
    grown = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(single))
    grown = grown / np.float32(math.log(max_distance / single)) * np.float32(one_way - single)
    far = np.minimum(single + grown.astype(np.int64), one_way - 1)
    first = one_way * (distances > 0) if bidirectional else 0
    found: npt.NDArray[np.int64] = first + np.where(away < single, away, far)
    return found
