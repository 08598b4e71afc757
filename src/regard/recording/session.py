"""What is hooked into PyTorch and transformers while a thread watches: one session a thread.

    every module's forward      → which module is running (global hooks: hooks on the modules
                                  themselves would switch off PyTorch's fast paths)
    scaled_dot_product_attention, multi_head_attention_forward, flex_attention
                                → a TorchFunctionMode
    the functions that transformers' models look up → interfaces.py
    Regard's own attention → own.py

A TorchFunctionMode alone would switch off the fast paths of torch.nn's transformer modules as well,
and so change a model's bits: it steps aside while one of those runs, and their hooks tell the call.
It steps aside for compiled modules too, or torch.compile would compile them once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from regard.recording import flex, interfaces, multihead, own, sdpa
from regard.recording.call import Call
from regard.recording.unseen import is_compiled

__all__ = ["Session", "Watcher"]


class Watcher(Protocol):
    """One that is told of everything in its thread."""

    def ran(self, module: nn.Module) -> None:
        """A module's forward begins."""

    def ran_elsewhere(self, module: nn.Module) -> None:
        """A module's forward begins in a thread that nobody watches."""

    def saw(self, read: Callable[[], Call], stack: list[nn.Module]) -> None:
        """A call was made, by the last module of the stack. `read` may raise."""

    def wanted(self, stack: list[nn.Module], queries: int, keys: int) -> dict[str, dict[str, Any]]:
        """The read-outs that are kept at once of a call that the stack's last module begins."""


class Session:
    """Everything hooked for one thread; its watchers are told of all calls."""

    _local = threading.local()

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []
        self._stack: list[_Frame] = []
        self._muted, self._told = False, 0  # _told: calls so far
        self._seeing = False
        self._mode = _Mode(self)

    @classmethod
    def join(cls, watcher: Watcher) -> Session:
        """Add a watcher to this thread's session, which begins with the first."""
        session = cls._current() or Session()
        session._watchers.append(watcher)
        if len(session._watchers) == 1:
            session._start()
        return session

    def leave(self, watcher: Watcher) -> None:
        """Take a watcher away; with the last one everything is put back."""
        self._watchers.remove(watcher)
        if not self._watchers:
            self._stop()

    @classmethod
    def _current(cls) -> Session | None:
        return getattr(cls._local, "session", None)

    @staticmethod
    def _observer() -> Session | None:
        session = Session._current()
        return None if session is None or session._muted else session

    def _start(self) -> None:
        Session._local.session = self
        _hook(self)
        for patch in _PATCHES:
            patch.start()
        self._switch(on=True)

    def _stop(self) -> None:
        self._switch(on=False)
        for patch in _PATCHES:
            patch.stop()
        _unhook(self)
        self._stack.clear()
        Session._local.session = None

    def _elsewhere(self, module: nn.Module) -> None:
        for watcher in list(self._watchers):
            watcher.ran_elsewhere(module)

    def _begins(self, module: nn.Module) -> None:
        if self._stack:
            self._stack[-1].calls_modules = True
        self._stack.append(_Frame(module, self._seeing))
        self._switch(on=not (multihead.fast(module) or is_compiled(module)))
        for watcher in self._watchers:
            watcher.ran(module)

    def _ends(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if not any(frame.module is module for frame in self._stack):
            return
        while True:  # frames above the module's are those of forwards that a BaseException left
            frame = self._stack.pop()
            self._switch(on=frame.seeing)
            if frame.module is module:
                break
        failed = kwargs is None or result is None  # after an exception PyTorch calls with less
        if multihead.fast(module) and not frame.covered and not failed:
            self._stack.append(_Frame(module, self._seeing))
            self._tell_of_fast_path(module, args, kwargs, frame.calls_modules)
            frame.covered = self._stack.pop().covered
        if frame.covered and self._stack:
            self._stack[-1].covered = True

    def _switch(self, on: bool) -> None:
        """Begin or end seeing PyTorch's own functions.

        Where another mode lies on top of ours, the fast paths are off with or without us.
        """
        if on and not self._seeing:
            self._mode.begin()
            self._seeing = True
        elif self._seeing and not on and self._mode.on_top:
            self._mode.end()
            self._seeing = False

    def _tell_of_fast_path(self, module: nn.Module, args: Any, kwargs: Any, slow: bool) -> None:
        if isinstance(module, nn.MultiheadAttention):
            self._tell(lambda: multihead.read_module(module, args, kwargs))
        elif isinstance(module, nn.TransformerEncoderLayer):
            read = multihead.read_slow_layer if slow else multihead.read_encoder_layer
            self._tell(lambda: read(module, args, kwargs), module.self_attn)

    def wanted(self, queries: int, keys: int) -> dict[str, dict[str, Any]]:
        """The read-outs that a watcher keeps at once of the call that is about to be made."""
        stack = [frame.module for frame in self._stack]
        if not stack or self._untold():
            return {}
        found = (watcher.wanted(stack, queries, keys) for watcher in self._watchers)
        return next(filter(None, found), {})

    def run(
        self,
        read: Callable[[Any], Call],
        module: Any,
        run: Callable[[], Any],
        opaque: bool = False,
        inside: bool = False,
    ) -> Any:
        """Run an attention function of a model, and tell of the call.

        What the function calls in turn is the same call, and not told of; of an opaque one that is
        all there is, and its own call is told of only if there was none. `inside`: tell of it only
        inside of a module.
        """
        told, muted, seeing = self._told, self._muted, self._seeing
        self._muted = not opaque
        self._switch(on=seeing and opaque)  # a mode makes compiled functions compile once more
        try:
            result = run()
        finally:
            self._muted = muted
            self._switch(on=seeing)
        known = opaque and self._told > told
        outside = inside and not self._stack
        if not known and not outside:
            self._tell(lambda: read(result), module if isinstance(module, nn.Module) else None)
        return result

    def _tell(self, read: Callable[[], Call], module: nn.Module | None = None) -> None:
        """Show a call to the watchers, made by the innermost module or the one given."""
        if self._untold():
            return
        self._told += 1
        if self._stack:
            self._stack[-1].covered = True
        stack = [frame.module for frame in self._stack]
        if module is not None and module not in stack:
            stack.append(module)
        seeing = self._seeing
        self._muted = True
        self._switch(on=False)  # a mode makes every call of PyTorch slower, those of watchers too
        try:
            with torch.no_grad():
                for watcher in self._watchers:
                    watcher.saw(read, stack)
        finally:
            self._muted = False
            self._switch(on=seeing)

    def _untold(self) -> bool:
        """Whether nobody is told of calls: they belong to another, or were told of, or compile."""
        return bool(
            self._muted
            or _repeats()
            or torch._C._get_tracing_state()
            or torch.compiler.is_compiling()
        )


def _repeats() -> bool:
    """Whether a backward pass recomputes a checkpointed forward, which was seen already."""
    return torch._C._current_graph_task_id() != -1


_PATCHES = (interfaces.patch(Session._observer), *own.patches(Session._observer))


# The number of our hooks, always the same, and none that PyTorch gives: what torch.compile compiles
# depends on the numbers of all hooks, and a new one for each watch would make it compile again.
_NUMBER = -1
_HOOKED: list[Session] = []
_LOCK = threading.Lock()


def _hook(session: Session) -> None:
    """Show a session what modules do; all sessions share two hooks."""
    with _LOCK:
        _HOOKED.append(session)
        hooks._global_forward_pre_hooks[_NUMBER] = _before
        hooks._global_forward_hooks[_NUMBER] = _after
        hooks._global_forward_hooks_with_kwargs[_NUMBER] = True
        hooks._global_forward_hooks_always_called[_NUMBER] = True


def _unhook(session: Session) -> None:
    with _LOCK:
        _HOOKED.remove(session)
        if not _HOOKED:
            hooks._global_forward_pre_hooks.pop(_NUMBER)
            hooks._global_forward_hooks.pop(_NUMBER)
            hooks._global_forward_hooks_with_kwargs.pop(_NUMBER)
            hooks._global_forward_hooks_always_called.pop(_NUMBER)


def _before(module: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling():
        return
    session = Session._current()
    if session is not None:
        session._begins(module)
    elif not _repeats():
        for other in list(_HOOKED):
            other._elsewhere(module)


def _after(module: nn.Module, args: Any, kwargs: Any = None, result: Any = None) -> None:
    if torch.compiler.is_compiling():
        return
    session = Session._current()
    if session is not None:
        session._ends(module, args, kwargs, result)


class _Frame:
    """A module whose forward is running."""

    def __init__(self, module: nn.Module, seeing: bool) -> None:
        self.module, self.seeing = module, seeing  # whether our mode was on around it
        self.covered = False  # whether a call was seen in it
        self.calls_modules = False


class _Mode(TorchFunctionMode):
    """Sees PyTorch's own attention functions, under whatever name they were imported."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def begin(self) -> None:
        """See the functions that are called from now on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """See no more."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    @property
    def on_top(self) -> bool:
        """Whether no other mode was begun since."""
        return _get_current_function_mode() is self  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = _READERS.get(func)
        if read is not None and not torch.compiler.is_compiling():
            self._session._tell(lambda: read(args, kwargs, result))
        return result


# PyTorch's attention functions, and what reads a call of theirs: (args, kwargs, result).
_READERS: dict[Any, Callable[..., Call]] = {
    **dict.fromkeys(
        sdpa.FUNCTIONS,
        lambda args, kwargs, result: sdpa.read(*args, **kwargs).replace(output=result),
    ),
    flex.FUNCTION: lambda args, kwargs, result: flex.read(*args, **kwargs).replace(
        output=result[0]
    ),
    multihead.FUNCTION: lambda args, kwargs, _: multihead.read_function(args, kwargs),
}
