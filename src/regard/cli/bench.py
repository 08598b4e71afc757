"""`regard bench`: this machine, attention here beside PyTorch's fused attention."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import regard
from regard.cli.sources import loading
from regard.cli.timing import Timing, alternate
from regard.errors import ModelError, OptionError

__all__ = ["CASES", "DTYPES", "Case", "bench", "calls"]

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Case:
    """One question: sizes, and what a query may see."""

    name: str
    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    head_size: int
    mask: str = ""  # "causal", "window" or none
    train: bool = False  # forward and backward


CASES = (
    Case("a sentence batch", 32, 8, 8, 64, 64, 64),
    Case("image patches", 8, 12, 12, 197, 197, 64),
    Case("512 tokens", 1, 8, 8, 512, 512, 64),
    Case("2048 tokens", 1, 8, 8, 2048, 2048, 64),
    Case("2048, causal", 1, 8, 8, 2048, 2048, 64, mask="causal"),
    Case("4096, window of 256", 1, 8, 8, 4096, 4096, 64, mask="window"),
    Case("1 query, 8192 keys", 1, 32, 8, 1, 8192, 128),
    Case("512, training", 1, 8, 8, 512, 512, 64, train=True),
    Case("2048, training", 1, 8, 8, 2048, 2048, 64, train=True),
)


def bench(dtype: str, seconds: float, as_json: bool) -> None:
    """Print a table of ratios with their spread, or JSON. Raises: OptionError, ModelError."""
    if dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype}", f"one of {', '.join(DTYPES)}")
    if not 0 <= seconds < math.inf:
        raise OptionError(f"--seconds {seconds}", "a number of seconds")
    try:
        with loading():
            import torch
    except ImportError as error:
        raise ModelError(
            "PyTorch is not installed, and bench compares with it",
            remedy='pip install "regard[torch]"',
        ) from error
    rows = []
    for case, times in _progress(_timed(dtype, seconds), as_json):
        rows.append((case, times))
    if as_json:
        found = [
            {**dataclasses.asdict(case), **{n: dataclasses.asdict(t) for n, t in times.items()}}
            for case, times in rows
        ]
        about = {"regard": regard.__version__, "torch": torch.__version__, "dtype": dtype}
        print(json.dumps({**about, "threads": torch.get_num_threads(), "cases": found}, indent=1))
        return
    _show(rows, dtype, torch)


def calls(case: Case, dtype: str) -> dict[str, Callable[[], Any]]:
    """The case as calls without arguments: "regard", and "torch" for PyTorch's own."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    kind = getattr(torch, dtype)
    query = torch.randn(case.batch, case.heads, case.queries, case.head_size, dtype=kind)
    key, value = (
        torch.randn(case.batch, case.key_heads, case.keys, case.head_size, dtype=kind)
        for _ in range(2)
    )
    options: dict[str, Any] = {
        "enable_gqa": case.heads != case.key_heads,
        "is_causal": case.mask == "causal",
    }
    masks = {"causal": regard.causal(), "window": regard.window(255, 0)}
    mask = masks.get(case.mask)
    if case.mask == "window":  # PyTorch has no window: it is given one as an array
        distance = torch.arange(case.queries)[:, None] - torch.arange(case.keys)
        options["attn_mask"] = (distance >= 0) & (distance <= 255)
    arrays = (query, key, value)
    for array in arrays:
        array.requires_grad_(case.train)

    def ours() -> Any:
        return regard.attention(query, key, value, mask=mask)

    def own() -> Any:
        return scaled_dot_product_attention(query, key, value, **options)

    if not case.train:
        return {"regard": ours, "torch": own}
    upstream = torch.randn_like(query)

    def train(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(call(), arrays, upstream)

    return {"regard": train(ours), "torch": train(own)}


def _timed(dtype: str, seconds: float) -> Iterator[tuple[Case, dict[str, Timing]]]:
    for case in CASES:
        yield case, alternate(calls(case, dtype), seconds)


def _progress(rows: Iterator[Any], quiet: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(
        track(rows, "Measuring", total=len(CASES), console=console, transient=True, disable=quiet)
    )


def _show(rows: list[tuple[Case, dict[str, Timing]]], dtype: str, torch: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Case", no_wrap=True)
    for title in ("B,H/K,Lq,Lk,D", "Regard", "PyTorch", "Ratio", "Spread"):
        table.add_column(title, justify="right", no_wrap=True)
    for case, times in rows:
        ours, other = times["regard"], times["torch"]
        shared = "" if case.key_heads == case.heads else f"/{case.key_heads}"
        heads = f"{case.heads}{shared}"
        sizes = (case.batch, heads, case.queries, case.keys, case.head_size)
        table.add_row(
            case.name,
            ",".join(map(str, sizes)),
            f"{ours.median:.2f}",
            f"{other.median:.2f}",
            f"[bold]{other.median / ours.median:.2f}×[/bold]",
            f"{other.low / ours.high:.2f}–{other.high / ours.low:.2f}",
        )
    plan = regard.plan(*(torch.zeros(1, 1, 1, 1, dtype=getattr(torch, dtype)) for _ in range(3)))
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(
        f"\n{dtype}, {plan.details['runs on']}, PyTorch {torch.__version__}. Medians in "
        "milliseconds, of turns taken by both; spread: between the quartiles. Above 1, Regard is "
        "faster."
    )
