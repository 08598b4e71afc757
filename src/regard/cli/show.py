"""What the terminal shows: tables on stdout, progress on stderr."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from regard.cli.explain import Report, Request

__all__ = ["heads", "plain", "plain_table", "report", "working", "written"]

_TELLING = 12

# What a head does, as the end of "… % of attention".
_PHRASES = {
    "previous token": "on the token before",
    "next token": "on the token after",
    "itself": "on the token itself",
    "first token": "on the first token",
    "special tokens": "on special tokens",
    "duplicate token": "on the same token elsewhere",
    "induction": "on what followed the same token elsewhere",
    "nearby": "within 3 tokens",
}


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """What is being done, on stderr if that is a terminal; gives a function to say what."""
    console = Console(stderr=True)
    with console.status("Starting") as status:
        yield lambda doing: status.update(f"{doing} …")


def report(found: Report, request: Request) -> None:
    """Print what `regard explain` found."""
    from regard.cli.explain import CAVEAT

    console = Console(highlight=False)
    console.print(_title(found))
    for note in found.notes:
        console.print(Text(plain(f"Note: {note}"), style="yellow"))
    console.print()
    if request.head is None:
        heads(console, found.heads)
    else:
        _scores(console, found.heads[0])
    console.print()
    _words(console, found, request.words)
    console.print()
    console.print(Text(CAVEAT, style="dim"))
    written(console, request)


def written(console: Console, request: Request) -> None:
    """Say which files were written."""
    if request.html is not None:
        console.print(Text(f"Page written to {request.html}", style="green"))
    if request.save is not None:
        console.print(Text(f"Recording written to {request.save}", style="green"))


def plain(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", text)


def plain_table(*columns: str) -> Table:
    """A table without lines; ">" before a column's name puts it to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right)
    return table


def _title(found: Report) -> Text:
    part, parts = found.part
    which = f", part {part} of {parts}" if parts > 1 else ""
    return Text.assemble(
        (plain(found.source), "bold"),
        f"{which}: {len(found.tokens)} tokens, read by ",
        (plain(found.model), "bold"),
    )


def heads(console: Console, found: Any) -> None:
    """The heads with a pattern of their own; of the others, how many there are."""
    telling = found.telling(_TELLING)
    if telling:
        console.print(Text("Heads with a pattern of their own", style="bold"))
        console.print()
        width = 10 if console.width < 100 else 30
        table = plain_table(">Layer", ">Head", "Kind", ">Share", "of attention", "")
        for row in telling:
            place = _PHRASES.get(row.evidence, row.evidence)
            bar = Text("▇" * max(1, round(row.strength * width)), style="cyan")
            share = _percent(row.strength)
            table.add_row(str(row.layer), str(row.head), Text(row.kind), share, place, bar)
        console.print(Padding(table, (0, 0, 1, 2)))
    others = {kind: n for kind, n in found.kinds().items() if kind in ("broad", "mixed", "unknown")}
    more = sum(row.named for row in found) - len(telling)
    rest = [f"{n} {kind}" for kind, n in [("with a pattern", more), *others.items()] if n]
    if rest:
        console.print(f"The other {len(found) - len(telling)} heads: {', '.join(rest)}.")
        meaning = "broad: spread over nearly everything; mixed: none of these kinds"
        console.print(Text(f"({meaning}; shares: means over the text's tokens)", style="dim"))


def _scores(console: Console, row: Any) -> None:
    """All scores of one head."""
    console.print(
        Text.assemble((f"Layer {row.layer}, head {row.head}: ", "bold"), (row.kind, "bold cyan"))
    )
    console.print()
    table = plain_table("Score", ">Value", "Meaning")
    from regard.recording.heads import SCORES

    for name, meaning in SCORES.items():
        value = row.scores[name]
        unit = name in ("distance", "effective keys")
        shown = "–" if value != value else f"{value:.1f}" if unit else f"{value:.3f}"
        table.add_row(name, shown, Text(meaning, style="dim"))
    console.print(Padding(table, (0, 0, 0, 2)))


def _words(console: Console, found: Report, most: int) -> None:
    """What words attend to."""
    shown = found.links[: most or None]
    if not shown:
        console.print("There is no content word in this text.")
        return
    console.print(Text("What each word attends to most", style="bold"))
    console.print(Text(f"in {found.basis}", style="dim"))
    console.print()
    table = plain_table("Word", "Attends to", ">Itself", ">Special")
    for link in shown:
        times = f" ×{link.count}" if link.count > 1 else ""
        targets = Text(", ").join(
            Text.assemble(_quoted(word), (f" {_percent(share)}", "cyan")) for word, share in link.to
        )
        word = Text.assemble((plain(link.word), "bold"), (times, "dim"))
        table.add_row(word, targets, _percent(link.itself), _percent(link.special))
    console.print(Padding(table, (0, 0, 0, 2)))
    if len(found.links) > len(shown):
        rest = len(found.links) - len(shown)
        console.print()
        console.print(f"  … and {rest} more words, less frequent or later: --words 0 shows all.")


def _quoted(word: str) -> str:
    """The word; punctuation in quotes, or a list of commas would be hard to read."""
    word = plain(word)
    return word if any(map(str.isalnum, word)) else f"“{word}”"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"
