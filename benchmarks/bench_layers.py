"""How long does a training step of our Transformer take, beside PyTorch's attention in it?

    python benchmarks/bench_layers.py [TEXT …]     # the cases whose label has every TEXT

The same model, parameters and tokens; only what the layers do between their projections differs.
Sentences are short, as in translation: a call's overhead counts as much as its arithmetic. Writes
benchmarks/results/ISA/layers.json.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from harness import alternate, chosen, record, save
from torch import Tensor
from torch.nn import functional

from regard.layers import Transformer, heads, multihead
from regard.masks import Mask

VOCABULARY = 8000
MODELS = {
    "translation": {"width": 128, "heads": 4, "layers": 4, "feedforward": 256},
    "base": {"width": 512, "heads": 8, "layers": 6, "feedforward": 2048},
}


def torch_attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Mask, dropout_p: float, **_: Any
) -> tuple[Tensor, None]:
    """regard.layers.heads.attend by PyTorch's function."""
    query, key, value = (array.transpose(1, 2) for array in (query, key, value))
    seen = padding(mask, key.shape[2]) if hasattr(mask, "keys") else None
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=seen is None, dropout_p=dropout_p
    )
    return output.transpose(1, 2).flatten(-2), None


@functools.lru_cache(maxsize=2)
def padding(mask: Any, keys: int) -> Tensor:
    """(B, 1, 1, Lk), made once for all layers."""
    return (torch.arange(keys) < mask.keys[:, None])[:, None, None]


def training(model: Transformer, tokens: tuple[Tensor, Tensor, Tensor], core: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        multihead.attend = core
        logits = model(*tokens)
        functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[2][:, 1:].flatten()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(model: Transformer, tokens: tuple[Tensor, Tensor, Tensor], core: Any) -> Any:
    def run() -> Any:
        multihead.attend = core
        with torch.inference_mode():
            return model(*tokens)

    return run


def sentences(batch: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source tokens, their lengths, target tokens."""
    source, target = (torch.randint(VOCABULARY, (batch, longest)) for _ in range(2))
    lengths = torch.randint(longest // 2, longest + 1, (batch,))
    lengths[0] = longest
    return source, lengths, target


CORES: dict[str, Callable[..., Any]] = {"regard": heads.attend, "torch": torch_attend}


def main() -> None:
    rows = []
    cases = [
        (f"{name}, {batch} sentences of {longest}, {way.__name__}", name, batch, longest, way)
        for name, batch, longest in (
            ("translation", 64, 16),
            ("translation", 128, 32),
            ("translation", 16, 128),
            ("base", 32, 32),
        )
        for way in (training, inference)
    ]
    for label, name, batch, longest, way in chosen(cases):
        torch.manual_seed(0)
        model = Transformer(VOCABULARY, VOCABULARY, dropout=0.0, **MODELS[name])
        tokens = sentences(batch, longest)
        calls = {peer: way(copy.deepcopy(model), tokens, core) for peer, core in CORES.items()}
        rows.append(record(label, "float32", alternate(calls, seconds=6)))
    multihead.attend = heads.attend
    if len(rows) == len(cases):
        print(save("layers", rows))


if __name__ == "__main__":
    main()
