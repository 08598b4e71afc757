"""Attention over keys that lie in several places, joined to what it is over all of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from regard._arrays import among, dtype_name
from regard.errors import DtypeError, OptionError, ShapeError
from regard.frontends import front_end
from regard.problem import LAYOUTS

__all__ = ["merge"]

_NAMESPACES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "tensorflow": "tensorflow.experimental.numpy",
}


def merge(outputs: Sequence[Any], lses: Sequence[Any], *, layout: str = "BHLD") -> tuple[Any, Any]:
    """Attention over disjoint sets of keys, joined: exactly the attention over their union.

    With m = log Σ_n exp lse_n, the output is Σ_n exp(lse_n − m) output_n and the log-sum-exp is m.
    Parts that see nothing (log-sum-exp −∞) add nothing; where none sees anything the output is 0
    and the log-sum-exp −∞. Differentiable where the arrays are.

    Args:
        outputs: arrays (B, H, Lq, E), what `attention` or `weights(...) @ v` gave for each set of
            keys, or (B, Lq, H, E) in the layout BLHD.
        lses: as many arrays (B, H, Lq), what `weights(...).lse()` gave. A sink belongs to one part
            only.

    Returns:
        (output, lse): shaped as one of each, so that they can be merged with more. The output is
        of the outputs' type.

    Raises: ShapeError, OptionError, ArrayTypeError.

    Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
    """
    if not among(layout, LAYOUTS):
        raise OptionError(f"layout={layout!r}", '"BHLD" or "BLHD"')
    outputs, lses = _listed(outputs, "outputs"), _listed(lses, "lses")
    if not outputs or len(outputs) != len(lses):
        raise ShapeError(
            f"{len(outputs)} outputs and {len(lses)} log-sum-exps", "one or more, of one as of each"
        )
    named = {f"outputs[{n}]": array for n, array in enumerate(outputs)}
    named |= {f"lses[{n}]": array for n, array in enumerate(lses)}
    front = front_end(**named)
    for output, lse in zip(outputs, lses, strict=True):
        _check(output, lse, outputs[0], layout)
    space = import_module(_NAMESPACES[front.__name__.rpartition(".")[2]])
    # Not logaddexp: where all parts are −∞ its gradient is NaN.
    top = functools.reduce(space.maximum, lses)
    blind = top == -space.inf
    top = space.where(blind, space.zeros_like(top), top)
    shares = [space.exp(lse - top) for lse in lses]
    total = space.where(blind, space.ones_like(top), sum(shares))
    output = sum(
        _over_rows(share / total, layout, space) * _cast(part, total.dtype, space)
        for share, part in zip(shares, outputs, strict=True)
    )
    lse = space.where(blind, space.full_like(top, -space.inf), space.log(total) + top)
    return _cast(output, outputs[0].dtype, space), lse


def _over_rows(share: Any, layout: str, space: Any) -> Any:
    """(B, H, Lq) as it broadcasts to outputs."""
    share = share[..., None]
    return share if layout == "BHLD" else space.swapaxes(share, -3, -2)


def _cast(array: Any, dtype: Any, space: Any) -> Any:
    return array.to(dtype) if hasattr(array, "to") else space.asarray(array, dtype)


def _listed(given: Any, name: str) -> list[Any]:
    try:
        return list(given)
    except TypeError as error:
        raise OptionError(f"{name} of type {type(given).__name__}", "a list of arrays") from error


def _check(output: Any, lse: Any, first: Any, layout: str) -> None:
    if "float" not in dtype_name(output):
        raise DtypeError(f"outputs of type {dtype_name(output)}", "floats")
    if len(output.shape) < 3:
        raise ShapeError(f"output {tuple(output.shape)}", "(B, H, Lq, E), B optional")
    *lead, one, other, _ = output.shape
    rows = (*lead, one, other) if layout == "BHLD" else (*lead, other, one)
    if output.shape != first.shape or tuple(lse.shape) != rows:
        raise ShapeError(
            f"output {tuple(output.shape)} and log-sum-exp {tuple(lse.shape)}",
            f"outputs of one shape, {tuple(first.shape)}, and a log-sum-exp for each row",
            'pass layout="BLHD" where heads come after positions',
        )
