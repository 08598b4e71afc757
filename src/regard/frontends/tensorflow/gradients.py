"""Gradients: attention and its log-sum-exp, and the transposed product.

With ds_ij = p_ij (dP_ij − δ_i), all gradients of the weights have this one form:

    y = P v     given dy:  dP_ij = dy_i · v_j,  δ_i = dy_i · y_i − dlse_i,  dv = Pᵀ dy
    x = Pᵀ y    given dx:  dP_ij = y_i · dx_j,  δ_i = y_i · (P dx)_i,      dy = P dx

so the transposed product's backward is attention's, with values dx and output gradient y.

Gradients are differentiated again as the plain expression of own.py, in memory quadratic in length.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe

from regard import dispatch
from regard.errors import BackendError
from regard.frontends.tensorflow import own
from regard.frontends.tensorflow.calls import Array, Call, Unmade, call, empty, is_graph
from regard.frontends.tensorflow.held import Held
from regard.problem import Problem

__all__ = ["attention", "recorded", "transposed"]


def recorded(tensors: Sequence[Any]) -> list[bool]:
    """Which tensors may want a gradient, or have a tangent; in a graph, nobody knows."""
    if is_graph():
        return [True] * len(tensors)
    if pywrap_tfe.TFE_Py_TapeSetIsEmpty():
        return [False] * len(tensors)
    return [pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes([tensor]) > 0 for tensor in tensors]


def attention(problem: Problem | Unmade, backend: str | None) -> tuple[Any, Any]:
    """The output as the caller's layout has it, of size 0 without values, and lse (B, H, Lq)."""
    made = Call(problem, backend)
    wanted = recorded(made.tensors)

    def forward(tensors: Sequence[Any]) -> Any:
        return call(made.forward, [*tensors, *made.fixed], made.results)

    if not any(wanted):
        output, lse = forward(made.tensors)
        return output, lse

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*chosen: Any) -> Any:
        tensors = _joined(made.tensors, wanted, chosen)
        output, lse = forward(tensors)

        def gradient(d_output: Any, d_lse: Any) -> Any:
            return _gradients(made, wanted, tensors, output, lse, d_output, d_lse)

        return (output, lse), gradient

    found: tuple[Any, Any] = run(*_chosen(made.tensors, wanted))
    return found


def transposed(problem: Problem, y: Held, backend: str | None) -> Any:
    """weightsᵀ y: (B, H, Lk, C) for y (B, H, Lq, C)."""
    made = Call(problem.replace(value=None), backend)
    given = [*made.tensors, y.tensor]
    wanted = recorded(given)
    *lead, _, size = y.shape
    results = [(y.dtype, (*lead, problem.extent.keys, size)), made.results[1]]

    def forward(*tensors: Any) -> Any:
        arrays = [*tensors[:-1], *made.fixed, tensors[-1]]
        return call(functools.partial(_transposed, made, backend), arrays, results)

    if not any(wanted):
        return forward(*given)[0]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*tensors: Any) -> Any:
        result, lse = forward(*tensors)

        def gradient(d_result: Any) -> Any:
            *own_tensors, y = tensors
            same = made.on(own_tensors)
            assert isinstance(same, Problem)
            with_values = same.replace(value=Held(d_result), layout="BHLD")
            d_y, _ = attention(with_values, backend)
            again = Call(with_values, backend)
            of_weights = [name != "value" for name in again.names]
            zeros = tf.zeros_like(lse)
            return *_gradients(again, of_weights, again.tensors, d_y, lse, y, zeros), d_y

        return result, gradient

    return run(*given)


def _transposed(made: Call, backend: str | None, *arrays: Array) -> tuple[Array, Array]:
    """(weightsᵀ y, lse): the values' gradient where the output's gradient is y."""
    *given, y = arrays
    problem = made.problem(given)
    lse = empty(problem.extent.shape[:-1], problem.accumulation_dtype)
    dispatch.forward(problem, None, lse, backend)
    *lead, _, size = y.shape
    result = empty((*lead, problem.extent.keys, size), y.dtype)
    whole = problem.replace(value=result)
    dispatch.backward(whole, None, lse, y, None, backend, d_value=result)
    return result, lse


def _gradients(
    made: Call,
    wanted: Sequence[bool],
    tensors: Sequence[Any],
    output: Any,
    lse: Any,
    d_output: Any,
    d_lse: Any,
) -> list[Any]:
    """The gradients of those tensors that want one.

    Output and lse are not differentiated: they depend on the tensors, which second derivatives are
    taken of.
    """
    names = _chosen(made.names, wanted)
    kinds = [(tensor.dtype, tensor.shape) for tensor in _chosen(tensors, wanted)]
    backward = functools.partial(made.backward, names)
    inputs = [*tensors, d_output, d_lse]
    again = recorded(inputs)

    def first(given: Sequence[Any]) -> list[Any]:
        *own_tensors, d_output, d_lse = given
        return call(backward, [*own_tensors, *made.fixed, output, lse, d_output, d_lse], kinds)

    if not any(again):
        return first(inputs)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*given: Any) -> Any:
        def gradient(*upstream: Any) -> Any:
            return _second(made, wanted, given, upstream)

        return first(given), gradient

    return list(run(*inputs))


def _second(
    made: Call, wanted: Sequence[bool], given: Sequence[Any], upstream: Sequence[Any]
) -> list[Any]:
    """The derivatives of gradients, by TensorFlow's own of the plain expression."""
    if isinstance(made.given, Unmade):
        raise BackendError(
            "second derivatives of attention on tensors whose sizes are not known yet",
            "tensors with known shapes",
            "give tf.function an input_signature, or use tf.ensure_shape",
        )
    with tf.GradientTape() as outer:
        outer.watch(given)
        *tensors, d_output, d_lse = given
        with tf.GradientTape() as inner:
            inner.watch(tensors)
            problem = made.on(tensors)
            assert isinstance(problem, Problem)
            output, lse = own.attention(problem)
        if output is None:
            found = inner.gradient(lse, tensors, d_lse)
        else:
            found = inner.gradient([output, lse], tensors, [d_output, d_lse])
        chosen = _chosen(found, wanted)
    if any(gradient is None for gradient in chosen):  # inner tapes are off in forward mode
        raise BackendError(
            "attention under tf.autodiff.ForwardAccumulator",
            "tf.GradientTape, for gradients and gradients of gradients",
            'pass backend="tensorflow", the plain expression, which knows forward mode',
        )
    return list(outer.gradient(chosen, given, upstream))


def _chosen(values: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [value for value, want in zip(values, wanted, strict=True) if want]


def _joined(values: Sequence[Any], wanted: Sequence[bool], chosen: Sequence[Any]) -> list[Any]:
    """The values, with the wanted ones replaced."""
    rest = iter(chosen)
    return [next(rest) if want else value for value, want in zip(values, wanted, strict=True)]
