"""The numbers of a call, checked."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

from regard._arrays import dtype_name, is_array
from regard.errors import OptionError

__all__ = ["checked_dropout", "checked_scale", "checked_seed", "checked_softcap"]


def checked_scale(scale: Any, head_size: int) -> float:
    """The factor of the dot products; None: 1/√D."""
    if scale is None:
        return 1.0 / math.sqrt(head_size) if head_size else 1.0
    number = _number("scale", scale)
    if not math.isfinite(number):
        raise OptionError(f"scale={number}", "a finite number", "leave it out for 1/√D")
    return number


def checked_softcap(softcap: Any) -> float:
    """The cap of scores; 0: none."""
    number = 0.0 if softcap is None else _number("softcap", softcap)
    if not (math.isfinite(number) and number >= 0):
        raise OptionError(f"softcap={softcap}", "a positive number, or None for no cap")
    return number


def checked_dropout(dropout_p: Any) -> float:
    """The probability with which a weight is dropped."""
    number = _number("dropout_p", dropout_p)
    if not 0 <= number < 1:
        raise OptionError(f"dropout_p={dropout_p}", "a probability, 0 or more and below 1")
    return number


def checked_seed(seed: Any) -> Any:
    """An integer of some framework, None, or one of JAX's keys, which are two words."""
    if is_array(seed):
        name = dtype_name(seed)
        fits = "int" in name if not len(seed.shape) else name == "uint32"
        known = fits or name.startswith("key")
    else:
        known = seed is None or (isinstance(seed, Integral) and not isinstance(seed, bool))
    if not known:
        raise OptionError(f"dropout_seed={seed!r}", "an integer")
    return seed


def _number(name: str, value: Any) -> float:
    if isinstance(value, float):  # torch.compile, which may leave it open, can ask no more of it
        return float(value)
    if getattr(value, "requires_grad", False):
        raise OptionError(
            f"{name} of type {type(value).__name__}",
            "a plain number, since no gradient reaches it",
            "a learned factor belongs to the queries: multiply the queries by it",
        )
    wrong = OptionError(
        f"{name} of type {type(value).__name__}", "a plain number, known in advance"
    )
    if isinstance(value, str):
        raise wrong
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise wrong from error  # an array, or a traced number without a value
