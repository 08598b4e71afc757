"""Attention on TensorFlow's tensors, right away and inside tf.function, with gradients.

making.py makes the problem; held.py holds its tensors; attention.py chooses the way through;
plain.py says which calls can be repeated; gradients.py has the gradients; calls.py runs our kernels
on tensors; own.py is the plain expression, for devices that we have no kernels for, for XLA and for
second derivatives.
"""

import sys

from tensorflow.python.autograph.core import config

from regard.frontends.repeated import FRONT_ENDS
from regard.frontends.tensorflow.attention import (
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
from regard.frontends.tensorflow.held import enter, leave
from regard.frontends.tensorflow.making import make
from regard.frontends.tensorflow.plain import PLAIN, repeated, signature

FRONT_ENDS.append((PLAIN, sys.modules[__name__]))
# What tf.function makes of our Python is longer, and no other.
config.CONVERSION_RULES = (config.DoNotConvert("regard"), *config.CONVERSION_RULES)

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
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
    "transposed",
    "untraced",
    "version",
]
