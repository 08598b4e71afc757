"""What models add to scores, as masks and biases: hidden apart from added, and masks made small."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard._arrays import as_numpy
from regard.masks import Mask, Normal, as_mask, causal, keys, window

__all__ = ["Terms", "recognised", "split"]

Bools = npt.NDArray[np.bool_]
_Normalised = tuple[Mask | None, Tensor | None]

_REMEMBERED = 16  # a model has a handful of masks, which all its layers share


class Terms:
    """Normalises terms, and remembers the last ones: layers share theirs."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], tuple[Any, _Normalised]] = OrderedDict()

    def normalised(
        self, terms: tuple[Tensor, ...], shape: tuple[int, ...]
    ) -> tuple[Mask | None, Tensor | None]:
        """(mask, bias) of terms that broadcast to `shape` = (B, H, Lq, Lk); None: none."""
        terms = tuple(term.detach() for term in terms)
        name = (shape, *(_fingerprint(term) for term in terms))
        unchanging = not any(term.is_inference() for term in terms)
        if unchanging and name in self._known:
            self._known.move_to_end(name)
            return self._known[name][1]
        found = _normalised(terms, shape)
        if unchanging:
            self._known[name] = (terms, found)  # the terms are held so that their addresses stay
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found


def split(term: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(seen, bias) of one term: booleans, True = may be seen, and what is added there.

    Hidden is what lies below half of the type's smallest number: models hide with −∞, with that
    smallest number, or with sums of it and a bias.
    """
    if term.dtype == torch.bool:
        return term, None
    hidden = term <= torch.finfo(term.dtype).min / 2
    bias = term.masked_fill(hidden, 0)
    return ~hidden if hidden.any() else None, bias if bias.any() else None


def recognised(seen: Bools, shape: tuple[int, ...]) -> Mask | None:
    """The smallest mask that says the same as booleans (B|1, H|1, Lq|1, Lk|1), True = seen.

    causal, window, keys or one interval a query where that is exact; the array as the last resort.
    """
    queries, length = shape[-2:]
    if seen.all():
        return None
    if np.array_equal(seen, np.broadcast_to(seen[:, :, :1], seen.shape)):
        seen = seen[:, :, :1]
    if seen.shape[1:3] == (1, 1) and seen.shape[3] == length:
        return keys(seen[:, 0, 0].copy())
    whole = np.broadcast_to(seen, (*seen.shape[:3], length))
    count = np.count_nonzero(whole, axis=-1)
    start = whole.argmax(axis=-1)
    stop = np.where(count > 0, length - whole[..., ::-1].argmax(axis=-1), start)
    if np.any(stop - start != count):
        return as_mask(seen.copy())
    if start.shape[-1] == queries:
        named = _by_position(start, stop, length)
        if named is not None:
            return named
    return Normal(np.stack([start, stop], axis=-1)[..., None, :].astype(np.int32), None)


def _by_position(start: Any, stop: Any, length: int) -> Mask | None:
    """causal or window, where the intervals are theirs."""
    queries = start.shape[-1]
    offset = int(stop.flat[0]) - 1
    stands_on = np.arange(queries) + offset
    if offset < 0 or np.any(stop != np.minimum(stands_on + 1, length)):
        return None
    if not start.any():
        return causal(offset)
    left = int(stands_on[-1] - start.flat[queries - 1])
    if np.any(start != np.clip(stands_on - left, 0, length)):
        return None
    return window(left, 0, offset)


def _fingerprint(term: Tensor) -> tuple[Any, ...]:
    version = 0 if term.is_inference() else term._version
    return (term.data_ptr(), tuple(term.shape), term.stride(), term.dtype, term.device, version)


def _normalised(
    terms: tuple[Tensor, ...], shape: tuple[int, ...]
) -> tuple[Mask | None, Tensor | None]:
    seen: Tensor | None = None
    bias: Tensor | None = None
    for term in terms:
        visible, added = split(_without_repeats(term.reshape((1,) * (4 - term.ndim) + term.shape)))
        if visible is not None:
            seen = visible if seen is None else seen & visible
        if added is not None:
            bias = added if bias is None else bias + added
    mask = None if seen is None else recognised(as_numpy(seen), shape)
    return mask, bias


def _without_repeats(term: Tensor) -> Tensor:
    """The term with dimensions that were only expanded cut to size 1."""
    for axis, (size, stride) in enumerate(zip(term.shape, term.stride(), strict=True)):
        if stride == 0 and size > 1:
            term = term.narrow(axis, 0, 1)
    return term
