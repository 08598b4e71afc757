"""Masks by position: what lies before a query, or near it.

`align` says which query stands on which key when Lq and Lk differ: query i stands on key
i + offset, where the offset is 0 for "upper_left", Lk - Lq for "lower_right", or given as an
integer or as an array (B,) with one for each batch element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import is_array
from regard.errors import MaskError, OptionError, RegardError
from regard.masks.arguments import FAR, check_per_batch, integers, per_batch
from regard.masks.base import Mask
from regard.masks.intervals import EVERYTHING, Extent, Visibility, interval

__all__ = ["Align", "causal", "checked_align", "offset_of", "prefix", "window"]

Align = Any  # "upper_left" | "lower_right" | int | array (B,) | None


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Mask):
    """Query i sees key j when j <= i + offset."""

    align: Align = None

    def visibility(self, extent: Extent) -> Visibility:
        stands_on = _positions(self.align, extent, "causal")
        return interval(0, stands_on + 1, extent.keys)


@dataclass(frozen=True, eq=False, repr=False)
class Window(Mask):
    """Query i sees key j when -left <= j - (i + offset) <= right."""

    left: int | None
    right: int | None
    align: Align = None

    def visibility(self, extent: Extent) -> Visibility:
        if self.left is None and self.right is None:
            return EVERYTHING
        stands_on = _positions(self.align, extent, "window")
        start = 0 if self.left is None else stands_on - self.left
        stop = extent.keys if self.right is None else stands_on + self.right + 1
        return interval(start, stop, extent.keys)


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Mask):
    """Every query sees key j when j < n."""

    n: Any

    def visibility(self, extent: Extent) -> Visibility:
        return interval(0, per_batch(self.n, extent, "prefix(n)"), extent.keys)


def causal(align: Align = None) -> Mask:
    """Query i sees key j when j <= i + offset.

    align: which key query i stands on when Lq and Lk differ, i + offset: "upper_left" (offset 0),
        "lower_right" (Lk − Lq, as with a cache), an integer, or an array (B,) of them.

    With Lq = 3 and Lk = 5:

        causal(align="upper_left")      causal(align="lower_right")
        ■ · · · ·                       ■ ■ ■ · ·
        ■ ■ · · ·                       ■ ■ ■ ■ ·
        ■ ■ ■ · ·                       ■ ■ ■ ■ ■

    Without `align`, Lq must equal Lk: libraries disagree about which of the two is meant.
    """
    return Causal(checked_align(align, "causal"))


def window(left: int | None, right: int | None, align: Align = None) -> Mask:
    """Query i sees key j when -left <= j - (i + offset) <= right; None leaves that side open.

    `window(2, 0)` is the query's own position and the two before it. align: as in `regard.causal`.
    """
    for name, size in (("left", left), ("right", right)):
        if size is not None and (not isinstance(size, (int, np.integer)) or size < 0):
            raise OptionError(
                f"window({left}, {right}): {name} is {size!r}",
                "a number of keys, 0 or more, or None for an open side",
                "count the keys before (left) and after (right) the query's own position",
            )
    return Window(
        None if left is None else min(int(left), FAR),
        None if right is None else min(int(right), FAR),
        checked_align(align, "window"),
    )


def prefix(n: Any) -> Mask:
    """Every query sees the first n keys; n is an integer or an array (B,)."""
    return Prefix(integers(n, "prefix(n)"))


def _positions(align: Align, extent: Extent, name: str) -> npt.NDArray[np.int64]:
    """(B|1, 1, Lq): the key that each query stands on."""
    offset = per_batch(offset_of(align, extent, name), extent, f"{name}(align)", negative=True)
    return np.arange(extent.queries)[None, None, :] + offset


def offset_of(align: Align, extent: Extent, name: str, error: type[RegardError] = MaskError) -> Any:
    """The offset that `align` says: an integer, or an array with one for each batch element.

    Raises: `error` where Lq and Lk differ and nothing is said; MaskError for an array of another
    shape.
    """
    if align is None:
        if extent.queries != extent.keys:
            raise error(
                f"{name}() for {extent.queries} queries and {extent.keys} keys",
                "an alignment, since libraries disagree about it",
                'pass align="upper_left" (query 0 stands on key 0) or align="lower_right" (the '
                "last query stands on the last key, as with a cache)",
            )
        return 0
    if isinstance(align, str):
        return 0 if align == "upper_left" else extent.keys - extent.queries
    if is_array(align):
        check_per_batch(tuple(align.shape), extent, f"{name}(align)")
    return align


def checked_align(align: Align, name: str) -> Align:
    """`align` as masks keep it. Raises: OptionError, MaskError."""
    if align is None or (isinstance(align, str) and align in ("upper_left", "lower_right")):
        return align
    if isinstance(align, str):
        raise OptionError(
            f"{name}(align={align!r})",
            '"upper_left", "lower_right", an integer or an array (B,) of offsets',
        )
    return integers(align, f"{name}(align)")
