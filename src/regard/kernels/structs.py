"""The structs of native/include/regard/attention.h, packed as bytes.

Arrays come as (B, heads, L, size) or with other batch dimensions, which are flattened; they need an
address and strides, whatever framework made them. Whoever packs a struct keeps what is returned
beside it alive until the call is over: it is what the addresses point to.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy, dtype_name
from regard.masks import Extent, Visibility
from regard.masks.edges import Edges
from regard.problem import Problem

__all__ = [
    "ABI_VERSION",
    "ABSENT",
    "ProblemForm",
    "UnplacedArray",
    "UnplacedProblem",
    "address",
    "pack_array",
    "pack_bias",
    "pack_edges",
    "pack_gradients",
    "pack_problem",
    "pack_read_outs",
    "pack_visibility",
    "score_code",
]

ABI_VERSION = 4

_ARRAY_FORMAT, _GRID_FORMAT = "P3q", "P4q"  # address, then strides in elements
_SIZES = struct.Struct("8q3dQ")
_REST = struct.Struct("P5iPqdP2q")

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

_ARRAY, _GRID = struct.Struct(_ARRAY_FORMAT), struct.Struct(_GRID_FORMAT)
_EDGES = struct.Struct("q6P")
_ADDRESS, _ADDRESSES = struct.Struct("P"), struct.Struct("2P")

ABSENT = bytes(_ARRAY.size)
_NO_GRID = bytes(_GRID.size)

_DTYPE_CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
_SCORE_CODES = {"dot": 0, "tanh": 1, "leaky_relu": 2}
_PRECISION_CODES = {None: 0, "highest": 0, "high": 1}


class ProblemForm:
    """The struct regard_problem but for its arrays, masks and bias.

    It keeps alive what its addresses point to.
    """

    def __init__(self, problem: Problem) -> None:
        """For all problems of these sizes, types and options, and these sinks."""
        extent, bias = problem.extent, problem.bias
        self.sizes = _SIZES.pack(
            *(extent.flat_batch, extent.heads, problem.key_heads, problem.value_heads),
            *(extent.queries, extent.keys, problem.head_size, problem.value_size),
            *(problem.scale, problem.softcap, problem.dropout_p),
            int(problem.dropout_seed or 0) % 2**64,
        )
        self._sinks = _accumulated(problem.sinks, problem)
        self._vector = _accumulated(problem.vector, problem)
        self._pages = problem.pages
        shared = problem.vector is None or problem.vector.shape[0] == 1
        self.rest = _REST.pack(
            address(self._sinks),
            _DTYPE_CODES[problem.dtype],
            0 if bias is None else _DTYPE_CODES[dtype_name(bias)],
            *(0, _PRECISION_CODES[problem.precision]),
            score_code(problem),
            *(address(self._vector), 0 if shared else problem.head_size, problem.negative_slope),
            *(address(self._pages), *self._page_sizes(problem)),
        )

    def _page_sizes(self, problem: Problem) -> tuple[int, int]:
        """Entries between rows of the table, and keys of a page."""
        return (0, 0) if self._pages is None else (self._pages.shape[1], problem.key.shape[-2])

    def pack(self, query: bytes, key: bytes, value: bytes, seen: bytes, bias: bytes) -> bytes:
        """The struct with these structs in it; seen: both of `pack_visibility`."""
        return b"".join((self.sizes, query, key, value, seen, bias, self.rest))


class UnplacedArray:
    """The struct of an array but for its address, which comes first."""

    def __init__(self, packed: bytes) -> None:
        """For a struct with any address."""
        self._rest = packed[_ADDRESS.size :]
        self._pack = struct.Struct(f"P{len(self._rest)}s").pack

    def at(self, address: int) -> bytes:
        """The struct for an array that begins at this address."""
        return self._pack(address, self._rest)


class UnplacedProblem:
    """The struct regard_problem but for the addresses of its arrays and bias, and its masks.

    All of it is packed at once: piece by piece would take twice as long, and small calls notice.
    """

    def __init__(self, form: ProblemForm, arrays: Sequence[bytes], bias: bytes) -> None:
        """For the structs of query, key, value and bias, with any addresses."""
        self._form = form
        self._query, self._key, self._value, self._bias = (
            packed[_ADDRESS.size :] for packed in (*arrays, bias)
        )
        array, grid = (f"P{size - _ADDRESS.size}s" for size in (_ARRAY.size, _GRID.size))
        sizes, masks, rest = (f"{size}s" for size in (_SIZES.size, 2 * _GRID.size, _REST.size))
        self._pack = struct.Struct(sizes + 3 * array + masks + grid + rest).pack

    def at(self, query: int, key: int, value: int, seen: bytes, bias: int) -> bytes:
        """The struct for arrays that begin at these addresses; seen as for `ProblemForm.pack`."""
        # fmt: off
        return self._pack(
            self._form.sizes, query, self._query, key, self._key, value, self._value,
            seen, bias, self._bias, self._form.rest,
        )
        # fmt: on


def pack_problem(problem: Problem) -> tuple[bytes, Any]:
    """The struct regard_problem."""
    form, alive = ProblemForm(problem), list[Any]()
    packed = form.pack(
        pack_array(problem.query, alive),
        pack_array(problem.key, alive),
        pack_array(problem.value, alive),
        pack_visibility(problem.visibility, alive),
        pack_bias(problem.bias, problem.bias_extent, alive, problem.distance_0),
    )
    return packed, (form, alive)


def pack_array(array: Any, alive: list[Any]) -> bytes:
    """The struct regard_array of an array (..., heads, L, size), or of None."""
    if array is None:
        return ABSENT
    if len(array.shape) != 4:
        array = array.reshape((math.prod(array.shape[:-3]), *array.shape[-3:]))
    where, strides = _lies(array, alive)
    return _ARRAY.pack(where, *strides[:3])


def pack_visibility(seen: Visibility, alive: list[Any]) -> bytes:
    """The structs regard_intervals and regard_grid of a mask."""
    intervals = _NO_GRID if seen.intervals is None else _intervals(seen.intervals, alive)
    return intervals + (_NO_GRID if seen.dense is None else _grid(seen.dense, alive))


def pack_edges(edges: Edges) -> tuple[bytes, Any]:
    """The struct regard_edges."""
    arrays: list[npt.NDArray[Any]] = []
    for end in (edges.by_query, edges.by_key):
        arrays.append(np.ascontiguousarray(end.starts, np.int64))
        arrays += [np.ascontiguousarray(array, np.int32) for array in (end.others, end.numbers)]
    return _EDGES.pack(edges.count, *map(address, arrays)), arrays


def pack_bias(array: Any, extent: Extent, alive: list[Any], distance_0: int | None = None) -> bytes:
    """The struct regard_grid of a bias or its gradient, which broadcasts to `extent`.

    distance_0: of a bias by distance, which of its entries stands for distance 0.
    """
    if array is None:
        return _NO_GRID
    packed = _broadcast(array, extent, alive)
    if distance_0 is None:
        return packed
    where, batch_stride, head_stride, *_ = _GRID.unpack(packed)
    return _GRID.pack(where + distance_0 * array.dtype.itemsize, batch_stride, head_stride, -1, 1)


def _broadcast(array: Any, extent: Extent, alive: list[Any]) -> bytes:
    """The struct regard_grid of an array that broadcasts to (*batch, H, Lq, Lk)."""
    array = array if hasattr(array, "data_ptr") else np.asarray(array)
    array = array.reshape((1,) * (len(extent.shape) - len(array.shape)) + tuple(array.shape))
    batch, rest = array.shape[:-3], array.shape[-3:]
    if all(size == 1 for size in batch):
        return _grid(array.reshape((1, *rest)), alive)
    wide = (*extent.batch, *rest)
    array = array.expand(wide) if hasattr(array, "expand") else np.broadcast_to(array, wide)
    return _grid(array.reshape((extent.flat_batch, *rest)), alive)


def pack_gradients(
    extent: Extent,
    output: Any,
    lse: Any,
    d_output: Any,
    d_lse: Any,
    d_arrays: tuple[Any, Any, Any],
    d_bias: Any,
    d_sinks: Any,
    d_vector: Any = None,
    distance_0: int | None = None,
) -> tuple[bytes, list[Any]]:
    """The struct regard_gradients; d_arrays are those of query, key and value, or None.

    extent, distance_0: of the bias.
    """
    alive: list[Any] = []
    parts = (
        pack_array(output, alive),
        pack_array(d_output, alive),
        _ADDRESSES.pack(address(lse), address(d_lse)),
        *(pack_array(array, alive) for array in d_arrays),
        pack_bias(d_bias, extent, alive, distance_0),
        _ADDRESSES.pack(address(d_sinks), address(d_vector)),
    )
    return b"".join(parts), alive


def pack_read_outs(fields: dict[str, Any]) -> bytes:
    """The struct regard_readouts_request: contiguous arrays and numbers; what is not named is 0."""
    values = (fields.get(name, 0) for name in _READ_OUT_FIELDS)
    return b"".join(
        struct.pack("d", v) if isinstance(v, float) else struct.pack("q", _place(v)) for v in values
    )


def score_code(problem: Problem) -> int:
    """The regard_score of a problem."""
    return _SCORE_CODES["dot" if problem.vector is None else problem.activation]


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


def _accumulated(array: Any, problem: Problem) -> Any:
    """A small array, contiguous, in the accumulation type; None for None."""
    if array is None:
        return None
    return np.ascontiguousarray(as_numpy(array), problem.accumulation_dtype)


def _grid(array: Any, alive: list[Any]) -> bytes:
    """Address and strides of an array (B|1, H|1, Lq|1, Lk|1): 0 where it is shared."""
    where, strides = _lies(array, alive)
    return _GRID.pack(where, *_shared(array.shape, strides))


def _intervals(pairs: np.ndarray[Any, Any], alive: list[Any]) -> bytes:
    """Address, number of pairs, and strides over batch, heads and queries: 0 where shared."""
    where, strides = _lies(np.ascontiguousarray(pairs), alive)
    return _GRID.pack(where, pairs.shape[3], *_shared(pairs.shape[:3], strides[:3]))


def _shared(sizes: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Strides, 0 where the size is 1: shared along that dimension."""
    return [0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True)]


def _lies(array: Any, alive: list[Any]) -> tuple[int, tuple[int, ...]]:
    """Address and strides in elements; of a copy where the kernels cannot read the array in place.

    A row's elements must lie side by side, be aligned (NumPy's packed records are not), and stand
    for themselves (PyTorch has views that stand for the negative).
    """
    if hasattr(array, "data_ptr"):
        array = array.resolve_neg() if array.is_neg() else array
        strides = array.stride()
        if strides[-1] != 1 and array.shape[-1] > 1:
            array = array.contiguous()
            strides = array.stride()
    else:
        beside = array.strides[-1] == array.itemsize or array.shape[-1] < 2
        array = array if beside and array.flags.aligned else np.array(array, order="C")
        strides = tuple(stride // array.itemsize for stride in array.strides)
    alive.append(array)
    return address(array), strides
