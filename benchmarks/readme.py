"""Write what was measured into the README and docs, between their markers.

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
MEASURED, TRANSLATION = (README.parent / "docs" / f"{n}.md" for n in ("measured", "translation"))
DTYPES = ("float32", "bfloat16")
MACHINES = {"avx512bf16": "AMD", "amx": "Intel"}
ISAS = tuple(MACHINES)
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


def cases(isa: str) -> list[tuple[str, dict[str, Row], str]]:
    """What a case is called, the results that it is among, and its label there but for the type."""
    two = ", 2 threads"
    forward, masks, backward = (measured(name, isa) for name in ("forward", "masks", "backward"))
    every = [(shown, forward, case + two) for shown, case in FORWARD]
    every += [(shown, masks, case) for shown, case in MASKS]
    every += [
        (f"forward + backward {shown}", backward, f"{case} forward + backward{two}")
        for shown, case in BACKWARD
    ]
    return every


def ratios() -> str:
    """The short table."""
    lines = []
    for ours in zip(*map(cases, ISAS), strict=True):
        cells = [_ratio(rows.get(f"{dtype} {case}")) for _, rows, case in ours for dtype in DTYPES]
        lines.append([ours[0][0], *cells])
    head = [f"{MACHINES[isa]}: {dtype}" for isa in ISAS for dtype in DTYPES]
    flex = [ratio(row, "flex") for isa in ISAS for row in measured("masks", isa).values()]
    note = f"""
        ¹ PyTorch's fused attention has no such mask and is given a dense one; compiled
        FlexAttention has, and takes {min(flex):.1f} to {max(flex):.1f} times as long as Regard. ²
        beside plain matmul–softmax–matmul, where that is faster than PyTorch's fused attention.
    """
    return f"{_table(['(B, H, L, D)', *head], lines)}\n\n{_prose(note)}"


def others() -> str:
    """Peers, models and read-outs, in short."""
    said = "; ".join(f"on the {MACHINES[isa]} machine, {_nearest(isa)}" for isa in ISAS) + "."
    models = [
        f"{min(each):.2f} to {max(each):.2f} on the {MACHINES[isa]}"
        for isa in ISAS
        if (each := [ratio(row, "torch") for row in measured("models", isa).values()])
    ]
    costs = [f"on the {MACHINES[isa]} {_costs(isa)}" for isa in ISAS]
    text = f"""
        **Beside other libraries**, each in a process of its own: {said}

        **Whole models** of Hugging Face, `attn_implementation="regard"` beside `"sdpa"`, BERT-base
        and GPT-2 at 512 and 1024 tokens, inference and training: {" and ".join(models)}; attention
        is a small part of their running time.

        **Read-outs** beside the output, at 8192 positions: {"; ".join(costs)}. Memory stays linear:
        the default set takes 40 MiB beyond its arrays there, and 150 MiB at 32,768 positions, where
        column sums in PyTorch and eager attention hold N×N matrices.
    """
    return "\n\n".join(_prose(part) for part in text.split("\n\n"))


def _nearest(isa: str) -> str:
    rows = measured("peers", isa).values()
    ahead = sum(all(ratio(row, name) >= 1 for name in row["versions"]) for row in rows)
    return f"Regard is the fastest in {ahead} of {len(rows)} rows"


def _costs(isa: str) -> str:
    """What read-outs cost, in short."""
    said = []
    for dtype in DTYPES:
        row = next(iter(measured(f"readouts_own_{dtype}", isa).values()))
        each = (row[name]["median"] / row["output"]["median"] for name in ("rows", "default"))
        said.append(f"{' and '.join(f'{times:.2f}' for times in each)} times its time in {dtype}")
    return ", ".join(said) + " (per query; the default set of eleven)"


def kernels(isa: str) -> str:
    """The table of attention by itself."""
    every = cases(isa)
    forward, masks = measured("forward", isa), measured("masks", isa)
    lines = []
    for shown, rows, case in every:
        cells = [cell for dtype in DTYPES for cell in _cells(rows.get(f"{dtype} {case}"))]
        lines.append([shown, *cells])
    columns = [f"{dtype}: {what}" for dtype in DTYPES for what in ("ms", "× PyTorch", "limit")]
    flex = [ratio(row, "flex") for row in masks.values()]
    note = f"""
        "limit": {LIMITS[isa]}.
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
    limit = f"{ratio(row, 'limit'):.0%}".replace("%", " %") if "limit" in row else ""
    return _three(row["regard"]["median"]), _ratio(row), limit


def _ratio(row: Row | None) -> str:
    if row is None:
        return ""
    shown = _three(ratio(row, "torch"))
    if "plain" in row and ratio(row, "plain") < ratio(row, "torch"):
        shown += f" ({_three(ratio(row, 'plain'))}²)"
    return shown


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


def readouts(isa: str) -> str:
    """What read-outs cost beside the output, and beside PyTorch's matrices."""
    lines = []
    for dtype in DTYPES:
        row = next(iter(measured(f"readouts_own_{dtype}", isa).values()))
        base = row["output"]["median"]
        others = [f"{row[name]['median'] / base:.2f}" for name in ("rows", "default", "received")]
        peers = next(iter(measured(f"readouts_peers_{dtype}", isa).values()))
        beside = [f"{ratio(peers, n):.1f}" if n in peers else "" for n in ("plain", "eager")]
        lines.append([dtype, _three(base), *others, *beside])
    head = ["", "output: ms", "per query", "default set", "received"]
    head += ["PyTorch's output and column sums", "Hugging Face's eager"]
    note = """
        The output's time is 1. Per query: log-sum-exp, largest score and weight, entropy, effective
        keys, top-8 keys, mean distance, weight on the first key. The last two columns: how many
        times as long as output and received together.
    """
    return f"{_table(head, lines)}\n\n{_prose(note)}"


def watch(isa: str) -> str:
    """What watching a model costs."""
    row = next(iter(measured("watch", isa).values()))
    lines = []
    for name in ("sdpa", "regard"):
        base = row[name]["median"]
        times = [f"{row[f'{name}, {mode}']['median'] / base:.2f}" for mode in ("lazy", "stats")]
        lines.append([name, _three(base), *times])
    table = _table(["attention", "ms", "lazy", "stats, the default set"], lines)
    matrices = row.get("eager, output_attentions")
    if matrices is None:
        return table
    times = matrices["median"] / row["sdpa"]["median"]
    said = f"Hugging Face's `output_attentions=True` takes {times:.2f} times as long as sdpa alone."
    return f"{table}\n\n{_prose(said)}"


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


PARTS = (kernels, peers, models, readouts, watch)
PAGES = {
    README: {"ratios": ratios, "others": others},
    MEASURED: {f"{part.__name__} {isa}": partial(part, isa) for part in PARTS for isa in ISAS},
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
