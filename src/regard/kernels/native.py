"""The native core, called through ctypes: a Problem becomes a struct of pointers and strides.

Arrays may be of any framework that keeps them in main memory and tells their address (NumPy,
PyTorch); nothing here imports one. The contract is native/include/regard/attention.h.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import c_char_p, c_double, c_int, c_int32, c_int64, c_uint64, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from regard._arrays import as_numpy, dtype_name
from regard.errors import BackendError
from regard.problem import Problem

__all__ = ["available", "backward", "forward", "isa", "isas", "scores", "select_isa", "threads"]

_ABI_VERSION = 1
_DTYPE_CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
_OUT_OF_MEMORY, _UNKNOWN_ISA = 2, 3


class _Array(ctypes.Structure):
    _fields_ = [("data", c_void_p), *((n, c_int64) for n in ("batch", "head", "row"))]


class _Grid(ctypes.Structure):
    _fields_ = [("data", c_void_p), *((n, c_int64) for n in ("batch", "head", "query", "key"))]


class _Intervals(ctypes.Structure):
    _fields_ = [("data", c_void_p), *((n, c_int64) for n in ("count", "batch", "head", "query"))]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((n, c_int64) for n in ("batch", "heads", "key_heads", "value_heads")),
        *((n, c_int64) for n in ("queries", "keys", "head_size", "value_size")),
        *((n, c_double) for n in ("scale", "softcap", "dropout")),
        ("dropout_seed", c_uint64),
        *((n, _Array) for n in ("query", "key", "value")),
        ("intervals", _Intervals),
        *((n, _Grid) for n in ("mask", "bias")),
        ("sinks", c_void_p),
        *((n, c_int32) for n in ("dtype", "bias_dtype", "threads", "reserved")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [
        ("d_output", _Array),
        *((n, c_void_p) for n in ("lse", "delta")),
        *((n, _Array) for n in ("d_query", "d_key", "d_value")),
        ("d_bias", _Grid),
        ("d_sinks", c_void_p),
    ]


def available() -> str | None:
    """None if the native core can be used here, else why not."""
    try:
        library = _library()
    except BackendError as error:
        return str(error)
    if not library.regard_isa():
        return (
            f"REGARD_ISA={os.environ.get('REGARD_ISA')!r} names an instruction set that this "
            f"machine or build lacks; it has {', '.join(isas())}"
        )
    return None


def isas() -> list[str]:
    """The instruction sets compiled in that this machine can run, best first."""
    return str(_library().regard_isa_available().decode()).split()


def isa() -> str:
    """The instruction set in use."""
    name = _library().regard_isa()
    return name.decode() if name else ""


def select_isa(name: str) -> None:
    """Use another instruction set from now on. Raises BackendError if this machine lacks it."""
    if _library().regard_isa_select(name.encode()):
        raise BackendError(f"instruction set {name!r}", f"one of {', '.join(isas())}")


def threads() -> int:
    """The number of threads that the next call would use."""
    return int(_library().regard_threads())


def forward(problem: Problem, output: Any, lse: Any) -> None:
    """Write the output (B, H, Lq, E) and the log-sum-exp (B, H, Lq); either may be None.

    lse is contiguous and of the accumulation type.
    """
    call = _Call(problem)
    out = _Array() if output is None else call.array(output)
    _check(_library().regard_forward(ctypes.byref(call.struct), ctypes.byref(out), _address(lse)))


def backward(
    problem: Problem,
    d_output: Any,
    lse: Any,
    delta: Any,
    *,
    d_query: Any = None,
    d_key: Any = None,
    d_value: Any = None,
    d_bias: Any = None,
    d_sinks: Any = None,
) -> None:
    """Write those gradients that are given an array; lse, delta and d_sinks contiguous.

    delta is Σ_e d_output · output − d_lse, (B, H, Lq). d_bias and d_sinks are of the accumulation
    type, and d_bias has the shape of the bias: with all batch dimensions, or shared along all.
    """
    call = _Call(problem)
    gradients = _Gradients(
        d_output=call.array(d_output),
        lse=_address(lse),
        delta=_address(delta),
        d_query=_Array() if d_query is None else call.array(d_query),
        d_key=_Array() if d_key is None else call.array(d_key),
        d_value=_Array() if d_value is None else call.array(d_value),
        d_bias=_Grid() if d_bias is None else call.bias(d_bias),
        d_sinks=_address(d_sinks),
    )
    _check(_library().regard_backward(ctypes.byref(call.struct), ctypes.byref(gradients)))


def scores(
    problem: Problem, batch: int, head: int, rows: slice, keys: slice
) -> np.ndarray[Any, Any]:
    """(rows, keys) final scores of one head, hidden ones −∞, in the accumulation type."""
    call = _Call(problem)
    shape = (rows.stop - rows.start, keys.stop - keys.start)
    out = np.empty(shape, problem.accumulation_dtype)
    bounds = (c_int64(n) for n in (batch, head, rows.start, rows.stop, keys.start, keys.stop))
    struct = ctypes.byref(call.struct)
    _check(_library().regard_scores(struct, *bounds, _address(out), c_int64(shape[1])))
    return out


class _Call:
    """The struct for a problem, and whatever must stay alive while the kernel reads it."""

    def __init__(self, problem: Problem) -> None:
        self._alive: list[Any] = []
        extent, sinks = problem.extent, problem.sinks
        self._extent = extent
        seen = problem.visibility
        if sinks is not None:
            sinks = as_numpy(sinks).astype(problem.accumulation_dtype)
            self._alive.append(sinks)
        value = problem.value
        self.struct = _Problem(
            *(extent.flat_batch, extent.heads, problem.key_heads, problem.value_heads),
            *(extent.queries, extent.keys, problem.head_size, problem.value_size),
            *(problem.scale, problem.softcap, problem.dropout_p),
            int(problem.dropout_seed or 0) % 2**64,
            *(self.array(problem.query), self.array(problem.key)),
            _Array() if value is None else self.array(value),
            _Intervals() if seen.intervals is None else self._intervals(seen.intervals),
            _Grid() if seen.dense is None else self.grid(seen.dense),
            _Grid() if problem.bias is None else self.bias(problem.bias),
            _address(sinks),
            _DTYPE_CODES[problem.dtype],
            0 if problem.bias is None else _DTYPE_CODES[dtype_name(problem.bias)],
        )

    def array(self, array: Any) -> _Array:
        """An array (*batch, heads, L, size) as (B, heads, L, size)."""
        shape = array.shape
        if len(shape) != 4:
            array = array.reshape((self._extent.flat_batch, *shape[-3:]))
        array = _readable(array)
        self._alive.append(array)
        return _Array(_address(array), *_strides(array)[:3])

    def bias(self, array: Any) -> _Grid:
        """A bias, or its gradient: an array that broadcasts to (*batch, H, Lq, Lk)."""
        array = array if hasattr(array, "data_ptr") else np.asarray(array)
        array = array.reshape((1,) * (len(self._extent.shape) - len(array.shape)) + array.shape)
        batch, rest = array.shape[:-3], array.shape[-3:]
        if all(size == 1 for size in batch):
            return self.grid(array.reshape((1, *rest)))
        wide = (*self._extent.batch, *rest)
        array = array.expand(wide) if hasattr(array, "expand") else np.broadcast_to(array, wide)
        return self.grid(array.reshape((self._extent.flat_batch, *rest)))

    def grid(self, array: Any) -> _Grid:
        """An array (B|1, H|1, Lq|1, Lk|1), with zero strides where it is shared."""
        array = _readable(array)
        self._alive.append(array)
        strides = (
            0 if size == 1 else stride
            for size, stride in zip(array.shape, _strides(array), strict=True)
        )
        return _Grid(_address(array), *strides)

    def _intervals(self, pairs: np.ndarray[Any, Any]) -> _Intervals:
        pairs = np.ascontiguousarray(pairs)
        self._alive.append(pairs)
        shared = (size == 1 for size in pairs.shape[:3])
        strides = (
            0 if one else stride // pairs.itemsize
            for one, stride in zip(shared, pairs.strides[:3], strict=True)
        )
        return _Intervals(_address(pairs), pairs.shape[3], *strides)


def _address(array: Any) -> int | None:
    if array is None:
        return None
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__array_interface__["data"][0])


def _strides(array: Any) -> tuple[int, ...]:
    """Strides in elements."""
    if hasattr(array, "data_ptr"):
        return tuple(array.stride())
    size = array.itemsize
    return tuple(stride // size for stride in array.strides)


def _readable(array: Any) -> Any:
    """The array where the kernels can read it in place, else a copy.

    A row's elements must lie side by side, be aligned (NumPy's packed records are not), and stand
    for themselves (PyTorch has views that stand for the negative).
    """
    if hasattr(array, "data_ptr"):
        array = array.resolve_neg() if array.is_neg() else array
        return array if array.stride(-1) == 1 or array.shape[-1] < 2 else array.contiguous()
    beside = array.strides[-1] == array.itemsize or array.shape[-1] < 2
    return array if beside and array.flags.aligned else np.array(array, order="C")


def _check(status: int) -> None:
    if status == 0:
        return
    if status == _OUT_OF_MEMORY:
        raise MemoryError("regard: no memory for the kernel's scratch")
    if status == _UNKNOWN_ISA:
        raise BackendError(str(available()))
    raise AssertionError(f"regard: the native core refused a call (status {status})")


@functools.cache
def _library() -> ctypes.CDLL:
    path = _find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"the native core {path} cannot be loaded: {error}") from error
    if library.regard_abi_version() != _ABI_VERSION:
        raise BackendError(
            f"the native core {path} is of another version ({library.regard_abi_version()})",
            f"version {_ABI_VERSION}",
            "build again: pip install --force-reinstall regard",
        )
    pointer = c_void_p
    library.regard_forward.argtypes = [pointer, pointer, pointer]
    library.regard_backward.argtypes = [pointer, pointer]
    library.regard_scores.argtypes = [pointer, *[c_int64] * 6, pointer, c_int64]
    library.regard_isa_select.argtypes = [c_char_p]
    library.regard_isa.restype = library.regard_isa_available.restype = c_char_p
    library.regard_threads.restype = c_int
    return library


def _find_library() -> Path:
    """REGARD_LIBRARY, or the library beside the package."""
    chosen = os.environ.get("REGARD_LIBRARY")
    if chosen:
        return Path(chosen)
    name = {"darwin": "libregard_native.dylib", "win32": "regard_native.dll"}.get(
        sys.platform, "libregard_native.so"
    )
    package = find_spec("regard")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "_native" / name
        if path.exists():
            return path
    raise BackendError(
        f"this installation of regard has no native core ({name})",
        remedy="install it with a C++ compiler at hand: pip install --force-reinstall regard",
    )
