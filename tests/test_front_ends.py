"""The same attention from arrays of every framework that is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

import regard
from regard.errors import ArrayTypeError, BackendError, MaskError, OptionError, ShapeError


class Numpy:
    name = "numpy"
    gradients = None

    def array(self, array):
        return array


class Torch:
    name = "torch"

    def array(self, array):
        import torch

        return torch.from_numpy(np.array(array))

    def gradients(self, loss, arrays):
        import torch

        leaves = [array.requires_grad_() for array in arrays]
        return torch.autograd.grad(loss(*leaves), leaves)


class Jax:
    name = "jax"

    def array(self, array):
        import jax.numpy as jnp

        return jnp.asarray(array)

    def gradients(self, loss, arrays):
        import jax

        return jax.grad(loss, argnums=range(len(arrays)))(*arrays)


class Tensorflow:
    name = "tensorflow"

    def array(self, array):
        import tensorflow as tf

        return tf.convert_to_tensor(array)

    def gradients(self, loss, arrays):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arrays)
            found = loss(*arrays)
        return tape.gradient(found, arrays)


@pytest.fixture(params=[Numpy, Torch, Jax, Tensorflow], ids=lambda kind: kind.name)
def front(request):
    name = request.param.name
    if not find_spec(name):
        pytest.skip(f"{name} is not installed")
    return request.param()


rng = np.random.default_rng(0)
SHAPES = {"query": (2, 4, 6, 8), "key": (2, 2, 9, 8), "value": (2, 2, 9, 5)}
QUERY, KEY, VALUE = (rng.standard_normal(shape, np.float32) for shape in SHAPES.values())
BIAS = rng.standard_normal((4, 1, 9), np.float32)
SINKS = rng.standard_normal(4, np.float32)
DENSE = rng.random((2, 1, 6, 9)) < 0.6
IDS = np.array([[0, 0, 0, 1, 1, 1, 2, 2, -1], [0, 1, 1, 1, 2, 2, 2, 2, 2]])

OPTIONS = {
    "none": lambda of: {},
    "scale and softcap": lambda of: {"scale": 0.5, "softcap": 2.0},
    "bias and sinks": lambda of: {"bias": of(BIAS), "sinks": of(SINKS)},
    "dropout": lambda of: {"dropout_p": 0.4, "dropout_seed": 11},
    "causal": lambda of: {"mask": regard.causal("lower_right") & regard.window(3, 0, 3)},
    "dense": lambda of: {"mask": of(DENSE) & regard.prefix(7)},
    "lengths": lambda of: {"mask": regard.lengths(keys=of(np.array([9, 4])))},
    "keys": lambda of: {"mask": regard.keys(of(DENSE[:, 0, 0]))},
    "documents": lambda of: {"mask": regard.documents(of(IDS[:, :6]), of(IDS))},
    "sees nothing": lambda of: {"mask": regard.lengths(queries=of(np.array([6, 0])))},
}


def plain(array):
    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def summed(array):
    return array.sum() if hasattr(array, "sum") else sys.modules["tensorflow"].reduce_sum(array)


def close(found, expected):
    np.testing.assert_allclose(plain(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_the_definition(front, name):
    given = [front.array(a) for a in (QUERY, KEY, VALUE)]
    y = regard.attention(*given, **OPTIONS[name](front.array))
    assert type(y) is type(given[0])
    expected = regard.attention(QUERY, KEY, VALUE, **OPTIONS[name](np.array), backend="reference")
    close(y, expected)


def test_layouts_and_batch_dimensions(front):
    expected = regard.attention(QUERY, KEY, VALUE)
    swapped = [front.array(a.swapaxes(1, 2)) for a in (QUERY, KEY, VALUE)]
    close(regard.attention(*swapped, layout="BLHD"), expected.swapaxes(1, 2))
    close(regard.attention(*(front.array(a[0]) for a in (QUERY, KEY, VALUE))), expected[0])
    deep = [front.array(a[:, None, None]) for a in (QUERY, KEY, VALUE)]
    close(regard.attention(*deep), expected[:, None, None])


def test_the_operator(front):
    given = {"mask": regard.causal("lower_right"), "softcap": 2.0}
    w = regard.weights(front.array(QUERY), front.array(KEY), **given)
    p = regard.weights(QUERY, KEY, **given).dense()
    y = regard.attention(QUERY, KEY, VALUE, **given)
    close(w @ front.array(VALUE), y)
    close(w.mT @ front.array(y), p.swapaxes(-1, -2) @ y)
    close(w.received(), p.sum(axis=-2))
    close(w.top_k(2).weights, np.sort(p)[..., :-3:-1])
    close(w[1, ::2].dense(), p[1, ::2])
    close(np.exp(plain(w.scores()) - plain(w.lse())[..., None]), p)


@pytest.mark.parametrize("name", ["bias and sinks", "causal", "dense", "documents", "sees nothing"])
def test_gradients(front, name):
    if front.gradients is None:
        pytest.skip(f"{front.name} has no gradients")
    options = OPTIONS[name](front.array)
    names = [n for n in ("bias", "sinks") if n in options]
    arrays = [front.array(a) for a in (QUERY, KEY, VALUE)] + [options.pop(n) for n in names]

    def loss(q, k, v, *more):
        y = regard.attention(q, k, v, **options, **dict(zip(names, more, strict=True)))
        return summed(y * y)

    found = front.gradients(loss, arrays)
    step = 1e-3
    wide = [plain(a).astype(np.float64) for a in arrays]
    options = {n: o for n, o in OPTIONS[name](np.array).items() if n not in names}
    for gradient, array in zip(found, wide, strict=True):
        direction = np.random.default_rng(1).standard_normal(array.shape)
        kept = array.copy()
        values = []
        for sign in (1, -1):
            array[...] = kept + sign * step * direction
            values.append(loss(*wide))
        array[...] = kept
        slope = (values[0] - values[1]) / (2 * step)
        assert (plain(gradient) * direction).sum() == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_errors(front):
    q, k, v = (front.array(a) for a in (QUERY, KEY, VALUE))
    with pytest.raises(ShapeError, match=r"query \(2, 4, 6, 8\), key \(2, 2, 9, 5\)"):
        regard.attention(q, v, v)
    with pytest.raises(MaskError, match="6 queries and 9 keys"):
        regard.attention(q, k, v, mask=regard.causal())
    with pytest.raises(OptionError, match="softcap"):
        regard.attention(q, k, v, softcap=-1.0)
    with pytest.raises(BackendError, match="backend='fast'"):
        regard.attention(q, k, v, backend="fast")
    if front.name != "numpy":
        with pytest.raises(ArrayTypeError, match=f"from numpy, key from {front.name}"):
            regard.attention(QUERY, k, KEY)


def test_the_plan_names_the_kernel(front):
    q, k, v = (front.array(a) for a in (QUERY, KEY, VALUE))
    assert regard.plan(q, k, v, backend="reference").backend == "reference"
    assert "linear in length" in str(regard.plan(q, k, v))
