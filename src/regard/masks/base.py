"""Masks as such: how they combine, how arrays become masks, how they cross a tracer's border."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy, dtype_name, is_array
from regard.errors import MaskError, OptionError
from regard.masks.intervals import EVERYTHING, Extent, Visibility

__all__ = ["Mask", "Normal", "as_mask", "check_dense", "flat", "flatten", "rebuild", "visibility"]


@dataclass(frozen=True, eq=False)
class Mask:
    """What each query may see. `&`: both allow it. `|`: either does."""

    _classes: ClassVar[dict[str, type[Mask]]] = {}

    # NumPy must leave `array & mask` to this class instead of looping over its own elements.
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls) -> None:
        Mask._classes[cls.__name__] = cls

    def visibility(self, extent: Extent) -> Visibility:
        """The normal form for these sizes."""
        raise NotImplementedError

    @functools.cached_property
    def signature(self) -> tuple[Any, ...] | None:
        """What tells the mask from others, hashable; None if that takes the values of an array."""
        structure, arrays = flatten(self)
        return None if arrays else structure

    def __and__(self, other: object) -> Mask:
        return Both(self, as_mask(other))

    def __rand__(self, other: object) -> Mask:
        return Both(as_mask(other), self)

    def __or__(self, other: object) -> Mask:
        return Either(self, as_mask(other))

    def __ror__(self, other: object) -> Mask:
        return Either(as_mask(other), self)

    def __bool__(self) -> bool:
        raise MaskError(
            f"{self!r} where a truth value is wanted",
            remedy="combine masks with & and |, not with `and` and `or`",
        )

    def draw(self, queries: int = 8, keys: int | None = None) -> str:
        """A picture for Lq queries (rows) and Lk keys (columns): ■ is seen, · is hidden.

        Of a mask that differs between batch elements or heads it shows the first.
        """
        for name, count in (("queries", queries), ("keys", 0 if keys is None else keys)):
            if not isinstance(count, (int, np.integer)) or count < 0:
                raise OptionError(f"draw({name}={count!r})", "a number of them, 0 or more")
        extent = Extent((1,), 1, queries, queries if keys is None else keys)
        seen = np.broadcast_to(_drawable(self, extent), (extent.queries, extent.keys))
        return "\n".join(" ".join("■" if cell else "·" for cell in row) for row in seen)

    def __str__(self) -> str:
        try:
            return f"{self!r}\n{self.draw()}"
        except MaskError:  # it belongs to sizes of its own
            return repr(self)

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is dataclasses.MISSING:
                text = f"array{tuple(value.shape)}" if is_array(value) else repr(value)
                shown.append(f"{field.name}={text}")
        return f"{type(self).__name__.lower()}({', '.join(shown)})"


@dataclass(frozen=True, eq=False)
class Both(Mask):
    """What both allow."""

    one: Mask
    other: Mask

    def visibility(self, extent: Extent) -> Visibility:
        return (self.one.visibility(extent) & self.other.visibility(extent)).normal(extent.keys)

    def __repr__(self) -> str:
        return f"{self.one!r} & {self.other!r}"


@dataclass(frozen=True, eq=False)
class Either(Mask):
    """What either allows."""

    one: Mask
    other: Mask

    def visibility(self, extent: Extent) -> Visibility:
        return self.one.visibility(extent).union(self.other.visibility(extent), extent.keys)

    def __repr__(self) -> str:
        return f"({self.one!r} | {self.other!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """A boolean array, True = may attend, broadcast to (*batch, H, Lq, Lk)."""

    seen: Any

    def visibility(self, extent: Extent) -> Visibility:
        seen = as_numpy(self.seen)
        check_dense(seen.shape, extent)
        return Visibility(dense=flat(seen, extent))

    def __repr__(self) -> str:
        return f"array{tuple(self.seen.shape)}"


@dataclass(frozen=True, eq=False, repr=False)
class Normal(Mask):
    """A mask already in its normal form, for sizes that are known."""

    intervals: Any
    dense: Any

    def visibility(self, extent: Extent) -> Visibility:
        """As it was given."""
        intervals, dense = (
            None if array is None else as_numpy(array) for array in (self.intervals, self.dense)
        )
        return Visibility(intervals, dense)


def as_mask(value: object) -> Mask:
    """A mask object as it is; a boolean array as a mask; anything else raises MaskError."""
    if isinstance(value, Mask):
        return value
    if not is_array(value):
        raise MaskError(
            f"a mask of type {type(value).__name__}",
            "a boolean array or a mask such as regard.causal()",
        )
    name = dtype_name(value)
    if name == "bool":
        return Dense(value)
    if "float" in name:
        remedy = "pass it as bias=, which is added to the scores; or mask > threshold"
    else:
        remedy = "pass mask != 0"
    raise MaskError(f"a mask of type {name}", "boolean, True where a query may attend", remedy)


def visibility(mask: Mask | None, extent: Extent) -> Visibility:
    """The normal form of `mask` (None: everything); remembered where it holds no array."""
    if mask is None:
        return EVERYTHING
    if mask.signature is None:
        return mask.visibility(extent)
    return _kept(mask.signature, extent)


@functools.lru_cache(maxsize=32)
def _kept(structure: tuple[Any, ...], extent: Extent) -> Visibility:
    return rebuild(structure, ()).visibility(extent)


def flatten(mask: Mask, first: int = 0) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(structure, arrays): a hashable description, and the arrays it refers to by number."""
    arrays: list[Any] = []
    entries: list[Any] = []
    for field in dataclasses.fields(mask):
        value = getattr(mask, field.name)
        if isinstance(value, Mask):
            inner, more = flatten(value, first + len(arrays))
            entries.append(("mask", inner))
            arrays.extend(more)
        elif isinstance(value, tuple) and value and isinstance(value[0], Mask):
            parts = []
            for part in value:
                inner, more = flatten(part, first + len(arrays))
                parts.append(inner)
                arrays.extend(more)
            entries.append(("masks", tuple(parts)))
        elif is_array(value):
            entries.append(("array", first + len(arrays)))
            arrays.append(value)
        else:
            entries.append(("value", value))
    return (type(mask).__name__, tuple(entries)), tuple(arrays)


def rebuild(structure: tuple[Any, ...], arrays: tuple[Any, ...]) -> Mask:
    """The mask that `flatten` took apart."""
    name, entries = structure
    fields: list[Any] = []
    for kind, content in entries:
        if kind == "mask":
            fields.append(rebuild(content, arrays))
        elif kind == "masks":
            fields.append(tuple(rebuild(part, arrays) for part in content))
        else:
            fields.append(arrays[content] if kind == "array" else content)
    return Mask._classes[name](*fields)


def flat(array: npt.NDArray[Any], extent: Extent) -> npt.NDArray[Any]:
    """(B|1, H|1, rows, columns) of an array that broadcasts to (*batch, H, rows, columns)."""
    array = array.reshape((1,) * (len(extent.shape) - array.ndim) + array.shape)
    batch, rest = array.shape[:-3], array.shape[-3:]
    if all(size == 1 for size in batch):
        return array.reshape(1, *rest)
    return np.broadcast_to(array, extent.batch + rest).reshape(extent.flat_batch, *rest)


def check_dense(shape: tuple[int, ...], extent: Extent) -> None:
    """That a boolean array of that shape can be a mask. Raises: MaskError."""
    if extent.fits(shape):
        return
    remedy = "add dimensions of size 1 where it is shared"
    if shape == (extent.flat_batch, extent.keys):
        remedy = "if it says which keys are padding, pass mask=regard.keys(mask)"
    elif len(shape) == 3 and shape[0] == extent.flat_batch:
        remedy = "rank 3 is (H, Lq, Lk); for one mask a batch element pass mask[:, None]"
    raise MaskError(
        f"a mask of shape {shape}",
        f"one that broadcasts to (B, H, Lq, Lk) = {extent.shape}",
        remedy,
    )


def _drawable(mask: Mask, extent: Extent) -> npt.NDArray[np.bool_]:
    try:
        seen = mask.visibility(extent).as_dense(extent.keys)
    except MaskError:
        batch = _batch_of(mask)
        if batch is None:
            raise
        seen = mask.visibility(dataclasses.replace(extent, batch=(batch,))).as_dense(extent.keys)
    return np.asarray(seen[0, 0])


def _batch_of(mask: Mask) -> int | None:
    """The batch size that the arrays of a mask tell of."""
    sizes = {array.shape[0] for array in flatten(mask)[1] if array.shape}
    return sizes.pop() if len(sizes) == 1 else None
