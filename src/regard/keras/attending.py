"""What the layers share: attention with Keras's conventions, on the tensors of its backend."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from regard.frontends import front_end
from regard.masks import Mask, as_mask
from regard.score import arrays_of

__all__ = ["Compiled", "all_of", "attend", "seed_of"]


class Compiled:
    """A layer that XLA compiles on JAX alone: TensorFlow's XLA does not call our kernels."""

    _base: Any  # the layer of Keras's that it is
    _overridden: tuple[str, ...]  # methods that `call` stands for: a subclass may have its own

    @property
    def supports_jit(self) -> bool:
        """Whether Keras may compile a model with this layer by XLA."""
        return str(keras.backend.backend()) != "tensorflow"

    @supports_jit.setter
    def supports_jit(self, given: bool) -> None:
        """Keras itself says so of every layer."""

    def _is_keras(self) -> bool:
        """Whether no subclass attends in its own way."""
        kind, base = type(self), self._base
        return all(getattr(kind, name) is getattr(base, name) for name in self._overridden)


def all_of(parts: Iterable[Any]) -> Mask | None:
    """What all masks and boolean arrays show; None is everything."""
    given = [as_mask(part) for part in parts if part is not None]
    return functools.reduce(Mask.__and__, given) if given else None


def attend(
    query: Any, key: Any, value: Any, mask: Mask | None, *, blind: bool, **options: Any
) -> Any:
    """Attention on arrays (*batch, L, heads, size).

    blind: whether the mask may hide every key from a query. As in Keras, such a query gets the mean
        of all values, for it hides a score by a large negative number.
    """
    arrays = {"query": query, "key": key, "value": value, "bias": options.get("bias")}
    front = front_end(**arrays, **arrays_of(options.get("score")))
    problem = front.make(query, key, value, mask=mask, layout="BLHD", **options)
    if not blind:
        return front.leave(front.attention(problem, None))
    output, lse = (front.leave(array) for array in front.attention_lse(problem, None))
    hidden = ops.expand_dims(ops.swapaxes(lse, -1, -2) == -np.inf, -1)
    mean = ops.mean(value, axis=-3, keepdims=True)
    mean = ops.repeat(mean, query.shape[-2] // value.shape[-2], axis=-2)
    return ops.where(hidden, mean, output)


def seed_of(generator: Any) -> Any:
    """A seed for dropout from Keras's generator, in a form that the backend's arrays take."""
    words = generator.next()
    if keras.backend.backend() == "jax":
        return words  # a key, as jax.random has it
    words = ops.cast(words, "int64")
    return words[0] + (words[1] % 2**31) * 2**32
