"""The structs of native/include/regard/attention.h, packed as bytes.

Arrays come as (B, heads, L, size) or with other batch dimensions, which are flattened; they need an
address and strides, whatever framework made them. Whoever packs a struct keeps what is returned
beside it alive until the call is over: it is what the addresses point to.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from regard._arrays import as_numpy, dtype_name
from regard.masks import Extent
from regard.problem import Problem

__all__ = [
    "ABI_VERSION",
    "ABSENT",
    "ArrayForm",
    "ProblemForm",
    "address",
    "pack_array",
    "pack_gradients",
    "pack_problem",
    "pack_read_outs",
    "readable",
]

ABI_VERSION = 2

_ARRAY_FORMAT, _GRID_FORMAT = "P3q", "P4q"  # address, then strides in elements
_SIZES = struct.Struct("8q3dQ")
_STRIDES = struct.Struct("3q")
_REST = struct.Struct(f"P4q{2 * _GRID_FORMAT}P4i")
_GRADIENTS = struct.Struct(f"{2 * _ARRAY_FORMAT}2P{3 * _ARRAY_FORMAT}{_GRID_FORMAT}P")

# The fields of regard_readouts_request in their order.
_READ_OUT_FIELDS = (
    *("max_score", "max_weight", "entropy", "effective_keys", "distance", "distance_offset"),
    *("bins", "bin_count", "bin_offset", "top_weights", "top_keys", "top_count"),
    *("offset_weights", "offsets", "offset_count"),
    *("mass", "key_groups", "key_groups_stride", "mass_count"),
    *("edge_least", "edge_counts", "edge_starts", "edge_keys", "edge_weights"),
    *("received", "query_groups", "received_count", "received_reduction"),
    *("top_query_weights", "top_queries", "top_query_count"),
    *("pooled_sum", "pooled_max", "pooled_rows", "pooled_columns", "products"),
)

# The same structs where all but some addresses is packed already.
_OPEN_ARRAY = struct.Struct(f"P{_STRIDES.size}s")
_OPEN_PROBLEM = struct.Struct(f"{_SIZES.size}s{3 * _OPEN_ARRAY.format}{_REST.size}s")

_NO_ARRAY, _NO_GRID = (0, 0, 0, 0), (0, 0, 0, 0, 0)
ABSENT = _OPEN_ARRAY.pack(0, b"")

_DTYPE_CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}


class ArrayForm:
    """The struct regard_array but for its address."""

    def __init__(self, array: Any) -> None:
        """For an array as `readable` gives it."""
        self.strides = b"" if array is None else _STRIDES.pack(*_strides(array)[:3])

    def pack(self, address: int) -> bytes:
        """The struct for an array that begins at this address."""
        return _OPEN_ARRAY.pack(address, self.strides)


class ProblemForm:
    """The struct regard_problem but for the addresses of query, key and value.

    Problems that differ in these three arrays' addresses alone have the same form. It keeps alive
    what its other addresses point to.
    """

    def __init__(self, problem: Problem, query: Any, key: Any, value: Any) -> None:
        """For the problem's arrays as `readable` gives them."""
        self._alive: list[Any] = []
        extent = problem.extent
        sizes = _SIZES.pack(
            *(extent.flat_batch, extent.heads, problem.key_heads, problem.value_heads),
            *(extent.queries, extent.keys, problem.head_size, problem.value_size),
            *(problem.scale, problem.softcap, problem.dropout_p),
            int(problem.dropout_seed or 0) % 2**64,
        )
        strides = [ArrayForm(array).strides for array in (query, key, value)]
        self._fixed = (sizes, *strides, self._pack_rest(problem))

    def _pack_rest(self, problem: Problem) -> bytes:
        seen, bias, sinks = problem.visibility, problem.bias, problem.sinks
        alive = self._alive
        if sinks is not None:
            sinks = as_numpy(sinks).astype(problem.accumulation_dtype)
            alive.append(sinks)
        return _REST.pack(
            *(_NO_GRID if seen.intervals is None else _intervals(seen.intervals, alive)),
            *(_NO_GRID if seen.dense is None else _grid(seen.dense, alive)),
            *(_NO_GRID if bias is None else _bias(bias, problem.extent, alive)),
            address(sinks),
            _DTYPE_CODES[problem.dtype],
            0 if bias is None else _DTYPE_CODES[dtype_name(bias)],
            *(0, 0),
        )

    def pack(self, query: int, key: int, value: int) -> bytes:
        """The struct for arrays that begin at these addresses."""
        sizes, of_query, of_key, of_value, rest = self._fixed
        return _OPEN_PROBLEM.pack(sizes, query, of_query, key, of_key, value, of_value, rest)


def pack_problem(problem: Problem) -> tuple[bytes, Any]:
    """The struct regard_problem."""
    given = (problem.query, problem.key, problem.value)
    arrays = [array if array is None else readable(array) for array in given]
    form = ProblemForm(problem, *arrays)
    return form.pack(*map(address, arrays)), (form, arrays)


def pack_array(array: Any) -> bytes:
    """The struct regard_array, for an array that is written to in place."""
    array = readable(array)
    return ArrayForm(array).pack(address(array))


def pack_gradients(
    problem: Problem,
    output: Any,
    lse: Any,
    d_output: Any,
    d_lse: Any,
    d_arrays: tuple[Any, Any, Any],
    d_bias: Any,
    d_sinks: Any,
) -> tuple[bytes, list[Any]]:
    """The struct regard_gradients; d_arrays are those of query, key and value, or None."""
    alive: list[Any] = []
    packed = _GRADIENTS.pack(
        *(_NO_ARRAY if output is None else _array(output, alive)),
        *_array(d_output, alive),
        *(address(lse), address(d_lse)),
        *(n for a in d_arrays for n in (_NO_ARRAY if a is None else _array(a, alive))),
        *(_NO_GRID if d_bias is None else _bias(d_bias, problem.extent, alive)),
        address(d_sinks),
    )
    return packed, alive


def pack_read_outs(fields: dict[str, Any]) -> bytes:
    """The struct regard_readouts_request: contiguous arrays and numbers; what is not named is 0."""
    values = (fields.get(name, 0) for name in _READ_OUT_FIELDS)
    return b"".join(
        struct.pack("d", v) if isinstance(v, float) else struct.pack("q", _place(v)) for v in values
    )


def _place(value: Any) -> int:
    """A number itself; of an array, its address."""
    return value if isinstance(value, int) else address(value)


def address(array: Any) -> int:
    """Where an array begins in memory; 0 for None."""
    if array is None:
        return 0
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__array_interface__["data"][0])


def readable(array: Any) -> Any:
    """An array (..., heads, L, size) as (B, heads, L, size): in place if kernels can read it so."""
    if len(array.shape) != 4:
        array = array.reshape((math.prod(array.shape[:-3]), *array.shape[-3:]))
    return _in_place(array)


def _array(array: Any, alive: list[Any]) -> tuple[int, ...]:
    """Address and strides as (B, heads, L, size); the last dimension must lie together."""
    array = readable(array)
    alive.append(array)
    return (address(array), *_strides(array)[:3])


def _bias(array: Any, extent: Extent, alive: list[Any]) -> tuple[int, ...]:
    """Address and strides of a bias or its gradient, which broadcasts to (*batch, H, Lq, Lk)."""
    array = array if hasattr(array, "data_ptr") else np.asarray(array)
    array = array.reshape((1,) * (len(extent.shape) - len(array.shape)) + tuple(array.shape))
    batch, rest = array.shape[:-3], array.shape[-3:]
    if all(size == 1 for size in batch):
        return _grid(array.reshape((1, *rest)), alive)
    wide = (*extent.batch, *rest)
    array = array.expand(wide) if hasattr(array, "expand") else np.broadcast_to(array, wide)
    return _grid(array.reshape((extent.flat_batch, *rest)), alive)


def _grid(array: Any, alive: list[Any]) -> tuple[int, ...]:
    """Address and strides of an array (B|1, H|1, Lq|1, Lk|1): 0 where it is shared."""
    array = _in_place(array)
    alive.append(array)
    strides = zip(array.shape, _strides(array), strict=True)
    return (address(array), *(0 if size == 1 else stride for size, stride in strides))


def _intervals(pairs: np.ndarray[Any, Any], alive: list[Any]) -> tuple[int, ...]:
    """Address, number of pairs, and strides over batch, heads and queries: 0 where shared."""
    pairs = np.ascontiguousarray(pairs)
    alive.append(pairs)
    strides = zip(pairs.shape[:3], _strides(pairs), strict=False)
    shared = (0 if size == 1 else stride for size, stride in strides)
    return (address(pairs), pairs.shape[3], *shared)


def _strides(array: Any) -> tuple[int, ...]:
    """Strides in elements."""
    if hasattr(array, "data_ptr"):
        return tuple(array.stride())
    size = array.itemsize
    return tuple(stride // size for stride in array.strides)


def _in_place(array: Any) -> Any:
    """The array where the kernels can read it in place, else a copy.

    A row's elements must lie side by side, be aligned (NumPy's packed records are not), and stand
    for themselves (PyTorch has views that stand for the negative).
    """
    if hasattr(array, "data_ptr"):
        array = array.resolve_neg() if array.is_neg() else array
        return array if array.stride(-1) == 1 or array.shape[-1] < 2 else array.contiguous()
    beside = array.strides[-1] == array.itemsize or array.shape[-1] < 2
    return array if beside and array.flags.aligned else np.array(array, order="C")
