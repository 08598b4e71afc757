"""Attention along the edges of a graph, beside the cores of PyTorch Geometric's layers.

    python benchmarks/bench_graph.py [TransformerConv | GATv2Conv]     # needs torch_geometric

100,000 nodes, 2,000,000 edges at random, 8 heads of 16: forward + backward, and the memory that it
adds, each in a process of its own. TransformerConv takes dot products, GATv2Conv additive scores
with leaky ReLU, whose keys are their values. Writes benchmarks/results/ISA/graph.json.
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
from harness import alternate, measured, record, save
from torch import Tensor

import regard

NODES, EDGES, HEADS, SIZE = 100_000, 2_000_000, 8, 16


def problem(layer: str) -> tuple[Tensor, list[Tensor], Tensor]:
    """Edges as PyTorch Geometric has them; what the layer's core is given; dy.

    TransformerConv: query, key, value (nodes, heads, size). GATv2Conv: targets and sources of that
    shape, and the vector (heads, size).
    """
    torch.manual_seed(0)
    places = torch.unique(torch.randint(NODES**2, (EDGES + EDGES // 100,)))
    places = places[torch.randperm(len(places))[:EDGES]]
    edges = torch.stack([places // NODES, places % NODES])
    nodes = (NODES, HEADS, SIZE)
    shapes = [nodes, nodes, nodes if layer == "TransformerConv" else (HEADS, SIZE)]
    arrays = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return edges, arrays, torch.randn(nodes)


def regard_dot(edges: Tensor) -> Callable[..., Tensor]:
    mask = regard.graph(edges)
    return lambda q, k, v: regard.attention(q, k, v, mask=mask, layout="BLHD")


def regard_additive(edges: Tensor) -> Callable[..., Tensor]:
    mask = regard.graph(edges)

    def core(target: Tensor, source: Tensor, vector: Tensor) -> Tensor:
        score = regard.Additive(None, None, vector, "leaky_relu")
        return regard.attention(target, source, source, mask=mask, score=score, layout="BLHD")

    return core


def transformer_conv(edges: Tensor) -> Callable[..., Tensor]:
    from torch_geometric.nn import TransformerConv

    conv = TransformerConv(HEADS * SIZE, SIZE, heads=HEADS)
    return lambda q, k, v: conv.propagate(edges, query=q, key=k, value=v, edge_attr=None)


def gatv2_conv(edges: Tensor) -> Callable[..., Tensor]:
    from torch_geometric.nn import GATv2Conv

    conv = GATv2Conv(HEADS * SIZE, SIZE, heads=HEADS)
    del conv.att  # a parameter, in whose place the vector stands

    def core(target: Tensor, source: Tensor, vector: Tensor) -> Tensor:
        conv.att = vector[None]
        both = (source, target)
        alpha = conv.edge_updater(edges, x=both, edge_attr=None)
        return conv.propagate(edges, x=both, alpha=alpha)

    return core


CORES = {
    "TransformerConv": {"regard": regard_dot, "TransformerConv": transformer_conv},
    "GATv2Conv": {"regard": regard_additive, "GATv2Conv": gatv2_conv},
}
SCORES = {"TransformerConv": "", "GATv2Conv": "additive scores, "}


def step(core: Callable[..., Tensor], arrays: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Forward and backward."""
    output = core(*arrays)
    return [output, *torch.autograd.grad(output, arrays, dy)]


def added_memory(layer: str, name: str) -> float:
    """MiB that a step adds to what the process holds before it (Linux)."""
    edges, arrays, dy = problem(layer)
    core = CORES[layer][name](edges)
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
    if len(sys.argv) > 2:
        print(json.dumps(added_memory(*sys.argv[1:])))
        return
    rows = measured("graph")
    for layer in sys.argv[1:] or CORES:
        row = compared(layer)
        rows[row["case"]] = row
    print(save("graph", list(rows.values())))


def compared(layer: str) -> dict[str, Any]:
    """A layer's core and ours: times, and memory added."""
    edges, arrays, dy = problem(layer)
    cores = {name: make(edges) for name, make in CORES[layer].items()}
    ours, theirs = (step(core, arrays, dy) for core in cores.values())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-3, atol=1e-4 * float(other.detach().abs().max())
        )
    timings = alternate({n: lambda c=c: step(c, arrays, dy) for n, c in cores.items()}, 0, 4)
    size = f"{NODES} nodes, {EDGES} edges, {HEADS} heads of {SIZE}"
    label = f"{size}, {SCORES[layer]}forward + backward"
    row: dict[str, Any] = record(label, "float32", timings)
    for name in cores:
        command = [sys.executable, __file__, layer, name]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        row[f"{name}_added_mib"] = round(json.loads(out.stdout), 1)
    print(row)
    return row


if __name__ == "__main__":
    main()
