"""Watching models that attend with Regard: read-outs come from the sweep that makes the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regard
from regard import dispatch
from regard.recording import watch
from regard.recording.summary import Summary

X = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(2))


class Own(nn.Module):
    """Projects, and attends with Regard."""

    def __init__(self, layout="BHLD", **options):
        super().__init__()
        torch.manual_seed(1)
        self.qkv, self.layout, self.options = nn.Linear(8, 24), layout, options

    def forward(self, x):
        query, key, value = (a.unflatten(-1, (2, -1)) for a in self.qkv(x).chunk(3, -1))
        if self.layout == "BHLD":
            query, key, value = (a.transpose(1, 2) for a in (query, key, value))
        return regard.attention(query, key, value, layout=self.layout, **self.options)


@pytest.fixture
def sweeps(monkeypatch):
    """What the kernels were asked for: an output, read-outs, or both."""
    asked = []
    forward, read_out = dispatch.forward, dispatch.read_out

    def plain(problem, output, lse, backend=None):
        asked.append("output" if output is not None else "lse")
        forward(problem, output, lse, backend)

    def both(problem, output, *rest, **options):
        asked.append("read-outs" if output is None else "both")
        read_out(problem, output, *rest, **options)

    monkeypatch.setattr(dispatch, "forward", plain)
    monkeypatch.setattr(dispatch, "read_out", both)
    return asked


def alike(stats, lazy):
    """That summaries hold what the operators would tell."""
    for summary, operator in zip(stats, lazy, strict=True):
        assert isinstance(summary, Summary) and summary.shape == operator.shape
        for name in ("entropy", "received", "lse", "distance", "max_weight"):
            torch.testing.assert_close(getattr(summary, name)(), getattr(operator, name)())
        assert torch.equal(summary.top_k(3).keys, operator.top_k(3).keys)


@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
@pytest.mark.parametrize("options", [{}, {"mask": regard.causal("lower_right"), "softcap": 3.0}])
def test_output_and_read_outs_share_one_sweep(sweeps, layout, options):
    model = Own(layout, **options)
    with torch.no_grad():
        alone = model(X)
        with watch(model) as lazy:
            model(X)
        sweeps.clear()
        with watch(model, mode="stats") as stats:
            watched = model(X)
    assert sweeps == ["both"]
    assert torch.equal(watched, alone) and watched.stride() == alone.stride()
    alike(stats, lazy)


def test_gradients_are_those_of_the_model_alone(sweeps):
    model = Own()
    alone = torch.autograd.grad(model(X).sum(), list(model.parameters()))
    sweeps.clear()
    with watch(model, mode="stats") as stats:
        watched = torch.autograd.grad(model(X).sum(), list(model.parameters()))
    assert sweeps == ["output", "read-outs"]  # of which the second takes the first's log-sum-exp
    assert all(map(torch.equal, watched, alone)) and len(stats) == 1


def test_read_outs_that_cannot_share_the_sweep_are_made_after_it(sweeps):
    dropping, several = Own(dropout_p=0.5, dropout_seed=3), Own()
    with torch.no_grad():
        for model, x in ((dropping, X), (several, X[None])):
            alone = model(x)
            sweeps.clear()
            with watch(model, mode="stats") as stats, watch(model) as lazy:
                assert torch.equal(model(x), alone)
            assert sweeps[:2] == ["output", "read-outs"] and not stats.unseen
            alike(stats, lazy)


def test_each_watch_gets_the_read_outs_that_it_asked_for(sweeps):
    model = Own()
    with (
        torch.no_grad(),
        watch(model, mode="stats", read_outs={"entropy": True}) as one,
        watch(model, mode="stats", read_outs={"top_k": 2}) as other,
        watch(model, mode="stats", heads=[1]) as head,
        watch(model) as lazy,
    ):
        model(X)
    assert list(one[0].kept) == ["entropy"] and list(other[0].kept) == ["top_k"]
    torch.testing.assert_close(one[0].entropy(), lazy[0].entropy())
    torch.testing.assert_close(other[0].top_k(2).weights, lazy[0].top_k(2).weights)
    with torch.no_grad(), watch(model, mode="stats", heads=[1]) as alone:
        model(X)
    for seen in (head, alone):
        torch.testing.assert_close(seen[0].entropy(), lazy[0].entropy()[:, [1]])


def test_the_model_goes_on_where_read_outs_do_not_fit_the_call(sweeps):
    model = Own()
    alone = model(X)
    masses = {"mass": {"keys": torch.ones(5, dtype=torch.bool)}}
    with (
        pytest.warns(UserWarning, match="attended unseen"),
        watch(model, mode="stats", read_outs=masses) as seen,
    ):
        assert torch.equal(model(X), alone)
    assert "mass(keys) of shape (5,)" in seen.unseen[0]


def test_models_of_transformers_and_accelerated_ones(sweeps):
    transformers = pytest.importorskip("transformers")
    import regard.huggingface

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, intermediate_size=16, vocab_size=50
    )
    config._attn_implementation = "regard"
    model = transformers.LlamaModel(config).eval()
    ids = torch.arange(12)[None]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    with torch.no_grad(), regard.accelerate(encoder):
        for net, given in ((model, {"input_ids": ids}), (encoder, {"src": X})):
            alone = net(**given)
            sweeps.clear()
            with watch(net, mode="stats") as stats:
                watched = net(**given)
            assert sweeps == ["both", "both"] and stats.kinds == ["self", "self"]
            a, b = (getattr(y, "last_hidden_state", y) for y in (alone, watched))
            assert torch.equal(a, b)
            with watch(net) as lazy:
                net(**given)
            alike(stats, lazy)
