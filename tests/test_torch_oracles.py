"""Attention as others define it: PyTorch's flex_attention, PyTorch Geometric's graph layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regard

pytestmark = pytest.mark.filterwarnings("ignore")  # flex_attention wants to be compiled

QUERIES, KEYS = 6, 9
generator = torch.Generator().manual_seed(0)
Q, K, V = (torch.randn(2, 4, n, 8, generator=generator) for n in (QUERIES, KEYS, KEYS))
LENGTHS, OFFSETS = torch.tensor([9, 4]), torch.tensor([3, -2])
SEEN = torch.rand(2, 1, QUERIES, KEYS, generator=generator) < 0.6
SEEN[0, 0, 2] = False  # a query that sees nothing
IDS = torch.tensor([[0, 0, 1, 1, 2, -1, 2, 0, 3], [1, 1, 1, 0, 0, 0, 0, 1, 1]])
KEEP = torch.rand(2, KEYS, generator=generator) < 0.6
PATTERN = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
EDGES = torch.tensor([[1, 2, 8, 0, 4], [0, 0, 5, 3, 3]])
EDGE = torch.zeros(QUERIES, KEYS, dtype=torch.bool).index_put(
    (EDGES[1], EDGES[0]), torch.tensor(True)
)
LOWER_RIGHT = KEYS - QUERIES

# Our mask, and the same as a function (batch, head, query, key).
MASKS = {
    "upper left": (regard.causal("upper_left"), lambda b, h, i, j: j <= i),
    "lower right": (regard.causal("lower_right"), lambda b, h, i, j: j <= i + LOWER_RIGHT),
    "offsets": (regard.causal(OFFSETS), lambda b, h, i, j: j <= i + OFFSETS[b]),
    "window": (
        regard.window(2, 1, "upper_left"),
        lambda b, h, i, j: (j - i >= -2) & (j - i <= 1),
    ),
    "half-open window": (
        regard.window(None, 1, "lower_right"),
        lambda b, h, i, j: j - i - LOWER_RIGHT <= 1,
    ),
    "lengths": (
        regard.lengths(keys=LENGTHS, queries=LENGTHS - 3),
        lambda b, h, i, j: (j < LENGTHS[b]) & (i < LENGTHS[b] - 3),
    ),
    "keys": (regard.keys(KEEP), lambda b, h, i, j: KEEP[b, j]),
    "documents": (
        regard.documents(IDS[:, :QUERIES], IDS),
        lambda b, h, i, j: (IDS[b, i] == IDS[b, j]) & (IDS[b, i] >= 0),
    ),
    "prefix": (regard.prefix(LENGTHS), lambda b, h, i, j: j < LENGTHS[b]),
    "blocks": (
        regard.blocks(PATTERN, size=3),
        lambda b, h, i, j: PATTERN[i // 3, j // 3],
    ),
    "graph": (regard.graph(EDGES), lambda b, h, i, j: EDGE[i, j]),
    "array": (SEEN, lambda b, h, i, j: SEEN[b, 0, i, j]),
    "both": (
        regard.causal("lower_right") & regard.keys(KEEP),
        lambda b, h, i, j: (j <= i + LOWER_RIGHT) & KEEP[b, j],
    ),
    "either": (
        regard.prefix(2) | (regard.window(1, 0, "upper_left") & SEEN),
        lambda b, h, i, j: (j < 2) | ((j <= i) & (j >= i - 1) & SEEN[b, 0, i, j]),
    ),
}


def flex(mask=None, score=None, q=Q, k=K, v=V, **options):
    block_mask = None
    if mask is not None:
        block_mask = create_block_mask(mask, 2, 4, q.shape[2], k.shape[2], device="cpu")
    return flex_attention(q, k, v, score_mod=score, block_mask=block_mask, **options)


@pytest.mark.parametrize(("mask", "function"), MASKS.values(), ids=MASKS)
def test_masks(mask, function):
    torch.testing.assert_close(regard.attention(Q, K, V, mask=mask), flex(function))


@pytest.mark.parametrize("border", ["clip", "shift"])
def test_neighborhoods(border):
    q = torch.randn(2, 4, 12, 8, generator=generator)  # a grid of 3 by 4
    radius = (1, 1)

    def near(size, radius, i, j):
        if border == "clip":
            return (i - j).abs() <= radius
        start = (i - radius).clamp(0, size - 2 * radius - 1)
        return (j >= start) & (j <= start + 2 * radius)

    def function(b, h, i, j):
        return near(3, 1, i // 4, j // 4) & near(4, 1, i % 4, j % 4)

    mask = regard.neighborhood((3, 4), radius, border=border)
    torch.testing.assert_close(regard.attention(q, q, q, mask=mask), flex(function, None, q, q, q))


BIAS = torch.randn(4, QUERIES, KEYS, generator=generator)
SLOPES = torch.tensor([2.0 ** -(n + 1) for n in range(4)])
DISTANCE = torch.arange(KEYS) - torch.arange(QUERIES)[:, None]


def capped(score, b, h, i, j):
    return 2 * torch.tanh(score / 2) + BIAS[h, i, j]


SCORES = {
    "bias": ({"bias": BIAS}, lambda score, b, h, i, j: score + BIAS[h, i, j]),
    "distances": (
        {"bias": SLOPES[:, None, None] * DISTANCE},
        lambda score, b, h, i, j: score + SLOPES[h] * (j - i),
    ),
    "softcap, then bias": ({"bias": BIAS, "softcap": 2.0}, capped),
}


@pytest.mark.parametrize(("options", "score"), SCORES.values(), ids=SCORES)
def test_scores(options, score):
    mask, function = MASKS["lower right"]
    found = regard.attention(Q, K, V, mask=mask, scale=0.3, **options)
    torch.testing.assert_close(found, flex(function, score, scale=0.3))


def test_grouped_heads():
    k, v = K[:, :2], V[:, :2]
    expected = flex(MASKS["documents"][1], None, Q, k, v, enable_gqa=True)
    torch.testing.assert_close(regard.attention(Q, k, v, mask=MASKS["documents"][0]), expected)


def a_graph():
    """Nodes, and edges among them but for the last, which has no neighbours."""
    edges = np.random.default_rng(0).integers(0, 7, (2, 20))
    return torch.randn(8, 5, generator=generator), torch.from_numpy(np.unique(edges, axis=1))


def test_pytorch_geometrics_transformer():
    geometric = pytest.importorskip("torch_geometric.nn")
    nodes, edges = a_graph()
    nodes.requires_grad_()
    layer = geometric.TransformerConv(5, 4, heads=3, root_weight=False)
    expected, (_, alpha) = layer(nodes, edges, return_attention_weights=True)
    query, key, value = (
        linear(nodes).unflatten(-1, (3, 4)).transpose(0, 1)
        for linear in (layer.lin_query, layer.lin_key, layer.lin_value)
    )
    mask = regard.graph(edges)
    found = regard.attention(query, key, value, mask=mask)
    same_layer(found, expected.unflatten(-1, (3, 4)).transpose(0, 1), nodes)
    weights = regard.weights(query, key, mask=mask).on_edges()
    torch.testing.assert_close(weights, alpha.detach().T)


def same_layer(found, expected, nodes):
    torch.testing.assert_close(found, expected)
    assert not found[:, 7].any()  # the node without neighbours
    gradients = (
        torch.autograd.grad(y.square().sum(), nodes, retain_graph=True) for y in (found, expected)
    )
    torch.testing.assert_close(*gradients)


def test_pytorch_geometrics_gat():
    """GAT's scores, leaky ReLU of a sum, are a bias on edges; its sum over neighbours is ours."""
    geometric = pytest.importorskip("torch_geometric.nn")
    nodes, edges = a_graph()
    nodes.requires_grad_()
    layer = geometric.GATConv(5, 4, heads=3, add_self_loops=False, bias=False)
    expected = layer(nodes, edges).unflatten(-1, (3, 4)).transpose(0, 1)
    value = layer.lin(nodes).unflatten(-1, (3, 4))
    source, target = ((value * vector).sum(-1).T for vector in (layer.att_src, layer.att_dst))
    score = torch.nn.functional.leaky_relu(source[:, edges[0]] + target[:, edges[1]], 0.2)
    zeros = value.new_zeros(3, 8, 1)
    found = regard.attention(
        zeros, zeros, value.transpose(0, 1), mask=regard.graph(edges), bias=score[:, None]
    )
    same_layer(found, expected, nodes)
