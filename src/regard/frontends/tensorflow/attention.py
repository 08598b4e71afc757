"""Which way a call on tensors takes: our kernels, or on other devices the plain expression."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from regard import dispatch
from regard.errors import ArrayTypeError, BackendError
from regard.frontends.tensorflow import gradients, own
from regard.frontends.tensorflow.calls import NAMES, Call, Unmade, empty, is_graph, to_tensor
from regard.frontends.tensorflow.held import Held, is_tensor, view
from regard.masks import flatten, normal
from regard.problem import Problem

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "check",
    "copy",
    "elsewhere",
    "from_numpy",
    "host",
    "lse",
    "plan",
    "transposed",
    "untraced",
    "version",
]


def attention(problem: Problem | Unmade, backend: str | None) -> Held:
    """Output (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD."""
    return attention_lse(problem, backend)[0]


def attention_lse(problem: Problem | Unmade, backend: str | None) -> tuple[Held, Held]:
    """The output as `attention` gives it, and the log-sum-exp (B, H, Lq)."""
    if _way(problem, backend) == "tensorflow":
        output, total = own.attention(_made(problem))
    else:
        output, total = gradients.attention(_settled(_seeded(problem)), backend)
    return Held(output), Held(total)


def attend(
    problem: Problem, backend: str | None, fields: dict[str, Any]
) -> tuple[Held, npt.NDArray[Any] | None]:
    """The output as `attention` gives it, and lse (B, H, Lq), with the read-outs' fields filled.

    lse None: the fields are not filled, since the output was not computed here.
    """
    if _way(problem, backend) == "tensorflow":
        return attention(problem, backend), None
    if not fields or any(gradients.recorded(Call(problem, backend).tensors)):
        output, found = attention_lse(problem, backend)
        total = np.array(view(found))  # a copy, since kernels write where they are told
        if fields:
            dispatch.read_out(host(problem, backend)[0], None, total, fields, backend)
        return output, total
    moved = host(problem, backend)[0].replace(value=view(problem.value))
    made = empty(problem.output_shape, moved.query.dtype)
    total = np.empty(problem.extent.shape[:-1], problem.accumulation_dtype)
    heads_first = made if problem.layout == "BHLD" else made.swapaxes(-3, -2)
    dispatch.read_out(moved, heads_first, total, fields, backend)
    return Held(to_tensor(made)), total


def lse(problem: Problem, backend: str | None) -> Any:
    """(B, H, Lq) log-sum-exp in the accumulation type."""
    problem = problem.replace(value=None)
    if isinstance(problem.query, np.ndarray):  # what `host` has made
        total = np.empty(problem.query.shape[:-1], problem.accumulation_dtype)
        dispatch.forward(problem, None, total, backend)
        return total
    return attention_lse(problem, backend)[1]


def transposed(problem: Problem, y: Held, backend: str | None) -> Held:
    """weightsᵀ y: (B, H, Lk, C) for y (B, H, Lq, C)."""
    if _way(problem, backend) == "tensorflow":
        return Held(own.transposed(problem, y))
    return Held(gradients.transposed(_settled(problem), y, backend))


def from_numpy(array: npt.NDArray[Any], like: Any) -> Any:
    """A tensor; what `host` has made stays with NumPy."""
    return array if isinstance(like, np.ndarray) else tf.convert_to_tensor(array)


def broadcast(array: Held, shape: tuple[int, ...]) -> Held:
    """The array repeated."""
    return Held(tf.broadcast_to(array.tensor, shape))


def check(**arrays: Any) -> None:
    """That all are dense. Raises: ArrayTypeError."""
    for name, array in arrays.items():
        if array is not None and not isinstance(array, (tf.Tensor, tf.Variable, Held)):
            raise ArrayTypeError(
                f"{name} of type {type(array).__name__}",
                "a dense tensor or a variable",
                "call to_tensor(), or tf.sparse.to_dense, and pass mask=regard.lengths(…)",
            )


def version(array: Any) -> None:
    """TensorFlow's tensors do not change."""


def copy(array: Held) -> Held:
    """The same tensor, which does not change."""
    return array


def host(problem: Problem, backend: str | None) -> tuple[Problem, str | None]:
    """The problem on NumPy arrays, and the backend that reads it out.

    Raises: BackendError inside tf.function, where tensors have no values yet.
    """
    if not all(map(_has_value, problem.weight_arrays)):
        raise BackendError(
            "a read-out inside tf.function, where tensors have no values yet",
            "attention, w @ v, w.mT @ y or w.lse(), which TensorFlow can trace",
            "return the queries and keys from the function, and read out outside of it",
        )
    arrays = {name: getattr(problem, name) for name in NAMES}
    moved = {name: None if array is None else view(array) for name, array in arrays.items()}
    named = None if backend == "tensorflow" else backend
    return problem.replace(**{**moved, "value": None}), named


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: `host` refuses what has no values."""
    return function


def plan(problem: Problem | Unmade, backend: str | None) -> dispatch.Plan:
    """What would compute the problem."""
    if _way(problem, backend) == "tensorflow":
        why = "asked for by name" if backend else "no kernels of ours for this device"
        details = {"memory": "quadratic in length"}
        return dispatch.Plan("tensorflow", f"a plain expression of TensorFlow's: {why}", details)
    called = "tf.numpy_function: the graph runs in a process with Python, and not under XLA"
    called = called if is_graph() else "Python, tensors where they lie"
    if isinstance(problem, Unmade):
        name, reason = dispatch.choose(backend)
        shapes = ", ".join(f"{n} {a.shape}" for n, a in problem.arrays.items() if a is not None)
        details = {"problem": f"{shapes} as (B, heads, length, size): known when it runs"}
        return dispatch.Plan(name, reason, {**details, "called by": called})
    traced = problem.mask is not None and not all(map(_has_value, flatten(problem.mask)[1]))
    made = dispatch.plan(problem.replace(mask=None) if traced else problem, backend)
    details = dict(made.details)
    if traced:
        details["mask"] = f"{problem.mask!r}: worked out when the function runs"
    return dispatch.Plan(made.backend, made.reason, {**details, "called by": called})


def _way(problem: Problem | Unmade, backend: str | None) -> str:
    """ "tensorflow" for the plain expression, else the kernel's name.

    Raises: BackendError where the one asked for by name cannot compute this.
    """
    if backend == "tensorflow":
        return "tensorflow"
    query = problem.arrays["query"] if isinstance(problem, Unmade) else problem.query
    if not isinstance(query, Held) or not elsewhere(query.raw):
        return dispatch.choose(backend)[0]
    if backend is not None:
        raise BackendError(
            f"backend={backend!r} for tensors on {query.raw.device}",
            'tensors on the CPU, or backend="tensorflow"',
        )
    return "tensorflow"


def elsewhere(tensor: Any) -> bool:
    """Whether a tensor is not in main memory; one without values: whether it need not be."""
    if not _other_devices():
        return False
    return "CPU" not in (tensor.device or "GPU")


@functools.cache
def _other_devices() -> bool:
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


def _has_value(array: Any) -> bool:
    tensor = array.raw if isinstance(array, Held) else array
    return not is_tensor(tensor) or hasattr(tensor, "numpy")


def _made(problem: Problem | Unmade) -> Problem:
    if isinstance(problem, Unmade):
        raise BackendError(
            "the plain expression on tensors whose sizes are not known yet",
            "tensors with known shapes",
            "give tf.function an input_signature, or use tf.ensure_shape",
        )
    return problem


def _seeded(problem: Problem | Unmade) -> Problem | Unmade:
    """With a seed for dropout, drawn from TensorFlow's own generator."""
    options = problem.options if isinstance(problem, Unmade) else vars(problem)
    dropout_p = options.get("dropout_p")
    if not dropout_p or problem.dropout_seed is not None:
        return problem
    seed = tf.random.uniform((), maxval=2**62, dtype=tf.int64)
    return dataclasses.replace(problem, dropout_seed=seed)


def _settled(problem: Any) -> Any:
    """In a graph, with the mask in its normal form where its arrays are known already."""
    if isinstance(problem, Unmade) or problem.mask is None or not is_graph():
        return problem
    if not all(map(_has_value, flatten(problem.mask)[1])):
        return problem
    return problem.replace(mask=normal(problem.visibility))
