"""What does watching add to the forward of a model the size of BERT-base, at 512 tokens?

    python benchmarks/bench_watch.py [stats]

Random weights, PyTorch's own attention; the model alone and the model watched take turns. Writes
benchmarks/results/watch.json. With "stats" also the mode that computes read-outs at once.
"""

from __future__ import annotations

import sys

import torch
import transformers
from harness import alternate, record, save

import regard


def main() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(attn_implementation="sdpa")).eval()
    ids = torch.randint(0, 30_000, (1, 512))

    def alone() -> None:
        model(ids)

    def watched(**options: str) -> None:
        with regard.watch(model, **options):
            model(ids)

    ways = {"alone": alone, "lazy": watched}
    if "stats" in sys.argv:
        ways["stats"] = lambda: watched(mode="stats")
    with torch.no_grad():
        times = alternate(ways, seconds=12)
    row = record(
        "BERT-base, 512 tokens, forward", "float32", {"regard": times.pop("alone"), **times}
    )
    print(save("watch", [row]))


if __name__ == "__main__":
    main()
