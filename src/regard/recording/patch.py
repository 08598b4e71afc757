"""Replacing a function while somebody watches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from regard.recording.call import Call

__all__ = ["Observer", "Patch"]


class Observer(Protocol):
    """What watches a thread, as the functions that replace others see it: a Session."""

    def run(
        self,
        read: Callable[[Any], Call],
        module: Any,
        run: Callable[[], Any],
        opaque: bool = False,
        inside: bool = False,
    ) -> Any:
        """Run an attention function, give its result, and tell of what `read(result)` says."""

    def wanted(self, queries: int, keys: int) -> dict[str, dict[str, Any]]:
        """The read-outs that are kept at once of the call that is about to be made."""


class Patch:
    """An attribute that is replaced as long as at least one `start` has no `stop`, in any thread.

    owner: gives the object whose attribute it is; None where there is nothing to replace.
    wrap: makes the replacement from the original.
    """

    def __init__(
        self, owner: Callable[[], Any], name: str, wrap: Callable[[Any], Callable[..., Any]]
    ) -> None:
        self._owner, self._name, self._wrap = owner, name, wrap
        self._lock = threading.Lock()
        self._users = 0
        self._replaced: tuple[Any, Any] | None = None  # the object, and its own attribute

    def start(self) -> None:
        """Replace the attribute, or count one more user of the replacement."""
        with self._lock:
            self._users += 1
            owner = self._owner()
            if self._replaced is None and owner is not None:
                self._replaced = owner, getattr(owner, self._name)
                setattr(owner, self._name, self._wrap(self._replaced[1]))

    def stop(self) -> None:
        """Put the attribute back where nobody uses the replacement any more."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._replaced is not None:
                owner, original = self._replaced
                setattr(owner, self._name, original)
                self._replaced = None
