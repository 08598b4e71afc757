"""Ctrl-C during a training, which ends it even where Python loses it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback

__all__ = ["Interruption"]


class Interruption(Callback):
    """What Python raises for Ctrl-C inside a destructor goes nowhere: it is raised again later."""

    def __init__(self) -> None:
        self._asked = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Until the block ends, in KeyboardInterrupt. A handler that somebody has set stays."""
        handler = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()  # others may change nothing
        if main and handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._hear)
        try:
            yield
        except SystemExit as ended:  # which is what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from ended
        finally:
            if main and handler is not None:
                signal.signal(signal.SIGINT, handler)

    def _hear(self, *_: Any) -> None:
        self._asked = True
        raise KeyboardInterrupt

    def on_train_batch_end(self, *_: Any) -> None:
        """Here nothing loses it."""
        if self._asked:
            raise KeyboardInterrupt
