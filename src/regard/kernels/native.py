"""The native core, called through ctypes: a Problem becomes a struct of pointers and strides.

Arrays may be of any framework that keeps them in main memory and tells their address (NumPy,
PyTorch); nothing here imports one. structs.py packs them as the contract says.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import c_char_p, c_int, c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from regard.errors import BackendError
from regard.kernels.structs import (
    ABI_VERSION,
    ProblemForm,
    UnplacedArray,
    UnplacedProblem,
    address,
    pack_array,
    pack_bias,
    pack_edges,
    pack_gradients,
    pack_problem,
    pack_read_outs,
    pack_visibility,
)
from regard.masks import Mask, visibility
from regard.problem import Problem

__all__ = [
    "Prepared",
    "available",
    "backward",
    "forward",
    "forward_on_edges",
    "isa",
    "isas",
    "prepare",
    "read_out",
    "scores",
    "select_isa",
    "threads",
    "xla_functions",
]

_OUT_OF_MEMORY = 2


def available() -> str | None:
    """None if the native core can be used here, else why not."""
    try:
        _library()
    except BackendError as error:
        return str(error)
    return None


def isas() -> list[str]:
    """The instruction sets compiled in that this machine can run, best first."""
    return str(_load().regard_isa_available().decode()).split()


def isa() -> str:
    """The instruction set in use."""
    return str(_load().regard_isa().decode())


def select_isa(name: str) -> None:
    """Use another instruction set from now on. Raises BackendError if this machine lacks it."""
    if _library().regard_isa_select(name.encode()):
        raise BackendError(f"instruction set {name!r}", f"one of {', '.join(isas())}")


def threads() -> int:
    """The number of threads that the next call would use."""
    return int(_library().regard_threads())


def xla_functions(minor_version: int) -> dict[str, Any]:
    """The functions that XLA calls itself, by name, as made for a version of its interface."""
    _library().regard_xla_set_minor_version(minor_version)
    names = ("regard_xla_forward", "regard_xla_backward")
    return {name: getattr(_library(), name) for name in names}


def forward(problem: Problem, output: Any, lse: Any) -> None:
    """Write the output (B, H, Lq, E) and the log-sum-exp (B, H, Lq); either may be None.

    lse is contiguous and of the accumulation type.
    """
    if problem.visibility.edges is not None:
        forward_on_edges(problem, output, lse, None)
        return
    packed, _alive = pack_problem(problem)
    out = pack_array(output, [])
    _check(_library().regard_forward(packed, out, address(lse)))


def forward_on_edges(problem: Problem, output: Any, lse: Any, weights: Any) -> None:
    """`forward` for a graph; also the weights (B, H, edges), 0 at first; each may be None."""
    assert problem.visibility.edges is not None
    packed, _alive = pack_problem(problem)
    edges, _listed = pack_edges(problem.visibility.edges)
    out = pack_array(output, [])
    _check(_library().regard_graph_forward(packed, edges, out, address(lse), address(weights)))


class Prepared:
    """`forward` and `backward` for one problem and all others of its sizes, strides and options.

    They may differ in the addresses of query, key, value and bias, in elements, and in the arrays
    of their masks. Nothing in it changes, so threads may share it. It keeps no array of the
    problem's alive.
    """

    def __init__(self, problem: Problem, arrays: list[bytes], bias: bytes) -> None:
        self._form, self._extent = ProblemForm(problem), problem.extent
        *given, output = arrays
        self._problem = UnplacedProblem(self._form, given, bias).at
        self._output = UnplacedArray(output).at
        self._call = _library().regard_forward
        self._seen = None
        if problem.mask is None or problem.mask.signature is not None:
            self._seen = self._pack_mask(problem.mask)

    def seen(self, mask: Mask | None) -> tuple[bytes, Any]:
        """What the mask shows, packed, and what must be kept alive meanwhile. Raises: MaskError."""
        return self._seen or self._pack_mask(mask)

    def _pack_mask(self, mask: Mask | None) -> tuple[bytes, Any]:
        alive: list[Any] = []
        return pack_visibility(visibility(mask, self._extent), alive), alive

    def forward(
        self, query: int, key: int, value: int, bias: int, seen: bytes, output: int, lse: int = 0
    ) -> None:
        """Write the output and, unless its address is 0, the log-sum-exp."""
        packed = self._problem(query, key, value, seen, bias)
        status = self._call(packed, self._output(output), lse)
        if status:
            _check(status)

    def backward(
        self,
        arrays: tuple[Any, Any, Any, Any],
        seen: bytes,
        output: Any,
        lse: Any,
        d_output: Any,
        d_lse: Any,
        d_arrays: tuple[Any, Any, Any, Any],
    ) -> None:
        """Write the gradients of query, key, value and bias, where one is given an array.

        The arrays may lie otherwise in memory than those of `forward` did.
        """
        alive: list[Any] = []
        query, key, value, bias = arrays
        packed = self._form.pack(
            pack_array(query, alive),
            pack_array(key, alive),
            pack_array(value, alive),
            seen,
            pack_bias(bias, self._extent, alive),
        )
        d_query, d_key, d_value, d_bias = d_arrays
        gradients, _written = pack_gradients(
            self._extent, output, lse, d_output, d_lse, (d_query, d_key, d_value), d_bias, None
        )
        _check(_library().regard_backward(packed, gradients))


def prepare(problem: Problem, output: Any) -> Prepared | None:
    """A problem without sinks, dropout and graph; None if an array must be copied to be read."""
    alive: list[Any] = []
    given = (problem.query, problem.key, problem.value, output)
    packed = [pack_array(array, alive) for array in given]
    bias = pack_bias(problem.bias, problem.extent, alive)
    there = [*given, *([] if problem.bias is None else [problem.bias])]
    if any(address(here) != address(read) for here, read in zip(there, alive, strict=True)):
        return None
    return Prepared(problem, packed, bias)


def backward(
    problem: Problem,
    output: Any,
    lse: Any,
    d_output: Any,
    d_lse: Any,
    *,
    d_query: Any = None,
    d_key: Any = None,
    d_value: Any = None,
    d_bias: Any = None,
    d_sinks: Any = None,
    d_vector: Any = None,
) -> None:
    """Write those gradients that are given an array; d_vector (B, H, D) is not summed over B and H.

    output and lse are what `forward` wrote; output may be None if d_value alone is wanted, d_lse
    None is 0. lse, d_lse, d_bias, d_sinks and d_vector are of the accumulation type and, but for
    d_bias, contiguous. d_bias has the shape of the bias: with all batch dimensions, or shared along
    all.
    """
    packed, _alive = pack_problem(problem)
    d_arrays = (d_query, d_key, d_value)
    edges = problem.visibility.edges
    each = d_bias if d_bias is None or edges is None else _for_each_edge(d_bias, edges.count)
    given = (output, lse, d_output, d_lse, d_arrays, each, d_sinks, d_vector)
    gradients, _written = pack_gradients(problem.bias_extent, *given, problem.distance_0)
    if edges is None:
        _check(_library().regard_backward(packed, gradients))
        return
    listed, _kept = pack_edges(edges)
    _check(_library().regard_graph_backward(packed, listed, gradients))
    if each is not d_bias:
        d_bias[..., 0] = each.sum(-1)


def _for_each_edge(d_bias: Any, count: int) -> Any:
    """Where gradients of a bias go: d_bias, or, if all edges share it, a number for each of them.

    Zeros, since edges that are hidden are not written.
    """
    shape = tuple(d_bias.shape)
    if shape[-1] == count:
        d_bias[...] = 0
        return d_bias
    shape = (*shape[:-1], count)
    return (
        d_bias.new_zeros(shape) if hasattr(d_bias, "new_zeros") else np.zeros(shape, d_bias.dtype)
    )


def read_out(
    problem: Problem, output: Any, lse: Any, fields: dict[str, Any], known: bool = True
) -> None:
    """Fill the arrays of a regard_readouts_request; lse (B, H, Lq) is contiguous.

    With an output (B, H, Lq, E), it and lse are written too; else lse is read if it is `known`,
    and written if not.
    """
    if output is None and not known:  # the core writes both or none: an output without columns
        problem = problem.replace(value=problem.key[..., :0])
        output = np.empty((*problem.extent.shape[:-1], 0), problem.accumulation_dtype)
    packed, _alive = pack_problem(problem.without_edges())
    out = pack_array(output, [])
    _check(_library().regard_readouts(packed, out, address(lse), pack_read_outs(fields)))


def scores(
    problem: Problem, batch: int, head: int, rows: slice, keys: slice
) -> np.ndarray[Any, Any]:
    """(rows, keys) final scores of one head, hidden ones −∞, in the accumulation type."""
    packed, _alive = pack_problem(problem.without_edges())
    shape = (rows.stop - rows.start, keys.stop - keys.start)
    out = np.empty(shape, problem.accumulation_dtype)
    bounds = (batch, head, rows.start, rows.stop, keys.start, keys.stop)
    _check(_library().regard_scores(packed, *bounds, address(out), shape[1]))
    return out


def _check(status: int) -> None:
    if status == 0:
        return
    if status == _OUT_OF_MEMORY:
        raise MemoryError("regard: no memory for the kernel's scratch")
    raise AssertionError(f"regard: the native core refused a call (status {status})")


@functools.cache
def _library() -> ctypes.CDLL:
    """The native core, ready to be called. Raises: BackendError."""
    library = _load()
    if not library.regard_isa():
        raise BackendError(
            f"REGARD_ISA={os.environ.get('REGARD_ISA')!r} names an instruction set that this "
            f"machine or build lacks",
            f"one of {', '.join(isas())}",
        )
    return library


@functools.cache
def _load() -> ctypes.CDLL:
    path = _find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"the native core {path} cannot be loaded: {error}") from error
    if library.regard_abi_version() != ABI_VERSION:
        raise BackendError(
            f"the native core {path} is of another version ({library.regard_abi_version()})",
            f"version {ABI_VERSION}",
            "build again: pip install --force-reinstall regard",
        )
    pointer = c_void_p
    library.regard_forward.argtypes = [pointer, pointer, pointer]
    library.regard_backward.argtypes = [pointer, pointer]
    library.regard_graph_forward.argtypes = [pointer] * 5
    library.regard_graph_backward.argtypes = [pointer] * 3
    library.regard_scores.argtypes = [pointer, *[c_int64] * 6, pointer, c_int64]
    library.regard_readouts.argtypes = [pointer, pointer, pointer, pointer]
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
