"""Is anybody faster? Attention beside every library that is installed.

    python benchmarks/bench_peers.py [--python NAME[,NAME …]=PATH] [--only NAME[,NAME …]]
                                     [--resume] [--seconds N] [TEXT …]     # see harness.py

Each peer (peers.py) has a process of its own, since several pools of threads in one get in one
another's way; --python names another interpreter for some of them. They take turns, in rounds; who
has none waits until whoever had the last one has come to rest. A peer that is absent, or cannot
compute a case, is said so. Writes benchmarks/results/ISA/peers.json, and docs/peers-ISA.svg from
it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from chart import bars
from harness import measure, measured, record, summary
from peers import PEERS

from regard.kernels import native

SHAPES = [
    ("32 × 64 tokens", (32, 8, 64, 64), False),
    ("8 × 197 patches", (8, 12, 197, 64), False),
    ("512 tokens", (1, 8, 512, 64), False),
    ("2048 tokens", (1, 8, 2048, 64), False),
    ("2048 causal", (1, 8, 2048, 64), True),
]
ROUNDS, SECONDS = 5, 0.1
CHART = Path(__file__).parents[1] / "docs" / f"peers-{native.isa()}.svg"
TICK = 1 / os.sysconf("SC_CLK_TCK")


class Process:
    """One peer in its own interpreter."""

    def __init__(self, name: str, python: str) -> None:
        command = [python, str(Path(__file__).with_name("peers.py")), name]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            text=True,
        )

    def ask(self, **request: Any) -> None:
        """Send a request."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to it."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"left out": "its process ended"}

    def rest(self) -> None:
        """Wait until its threads do nothing any more."""
        before = self.spent()
        while True:
            time.sleep(4 * TICK)
            now = self.spent()
            if now == before:
                return
            before = now

    def spent(self) -> float:
        """Seconds of processor time so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * TICK

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


def row(
    label: str,
    shape: tuple[int, ...],
    dtype: str,
    causal: bool,
    processes: dict[str, Process],
    pythons: dict[str, str],
) -> dict[str, Any]:
    for name, python in pythons.items():
        if name not in processes:
            processes[name] = Process(name, python)
        processes[name].ask(shape=shape, dtype=dtype, causal=causal)
    versions, absent = {}, {}
    for name in pythons:
        answer = processes[name].answer()
        if "version" in answer:
            versions[name] = answer["version"]
        else:
            absent[name] = answer["left out"]
            print(f"{label}: {name} left out: {absent[name]}")
    spent: dict[str, list[float]] = {name: [] for name in versions}
    for name in versions:
        processes[name].rest()
    for _ in range(ROUNDS):
        for name in versions:
            processes[name].ask(seconds=SECONDS)
            spent[name] += processes[name].answer()["times"]
            processes[name].rest()
    times = {name: summary(times) for name, times in spent.items()}
    about = {"versions": versions, "left out": absent}
    return {**record(label, dtype, times), **about}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", action="append", default=[], metavar="NAME[,NAME …]=PATH")
    parser.add_argument("--only", default="", metavar="NAME[,NAME …]")
    return parser


def main() -> None:
    parser = options()
    given, _ = parser.parse_known_args()
    only = given.only.split(",") if given.only else list(PEERS)
    pythons = dict.fromkeys(dict.fromkeys(["regard", *only]), sys.executable)
    for names, path in (entry.split("=", 1) for entry in given.python):
        pythons.update({name: path for name in names.split(",") if name in pythons})
    processes: dict[str, Process] = {}
    cases = {}
    for dtype in ("float32", "bfloat16"):
        for name, shape, causal in SHAPES:
            label = f"{dtype} {name}"
            cases[label] = partial(row, label, shape, dtype, causal, processes, pythons)
    try:
        measure("peers", cases, parser)
    finally:
        for process in processes.values():
            process.end()
        rows = [row for row in measured("peers").values() if row["case"] in cases]
        CHART.write_text(bars(rows, "Time beside Regard's, 2 threads (shorter is faster)"))


if __name__ == "__main__":
    main()
