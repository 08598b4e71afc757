"""What does watching add to the forward of a model the size of BERT-base, at 512 tokens?

    python benchmarks/bench_watch.py

Random weights. The model runs on PyTorch's own attention, and on Regard's (attn_implementation=
"regard"), where read-outs come from the sweep that makes the output. Of each, the model alone, the
model watched as it is by default (queries and keys are kept), and in mode="stats" (read-outs are
computed at once, queries and keys are not kept) take turns, and with them Hugging Face's own way to
see weights, output_attentions=True. Prints each beside the model alone on PyTorch. Writes
benchmarks/results/ISA/watch.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import transformers
from harness import alternate, save

import regard
import regard.huggingface

MATRICES = "eager, output_attentions"


def bert(implementation: str) -> tuple[transformers.BertModel, torch.Tensor]:
    """A model, and a text."""
    torch.manual_seed(0)
    config = transformers.BertConfig(attn_implementation=implementation)
    return transformers.BertModel(config).eval(), torch.randint(0, 30_000, (1, 512))


def ways(implementation: str) -> dict[str, Callable[[], Any]]:
    """The model alone, and watched in both modes."""
    model, ids = bert(implementation)

    def watched(mode: str) -> None:
        with regard.watch(model, mode=mode):
            model(ids)

    return {
        implementation: partial(model, ids),
        **{f"{implementation}, {mode}": partial(watched, mode) for mode in ("lazy", "stats")},
    }


def main() -> None:
    with torch.no_grad():
        eager, ids = bert("eager")
        matrices = {MATRICES: partial(eager, ids, output_attentions=True)}
        times = alternate({**ways("sdpa"), **ways("regard"), **matrices}, seconds=20)
    alone = times["sdpa"].median
    for name, spent in times.items():
        print(f"{name:<26} {spent.median:8.1f} ms  {spent.median / alone:5.2f}x")
    row = {"case": "BERT-base, 512 tokens, forward", "dtype": "float32"}
    print(save("watch", [row | {name: asdict(spent) for name, spent in times.items()}]))


if __name__ == "__main__":
    main()
