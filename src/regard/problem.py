"""Problem: one call of attention, checked and normalised; all that a kernel may know.

Letters, the same everywhere: B batch (any number of dimensions), H query heads, K key heads (H
divisible by K: head h reads key head h // (H // K)), Lq queries, Lk keys, D head size of queries
and keys, E head size of values.
"""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from regard._arrays import among, as_numpy, dtype_name
from regard.bias import distance_count
from regard.errors import DtypeError, MaskError, OptionError, ShapeError
from regard.masks import (
    Extent,
    Mask,
    Normal,
    Visibility,
    as_mask,
    edge_count,
    flatten,
    rebuild,
    visibility,
)
from regard.options import checked_dropout, checked_scale, checked_seed, checked_softcap
from regard.score import Additive, as_score

__all__ = ["DTYPES", "LAYOUTS", "PRECISIONS", "Problem", "make"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("BHLD", "BLHD")
PRECISIONS = (None, "highest", "high")

_MOST_DENSE = 1 << 30


@dataclass(frozen=True, eq=False)
class Problem:
    """Arrays of one framework in the order (B, heads, L, size), and what is done with them."""

    query: Any  # (*batch, H, Lq, D), projected as the score wants it
    key: Any  # (*batch, K, Lk, D)
    value: Any  # (*batch, K | H, Lk, E), or None where only the weights matter
    mask: Mask | None
    bias: Any  # broadcasts to bias_extent.shape, or None
    sinks: Any  # (H,), or None
    vector: Any  # (H | 1, D): v of additive scores; None: scores are dot products
    activation: str  # of additive scores: "tanh" or "leaky_relu"
    negative_slope: float  # of the latter
    scale: float
    softcap: float  # 0: none
    dropout_p: float  # 0: none
    dropout_seed: Any  # an integer, an array () of one, or None
    layout: str  # how the caller holds its arrays, and wants the output
    precision: str | None  # "high": float32 products may be off by about 2⁻¹⁶
    by_distance: bool = False  # the bias is a table of distances j − i, as bias.py makes it

    @property
    def extent(self) -> Extent:
        """The sizes that masks and biases are broadcast to."""
        *batch, heads, queries, _ = self.query.shape
        return Extent(tuple(batch), heads, queries, self.key.shape[-2])

    @property
    def pages(self) -> Any:
        """The table (B, n) of the pages that keys and values are in (paging.py), or None."""
        return None

    def without_pages(self) -> Problem:
        """The same problem with keys and values in one piece."""
        return self

    @property
    def bias_extent(self) -> Extent:
        """The sizes that a bias is broadcast to: (*batch, H, Lq, Lk).

        Of a graph (*batch, H, 1, edges), by distance (*batch, H, 1, Lq + Lk − 1).
        """
        count, extent = edge_count(self.mask), self.extent
        if self.by_distance:
            count = distance_count(extent)
        return extent if count is None else Extent(extent.batch, extent.heads, 1, count)

    @property
    def distance_0(self) -> int | None:
        """Of a bias by distance, which of its entries stands for j − i = 0; else None."""
        return max(self.extent.queries - 1, 0) if self.by_distance else None

    @property
    def key_heads(self) -> int:
        """K."""
        return int(self.key.shape[-3])

    @property
    def head_size(self) -> int:
        """D."""
        return int(self.query.shape[-1])

    @property
    def value_size(self) -> int:
        """E; 0 without values."""
        return 0 if self.value is None else int(self.value.shape[-1])

    @property
    def value_heads(self) -> int:
        """K or H; K without values."""
        return self.key_heads if self.value is None else int(self.value.shape[-3])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The output's shape as the caller's layout has it."""
        *batch, heads, queries, _ = self.query.shape
        rows = (heads, queries) if self.layout == "BHLD" else (queries, heads)
        return (*batch, *rows, self.value_size)

    @property
    def dtype(self) -> str:
        """The element type's plain name, one of DTYPES."""
        return dtype_name(self.query)

    @property
    def accumulation_dtype(self) -> str:
        """What sums are held in: float64 for float64, float32 for everything else."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def weight_arrays(self) -> tuple[Any, ...]:
        """All arrays that the weights depend on: every one but the values and the seed."""
        fixed = (self.query, self.key, self.bias, self.sinks, self.vector)
        in_mask = () if self.mask is None else flatten(self.mask)[1]
        return (*(array for array in fixed if array is not None), *in_mask)

    @property
    def score(self) -> str | Additive:
        """How queries and keys are compared, as they are here: after projections."""
        if self.vector is None:
            return "dot"
        return Additive(None, None, self.vector, self.activation, self.negative_slope)

    @cached_property
    def visibility(self) -> Visibility:
        """Which query sees which key, in the normal form."""
        return visibility(self.mask, self.extent)

    def without_edges(self) -> Problem:
        """The same problem, a graph as a dense mask: memory quadratic in length, no gradients."""
        edges = self.visibility.edges
        if edges is None:
            return self
        extent, bias = self.extent, None
        pairs = extent.queries * extent.keys
        if pairs > _MOST_DENSE:
            raise MaskError(
                f"a graph of {extent.queries} queries and {extent.keys} keys as a dense mask",
                f"at most {_MOST_DENSE} pairs, for what is not computed along the edges",
                "ask for lse() and on_edges(), or for the queries that matter",
            )
        if self.bias is not None:
            given = as_numpy(self.bias).astype(self.accumulation_dtype)
            lead = given.shape[:-2]
            queries, keys, numbers = edges.pairs
            bias = np.zeros((*lead, extent.queries, extent.keys), given.dtype)
            each = np.broadcast_to(given, (*given.shape[:-1], edges.count))
            bias[..., queries, keys] = each[..., numbers].reshape(*lead, len(numbers))
        dense = self.visibility.as_dense(extent.keys)
        return self.replace(mask=Normal(None, dense), bias=bias)

    def replace(self, **changes: Any) -> Problem:
        """The same problem with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_value(self, value: Any) -> Problem:
        """The same problem for values (*batch, K | H, Lk, E). Raises: ShapeError, DtypeError."""
        _check_rank(self.query, self.key, value)
        _check_dtypes(self.query, self.key, value, None, None)
        _check_sizes(self.query, self.key, value)
        return self.replace(value=value)

    def with_distances(self, table: Any) -> Problem:
        """The same problem with a bias by distance, as `Bias.table` makes it. Raises: MaskError."""
        if edge_count(self.mask) is not None:
            raise MaskError(
                "a bias by distance along the edges of a graph",
                "an array (B, H, 1, edges)",
                "pass bias= the number of each edge's distance",
            )
        return self.replace(bias=table, by_distance=True)

    def flatten(self) -> tuple[str, tuple[Any, ...]]:
        """(specification, arrays): a hashable text and a flat tuple, to cross a tracer's border."""
        structure, mask_arrays = (None, ()) if self.mask is None else flatten(self.mask)
        plain = (self.query, self.key, self.value, self.bias, self.sinks, self.vector)
        fixed = (*plain, self.dropout_seed)
        present = tuple(hasattr(array, "shape") for array in fixed)
        seed = None if present[-1] else self.dropout_seed
        # In hexadecimal since that is exact, and makes torch.compile settle a number left open.
        given = (self.negative_slope, self.scale, self.softcap, self.dropout_p)
        numbers = tuple(number.hex() for number in given)
        arrays = tuple(a for a, here in zip(fixed, present, strict=True) if here)
        how = (self.layout, self.precision, self.by_distance)
        specification = (present, structure, self.activation, numbers, seed, *how)
        return repr(specification), arrays + mask_arrays

    @staticmethod
    def rebuild(specification: str, arrays: tuple[Any, ...]) -> Problem:
        """The problem that `flatten` took apart."""
        present, structure, activation, numbers, seed, *how = ast.literal_eval(specification)
        rest = iter(arrays)
        *fixed, seed_array = (next(rest) if here else None for here in present)
        mask = None if structure is None else rebuild(structure, tuple(rest))
        query, key, value, bias, sinks, vector = fixed
        seed = seed if seed_array is None else seed_array
        arrays = (query, key, value, mask, bias, sinks, vector)
        slope, scale, softcap, dropout_p = map(float.fromhex, numbers)
        return Problem(*arrays, activation, slope, scale, softcap, dropout_p, seed, *how)


def make(
    query: Any,
    key: Any,
    value: Any = None,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    score: Any = "dot",
    dropout_p: float = 0.0,
    dropout_seed: Any = None,
    layout: str = "BHLD",
    precision: str | None = None,
) -> Problem:
    """Check everything that can be seen without reading an array's elements, and normalise it.

    The arrays are all of one framework by now, and on one device.

    Raises: ShapeError, DtypeError, MaskError, OptionError.
    """
    if not among(layout, LAYOUTS):
        raise OptionError(f"layout={layout!r}", '"BHLD" or "BLHD"')
    if not among(precision, PRECISIONS):
        raise OptionError(f"precision={precision!r}", '"highest", "high" or None')
    _check_rank(query, key, value)
    if layout == "BLHD":
        query, key, value = (a if a is None else a.swapaxes(-3, -2) for a in (query, key, value))
    _check_dtypes(query, key, value, bias, sinks)
    how = as_score(score)
    if how is not None:
        query, key = how.project(query, key)
        scale = 1.0 if scale is None else scale
    _check_sizes(query, key, value)
    additive = how if isinstance(how, Additive) else None
    problem = Problem(
        query=query,
        key=key,
        value=value,
        mask=None if mask is None else as_mask(mask),
        bias=bias,
        sinks=sinks,
        vector=additive and additive.vector,
        activation=additive.activation if additive else "tanh",
        negative_slope=float(additive.negative_slope) if additive else 0.0,
        scale=checked_scale(scale, query.shape[-1]),
        softcap=checked_softcap(softcap),
        dropout_p=checked_dropout(dropout_p),
        dropout_seed=checked_seed(dropout_seed),
        layout=layout,
        precision=precision,
    )
    _check_bias(problem)
    if sinks is not None and tuple(sinks.shape) != (problem.extent.heads,):
        raise ShapeError(
            f"sinks of shape {tuple(sinks.shape)}", f"(H,) = ({problem.extent.heads},)"
        )
    return problem


def _shapes(**arrays: Any) -> str:
    """ "query (2, 8, 5, 64), key (2, 8, 7, 64)"."""
    return ", ".join(f"{n} {tuple(a.shape)}" for n, a in arrays.items() if a is not None)


def _check_rank(query: Any, key: Any, value: Any) -> None:
    ranks = {len(a.shape) for a in (query, key, value) if a is not None}
    if len(ranks) == 1 and min(ranks) >= 3:
        return
    remedy = "give all of them the same number of dimensions"
    if min(ranks) < 3:
        remedy = "add a dimension for the heads: query[None], key[None], value[None]"
    raise ShapeError(
        _shapes(query=query, key=key, value=value), "(B, heads, length, size), B optional", remedy
    )


def _check_dtypes(query: Any, key: Any, value: Any, bias: Any, sinks: Any) -> None:
    name = dtype_name(query)
    if name not in DTYPES:
        raise DtypeError(f"query of type {name}", " or ".join(DTYPES), "convert the arrays first")
    for what, array in (("key", key), ("value", value)):
        if array is not None and dtype_name(array) != name:
            raise DtypeError(
                f"query of type {name}, {what} of type {dtype_name(array)}",
                "one element type",
                f"convert one of them; autocast and mixed caches are the usual cause of {what}s "
                "of another type",
            )
    for what, array in (("bias", bias), ("sinks", sinks)):
        if array is None or dtype_name(array) in (name, "float32"):
            continue
        remedy = "convert it"
        if dtype_name(array) == "bool":
            remedy = "pass it as mask=, which is what booleans are for"
        raise DtypeError(
            f"{what} of type {dtype_name(array)}, query of type {name}",
            f"{what} of type {' or '.join(dict.fromkeys((name, 'float32')))}",
            remedy,
        )


def _check_sizes(query: Any, key: Any, value: Any) -> None:
    *batch, heads, _, head_size = query.shape
    *key_batch, key_heads, key_length, key_size = key.shape
    wanted = remedy = ""
    if head_size != key_size:
        wanted = (
            f"queries and keys of one size, since their dot product is taken: {head_size} is not "
            f"{key_size}"
        )
        remedy = (
            f"pass score=regard.Bilinear(W) with a W of ({head_size}, {key_size}), or project one "
            "of them to the other's size first"
        )
    elif batch != key_batch:
        wanted, remedy = "the same batch dimensions", "expand the one that is shared"
    elif key_heads == 0 or heads % key_heads:
        wanted = (
            f"a number of query heads that the number of key heads divides: {heads} is not a "
            f"multiple of {key_heads}"
        )
    elif value is not None:
        *value_batch, value_heads, value_length, _ = value.shape
        if value_batch != batch or value_length != key_length:
            wanted = "one value for each key: the same batch and the same length"
        elif value_heads not in (key_heads, heads):
            wanted = f"values of {key_heads} heads, as the keys, or of {heads}"
    if wanted:
        given = _shapes(query=query, key=key, value=value)
        raise ShapeError(f"{given} as (B, heads, length, size)", wanted, remedy)


def _check_bias(problem: Problem) -> None:
    if problem.bias is None:
        return
    shape, extent = tuple(problem.bias.shape), problem.bias_extent
    if extent.fits(shape):
        return
    letters = "(B, H, Lq, Lk)" if extent == problem.extent else "(B, H, 1, edges)"
    raise ShapeError(
        f"bias of shape {shape}",
        f"one that broadcasts to {letters} = {extent.shape}",
        "add dimensions of size 1 where it is shared",
    )
