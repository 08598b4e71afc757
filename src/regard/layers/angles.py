"""The angles t · base^(-2i / size) that sinusoidal and rotary positions share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Angles"]


class Angles:
    """Cosines and sines by position, computed once for all positions that were asked for.

    No buffer of a module: it would have to be of one size on all devices that train together.
    """

    def __init__(self, size: int, base: float) -> None:
        self._rates = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        self._tables = self._computed(0, torch.device("cpu"))

    def __call__(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(stop − start, size / 2) each, float32, of the positions start … stop - 1."""
        if torch.compiler.is_compiling():
            cosines, sines = self._computed(stop, device)
        else:
            cosines, sines = self._tables  # once: threads on other devices replace them
            if stop > len(cosines) or cosines.device != device:
                # A tensor of inference mode could not be used in training later.
                with torch.inference_mode(False):
                    self._tables = cosines, sines = self._computed(max(512, 2 * stop), device)
        return cosines[start:stop], sines[start:stop]

    def _computed(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # In float64, since narrower types cannot tell large angles apart.
        angles = torch.arange(length, dtype=torch.float64)[:, None] * self._rates
        return angles.cos().float().to(device), angles.sin().float().to(device)
