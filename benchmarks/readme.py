"""Write what was measured into the README and docs/translation.md, between their markers.

    python benchmarks/readme.py

A marker `<!-- measured: NAME ISA -->` begins what NAME below gives of a machine with that
instruction set, and `<!-- end -->` ends it. What was not measured is left out.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import measured
from peers import PEERS

README = Path(__file__).parents[1] / "README.md"
TRANSLATION = README.parent / "docs" / "translation.md"
DTYPES = ("float32", "bfloat16")
Row = dict[str, Any]

# What the README calls a case, its results and its label but for the type.
FORWARD = [
    ("(1, 8, 512, 64)", "(1, 8, 512, 512, 64)"),
    ("(1, 8, 2048, 64)", "(1, 8, 2048, 2048, 64)"),
    ("(1, 8, 8192, 64)", "(1, 8, 8192, 8192, 64)"),
    ("(1, 16, 2048, 128)", "(1, 16, 2048, 2048, 128)"),
    ("(8, 12, 197, 64), image patches", "(8, 12, 197, 197, 64)"),
    ("(32, 8, 64, 64), short sentences", "(32, 8, 64, 64, 64)"),
    ("(1, 8, 2048, 64), causal", "(1, 8, 2048, 2048, 64) causal"),
    ("(1, 8, 2048, 64), with a bias for every pair", "(1, 8, 2048, 2048, 64) float bias"),
    ("one query, 8192 keys, 32 heads on 8 key heads, D = 128", "(1, 32, 1, 8192, 128)"),
]
MASKS = [
    ("(1, 8, 4096, 64), a window of 256 keys¹", "(1, 8, 4096, 64) window(255, 0)"),
    ("(1, 8, 8192, 64), 16 packed documents¹", "(1, 8, 8192, 64) 16 documents of 512"),
    (
        "(8, 8, 2048, 64), half of the keys padding¹",
        "(8, 8, 2048, 64) half of the keys are padding",
    ),
]
BACKWARD = [
    ("(1, 8, 512, 64)", "(1, 8, 512, 64)"),
    ("(1, 8, 2048, 64)", "(1, 8, 2048, 64)"),
    ("(1, 8, 2048, 64), causal", "(1, 8, 2048, 64) causal"),
    ("(8, 12, 197, 64)", "(8, 12, 197, 64)"),
]


def ratio(row: Row, name: str) -> float:
    """How many times as long as Regard that peer takes."""
    return float(row[name]["median"] / row["regard"]["median"])


def kernels(isa: str) -> str:
    """The table of attention by itself."""
    two = ", 2 threads"
    forward, masks, backward = (measured(name, isa) for name in ("forward", "masks", "backward"))
    cases = [(shown, forward, case + two) for shown, case in FORWARD]
    cases += [(shown, masks, case) for shown, case in MASKS]
    cases += [
        (f"forward + backward {shown}", backward, f"{case} forward + backward{two}")
        for shown, case in BACKWARD
    ]
    lines = []
    for shown, rows, case in cases:
        cells = [cell for dtype in DTYPES for cell in _cells(rows.get(f"{dtype} {case}"))]
        lines.append([shown, *cells])
    columns = [f"{dtype}: {what}" for dtype in DTYPES for what in ("ms", "× PyTorch", "limit")]
    flex = [ratio(row, "flex") for row in masks.values()]
    note = f"""
        "limit": the share reached of what bounds the case on this machine, by a loop that does
        nothing else, in turns with it (`benchmarks/probe.cpp`): {LIMITS[isa]}; for one query,
        reading the very keys and values.
        ¹ PyTorch has no such mask and is given a dense one; compiled FlexAttention takes
        {min(flex):.1f} to {max(flex):.1f} times as long as Regard. ² beside plain
        matmul–softmax–matmul, where that is faster than PyTorch's fused attention.
        {_others(forward)}
    """
    return f"{_table(['(B, H, L, D)', *columns], lines)}\n\n{_prose(note)}"


LIMITS = {
    "amx": """multiply-adds of float32 in registers, which parts on the matrix unit may outrun; in
        bfloat16 both products and the exponentials with everything packed in the caches""",
    "avx512bf16": """multiply-adds of float32, or of pairs of bfloat16 and the exponentials, in
        registers""",
}


def _cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    shown = _three(ratio(row, "torch"))
    if "plain" in row and ratio(row, "plain") < ratio(row, "torch"):
        shown += f" ({_three(ratio(row, 'plain'))}²)"
    limit = f"{ratio(row, 'limit'):.0%}".replace("%", " %") if "limit" in row else ""
    return _three(row["regard"]["median"]), shown, limit


def _three(figure: float) -> str:
    """With three digits that count, and at most two places."""
    return f"{figure:.{max(0, min(2, 2 - math.floor(math.log10(figure))))}f}"


def _others(forward: dict[str, Row]) -> str:
    said = ""
    if row := forward.get("float16 (1, 8, 2048, 2048, 64), 2 threads"):
        said += f"float16 takes {_beside(row)} for (1, 8, 2048, 64). "
    if row := forward.get('float32 (1, 8, 2048, 2048, 64) precision="high", 2 threads'):
        said += f'float32 with `precision="high"` takes {_beside(row)} there. '
    if row := forward.get("float32 (1, 1, 4, 4, 8), 2 threads"):
        ours, torch = (row[name]["median"] * 1e3 for name in ("regard", "torch"))
        said += f"A call on tiny tensors costs {ours:.1f} µs; PyTorch's {torch:.1f}."
    return said


def _beside(row: Row) -> str:
    return f"{row['regard']['median']:.1f} ms, PyTorch {ratio(row, 'torch'):.1f} times as long,"


def peers(isa: str) -> str:
    """What the chart shows."""
    rows = measured("peers", isa).values()
    nearest, behind = [], []
    for row in rows:
        ratios = {name: ratio(row, name) for name in row["versions"] if name != "regard"}
        name = min(ratios, key=lambda name: ratios[name])
        nearest.append(ratios[name])
        behind += [f"{row['case']} ({n}, {r:.2f})" for n, r in ratios.items() if r < 1]
    versions = {PEERS[name][0]: v for row in rows for name, v in row["versions"].items()}
    said = ", ".join(
        f"{name} {v.split('-')[0]}" for name, v in versions.items() if name != "regard"
    )
    ahead = len(nearest) - len({text.split(" (")[0] for text in behind})
    text = f"""
        Every library has a process of its own, and they take turns
        (`benchmarks/bench_peers.py`): {said}. Regard is the fastest in {ahead} of {len(nearest)}
        rows; the next one takes {min(nearest):.2f} to {max(nearest):.2f} times as long.
    """
    if behind:
        text += f"Behind: {', '.join(behind)}."
    return _prose(text)


def models(isa: str) -> str:
    """The table of whole models."""
    rows = measured("models", isa)
    ways = ("inference", "training")
    lines = []
    for name in ("BERT-base", "GPT-2"):
        for length in (512, 1024):
            labels = [f"{d} {name} {length} tokens, {way}" for way in ways for d in DTYPES]
            cells = [f"{ratio(rows[x], 'torch'):.2f}" if x in rows else "" for x in labels]
            lines.append([f"{name}, {length} tokens", *cells])
    head = [
        "× PyTorch's attention",
        *(f"{w}, {d}" for w in ("inference", "a training step") for d in DTYPES),
    ]
    return _table(head, lines)


def decoding(isa: str) -> str:
    """How fast translations are written."""
    lines = []
    for case, row in measured("decoding", isa).items():
        speeds = {name: row["tokens"] / row[name]["median"] * 1e3 for name in DECODERS}
        lines.append([case, *(f"{speed:,.0f}" for speed in speeds.values())])
    return _table(["tokens a second", *DECODERS.values()], lines)


DECODERS = {"regard": "Regard", "uncached": "without a cache", "marian": "Hugging Face"}


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _prose(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), 105, break_long_words=False, break_on_hyphens=False
    )


ISAS = ("amx", "avx512bf16")
PAGES = {
    README: {
        f"{part.__name__} {isa}": partial(part, isa)
        for part in (kernels, peers, models)
        for isa in ISAS
    },
    TRANSLATION: {"decoding amx": partial(decoding, "amx")},
}


def filled(page: Path) -> str:
    """A page with what was measured."""
    text = page.read_text()
    for name, part in PAGES[page].items():
        pattern = rf"(<!-- measured: {name} -->\n).*?(\n<!-- end -->)"
        made = part()
        text, count = re.subn(pattern, lambda m: m[1] + made + m[2], text, flags=re.DOTALL)  # noqa: B023
        assert count == 1, f"{page.name} has no place for {name}"
    return text


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
