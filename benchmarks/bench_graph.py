"""Attention along the edges of a graph, beside the core of PyTorch Geometric's TransformerConv.

    python benchmarks/bench_graph.py              # needs torch_geometric

100,000 nodes, 2,000,000 edges at random, 8 heads of 16: forward + backward, and the memory that it
adds, each in a process of its own. Writes benchmarks/results/graph.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from harness import alternate, record, save
from torch import Tensor

import regard

NODES, EDGES, HEADS, SIZE = 100_000, 2_000_000, 8, 16


def problem() -> tuple[Tensor, list[Tensor], Tensor]:
    """Edges as PyTorch Geometric has them; query, key, value (nodes, heads, size); dy."""
    torch.manual_seed(0)
    places = torch.unique(torch.randint(NODES**2, (EDGES + EDGES // 100,)))
    places = places[torch.randperm(len(places))[:EDGES]]
    edges = torch.stack([places // NODES, places % NODES])
    arrays = [torch.randn(NODES, HEADS, SIZE, requires_grad=True) for _ in range(3)]
    return edges, arrays, torch.randn(NODES, HEADS, SIZE)


def regard_core(edges: Tensor) -> Callable[..., Tensor]:
    mask = regard.graph(edges)
    return lambda q, k, v: regard.attention(q, k, v, mask=mask, layout="BLHD")


def pyg_core(edges: Tensor) -> Callable[..., Tensor]:
    from torch_geometric.nn import TransformerConv

    conv = TransformerConv(HEADS * SIZE, SIZE, heads=HEADS)
    return lambda q, k, v: conv.propagate(edges, query=q, key=k, value=v, edge_attr=None)


CORES = {"regard": regard_core, "TransformerConv": pyg_core}


def step(core: Callable[..., Tensor], arrays: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Forward and backward."""
    output = core(*arrays)
    return [output, *torch.autograd.grad(output, arrays, dy)]


def added_memory(name: str) -> float:
    """MiB that a step adds to what the process holds before it (Linux)."""
    edges, arrays, dy = problem()
    core = CORES[name](edges)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    step(core, arrays, dy)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    if find_spec("torch_geometric") is None:
        print("graph left out: torch_geometric is not installed")
        return
    if len(sys.argv) > 1:
        print(json.dumps(added_memory(sys.argv[1])))
        return
    edges, arrays, dy = problem()
    cores = {name: make(edges) for name, make in CORES.items()}
    ours, theirs = (step(core, arrays, dy) for core in cores.values())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    timings = alternate({n: lambda c=c: step(c, arrays, dy) for n, c in cores.items()}, 0, 4)
    label = f"{NODES} nodes, {EDGES} edges, {HEADS} heads of {SIZE}, forward + backward"
    row: dict[str, Any] = record(label, "float32", timings)
    for name in CORES:
        out = subprocess.run(
            [sys.executable, __file__, name], capture_output=True, text=True, check=True
        )
        row[f"{name}_added_mib"] = round(json.loads(out.stdout), 1)
    print(row)
    print(save("graph", [row]))


if __name__ == "__main__":
    main()
