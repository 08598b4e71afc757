"""Regard's layers beside Keras's on one backend: run by test_keras.py, once a backend."""

from __future__ import annotations

import inspect
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops

import regard
import regard.keras
from regard.errors import ShapeError

BACKEND = keras.backend.backend()
rng = np.random.default_rng(0)
X, Y = (rng.standard_normal((3, n, 8), np.float32) for n in (6, 5))
KEEP = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
ROWS = np.array([[1, 1, 1, 1, 0, 0], [1] * 6, [0] * 6], bool)
SEEN = rng.random((3, 6, 5)) < 0.5

E = 4 if BACKEND == "jax" else 3  # there, Keras's own layer fails where it is not key_dim
LAYERS = {
    "heads": ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4}),
    "gate": (
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4, "value_dim": E, "use_gate": True},
    ),
    "window": ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "sliding_window": 2}),
    "grouped": (
        "GroupedQueryAttention",
        {"head_dim": 4, "num_query_heads": 4, "num_key_value_heads": 2, "sliding_window": 3},
    ),
    "dot": ("Attention", {"use_scale": True}),
    "concat": ("Attention", {"use_scale": True, "score_mode": "concat"}),
    "additive": ("AdditiveAttention", {}),
    "plain additive": ("AdditiveAttention", {"use_scale": False}),
}
CALLS = {
    "plain": {},
    "causal": {"use_causal_mask": True},
    "padding": {"query_mask": ROWS, "value_mask": KEEP},
    "causal padding": {"value_mask": KEEP, "use_causal_mask": True},
    "array": {"attention_mask": SEEN, "use_causal_mask": True},
}


def pair(name, **more):
    """Regard's layer and Keras's, with the same weights."""
    kind, options = LAYERS[name]
    theirs = getattr(keras.layers, kind.replace("Grouped", "Group"))(**options, **more)
    ours = getattr(regard.keras, kind)(**options, **more)
    for layer in (ours, theirs):
        layer.build([X.shape, Y.shape]) if kind.endswith("eAttention") or kind == "Attention" else (
            layer.build(X.shape, Y.shape)
        )
    ours.set_weights([w + 0.3 for w in theirs.get_weights()])
    theirs.set_weights(ours.get_weights())
    return ours, theirs


def called(layer, **masks):
    """The layer on X and Y; layers of one head take lists."""
    if isinstance(layer, keras.layers.Attention):
        if "attention_mask" in masks:
            pytest.skip("takes no such mask")
        both = [masks.pop("query_mask", None), masks.pop("value_mask", None)]
        return layer([X, Y], mask=both if both[1] is not None else None, **masks)
    return layer(X, Y, **masks)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_keras_s(name, call):
    ours, theirs = pair(name)
    found, expected = (called(layer, **CALLS[call]) for layer in (ours, theirs))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(expected), rtol=2e-4, atol=2e-5
    )


@pytest.mark.parametrize("name", LAYERS)
def test_signatures_are_keras_s(name):
    ours, theirs = pair(name)
    for method in ("__init__", "call", "build"):
        one, other = (inspect.signature(getattr(type(x), method)) for x in (ours, theirs))
        kept = [(p.name, p.kind, p.default) for p in one.parameters.values()]
        assert kept == [(p.name, p.kind, p.default) for p in other.parameters.values()]


def model_of(layer, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    both = inputs if isinstance(layer, keras.layers.Attention) else None
    attended = layer(inputs) if both else layer(*inputs, use_causal_mask=True)
    return keras.Model(inputs, attended)


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy has no gradients")
@pytest.mark.parametrize("name", ["grouped", "concat"])
def test_a_step_of_training_is_keras_s(name):
    after = []
    for layer in pair(name):
        model = model_of(layer, (None, 8), (None, 8))
        model.compile(keras.optimizers.SGD(0.5), "mse")
        model.fit([X, Y], X, batch_size=2, shuffle=False, verbose=0)
        after.append(layer.get_weights())
    for found, expected, start in zip(*after, pair(name)[0].get_weights(), strict=True):
        near = 1e-5 * max(1, abs(expected).max())  # what threads of XLA's add up in another order
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=near)
        assert BACKEND == "numpy" or start.shape == found.shape


@pytest.mark.parametrize("name", LAYERS)
def test_models_with_them_are_saved_and_loaded(name, tmp_path):
    ours, _ = pair(name)
    model = model_of(ours, (6, 8), (5, 8))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert any(type(layer) is type(ours) for layer in loaded.layers)
    close = np.testing.assert_allclose
    close(*(m.predict([X, Y], verbose=0) for m in (model, loaded)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_the_operator_has_keras_s_scores(name):
    ours, theirs = pair(name)
    single = isinstance(ours, keras.layers.Attention)
    operator = ours.operator([X, Y]) if single else ours.operator(X, Y, use_causal_mask=True)
    asked = {} if single else {"use_causal_mask": True}
    for layer in (ours, theirs):
        _, expected = called(layer, return_attention_scores=True, **asked)
        found = ops.convert_to_numpy(operator.dense())
        expected = ops.convert_to_numpy(expected)
        seen = found.any(axis=-1)  # a window hides everything from the last query: 0 here
        np.testing.assert_allclose(found[seen], expected[seen], rtol=2e-4, atol=2e-5)
    assert isinstance(operator, regard.AttentionWeights)
    assert operator.top_k(2).keys.shape == (*operator.shape[:-1], 2)


@pytest.mark.parametrize("name", ["heads", "grouped", "dot"])
def test_dropout_is_drawn_from_keras_s_generator(name):
    outputs = []
    for seed in (1, 1, 2):
        ours, _ = pair(name, dropout=0.5, seed=seed)
        ours.set_weights([np.ones_like(w) / 3 for w in ours.get_weights()])
        drawn, same = (
            [ops.convert_to_numpy(called(ours, training=training)) for _ in range(2)]
            for training in (True, False)
        )
        assert not np.allclose(*drawn) and np.allclose(*same)
        outputs.append(drawn)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2])


class Own(regard.keras.MultiHeadAttention):
    def _compute_attention(self, query, key, value, attention_mask=None, *args, **kwargs):
        return ops.zeros_like(query) + attention_mask.shape[-1], None


def test_a_subclass_with_its_own_attention_keeps_it():
    layer = Own(2, 4, use_bias=False, output_shape=1)
    layer.build(X.shape, Y.shape)
    layer.set_weights([np.ones_like(w) for w in layer.get_weights()])
    y = ops.convert_to_numpy(layer(X, Y, use_causal_mask=True))
    np.testing.assert_allclose(y, np.full((3, 6, 1), 5 * 8))


@pytest.mark.skipif(BACKEND != "numpy", reason="memory is counted of NumPy's arrays")
def test_no_map_is_made():
    x = rng.standard_normal((1, 3000, 4)).astype("f4")
    layer = regard.keras.MultiHeadAttention(1, 4, sliding_window=20)
    keep = np.ones((1, 3000), bool)
    layer(x, x)
    tracemalloc.start()
    layer(x, x, value_mask=keep, use_causal_mask=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # a boolean map has 9,000,000 elements


def test_the_function_takes_what_keras_s_does_not():
    q = rng.standard_normal((2, 6, 4, 8), np.float32)
    k, v = (rng.standard_normal((2, 5, 2, n), np.float32) for n in (8, 3))
    bias = rng.standard_normal((1, 4, 6, 5)).astype("f4")
    options = {"bias": bias, "scale": 0.5, "attn_logits_soft_cap": 2.0, "flash_attention": True}
    mask = SEEN[:2, None]
    mask[:, :, 3] = True
    found = regard.keras.dot_product_attention(q, k, v, mask=mask, **options)
    expected = regard.attention(
        *(a.swapaxes(1, 2) for a in (q, k, v)), mask=mask, bias=bias, scale=0.5, softcap=2.0
    ).swapaxes(1, 2)
    blind = ~mask.any(-1)[:, 0]
    expected[blind] = np.broadcast_to(v.mean(1, keepdims=True).repeat(2, 2), expected.shape)[blind]
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match=r"query \(6, 4, 8\)"):
        regard.keras.dot_product_attention(q[0], k, v)


def test_the_function_in_a_functional_model(tmp_path):
    inputs = [keras.Input((None, 4, 8)), keras.Input((None, 2, 8)), keras.Input((None, 2, 8))]
    output = regard.keras.dot_product_attention(*inputs, is_causal=True, attn_logits_soft_cap=3.0)
    model = keras.Model(inputs, output)
    arrays = [rng.standard_normal((2, 6, n, 8)).astype("f4") for n in (4, 2, 2)]
    expected = regard.keras.dot_product_attention(*arrays, is_causal=True, attn_logits_soft_cap=3.0)
    expected = ops.convert_to_numpy(expected)
    np.testing.assert_allclose(model.predict(arrays, verbose=0), expected, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(arrays, verbose=0), expected, rtol=1e-5, atol=1e-5)
