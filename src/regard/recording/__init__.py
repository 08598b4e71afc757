"""Recording models: what attends to what while a model runs as ever.

watching.py watches a PyTorch model and gives a Recording (record.py). session.py says where it
hooks in; sdpa.py, flex.py, multihead.py and interfaces.py read the calls that models make; terms.py
and call.py turn them into operators; keeper.py decides what is kept of each; cache.py follows the
keys of a generation, and growing.py puts its steps together, stepped.py their read-outs; summary.py
is what is left where only read-outs are kept; unseen.py finds what was missed; files.py saves and
loads. text.py and picture.py read with models on disk (models.py) for the command.
"""

from typing import TYPE_CHECKING, Any

from regard.recording.record import Recording

if TYPE_CHECKING:
    from regard.recording.unseen import UnseenAttention
    from regard.recording.watching import watch

__all__ = ["Recording", "UnseenAttention", "watch"]


def __getattr__(name: str) -> Any:
    """What needs PyTorch is loaded on first use: a file can be read without it."""
    if name == "watch":
        from regard.recording.watching import watch

        return watch
    if name == "UnseenAttention":
        from regard.recording.unseen import UnseenAttention

        return UnseenAttention
    raise AttributeError(f"module 'regard.recording' has no attribute {name!r}")
