"""MultiHeadAttention and GroupedQueryAttention: Keras's projections and masks, Regard's attention.

B batch, T queries, S keys, N query heads, K key heads; projected arrays are (B, length, heads,
size). `call` alone is Regard's; Keras's computes where attention scores are asked for, where inputs
have more than one dimension of positions, and where a subclass brings an attention of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask

from regard.api import weights
from regard.keras.attending import Compiled, all_of, attend, seed_of
from regard.masks import Mask, causal, keys, window
from regard.operator import AttentionWeights

__all__ = ["GroupedQueryAttention", "MultiHeadAttention"]


class _Heads(Compiled):
    """Both layers: `_options` gives what they call by different names."""

    _overridden = ("_compute_attention", "_compute_attention_mask", "_masked_softmax")
    _query_dense: Any
    _key_dense: Any
    _value_dense: Any
    _gate_dense: Any
    _output_dense: Any
    _dropout_layer: Any
    compute_dtype: str
    built: bool
    build: Any

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """As in Keras."""
        masks = {
            "query_mask": self._query_mask(query, query_mask),
            "value_mask": value_mask,
            "key_mask": key_mask,
            "attention_mask": attention_mask,
            "use_causal_mask": use_causal_mask,
        }
        if return_attention_scores or not self._is_fused(query, value):
            more = {"return_attention_scores": return_attention_scores, "training": training}
            return super().call(query, value, key, **masks, **more)  # type: ignore[misc]
        key = value if key is None else key
        scale, window_size, use_gate, dropout = self._options()
        mask, blind = _seen(query, value, window_size, **masks)
        with _unmasked(query, key, value):
            projected = self._query_dense(query), self._key_dense(key), self._value_dense(value)
            gate = self._gate_dense(query) if use_gate else None
        options = {"scale": scale}
        if training and dropout:
            seed = seed_of(self._dropout_layer.seed_generator)
            options |= {"dropout_p": dropout, "dropout_seed": seed}
        output = attend(*projected, mask, blind=blind, **options)
        output = self._output_dense(output if gate is None else ops.multiply(output, gate))
        if masks["query_mask"] is not None:
            set_keras_mask(output, masks["query_mask"])
        return output

    def operator(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        use_causal_mask: bool = False,
    ) -> AttentionWeights:
        """The attention weights (B, N, T, S) of these inputs, as Regard's lazy operator.

        They are what `call` attends with, before dropout. A query that sees nothing has weights 0
        here, where Keras spreads them evenly.
        """
        key = value if key is None else key
        query, value, key = (
            ops.convert_to_tensor(x, self.compute_dtype) for x in (query, value, key)
        )
        if not self.built:
            self.build(query.shape, value.shape, key.shape)
        scale, window_size, *_ = self._options()
        mask, _ = _seen(
            query,
            value,
            window_size,
            query_mask=query_mask,
            value_mask=value_mask,
            key_mask=key_mask,
            attention_mask=attention_mask,
            use_causal_mask=use_causal_mask,
        )
        projected = (self._query_dense(query), self._key_dense(key))
        return weights(*projected, mask=mask, scale=scale, layout="BLHD")

    def _is_fused(self, query: Any, value: Any) -> bool:
        return self._is_keras() and len(query.shape) == 3 and len(value.shape) == 3

    def _options(self) -> tuple[float, int | None, bool, float]:
        """Scale, sliding window, whether there is a gate, dropout."""
        raise NotImplementedError

    def _query_mask(self, query: Any, given: Any) -> Any:
        return given


@keras.saving.register_keras_serializable(package="regard")
class MultiHeadAttention(_Heads, keras.layers.MultiHeadAttention):  # type: ignore[misc]
    """keras.layers.MultiHeadAttention on Regard's kernels: memory linear in length.

    Arguments, shapes and conventions are Keras's. Masks of Keras's are read as what they are: with
    `use_causal_mask`, `sliding_window` and padding nothing of size (T, S) is made, with dropout
    neither. `operator(query, value)` gives the weights to look into.
    """

    _base = keras.layers.MultiHeadAttention

    def _options(self) -> tuple[float, int | None, bool, float]:
        """Scale, sliding window, whether there is a gate, dropout."""
        return self._inverse_sqrt_key_dim, self._sliding_window, self._use_gate, self._dropout

    def _query_mask(self, query: Any, given: Any) -> Any:
        return get_keras_mask(query)  # as in Keras, which takes no notice of the argument


@keras.saving.register_keras_serializable(package="regard")
class GroupedQueryAttention(_Heads, keras.layers.GroupQueryAttention):  # type: ignore[misc]
    """keras.layers.GroupQueryAttention on Regard's kernels: keys and values are not repeated.

    Otherwise as MultiHeadAttention.
    """

    _base = keras.layers.GroupQueryAttention

    def _options(self) -> tuple[float, int | None, bool, float]:
        """Scale, sliding window, whether there is a gate, dropout."""
        return self._inverse_sqrt_head_dim, self.sliding_window, self.use_gate, self.dropout


@contextmanager
def _unmasked(*arrays: Any) -> Iterator[None]:
    """Without the masks that Keras attaches: projections take none, and would warn of them."""
    masks = [get_keras_mask(array) for array in arrays]
    for array in arrays:
        set_keras_mask(array, None)
    try:
        yield
    finally:
        for array, mask in zip(arrays, masks, strict=True):
            if mask is not None:
                set_keras_mask(array, mask)


def _seen(
    query: Any,
    value: Any,
    window_size: int | None,
    query_mask: Any,
    value_mask: Any,
    key_mask: Any,
    attention_mask: Any,
    use_causal_mask: bool,
) -> tuple[Mask | None, bool]:
    """What a query may see, and whether that may be nothing."""
    parts: list[Any] = []
    if query_mask is not None:
        parts.append(ops.cast(query_mask, "bool")[:, None, :, None])
    parts += [keys(ops.cast(mask, "bool")) for mask in (value_mask, key_mask) if mask is not None]
    if attention_mask is not None:
        array = ops.cast(attention_mask, "bool")
        parts.append(array[:, None] if len(array.shape) == 3 else array)
    blind = bool(parts)
    if use_causal_mask:
        parts.append(causal(align="upper_left"))
    if window_size is not None:
        parts.append(window(window_size - 1, window_size - 1, align="upper_left"))
        lengths = (query.shape[1], value.shape[1])
        blind = blind or None in lengths or lengths[0] > lengths[1]
    return all_of(parts), blind
