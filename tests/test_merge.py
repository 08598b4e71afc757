"""Attention over parts of the keys, merged, is attention over all of them."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.errors import ShapeError


def in_parts(q, k, v, seen, cuts, layout="BHLD"):
    outputs, lses = [], []
    keys = -2 if layout == "BHLD" else -3
    for start, stop in itertools.pairwise(cuts):
        part = tuple(slice(start, stop) if a == keys % 4 else slice(None) for a in range(4))
        w = regard.weights(q, k[part], mask=seen[..., start:stop], layout=layout)
        outputs.append(w @ v[part])
        lses.append(w.lse())
    return regard.merge(outputs, lses, layout=layout)


@given(
    st.lists(st.integers(0, 9), max_size=4),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(["BHLD", "BLHD"]),
    st.integers(0, 1000),
)
def test_numpy_against_the_whole(inner, density, layout, seed):
    rng = np.random.default_rng(seed)
    seen = rng.random((2, 3, 5, 9)) < density
    q, k, v = (rng.standard_normal((2, 3, n, e)) for n, e in ((5, 4), (9, 4), (9, 6)))
    w = regard.weights(q, k, mask=seen)
    whole = w @ v
    if layout == "BLHD":
        q, k, v, whole = (a.swapaxes(1, 2) for a in (q, k, v, whole))
    output, lse = in_parts(q, k, v, seen, [0, *sorted(inner), 9], layout)
    np.testing.assert_allclose(output, whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lse, w.lse(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["torch", "jax", "tensorflow"])
def test_gradients_against_the_whole(name):
    framework = pytest.importorskip(name)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 2, n, 4)).astype("f4") for n in (5, 9, 9)]
    seen = rng.random((5, 9)) < 0.5
    seen[0, :3] = seen[1] = False  # in one part of the keys, and in all of them
    array = {
        "jax": lambda a: importlib.import_module("jax.numpy").asarray(a),
        "torch": lambda a: framework.tensor(a),
        "tensorflow": lambda a: framework.constant(a),
    }[name]
    total = framework.reduce_sum if name == "tensorflow" else lambda a: a.sum()
    seen = array(seen)

    def merged(q, k, v):
        output, lse = in_parts(q, k, v, seen, [0, 3, 3, 9])
        return total(output**2) + total(lse[..., 2:])

    def whole(q, k, v):
        w = regard.weights(q, k, mask=seen)
        return total((w @ v) ** 2) + total(w.lse()[..., 2:])

    results = []
    for function in (merged, whole):
        if name == "jax":
            found = framework.grad(function, argnums=(0, 1, 2))(*map(array, arrays))
        elif name == "tensorflow":
            found = [array(a) for a in arrays]
            with framework.GradientTape() as tape:
                tape.watch(found)
                result = function(*found)
            found = tape.gradient(result, found)
        else:
            found = [array(a).requires_grad_() for a in arrays]
            found = framework.autograd.grad(function(*found), found)
        results.append(found)
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_outputs_keep_their_type():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, n, 4)).astype("f2") for n in (5, 9, 9))
    output, lse = in_parts(q, k, v, np.ones((5, 9), bool), [0, 4, 9])
    assert (output.dtype, lse.dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(output, regard.attention(q, k, v), rtol=1e-2, atol=2e-3)


def test_what_does_not_fit_is_refused():
    output, lse = np.zeros((1, 2, 5, 4), "f4"), np.zeros((1, 2, 5), "f4")
    for outputs, lses in (([], []), ([output], []), ([output], [lse[..., :4]])):
        with pytest.raises(ShapeError):
            regard.merge(outputs, lses)
    with pytest.raises(ShapeError, match="BLHD"):
        regard.merge([output.swapaxes(1, 2)], [lse])
