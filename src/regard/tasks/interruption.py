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
        """Until the block ends; it ends in KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():  # others hear no signals
            yield
            return
        before = signal.signal(signal.SIGINT, self._hear)
        try:
            yield
        except SystemExit as ended:  # which is what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from ended
        finally:
            signal.signal(signal.SIGINT, before)

    def _hear(self, *_: Any) -> None:
        self._asked = True
        raise KeyboardInterrupt

    def on_train_batch_end(self, *_: Any) -> None:
        """Here nothing loses it."""
        if self._asked:
            raise KeyboardInterrupt
