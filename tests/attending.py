"""Modules that attend, and the weights that they ought to show."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as renamed
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode

from regard.recording import watch


class Attend(nn.Module):
    """Calls scaled_dot_product_attention, under another name, with what it is given."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, query, key, value):
        return renamed(query, key, value, **self.options)


class Block(nn.Module):
    """Projects and attends; `attend` is a module."""

    def __init__(self, attend, heads=2):
        super().__init__()
        self.qkv, self.attend, self.heads = nn.Linear(8, 24), attend, heads

    def forward(self, x):
        split = (*x.shape[:2], self.heads, -1)
        query, key, value = (a.reshape(split).transpose(1, 2) for a in self.qkv(x).chunk(3, -1))
        return self.attend(query, key, value).transpose(1, 2).flatten(2)


class AttentionDropout(nn.Module):
    def forward(self, x):
        return x


def arrays(queries=5, keys=7, heads=4, key_heads=4, batch=(2,), seed=0):
    torch.manual_seed(seed)
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return [torch.randn(*batch, *shape, 8) for shape in shapes]


def reference(query, key, seen=None, bias=None, scale=None):
    """The weights by the formula, in float64; 0 where nothing is seen."""
    group = query.shape[-3] // key.shape[-3]
    key = key.repeat_interleave(group, dim=-3).double()
    scores = query.double() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, dim=-1).nan_to_num()


def seen_of(module, *given):
    with watch(module) as seen, torch.no_grad():
        module(*given)
    (found,) = seen
    return found


BOOLEAN = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.6

BIAS = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(4))


@contextmanager
def fast_paths(enabled):
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def nothing_hooked():
    empty = not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks
    return empty and _get_current_function_mode() is None
