"""Rollout and relevance against the formulas with dense matrices, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import regard
from attending import Attend, Block
from regard import viewer
from regard.errors import FileFormatError, ModelError, OptionError, ShapeError
from regard.recording import page, watch
from regard.recording.entry import entries_of
from regard.recording.rollout import rollout


def watched(length=11, causal=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(Attend(is_causal=causal)) for _ in range(3))).double()
    x = torch.randn(2, length, 8, dtype=torch.float64)
    with watch(model, values=True, **options) as seen:
        score = model(x)[:, -1].square().sum()
    return seen, score


def dense(seen):
    return [weights.dense().double() for weights in seen]


@pytest.mark.parametrize("causal", [False, True])
def test_rollout(causal):
    seen, _ = watched(causal=causal)
    product = torch.eye(11, dtype=torch.float64)
    for p in dense(seen):
        product = (torch.eye(11) + p.mean(1)) / 2 @ product
    found = seen.rollout([-1, 3])
    np.testing.assert_allclose(found, product[:, [-1, 3]], atol=1e-14)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-14)
    np.testing.assert_array_equal(seen.rollout(), found[:, :1])


def test_rollout_by_value():
    seen, _ = watched()
    product = torch.eye(11, dtype=torch.float64)
    for entry, p in zip(seen.entries, dense(seen), strict=True):
        q = p * entry.flow.value.norm(dim=-1)[:, :, None]
        product = (torch.eye(11) + (q / q.sum(-1, keepdim=True)).mean(1)) / 2 @ product
    np.testing.assert_allclose(
        seen.rollout([5, 10], by_value=True), product[:, [5, 10]], atol=1e-14
    )


def test_rollout_of_arrays_and_chosen_layers():
    generator = np.random.default_rng(0)
    q, k = generator.standard_normal((2, 1, 4, 7, 8))
    entries = entries_of([regard.weights(q, k), regard.weights(k, q[:, :2])])
    product = np.eye(7)
    for entry in entries:
        product = (np.eye(7) + entry.weights.dense().mean(1)) / 2 @ product
    np.testing.assert_allclose(rollout(entries, range(7)), product, atol=1e-14)
    last = (np.eye(7) + entries[1].weights.dense().mean(1)) / 2
    np.testing.assert_allclose(rollout(entries, 2, layers=[1]), last[:, [2]], atol=1e-14)


@pytest.mark.parametrize("block", [1 << 22, 100])
def test_relevance(monkeypatch, block):
    from regard.recording import relevance

    monkeypatch.setattr(relevance, "_AT_ONCE", block)
    seen, score = watched()
    flows = [entry.flow for entry in seen.entries]
    gradients = torch.autograd.grad(score, [flow.output for flow in flows], retain_graph=True)
    whole = torch.eye(11, dtype=torch.float64)
    for p, flow, gradient in zip(dense(seen), flows, gradients, strict=True):
        whole = whole + (p * (gradient @ flow.value.mT)).relu().mean(1) @ whole
    found = seen.relevance(score, [-1, 4])
    np.testing.assert_allclose(found, whole[:, [-1, 4]], atol=1e-13)
    assert (found[:, 0] > 0).sum() > 11  # the score does depend on attention
    assert score.requires_grad and score.backward() is None  # its graph is still there


def test_gradients_of_weights_are_those_of_autograd():
    """∂z/∂p_ij = ∂z/∂y_i · v_j, on which relevance rests."""
    p = torch.rand(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    y = p @ v
    z = y.sin().sum()
    slope, wanted = torch.autograd.grad(z, [y, p])
    torch.testing.assert_close(slope @ v.mT, wanted)


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [None, [2, 1]])
def test_relevance_in_a_model_of_transformers(impl, heads):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, vocab_size=50, intermediate_size=48)
    config._attn_implementation = "eager"
    model = transformers.BertModel(config).eval().double()
    ids = torch.randint(3, 50, (2, 9))
    shown = model(ids, output_attentions=True)
    slopes = torch.autograd.grad(shown.last_hidden_state[:, 0, 3].sum(), shown.attentions)
    whole = torch.eye(9, dtype=torch.float64)
    for p, slope in zip(shown.attentions, slopes, strict=True):
        product = (p * slope).relu()
        whole = whole + (product if heads is None else product[:, heads]).mean(1) @ whole
    model.set_attn_implementation(impl)
    with watch(model, heads=heads, values=True) as seen:
        score = model(ids).last_hidden_state[:, 0, 3].sum()
    np.testing.assert_allclose(seen.relevance(score, 0), whole[:, [0]].detach(), atol=1e-12)


def test_what_is_no_chain_of_layers_is_refused():
    seen, score = watched()
    q = torch.randn(1, 2, 5, 8)
    entries = entries_of([regard.weights(q, q), regard.weights(q[:, :, :3], q)])
    with pytest.raises(OptionError, match=r"\(3, 5\), \(5, 5\).*layers="):
        rollout(entries)
    with pytest.raises(OptionError, match="one number with a gradient"):
        seen.relevance(torch.ones(2))
    for wrong in ({"layers": [9]}, {"layers": 0}, {"targets": 99}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            seen.rollout(**wrong)
        with pytest.raises(OptionError, match=next(iter(wrong))):
            seen.relevance(score, **wrong)
    with pytest.raises(OptionError, match="layers"):
        seen.rollout(layers=[9], by_value=True)
    with pytest.raises(OptionError, match="a score of type float"):
        seen.relevance(1.0)
    with pytest.raises(ModelError, match="none of the attention outputs"):
        seen.relevance(torch.ones(1, requires_grad=True))
    model = Block(Attend())
    with watch(model) as without:
        score = model(torch.randn(1, 5, 8)).sum()
    with pytest.raises(OptionError, match="watch with values=True"):
        without.relevance(score)
    with pytest.raises(OptionError, match="watch with values=True"):
        without.rollout(by_value=True)
    with watch(model, mode="stats") as stats:
        model(torch.randn(1, 5, 8))
    with pytest.raises(OptionError, match='mode="lazy"'):
        stats.rollout()


def test_the_page_offers_rollout_where_all_layers_are_there():
    seen, _ = watched()
    (call,) = page.record(seen, batch=1).rollouts
    np.testing.assert_allclose(call.dense[0], seen.rollout(range(11))[1], atol=1e-7)
    partial, _ = watched(layers=[0, 1])
    assert "Of 3 modules that attended, 2 were kept." in partial.notes
    twice = nn.Sequential(Block(Attend()))
    with watch(twice, mode="lazy") as passes:
        twice(torch.randn(1, 5, 8))
        twice(torch.randn(1, 5, 8))
    with watch(twice, mode="stats") as of_read_outs:
        twice(torch.randn(1, 5, 8))
    for without in (partial, watched(heads=[1])[0], passes, of_read_outs):
        assert page.record(without).rollouts == []


def test_pages_of_two_recordings(tmp_path):
    seen, _ = watched()
    changed, _ = watched(causal=False)
    changed.html(tmp_path / "both.html", against=seen)
    shown = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert shown == viewer.page(page.record(changed), against=page.record(seen))
    with pytest.raises(ShapeError, match="to compare"):
        changed.html(tmp_path / "both.html", against=watched(length=5)[0])
    with pytest.raises(FileFormatError, match=r"no/page.html cannot be written"):
        seen.html(tmp_path / "no" / "page.html")
