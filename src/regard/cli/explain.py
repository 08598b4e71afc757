"""regard explain: what a model attends to in a text."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard import __version__
from regard.cli import show, sources
from regard.errors import ModelError, OptionError

__all__ = [
    "Report",
    "Request",
    "check_numbers",
    "check_options",
    "chosen_heads",
    "explain",
    "head",
    "number",
]

CAVEAT = "Attention shows where a head read from, not what decided the result."

_SHORT = 24  # tokens of text

# Kinds of heads whose attention depends on the words rather than on where they stand.
_BY_CONTENT = ("mixed", "duplicate token", "induction")


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    text: str
    model: Path | None
    html: Path | None
    as_json: bool
    layer: int | None
    head: int | None
    top: int
    words: int
    part: int
    save: Path | None = None


@dataclass(frozen=True)
class Report:
    """What was found: heads (rows of a HeadTable), links (of words) and what they are a mean over.

    heads are those that were asked about: all of them, one layer's, or one.
    """

    source: str
    model: str
    tokens: tuple[str, ...]
    part: tuple[int, int]
    heads: Any
    links: list[Any]
    basis: str
    notes: list[str]

    def as_json(self) -> str:
        """The report as a JSON object; what is unknown is null."""
        content = {
            "regard": __version__,
            "source": self.source,
            "model": self.model,
            "part": self.part[0],
            "parts": self.part[1],
            "notes": self.notes,
            "tokens": self.tokens,
            "heads": [head(row) for row in self.heads],
            "words_basis": self.basis,
            "words": [
                {
                    "word": link.word,
                    "count": link.count,
                    "to": [{"word": word, "share": number(share)} for word, share in link.to],
                    "itself": number(link.itself),
                    "special": number(link.special),
                }
                for link in self.links
            ],
        }
        return json.dumps(content, indent=1, allow_nan=False)


def place(row: Any) -> dict[str, Any]:
    """Where the head of a row is, for JSON."""
    return {"layer": row.layer, "head": row.head, "module": row.name}


def head(row: Any) -> dict[str, Any]:
    """A row of the table of heads, for JSON."""
    return {
        **place(row),
        "kind": row.kind,
        "evidence": row.evidence,
        "scores": {name: number(value) for name, value in row.scores.items()},
    }


def number(value: float) -> float | None:
    """Six digits; None for what is unknown."""
    return None if value != value else round(value, 6)


def explain(request: Request) -> None:
    """Read the text, then print tables or JSON, and write the page if one was asked for.

    Raises: RegardError, whose message is for the user.
    """
    if sources.is_picture(request.text):
        from regard.cli.picture import explain_picture

        explain_picture(request)
        return
    text, name = sources.source(request.text)
    check_options(request)
    sources.require("torch", "transformers")
    directory, title = (request.model, None) if request.model else sources.default_model()
    with show.working() as tell, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a reader must know is in the notes
        report = _read(request, text, name, directory, title, tell)
    if request.as_json:
        print(report.as_json())
    else:
        show.report(report, request)


def check_options(request: Request) -> None:
    """Raise OptionError or FileFormatError before any long work."""
    if request.head is not None and request.layer is None:
        raise OptionError("--head without --layer", remedy="name the head's layer too")
    for path in (request.html, request.save):
        if path is not None:
            sources.check_output(path, request.text)
    if request.html is not None and request.html == request.save:
        raise OptionError(f"--html and --save {request.save}", "two different files")


def _read(
    request: Request,
    text: str,
    name: str,
    directory: Path,
    title: str | None,
    tell: Callable[[str], None],
) -> Report:
    tell("Loading the model")
    with sources.loading():
        sources.quiet()
        from regard.recording.files import save
        from regard.recording.heads import HeadTable, table
        from regard.recording.links import links
        from regard.recording.page import record
        from regard.recording.text import load
        from regard.viewer import write_page

        reader = load(directory, title)
    passages = reader.passages(text)
    if request.part > len(passages):
        there = f"a number from 1 to {len(passages)}"
        wanted = there if len(passages) > 1 else "1, the text is read at once"
        raise OptionError(f"--part {request.part}", wanted)
    passage = passages[request.part - 1]
    tell("Reading the text")
    seen = reader.read(passage)
    heads = table(_counted(seen, tell), passage.ids, passage.special)
    check_numbers(heads, reader.name)
    chosen = chosen_heads(heads, request)
    tell("Gathering words")
    rows, basis = _basis(chosen, request)
    one_head = request.head is not None
    operators = [_head_of(seen[row.call], row) for row in rows]
    notes = [*reader.notes, *_about_length(passage, reader.limit)]
    unseen = [f"Not seen: {module}" for module in seen.unseen]
    found = links(operators, passage, request.top, content=not one_head)
    part = passage.part, passage.parts
    if request.html is not None:
        tell("Writing the page")
        page = record(
            seen,
            passage,
            table=heads,
            title={"the text": "The text", "stdin": "Stdin"}.get(name, name),
            model=reader.name,
            notes=notes,
        )
        with sources.writing(request.html):
            write_page(page, request.html)
    if request.save is not None:
        tell("Saving the recording")
        save(seen, request.save, heads=heads)
    return Report(
        name, reader.name, passage.tokens, part, HeadTable(chosen), found, basis, notes + unseen
    )


def _counted(seen: Any, tell: Callable[[str], None]) -> Iterator[Any]:
    for n, weights in enumerate(seen, 1):
        tell(f"Scoring heads: call {n} of {len(seen)}")
        yield weights


def check_numbers(heads: Any, model: str) -> None:
    """Raise ModelError where weights are NaN."""
    for row in heads:
        if math.isnan(row.scores["max weight"]):
            raise ModelError(
                f"{row.name} of {model} computes NaN", "a model whose parameters are numbers"
            )


def chosen_heads(heads: Any, request: Request) -> tuple[Any, ...]:
    """The rows of the layer and head that were asked for, or all. Raises OptionError."""
    rows = tuple(heads)
    for name in ("layer", "head"):
        wanted = getattr(request, name)
        if wanted is None:
            continue
        there = sorted({getattr(row, name) for row in rows})
        rows = tuple(row for row in rows if getattr(row, name) == wanted)
        if not rows:
            raise OptionError(f"--{name} {wanted}", f"a number from {there[0]} to {there[-1]}")
    return rows


def _basis(rows: tuple[Any, ...], request: Request) -> tuple[tuple[Any, ...], str]:
    """The heads whose attention the words are shown in, and a sentence that says which."""
    if request.head is not None:
        return rows, f"layer {request.layer}, head {request.head} ({rows[0].kind})"
    if request.layer is not None:
        return rows, f"the mean of the {len(rows)} heads of layer {request.layer}"
    by_content = tuple(row for row in rows if row.kind in _BY_CONTENT)
    if not by_content:
        return rows, f"the mean of all {len(rows)} heads"
    kinds = ", ".join(kind for kind in _BY_CONTENT if any(row.kind == kind for row in by_content))
    return by_content, f"the mean of the {len(by_content)} heads that go by content ({kinds})"


def _head_of(weights: Any, row: Any) -> Any:
    """The operator (B, 1, L, L) of one head."""
    return weights[..., row.head : row.head + 1, :, :]


def _about_length(passage: Any, limit: int | None) -> list[str]:
    notes = []
    if passage.parts > 1:
        notes.append(
            f"The text has {passage.length:,} tokens and the model reads {limit:,} at once. This "
            f"is part {passage.part} of {passage.parts}; each begins with a quarter of the one "
            "before. Nothing outside of it was read: --part N shows another."
        )
    counted = int((~passage.special).sum())
    if counted < _SHORT:
        tokens = "1 token" if counted == 1 else f"{counted} tokens"
        notes.append(f"With {tokens} to go by, the kinds of heads are a guess.")
    return notes
