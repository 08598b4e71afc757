"""A PyTorch model's attention, computed by Regard until that is undone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from regard.errors import ModelError
from regard.torch import MultiheadAttention, scaled_dot_product_attention
from regard.torch.sdpa import FUNCTIONS

__all__ = ["Acceleration", "accelerate"]


def accelerate(model: nn.Module) -> Acceleration:
    """Let Regard compute the attention of a PyTorch model, in inference and in training.

    What is changed, and said by the result when it is printed:

        models of transformers     their attention implementation becomes "regard"
        nn.MultiheadAttention      its forward becomes that of regard.torch.MultiheadAttention; the
                                   fast paths of PyTorch's encoder, which skip it, are turned off
        modules whose class calls  their calls go to regard.torch.scaled_dot_product_attention
          scaled_dot_product_attention

    Outputs are the same up to rounding. Compiled modules attend as they did. Parameters are left
    alone; undo it before the model is pickled as a whole.

    Returns:
        An Acceleration: `undo()` puts everything back, and so does the end of a `with` block.

    Raises: ModelError where nothing is found.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model of type {type(model).__name__}", "a torch.nn.Module")
    changes = Acceleration(model)
    for name, module in model.named_modules():
        if type(module).__module__.startswith("transformers.") and hasattr(module, "config"):
            changes.implementation(name, module)
        if "forward" in module.__dict__:  # somebody has replaced it already: we, or another
            continue
        kind = type(module)
        if kind.forward is nn.MultiheadAttention.forward:
            changes.forward(name, module, MultiheadAttention.forward)
        elif isinstance(module, nn.TransformerEncoderLayer):
            changes.set(module, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoder):
            changes.set(module, "use_nested_tensor", False)
        elif any(_calls_attention(code) for code in _codes(kind)):
            changes.forward(name, module, _through_regard)
    if not changes.changed:
        raise ModelError(
            f"{type(model).__name__}, in which no attention was found that is not Regard's already",
            "nn.MultiheadAttention, calls of scaled_dot_product_attention, or a model of "
            "transformers that chooses its attention function",
        )
    return changes


class Acceleration:
    """What was changed in a model; print it to read it.

    changed: (module's name, what it was, what it is) of each.
    """

    def __init__(self, model: nn.Module) -> None:
        self.changed: list[tuple[str, str, str]] = []
        self._name = type(model).__name__
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put everything back; once is enough, more does no harm."""
        while self._undo:
            self._undo.pop()()

    def implementation(self, name: str, model: Any) -> None:
        """Choose our attention function in a model of transformers, if it lets itself be told."""
        import regard.huggingface  # noqa: F401 (it registers the name)

        base = sys.modules["transformers"].PreTrainedModel
        if not isinstance(model, base) or not model._can_set_attn_implementation():
            return
        before = model.config._attn_implementation
        if before != "regard":
            self.set(model.config, "_attn_implementation_internal", "regard")
            self.changed.append(
                (name, f"{type(model).__name__}, {before}", 'implementation "regard"')
            )

    def forward(self, name: str, module: nn.Module, function: Any) -> None:
        """Give the module another forward, beside its class's."""
        module.forward = MethodType(function, module)
        self._undo.append(lambda: delattr(module, "forward"))
        how = (
            "scaled_dot_product_attention" if function is _through_regard else "MultiheadAttention"
        )
        self.changed.append((name, type(module).__name__, f"regard.torch.{how}"))

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, and remember what it was."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [f"{name or '(the model)'}: {was} → {now}" for name, was, now in self.changed]
        state = "attends with Regard" if self._undo else "attends as it did before"
        return "\n  ".join([f"{self._name} {state}", *(lines if self._undo else [])])


class _Mode(TorchFunctionMode):
    """Sends PyTorch's attention function to ours, under whatever name it was imported."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FUNCTIONS:
            query = args[0] if args else kwargs.get("query")
            tensor = isinstance(query, torch.Tensor)
            if tensor and not (query.is_nested and query.layout is torch.strided):
                func = scaled_dot_product_attention
        return func(*args, **kwargs)


def _through_regard(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, with our function in the place of PyTorch's."""
    if torch.compiler.is_compiling():
        return type(module).forward(module, *args, **kwargs)
    with _Mode():
        return type(module).forward(module, *args, **kwargs)


def _codes(kind: type) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """The code of a class's own functions, and where their names are looked up."""
    for base in kind.__mro__:
        if not base.__module__.startswith(("torch.", "transformers.")):
            for function in vars(base).values():
                if isinstance(function, FunctionType):
                    yield function.__code__, function.__globals__


def _calls_attention(function: tuple[CodeType, dict[str, Any]], deeper: bool = True) -> bool:
    """Whether a function names PyTorch's attention, or another function of its file that does."""
    code, names = function
    for name in code.co_names:
        found = names.get(name)
        if name == "scaled_dot_product_attention" or any(found is known for known in FUNCTIONS):
            return True
        if isinstance(found, FunctionType) and deeper:
            inner = found.__code__, found.__globals__
            if _calls_attention(inner, deeper=False):
                return True
    return False
