"""Gradient × attention: how much each input token matters for a number that a model computes.

Source: Chefer, Gur & Wolf, "Generic Attention-Model Explainability" (2021). With y = P v the output
of a head and G_ij = ∂z/∂p_ij = ∂z/∂y_i · v_j, a layer contributes Ā = mean_h max(P ∘ G, 0), and the
layers together R = (I + Ā_n) … (I + Ā_1). The rows of R asked for are computed as vectors, from the
last layer down: r ← r + Āᵀ r. P and G are made for a few queries at a time: memory is linear in
length, time quadratic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard._arrays import as_numpy
from regard.errors import ModelError, OptionError
from regard.operator import AttentionWeights
from regard.recording.entry import Entry
from regard.recording.rollout import chain, chosen, unit_rows

__all__ = ["relevance"]

Floats = npt.NDArray[np.float64]

# Weights of all heads that are held at once: 32 MB.
_AT_ONCE = 1 << 22


def relevance(
    entries: Sequence[Entry],
    score: Tensor,
    targets: Any = -1,
    *,
    layers: Sequence[int] | None = None,
) -> Floats:
    """The rows `targets` of R: (B, C, L).

    score: a number that the model computed while it was watched with values=True, and with
        gradients: a class's logit, say. targets: the positions (C,) that it was computed from.
    layers: which records are the layers, in order; left out, all of them.

    Raises: OptionError, ModelError where values were not kept or there is no gradient.
    """
    operators = chain(entries, layers)
    found = chosen(entries, layers)
    flows = [entry.flow for entry in found]
    if any(flow is None for flow in flows):
        missing = next(e.name for e, flow in zip(found, flows, strict=True) if flow is None)
        raise OptionError(
            f"relevance without the values of {missing}",
            "a recording that holds them",
            "watch with values=True; calls of torch.nn.MultiheadAttention hold none",
        )
    if not isinstance(score, Tensor):
        raise OptionError(f"a score of type {type(score).__name__}", "a tensor with a gradient")
    if score.numel() != 1 or not score.requires_grad:
        raise OptionError(f"a score of shape {tuple(score.shape)}", "one number with a gradient")
    outputs = [flow.output for flow in flows if flow is not None]
    if not all(output.requires_grad for output in outputs):
        raise ModelError(
            "attention outputs without gradients", "a forward outside of torch.no_grad()"
        )
    gradients = torch.autograd.grad(score, outputs, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ModelError(
            "a score that depends on none of the attention outputs",
            "a number that the model computed while it was watched",
        )
    rows = unit_rows(operators[-1], targets)
    layers_down = list(zip(operators, flows, gradients, strict=True))[::-1]
    for weights, flow, gradient in layers_down:
        if gradient is not None and flow is not None:  # None: the score does not depend on it
            rows = rows + _mixed(weights, flow.value, flow.of_heads(gradient), rows)
    return rows


def _mixed(weights: AttentionWeights, value: Tensor, gradient: Tensor, rows: Floats) -> Floats:
    """Āᵀ r for each row r: (B, C, L)."""
    _, heads, queries, keys = weights.shape
    values = as_numpy(value).astype(np.float64).repeat(heads // value.shape[1], axis=1)
    slopes = as_numpy(gradient).astype(np.float64)
    found = np.zeros_like(rows)
    step = max(1, _AT_ONCE // max(1, len(rows) * heads * keys))
    for start in range(0, queries, step):
        part = np.arange(start, min(start + step, queries))
        weight = as_numpy(weights.rows(part)).astype(np.float64)
        slope = slopes[:, :, part] @ values.swapaxes(-1, -2)
        mean = np.maximum(weight * slope, 0).mean(axis=1)  # (B, rows, Lk)
        found += rows[:, :, part] @ mean
    return found
