"""Tensors with values that nobody takes gradients of: their calls can be repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python import pywrap_tfe

from regard import dispatch
from regard.frontends.tensorflow.attention import elsewhere
from regard.frontends.tensorflow.calls import Unmade, empty, to_tensor
from regard.frontends.tensorflow.held import view
from regard.masks import Mask
from regard.problem import Problem

__all__ = ["PLAIN", "Repeated", "repeated", "signature"]

PLAIN = type(tf.constant(0))  # of tensors that have values


def signature(query: Any, key: Any, value: Any, bias: Any = None) -> tuple[Any, ...] | None:
    """All that a call depends on but addresses and elements; None where they are not plain."""
    if not (type(query) is type(key) is type(value) is PLAIN):
        return None
    if not pywrap_tfe.TFE_Py_TapeSetIsEmpty() or elsewhere(query):
        return None
    more = None
    if bias is not None:
        if type(bias) is not PLAIN:
            return None
        more = (bias.dtype, *bias.shape)
    # fmt: off
    return (
        PLAIN, more,
        query.dtype, *query.shape,
        key.dtype, *key.shape,
        value.dtype, *value.shape,
    )
    # fmt: on


def repeated(problem: Problem | Unmade, backend: str | None) -> Repeated | None:
    """How to repeat a call without sinks and dropout; None: it goes another way."""
    if backend == "tensorflow" or isinstance(problem, Unmade):
        return None
    names = ("query", "key", "value", "bias")
    given = {name: getattr(problem, name) for name in names}
    moved: dict[str, Any] = {
        name: None if array is None else view(array) for name, array in given.items()
    }
    output = empty(problem.output_shape, moved["query"].dtype)
    heads_first = output if problem.layout == "BHLD" else output.swapaxes(-3, -2)
    prepared = dispatch.prepare(problem.replace(**moved), heads_first, backend)
    return None if prepared is None else Repeated(output, prepared)


class Repeated:
    """A plain call for all tensors of its signature."""

    def __init__(self, output: npt.NDArray[Any], prepared: dispatch.Prepared) -> None:
        self._shape, self._dtype, self._prepared = output.shape, output.dtype, prepared

    def output(self, query: Any, key: Any, value: Any, bias: Any, mask: Mask | None) -> Any:
        """The output in the caller's layout."""
        output = empty(self._shape, self._dtype)
        seen, _alive = self._prepared.seen(mask)
        arrays = [np.asarray(tensor) for tensor in (query, key, value)]
        of_bias = None if bias is None else np.asarray(bias)
        address = 0 if of_bias is None else of_bias.ctypes.data
        of_query, of_key, of_value = (array.ctypes.data for array in arrays)
        self._prepared.forward(of_query, of_key, of_value, address, seen, output.ctypes.data)
        return to_tensor(output)
