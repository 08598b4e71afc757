"""Cross-entropy with label smoothing, in few passes over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["smoothed_cross_entropy"]


def smoothed_cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float, ignored: int
) -> tuple[Tensor, Tensor, int]:
    """(loss, plain, count): means over the targets (N,) that are not `ignored`; logits (N, V).

    plain = mean(−log p(target)), which comes without gradient, and
    loss = (1 − smoothing) · plain + smoothing · mean over all V classes of −log p
    (Szegedy et al., 2016). The same as `torch.nn.functional.cross_entropy` computes, which would
    have to be called twice to have both.
    """
    loss, plain = _Smoothed.apply(logits, target, smoothing, ignored)
    return loss, plain, int((target != ignored).sum())


class _Smoothed(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, logits: Tensor, target: Tensor, smoothing: float, ignored: int
    ) -> tuple[Tensor, Tensor]:
        kept = target != ignored
        share = kept / kept.sum().clamp(min=1)  # of each target in the means
        place = target.where(kept, 0)[:, None]
        log_p = logits.float().log_softmax(-1)
        plain = -(log_p.gather(1, place)[:, 0] * share).sum()
        spread = -(log_p.mean(-1) * share).sum() if smoothing else plain
        context.save_for_backward(log_p, place, share)
        context.smoothing = smoothing
        context.mark_non_differentiable(plain)
        return (1 - smoothing) * plain + smoothing * spread, plain

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Any, ...]:
        log_p, place, share = context.saved_tensors
        smoothing, share = context.smoothing, (share * gradients[0])[:, None]
        slope = log_p.exp()
        slope -= smoothing / log_p.shape[1]
        slope.scatter_add_(1, place, torch.full_like(share, smoothing - 1))
        return slope.mul_(share), None, None, None
