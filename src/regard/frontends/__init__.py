"""Front ends: arrays of one framework in, the same out. Each file offers the same functions.

A framework is never imported for the user: it is there because their array brought it.

    make(query, key, value, **options)  the problem of a call, checked (regard.problem.make)
    enter(array)                        what the functions below and problems hold of an array
    leave(array)                        the array again, for the caller
    attention(problem, backend)         output
    attention_lse(problem, backend)     output, log-sum-exp
    attend(problem, backend, fields)    output, log-sum-exp; a read-out's fields are filled
    lse(problem, backend)               log-sum-exp
    transposed(problem, y, backend)     weightsᵀ y, per query head
    from_numpy(array, like)             an array of this framework, on the device of `like`
    broadcast(array, shape)             a view of that shape
    cast(array, dtype)                  the array in that type
    take(table, index)                  entries of tables; a front end without it, and without cast,
                                        takes no biases by distance
    check(**arrays)                     that they can be used together
    version(array)                      changes with each change in place; None: cannot tell
    copy(array)                         an independent copy
    host(problem, backend)              the problem in main memory, and what reads it out there
    untraced(function)                  the function, hidden from a tracer
    plan(problem, backend)              what would compute the problem
    signature(query, key, value, bias)  what a plain call depends on but elements (repeated.py)
    repeated(problem, backend)          a plain call for all arrays of its signature
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from regard.errors import ArrayTypeError

__all__ = ["front_end"]

# What a package of arrays is called, by the package or module that its types come from.
_FRAMEWORKS = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "tensorflow": "tensorflow",
    "regard.frontends.tensorflow.held": "tensorflow",
}


def front_end(**arrays: Any) -> ModuleType:
    """The front end for these arrays, all of one framework; bias and sinks may be None.

    Raises: ArrayTypeError.
    """
    found = {
        _framework(name, array): name
        for name, array in arrays.items()
        if array is not None or name not in ("bias", "sinks")
    }
    if len(found) > 1:
        kinds = ", ".join(f"{name} from {framework}" for framework, name in found.items())
        raise ArrayTypeError(f"arrays of different frameworks: {kinds}", "one framework a call")
    module = _load(next(iter(found)))
    module.check(**arrays)
    return module


def _load(framework: str) -> ModuleType:
    match framework:
        case "torch":
            from regard.frontends import torch

            return torch
        case "jax":
            from regard.frontends import jax

            return jax
        case "tensorflow":
            from regard.frontends import tensorflow

            return tensorflow
        case _:
            from regard.frontends import numpy

            return numpy


def _framework(name: str, array: Any) -> str:
    if isinstance(array, np.ma.MaskedArray):
        raise ArrayTypeError(
            f"{name} of type MaskedArray",
            "a plain array",
            f"pass {name}.data, and what a query may see as mask=",
        )
    if isinstance(array, np.ndarray):
        return "numpy"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):  # torch.compile cannot trace a loop
        return "torch"
    for kind in type(array).__mro__:
        for module in (kind.__module__.partition(".")[0], kind.__module__):
            if module in _FRAMEWORKS and hasattr(array, "shape"):
                return _FRAMEWORKS[module]
    raise ArrayTypeError(
        f"{name} of type {type(array).__name__}",
        "an array of NumPy, PyTorch, JAX or TensorFlow",
        "convert it, for example with numpy.asarray",
    )
