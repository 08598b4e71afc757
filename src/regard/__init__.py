"""Regard: attention that is exact, fast, and visible.

y = regard.attention(q, k, v, mask=regard.causal())   # the operation
w = regard.weights(q, k, mask=regard.causal())        # its weights, as a lazy linear operator
w @ v, w.top_k(8), w.received(), w.entropy()          # applied, and looked into

with regard.watch(model) as seen:                     # what a PyTorch model attends to
    model(**inputs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regard import errors
from regard.api import attention, plan, scores, weights
from regard.bias import alibi, relative_bias, t5_bias
from regard.masks import (
    blocks,
    causal,
    documents,
    graph,
    keys,
    lengths,
    neighborhood,
    prefix,
    window,
)
from regard.merging import merge
from regard.operator import AttentionWeights
from regard.paging import paged_attention
from regard.score import Additive, Bilinear

if TYPE_CHECKING:
    from regard.acceleration import accelerate
    from regard.recording.files import load
    from regard.recording.watching import watch

__version__ = "0.1.0"

__all__ = [
    "Additive",
    "AttentionWeights",
    "Bilinear",
    "accelerate",
    "alibi",
    "attention",
    "blocks",
    "causal",
    "documents",
    "errors",
    "graph",
    "keys",
    "lengths",
    "load",
    "merge",
    "neighborhood",
    "paged_attention",
    "plan",
    "prefix",
    "relative_bias",
    "scores",
    "t5_bias",
    "watch",
    "weights",
    "window",
]


def __getattr__(name: str) -> Any:
    """Recordings are loaded on first use; `accelerate` and `watch` need PyTorch."""
    homes = {
        "accelerate": "regard.acceleration",
        "load": "regard.recording.files",
        "watch": "regard.recording.watching",
    }
    if name not in homes:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)
