"""Train models that repeat what they read, and see how: the heads of a known mechanism, found.

python examples/induction.py   (needs: pip install ".[torch]"; half a minute on one core)

A sequence is a random word of 6 to 16 different tokens, over and over. To continue it, a model
looks for where its token stood before and copies what followed: an induction head. The keys of
that head must know what stood before them, which takes a previous-token head in an earlier layer,
so a model of one layer cannot do it (Olsson et al., "In-context Learning and Induction Heads",
2022). The table shows the scores of every head, and the loss of the model without it.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import regard

TOKENS, LENGTH, WIDTH, HEADS = 24, 32, 64, 2
STEPS, BATCH, RATE = 300, 32, 3e-3


class Attention(nn.Module):
    """Causal attention, added to its input. Positions reach queries and keys, but not values."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query_key = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.kept = torch.ones(HEADS)  # 0 for a head that is cut out

    def forward(self, x, positions):
        x_norm = self.norm(x)
        query, key = self.query_key(x_norm + positions).chunk(2, -1)
        parts = (query, key, self.value(x_norm))
        heads = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        y = scaled_dot_product_attention(*heads, is_causal=True) * self.kept[:, None, None]
        return x + self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Attention and nothing else."""

    def __init__(self, layers):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(layers))
        self.guess = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS))

    def forward(self, tokens):
        x, positions = self.tokens(tokens), self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, positions)
        return self.guess(x)


@dataclass
class Head:
    """One row of the table."""

    layer: int
    head: int
    previous_token: float
    induction: float
    loss_without: float


def batch(generator, size=BATCH):
    """Tokens (B, L), and whether each is a repetition, which a model can know: (B, L)."""
    period = torch.randint(6, LENGTH // 2 + 1, (size, 1), generator=generator)
    word = torch.rand(size, TOKENS, generator=generator).argsort(-1)
    positions = torch.arange(LENGTH)[None]
    return word.gather(1, positions % period), positions >= period


def loss(model, tokens, repeated):
    """The mean loss of the tokens that are repetitions."""
    guesses = model(tokens[:, :-1]).transpose(1, 2)
    return cross_entropy(guesses, tokens[:, 1:], reduction="none")[repeated[:, 1:]].mean()


def train(layers, seed=0, steps=STEPS):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Model(layers)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98))
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, *batch(generator)).backward()
        optimizer.step()
        warm.step()
    return model


@torch.no_grad()
def look(model):
    """(loss, every Head), on sequences that were not trained on."""
    tokens, repeated = batch(torch.Generator().manual_seed(1_000), size=64)
    with regard.watch(model, tokens=[[str(n) for n in row] for row in tokens.tolist()]) as seen:
        model(tokens)
    found = []
    for row in seen.heads():
        kept = model.layers[row.layer].kept
        kept[row.head] = 0
        without = loss(model, tokens, repeated).item()
        kept[row.head] = 1
        scores = row.scores["previous token"], row.scores["induction"]
        found.append(Head(row.layer, row.head, *scores, without))
    return loss(model, tokens, repeated).item(), found


def main():
    torch.set_num_threads(1)
    for layers in (1, 2):
        whole, heads = look(train(layers))
        print(f"{layers} layer{'s'[: layers - 1]}: loss {whole:.2f} with all heads")
        print("  head  previous token  induction  loss without it")
        for h in heads:
            scores = f"{h.previous_token:14.2f}  {h.induction:9.2f}"
            print(f"  {h.layer}.{h.head:<3}{scores}  {h.loss_without:15.2f}")


if __name__ == "__main__":
    main()
