"""How a query and a key are compared: "dot", or one of the objects here.

    "dot"      s_ij = q_i · k_j                       needs queries and keys of one size
    Bilinear   s_ij = q_i W k_jᵀ                      of any sizes
    Additive   s_ij = Σ_a v_a f(q_i Wq + k_j Wk)_a    of any sizes

Projections are products of matrices that every framework has: they are made with its own, which
knows their gradients. What is left for the kernels is a dot product, or a sum over a of
v_a f(q'_ia + k'_ja) that never becomes an array (B, H, Lq, Lk, A).

Arrays are of the framework and the type of queries and keys. Weights (…, …) are shared by all
heads; with one more dimension in front there is one for each head.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard._arrays import dtype_name, is_array
from regard.errors import DtypeError, OptionError, ShapeError

__all__ = ["Additive", "Bilinear", "arrays_of", "as_score"]

_ACTIVATIONS = ("tanh", "leaky_relu")


@dataclass(frozen=True, eq=False)
class Bilinear:
    """s_ij = scale · q_i W k_jᵀ, for queries and keys of different sizes; `scale` is 1 by default.

    Args:
        W: (Dq, Dk), or (H, Dq, Dk).

    Source: Luong et al., "Effective Approaches to Attention-based Neural Machine Translation"
    (2015), there "general".
    """

    W: Any

    def project(self, query: Any, key: Any) -> tuple[Any, Any]:
        """(q W, k), to be compared by their dot product. Raises: ShapeError, DtypeError."""
        _check_weight("W", self.W, "query", query, key.shape[-1])
        return _product(query, self.W), key


@dataclass(frozen=True, eq=False)
class Additive:
    """s_ij = scale · Σ_a v_a f(q_i Wq + k_j Wk)_a; `scale` is 1 by default.

    Args:
        Wq: (Dq, A), or (H, Dq, A); None: queries are projected already, and A is their size.
        Wk: (Dk, A), or (K, Dk, A); None: as for queries.
        v: (A,), or (H, A); of the arrays' type or float32.
        activation: f, "tanh" or "leaky_relu" (x where x > 0, negative_slope · x elsewhere).
        negative_slope: 0 or more.

    tanh is off by 5e-7 at most (1e-14 in float64; 1.5e-6 on processors without fused
    multiply-adds). Memory is linear in length, and with a graph as the mask in its edges.

    Raises: OptionError.

    Source: Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align and Translate"
    (2015), with tanh; Brody et al., "How Attentive are Graph Attention Networks?" (2022), GATv2,
    with leaky ReLU.
    """

    Wq: Any
    Wk: Any
    v: Any
    activation: str = "tanh"
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise OptionError(f"activation={self.activation!r}", '"tanh" or "leaky_relu"')
        slope = self.negative_slope
        if not (isinstance(slope, (int, float)) and math.isfinite(slope) and slope >= 0):
            raise OptionError(f"negative_slope={slope!r}", "a number, 0 or more")

    def project(self, query: Any, key: Any) -> tuple[Any, Any]:
        """(q Wq, k Wk), both of size A. Raises: ShapeError, DtypeError."""
        size = self._checked_size(query)
        sides = (("Wq", self.Wq, "query", query), ("Wk", self.Wk, "key", key))
        for name, weight, of, array in sides:
            if weight is not None:
                _check_weight(name, weight, of, array, size)
            elif array.shape[-1] != size:
                raise ShapeError(
                    f"{of} {tuple(array.shape)} without {name}, v {tuple(self.v.shape)}",
                    f"a {of} of v's size, {size}, where it is projected already",
                    f"pass a {name} of ({array.shape[-1]}, {size})",
                )
        return _product(query, self.Wq), _product(key, self.Wk)

    def _checked_size(self, query: Any) -> int:
        """A."""
        heads, shape = query.shape[-3], tuple(self.v.shape) if is_array(self.v) else ()
        if len(shape) not in (1, 2) or shape[:-1] not in ((), (1,), (heads,)):
            raise ShapeError(f"v {shape}", f"(A,), or (H, A) with H = {heads}")
        if dtype_name(self.v) not in (dtype_name(query), "float32"):
            raise _other_type("v", self.v, query)
        return int(shape[-1])

    @property
    def vector(self) -> Any:
        """v as (H | 1, A)."""
        return self.v if len(self.v.shape) == 2 else self.v.reshape((1, -1))

    def of_heads(self, heads: Any) -> Additive:
        """The same for some query heads: a slice, or indices; for arrays projected already."""
        vector = self.vector
        return dataclasses.replace(self, v=vector if len(vector) == 1 else vector[heads])


def as_score(score: Any) -> Bilinear | Additive | None:
    """The score as an object; None for "dot". Raises: OptionError."""
    if isinstance(score, (Bilinear, Additive)):
        return score
    if not isinstance(score, str) or score != "dot":
        raise OptionError(f"score={score!r}", '"dot", regard.Bilinear(W) or regard.Additive(…)')
    return None


def arrays_of(score: Any) -> dict[str, Any]:
    """The arrays of a score by name."""
    parts = vars(score) if isinstance(score, (Bilinear, Additive)) else {}
    return {n: a for n, a in parts.items() if n in ("W", "Wq", "Wk", "v") and a is not None}


def _check_weight(name: str, weight: Any, of: str, array: Any, size: int) -> None:
    heads, given = array.shape[-3], array.shape[-1]
    if not is_array(weight) or tuple(weight.shape) not in ((given, size), (heads, given, size)):
        shape = tuple(weight.shape) if is_array(weight) else type(weight).__name__
        letter = "H" if of == "query" else "K"
        raise ShapeError(
            f"{name} {shape}, {of} {tuple(array.shape)} as (B, heads, length, size)",
            f"{name} ({given}, {size}), or ({letter}, {given}, {size}) with {letter} = {heads}",
        )
    if dtype_name(weight) != dtype_name(array):
        raise _other_type(name, weight, array)


def _other_type(name: str, array: Any, query: Any) -> DtypeError:
    return DtypeError(
        f"{name} of type {dtype_name(array)}, query of type {dtype_name(query)}",
        "one element type",
        "convert one of them",
    )


def _product(array: Any, weight: Any) -> Any:
    """array @ weight in the array's own type; NumPy's narrow ones are multiplied in float32."""
    if weight is None:
        return array
    if isinstance(array, np.ndarray) and array.itemsize == 2:
        wide = array.astype(np.float32) @ weight.astype(np.float32)
        return wide.astype(array.dtype)
    product = array @ weight
    if product.dtype != array.dtype:  # PyTorch's autocast
        product = product.to(array.dtype)
    return product
