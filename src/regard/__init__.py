"""Regard: attention that is exact, fast, and visible.

    y = regard.attention(q, k, v, mask=regard.causal())   # the operation
    w = regard.weights(q, k, mask=regard.causal())        # its weights, as a lazy linear operator
    w @ v, w.top_k(8), w.received(), w.entropy()          # applied, and looked into
"""

from regard import errors
from regard.api import attention, plan, scores, weights
from regard.masks import causal, documents, keys, lengths, prefix, window
from regard.operator import AttentionWeights

__version__ = "0.1.0"

__all__ = [
    "AttentionWeights",
    "attention",
    "causal",
    "documents",
    "errors",
    "keys",
    "lengths",
    "plan",
    "prefix",
    "scores",
    "weights",
    "window",
]
