"""Plain calls that were made before: checked and packed once, repeated for the price of a look-up.

A call's checks, its kernel and what is packed for it depend on its signature: types, shapes and
strides of query, key, value and bias, the options, and whether gradients are wanted. Calls of one
signature differ in addresses and elements alone, and in what the arrays of their masks hold, which
is read each time. What else a call may depend on (sinks, dropout, graphs, tracers) makes it not
plain: then it takes the long way, as it does where a kernel would need copies.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from regard.masks import Mask, as_mask, edge_count

__all__ = ["FRONT_ENDS", "repeat"]

# Those in use so far, by the type of their plain arrays. No dictionary: torch.compile may watch one
# grow while it traces the first call of all, and then trips over a key that is a type.
FRONT_ENDS: list[tuple[type, ModuleType]] = []

_MOST = 256  # signatures that are kept
_ARRAYS = "arrays"  # the signature of masks that have some: what they show is found each time
_OPTIONS = (type(None), float, int, str)  # an option of another type is not plain

_known: dict[Any, Any] = {}  # by signature: the front end's Repeated; None: only the long way


def repeat(query: Any, key: Any, value: Any, mask: Any, bias: Any, options: tuple[Any, ...]) -> Any:
    """The output of a plain call without sinks and dropout; None: take the long way.

    options: scale, softcap, layout, precision and backend.

    Raises: what the long way would raise.
    """
    kind, arrays = type(query), None
    for known, front in FRONT_ENDS:
        if kind is known:
            arrays = front.signature(query, key, value, bias)
            break
    if arrays is None:
        return None
    shown = None
    if mask is not None:
        mask = as_mask(mask)
        shown = mask.signature
        if shown is None:
            if edge_count(mask) is not None:
                return None
            shown = _ARRAYS
    signature = (arrays, shown, options)
    try:
        call = _known[signature]
    except KeyError:
        call = _first(front, (query, key, value), mask, bias, signature)
    except TypeError:  # an option without a hash
        return None
    return None if call is None else call.output(query, key, value, bias, mask)


def _first(front: Any, arrays: Any, mask: Mask | None, bias: Any, signature: Any) -> Any:
    *_, options = signature
    if not all(isinstance(option, _OPTIONS) for option in options):
        return None
    *options, backend = options
    front.check(**dict(zip(("query", "key", "value"), arrays, strict=True)), bias=bias)
    named = dict(zip(("scale", "softcap", "layout", "precision"), options, strict=True))
    call = front.repeated(front.make(*arrays, mask=mask, bias=bias, **named), backend)
    if len(_known) >= _MOST:
        _known.clear()
    _known[signature] = call
    return call
