"""What watching hooks into: everything is put back, and later changes do no harm."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as renamed
from torch.utils.checkpoint import checkpoint

from attending import (
    BIAS,
    BOOLEAN,
    Attend,
    AttentionDropout,
    Block,
    arrays,
    nothing_hooked,
    reference,
)
from regard import errors
from regard.recording import UnseenAttention, watch
from regard.recording.patch import Patch


def test_everything_is_put_back():
    model = Block(Attend())
    assert nothing_hooked()
    with pytest.raises(RuntimeError, match="shapes"), watch(model):
        assert not nothing_hooked()
        model(torch.randn(1, 5, 7))
    assert nothing_hooked()
    with watch(model) as seen:
        model(torch.randn(1, 5, 8))
    assert nothing_hooked()
    assert len(seen) == 1


class Failing(nn.TransformerEncoderLayer):
    def __init__(self, error):
        super().__init__(8, 2, 16)
        self.error = error

    def forward(self, src, **kwargs):
        raise self.error


def test_a_forward_that_fails_does_not_hide_the_next():
    model = nn.ModuleList([Failing(ValueError), Block(Attend())])
    x = torch.randn(1, 5, 8)
    with watch(model) as seen:
        with pytest.raises(ValueError):
            model[0](x)
        model[1](x)
    assert seen.names == ["1.attend"]


def test_an_interrupt_leaves_nothing_hooked():
    with pytest.raises(KeyboardInterrupt), watch(Failing(KeyboardInterrupt)) as seen:
        Failing(KeyboardInterrupt)(torch.randn(1, 5, 8))
    assert nothing_hooked()
    assert len(seen) == 0


def test_nested_and_repeated_watches():
    inner, x = Block(Attend()), torch.randn(1, 5, 8)
    outer = nn.Sequential(Block(Attend()), inner)
    with watch(outer) as first:
        with watch(inner) as second:
            outer(x)
        outer(x)
    assert first.names == ["0.attend", "1.attend"] * 2
    assert second.names == ["attend"]
    with watch(outer) as again:
        outer(x)
    assert len(again) == 2
    assert nothing_hooked()


class AttendTwice(nn.Module):
    """Calls a module of torch.nn and then attends itself; one of its parts has a telling name."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        self.attn_dropout = AttentionDropout()

    def forward(self, x):
        return self.attn_dropout(renamed(*[self.inner(x, x, x)[0]] * 3))


class TwofoldAttention(AttendTwice):
    pass


def test_a_call_after_that_of_a_fast_module_is_seen():
    model = TwofoldAttention().eval()
    with watch(model) as seen, torch.no_grad():
        model(torch.randn(1, 5, 8))
    assert seen.names == ["inner", "TwofoldAttention"]
    assert seen.unseen == []


def test_a_patch_stays_until_its_last_user_stops():
    target = SimpleNamespace(answer=lambda: 1)
    original = target.answer
    patch = Patch(lambda: target, "answer", lambda found: lambda: found() + 1)
    patch.start()
    patch.start()
    assert target.answer() == 2
    patch.stop()
    assert target.answer() == 2
    patch.stop()
    assert target.answer is original


def test_only_the_thread_that_entered_is_watched():
    model, x = nn.Sequential(Block(Attend()), AttendTwice()), torch.randn(1, 5, 8)
    other = []

    def elsewhere():
        with watch(model) as seen:
            model(x)
        other.append(seen)
        model(x)

    with watch(model) as seen:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        model(x)
    assert seen.names == other[0].names == ["0.attend", "1.inner", "1"]
    assert nothing_hooked()


def test_modules_that_ran_in_another_thread_are_told_of():
    model, x = nn.Sequential(Block(Attend()), AttendTwice()), torch.randn(1, 5, 8)
    with (
        pytest.warns(UnseenAttention, match=r"1.inner \(MultiheadAttention\): it ran in another"),
        watch(model) as seen,
    ):
        thread = threading.Thread(target=model, args=(x,))
        thread.start()
        thread.join()
        model[0](x)
    assert seen.names == ["0.attend"]
    assert len(seen.unseen) == 1


@pytest.mark.parametrize("inference", [False, True])
def test_keys_overwritten_in_place(inference):
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("keys", torch.zeros(1, 2, 4, 8))
            self.attend = Attend()

        def forward(self, x, step):
            self.keys[:, :, step] = x[:, :, 0]
            return self.attend(x, self.keys[:, :, : step + 1], self.keys[:, :, : step + 1])

    steps = [torch.randn(1, 2, 1, 8) for _ in range(4)]
    with torch.inference_mode(inference):
        model = Cached()
        with watch(model) as seen:
            for step, x in enumerate(steps):
                model(x, step)
        model.keys.zero_()
    (found,) = seen
    assert seen.steps == [[slice(n, n + 1) for n in range(4)]]
    wanted = reference(*[torch.cat(steps, dim=2)] * 2, torch.ones(4, 4).tril().bool())
    assert (found.dense() - wanted).abs().max() <= 1e-6


def test_queries_changed_in_place_later_are_stale():
    query, key, value = arrays()
    model = Attend()
    with watch(model) as seen:
        model(query, key, value)
    key.zero_()
    with pytest.raises(errors.StaleOperator):
        seen[0].dense()
    assert "changed in place" in str(seen)


def test_masks_changed_in_place_later_do_not_matter():
    query, key, value = arrays()
    mask, bias = BOOLEAN.clone(), BIAS.clone()
    models = nn.ModuleList([Attend(attn_mask=mask), Attend(attn_mask=bias)])
    with watch(models) as seen:
        for model in models:
            model(query, key, value)
            model.options["attn_mask"].zero_()
            model(query, key, value)
    first, wanted = seen[0].dense(), reference(query, key, BOOLEAN)
    assert (first - wanted).abs().max() <= 1e-6
    assert not seen[1].dense().any()
    assert (seen[2].dense() - reference(query, key, None, BIAS)).abs().max() <= 1e-6
    assert (seen[3].dense() - reference(query, key)).abs().max() <= 1e-6


def test_checkpointed_forwards_are_seen_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            x = self.first(x, x, x)[0]
            return self.second(x, x, x)[0]

    model = Twice()
    x = torch.randn(5, 1, 8, requires_grad=True)
    for reentrant in (True, False):
        with watch(model) as seen:
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        assert seen.names == ["first", "second"]


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore::regard.recording.UnseenAttention")
@pytest.mark.parametrize("before", [True, False])
def test_compiled_parts_are_seen_or_told_of(before):
    torch._dynamo.reset()
    model = nn.ModuleDict({"own": Block(Attend()), "good": Block(Attend())})
    x = torch.randn(1, 5, 8)
    alone = model["own"](x)
    model["own"].compile(backend="eager")
    if before:
        model["own"](x)
    with watch(model) as seen:
        assert torch.equal(model["own"](x), alone)
        model["good"](x)
    assert seen.names[-1] == "good.attend"
    told = seen.unseen == ["own (Block): torch.compile hides what is in it"]
    assert told or len(seen) == 2
