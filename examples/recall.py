"""Train models that look values up by keys, and find the head that does it.

python examples/recall.py   (needs: pip install ".[torch]"; half a minute on one core)

A sequence is a list of pairs, each a key and its value at one position, and at its end a key alone:
the model must say its value. Where that value stands is known for each sequence, so that heads that
retrieve are known by their weight there. Several learn to, and stand in for one another; the one
with the largest weight is the one that the model misses most when it is cut out.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import regard

KEYS, VALUES, PAIRS, WIDTH, HEADS, LAYERS = 32, 16, 16, 32, 2, 2
STEPS, BATCH, RATE = 600, 64, 3e-3


class Attention(nn.Module):
    """Causal attention, added to its input."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.parts, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kept = torch.ones(HEADS)  # 0 for a head that is cut out

    def forward(self, x):
        parts = self.parts(self.norm(x)).chunk(3, -1)
        heads = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        y = scaled_dot_product_attention(*heads, is_causal=True) * self.kept[:, None, None]
        return x + self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Attention and nothing else."""

    def __init__(self):
        super().__init__()
        self.keys, self.values = nn.Embedding(KEYS, WIDTH), nn.Embedding(VALUES + 1, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.guess = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES))

    def forward(self, keys, values):
        x = self.keys(keys) + self.values(values)
        for layer in self.layers:
            x = layer(x)
        return self.guess(x[:, -1])


@dataclass
class Head:
    """One row of the table: its weight from the last position to where the value stands."""

    layer: int
    head: int
    retrieval: float
    right_without: float


def batch(generator, size=BATCH):
    """Keys and values (B, PAIRS + 1), the value wanted (B,), and where it stands (B,)."""
    keys = torch.rand(size, KEYS, generator=generator).argsort(-1)[:, :PAIRS]
    values = torch.randint(VALUES, (size, PAIRS), generator=generator)
    place = torch.randint(PAIRS, (size, 1), generator=generator)
    nothing = torch.full((size, 1), VALUES)
    wanted = values.gather(1, place)[:, 0]
    asked = torch.cat([keys, keys.gather(1, place)], 1), torch.cat([values, nothing], 1)
    return *asked, wanted, place[:, 0]


def train(seed=0, steps=STEPS):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    for _ in range(steps):
        keys, values, wanted, _ = batch(generator)
        optimizer.zero_grad()
        cross_entropy(model(keys, values), wanted).backward()
        optimizer.step()
    return model


@torch.no_grad()
def look(model):
    """(share of right answers, every Head), on sequences that were not trained on."""
    keys, values, wanted, place = batch(torch.Generator().manual_seed(1_000), size=256)

    def right():
        return (model(keys, values).argmax(-1) == wanted).float().mean().item()

    with regard.watch(model) as seen:
        whole = right()
    found = []
    for number, weights in enumerate(seen):
        last = weights.rows([PAIRS])[:, :, 0]  # (B, H, Lk)
        there = last.take_along_dim(place[:, None, None], -1).mean(dim=(0, 2))
        kept = model.layers[number].kept
        for head in range(HEADS):
            kept[head] = 0
            found.append(Head(number, head, there[head].item(), right()))
            kept[head] = 1
    return whole, found


def main():
    torch.set_num_threads(1)
    for seed in range(3):
        whole, heads = look(train(seed))
        print(f"seed {seed}: {whole:.0%} right with all heads")
        print("  head  retrieval  right without it")
        for h in heads:
            print(f"  {h.layer}.{h.head:<3}{h.retrieval:10.2f}  {h.right_without:15.0%}")


if __name__ == "__main__":
    main()
