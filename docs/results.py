"""docs/results.md and its pictures, from the reports that results/run.sh left: `make results`."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
REPORTS = DOCS.parent / "results"

HEAD = """# Results

Every figure here is from a report in `results/`, which `sh results/run.sh` makes; this page is made
of those by `python docs/results.py`. BLEU is sacrebleu's: of lower-cased, tokenised text
(`--tokenize none`), as Multi30k is usually reported, and of the same answers as they are written
(`13a`). A run's cost is in processor minutes, the time of all threads together, since the machine
did other work besides: two cores give two of them in a minute.
"""

COMPARED = """A Transformer of 4 + 4 layers of size 128 trained on text that was lower-cased and
tokenised before is reported with 41.02 on test 2016, beam 5, for 8,000 larger batches
(github.com/LividWo/Revisit-MMT).
"""

HOUR = 120  # processor minutes: an hour of two cores

COLOURS = ("#3a6ea5", "#c8553d", "#588157", "#8d6a9f", "#b08900")


def main() -> None:
    """Write the page."""
    reports = {path.stem: json.loads(path.read_text("utf-8")) for path in REPORTS.glob("*.json")}
    explained = reports.pop("explained", None)
    by_task = {
        task: {name: one for name, one in sorted(reports.items()) if one["task"] == task}
        for task in ("translation", "pronunciation")
    }
    parts = [HEAD, *_translation(by_task["translation"]), *_sounds(by_task["pronunciation"])]
    if explained:
        (DOCS / "alignment.svg").write_text(_grid(explained), "utf-8")
        text = f"Read from layer {explained['attention']['layer']}; a row for each word written."
        parts += ["## An alignment\n", f"![An alignment](alignment.svg)\n\n{text}\n"]
    parts += _runs(reports)
    (DOCS / "results.md").write_text("\n".join(parts), "utf-8")


def _translation(reports: dict[str, Any]) -> list[str]:
    scored = {name: one for name, one in reports.items() if "bleu_13a" in one["figures"]}
    if not scored:
        return []
    rows = [
        [
            name,
            one["split"],
            one["use"]["beam"],
            one["figures"]["bleu_lowercased_tokenised"]["score"],
            one["figures"]["bleu_13a"]["score"],
        ]
        for name, one in scored.items()
    ]
    signatures = {one["figures"][kind]["signature"] for one in scored.values() for kind in BLEUS}
    parts = [
        "## Translation, Multi30k\n",
        _table(["report", "split", "beam", "BLEU lc tok", "BLEU 13a"], rows),
        COMPARED,
        f"Signatures: {', '.join(f'`{one}`' for one in sorted(signatures))}.\n",
    ]
    first = {name: one for name, one in scored.items() if one["split"] == "test_2016_flickr"}
    lengths = {
        name: {row["words"]: row["bleu"] for row in one["figures"]["bleu_by_source_length"]}
        for name, one in first.items()
    }
    words = list(dict.fromkeys(word for one in lengths.values() for word in one))
    rows = [[name, *(one.get(word, "–") for word in words)] for name, one in lengths.items()]
    parts += ["BLEU by the source's number of words, test 2016:\n", _table(["", *words], rows)]
    curves = {name: one["curve"] for name, one in first.items() if one["use"]["beam"] > 1}
    parts += [
        "![Learning curves](curves.svg)\n\nValidation loss by processor minutes.\n",
        *(_within(name, curve) for name, curve in curves.items()),
        *_alignments(reports),
    ]
    (DOCS / "curves.svg").write_text(_curves(curves), "utf-8")
    return parts


def _within(name: str, curve: Sequence[dict[str, Any]]) -> str:
    """What a run had reached after an hour of two cores."""
    points = [point for point in curve if _cost(point) <= HOUR]
    best = min(points, key=lambda point: float(point["validation_loss"]))
    return (
        f"- {name}: validation loss {best['validation_loss']:.3f} after {_cost(best):.0f} "
        f"processor minutes (epoch {best['epoch']}), the best within the {HOUR} of an hour of two "
        "cores.\n"
    )


def _cost(point: dict[str, Any]) -> float:
    """Processor minutes; of runs that did not count them, minutes."""
    return float(point.get("processor_minutes", point["minutes"]))


BLEUS = ("bleu_lowercased_tokenised", "bleu_13a")


def _alignments(reports: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in reports.items():
        figures = one["figures"]
        if "gold" in figures:
            for kind in ("alignment", "ibm_model_1"):
                rows.append([name, figures["gold"], kind, *figures[kind].values()])
        elif figures["alignment"]:
            found = figures["alignment"]
            keys = ("error_rate", "precision", "recall")
            what = f"{found['against']}, {one['split']}"
            rows.append([name, what, "alignment", *(found[key] for key in keys)])
    heads = ["report", "against", "of", "error rate", "precision", "recall"]
    return ["Alignments:\n", _table(heads, rows)] if rows else []


def _sounds(reports: dict[str, Any]) -> list[str]:
    rows = [
        [
            name,
            one["figures"]["words"],
            f"{one['figures']['word_error_rate']:.1%}",
            f"{one['figures']['sound_error_rate']:.1%}",
            f"{one['figures']['attention']['monotonic_steps']:.1%}",
            f"{one['figures']['attention']['monotonic_words']:.1%}",
        ]
        for name, one in reports.items()
    ]
    heads = ["report", "words", "wrong words", "wrong sounds", "monotonic steps", "monotonic words"]
    return ["## Pronunciation, CMUdict without stress\n", _table(heads, rows)] if rows else []


def _runs(reports: dict[str, Any]) -> list[str]:
    parts = ["## How they were made\n"]
    for name, one in sorted(reports.items()):
        training, machine = one["training"], one["machine"]
        parts.append(
            f"- **{name}**: `{shlex.join(training['command'])}`, seed "
            f"{training['settings']['seed']}, {one['parameters']:,} parameters, "
            f"{_spent(one['curve'], training)}, the weights of step {one['checkpoint']['step']};"
            f" `{shlex.join(one['command'])}`; {machine['processor']}, {machine['threads']} "
            f"threads, PyTorch {machine['torch']}"
        )
    return [*parts, ""]


def _spent(curve: Sequence[dict[str, Any]], training: dict[str, Any]) -> str:
    if not curve:
        return "no epoch to its end"
    last, threads = curve[-1], training["machine"]["threads"]
    epochs = f"{last['epoch']} of {training['settings']['epochs']} epochs"
    if "processor_minutes" not in last:
        return f"{epochs} in {last['minutes']:.0f} minutes"
    cost = last["processor_minutes"]
    return (
        f"{epochs} in {cost:.0f} processor minutes ({cost / threads:.0f} minutes of {threads} "
        f"cores; {last['minutes']:.0f} by the clock)"
    )


def _table(heads: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _curves(curves: dict[str, Any]) -> str:
    """Validation loss by processor minutes."""
    points = [point for curve in curves.values() for point in curve]
    most = max(map(_cost, points))
    low, high = (f(point["validation_loss"] for point in points) for f in (min, max))
    parts = []
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        at = " ".join(
            f"{60 + 560 * _cost(point) / most:.1f},"
            f"{20 + 260 * (high - point['validation_loss']) / (high - low):.1f}"
            for point in curve
        )
        y = 40 + 18 * len(parts)
        parts.append(
            f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="400" y="{y}" fill="{colour}">{html.escape(name)}</text>'
        )
    axes = (
        f'<text x="10" y="24">{high:.2f}</text><text x="10" y="284">{low:.2f}</text>'
        f'<text x="60" y="304">0</text><text x="540" y="304">{most:.0f} minutes</text>'
        '<path d="M60 20V284H620" fill="none" stroke="#888"/>'
    )
    return _svg(640, 310, axes + "".join(parts))


def _grid(explained: dict[str, Any]) -> str:
    """A cell for each pair of words, the darker the larger the weight."""
    size, left, top = 30, 110, 100
    parts = []
    for x, word in enumerate(explained["source"]):
        at = left + size * (x + 0.5), top - 8
        turn = f'transform="translate({at[0]:.0f} {at[1]}) rotate(-50)"'
        parts.append(f"<text {turn}>{html.escape(word)}</text>")
    for y, (word, row) in enumerate(zip(explained["target"], explained["weights"], strict=True)):
        at = top + size * y
        parts.append(
            f'<text x="{left - 8}" y="{at + 20}" text-anchor="end">{html.escape(word)}</text>'
        )
        for x, weight in enumerate(row):
            parts.append(
                f'<rect x="{left + size * x}" y="{at}" width="{size - 2}" height="{size - 2}" '
                f'fill="#3a6ea5" fill-opacity="{max(weight, 0.03):.2f}"/>'
            )
    width = left + size * len(explained["source"]) + 60
    return _svg(width, top + size * len(explained["target"]) + 10, "".join(parts))


def _svg(width: int, height: int, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" fill="#666">{content}</svg>\n'
    )


if __name__ == "__main__":
    main()
