"""Examples, run: sizes that differ; read-outs that name what models are known to do."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_query_of_size_10_meets_keys_of_size_7(capsys):
    names = runpy.run_path(str(EXAMPLES / "sizes.py"))
    said = capsys.readouterr().out
    assert "pass score=regard.Bilinear(W) with a W of (10, 7)" in said
    assert said.count("weights") == said.count("output") == len(names["scores"]) == 3
    exact = (names["query"] @ names["W"] @ names["keys"].swapaxes(1, 2))[0, 0]
    weights = np.exp(exact) / np.exp(exact).sum()
    assert str(weights.round(2)) in said and str((weights @ names["values"][0]).round(2)) in said


def run(name):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.slow
def test_induction_heads_are_found_where_they_must_be():
    example = run("induction.py")
    shallow_loss, shallow = example["look"](example["train"](1))
    loss, heads = example["look"](example["train"](2))
    assert loss < 0.2 < 1.5 < shallow_loss
    assert max(head.induction for head in shallow) < 0.3
    copies = max(heads, key=lambda head: head.induction)
    shifts = max(heads, key=lambda head: head.previous_token)
    assert copies.layer == 1 and copies.induction > 0.7
    assert shifts.layer == 0 and shifts.previous_token > 0.3
    assert max(head.induction for head in heads if head.layer == 0) < 0.3
    by_loss = sorted(heads, key=lambda head: -head.loss_without)
    assert by_loss[0] is shifts and shifts.loss_without > 2 * loss
    assert copies.loss_without > max(
        head.loss_without for head in heads if head.layer == 1 and head is not copies
    )


@pytest.mark.slow
def test_the_head_that_retrieves_most_is_the_one_that_is_missed_most():
    example = run("recall.py")
    for seed in range(3):
        whole, heads = example["look"](example["train"](seed))
        assert whole > 0.98
        first = max(heads, key=lambda head: head.retrieval)
        others = [head.right_without for head in heads if head is not first]
        assert first.retrieval > 0.8  # of 16 pairs one has it by chance with 0.06
        assert first.right_without < min(others) and first.right_without < whole - 0.04
