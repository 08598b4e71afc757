"""How fast are whole Hugging Face models with Regard's attention, beside PyTorch's?

    python benchmarks/bench_models.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Random weights of BERT-base's and GPT-2's size, batch 1. Writes benchmarks/results/ISA/models.json.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import alternate, measure, record
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import regard.huggingface  # noqa: F401 - registers the implementation "regard"

MODELS: dict[str, Callable[[], Any]] = {
    "BERT-base": lambda: BertModel(BertConfig(max_position_embeddings=1024)),
    "GPT-2": lambda: GPT2Model(GPT2Config(use_cache=False)),
}
PEERS = {"regard": "regard", "torch": "sdpa"}


def inference(model: Any, tokens: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(tokens).last_hidden_state

    model.eval()
    return run


def training(model: Any, tokens: torch.Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        model(tokens).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()  # without dropout, which PyTorch's fused attention lacks
    return step


def row(label: str, name: str, length: int, dtype: str, way: Callable[..., Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = MODELS[name]().to(getattr(torch, dtype))
    tokens = torch.randint(1000, (1, length))
    calls = {}
    # Both use the same weights: where these lie in memory makes a difference of some per cent.
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for peer, implementation in PEERS.items():
        own = copy.deepcopy(model, weights.copy())
        own.set_attn_implementation(implementation)
        calls[peer] = way(own, tokens)
    return record(label, dtype, alternate(calls, seconds=6, least=3))


def main() -> None:
    cases = {}
    for dtype in ("float32", "bfloat16"):
        for name in MODELS:
            for length in (512, 1024):
                for way in (inference, training):
                    label = f"{dtype} {name} {length} tokens, {way.__name__}"
                    cases[label] = partial(row, label, name, length, dtype, way)
    measure("models", cases)


if __name__ == "__main__":
    main()
