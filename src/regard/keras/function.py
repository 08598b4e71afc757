"""keras.ops.dot_product_attention on Regard's kernels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from regard.errors import ShapeError
from regard.keras.attending import all_of, attend
from regard.masks import causal

__all__ = ["dot_product_attention"]


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    flash_attention: bool | None = None,
    attn_logits_soft_cap: float | None = None,
) -> Any:
    """`keras.ops.dot_product_attention` with its own signature and conventions, in linear memory.

    B batch, T queries, S keys, N query heads, K key heads (N divisible by K), H head size.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: as key; its last size may be another.
        bias: added to the scores; broadcasts to (B, N, T, S).
        mask: boolean, True = may attend; broadcasts to (B, N, T, S).
        scale: a number; default 1/√H.
        is_causal: query i sees key j when j <= i (upper left).
        flash_attention: taken, and of no effect: memory is linear always.
        attn_logits_soft_cap: scores become c · tanh(score / c), on every backend.

    Returns:
        (B, T, N, H), with value's last size. As in Keras, a query that sees nothing gets the mean
        of all values.

    Raises: regard.errors.ShapeError, DtypeError, MaskError, OptionError (all ValueErrors or
        TypeErrors).
    """
    given = [array for array in (query, key, value, bias, mask) if array is not None]
    operation = DotProductAttention(scale, is_causal, attn_logits_soft_cap)
    if any(isinstance(array, keras.KerasTensor) for array in given):
        return operation(query, key, value, bias=bias, mask=mask)
    return operation.call(query, key, value, bias=bias, mask=mask)


@keras.saving.register_keras_serializable(package="regard")
class DotProductAttention(keras.Operation):  # type: ignore[misc]
    """The function as an operation of Keras's functional models."""

    def __init__(
        self,
        scale: float | None = None,
        is_causal: bool = False,
        softcap: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.scale, self.is_causal, self.softcap = scale, is_causal, softcap

    def call(self, query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None) -> Any:
        """Attention on tensors with values."""
        arrays = [ops.convert_to_tensor(array) for array in (query, key, value)]
        dtype = keras.backend.result_type(*(array.dtype for array in arrays))
        query, key, value = (ops.cast(array, dtype) for array in arrays)
        for name, array in (("query", query), ("key", key), ("value", value)):
            if len(array.shape) != 4:
                raise ShapeError(f"{name} {tuple(array.shape)}", "(B, length, heads, size)")
        if bias is not None:
            bias = ops.convert_to_tensor(bias, dtype=dtype)
        if mask is not None:
            mask = ops.convert_to_tensor(mask, dtype="bool")
        seen = all_of([mask, causal(align="upper_left") if self.is_causal else None])
        options = {"bias": bias, "scale": self.scale, "softcap": self.softcap}
        return attend(query, key, value, seen, blind=mask is not None, **options)

    def compute_output_spec(
        self, query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None
    ) -> Any:
        """Shape and type of the output."""
        dtype = keras.backend.result_type(query.dtype, key.dtype, value.dtype)
        return keras.KerasTensor((*query.shape[:-1], value.shape[-1]), dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """What makes it again."""
        own = {"scale": self.scale, "is_causal": self.is_causal, "softcap": self.softcap}
        return {**super().get_config(), **own}
