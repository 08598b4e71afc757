"""Attention on JAX arrays: under jit, grad, vmap, checkpoint and scan as anywhere else.

attention.py chooses the way through; derivatives.py has the gradients; kernel.py calls a kernel
and says what vmap makes of it; ffi.py is the call through XLA, callback.py the one through Python;
masks.py brings masks into their normal form, traced ones too; own.py is the plain expression, for
devices that we have no kernels for and for second derivatives.
"""

from regard.frontends.jax.attention import (
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
