"""Attention on PyTorch tensors: gradients, torch.compile, and PyTorch's own kernels off the CPU.

attention.py chooses the way through; plain.py says which calls can be repeated; autograd.py has the
gradients; ops.py is what torch.compile sees; native.py runs our kernels on tensors in main memory;
own.py is PyTorch's attention, for devices that we have no kernels for.
"""

import sys

from torch import Tensor

from regard._arrays import as_it_is as enter
from regard._arrays import as_it_is as leave
from regard.frontends.repeated import FRONT_ENDS
from regard.frontends.torch.attention import (
    attend,
    attention,
    attention_lse,
    broadcast,
    cast,
    check,
    copy,
    from_numpy,
    host,
    lse,
    plan,
    take,
    transposed,
    untraced,
    version,
    wants_gradients,
)
from regard.frontends.torch.plain import repeated, signature
from regard.problem import make

FRONT_ENDS.append((Tensor, sys.modules[__name__]))

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "cast",
    "check",
    "copy",
    "enter",
    "from_numpy",
    "host",
    "leave",
    "lse",
    "make",
    "plan",
    "repeated",
    "signature",
    "take",
    "transposed",
    "untraced",
    "version",
    "wants_gradients",
]
