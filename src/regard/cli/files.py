"""regard view, heads and diff: what recordings in files show."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from regard.cli import show, sources
from regard.cli.explain import head, number, place
from regard.cli.show import plain, plain_table
from regard.errors import OptionError
from regard.recording.diff import compare
from regard.recording.files import load
from regard.recording.heads import SCORES, table
from regard.recording.record import Recording

__all__ = ["diff", "heads", "view"]


def view(file: Path, html: Path | None) -> None:
    """Print what a recording holds, or write its page. Raises FileFormatError, OptionError."""
    recording = load(file)
    if html is not None:
        _write(html, (file,), recording)
        return
    console = Console(highlight=False)
    for line in str(recording).split("\n"):
        console.print(Text(plain(line)), soft_wrap=True)
    console.print()
    show.heads(console, table(recording))


def heads(file: Path, sort: str, as_csv: bool, as_json: bool) -> None:
    """Print every head with its scores. Raises FileFormatError, OptionError."""
    if sort not in (*SCORES, "layer"):
        raise OptionError(f"--sort {sort!r}", f"layer, {', '.join(SCORES)}")
    if as_csv and as_json:
        raise OptionError("--csv and --json", "one of the two")
    rows = list(table(load(file)))
    if sort != "layer":
        rows.sort(key=lambda row: -_known(row.scores[sort]))
    if as_json:
        print(json.dumps([head(row) for row in rows], indent=1, allow_nan=False))
        return
    if as_csv:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("layer", "head", "module", "kind", "evidence", *SCORES))
        for row in rows:
            numbers = ("" if v != v else f"{v:.6g}" for v in row.scores.values())
            writer.writerow((row.layer, row.head, row.name, row.kind, row.evidence, *numbers))
        print(lines.getvalue(), end="")
        return
    out = plain_table(">Layer", ">Head", "Kind", "Evidence", f">{'' if sort == 'layer' else sort}")
    for row in rows:
        evidence = f"{row.evidence} {row.strength:.2f}"
        shown = "" if sort == "layer" else _shown(row.scores[sort])
        out.add_row(str(row.layer), str(row.head), Text(row.kind), evidence, shown)
    Console(highlight=False).print(out)


def diff(one: Path, other: Path, top: int, as_json: bool, html: Path | None) -> None:
    """Print which heads differ most, or write the page. Raises FileFormatError, ShapeError."""
    before, after = load(one), load(other)
    if html is not None:
        _write(html, (one, other), after, before)
        return
    found = compare(before, after)
    if as_json:
        rows = [
            {
                **place(change.first),
                "distance": round(change.distance, 6),
                "kinds": [change.first.kind, change.second.kind],
                "changes": {name: number(value) for name, value in change.changes.items()},
            }
            for change in found
        ]
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    out = plain_table(">Layer", ">Head", ">Distance", "Kind", "Changed most", ">", ">")
    for change in found[: top or None]:
        kinds = dict.fromkeys((change.first.kind, change.second.kind))
        name = change.largest
        scores = [
            row.scores[name] if name else float("nan") for row in (change.first, change.second)
        ]
        out.add_row(
            str(change.first.layer),
            str(change.first.head),
            f"{change.distance:.3f}",
            Text(" → ".join(kinds)),
            name,
            *map(_shown, scores),
        )
    console = Console(highlight=False)
    console.print(out)
    if top and len(found) > top:
        console.print(f"… and {len(found) - top} heads that differ less: --top 0 shows all.")


def _write(
    html: Path, read: tuple[Path, ...], recording: Recording, against: Recording | None = None
) -> None:
    """Write a page; not over the files that were read."""
    for file in read:
        sources.check_output(html, str(file))
    with sources.writing(html):
        recording.html(html, against=against)
    Console(highlight=False).print(Text(f"Page written to {html}", style="green"))


def _known(score: float) -> float:
    """Unknown scores come last."""
    return -1.0 if score != score else score


def _shown(score: float) -> str:
    return "–" if score != score else f"{score:.3f}"
