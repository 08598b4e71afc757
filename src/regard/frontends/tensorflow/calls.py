"""Our kernels on tensors: right away where these have values, by tf.numpy_function in a graph.

A call is taken apart into tensors and what is known without them, and put together again from
NumPy arrays that share the tensors' memory. Results are written where TensorFlow takes them over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from regard import dispatch
from regard._arrays import dtype_name
from regard.frontends.tensorflow.held import Held, is_tensor
from regard.masks import Mask, flatten, rebuild
from regard.problem import Problem, make
from regard.score import Additive

__all__ = ["NAMES", "Call", "Unmade", "arrays_of", "call", "empty", "is_graph", "to_tensor"]

# What may want a gradient.
NAMES = ("query", "key", "value", "bias", "sinks", "vector")
_LAID_OUT = NAMES[:3]  # whose heads and positions may be exchanged

Array = npt.NDArray[Any]

_ALIGNED = 64  # bytes: TensorFlow's own kernels read memory that begins so


@dataclass(frozen=True)
class Unmade:
    """A call whose sizes are not known yet: what `regard.problem.make` is to be given.

    The score has projected queries and keys already; they and the values are (B, heads, L, size).
    """

    arrays: dict[str, Held | None]  # NAMES
    mask: Mask | None
    dropout_seed: Any
    score: str | Additive
    options: dict[str, Any]
    layout: str

    def make(self, arrays: dict[str, Any], mask: Mask | None, seed: Any) -> Problem:
        """The problem, where arrays have sizes. Raises: what regard.problem.make raises."""
        query, key, value, bias, sinks, vector = (arrays[name] for name in NAMES)
        score = self.score
        if isinstance(score, Additive):
            score = dataclasses.replace(score, v=vector)
        more = {"mask": mask, "dropout_seed": seed, "score": score, **self.options}
        made = make(query, key, value, bias=bias, sinks=sinks, **more)
        return made.replace(layout=self.layout)


class Call:
    """A problem, or one that is not made yet, as tensors and what makes a NumPy problem of them."""

    def __init__(self, problem: Problem | Unmade, backend: str | None) -> None:
        self.given, self._backend = problem, backend
        held = arrays_of(problem)
        self.names = tuple(held)
        self.tensors = [array.raw for array in held.values()]
        self._exchanged = {name: array.exchanged for name, array in held.items()}
        arrays: tuple[Any, ...] = ()
        if problem.mask is not None:
            self._structure, arrays = flatten(problem.mask)
        self._of_mask = [None if is_tensor(array) else array for array in arrays]
        self._seed = problem.dropout_seed
        self.fixed = [array for array in arrays if is_tensor(array)]  # without gradients
        if is_tensor(self._seed):
            self.fixed.append(self._seed)

    @property
    def results(self) -> list[tuple[Any, Any]]:
        """Types and shapes of output and log-sum-exp, with None for sizes that are not known."""
        held = arrays_of(self.given)
        query, value = held["query"], held.get("value")
        *batch, heads, queries, _ = query.shape
        rows = (heads, queries) if self.given.layout == "BHLD" else (queries, heads)
        size = 0 if value is None else value.shape[-1]
        dtype = dtype_name(query)
        total = "float64" if dtype == "float64" else "float32"
        return [(dtype, (*batch, *rows, size)), (total, (*batch, heads, queries))]

    def on(self, tensors: Sequence[Any]) -> Problem | Unmade:
        """What the call was given, on other tensors of the same kinds."""
        named = zip(self.names, tensors, strict=True)
        held = {name: Held(tensor, self._exchanged[name]) for name, tensor in named}
        if isinstance(self.given, Unmade):
            return dataclasses.replace(self.given, arrays={**dict.fromkeys(NAMES), **held})
        return self.given.replace(**held)

    def problem(self, arrays: Sequence[Array]) -> Problem:
        """The problem on NumPy arrays: those of `tensors`, then those of `fixed`."""
        rest = iter(arrays)
        named = dict.fromkeys(NAMES)
        for name in self.names:
            array = next(rest)
            named[name] = array.swapaxes(-3, -2) if self._exchanged[name] else array
        of_mask = tuple(next(rest) if array is None else array for array in self._of_mask)
        mask = None if self.given.mask is None else rebuild(self._structure, of_mask)
        seed = int(next(rest)) if is_tensor(self._seed) else self._seed
        if isinstance(self.given, Unmade):
            return self.given.make(named, mask, seed)
        return self.given.replace(**named, mask=mask, dropout_seed=seed)

    def forward(self, *arrays: Array) -> tuple[Array, Array]:
        """The output as the caller's layout has it, of size 0 without values; lse (B, H, Lq)."""
        problem = self.problem(arrays)
        lse = empty(problem.extent.shape[:-1], problem.accumulation_dtype)
        output = empty(problem.output_shape, problem.query.dtype)
        view = None if problem.value is None else self._as_heads(output, problem)
        dispatch.forward(problem, view, lse, self._backend)
        return output, lse

    def backward(self, wanted: Sequence[str], *arrays: Array) -> list[Array]:
        """The gradients wanted, from `tensors`, `fixed`, and output, lse, d_output and d_lse."""
        *given, output, lse, d_output, d_lse = arrays
        problem = self.problem(given)
        if problem.value is None:  # the log-sum-exp alone: as if values of size 0 had been there
            problem = problem.replace(value=problem.key[..., :0])
        output, d_output = (self._as_heads(a, problem) for a in (output, d_output))
        whole = _whole_bias(problem)
        made = {name: self._gradient(name, whole) for name in wanted}
        written = {f"d_{name}": gradient for name, (gradient, _) in made.items()}
        dispatch.backward(whole, output, lse, d_output, d_lse, self._backend, **written)
        return [
            made[name][1] if name in _LAID_OUT else _fitted(made[name][1], getattr(problem, name))
            for name in wanted
        ]

    def _gradient(self, name: str, problem: Problem) -> tuple[Array, Array]:
        """What a kernel writes the gradient into, and the same as it lies in memory.

        Those of bias, sinks and vector are sums over many rows, held in the type of lse.
        """
        given = getattr(problem, name)
        if name in _LAID_OUT:
            exchanged = self._exchanged[name]
            made = empty((given.swapaxes(-3, -2) if exchanged else given).shape, given.dtype)
            return made.swapaxes(-3, -2) if exchanged else made, made
        shape = given.shape
        if name == "vector":
            shape = (*problem.query.shape[:-2], problem.head_size)
        made = empty(shape, problem.accumulation_dtype)
        return made, made

    @staticmethod
    def _as_heads(array: Array, problem: Problem) -> Array:
        """(B, H, Lq, E) of an array in the caller's layout."""
        return array if problem.layout == "BHLD" else array.swapaxes(-3, -2)


def call(
    function: Callable[..., Sequence[Array]],
    tensors: Sequence[Any],
    results: Sequence[tuple[Any, Any]],
) -> list[Any]:
    """What a function of NumPy arrays returns for these tensors, as tensors.

    results: type and shape of each; shapes may have unknown sizes, or be None.
    """
    if not is_graph():
        return [to_tensor(array) for array in function(*map(np.asarray, tensors))]
    types = [tf.as_dtype(dtype) for dtype, _ in results]
    found = tf.numpy_function(lambda *a: list(function(*a)), tensors, types, stateful=False)
    for tensor, (_, shape) in zip(found, results, strict=True):
        tensor.set_shape(shape)
    return list(found)


def is_graph() -> bool:
    """Whether a graph is being made: inside of tf.function."""
    return not tf.executing_eagerly()


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """An array that TensorFlow can take over as it is."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw: Array = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    made: Array = raw[start : start + size].view(kind).reshape(shape)
    return made


def to_tensor(array: Array) -> Any:
    """A tensor that takes over an array made by `empty`."""
    if array.dtype.name != "bfloat16":
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    words = tf.experimental.dlpack.from_dlpack(array.view(np.uint16).__dlpack__())
    return tf.bitcast(words, tf.bfloat16)


def arrays_of(problem: Problem | Unmade) -> dict[str, Held]:
    """Those of NAMES that are there."""
    given: dict[str, Any] = problem.arrays if isinstance(problem, Unmade) else vars(problem)
    return {name: given[name] for name in NAMES if given[name] is not None}


def _whole_bias(problem: Problem) -> Problem:
    """With a bias that has all batch dimensions or none, as kernels want it for its gradient."""
    bias, batch = problem.bias, problem.extent.batch
    if bias is None or all(size == 1 for size in bias.shape[:-3]) or bias.shape[:-3] == batch:
        return problem
    return problem.replace(bias=np.broadcast_to(bias, (*batch, *bias.shape[-3:])))


def _fitted(gradient: Array, given: Array) -> Array:
    """A gradient in the shape and type of its array."""
    if gradient.shape == given.shape and gradient.dtype == given.dtype:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - given.ndim)))
    shared = tuple(n for n, size in enumerate(given.shape) if size == 1)
    made = empty(given.shape, given.dtype)
    made[...] = gradient.sum(axis=shared, keepdims=True)
    return made
