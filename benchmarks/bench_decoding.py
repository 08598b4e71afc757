"""How fast does our Transformer write, beside itself without a cache and Hugging Face's `generate`?

    python benchmarks/bench_decoding.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Random weights; sentences of 12 to 24 tokens become sequences of exactly 24, since nobody may end
one. "uncached" is the same model, to which each step is given the whole sequence so far; "marian" a
MarianMTModel of the same size, with its own cache. Writes benchmarks/results/ISA/decoding.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import alternate, measure, record
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

from regard.layers import Transformer
from regard.masks import causal, lengths
from regard.tasks import beam
from regard.tasks.vocabulary import BEGIN, END, PAD

VOCABULARY, LENGTH = 8000, 24
MODELS = {
    "translation": {"width": 128, "heads": 4, "layers": 4, "feedforward": 256},
    "base": {"width": 512, "heads": 8, "layers": 6, "feedforward": 2048},
}
CASES = [
    (name, sentences, width)
    for name, sentences in (("translation", 64), ("translation", 1), ("base", 16))
    for width in (1, 5)
]


class Endless(Transformer):
    """Every sequence is as long as it may be."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = super().step(tokens, state)
        logits[:, END] = -torch.inf
        return logits, state


class Sequences:
    """All tokens so far, and all that the encoder made of the source."""

    def __init__(self, memory: Any) -> None:
        self.states, self.lengths = memory.states, memory.lengths
        self.tokens = torch.empty((len(memory.lengths), 0), dtype=torch.long)

    def reorder(self, index: Tensor) -> None:
        self.states, self.lengths = self.states[index], self.lengths[index]
        self.tokens = self.tokens[index]


class Uncached(Endless):
    """The same, computing everything again for each token."""

    def start(self, memory: Any) -> Any:
        return Sequences(memory)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        state.tokens = torch.cat([state.tokens, tokens[:, None]], dim=1)
        x = self.decoder(
            self._embed(self.target_embedding, state.tokens),
            state.states,
            mask=causal("upper_left"),
            memory_mask=lengths(keys=state.lengths),
        )
        logits = self.logits(x[:, -1])
        logits[:, END] = -torch.inf
        return logits, state


def sentences(count: int) -> tuple[Tensor, Tensor]:
    """Tokens, padded, and lengths."""
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (count,))
    lengths[0] = LENGTH
    tokens = torch.randint(4, VOCABULARY, (count, LENGTH))
    return tokens.where(torch.arange(LENGTH) < lengths[:, None], PAD), lengths


def ours(model: Transformer, source: tuple[Tensor, Tensor], width: int) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            found = beam.search(model, *source, beam=width, longest=LENGTH)
        return [hypotheses[0].tokens for hypotheses in found]

    return run


def marian(size: dict[str, int]) -> MarianMTModel:
    """Hugging Face's encoder and decoder of our size, none of whose sequences ends."""
    of_each = {
        f"{side}_{name}": size[of]
        for side in ("encoder", "decoder")
        for name, of in (("layers", "layers"), ("attention_heads", "heads"))
    }
    inner = {f"{side}_ffn_dim": size["feedforward"] for side in ("encoder", "decoder")}
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=size["width"],
        activation_function="relu",
        max_position_embeddings=2 * LENGTH,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        pad_token_id=PAD,
        decoder_start_token_id=BEGIN,
        eos_token_id=None,
        forced_eos_token_id=None,
        **of_each,
        **inner,
    )
    return MarianMTModel(config).eval()


def theirs(
    model: MarianMTModel, source: tuple[Tensor, Tensor], width: int
) -> Callable[[], list[list[int]]]:
    tokens, lengths = source
    seen = (torch.arange(LENGTH) < lengths[:, None]).long()

    def run() -> list[list[int]]:
        found = model.generate(
            tokens, attention_mask=seen, num_beams=width, do_sample=False, max_new_tokens=LENGTH
        )
        return found[:, 1:].tolist()

    return run


def row(label: str, name: str, count: int, width: int) -> dict[str, Any]:
    torch.manual_seed(0)
    size, source = MODELS[name], sentences(count)
    model = Endless(VOCABULARY, VOCABULARY, joint_vocabulary=True, **size).eval()
    uncached = Uncached(VOCABULARY, VOCABULARY, joint_vocabulary=True, **size).eval()
    uncached.load_state_dict(model.state_dict())
    calls = {
        "regard": ours(model, source, width),
        "uncached": ours(uncached, source, width),
        "marian": theirs(marian(size), source, width),
    }
    written = {peer: call() for peer, call in calls.items()}
    assert {len(one) for found in written.values() for one in found} == {LENGTH}
    assert written["regard"] == written["uncached"]
    times = alternate(calls, seconds=3, least=3)
    speeds = {peer: count * LENGTH / spent.median * 1e3 for peer, spent in times.items()}
    print("tokens/s:", {peer: round(speed) for peer, speed in speeds.items()})
    return record(label, "float32", times) | {"tokens": count * LENGTH}


def main() -> None:
    cases = {}
    for name, count, width in CASES:
        batch = f"{count} sentence{'s' if count > 1 else ''}"
        how = "greedy" if width == 1 else f"beam {width}"
        label = f"{name}, {batch}, {how}"
        cases[label] = partial(row, label, name, count, width)
    measure("decoding", cases)


if __name__ == "__main__":
    main()
