"""How fast is additive attention, forward + backward, beside PyTorch and Keras?

    python benchmarks/bench_additive.py [--keras PYTHON] [TEXT …]   # cases with every TEXT

PyTorch's plain expression, and Keras's layer as a graph, compiled by XLA or not. Queries and keys
are projected already; gradients of queries, keys, values and v. PYTHON has TensorFlow and Keras,
which run in a process of their own; the processes take turns. Shapes are (B, H, Lq, Lk, A), values
are of size A. Writes benchmarks/results/ISA/additive.json.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import alternate, chosen, counted, record, save
from torch import Tensor
from torch.nn.functional import leaky_relu

import regard

CASES = [
    ("tanh", (16, 8, 64, 64, 64)),
    ("tanh", (1, 1, 1024, 1024, 64)),
    ("leaky_relu", (16, 8, 64, 64, 64)),
]


def plain(q: Tensor, k: Tensor, v: Tensor, vector: Tensor, activation: str) -> Tensor:
    joined = q[:, :, :, None] + k[:, :, None]
    joined = joined.tanh() if activation == "tanh" else leaky_relu(joined, 0.2)
    return (joined @ vector).softmax(dim=-1) @ v


def calls(activation: str, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    b, h, queries, keys, size = shape
    q = torch.randn(b, h, queries, size, requires_grad=True)
    k, v = (torch.randn(b, h, keys, size, requires_grad=True) for _ in range(2))
    vector, dy = torch.randn(size, requires_grad=True), torch.randn(b, h, queries, size)

    def ours() -> Tensor:
        score = regard.Additive(None, None, vector, activation)
        return regard.attention(q, k, v, score=score)

    forwards = {"regard": ours, "torch": lambda: plain(q, k, v, vector, activation)}
    torch.testing.assert_close(*(forward() for forward in forwards.values()), rtol=1e-3, atol=1e-4)
    return {
        name: (lambda forward=forward: torch.autograd.grad(forward(), (q, k, v, vector), dy))
        for name, forward in forwards.items()
    }


class Keras:
    """The layer in another process; calling computes once."""

    def __init__(self, python: str, shape: tuple[int, ...], xla: bool) -> None:
        script = Path(__file__).parent / "keras_additive.py"
        self._process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._say(" ".join(map(str, (*shape, torch.get_num_threads(), int(xla)))))

    def __call__(self) -> None:
        self._say("once")
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the process with Keras has failed; run keras_additive.py by hand")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def end(self) -> None:
        self._process.communicate()


def main() -> None:
    python = None
    if "--keras" in sys.argv:
        at = sys.argv.index("--keras")
        _, python = sys.argv[at : at + 2]
        del sys.argv[at : at + 2]
    threads = counted(torch.get_num_threads())
    cases = [
        (f"{kind} {shape} forward + backward, {threads}", kind, shape) for kind, shape in CASES
    ]
    rows = []
    for label, activation, shape in chosen(cases):
        keras = {}
        if python and activation == "tanh":
            for name, xla in (("keras", False), ("keras_xla", True)):
                keras[name] = Keras(python, shape, xla)
        rows.append(
            record(label, "float32", alternate({**calls(activation, shape), **keras}, least=11))
        )
        for peer in keras.values():
            peer.end()
    if len(rows) == len(cases):
        print(save("additive", rows))


if __name__ == "__main__":
    main()
