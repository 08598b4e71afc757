"""watch: the attention of a PyTorch model, seen while it runs as ever."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Sequence
from operator import index
from types import TracebackType
from typing import Any

import numpy as np
from torch import nn

from regard.errors import ModelError, OptionError
from regard.operator import AttentionWeights
from regard.recording.call import Call, operator
from regard.recording.record import Recording
from regard.recording.session import Session
from regard.recording.terms import Terms
from regard.recording.unseen import UnseenAttention, compiled, unseen

__all__ = ["Watch", "watch"]


def watch(
    model: nn.Module,
    tokens: Any = None,
    layers: Iterable[int | str] | int | None = None,
    heads: Iterable[int] | int | None = None,
) -> Watch:
    """See the attention weights of a model without changing it or what it computes.

        with regard.watch(model, tokens=tokens) as seen:
            model(**inputs)
        print(seen)              # one line for each attention call
        seen[3].top_k(5)         # the operator of the fourth call, an AttentionWeights

    The model computes what it would have computed, bit for bit: its own functions are called with
    their own arguments, and the weights are computed again, from the queries and keys, when asked
    for. Seen are calls of F.scaled_dot_product_attention under any name, of
    torch.nn.MultiheadAttention and the transformer layers built on it, and the models of
    transformers with the implementations "eager" and "sdpa". What an eager model shows as its
    weights is compared with the operator's on three rows. Modules that look like attention, ran,
    and were not seen are listed in `seen.unseen` and in a warning at the end.

    Queries and keys are referred to, not copied, and keep their memory. Two exceptions: tensors of
    inference mode, and those written in place before (a static cache of keys) are copied. What is
    changed in place later raises StaleOperator. Only the thread that entered is watched; forwards
    that a backward pass repeats (checkpointing) are not seen again; what torch.compile has compiled
    is not seen.

    Args:
        model: any module of PyTorch.
        tokens: the texts of the positions, or a list of them for each text of the batch; kept as
            `seen.tokens`.
        layers: keep these calls only: numbers count the modules that attend, in the order in which
            they first do; names are modules, or modules around them.
        heads: keep these query heads only.

    Returns:
        A context manager, entered once, that gives a Recording.

    Raises: ModelError, OptionError.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model of type {type(model).__name__}",
            "a torch.nn.Module",
            "pass the module itself: of a pipeline or a wrapper that is often its attribute model",
        )
    _check_tokens(tokens)
    return Watch(model, tokens, _layers(model, layers), _heads(heads))


class Watch:
    """One watching of a model: `with watch(model) as seen`."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Any,
        layers: list[int | str] | None,
        heads: list[int] | None,
    ) -> None:
        self._recording = Recording(type(model).__name__, tokens, heads)
        self._layers, self._heads = layers, heads
        self._names = {module: name for name, module in model.named_modules()}
        self._model = model
        self._session: Session | None = None
        self._entered = False
        self._terms = Terms()
        self._ran: set[nn.Module] = set()
        self._covered: set[nn.Module] = set()
        self._failed: dict[str, str] = {}  # module: why its call could not be read
        self._order: dict[str, int] = {}  # modules that attend, numbered
        self._matched: set[int | str] = set()  # entries of layers that met one

    def __enter__(self) -> Recording:
        if self._entered:
            raise ModelError(
                "a watch that was entered before",
                "one watch for each with",
                "call regard.watch(model) again",
            )
        self._entered = True
        self._session = Session.join(self)
        return self._recording

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        self._session.leave(self)
        self._session = None
        self._list_unseen()
        self._recording._unmatched = self._unmatched()
        if error is None:
            self._warn()
        self._terms = Terms()
        self._names, self._ran, self._covered = {}, set(), set()

    def ran(self, module: nn.Module) -> None:
        """A module's forward begins."""
        if module in self._names:
            self._ran.add(module)

    def saw(self, read: Callable[[], Call], stack: list[nn.Module]) -> None:
        """A call was made: keep its operator, or the reason why there is none."""
        ours = [module for module in stack if module in self._names]
        if stack and not ours:
            return
        name = self._name(ours)
        number = self._order.setdefault(name, len(self._order))
        try:
            if self._wanted(name, number):
                self._keep(operator(read(), self._terms, self._heads), name)
        except Exception as error:  # the model must go on; what could not be seen is told of
            module = ours[-1] if ours else self._model
            self._failed[self._titled(name, module)] = f"{error}" or type(error).__name__
        self._covered.update(ours)

    def _keep(self, weights: AttentionWeights, name: str) -> None:
        weights.name = name
        self._recording._calls.append(weights)

    def _name(self, ours: list[nn.Module]) -> str:
        """Of the innermost module; the model itself has no name, its class has one."""
        return (self._names[ours[-1]] if ours else "") or self._recording.model

    def _wanted(self, name: str, number: int) -> bool:
        if self._layers is None:
            return True
        matched = [
            entry
            for entry in self._layers
            if entry in (number, "")
            or (isinstance(entry, str) and f"{name}.".startswith(f"{entry}."))
        ]
        self._matched.update(matched)
        return bool(matched)

    def _unmatched(self) -> str:
        """Which layers that were asked for did not attend, where others did."""
        left = [entry for entry in self._layers or () if entry not in self._matched]
        if not left or not self._order:
            return ""
        return f"layers={left} matches none of those that attended: {', '.join(self._order)}"

    def _list_unseen(self) -> None:
        missed = unseen(self._names, self._ran, self._covered)
        hidden = compiled(self._names, self._covered)
        self._recording.unseen += [
            *(self._titled(*item) for item in missed.items()),
            *(
                f"{self._titled(*item)}: torch.compile hides what is in it"
                for item in hidden.items()
            ),
            *(f"{name}: {reason}" for name, reason in self._failed.items()),
        ]

    def _titled(self, name: str, module: nn.Module) -> str:
        return f"{name or self._recording.model} ({type(module).__name__})"

    def _warn(self) -> None:
        recording = self._recording
        message = recording._unmatched
        if recording.unseen:
            shown = [line.rstrip(".") for line in recording.unseen[:4]]
            message = (
                f"{len(recording.unseen)} modules of {recording.model} attended unseen: "
                f"{'; '.join(shown)}{'; …' if len(recording.unseen) > 4 else ''}"
            )
        elif not recording and not message:
            message = (
                f"nothing was seen: no attention of {recording.model} ran while it was watched"
            )
        if message:
            warnings.warn(message, UnseenAttention, stacklevel=3)


def _check_tokens(tokens: Any) -> None:
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


def _layers(model: nn.Module, layers: Iterable[int | str] | int | None) -> list[int | str] | None:
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


def _heads(heads: Iterable[int] | int | None) -> list[int] | None:
    if heads is None:
        return None
    wrong = OptionError(f"heads={heads!r}", "numbers of heads, from 0")
    numbers: list[int] = []
    for entry in _entries(heads, wrong):
        if isinstance(entry, str) or entry < 0:
            raise wrong
        numbers.append(entry)
    return numbers


def _entries(given: Any, wrong: OptionError) -> list[int | str]:
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
