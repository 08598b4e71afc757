"""`regard bench` measures both sides on the same arrays, and says what it measured."""

from __future__ import annotations

import json

import pytest
import torch

from regard.cli import bench as module
from regard.cli.app import run
from regard.cli.timing import alternate

SMALL = (
    module.Case("tiny", 2, 4, 2, 9, 9, 8),
    module.Case("causal", 1, 2, 2, 17, 17, 8, mask="causal"),
    module.Case("windowed", 1, 2, 2, 300, 300, 8, mask="window"),
    module.Case("trained", 1, 2, 2, 9, 9, 8, train=True),
)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_both_peers_compute_the_same(case):
    results = [call() for call in module.calls(case, "float32").values()]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_the_table_names_every_case_and_the_json_holds_it(monkeypatch, capsys):
    monkeypatch.setattr(module, "CASES", SMALL)
    assert run(["bench", "--seconds", "0"]) == 0
    shown = capsys.readouterr().out
    assert all(case.name in shown for case in SMALL) and "×" in shown
    assert run(["bench", "--seconds", "0", "--json", "--dtype", "float64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "float64" and len(found["cases"]) == len(SMALL)
    assert found["cases"][0]["regard"]["median"] > 0


def test_an_unknown_type_is_one_line_and_exit_code_2(capsys):
    assert run(["bench", "--dtype", "int8"]) == 2
    said = capsys.readouterr().err
    assert "--dtype int8" in said and "bfloat16" in said and said.count("\n") == 1


def test_peers_take_turns():
    order: list[str] = []
    times = alternate(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0, least=3
    )
    assert order == ["a", "b"] * 4
    assert times["a"].runs == 3 and times["a"].low <= times["a"].median <= times["a"].high
