"""Attention along the edges of a graph is attention with the same pairs as a dense mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regard
from problems import problem
from regard.errors import BackendError, MaskError, ShapeError
from regard.masks import edge_count
from test_native import check, check_backward

SIZES = ["float16", "bfloat16", "float32", "float64"]


def edges(rng, keys: int, queries: int, share: float = 0.2) -> np.ndarray:
    """(2, n) in a random order; query 1 has no neighbour, key 2 is nobody's."""
    there = rng.random((keys, queries)) < share
    there[:, 1] = there[2] = False
    return rng.permutation(np.argwhere(there)).T


def pair(rng, nodes=30, size=8, dtype=torch.float64, heads=2):
    """q, k, v, and edges between them."""
    made = [torch.randn(1, heads, nodes, size, dtype=dtype, requires_grad=True) for _ in range(3)]
    return made, torch.from_numpy(edges(rng, nodes, nodes))


def dense(found: torch.Tensor, nodes: int) -> torch.Tensor:
    mask = torch.zeros(nodes, nodes, dtype=torch.bool)
    mask[found[1], found[0]] = True
    return mask


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("shape", [(1, 8, 8, 60, 60, 16, 16), (2, 4, 2, 7, 90, 21, 70)], ids=str)
def test_outputs_and_gradients(isa, shape, dtype):
    rng = np.random.default_rng(0)
    found = edges(rng, shape[4], shape[3])
    kind = "float64" if dtype == "float64" else "float32"
    options = [
        {},
        {"softcap": 1.5, "sinks": rng.standard_normal(shape[1]).astype(kind)},
        {"bias": rng.standard_normal((shape[1], 1, found.shape[1])).astype(kind), "softcap": 2.0},
        {"bias": rng.standard_normal((shape[0], 1, 1, found.shape[1])).astype(kind)},
        {"bias": rng.standard_normal(found.shape[1]).astype(kind), "scale": -0.3},
        {"dropout_p": 0.4, "dropout_seed": 7},
    ]
    for given in options:
        prob = problem(rng, shape, dtype, mask=regard.graph(found), **given)
        check(prob)
        check_backward(prob)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_bias_that_all_edges_share(isa, heads, dtype):
    rng = np.random.default_rng(3)
    found = edges(rng, 90, 70)
    # Beside a sink it counts.
    options = {name: rng.standard_normal(4).astype(dtype) for name in ("sinks", "bias")}
    options["bias"] = options["bias"][:heads, None, None]
    check_backward(
        problem(rng, (2, 4, 2, 70, 90, 16, 16), dtype, mask=regard.graph(found), **options)
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_edges_of_unsigned_integers(dtype):
    found = np.array([[0, 5], [1, 0]])
    q = np.ones((1, 2, 6, 4), "f4")
    one, other = (regard.weights(q, q, mask=regard.graph(e)) for e in (found, found.astype(dtype)))
    np.testing.assert_array_equal(one.dense(), other.dense())


def test_a_graph_and_many_masks_are_counted_at_once():
    mask = regard.graph(np.array([[0, 5], [1, 0]]))
    for n in range(200):
        mask = mask & regard.prefix(n + 1)
    assert edge_count(mask) == 2


def test_a_node_of_many_edges_and_values_of_as_many_heads_as_queries(isa):
    rng = np.random.default_rng(1)
    found = edges(rng, 2000, 5, 0.9)
    prob = problem(rng, (1, 4, 2, 5, 2000, 16, 12), mask=regard.graph(found))
    value = rng.standard_normal((1, 4, 2000, 12)).astype(np.float32)
    check(prob.with_value(value))
    check_backward(prob.with_value(value))


def test_the_number_of_threads_changes_no_bit():
    rng = np.random.default_rng(2)
    (q, k, v), _ = pair(rng, 3000, 16, torch.float32)
    mask = regard.graph(edges(rng, 3000, 3000, 0.01))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = regard.attention(q, k, v, mask=mask)
        results.append([y, *torch.autograd.grad(y, (q, k, v), torch.ones_like(y))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_hidden_nodes_do_not_arrive():
    rng = np.random.default_rng(3)
    (q, k, v), found = pair(rng)
    expected = regard.attention(q, k, v, mask=regard.graph(found))
    spoilt_k, spoilt_v = k.detach().clone(), v.detach().clone()
    spoilt_k[..., 2, :], spoilt_v[..., 2, :] = torch.nan, torch.inf
    assert torch.equal(regard.attention(q, spoilt_k, spoilt_v, mask=regard.graph(found)), expected)
    assert not expected[..., 1, :].any()


def test_graphs_combine_with_masks_and_keep_the_numbers_of_their_edges():
    rng = np.random.default_rng(4)
    (q, k, v), found = pair(rng)
    seen, bias = dense(found, 30), torch.randn(found.shape[1], dtype=q.dtype, requires_grad=True)
    wide = torch.zeros(30, 30, dtype=q.dtype).index_put((found[1], found[0]), bias)
    keep = torch.rand(30, 30) < 0.5
    others = torch.from_numpy(edges(rng, 30, 30, 0.6))
    conditions = [
        (regard.causal(), torch.ones(30, 30).tril().bool()),
        (keep, keep),
        (regard.prefix(9) & keep, keep & (torch.arange(30) < 9)),
        (regard.graph(others), dense(others, 30)),
    ]
    for mask, shown in conditions:
        ours = regard.attention(q, k, v, mask=regard.graph(found) & mask, bias=bias)
        theirs = regard.attention(q, k, v, mask=seen & shown, bias=wide)
        torch.testing.assert_close(ours, theirs)
        leaves = (q, k, v, bias)
        dy = torch.randn_like(ours)
        found_gradients = torch.autograd.grad(ours, leaves, dy)
        for one, other in zip(
            found_gradients, torch.autograd.grad(theirs, leaves, dy, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(one, other)
    ours = regard.attention(q, k, v, mask=keep & regard.graph(found), bias=bias)
    torch.testing.assert_close(ours, regard.attention(q, k, v, mask=seen & keep, bias=wide))
    either = regard.attention(q, k, v, mask=regard.graph(found) | regard.prefix(2))
    shown = seen | (torch.arange(30) < 2)
    torch.testing.assert_close(either, regard.attention(q, k, v, mask=shown))


def test_weights_on_edges_in_the_callers_order():
    rng = np.random.default_rng(5)
    (q, k, v), found = pair(rng)
    bias = torch.randn(2, 1, found.shape[1], dtype=q.dtype)
    weights = regard.weights(q, k, mask=regard.graph(found), bias=bias)
    on_edges = weights.on_edges()
    assert on_edges.shape == (1, 2, found.shape[1])
    torch.testing.assert_close(on_edges, weights.dense()[..., found[1], found[0]])
    torch.testing.assert_close(weights[:, 1].on_edges(), on_edges[:, 1])
    reference = regard.weights(q, k, mask=regard.graph(found), bias=bias, backend="reference")
    torch.testing.assert_close(reference.on_edges(), on_edges)
    wide = torch.zeros(2, 30, 30, dtype=q.dtype)
    wide[:, found[1], found[0]] = bias[:, 0]
    same = regard.weights(q, k, mask=dense(found, 30), bias=wide)
    torch.testing.assert_close(weights.received(), same.received())
    torch.testing.assert_close(weights.top_k(3).keys, same.top_k(3).keys)
    torch.testing.assert_close(weights.mT @ v, same.mT @ v)
    with pytest.raises(MaskError, match=r"mask=regard\.graph"):
        same.on_edges()


def test_every_way_that_pytorch_takes():
    rng = np.random.default_rng(6)
    (q, k, v), found = pair(rng, nodes=12)
    mask, bias = regard.graph(found), torch.randn(found.shape[1], dtype=q.dtype)
    expected = regard.attention(q, k, v, mask=mask, bias=bias)
    torch.testing.assert_close(
        regard.attention(q, k, v, mask=mask, bias=bias, backend="torch"), expected
    )
    compiled = torch.compile(
        lambda *a: regard.attention(*a, mask=mask, bias=bias), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(q, k, v), expected)
    bias.requires_grad_()

    def attend(*arrays):
        return regard.attention(*arrays[:3], mask=mask, bias=arrays[3])

    assert torch.autograd.gradcheck(attend, (q, k, v, bias))
    assert torch.autograd.gradgradcheck(attend, (q, k, v, bias))


def test_jax_takes_graphs_as_dense_masks():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(7)
    (q, k, v), found = pair(rng, dtype=torch.float32)
    arrays = [jax.numpy.asarray(x.detach().numpy()) for x in (q, k, v)]
    y = regard.attention(*arrays, mask=regard.graph(found))
    np.testing.assert_allclose(
        y, regard.attention(q, k, v, mask=regard.graph(found)).detach(), atol=1e-5
    )
    with pytest.raises(BackendError, match="edges of a graph"):
        regard.attention(*arrays, mask=regard.graph(found), bias=jax.numpy.zeros(found.shape[1]))


def test_watched_graphs_are_recorded():
    rng = np.random.default_rng(8)
    (q, k, v), found = pair(rng)
    bias = torch.randn(found.shape[1], dtype=q.dtype)

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return regard.attention(q, k, v, mask=regard.graph(found), bias=bias)

    model = Model()
    with regard.watch(model) as seen:
        model(q, k, v)
    weights = regard.weights(q, k, mask=regard.graph(found), bias=bias)
    torch.testing.assert_close(seen[0].dense(), weights.dense().detach())


def test_what_is_no_graph_says_why():
    with pytest.raises(MaskError, match=r"pass edges\.T"):
        regard.graph(np.zeros((5, 2), int))
    with pytest.raises(MaskError, match="integers"):
        regard.graph(np.zeros((2, 5)))
    with pytest.raises(MaskError, match="0 or more"):
        regard.graph(np.array([[0, -1], [1, 1]]))
    with pytest.raises(MaskError, match=r"\(3, 1\) twice, as edges 0 and 2"):
        regard.graph(np.array([[3, 2, 3], [1, 1, 1]]))
    (q, k, v), found = pair(np.random.default_rng(9))
    with pytest.raises(MaskError, match="30 queries and 30 keys"):
        regard.attention(q, k, v, mask=regard.graph([[30], [2]]))
    with pytest.raises(ShapeError, match=r"\(B, H, 1, edges\) = \(1, 2, 1, "):
        regard.attention(q, k, v, mask=regard.graph(found), bias=torch.zeros(30, 30).double())
    padding = regard.keys(torch.ones(1, 30).bool()) & regard.keys(torch.rand(2, 30) < 0.5)
    with pytest.raises(MaskError, match="all of them share"):
        wide = (x.expand(2, -1, -1, -1) for x in (q, k, v))
        regard.attention(*wide, mask=regard.graph(found) & padding)


def test_a_graph_without_edges():
    (q, k, v), _ = pair(np.random.default_rng(10))
    y = regard.attention(q, k, v, mask=regard.graph(np.zeros((2, 0), int)))
    assert not y.any()
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), (q, k, v)))
