"""Masks: objects that say what a query may see.

They combine with `&` and `|`, with each other and with boolean arrays (True = may attend), and each
can draw itself: `print(causal() & window(3, 0))`. All of them reduce to the normal form of
`intervals.py`, which is all that a kernel sees.

`align` says which query stands on which key when Lq and Lk differ: query i stands on key i + offset,
where the offset is 0 for "upper_left", Lk - Lq for "lower_right", or given as an integer or as an
array (B,) with one for each batch element.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy, dtype_name, is_array
from regard.errors import MaskError, OptionError
from regard.intervals import EVERYTHING, MOST_INTERVALS, Extent, Visibility, interval, runs

__all__ = [
    "Mask",
    "as_mask",
    "causal",
    "documents",
    "flatten",
    "keys",
    "lengths",
    "prefix",
    "rebuild",
    "visibility",
    "window",
]

Align = Any  # "upper_left" | "lower_right" | int | array (B,) | None


@dataclass(frozen=True, eq=False)
class Mask:
    """What each query may see. `&`: both allow it. `|`: either does."""

    # NumPy must leave `array & mask` to this class instead of looping over its own elements.
    __array_ufunc__: ClassVar[None] = None

    def visibility(self, extent: Extent) -> Visibility:
        """The normal form for these sizes."""
        raise NotImplementedError

    def __and__(self, other: object) -> Mask:
        return Both(self, as_mask(other))

    def __rand__(self, other: object) -> Mask:
        return Both(as_mask(other), self)

    def __or__(self, other: object) -> Mask:
        return Either(self, as_mask(other))

    def __ror__(self, other: object) -> Mask:
        return Either(as_mask(other), self)

    def draw(self, queries: int = 8, keys: int | None = None) -> str:
        """A picture for Lq queries (rows) and Lk keys (columns): ■ is seen, · is hidden.

        Of a mask that differs between batch elements or heads it shows the first.
        """
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
        stands_on = _positions(self.align, extent, "window")
        start = 0 if self.left is None else stands_on - self.left
        stop = extent.keys if self.right is None else stands_on + self.right + 1
        return interval(start, stop, extent.keys)


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """Query i sees key j when both lie inside their sequence's length."""

    keys: Any = None
    queries: Any = None

    def visibility(self, extent: Extent) -> Visibility:
        seen = EVERYTHING
        if self.keys is not None:
            seen &= interval(0, _per_batch(self.keys, extent, "lengths(keys=…)"), extent.keys)
        if self.queries is not None:
            length = _per_batch(self.queries, extent, "lengths(queries=…)")
            inside = np.arange(extent.queries) < length
            seen &= interval(0, np.where(inside, extent.keys, 0), extent.keys)
        return seen


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Mask):
    """Every query sees key j when j < n."""

    n: Any

    def visibility(self, extent: Extent) -> Visibility:
        return interval(0, _per_batch(self.n, extent, "prefix(n)"), extent.keys)


@dataclass(frozen=True, eq=False, repr=False)
class Keys(Mask):
    """Every query of batch element b sees key j when keep[b, j]."""

    keep: Any

    def visibility(self, extent: Extent) -> Visibility:
        keep = _sequence_of(self.keep, extent, extent.keys, "keys(keep)", "Lk")
        found = [runs(row) for row in keep]
        if max(map(len, found), default=0) > MOST_INTERVALS:
            return Visibility(dense=keep[:, None, None, :])
        return Visibility(_stack(found)[:, None, None])


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Mask):
    """Query i sees key j when both lie in the same document; negative ids are padding."""

    ids: Any
    key_ids: Any

    def visibility(self, extent: Extent) -> Visibility:
        ids = _sequence_of(self.ids, extent, extent.queries, "documents(ids)", "Lq")
        key_ids = _sequence_of(self.key_ids, extent, extent.keys, "documents(key_ids)", "Lk")
        ids, key_ids = np.broadcast_arrays(ids[:, :, None], key_ids[:, None, :])
        ids, key_ids = ids[:, :, 0], key_ids[:, 0, :]
        pairs = [_document_runs(*row) for row in zip(ids, key_ids, strict=True)]
        if max((p.shape[1] for p in pairs), default=0) > MOST_INTERVALS:
            same = (ids[:, :, None] == key_ids[:, None, :]) & (ids[:, :, None] >= 0)
            return Visibility(dense=same[:, None])
        return Visibility(_stack(pairs)[:, None])


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """A boolean array, True = may attend, broadcast to (*batch, H, Lq, Lk)."""

    seen: Any

    def visibility(self, extent: Extent) -> Visibility:
        seen = as_numpy(self.seen)
        _check_dense(seen.shape, extent)
        lead = (1,) * (len(extent.shape) - seen.ndim)
        seen = seen.reshape(lead + seen.shape)
        if len(extent.batch) != 1:
            batch = seen.shape[: len(extent.batch)]
            if any(size != 1 for size in batch):
                seen = np.broadcast_to(seen, extent.batch + seen.shape[len(batch) :])
            seen = seen.reshape(-1, *seen.shape[len(batch) :])
        return Visibility(dense=seen)

    def __repr__(self) -> str:
        return f"array{tuple(self.seen.shape)}"


@dataclass(frozen=True, eq=False, repr=False)
class Normal(Mask):
    """A mask already in its normal form, for sizes that are known."""

    intervals: Any
    dense: Any

    def visibility(self, extent: Extent) -> Visibility:
        return Visibility(self.intervals, self.dense)


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


def causal(align: Align = None) -> Mask:
    """Query i sees key j when j <= i + offset; `align` as in the module's docstring.

    With Lq = 3 and Lk = 5:

        causal(align="upper_left")      causal(align="lower_right")
        ■ · · · ·                       ■ ■ ■ · ·
        ■ ■ · · ·                       ■ ■ ■ ■ ·
        ■ ■ ■ · ·                       ■ ■ ■ ■ ■

    Without `align`, Lq must equal Lk: libraries disagree about which of the two is meant.
    """
    return Causal(_checked_align(align, "causal"))


def window(left: int | None, right: int | None, align: Align = None) -> Mask:
    """Query i sees key j when -left <= j - (i + offset) <= right; None leaves that side open.

    `window(2, 0)` is the query's own position and the two before it.
    """
    for name, size in (("left", left), ("right", right)):
        if size is not None and (not isinstance(size, (int, np.integer)) or size < 0):
            raise OptionError(
                f"window({left}, {right}): {name} is {size!r}",
                "a number of keys, 0 or more, or None for an open side",
                "count the keys before (left) and after (right) the query's own position",
            )
    return Window(
        None if left is None else int(left),
        None if right is None else int(right),
        _checked_align(align, "window"),
    )


def lengths(keys: Any = None, queries: Any = None) -> Mask:
    """Both query and key lie inside their sequence's length; (B,) integers each, None = all."""
    if keys is None and queries is None:
        raise OptionError("lengths()", "lengths of the keys, of the queries, or both")
    checked = (
        None if value is None else _integers(value, name)
        for name, value in (("lengths(keys)", keys), ("lengths(queries)", queries))
    )
    return Lengths(*checked)


def prefix(n: Any) -> Mask:
    """Every query sees the first n keys; n is an integer or an array (B,)."""
    return Prefix(_integers(n, "prefix(n)"))


def keys(keep: Any) -> Mask:
    """Batch element b's queries see key j when keep[b, j]; boolean (B, Lk): padding on any side."""
    keep = keep if is_array(keep) else np.asarray(keep)
    if dtype_name(keep) != "bool":
        raise MaskError(
            f"keys(keep) of type {dtype_name(keep)}",
            "boolean, True where the key may be seen",
            "pass keep != 0 (or == 0, if yours marks what is hidden)",
        )
    return Keys(keep)


def documents(ids: Any = None, key_ids: Any = None, *, cu_lengths: Any = None) -> Mask:
    """Query and key lie in the same document of a packed ("varlen") sequence.

    ids: (B, L) integers, the document of each position; negative = padding, seen by nobody.
    key_ids: (B, Lk), where the keys are others than the queries.
    cu_lengths: (n + 1,) instead of ids: documents one after another, d from cu_lengths[d] to
        cu_lengths[d + 1]; what lies beyond the last is padding.
    """
    if (ids is None) == (cu_lengths is None):
        raise OptionError(
            "documents() with " + ("neither" if ids is None else "both"),
            "either ids= or cu_lengths=",
        )
    if cu_lengths is not None:
        return _CumulativeDocuments(_integers(cu_lengths, "documents(cu_lengths)"))
    ids = _integers(ids, "documents(ids)")
    return Documents(ids, ids if key_ids is None else _integers(key_ids, "documents(key_ids)"))


@dataclass(frozen=True, eq=False, repr=False)
class _CumulativeDocuments(Mask):
    """Documents one after another, given by where each begins."""

    cu_lengths: Any

    def visibility(self, extent: Extent) -> Visibility:
        bounds = as_numpy(self.cu_lengths).astype(np.int64)
        if bounds.ndim != 1 or len(bounds) < 1 or bounds[0] != 0 or np.any(np.diff(bounds) < 0):
            raise MaskError(
                f"documents(cu_lengths) = {bounds.tolist()[:8]}",
                "a vector that begins with 0 and does not fall",
                "pass np.cumsum([0, *lengths])",
            )
        if bounds[-1] > min(extent.queries, extent.keys):
            raise MaskError(
                f"documents(cu_lengths) that ends at {bounds[-1]}, with {extent.queries} queries "
                f"and {extent.keys} keys",
                "an end within the sequence",
            )
        count = len(bounds) - 1
        ids = np.full(max(extent.queries, extent.keys), -1)
        ids[: bounds[-1]] = np.repeat(np.arange(count), np.diff(bounds))
        mask = Documents(ids[None, : extent.queries], ids[None, : extent.keys])
        return mask.visibility(extent)

    def __repr__(self) -> str:
        return f"documents(cu_lengths=array{tuple(self.cu_lengths.shape)})"


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
    """The normal form of `mask` (None: everything) for these sizes; kept where it holds no array."""
    if mask is None:
        return EVERYTHING
    structure, arrays = flatten(mask)
    if arrays:
        return mask.visibility(extent)
    return _kept(structure, extent)


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
        elif is_array(value):
            entries.append(("array", first + len(arrays)))
            arrays.append(value)
        else:
            entries.append(("value", value))
    return (type(mask).__name__, tuple(entries)), tuple(arrays)


def rebuild(structure: tuple[Any, ...], arrays: tuple[Any, ...]) -> Mask:
    """The mask that `flatten` took apart."""
    name, entries = structure
    fields = []
    for kind, content in entries:
        if kind == "mask":
            fields.append(rebuild(content, arrays))
        else:
            fields.append(arrays[content] if kind == "array" else content)
    return _CLASSES[name](*fields)


_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(Causal, Window, Lengths, Prefix, Keys, Documents, _CumulativeDocuments),
        *(Dense, Normal, Both, Either),
    )
}


def _positions(align: Align, extent: Extent, name: str) -> npt.NDArray[np.int64]:
    """(B|1, 1, Lq): the key that each query stands on."""
    if align is None:
        if extent.queries != extent.keys:
            raise MaskError(
                f"{name}() for {extent.queries} queries and {extent.keys} keys",
                "an alignment, since libraries disagree about it",
                'pass align="upper_left" (query 0 stands on key 0) or align="lower_right" (the '
                "last query stands on the last key, as with a cache)",
            )
        align = "upper_left"
    offset: Any
    if isinstance(align, str):
        offset = 0 if align == "upper_left" else extent.keys - extent.queries
    else:
        offset = _per_batch(align, extent, f"{name}(align)", negative=True)
    return np.arange(extent.queries)[None, None, :] + np.asarray(offset, np.int64)


def _checked_align(align: Align, name: str) -> Align:
    if align is None or align in ("upper_left", "lower_right") if isinstance(align, str) else True:
        return _integers(align, f"{name}(align)") if _is_number(align) else align
    raise OptionError(
        f"{name}(align={align!r})",
        '"upper_left", "lower_right", an integer or an array (B,) of offsets',
    )


def _is_number(value: object) -> bool:
    return value is not None and not isinstance(value, str)


def _integers(value: Any, name: str) -> Any:
    """An integer as int; an integer array as it is; lists become arrays."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    array = value if is_array(value) else np.asarray(value)
    if "int" not in dtype_name(array):
        raise MaskError(f"{name} of type {dtype_name(array)}", "integers")
    return array


def _per_batch(
    value: Any, extent: Extent, name: str, negative: bool = False
) -> npt.NDArray[np.int64]:
    """(B|1, 1, 1) from an integer or an array with one for each batch element."""
    array = as_numpy(value).astype(np.int64)
    if array.ndim and array.shape not in ((1,), (extent.flat_batch,), extent.batch):
        raise MaskError(
            f"{name} of shape {array.shape}",
            f"an integer, or one for each of the {extent.flat_batch} batch elements",
        )
    if not negative and np.any(array < 0):
        raise MaskError(f"{name} with {int(array.min())} in it", "0 or more")
    return array.reshape(-1, 1, 1)


def _sequence_of(
    value: Any, extent: Extent, length: int, name: str, letter: str
) -> npt.NDArray[Any]:
    """(B|1, length) from an array (length,), (B, length) or (*batch, length)."""
    array = as_numpy(value)
    lead = array.shape[:-1]
    fits = array.ndim and array.shape[-1] == length
    if not fits or lead not in ((), (1,), (extent.flat_batch,), extent.batch):
        raise MaskError(
            f"{name} of shape {array.shape}",
            f"(B, {letter}) = ({extent.flat_batch}, {length})",
        )
    return array.reshape(-1, length)


def _document_runs(
    ids: npt.NDArray[Any], key_ids: npt.NDArray[Any]
) -> npt.NDArray[np.int32]:
    """(Lq, n, 2): for each query, the runs of keys with its id."""
    starts = np.flatnonzero(np.diff(key_ids, prepend=key_ids[:1] - 1))
    stops = np.append(starts[1:], len(key_ids))
    run_ids = key_ids[starts]
    order = np.argsort(run_ids, kind="stable")
    run_ids, pairs = run_ids[order], np.stack([starts, stops], axis=-1)[order]
    first = np.searchsorted(run_ids, ids, "left")
    count = np.where(ids < 0, 0, np.searchsorted(run_ids, ids, "right") - first)
    most = max(1, int(count.max(initial=0)))
    if most > MOST_INTERVALS:
        return np.empty((len(ids), most, 0), np.int32)
    slots = first[:, None] + np.arange(most)
    found = pairs[np.minimum(slots, len(pairs) - 1)] if len(pairs) else np.zeros((*slots.shape, 2))
    return np.where((np.arange(most) < count[:, None])[..., None], found, 0).astype(np.int32)


def _stack(parts: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Stack (..., n, 2) of different n along a new first dimension, padded with empty pairs."""
    most = max([1, *(part.shape[-2] for part in parts)])
    if not parts:
        return np.zeros((0, most, 2), np.int32)
    stacked = np.zeros((len(parts), *parts[0].shape[:-2], most, 2), np.int32)
    for row, part in zip(stacked, parts, strict=True):
        row[..., : part.shape[-2], :] = part
    return stacked


def _check_dense(shape: tuple[int, ...], extent: Extent) -> None:
    try:
        fits = np.broadcast_shapes(shape, extent.shape) == extent.shape
    except ValueError:
        fits = False
    if fits:
        return
    remedy = "add dimensions of size 1 where it is shared"
    if shape == (extent.flat_batch, extent.keys):
        remedy = "if it says which keys are padding, pass mask=regard.keys(mask)"
    elif len(shape) == 3 and shape[0] == extent.flat_batch:
        remedy = "rank 3 is (H, Lq, Lk); for one mask a batch element pass mask[:, None]"
    raise MaskError(
        f"a mask of shape {shape}", f"one that broadcasts to (B, H, Lq, Lk) = {extent.shape}", remedy
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
