"""Keys and values that were projected before: what incremental decoding need not compute again."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.errors import DtypeError, OptionError, ShapeError

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Keys (B, L, K, D) and values (B, L, K, E) so far; L grows with each `append`.

    Memory is reserved in advance and doubled when it is full, so that a step copies what is new and
    little more. Where keys or values require gradients, they are joined by copies instead, since
    autograd refuses to differentiate through what was overwritten.

    shared: each row is looked at by so many rows of queries, one after another, as beams are.
    """

    shared = 1

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None) -> None:
        self._key, self._value = key, value
        self._length = 0 if key is None else key.shape[1]
        self._dropped = 0

    def __len__(self) -> int:
        """L: the number of positions that are held."""
        return self._length

    @property
    def position(self) -> int:
        """Of what is appended next: how many were, those that `slide` dropped among them."""
        return self._dropped + self._length

    @property
    def key(self) -> Tensor:
        """(B, L, K, D), a view."""
        return _filled(self._key)[:, : self._length]

    @property
    def value(self) -> Tensor:
        """(B, L, K, E), a view."""
        return _filled(self._value)[:, : self._length]

    def append(self, key: Tensor, value: Tensor) -> None:
        """Add keys (B, n, K, D) and values (B, n, K, E) behind those that are there."""
        _check_appended(self._key, key, "keys")
        _check_appended(self._value, value, "values")
        if key.shape[:2] != value.shape[:2]:
            raise ShapeError(
                f"keys {tuple(key.shape)} and values {tuple(value.shape)}",
                "as many of both: (B, n, K, D) and (B, n, K, E)",
            )
        self._key = _appended(self._key, self._length, key)
        self._value = _appended(self._value, self._length, value)
        self._length += key.shape[1]

    def crop(self, length: int) -> None:
        """Keep the first `length` positions, and forget those behind them."""
        _check_length(length)
        if self._key is not None and self._value is not None:
            # Views that end there: what lies behind may be the caller's, and is not written to.
            self._key, self._value = self.key[:, :length], self.value[:, :length]
            self._length = self._key.shape[1]

    def slide(self, length: int) -> None:
        """Keep the last `length` positions, as a sliding window sees them: no copy.

        The memory of those before them is given back when what is left is next moved.
        """
        _check_length(length)
        surplus = self._length - length
        if self._key is not None and self._value is not None and surplus > 0:
            self._key, self._value = self._key[:, surplus:], self._value[:, surplus:]
            self._length -= surplus
            self._dropped += surplus

    def reorder(self, index: Tensor, shared: int = 1) -> None:
        """Row b becomes what row index[b] was; index (B',) of integers, for beam search.

        shared: from then on each row is for so many rows of queries.
        """
        if self._key is not None and self._value is not None:
            self._key, self._value = (
                _chosen(held, self._length, index) for held in (self._key, self._value)
            )
        self.shared = shared


def _check_length(length: int) -> None:
    if length < 0:
        raise OptionError(f"a length of {length}", "a number of positions, 0 or more")


def _check_appended(held: Tensor | None, new: Tensor, name: str) -> None:
    if new.ndim != 4:
        raise ShapeError(f"{name} {tuple(new.shape)}", "(B, n, K, size)")
    if held is None:
        return
    (batch, _, *rest), dtype = held.shape, held.dtype
    if (new.shape[0], *new.shape[2:]) != (batch, *rest):
        raise ShapeError(
            f"{name} {tuple(new.shape)} for a cache of {tuple(held.shape)}",
            "the same batch, heads and size",
        )
    if new.dtype != dtype:
        raise DtypeError(f"{name} of type {new.dtype} for a cache of {dtype}", f"{dtype}")


def _filled(array: Tensor | None) -> Tensor:
    if array is None:
        raise ShapeError("a cache in which nothing is yet", "keys and values", "call append first")
    return array


def _chosen(held: Tensor, length: int, index: Tensor) -> Tensor:
    """The rows index of held[:, :length], with as much memory behind them as there was."""
    if torch.is_grad_enabled() and held.requires_grad:
        return held[index, :length]
    chosen = held.new_empty((len(index), *held.shape[1:]))
    torch.index_select(held[:, :length], 0, index, out=chosen[:, :length])
    return chosen


def _appended(held: Tensor | None, length: int, new: Tensor) -> Tensor:
    """Memory that begins with `held[:, :length]` and then has `new`."""
    if held is None:
        return new
    if torch.is_grad_enabled() and (held.requires_grad or new.requires_grad):
        return torch.cat([held[:, :length], new], dim=1)
    total = length + new.shape[1]
    if total > held.shape[1]:
        batch, _, *rest = held.shape
        reserved = held.new_empty((batch, max(total, 2 * length), *rest))
        reserved[:, :length] = held[:, :length]
        held = reserved
    held[:, length:total] = new
    return held
