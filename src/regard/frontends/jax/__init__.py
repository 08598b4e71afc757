"""Attention on JAX arrays: under jit, grad, vmap, checkpoint and scan as anywhere else.

attention.py chooses the way through; derivatives.py has the gradients; kernel.py calls a kernel
and says what vmap makes of it; ffi.py is the call through XLA, callback.py the one through Python;
masks.py brings masks into their normal form, traced ones too; own.py is the plain expression, for
devices that we have no kernels for and for second derivatives.
"""

from regard._arrays import as_it_is as enter
from regard._arrays import as_it_is as leave
from regard.frontends.jax.attention import (
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
)
from regard.problem import make

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
    "take",
    "transposed",
    "untraced",
    "version",
]
