"""AdditiveAttention and BilinearAttention by their formulas, in float64."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.layers import AdditiveAttention, BilinearAttention

B, L, S = 3, 5, 7
QUERY, KEY = 10, 7  # of different sizes, which no dot product takes
SEEN = torch.arange(L * S).reshape(L, S) % 3 != 1


def inputs(seed=0):
    torch.manual_seed(seed)
    query = torch.randn(B, L, QUERY, dtype=torch.float64, requires_grad=True)
    key = torch.randn(B, S, KEY, dtype=torch.float64, requires_grad=True)
    value = torch.randn(B, S, 4, dtype=torch.float64, requires_grad=True)
    return query, key, value


def additive_scores(layer, query, key):
    hidden = query[:, :, None] @ layer.query.weight.T + layer.query.bias
    hidden = hidden + key[:, None] @ layer.key.weight.T
    return (torch.tanh(hidden) * layer.vector).sum(-1)


def bilinear_scores(layer, query, key):
    return torch.einsum("bic,dc,bjd->bij", query, layer.matrix.weight, key)


LAYERS = {
    "additive": (AdditiveAttention, additive_scores),
    "bilinear": (BilinearAttention, bilinear_scores),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    torch.manual_seed(1)
    make, scores = LAYERS[request.param]
    return make(QUERY, KEY).double(), scores


@pytest.mark.parametrize("seen", [None, SEEN], ids=["all", "masked"])
def test_values_and_gradients_by_the_formula(kind, seen):
    layer, scores = kind
    query, key, value = inputs()
    expected = scores(layer, query, key)
    if seen is not None:
        expected = expected.masked_fill(~seen, -torch.inf)
    weights = expected.softmax(-1)
    expected = weights @ value
    output, found = layer(query, key, value, mask=seen, return_weights=True)
    assert found.shape == (B, 1, L, S)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.dense()[:, 0], weights, rtol=1e-9, atol=1e-9)
    learned = (query, key, value, *layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), learned),
        torch.autograd.grad(expected.square().sum(), learned),
        rtol=1e-8,
        atol=1e-9,
    )


def test_values_are_the_keys_unless_given(kind):
    layer, _ = kind
    query, key, _ = inputs()
    torch.testing.assert_close(layer(query, key), layer(query, key, key), rtol=0, atol=0)


def test_keys_can_be_projected_once(kind):
    layer, _ = kind
    query, key, value = inputs()
    held = layer.project(key, value)
    torch.testing.assert_close(layer(query, held), layer(query, key, value), rtol=0, atol=0)


def test_the_weights_can_be_read_out(kind):
    layer, _ = kind
    query, key, value = inputs()
    mask = regard.lengths(keys=torch.tensor([7, 3, 1]))
    output, weights = layer(query, key, value, mask=mask, return_weights=True)
    torch.testing.assert_close((weights @ value[:, :, None])[:, :, 0], output)
    assert not weights.received()[1, 0, 3:].any()
    torch.testing.assert_close(weights.max_weight()[2], torch.ones(1, L, dtype=torch.float64))


def test_watch_sees_it(kind):
    layer, _ = kind
    query, key, value = inputs()
    expected = layer(query, key, value, return_weights=True)[1]
    with regard.watch(torch.nn.ModuleDict({"cross": layer})) as seen, torch.no_grad():
        layer(query, key, value)
    assert [weights.name for weights in seen] == ["cross"]
    torch.testing.assert_close(seen[0].dense(), expected.dense())


def test_bfloat16_by_autocast(kind):
    layer = kind[0].float()
    query, key, value = (x.detach().float() for x in inputs())
    expected = layer(query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(query, key.bfloat16(), value.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


def test_compiled_in_one_graph(kind):
    layer = kind[0]
    query, key, value = inputs()
    output = torch.compile(layer, fullgraph=True, backend="aot_eager")(query, key, value)
    torch.testing.assert_close(output, layer(query, key, value))
