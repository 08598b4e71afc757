"""Plain calls that were made before: checked and packed once, repeated for the price of a look-up.

A call's checks, its kernel and what is packed for it depend on its signature: types, shapes and
strides of query, key and value, and the options. Calls of one signature differ in addresses and
elements alone. What else a call may depend on (other arrays, gradients, tracers) makes it not
plain: then it takes the long way, as it does where a kernel would need copies.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from regard import dispatch
from regard.masks import Mask
from regard.problem import make

__all__ = ["FRONT_ENDS", "repeat"]

FRONT_ENDS: dict[type, ModuleType] = {}  # those in use so far, by the type of their plain arrays

_MOST = 256  # signatures that are kept
_OPTIONS = (type(None), float, int, str)  # an option of another type is not plain

_known: dict[Any, Any] = {}  # by signature: the front end's Repeated; None: only the long way


def repeat(
    query: Any, key: Any, value: Any, mask: Any, scale: Any, softcap: Any, layout: Any, backend: Any
) -> Any:
    """The output of a plain call without bias, sinks and dropout; None: take the long way.

    Raises: what the long way would raise.
    """
    front = FRONT_ENDS.get(type(query))
    arrays = front and front.signature(query, key, value)
    if arrays is None:
        return None
    shown = None
    if mask is not None:
        shown = mask.signature if isinstance(mask, Mask) else None
        if shown is None:
            return None
    signature = (arrays, shown, scale, softcap, layout, backend)
    try:
        call = _known[signature]
    except KeyError:
        call = _first(front, (query, key, value), mask, signature)
    except TypeError:  # an option without a hash
        return None
    return None if call is None else call.output(query, key, value)


def _first(front: Any, arrays: Any, mask: Mask | None, signature: Any) -> Any:
    scale, softcap, layout, backend = options = signature[2:]
    if not all(isinstance(option, _OPTIONS) for option in options):
        return None
    problem = make(*arrays, mask=mask, scale=scale, softcap=softcap, layout=layout)
    call = None
    if backend != "torch":
        output = front.empty_output(problem)
        prepared = dispatch.prepare(problem, output, backend)
        call = prepared and front.Repeated(arrays[0], problem.output_shape, prepared)
    if len(_known) >= _MOST:
        _known.clear()
    _known[signature] = call
    return call
