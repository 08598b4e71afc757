"""What `watch` is asked to look at, checked: tokens, layers and heads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
from torch import nn

from regard.errors import OptionError

__all__ = ["Choice", "Entry", "check_tokens", "choice"]

Entry = int | str  # of layers: a number, or the name of a module


class Choice:
    """Which layers, and which heads of each, to keep; None: all.

    Numbers of layers count the modules that attend, in the order in which they first do.
    """

    def __init__(
        self, layers: list[Entry] | None, heads: list[int] | dict[Entry, list[int]] | None
    ) -> None:
        self._layers, self._heads = layers, heads
        self._order: dict[str, int] = {}  # modules that attend, numbered
        self._matched: set[Entry] = set()
        self._kept: set[str] = set()  # modules that an entry matched

    def of(self, name: str) -> tuple[bool, list[int] | None]:
        """Whether to keep calls of the module `name`, and which heads of them."""
        number = self._order.setdefault(name, len(self._order))
        entries = self._heads if isinstance(self._heads, dict) else self._layers
        if entries is None:
            return True, self._every
        matched = [entry for entry in entries if _matches(entry, name, number)]
        self._matched.update(matched)
        if matched:
            self._kept.add(name)
        if isinstance(self._heads, dict):
            found = [head for entry in matched for head in self._heads[entry]]
            return bool(matched), list(dict.fromkeys(found))
        return bool(matched), self._every

    @property
    def unmatched(self) -> str:
        """Which layers that were asked for did not attend, where others did."""
        entries = self._heads if isinstance(self._heads, dict) else self._layers
        left = [entry for entry in entries or () if entry not in self._matched]
        if not left or not self._order:
            return ""
        return f"layers={left} matches none of those that attended: {', '.join(self._order)}"

    @property
    def left_out(self) -> str:
        """How many modules were kept, where an entry matched some and not all."""
        if not 0 < len(self._kept) < len(self._order):
            return ""
        return f"Of {len(self._order)} modules that attended, {len(self._kept)} were kept."

    @property
    def _every(self) -> list[int] | None:
        return None if isinstance(self._heads, dict) else self._heads


def _matches(entry: Entry, name: str, number: int) -> bool:
    below = isinstance(entry, str) and f"{name}.".startswith(f"{entry}.")
    return entry in (number, "") or below


def choice(model: nn.Module, layers: Any, heads: Any) -> Choice:
    """The choice that arguments of `watch` make. Raises OptionError."""
    if not isinstance(heads, Mapping):
        return Choice(_layers(model, layers), _heads(heads))
    if layers is not None:
        raise OptionError(
            "heads by layer, and layers=", "one of the two", "the keys of heads= are the layers"
        )
    wrong = OptionError(f"heads={heads!r}", "{layer: numbers of heads}", "leave it out for all")
    if not heads or None in heads.values():
        raise wrong
    by_layer: dict[Entry, list[int]] = {}
    for entry, numbers in heads.items():
        if not isinstance(entry, str) and not _is_index(entry):
            raise wrong
        (layer,) = _layers(model, entry) or []
        by_layer[layer] = _heads(numbers) or []
    return Choice(None, by_layer)


def check_tokens(tokens: Any) -> None:
    """Raise OptionError for tokens that are no list of texts, or one for each text of a batch."""

    def texts(row: Any) -> bool:
        return _is_list(row) and all(isinstance(token, str) for token in row)

    valid = texts(tokens) or (_is_list(tokens) and all(map(texts, tokens)))
    if tokens is not None and not valid:
        raise OptionError(
            f"tokens of type {type(tokens).__name__}",
            "a list of strings, or one for each text of the batch",
            "tokenizer.convert_ids_to_tokens(ids) gives one",
        )


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _layers(model: nn.Module, layers: Any) -> list[Entry] | None:
    if layers is None:
        return None
    chosen = _entries(layers, OptionError(f"layers={layers!r}", "numbers and names of modules"))
    names = dict(model.named_modules())
    for entry in chosen:
        if isinstance(entry, str) and entry not in names:
            near = difflib.get_close_matches(entry, names, 3)
            hint = f"perhaps {' or '.join(near)}" if near else "list(dict(model.named_modules()))"
            raise OptionError(f"layers with {entry!r}", "the name of a module", hint)
    return chosen


def _heads(heads: Any) -> list[int] | None:
    if heads is None:
        return None
    wrong = OptionError(f"heads={heads!r}", "numbers of heads, from 0")
    numbers: list[int] = []
    for entry in _entries(heads, wrong):
        if isinstance(entry, str) or entry < 0:
            raise wrong
        numbers.append(entry)
    return numbers


def _entries(given: Any, wrong: OptionError) -> list[Entry]:
    """One entry or several as a list: strings, and integers of any type. Raises what is given."""
    if isinstance(given, str) or _is_index(given):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise wrong
    found = list(given)
    if not found or not all(isinstance(entry, str) or _is_index(entry) for entry in found):
        raise wrong
    return [entry if isinstance(entry, str) else index(entry) for entry in found]


def _is_index(value: Any) -> bool:
    try:
        index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)
