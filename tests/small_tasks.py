"""A small language to translate, and settings with which a model learns it in seconds."""

from __future__ import annotations

import random
from pathlib import Path

NOUNS = {"dog": "hund", "cat": "katze", "bird": "vogel", "horse": "pferd", "fish": "fisch"}
COLOURS = {"red": "rot", "green": "grün", "blue": "blau", "white": "weiß"}
VERBS = {"sees": "sieht", "hears": "hört", "finds": "findet", "knows": "kennt"}
PLACES = {"here": "hier", "there": "dort", "outside": "draußen"}

# Small, without dropout: made to learn its training data by heart.
SETTINGS = {
    "width": 32,
    "heads": 2,
    "layers": 2,
    "feedforward": 64,
    "dropout": 0.0,
    "smoothing": 0.0,
    "pieces": 200,
    "rate": 1e-2,
    "warmup": 20,
    "average": 0.0,
    "tokens": 160,
    "accelerator": "cpu",
}


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different sentences; the other language puts the place first and colours last."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        one, other = draw.sample(sorted(NOUNS), 2)
        colour, verb, place = (draw.choice(sorted(words)) for words in (COLOURS, VERBS, PLACES))
        source = f"A {colour} {one} {verb} a {other} {place}."
        found[source] = (
            f"{PLACES[place].capitalize()} {VERBS[verb]} {NOUNS[one]} {COLOURS[colour]} "
            f"{NOUNS[other]}."
        )
    return list(found.items())


def write_text(folder: Path, count: int, seed: int = 0) -> dict[str, Path]:
    """The settings `source` and `target`: files of so many sentences."""
    sides = zip(*sentences(count, seed), strict=True)
    paths = {"source": folder / "text.en", "target": folder / "text.de"}
    for path, side in zip(paths.values(), sides, strict=True):
        path.write_text("".join(f"{line}\n" for line in side), "utf-8")
    return paths
