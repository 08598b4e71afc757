"""The Python of docs/tasks.md runs, and its task is learned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for needed in ("lightning", "tokenizers", "safetensors"):
    pytest.importorskip(needed)

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"


def test_a_task_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    names: dict = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec", dont_inherit=True), names)
    out = capsys.readouterr().out
    right = float(re.search(r"'right': ([\d.]+)", out)[1])
    assert right > 0.8, out
    assert "Alignment: " in out
