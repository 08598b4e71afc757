"""The definition agrees with the formulas, with finite differences and with PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regard
from problems import arrays, problem
from regard.kernels import reference
from regard.kernels.dropout import kept
from regard.problem import make


def test_scores_in_the_fixed_order():
    q, k, v = arrays(np.random.default_rng(0), (1, 1, 1, 3, 4, 5, 2), "float64")
    bias = np.random.default_rng(1).standard_normal((3, 4))
    prob = make(q, k, v, scale=0.5, softcap=2.0, bias=bias, mask=regard.prefix(3))
    expected = 2.0 * np.tanh(0.5 * q[0, 0] @ k[0, 0].T / 2.0) + bias
    expected[:, 3] = -np.inf
    np.testing.assert_allclose(reference.scores(prob)[0, 0], expected, rtol=1e-14)


def test_weights_are_the_softmax_and_the_sink_takes_its_share():
    s = np.array([[0.3, -1.0, 2.0]])
    q, k = s[None, None], np.eye(3)[None, None]
    prob = make(q, k, scale=1.0, sinks=np.array([1.5]))
    p, lse = reference.weights(prob)
    total = np.exp(s).sum() + np.exp(1.5)
    np.testing.assert_allclose(p[0, 0], np.exp(s) / total, rtol=1e-14)
    np.testing.assert_allclose(lse[0, 0], np.log(total), rtol=1e-14)


def test_plain_attention_is_pytorchs():
    q, k, v = arrays(np.random.default_rng(0), (2, 4, 2, 7, 9, 5, 6), "float64")
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), enable_gqa=True
    )
    y, _ = reference.forward(make(q, k, v))
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-12, atol=1e-14)


def test_grouped_heads_read_their_own_key_head():
    q, k, v = arrays(np.random.default_rng(0), (1, 6, 3, 4, 5, 8, 8), "float64")
    y, _ = reference.forward(make(q, k, v))
    for h in range(6):
        alone = make(q[:, h : h + 1], k[:, h // 2 : h // 2 + 1], v[:, h // 2 : h // 2 + 1])
        np.testing.assert_allclose(y[:, h : h + 1], reference.forward(alone)[0])


def test_a_query_that_sees_nothing():
    prob = problem(
        np.random.default_rng(0), (1, 2, 2, 4, 6, 8, 8), mask=regard.lengths(queries=[2])
    )
    y, lse = reference.forward(prob)
    p, _ = reference.weights(prob)
    assert not y[:, :, 2:].any() and not p[:, :, 2:].any() and np.all(lse[:, :, 2:] == -np.inf)
    with_sink = prob.replace(sinks=np.array([0.5, -1.0], np.float32))
    y, lse = reference.forward(with_sink)
    assert not y[:, :, 2:].any()
    np.testing.assert_array_equal(lse[0, :, 3], [0.5, -1.0])
    gradients = reference.backward(with_sink, np.ones_like(y))
    assert not gradients.query[:, :, 2:].any()


def test_a_bias_of_minus_infinity_everywhere_is_seeing_nothing():
    prob = problem(np.random.default_rng(0), bias=np.full((16, 16), -np.inf, np.float32))
    y, lse = reference.forward(prob)
    assert not y.any() and np.all(lse == -np.inf)


OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": np.array([0.3, -0.2])},
    "bias": {"bias": np.random.default_rng(5).standard_normal((2, 1, 5))},
    "mask": {"mask": regard.causal("upper_left")},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 3},
    "all": {
        "softcap": 1.5,
        "sinks": np.array([0.3, -0.2]),
        "bias": np.random.default_rng(5).standard_normal((4, 5)),
        "mask": regard.window(2, 1),
        "dropout_p": 0.4,
        "dropout_seed": 3,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_finite_differences(options):
    rng = np.random.default_rng(0)
    lq = 5 if "mask" in options else 4
    if options.get("bias") is not None and options["bias"].shape == (4, 5):
        options = {**options, "bias": np.random.default_rng(5).standard_normal((5, 5))}
    q, k, v = arrays(rng, (1, 2, 1, lq, 5, 3, 2), "float64")
    given = {"query": q, "key": k, "value": v}
    given |= {name: options[name] for name in ("bias", "sinks") if name in options}
    rest = {name: value for name, value in options.items() if name not in given}
    dy, d_lse = rng.standard_normal((1, 2, lq, 2)), rng.standard_normal((1, 2, lq))

    def loss(changed):
        y, lse = reference.forward(make(**{**given, **changed}, **rest))
        return (y * dy).sum() + (lse * d_lse).sum()

    found = reference.backward(make(**given, **rest), dy, d_lse)
    for name, array in given.items():
        numeric = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[at] = 1e-5
            numeric[at] = (loss({name: array + step}) - loss({name: array - step})) / 2e-5
        np.testing.assert_allclose(getattr(found, name), numeric, rtol=1e-6, atol=1e-8)


def test_dropout_keeps_the_share_it_should_and_heads_differ():
    keep = kept(7, 0.3, 2, 3, 200, 200)
    assert abs(keep.mean() - 0.7) < 0.005
    assert np.abs(keep.mean(axis=(2, 3)) - 0.7).max() < 0.01
    assert np.abs(keep.mean(axis=(0, 1, 2)) - 0.7).max() < 0.06
    assert np.abs(keep.mean(axis=(0, 1, 3)) - 0.7).max() < 0.06
    flat = keep.reshape(6, -1).astype(float) - 0.7
    correlation = flat @ flat.T / flat.shape[1] / 0.21
    assert np.abs(correlation - np.eye(6)).max() < 0.03
    assert not np.array_equal(keep, kept(8, 0.3, 2, 3, 200, 200))


def test_dropout_depends_on_nothing_but_its_counter():
    whole = kept(7, 0.5, 2, 2, 30, 40)
    assert np.array_equal(whole[:, :, :10, :20], kept(7, 0.5, 2, 2, 10, 20))
