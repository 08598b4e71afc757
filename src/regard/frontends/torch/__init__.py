"""Attention on PyTorch tensors: gradients, torch.compile, and PyTorch's own kernels off the CPU.

attention.py chooses the way through; autograd.py has the gradients; ops.py is what torch.compile
sees; native.py runs our kernels on tensors in main memory; own.py is PyTorch's attention, for
devices that we have no kernels for.
"""

from regard.frontends.torch.attention import (
    attend,
    attention,
    attention_lse,
    broadcast,
    check,
    copy,
    from_numpy,
    host,
    lse,
    plan,
    transposed,
    untraced,
    version,
)

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "check",
    "copy",
    "from_numpy",
    "host",
    "lse",
    "plan",
    "transposed",
    "untraced",
    "version",
]
