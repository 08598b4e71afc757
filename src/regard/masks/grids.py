"""Masks on a grid: positions near one another in one, two or three dimensions, and blocks.

Positions of a grid lie row by row in the sequence: (y, x) of a grid (Y, X) is position y X + x.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regard._arrays import as_array, as_numpy, dtype_name
from regard.errors import MaskError, OptionError
from regard.masks.base import Mask, flat
from regard.masks.intervals import Extent, Visibility, runs, stack

__all__ = ["blocks", "neighborhood"]

Border = Literal["clip", "shift"]


@dataclass(frozen=True, eq=False, repr=False)
class Neighborhood(Mask):
    """Query i sees key j when they are near each other along every axis of the grid."""

    shape: tuple[int, ...]
    radius: tuple[int, ...]
    border: Border = "clip"

    def visibility(self, extent: Extent) -> Visibility:
        cells = math.prod(self.shape)
        if extent.queries != cells or extent.keys != cells:
            raise MaskError(
                f"{self!r} for {extent.queries} queries and {extent.keys} keys",
                f"one of each for the {cells} cells of the grid",
            )
        coordinates = np.unravel_index(np.arange(cells), self.shape)
        near = [self._near(axis, i) for axis, i in enumerate(np.asarray(c) for c in coordinates)]
        *leading, (first, last) = near
        widths = [range(int((stop - start).max(initial=0))) for start, stop in leading]
        pairs = np.zeros((cells, max(1, math.prod(map(len, widths))), 2), np.int32)
        for n, steps in enumerate(itertools.product(*widths)):
            row, inside = np.zeros(cells, np.int64), np.ones(cells, bool)
            for size, step, (start, stop) in zip(self.shape[:-1], steps, leading, strict=True):
                row = row * size + start + step
                inside &= start + step < stop
            begin = row * self.shape[-1]
            pairs[:, n] = np.where(inside, [begin + first, begin + last], 0).T
        return Visibility(pairs[None, None])

    def _near(self, axis: int, i: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Start and stop along one axis of what a query at coordinate i sees."""
        size, radius = self.shape[axis], self.radius[axis]
        if self.border == "clip":
            return np.maximum(i - radius, 0), np.minimum(i + radius + 1, size)
        width = min(2 * radius + 1, size)
        start = np.clip(i - radius, 0, size - width)
        return start, start + width


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Mask):
    """Query i sees key j when on[…, i // rows, j // columns]."""

    on: Any
    size: tuple[int, int]

    def visibility(self, extent: Extent) -> Visibility:
        on = as_numpy(self.on)
        rows, columns = self.size
        wanted = (-(-extent.queries // rows), -(-extent.keys // columns))
        if on.shape[-2:] != wanted or not extent.fits((*on.shape[:-2], 1, 1)):
            raise MaskError(
                f"blocks(on) of shape {on.shape}, with blocks of {rows} × {columns}",
                f"(Lq / {rows}, Lk / {columns}) = {wanted}, or with (H, …) or (B, H, …) before it",
            )
        on = flat(on, extent)
        pairs = stack([runs(row) for lead in on for head in lead for row in head])
        pairs = np.minimum(pairs * columns, extent.keys).astype(np.int32)
        each = pairs.reshape(*on.shape[:3], *pairs.shape[-2:])
        return Visibility(np.repeat(each, rows, axis=2)[:, :, : extent.queries])


def _each(given: Any, count: int) -> tuple[Any, ...]:
    """One number for each of so many; what else there is, as a tuple."""
    return tuple(given) if isinstance(given, Iterable) else (given,) * count


def neighborhood(
    shape: int | Sequence[int], radius: int | Sequence[int], *, border: Border = "clip"
) -> Mask:
    """Query i sees key j when they lie at most `radius` cells apart along every axis of a grid.

    shape: cells along each of one, two or three axes; the sequence is the grid row by row.
    radius: for each axis, or one for all.
    border: "clip": at the border of the grid a query sees fewer keys. "shift": its neighbourhood
        is moved inwards, so that each sees 2 radius + 1 along every axis, as in NATTEN's
        definition ("Neighborhood Attention Transformer", Hassani et al., 2023).

    `neighborhood((64, 64), 3)` is local attention over an image of 64 × 64 patches. Tokens that
    are not on the grid, and further conditions, are added with `|` and `&`.
    """
    sizes = _each(shape, 1)
    radii = _each(radius, len(sizes))
    given = f"neighborhood(shape={shape}, radius={radius})"
    if not 1 <= len(sizes) <= 3 or len(radii) != len(sizes):
        raise OptionError(given, "one to three axes, with one radius or one for each")
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in (*sizes, *radii)):
        raise OptionError(given, "integers, 0 or more")
    if border not in ("clip", "shift"):
        raise OptionError(f"neighborhood(border={border!r})", '"clip" or "shift"')
    return Neighborhood(tuple(map(int, sizes)), tuple(map(int, radii)), border)


def blocks(on: Any, size: int | tuple[int, int]) -> Mask:
    """Query i sees key j when the block that they fall in is switched on.

    on: boolean (⌈Lq / rows⌉, ⌈Lk / columns⌉), or with (H, …) or (B, H, …) before it.
    size: rows and columns of a block, or one number for both. The last block of a row or column
        may be cut short.
    """
    on = as_array(on, "blocks(on)")
    if dtype_name(on) != "bool" or len(on.shape) < 2:
        raise MaskError(
            f"blocks(on) of type {dtype_name(on)} and shape {tuple(on.shape)}",
            "boolean, a row for each block of queries, a column for each block of keys",
        )
    sides = _each(size, 2)
    if len(sides) != 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sides):
        raise OptionError(f"blocks(size={size!r})", "rows and columns of a block, 1 or more")
    return Blocks(on, (int(sides[0]), int(sides[1])))
