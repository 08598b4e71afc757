"""Which modules look like attention and ran, without their weights having been seen."""

from __future__ import annotations

import re

from torch import nn

__all__ = ["UnseenAttention", "compiled", "is_compiled", "looks_like_attention", "unseen"]

_NAMED = re.compile(r"atten|attn|multihead", re.IGNORECASE)
_PART = re.compile(r"(output|dropout|norm|mask|bias|pool\w*|embedding\w*|intermediate)$", re.I)
_PROJECTIONS = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("to_q", "to_k"),
    ("q_lin", "k_lin"),
    ("wq", "wk"),
    ("w_q", "w_k"),
    ("w_qs", "w_ks"),
    ("W_Q", "W_K"),
    ("q", "k", "v"),
    ("qkv",),
    ("qkv_proj",),
    ("Wqkv",),
    ("query_key_value",),
    ("c_attn",),
    ("in_proj_weight",),
)


class UnseenAttention(UserWarning):
    """A recording that does not show everything that attended."""


def looks_like_attention(module: nn.Module) -> bool:
    """By what it projects, or by the name of its class."""
    return _projects(module) or bool(_NAMED.search(type(module).__name__))


def unseen(
    names: dict[nn.Module, str], ran: set[nn.Module], covered: set[nn.Module]
) -> dict[str, nn.Module]:
    """Modules that look like attention and ran, with no call seen in, below or around them.

    names: every module's dotted name. covered: those in which a call was seen.
    Of one inside another, the one that projects queries and keys is told of, or else the inner one.
    """
    inside = [names[module] for module in covered if looks_like_attention(module)]
    missed = {
        names[module]: module
        for module in names
        if module in ran
        and module not in covered
        and looks_like_attention(module)
        and not any(_within(names[module], name) for name in inside)
    }
    project = [name for name, module in missed.items() if _projects(module)]
    return {
        name: module
        for name, module in missed.items()
        if name in project or _tells_by_name(name, module, missed, project)
    }


def compiled(names: dict[nn.Module, str], covered: set[nn.Module]) -> dict[str, nn.Module]:
    """Modules that torch.compile has compiled, with attention in them: nothing of it shows."""
    hidden = {
        names[module]: module
        for module in names
        if module not in covered
        and is_compiled(module)
        and any(looks_like_attention(inner) for inner in module.modules())
    }
    return {
        name: module
        for name, module in hidden.items()
        if not any(other != name and _within(name, other) for other in hidden)
    }


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has replaced the module's forward."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _projects(module: nn.Module) -> bool:
    parts = {*module._modules.keys(), *module._parameters.keys()}  # TorchScript's have no iterator
    return isinstance(module, nn.MultiheadAttention) or any(
        parts.issuperset(names) for names in _PROJECTIONS
    )


def _tells_by_name(
    name: str, module: nn.Module, missed: dict[str, nn.Module], project: list[str]
) -> bool:
    """Whether a module known by its class's name alone is the one to tell of."""
    if any(_within(other, name) or _within(name, other) for other in project):
        return False
    below = (m for other, m in missed.items() if other != name and _within(other, name))
    parts = all(_PART.search(type(m).__name__) for m in below)
    above = any(other != name and _within(name, other) for other in missed)
    return parts and not (above and _PART.search(type(module).__name__))


def _within(name: str, other: str) -> bool:
    """Whether the module `name` is `other` or lies below it."""
    return other == "" or name == other or name.startswith(f"{other}.")
