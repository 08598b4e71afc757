"""watch: the attention of a PyTorch model, seen while it runs as ever."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import nn

from regard.errors import ModelError
from regard.recording.call import Call, parts
from regard.recording.choices import Choice, check_tokens, choice
from regard.recording.keeper import Keeper, Plan, plan
from regard.recording.record import Recording
from regard.recording.session import Session
from regard.recording.terms import Terms
from regard.recording.unseen import UnseenAttention, compiled, unseen

__all__ = ["Watch", "watch"]


def watch(
    model: nn.Module,
    tokens: Any = None,
    layers: Iterable[int | str] | int | str | None = None,
    heads: Iterable[int] | int | Mapping[int | str, Any] | None = None,
    *,
    mode: str = "lazy",
    read_outs: str | Mapping[str, Any] = "default",
    budget: int | str | None = None,
    values: bool = False,
) -> Watch:
    """See the attention weights of a model without changing it or what it computes.

        with regard.watch(model, tokens=tokens) as seen:
            model(**inputs)
        print(seen)              # one line for each attention call
        seen[3].top_k(5)         # the operator of the fourth call, an AttentionWeights

    The model computes what it would have computed, bit for bit: its own functions are called with
    their own arguments, and the weights are computed again, from the queries and keys, when asked
    for. Seen are calls of F.scaled_dot_product_attention and flex_attention under any name, of
    torch.nn.MultiheadAttention and the transformer layers built on it, and the models of
    transformers with the implementations "eager", "sdpa" and "flex_attention". What an eager model
    shows as its weights is compared with the operator's on three rows. Modules that look like
    attention, ran, and were not seen are listed in `seen.unseen` and in a warning at the end: what
    torch.compile has compiled is among them, and what ran in another thread than the one that
    entered. Forwards that a backward pass repeats (checkpointing) are not seen again.

    Queries and keys are referred to, not copied, and keep their memory. Two exceptions: tensors of
    inference mode, and those written in place before (a static cache of keys) are copied. What is
    changed in place later raises StaleOperator.

    Calls that go on with a cache of keys, as in `generate`, are one record for each module, whose
    `steps` tell the calls apart; see growing.py for the caches that are followed. Where a cache was
    reordered (beam search) or cut, a new record begins.

    Args:
        model: any module of PyTorch.
        tokens: the texts of the positions, or a list of them for each text of the batch; kept as
            `seen.tokens`.
        layers: keep these calls only: numbers count the modules that attend, in the order in which
            they first do; names are modules, or modules around them.
        heads: keep these query heads only: numbers, or a dict {layer: numbers} instead of layers.
        mode: "lazy" keeps operators; "stats" computes read-outs at once and keeps nothing else, one
            `Summary` a call, cached steps too.
        read_outs: what "stats" keeps: "default" (the preset of `attend`, and offsets −1, 0, 1),
            "heads" (that and all scores of each head, which takes longer), or a dict as `attend`
            takes it: `{"entropy": True, "top_k": 4}`.
        budget: the memory that records may hold, a number of bytes or a text such as "256MB". A
            call for which there is no room as an operator is kept as its read-outs, then not at
            all, and `seen.notes` says so. A tensor that is part of a larger one (queries cut from
            one projection) counts as the larger one: that is what cannot be freed.
        values: keep values and outputs too, for `seen.relevance` and `seen.rollout(by_value=True)`;
            outputs keep their graph of gradients.

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
    check_tokens(tokens)
    return Watch(model, tokens, choice(model, layers, heads), plan(mode, read_outs, budget, values))


class Watch:
    """One watching of a model: `with watch(model) as seen`."""

    def __init__(self, model: nn.Module, tokens: Any, choice: Choice, plan: Plan) -> None:
        self._recording = Recording(type(model).__name__, tokens)
        self._keeper = Keeper(self._recording, plan)
        self._choice = choice
        self._names = {module: name for name, module in model.named_modules()}
        self._model = model
        self._session: Session | None = None
        self._entered = False
        self._terms = Terms()
        self._ran: set[nn.Module] = set()
        self._covered: set[nn.Module] = set()
        self._failed: dict[str, str] = {}  # module: why its call could not be read
        self._elsewhere: set[nn.Module] = set()  # ran in another thread

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
        self._keeper.finish()
        self._list_unseen()
        self._recording._unmatched = self._choice.unmatched
        self._recording.notes += filter(None, [self._choice.left_out])
        if error is None:
            self._warn()
        self._terms = Terms()
        self._names = {}
        self._ran, self._covered, self._elsewhere = set(), set(), set()

    def ran(self, module: nn.Module) -> None:
        """A module's forward begins."""
        if module in self._names:
            self._ran.add(module)

    def ran_elsewhere(self, module: nn.Module) -> None:
        """A module's forward begins in another thread, where nobody watches."""
        if module in self._names:
            self._elsewhere.add(module)

    def wanted(self, stack: list[nn.Module], queries: int, keys: int) -> dict[str, dict[str, Any]]:
        """The read-outs that are kept at once, of all heads, of a call that is about to be made."""
        ours = [module for module in stack if module in self._names]
        name = self._name(ours)
        kept, heads = self._choice.of(name) if ours else (False, None)
        return self._keeper.at_once(name, queries, keys) if kept and heads is None else {}

    def saw(self, read: Callable[[], Call], stack: list[nn.Module]) -> None:
        """A call was made: keep its operator, or the reason why there is none."""
        ours = [module for module in stack if module in self._names]
        if stack and not ours:
            return
        name = self._name(ours)
        wanted, heads = self._choice.of(name)
        try:
            if wanted:
                call = read()
                self._keeper.keep(call, parts(call, self._terms, heads), name, heads)
        except Exception as error:  # the model must go on; what could not be seen is told of
            module = ours[-1] if ours else self._model
            self._failed[self._titled(name, module)] = f"{error}" or type(error).__name__
        self._covered.update(ours)

    def _name(self, ours: list[nn.Module]) -> str:
        """Of the innermost module; the model itself has no name, its class has one."""
        return (self._names[ours[-1]] if ours else "") or self._recording.model

    def _list_unseen(self) -> None:
        missed = unseen(self._names, self._ran, self._covered)
        other = unseen(self._names, self._elsewhere - self._ran, self._covered)
        hidden = compiled(self._names, self._covered)
        self._recording.unseen += [
            *(self._titled(*item) for item in missed.items()),
            *(
                f"{self._titled(*item)}: torch.compile hides what is in it"
                for item in hidden.items()
            ),
            *(
                f"{self._titled(*item)}: it ran in another thread than the one that watches"
                for item in other.items()
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
