"""Watching flex_attention: its functions of place as masks, biases, scales and caps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attending import arrays, reference
from regard.recording import UnseenAttention, watch

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

SLOPES = torch.tensor([0.1, 0.2, 0.3, 0.4])
PLACES = (torch.arange(7) - torch.arange(5)[:, None]) * SLOPES[:, None, None]
LOWER = torch.ones(5, 7).tril().bool()


class Flex(nn.Module):
    def __init__(self, score_mod=None, mask_mod=None):
        super().__init__()
        self.score_mod, self.mask_mod = score_mod, mask_mod

    def forward(self, query, key, value):
        sizes = None, None, query.shape[-2], key.shape[-2]
        mask = self.mask_mod and create_block_mask(self.mask_mod, *sizes, device="cpu")
        grouped = query.shape[1] != key.shape[1]
        return flex_attention(query, key, value, self.score_mod, mask, enable_gqa=grouped)


def causal(b, h, i, j):
    return i >= j


def alibi(score, b, h, i, j):
    return score + (j - i) * SLOPES[h]


def doubled(score, b, h, i, j):
    return 2 * score


def capped(score, b, h, i, j):
    return 1.5 * torch.tanh(score / 1.5)


def hiding(score, b, h, i, j):
    return torch.where(i >= j, score, -torch.inf)


CASES = {
    "nothing": ((), {}),
    "mask": ((None, causal), {"seen": LOWER}),
    "bias": ((alibi,), {"bias": PLACES}),
    "bias and mask": ((alibi, causal), {"bias": PLACES, "seen": LOWER}),
    "scale": ((doubled,), {"scale": 2 * 8**-0.5}),
    "hidden by the score": ((hiding,), {"seen": LOWER}),
}


@pytest.mark.parametrize("name", CASES)
def test_masks_and_biases(name):
    given, wanted = CASES[name]
    query, key, value = arrays(key_heads=2)
    model = Flex(*given)
    alone = model(query, key, value)
    with watch(model) as seen:
        assert torch.equal(model(query, key, value), alone)
    assert (seen[0].dense() - reference(query, key, **wanted)).abs().max() <= 1e-6


def test_softcap():
    query, key, value = arrays()
    model = Flex(capped)
    with watch(model) as seen:
        model(query, key, value)
    scores = 1.5 * torch.tanh(query.double() @ key.mT.double() * 8**-0.5 / 1.5)
    assert seen[0]._problem.softcap == pytest.approx(1.5)
    assert (seen[0].dense() - scores.softmax(-1)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("score_mod", "reason"),
    [
        (lambda score, b, h, i, j: score * (1 + i), "from place to place"),
        (lambda score, b, h, i, j: torch.relu(score), "no scale, softcap and bias"),
    ],
)
def test_what_is_no_attention_known_here_is_told_of(score_mod, reason):
    model = Flex(score_mod)
    with pytest.warns(UnseenAttention, match=reason), watch(model) as seen:
        model(*arrays())
    assert len(seen) == 0 and len(seen.unseen) == 1
