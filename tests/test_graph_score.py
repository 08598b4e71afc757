"""Additive scores along the edges of a graph: GATv2's attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regard
import test_score
from test_graph import SIZES, dense, edges, pair
from test_score import additive

KINDS = ["tanh", "leaky_relu"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("shape", [(1, 8, 8, 60, 60, 16, 16), (2, 4, 2, 7, 90, 21, 70)], ids=str)
def test_outputs_and_gradients(isa, shape, dtype, kind):
    rng = np.random.default_rng(0)
    found = edges(rng, shape[4], shape[3])
    wide = "float64" if dtype == "float64" else "float32"
    large = 30.0 if kind == "tanh" else 3.0
    options = [
        {"per_head": False},
        {"softcap": 1.5, "sinks": rng.standard_normal(shape[1]).astype(wide), "scale": -0.7},
        {"bias": rng.standard_normal((shape[1], 1, found.shape[1])).astype(wide), "softcap": 2.0},
        {"bias": rng.standard_normal(found.shape[1]).astype(wide), "size": large},
        {"dropout_p": 0.4, "dropout_seed": 7},
    ]
    for given in options:
        test_score.check(additive(rng, shape, dtype, kind, mask=regard.graph(found), **given))


def test_each_gradient_alone(isa):
    rng = np.random.default_rng(1)
    mask = regard.graph(edges(rng, 40, 50))
    prob = additive(rng, (1, 2, 1, 50, 40, 12, 9), mask=mask, bias=np.ones(1, np.float32))
    y, lse = test_score.run(prob)
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    whole = test_score.gradients(prob, y, lse, dy)
    for name, expected in whole.items():
        alone = np.full_like(expected, 7)
        test_score.native.backward(prob, y, lse, dy, None, **{f"d_{name}": alone})
        assert np.array_equal(alone, expected), name


def test_many_pieces_and_any_number_of_threads():
    rng = np.random.default_rng(2)
    (q, k, v), _ = pair(rng, 900, 16, torch.float32)
    mask, vector = regard.graph(edges(rng, 900, 900, 0.05)), torch.randn(2, 16, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = regard.attention(q, k, v, mask=mask, score=regard.Additive(None, None, vector))
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v, vector))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    seen = torch.from_numpy(mask.visibility(regard.masks.Extent((1,), 2, 900, 900)).as_dense(900))
    y = regard.attention(q, k, v, mask=seen, score=regard.Additive(None, None, vector))
    expected = [y, *torch.autograd.grad(y.square().sum(), (q, k, v, vector))]
    for one, other in zip(results[0], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_weight_brings_nothing_in(kind):
    rng = np.random.default_rng(3)
    (q, k, v), found = pair(rng)
    vector = torch.ones(8, dtype=q.dtype, requires_grad=True)
    bias = torch.zeros(found.shape[1], dtype=q.dtype).masked_fill(found[0] == 4, -torch.inf)
    k.data[..., 4, :] = -torch.inf
    score = regard.Additive(None, None, vector, kind)
    y = regard.attention(q, k, v, mask=regard.graph(found), bias=bias, score=score)
    wide = regard.attention(q, k, v, mask=dense(found, 30) & (torch.arange(30) != 4), score=score)
    torch.testing.assert_close(y, wide)
    assert not y[..., 1, :].any()  # it has no neighbour
    leaves = (q, v, vector)
    for one, other in zip(
        torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(wide.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_that_pytorch_takes(kind):
    rng = np.random.default_rng(4)
    (q, k, v), found = pair(rng, nodes=10)
    mask, bias = regard.graph(found), torch.randn(found.shape[1], dtype=q.dtype)
    wq, wk = (torch.randn(2, 8, 5, dtype=q.dtype, requires_grad=True) for _ in range(2))
    vector = torch.randn(2, 5, dtype=q.dtype, requires_grad=True)

    def attend(q, k, v, wq, wk, vector, bias, **options):
        score = regard.Additive(wq, wk, vector, kind)
        return regard.attention(q, k, v, mask=mask, bias=bias, score=score, **options)

    leaves = (q, k, v, wq, wk, vector, bias)
    expected = attend(*leaves)
    torch.testing.assert_close(attend(*leaves, backend="torch"), expected)
    torch.testing.assert_close(attend(*leaves, backend="reference"), expected)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), expected)
    bias.requires_grad_()
    assert torch.autograd.gradcheck(attend, leaves)
    assert torch.autograd.gradgradcheck(attend, leaves)


def test_weights_on_edges_and_other_read_outs():
    rng = np.random.default_rng(5)
    (q, k, v), found = pair(rng)
    score = regard.Additive(None, None, torch.randn(8, dtype=q.dtype), "leaky_relu")
    weights = regard.weights(q, k, mask=regard.graph(found), score=score)
    same = regard.weights(q, k, mask=dense(found, 30), score=score)
    on_edges = weights.on_edges()
    torch.testing.assert_close(on_edges, same.dense()[..., found[1], found[0]].detach())
    torch.testing.assert_close(weights.entropy(), same.entropy())
    torch.testing.assert_close(weights.lse(), same.lse())
    torch.testing.assert_close(weights.mT @ v, same.mT @ v)
    torch.testing.assert_close(weights[:, 1].on_edges(), on_edges[:, 1])


def test_jax_and_numpy_agree():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal((1, 2, 30, 8)).astype(np.float32) for _ in range(3)]
    vector = rng.standard_normal(8).astype(np.float32)
    mask = regard.graph(edges(rng, 30, 30))
    y = regard.attention(*arrays, mask=mask, score=regard.Additive(None, None, vector))

    def attend(q, k, v, vector):
        return regard.attention(q, k, v, mask=mask, score=regard.Additive(None, None, vector))

    np.testing.assert_allclose(jax.jit(attend)(*arrays, vector), y, rtol=1e-4, atol=1e-5)
    found = jax.grad(lambda *a: attend(*a).sum(), (0, 1, 2, 3))(*arrays, vector)
    leaves = [torch.from_numpy(a).requires_grad_() for a in (*arrays, vector)]
    expected = torch.autograd.grad(attend(*leaves).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_it_is_pytorch_geometrics_gatv2():
    geometric = pytest.importorskip("torch_geometric.nn")
    rng = np.random.default_rng(7)
    torch.manual_seed(7)
    conv = geometric.GATv2Conv(6, 5, heads=3, add_self_loops=False)
    found = torch.from_numpy(edges(rng, 20, 20))
    x = torch.randn(20, 6, requires_grad=True)
    theirs, (_, alpha) = conv(x, found, return_attention_weights=True)

    source, target = (line(x).view(20, 3, 5) for line in (conv.lin_l, conv.lin_r))
    score = regard.Additive(None, None, conv.att[0], "leaky_relu", conv.negative_slope)
    mask = regard.graph(found)
    ours = regard.attention(target, source, source, mask=mask, score=score, layout="BLHD")
    ours = ours.flatten(1) + conv.bias
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weights = regard.weights(target, source, mask=mask, score=score, layout="BLHD")
    torch.testing.assert_close(weights.on_edges().T, alpha.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[1], conv.bias)  # a node without neighbours
    leaves = (x, *conv.parameters())
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), leaves),
        torch.autograd.grad(theirs.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
