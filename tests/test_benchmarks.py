"""The benchmarks' own tools: results that grow case by case, peers, limits, and the README."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """Its modules can be imported, and write their results elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench"])
    return harness


def test_results_grow_case_by_case(benchmarks, monkeypatch):
    asked = []

    def case(name):
        def row():
            asked.append(name)
            return {"dtype": "float32", "n": len(asked)}

        return row

    cases = {name: case(name) for name in ("a 1", "b 1", "b 2")}
    monkeypatch.setattr(sys, "argv", ["bench", "b"])
    benchmarks.measure("x", cases)
    monkeypatch.setattr(sys, "argv", ["bench", "--resume"])
    benchmarks.measure("x", cases)
    assert asked == ["b 1", "b 2", "a 1"]
    assert list(benchmarks.measured("x")) == list(cases)

    monkeypatch.setattr(benchmarks, "commit", lambda: "another")
    monkeypatch.setattr(sys, "argv", ["bench", "--resume", "--seconds", "-1"])
    with pytest.raises(SystemExit) as ended:
        benchmarks.measure("x", cases)
    assert ended.value.code == benchmarks.UNFINISHED and len(asked) == 3


def test_limits_do_what_they_say(benchmarks):
    import probe

    limits = probe.load()
    if limits is None:
        pytest.skip("no compiler for the probe")
    for call in (limits.fma(1e6), limits.exp(1e5), limits.read([torch.ones(1000)])):
        assert call() == 1
    for size in (64, 128):
        if fused := limits.fused(1e6, size):
            assert fused() == 1
    assert limits.fused(1e6, 80) is None


def test_without_a_compiler_there_are_no_limits(benchmarks, monkeypatch, capsys):
    import probe

    monkeypatch.setenv("CXX", "no-such-compiler")
    assert probe.load.__wrapped__() is None
    assert "no limits: no-such-compiler" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["regard", "torch", "numpy"])
@pytest.mark.parametrize("causal", [False, True])
def test_peers_compute_attention(benchmarks, name, causal):
    import peers

    call = peers.prepare(name, [2, 3, 9, 8], "float32", causal)
    assert len(peers.turn(call, 0)) == 2


def test_a_peer_that_computes_something_else_is_left_out(benchmarks, monkeypatch):
    import peers

    def wrong(q, k, v, dtype, causal):
        return lambda: v * 1.01, np.asarray

    monkeypatch.setitem(peers.PEERS, "torch", ("torch", wrong))
    with pytest.raises(peers.Unsupported, match="off by"):
        peers.prepare("torch", [1, 1, 4, 8], "float32", False)


def test_a_peer_answers_from_its_own_process(benchmarks):
    import bench_peers

    processes = {name: bench_peers.Process(name, sys.executable) for name in ("numpy", "regard")}
    for process in processes.values():
        process.ask(shape=[1, 2, 5, 8], dtype="bfloat16", causal=False)
    answers = {name: process.answer() for name, process in processes.items()}
    assert "no bfloat16" in answers["numpy"]["left out"]
    assert answers["regard"]["version"]
    processes["regard"].rest()
    processes["regard"].ask(seconds=0)
    assert len(processes["regard"].answer()["times"]) == 2
    for process in processes.values():
        process.end()


def test_the_readme_says_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import readme

    needed = [
        (isa, name)
        for isa in readme.ISAS
        for name in ("forward", "backward", "masks", "peers", "models")
    ]
    for isa, name in [*needed, ("amx", "decoding")]:
        assert json.loads((BENCHMARKS / "results" / isa / f"{name}.json").read_text())["rows"]
    for page in readme.PAGES:
        assert readme.filled(page) == page.read_text()
