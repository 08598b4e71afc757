"""Bilinear and additive scores of JAX arrays: jit, grad, vmap, the plain expression."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jax", reason="JAX is not installed: pip install 'regard[jax]'")

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

import regard
from regard import Additive, Bilinear

KINDS = [None, "tanh", "leaky_relu"]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def made(activation, per_head=True, batch=(2,)):
    """q, k, v and the arrays of a score."""
    rng = np.random.default_rng(0)
    heads, key_heads = ((4,), (2,)) if per_head else ((), ())
    shapes = [(*batch, 4, 5, 10), (*batch, 2, 6, 7), (*batch, 2, 6, 3)]
    if activation is None:
        shapes += [(*heads, 10, 7)]
    else:
        shapes += [(*heads, 10, 3), (*key_heads, 7, 3), (*heads, 3)]
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def attend(activation, backend=None):
    def output(q, k, v, *weights):
        score = Bilinear(*weights) if activation is None else Additive(*weights, activation)
        options = {"mask": regard.prefix(5), "softcap": 3.0, "backend": backend}
        return regard.attention(q, k, v, score=score, **options)

    return output


def loss(activation, backend=None):
    return lambda *arrays: (attend(activation, backend)(*arrays) ** 2).sum()


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11), found, expected
    )


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("activation", KINDS)
def test_output_is_numpys_and_gradients_those_of_the_plain_expression(activation, per_head):
    arrays = made(activation, per_head)
    of_numpy = attend(activation)(*map(np.asarray, arrays))
    close(jax.jit(attend(activation))(*arrays), of_numpy)
    every = tuple(range(len(arrays)))
    expected = jax.grad(loss(activation, "jax"), every)(*arrays)
    for backend in (None, "reference"):
        close(jax.jit(jax.grad(loss(activation, backend), every))(*arrays), expected)


@pytest.mark.parametrize("activation", KINDS)
def test_gradients_first_and_second(activation):
    check_grads(attend(activation), made(activation, batch=()), order=2, modes=["rev"])


@pytest.mark.parametrize("activation", KINDS)
def test_vmap_is_a_loop(activation):
    q, k, v, *weights = made(activation)
    every = tuple(range(3, 3 + len(weights)))

    def of(backend):
        def gradients(*weights):
            mapped = jax.vmap(lambda q, k, v: loss(activation, backend)(q, k, v, *weights))
            return mapped(q, k, v).sum()

        inside = jax.grad(loss(activation, backend), every)
        twice = [jnp.stack([w, 2 * w]) for w in weights]
        return (
            jax.grad(gradients, tuple(range(len(weights))))(*weights),
            jax.vmap(lambda q, k, v: inside(q, k, v, *weights))(q, k, v),
            jax.vmap(lambda q, k, v, *w: inside(q, k, v, *w))(q, k, v, *twice),
        )

    close(of(None), of("jax"))


def test_read_outs_are_numpys():
    q, k, _, *weights = made("tanh")
    w = regard.weights(q, k, score=Additive(*weights))
    plain = (np.asarray(weight) for weight in weights)
    of_numpy = regard.weights(np.asarray(q), np.asarray(k), score=Additive(*plain))
    close(w.entropy(), of_numpy.entropy())
    close(w.dense(), of_numpy.dense())
