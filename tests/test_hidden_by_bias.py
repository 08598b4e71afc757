"""Rows that a large negative bias hides as a whole: the mean of the values, weights that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard
from problems import problem
from regard.bias import LEAST_SCORE
from regard.kernels import reference
from test_native import backward, run

LOW = {
    "float32": [-1e5, -1e9, np.finfo(np.float32).min],
    "bfloat16": [-1e5, -1e9, -3.38e38],
    "float16": [-1e9],
    "float64": [-1e9, np.finfo(np.float64).min],
}
CASES = [(dtype, low) for dtype, lows in LOW.items() for low in lows]
HIDDEN = [3, 17, 39]


def hidden(dtype: str, low: float, keys: int = 70) -> np.ndarray:
    """Three rows hidden as a whole, and of all others each third key."""
    bias = np.zeros((40, keys), "float64" if dtype == "float64" else "float32")
    bias[:, ::3] = low
    bias[HIDDEN] = low
    return bias


@pytest.mark.parametrize(("dtype", "low"), CASES)
def test_outputs_gradients_and_log_sum_exps(isa, dtype, low):
    rng = np.random.default_rng(0)
    prob = problem(rng, (2, 4, 2, 40, 70, 32, 32), dtype, bias=hidden(dtype, low))
    y, lse = run(prob)
    exact, total = reference.forward(prob)
    # Of scores near -1e5 float32 holds 7 bits behind the point.
    exactly = {"float32": 5e-3 if low == -1e5 else 1e-5, "float64": 1e-12}
    limit = {**exactly, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert np.abs(y.astype(np.float64) - exact).max() <= limit
    np.testing.assert_allclose(lse, total, rtol=2e-7, atol=2e-5)
    d_output = rng.standard_normal(y.shape).astype(y.dtype)
    expected = reference.backward(prob, d_output)
    # The logarithm of a sum near LEAST_SCORE is known to 2^-8 in float32.
    for name, found in backward(prob, y, lse, d_output).items():
        gradient = getattr(expected, name.removeprefix("d_"))
        scale = np.abs(gradient).max()
        error = np.abs(found.astype(np.float64) - gradient).max() / scale
        assert error <= max(4 * limit, 0 if dtype == "float64" else 0.01), name


@pytest.mark.parametrize("low", LOW["float32"])
def test_weights_of_such_a_row_add_up_and_read_outs_agree(isa, low):
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((1, 2, n, 16), dtype=np.float32) for n in (40, 70))
    w = regard.weights(q, k, bias=hidden("float32", low))
    np.testing.assert_allclose(w.dense().sum(-1), 1, atol=0.01)
    np.testing.assert_allclose(w.received(), w.dense().sum(-2), rtol=0.01)
    if low < LEAST_SCORE:
        np.testing.assert_allclose(w.max_weight()[0, :, HIDDEN], 1 / 70, rtol=0.01)
        np.testing.assert_allclose(w.scores()[0, :, HIDDEN], LEAST_SCORE)


@pytest.mark.parametrize("backend", [None, "reference", "torch"])
@pytest.mark.parametrize("low", [-1e9, torch.finfo(torch.float32).min])
def test_such_a_row_is_what_pytorch_makes_of_it(backend, low):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (40, 70, 70))
    bias = torch.from_numpy(hidden("float32", low))
    found = regard.attention(q, k, v, bias=bias, backend=backend)
    limits = {"rtol": 0, "atol": 1e-3 if backend == "torch" else 1e-6}
    torch.testing.assert_close(found, sdpa(q, k, v, attn_mask=bias), **limits)
    torch.testing.assert_close(found[0, 0, 3], v[0, 0].mean(0), **limits)
    gradients = torch.autograd.grad(found[:, :, HIDDEN].sum(), (q, k, v))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    torch.testing.assert_close(
        gradients[2], torch.full_like(v, len(HIDDEN) / 70), rtol=0.01, atol=0
    )


def test_such_a_row_in_jax():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(2)
    q, k, v = (jax.numpy.asarray(rng.standard_normal((1, 2, n, 8), "f4")) for n in (40, 70, 70))
    bias = jax.numpy.asarray(hidden("float32", -1e9))
    for backend in (None, "jax"):
        given = {"bias": bias, "backend": backend}
        found = jax.grad(lambda v, given=given: regard.attention(q, k, v, **given)[:, :, 3].sum())(
            v
        )
        np.testing.assert_allclose(found, 1 / 70, rtol=0.01)


@pytest.mark.parametrize("backend", [None, "tensorflow"])
def test_such_a_row_in_tensorflow(backend):
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(2)
    q, k, v = (tf.constant(rng.standard_normal((1, 2, n, 8), "f4")) for n in (40, 70, 70))
    bias = tf.constant(hidden("float32", -1e9))
    with tf.GradientTape() as tape:
        tape.watch(v)
        total = tf.reduce_sum(regard.attention(q, k, v, bias=bias, backend=backend)[:, :, 3])
    np.testing.assert_allclose(tape.gradient(total, v), 1 / 70, rtol=0.01)


def test_edges_of_a_node_that_are_all_hidden_so(isa):
    rng = np.random.default_rng(4)
    edges = np.argwhere(np.ones((9, 7), bool)).T
    bias = np.where(edges[1] == 5, np.float32(-1e9), np.float32(0))
    mask = regard.graph(edges)
    q, k, v = (rng.standard_normal((1, 2, n, 8), dtype=np.float32) for n in (7, 9, 9))
    found = regard.attention(q, k, v, mask=mask, bias=bias)[0, :, 5]
    np.testing.assert_allclose(found, v[0].mean(1), atol=1e-5)
    weights = regard.weights(q, k, mask=mask, bias=bias).on_edges()
    np.testing.assert_allclose(weights[..., edges[1] == 5].sum(-1), 1, atol=0.01)
