"""Attention and AdditiveAttention: one head without projections, Keras's scores, Regard's kernels.

Tq queries, Tv values; inputs are (*batch, length, size). `call` alone is Regard's; Keras's computes
where attention scores are asked for, and where a subclass brings scores of its own.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from regard.api import weights
from regard.keras.attending import Compiled, all_of, attend, seed_of
from regard.masks import Mask, causal, keys
from regard.operator import AttentionWeights
from regard.score import Additive

__all__ = ["AdditiveAttention", "Attention"]


class _OneHead(Compiled):
    """Both layers: `_compared` gives queries, keys and their score."""

    _overridden = ("_calculate_scores", "_apply_scores", "_calculate_score_mask")
    _validate_inputs: Any
    dropout: float
    seed_generator: Any
    compute_dtype: str
    built: bool
    build: Any

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """As in Keras."""
        self._validate_inputs(inputs=inputs, mask=mask)
        if return_attention_scores or not self._is_keras():
            return super().call(  # type: ignore[misc]
                inputs, mask, training, return_attention_scores, use_causal_mask
            )
        query, key, score = self._compared(inputs)
        seen = _seen(query, mask, use_causal_mask)
        options = {"score": score, "scale": 1.0}
        if training and self.dropout:
            options |= {"dropout_p": self.dropout, "dropout_seed": seed_of(self.seed_generator)}
        value = _with_head(inputs[1])
        blind = bool(mask) and mask[1] is not None
        output = attend(query, key, value, seen, blind=blind, **options)[..., 0, :]
        if mask and mask[0] is not None:
            output = ops.where(ops.expand_dims(mask[0], -1), output, 0)
        return output

    def operator(
        self, inputs: Any, mask: Any = None, use_causal_mask: bool = False
    ) -> AttentionWeights:
        """The attention weights (*batch, Tq, Tv) of these inputs, as Regard's lazy operator."""
        inputs = [ops.convert_to_tensor(x, self.compute_dtype) for x in inputs]
        self._validate_inputs(inputs=inputs, mask=mask)
        if not self.built:
            self.build([x.shape for x in inputs])
        query, key, score = self._compared(inputs)
        seen = _seen(query, mask, use_causal_mask)
        made = weights(query, key, mask=seen, score=score, scale=1.0, layout="BLHD")
        found: AttentionWeights = made[(*[slice(None)] * (made.ndim - 3), 0)]
        return found

    def _compared(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Queries and keys (*batch, length, 1, size), and how they are compared."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="regard")
class Attention(_OneHead, keras.layers.Attention):  # type: ignore[misc]
    """keras.layers.Attention on Regard's kernels: memory linear in length, `concat` too.

    Arguments, shapes and conventions are Keras's; `operator([query, value])` gives the weights to
    look into.
    """

    _base = keras.layers.Attention

    def _compared(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Queries and keys (*batch, length, 1, size), and how they are compared."""
        query, key = inputs[0], inputs[-1 if len(inputs) > 2 else 1]
        if self.scale is not None:
            query = query * ops.cast(self.scale, query.dtype)
        if self.score_mode == "dot":
            return _with_head(query), _with_head(key), "dot"
        if self.scale is not None:
            key = key * ops.cast(self.scale, key.dtype)
        factor = ops.cast(self.concat_score_weight, query.dtype)
        vector = factor * ops.ones((query.shape[-1],), query.dtype)
        return _with_head(query), _with_head(key), Additive(None, None, vector)


@keras.saving.register_keras_serializable(package="regard")
class AdditiveAttention(_OneHead, keras.layers.AdditiveAttention):  # type: ignore[misc]
    """keras.layers.AdditiveAttention on Regard's kernels: no array (B, Tq, Tv, size) is made.

    Otherwise as Attention.
    """

    _base = keras.layers.AdditiveAttention

    def _compared(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Queries and keys (*batch, length, 1, size), and how they are compared."""
        query, key = inputs[0], inputs[-1 if len(inputs) > 2 else 1]
        if self.scale is None:
            vector = ops.ones((query.shape[-1],), query.dtype)
        else:
            vector = ops.cast(self.scale, query.dtype)
        return _with_head(query), _with_head(key), Additive(None, None, vector)


def _with_head(array: Any) -> Any:
    return ops.expand_dims(array, -2)


def _seen(query: Any, mask: Any, use_causal_mask: bool) -> Mask | None:
    """What a query may see, of inputs (*batch, length, 1, size)."""
    parts: list[Any] = []
    if mask and mask[1] is not None:
        keep = ops.cast(mask[1], "bool")
        shared = len(query.shape) - 2 - len(keep.shape)  # batch dimensions that the mask lacks
        parts.append(keys(keep) if not shared else keep[(..., *[None] * (shared + 2), slice(None))])
    if use_causal_mask:
        parts.append(causal(align="upper_left"))
    return all_of(parts)
