"""What additive and bilinear attention share: one head, whose values are not projected."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from regard.layers.cache import KeyValueCache
from regard.layers.heads import attend

__all__ = ["SingleHeadAttention"]


class SingleHeadAttention(nn.Module):
    """softmax(score(q, k)) v, where a subclass says what the score is."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | KeyValueCache,
        value: Tensor | None = None,
        *,
        mask: Any = None,
        return_weights: bool = False,
    ) -> Any:
        """The output (B, Lq, E); with return_weights also the AttentionWeights (B, 1, Lq, Lk).

        Args:
            query: (B, Lq, query_width).
            key: (B, Lk, key_width), or what `project` made of it.
            value: (B, Lk, E); default: key.
            mask: a mask of Regard, such as regard.lengths(keys=…), or a boolean array, True = may
                attend.
        """
        held = key if isinstance(key, KeyValueCache) else self.project(key, value)
        scored = self._scored(query, held)
        output, weights = attend(
            value=held.value,
            shared=held.shared,
            mask=mask,
            return_weights=return_weights,
            **scored,
        )
        return (output, weights) if return_weights else output

    def project(self, key: Tensor, value: Tensor | None = None) -> KeyValueCache:
        """Keys and values of (B, Lk, key_width), to be attended to more than once."""
        value = key if value is None else value
        return KeyValueCache(self._keys(key)[:, :, None], value[:, :, None])

    def _keys(self, key: Tensor) -> Tensor:
        """(B, Lk, D): what can be made of the keys before a query is known."""
        raise NotImplementedError

    def _scored(self, query: Tensor, held: KeyValueCache) -> dict[str, Any]:
        """query (B, Lq, 1, D), key (B, Lk, 1, D) and what else `attend` is to be told."""
        raise NotImplementedError
