"""Recording models: what attends to what while a model runs as ever.

watch.py watches a PyTorch model and gives a Recording (record.py). session.py says where it hooks
in; sdpa.py, flex.py, multihead.py and interfaces.py read the calls that models make; terms.py and
call.py turn them into operators; keeper.py decides what is kept of each, growing.py puts the steps
of a cached generation together, summary.py is what is left where only read-outs are kept; unseen.py
finds what was missed.
"""

from regard.recording.record import Recording
from regard.recording.unseen import UnseenAttention
from regard.recording.watch import watch

__all__ = ["Recording", "UnseenAttention", "watch"]
