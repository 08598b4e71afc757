"""What a watch keeps: read-outs at once, chosen heads of chosen layers, and a budget of memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import regard
from attending import Attend, Block, arrays
from regard import errors
from regard.operator import DEFAULT_READ_OUTS
from regard.recording import page, scores, watch
from regard.recording.summary import Summary


def stack(count=3, **options):
    torch.manual_seed(1)
    return nn.Sequential(*(Block(Attend(**options)) for _ in range(count)))


X = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(2))


def both(model, x=X, **options):
    """The lazy recording, and that of mode "stats"."""
    with watch(model) as lazy, watch(model, mode="stats", **options) as stats:
        model(x)
    return lazy, stats


def same(one, other):
    parts = (one, other) if isinstance(one, tuple) else ((one,), (other,))
    return all(torch.equal(a, b) for a, b in zip(*parts, strict=True))


def test_statistics_are_the_read_outs_of_the_operator():
    model = stack(is_causal=True)
    alone = model(X)
    lazy, stats = both(model)
    assert torch.equal(alone, model(X))
    assert stats.names == lazy.names and len(stats) == 3
    for operator, summary in zip(lazy, stats, strict=True):
        assert isinstance(summary, Summary) and summary.shape == operator.shape
        _, wanted = operator.attend(torch.randn(2, 2, 9, 4), read_outs="default")
        for name in DEFAULT_READ_OUTS:
            assert same(summary.kept[name][1], getattr(wanted, name)), name
        assert same(summary.entropy(), operator.entropy())
        assert same(summary.top_k(3), operator.top_k(3))
        assert same(summary.pooled((64, 64), "max"), operator.pooled((64, 64), "max"))
        assert summary.visible[0, 0].tolist() == list(range(1, 10))


def test_chosen_read_outs():
    _, stats = both(stack(1), read_outs={"top_k": 2, "received": {"reduce": "max"}, "lse": False})
    (summary,) = stats
    assert list(summary.kept) == ["top_k", "received"]
    assert summary.received("max").shape == (2, 2, 9)
    for wrong, message in (
        (
            lambda: summary.received(),
            r"received\(reduce='sum'.*Wanted: what was kept: received\(reduce='max'",
        ),
        (lambda: summary.top_k(5), r"top_k\(k=5\)"),
        (lambda: summary.entropy(), "one of top_k, received"),
        (lambda: summary.dense(), 'mode="lazy"'),
    ):
        with pytest.raises(errors.OptionError, match=message):
            wrong()
    with pytest.raises(AttributeError):
        summary.nothing  # noqa: B018
    assert "kept: top_k, received" in str(stats)


def test_heads_of_statistics():
    tokens = list("abcabcabc")
    model = stack(is_causal=True)
    with (
        watch(model, tokens) as lazy,
        watch(model, tokens, mode="stats") as stats,
        watch(model, tokens, mode="stats", read_outs="heads") as whole,
    ):
        model(X)
    unknown = {"special tokens", "duplicate token", "induction"}
    for wanted, partly, found in zip(lazy.heads(), stats.heads(), whole.heads(), strict=True):
        assert found == wanted
        assert {n for n, value in partly.scores.items() if value != value} == unknown
        for name in set(scores.SCORES) - unknown:
            assert partly.scores[name] == pytest.approx(wanted.scores[name], abs=1e-5), name


def test_the_page_of_statistics_is_that_of_the_operators():
    lazy, stats = both(stack(is_causal=True))
    shown = [page.record(recording, batch=1) for recording in (lazy, stats)]
    for one, other in zip(*(record.calls for record in shown), strict=True):
        assert one.dense is not None and other.dense is None
        for name in ("pooled_sum", "pooled_max", "top_keys", "top_weights", "received", "entropy"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_heads_of_each_layer():
    model = stack()
    with watch(model) as whole, watch(model, heads={0: 1, "2.attend": [1, 0]}) as chosen:
        model(X)
    assert chosen.names == ["0.attend", "2.attend"]
    assert [entry.numbers for entry in chosen.entries] == [[1], [1, 0]]
    assert torch.equal(chosen[0].dense(), whole[0].dense()[:, [1]])
    assert torch.equal(chosen[1].dense(), whole[2].dense()[:, [1, 0]])
    assert [row.head for row in chosen.heads()] == [1, 1, 0]
    with pytest.raises(errors.OptionError, match="the keys of heads= are the layers"):
        watch(model, layers=[0], heads={0: 1})


def test_a_budget_keeps_less_of_later_calls_and_says_so():
    model, x = stack(4), torch.randn(1, 400, 8)
    one = 3 * 400 * 8 * 4  # queries and keys are cut from one projection of 24 columns
    options = {"budget": 2 * one + 5000, "read_outs": {"entropy": True}}
    with watch(model, **options) as seen, watch(model, budget="1 MB") as roomy:
        model(x)
    held = [type(weights).__name__ for weights in seen]
    assert held == ["AttentionWeights", "AttentionWeights", "Summary"]
    assert len(seen.notes) == 2
    assert "of 1 calls only the read-outs were kept" in seen.notes[0]
    assert "of 1 calls nothing was kept" in seen.notes[1] and seen.notes[1] in str(seen)
    assert len(roomy) == 4 and not roomy.notes
    for wrong in (0, "much", -1, "1 XB", True, [1]):
        with pytest.raises(errors.OptionError, match="256MB"):
            watch(model, budget=wrong)


def test_other_arguments():
    for wrong in (
        {"mode": "fast"},
        {"read_outs": "all"},
        {"read_outs": 3},
        {"read_outs": {"x": 1}},
        {"read_outs": {"top_k": 0}},
        {"read_outs": {"received": {"of": 1}}},
        {"heads": {}},
        {"heads": {None: [0]}},
        {"heads": {(0, 1): [0]}},
        {"heads": {0: None}},
    ):
        with pytest.raises(errors.OptionError):
            watch(stack(1), **wrong)


def test_statistics_are_asked_as_operators_are():
    (weights,), (summary,) = both(stack(1))
    for wanted in ({"read_outs": "default"}, {"top_k": 3, "entropy": True}):
        there, here = vars(weights.read(**wanted)), vars(summary.read(**wanted))
        assert there.keys() == here.keys()
        assert torch.equal(there["entropy"], here["entropy"])
    for call in (lambda: summary[0, 1], lambda: summary @ X, lambda: summary.read(similarity=True)):
        with pytest.raises(errors.OptionError, match='mode="lazy"'):
            call()


def test_read_outs_that_depend_on_lengths_are_left_to_the_call():
    read_outs = {"received": {"queries": [8]}, "mass": np.arange(9) % 2}
    lazy, stats = both(stack(1), read_outs=read_outs)
    assert torch.equal(stats[0].received(queries=[8]), lazy[0].received(queries=[8]))
    assert torch.equal(stats[0].mass(np.arange(9) % 2), lazy[0].mass(np.arange(9) % 2))


def test_autocast_and_gradients():
    model = Attend()
    query, key, value = (array.requires_grad_() for array in arrays())
    with torch.autocast("cpu", torch.bfloat16):
        alone = model(query, key, value)
        with watch(model) as lazy, watch(model, mode="stats") as stats:
            output = model(query, key, value)
    assert output.dtype == torch.bfloat16 and torch.equal(output, alone)
    output.sum().backward()
    assert value.grad is not None
    wanted = (query @ key.mT * 8**-0.5).softmax(-1)
    assert (lazy[0].dense() - wanted).abs().max() <= 1e-2
    assert not stats[0].entropy().requires_grad


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore::regard.recording.UnseenAttention")
@pytest.mark.parametrize(("in_place", "most"), [(False, 1), (True, 2)])
def test_watching_compiled_models_again_compiles_nothing_again(in_place, most):
    torch._dynamo.reset()
    compiled = []

    def backend(module, _):
        compiled.append(module)
        return module.forward

    model = Block(Attend())
    if in_place:  # then it is compiled with hooks and modes, once more for those of a watch
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    with torch.no_grad():
        alone = model(X)
        for _ in range(4):
            with watch(model) as seen:
                assert torch.equal(model(X), alone)
            assert len(compiled) == most
    assert "torch.compile hides what is in it" in seen.unseen[0]


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda seen, path: seen.html(path, batch="a"), "batch='a'. Wanted: a number from 0 to 1"),
        (lambda seen, path: seen.html(path, batch=1.5), "batch=1.5. Wanted: a number from 0 to 1"),
        (lambda seen, path: seen.html(None), "a path of type NoneType. Wanted: a text or a Path"),
        (lambda seen, path: seen.html(path, title=3), "title=3. Wanted: a text"),
        (lambda seen, path: seen.html(path, against="b"), "against='b'. Wanted: a recording"),
        (lambda seen, path: seen.save(3.5), "a path of type float. Wanted: a text or a Path"),
        (lambda seen, path: regard.load(3.5), "a path of type float. Wanted: a text or a Path"),
        (lambda seen, path: regard.load(path, limit="a"), "limit='a'. Wanted: a number of bytes"),
        (
            lambda seen, path: seen.heads().top("entropy", "a"),
            "count='a'. Wanted: a number of heads",
        ),
        (lambda seen, path: seen.heads().telling(-1), "count=-1. Wanted: a number of heads"),
    ],
)
def test_what_is_asked_wrongly_is_said(tmp_path, ask, text):
    with watch(model := stack(1)) as seen, torch.no_grad():
        model(X)
    with pytest.raises(errors.OptionError) as raised:
        ask(seen, tmp_path / "page.html")
    assert text in str(raised.value)


class Cached(nn.Module):
    """Attention of one head on all keys and values so far; values have `size` elements."""

    def __init__(self, size):
        super().__init__()
        self.size, self.keys = size, torch.zeros(1, 1, 0, 4)

    def forward(self, x):
        self.keys = torch.cat([self.keys, x], dim=2)
        values = torch.ones(1, 1, self.keys.shape[2], self.size)
        nn.functional.scaled_dot_product_attention(x, self.keys, values)
        return x


@pytest.mark.parametrize("roomy", [False, True])
def test_a_record_that_grows_still_holds_its_values(roomy):
    wide, after = Cached(1000), Cached(1)
    model = nn.ModuleList([wide, after])
    flow = 2 * 3 * 1000 * 4  # values and outputs of the first call
    later = torch.randn(1, 1, 500, 4)
    budget = (2 * flow if roomy else flow) + 4 * later.nbytes // 2
    with watch(model, values=True, budget=budget, read_outs={"entropy": True}) as seen:
        wide(torch.randn(1, 1, 3, 4))
        wide(torch.randn(1, 1, 1, 4))
        after(later)
    assert any("was reached" in note for note in seen.notes) != roomy
