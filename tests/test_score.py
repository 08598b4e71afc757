"""Bilinear and additive scores: against their definitions, on every instruction set."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import torch

import regard
from conftest import ISAS
from problems import TYPES, allowed, arrays, error, plain_error, plain_gradient_errors, truth
from regard import Additive, Bilinear
from regard.kernels import native, reference
from regard.problem import Problem, make
from test_native import DTYPES, MASKS, run

needs_native = pytest.mark.skipif(not ISAS, reason="no native core is installed")

KINDS = ["tanh", "leaky_relu"]


def additive(rng, shape, dtype="float32", activation="tanh", per_head=True, size=1.0, **options):
    """A problem with additive scores of ordinary size, q and k projected already."""
    q, k, v = arrays(rng, shape, dtype)
    heads = shape[1] if per_head else 1
    vector = rng.standard_normal((heads, shape[5])) / np.sqrt(shape[5])
    q, k = ((size * a).astype(a.dtype) for a in (q, k))
    score = Additive(None, None, (2 * vector).astype(v.dtype), activation, 0.3)
    return make(q, k, v, score=score, **options)


def gradients(prob: Problem, y, lse, dy, d_lse=None) -> dict[str, np.ndarray]:
    b, h = prob.extent.flat_batch, prob.extent.heads
    made = {
        "query": np.full_like(prob.query, 7),
        "key": np.full_like(prob.key, 7),
        "value": np.full_like(prob.value, 7),
        "vector": np.full((b, h, prob.head_size), 7, lse.dtype),
    }
    if prob.bias is not None:
        made["bias"] = np.full(prob.bias.shape, 7, lse.dtype)
    if prob.sinks is not None:
        made["sinks"] = np.full(prob.sinks.shape, 7, lse.dtype)
    native.backward(prob, y, lse, dy, d_lse, **{f"d_{name}": a for name, a in made.items()})
    return made


def check(prob: Problem) -> None:
    y, lse = run(prob)
    exact, total = truth(prob)
    assert error(y, exact) <= allowed(plain_error(prob, exact), exact, prob.dtype)
    assert error(lse, total) <= (1e-12 if prob.dtype == "float64" else 2e-5)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    found = gradients(prob, y, lse, dy)
    expected = reference.backward(prob, dy)
    # Plain PyTorch sums the gradient of v up, over B and perhaps H.
    found["vector"] = summed(found["vector"], prob)
    expected = dataclasses.replace(expected, vector=summed(expected.vector, prob))
    plain = plain_gradient_errors(prob, dy, expected)
    for name, array in found.items():
        exact = getattr(expected, name)
        assert error(array, exact) <= allowed(plain[name], exact, prob.dtype, 3), name


def summed(d_vector: np.ndarray, prob: Problem) -> np.ndarray:
    over = (0, 1) if prob.vector.shape[0] == 1 else 0
    return d_vector.sum(axis=over).reshape(prob.vector.shape)


@needs_native
@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("lengths", [(1, 239), (3, 799), (127, 113), (65, 97), (256, 64), (113, 2)])
def test_additive_of_ragged_lengths(isa, lengths, activation):
    for mask in (None, regard.causal("lower_right")):
        shape = (1, 2, 1, *lengths, 40, 24)
        check(additive(np.random.default_rng(0), shape, activation=activation, mask=mask))


@needs_native
@pytest.mark.parametrize("activation", KINDS)
def test_with_a_single_key_additive_scores_have_no_gradient(isa, activation):
    prob = additive(np.random.default_rng(5), (1, 2, 1, 113, 1, 40, 24), activation=activation)
    y, lse = run(prob)
    np.testing.assert_allclose(y, np.broadcast_to(prob.value, y.shape), rtol=3e-7)
    dy = np.random.default_rng(6).standard_normal(y.shape).astype(y.dtype)
    found = gradients(prob, y, lse, dy)
    for name in ("query", "key", "vector"):  # sums of rounding errors, as for dot products
        assert np.abs(found[name]).max() < 2e-4, name


@needs_native
@pytest.mark.parametrize("size", [1, 7, 16, 59, 64, 111, 256])
def test_additive_of_head_sizes(isa, size):
    for activation in KINDS:
        shape = (1, 2, 2, 35, 50, size, 8)
        check(additive(np.random.default_rng(size), shape, activation=activation, per_head=False))


@needs_native
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_additive_under_masks(isa, dtype, mask):
    for lq, lk in ((67, 67), (35, 101), (5, 70)):
        made = MASKS[mask](3, 4, lq, lk)
        check(additive(np.random.default_rng(1), (3, 4, 2, lq, lk, 24, 16), dtype, mask=made))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", KINDS)
def test_additive_with_every_option(isa, dtype, activation):
    rng = np.random.default_rng(2)
    kind = "float64" if dtype == "float64" else "float32"
    options = {
        "bias": rng.standard_normal((4, 1, 90)).astype(kind),
        "sinks": rng.standard_normal(4).astype(kind),
        "softcap": 2.0,
        "dropout_p": 0.3,
        "dropout_seed": 5,
        "mask": regard.window(40, 20, 10),
    }
    for scale in (1.5, -0.7):
        shape = (2, 4, 2, 70, 90, 20, 16)
        check(additive(rng, shape, dtype, activation, scale=scale, **options))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_additive_of_large_and_infinite_elements(isa, dtype):
    for size in (9.0, 40.0, 1000.0):
        shape = (1, 2, 1, 70, 110, 24, 16)
        check(additive(np.random.default_rng(3), shape, dtype, size=size))
    prob = additive(np.random.default_rng(3), (1, 1, 1, 5, 6, 8, 4), dtype)
    prob.query[0, 0, 1, 3] = np.inf
    prob.key[0, 0, 2, 3] = -500
    assert error(run(prob)[0], truth(prob)[0]) <= (1e-12 if dtype == "float64" else 2e-2)


@needs_native
def test_the_tanh_of_additive_scores_is_as_exact_as_it_says(isa):
    worst = {}
    for dtype, kind in (("float32", np.float32), ("float64", np.float64)):
        sums = np.concatenate([np.linspace(-12, 12, 4001), np.geomspace(1e-8, 1e-2, 99)])
        found = []
        for q in np.array([0, 0.3, -4.7, 13.1, -20.9, 25], kind):
            k = (sums - q).astype(kind)
            prob = make(
                np.full((1, 9, 1), q),
                k[None, :, None],
                score=Additive(None, None, np.ones(1, kind)),
            )
            scores = native.scores(prob, 0, 0, slice(0, 9), slice(0, len(k)))
            found.append(np.abs(scores - np.tanh(k.astype(float) + float(q))).max())
        worst[dtype] = max(found)
    assert worst["float32"] < (1.5e-6 if isa == "baseline" else 5e-7)
    assert worst["float64"] < 1e-14


@needs_native
@pytest.mark.parametrize("activation", KINDS)
def test_hidden_nan_never_arrives_through_additive_scores(isa, activation):
    shape = (2, 2, 1, 70, 70, 16, 16)
    mask = regard.lengths(keys=[40, 70], queries=[40, 70]) & regard.causal()
    clean = additive(np.random.default_rng(0), shape, activation=activation, mask=mask)
    inside = (np.arange(70) < np.array([[40], [70]]))[:, None, :, None]
    dy = np.random.default_rng(1).standard_normal(clean.query.shape).astype(np.float32)
    y, lse = run(clean)
    expected = gradients(clean, y, lse, np.where(inside, dy, 0))
    names = ("query", "key", "value")
    bad = {name: np.where(inside, getattr(clean, name), np.nan) for name in names}
    spoiled = clean.replace(**bad)
    found, total = run(spoiled)
    np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, lse, rtol=1e-5)
    for name, array in gradients(spoiled, found, total, np.where(inside, dy, np.nan)).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_keys_change_no_bit_of_additive_attention(isa, dtype):
    shape = (1, 2, 1, 100, 600, 24, 16)
    keep = np.arange(600) % 7 > 1  # hidden and seen keys lie in the same tiles
    prob = additive(np.random.default_rng(0), shape, dtype, mask=regard.keys(keep[None]))
    loud = prob.replace(key=prob.key.copy(), value=prob.value.copy())
    loud.key[..., ~keep, :] *= 1000
    loud.value[..., ~keep, :] *= 100
    for one, other in zip(run(loud), run(prob), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_native
def test_a_visible_nan_arrives_in_its_own_rows_only(isa):
    prob = additive(np.random.default_rng(0), (1, 1, 1, 40, 40, 16, 16))
    prob.query[0, 0, 7] = np.nan
    y, lse = run(prob)
    assert np.isnan(y[0, 0, 7]).all()
    assert np.isfinite(np.delete(y, 7, axis=2)).all()
    found = gradients(prob, y, lse, np.ones_like(y))
    assert np.isnan(found["query"][0, 0, 7]).all()
    assert np.isfinite(np.delete(found["query"], 7, axis=2)).all()


@needs_native
def test_additive_gives_the_same_bits_for_any_number_of_threads(isa):
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    prob = additive(np.random.default_rng(0), (1, 2, 1, 700, 150, 24, 16), mask=regard.causal(40))
    dy = np.random.default_rng(1).standard_normal((1, 2, 700, 16)).astype(np.float32)
    seen = set()
    try:
        for n in range(6):
            openmp.omp_set_num_threads(1 + n % 3)
            y, lse = run(prob)
            found = gradients(prob, y, lse, dy)
            seen.add(b"".join(a.tobytes() for a in (y, lse, *found.values())))
    finally:
        openmp.omp_set_num_threads(before)
    assert len(seen) == 1


READ_OUTS = ("max_score", "entropy", "effective_keys", "distance", "received", "similarity")


def _projected(rng, dtype, activation=None):
    """(q, k, v, score, the same scores in float64) for a query of size 10 and keys of size 7."""
    kind = TYPES.get(dtype, np.float64)
    q, _, _ = arrays(rng, (2, 4, 2, 37, 53, 10, 6), dtype)
    _, k, v = arrays(rng, (2, 4, 2, 37, 53, 7, 6), dtype)
    q, k = q / 3, k / 3
    wide_k = np.repeat(k, 2, axis=1).astype(float)
    if activation is None:
        w = rng.standard_normal((4, 10, 7)).astype(kind)
        return q, k, v, Bilinear(w), q.astype(float) @ w.astype(float) @ wide_k.swapaxes(-1, -2)
    w_q, w_k = (rng.standard_normal((n, 5)).astype(kind) for n in (10, 7))
    vector = rng.standard_normal((4, 5)).astype(kind)
    x = (q.astype(float) @ w_q)[:, :, :, None] + (wide_k @ w_k)[:, :, None]
    f = np.tanh(x) if activation == "tanh" else np.where(x > 0, x, 0.2 * x)
    scores = (f * vector[:, None, None]).sum(axis=-1)
    return q, k, v, Additive(w_q, w_k, vector, activation), scores


@pytest.mark.parametrize("activation", [None, *KINDS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_weights_and_read_outs_are_those_of_the_formula(kernel, dtype, activation):
    q, k, v, score, exact = _projected(np.random.default_rng(0), dtype, activation)
    mask = regard.causal(20)
    seen = np.tril(np.ones((37, 53), bool), 20)
    exact = np.where(seen, exact, -np.inf)
    p = np.exp(exact - exact.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    few = 1e-5 if dtype == "float32" else 1e-12
    options = {"score": score, "mask": mask, "backend": kernel}
    w = regard.weights(q, k, **options)
    np.testing.assert_allclose(regard.scores(q, k, **options), exact, rtol=few, atol=few)
    np.testing.assert_allclose(w.dense(), p, rtol=few, atol=few)
    y = p @ np.repeat(v, 2, axis=1)
    np.testing.assert_allclose(regard.attention(q, k, v, **options), y, rtol=few, atol=few)
    entropy = -(p * np.log(np.where(p == 0, 1, p))).sum(axis=-1)
    np.testing.assert_allclose(w.entropy(), entropy, rtol=few, atol=few)
    np.testing.assert_allclose(w.received(), p.sum(axis=2), rtol=few, atol=few)
    np.testing.assert_allclose(w[1:, 2:].dense(), p[1:, 2:], rtol=few, atol=few)
    np.testing.assert_allclose(w.mT @ y.astype(q.dtype), p.swapaxes(-1, -2) @ y, rtol=few, atol=few)
    found, read = w.attend(v, top_k=3, **dict.fromkeys(READ_OUTS, True))
    np.testing.assert_allclose(found, y, rtol=few, atol=few)
    np.testing.assert_allclose(read.top_k.weights, -np.sort(-p)[..., :3], rtol=few, atol=few)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, *KINDS])
def test_narrow_types_are_projected_too(dtype, activation):
    q, k, v, score, exact = _projected(np.random.default_rng(0), dtype, activation)
    y = regard.attention(q, k, v, score=score)
    assert y.dtype == q.dtype
    p = np.exp(exact - exact.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    truth_of = p @ np.repeat(v, 2, axis=1).astype(float)
    assert error(y, truth_of) < (4e-3 if dtype == "float16" else 3e-2)


def test_the_scale_of_bilinear_and_additive_scores_is_1_by_default():
    q, k, _, score, exact = _projected(np.random.default_rng(0), "float64")
    np.testing.assert_allclose(regard.scores(q, k, score=score), exact, rtol=1e-12)
    np.testing.assert_allclose(regard.scores(q, k, score=score, scale=2), 2 * exact, rtol=1e-12)


def test_layout_blhd_and_no_batch_dimension():
    q, k, v, score, _ = _projected(np.random.default_rng(0), "float32", "tanh")
    expected = regard.attention(q, k, v, score=score)
    turned = (a.swapaxes(1, 2).copy() for a in (q, k, v))
    found = regard.attention(*turned, score=score, layout="BLHD")
    np.testing.assert_allclose(found.swapaxes(1, 2), expected, rtol=1e-5, atol=1e-6)
    alone = regard.attention(q[1], k[1], v[1], score=score)
    np.testing.assert_allclose(alone, expected[1], rtol=1e-5, atol=1e-6)


def test_the_plan_names_the_score():
    q, k, v, score, _ = _projected(np.random.default_rng(0), "float32", "tanh")
    assert "score" in str(regard.plan(q, k, v, score=score))
    assert "additive, tanh" in str(regard.plan(q, k, v, score=score))


def _leaves(activation, per_head):
    torch.manual_seed(0)
    heads, key_heads = ((4,), (2,)) if per_head else ((), ())
    shapes = [(2, 4, 5, 10), (2, 2, 6, 7), (2, 2, 6, 3)]
    if activation is None:
        shapes += [(*heads, 10, 7)]
    else:
        shapes += [(*heads, 10, 3), (*key_heads, 7, 3), (*heads, 3)]
    made = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)

    def score(*weights):
        return Bilinear(*weights) if activation is None else Additive(*weights, activation)

    return tuple(made), score


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("activation", [None, *KINDS])
def test_gradients_of_all_tensors_once_and_twice(activation, per_head):
    leaves, score = _leaves(activation, per_head)

    def attend(q, k, v, *weights):
        options = {"softcap": 3.0, "mask": regard.prefix(5)}
        return regard.attention(q, k, v, score=score(*weights), **options)

    assert torch.autograd.gradcheck(attend, leaves)
    assert torch.autograd.gradgradcheck(attend, leaves)

    def turned(q, k, y, *weights):
        return regard.weights(q, k, score=score(*weights)).mT @ y

    y = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(turned, (*leaves[:2], y, *leaves[3:]))


@pytest.mark.parametrize("activation", [None, *KINDS])
def test_a_single_tensor_may_want_a_gradient(activation):
    leaves, score = _leaves(activation, True)

    def loss(q, k, v, *weights):
        return regard.attention(q, k, v, score=score(*weights)).square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    for n, gradient in enumerate(expected):
        some = [leaf if n == m else leaf.detach() for m, leaf in enumerate(leaves)]
        (found,) = torch.autograd.grad(loss(*some), [leaves[n]])
        torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("activation", [None, *KINDS])
def test_pytorchs_own_expression_agrees(activation):
    leaves, score = _leaves(activation, True)
    q, k, v, *weights = leaves
    ours = regard.attention(q, k, v, score=score(*weights))
    theirs = regard.attention(q, k, v, score=score(*weights), backend="torch")
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_torch_compile_sees_one_graph(activation):
    leaves, score = _leaves(activation, False)

    def attend(q, k, v, *weights):
        return regard.attention(q, k, v, score=score(*weights)).square().sum()

    expected = torch.autograd.grad(attend(*leaves), leaves)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(found, expected)


def test_autocast_projects_in_its_type_and_gives_back_the_tensors():
    q, k, v, w = (torch.randn(s) for s in ((1, 2, 5, 10), (1, 2, 6, 7), (1, 2, 6, 3), (10, 7)))
    expected = regard.attention(q, k, v, score=Bilinear(w))
    with torch.autocast("cpu", torch.bfloat16):
        found = regard.attention(q, k, v, score=Bilinear(w))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("mode", ["lazy", "stats"])
def test_watch_sees_additive_attention(mode, tmp_path):
    leaves, score = _leaves("leaky_relu", True)
    q, k, v, *weights = (leaf.detach().float() for leaf in leaves)

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return regard.attention(q, k, v, score=score(*weights))

    model, w = Model(), regard.weights(q, k, score=score(*weights))
    with regard.watch(model, mode=mode) as seen:
        torch.testing.assert_close(model(q, k, v), w @ v, rtol=0, atol=0)
    torch.testing.assert_close(seen[0].entropy(), w.entropy())
    seen.save(tmp_path / "run.regard", arrays=mode == "lazy")
    found = regard.load(tmp_path / "run.regard")[0].entropy()
    np.testing.assert_allclose(found, w.entropy(), rtol=1e-5)
    with regard.watch(model, heads=[3, 1]) as some:
        model(q, k, v)
    torch.testing.assert_close(some[0].dense(), w.dense()[:, [3, 1]])


def test_an_operator_notices_that_v_was_changed():
    leaves, score = _leaves("tanh", True)
    q, k, _, *weights = (leaf.detach() for leaf in leaves)
    w = regard.weights(q, k, score=score(*weights))
    independent = w.copy()
    expected = w.entropy()
    weights[2].mul_(2)
    with pytest.raises(regard.errors.StaleOperator):
        w.entropy()
    torch.testing.assert_close(independent.entropy(), expected)
