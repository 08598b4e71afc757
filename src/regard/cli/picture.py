"""regard explain PICTURE: which patches of a picture a model attends to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.style import Style
from rich.text import Text

from regard import __version__
from regard.cli import show, sources
from regard.cli.explain import (
    CAVEAT,
    Request,
    check_numbers,
    check_options,
    chosen_heads,
    head,
    number,
)
from regard.errors import OptionError

__all__ = ["explain_picture", "heat"]

# From nothing to the largest weight: (red, green, blue).
_COLOURS = np.array([(18, 18, 40), (150, 50, 110), (250, 150, 60), (255, 245, 200)])
_SHADES = " ░▒▓█"  # where there are no colours


def explain_picture(request: Request) -> None:
    """Read the picture, then print maps or JSON, and write the page if one was asked for.

    Raises: RegardError, whose message is for the user.
    """
    content, name = sources.picture(request.text), Path(request.text).name
    if request.model is None:
        raise OptionError("a picture without --model", "the directory of a vision model")
    check_options(request)
    sources.require("torch", "transformers")
    sources.require("PIL", remedy="pip install pillow, which pictures are read with")
    with show.working() as tell, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a reader must know is in the notes
        reader, look, heads, chosen = _read(request, request.model, content, name, tell)
    maps = list(_maps(look, chosen, one_layer=request.layer is not None))
    if request.as_json:
        print(_as_json(name, reader, look, chosen, maps))
        return
    console = Console(highlight=False)
    _print(console, name, reader, look, maps)
    if request.head is None:
        show.heads(console, type(heads)(chosen))
        console.print()
    console.print(Text(CAVEAT, style="dim"))
    show.written(console, request)


def _read(
    request: Request, directory: Path, content: bytes, name: str, tell: Callable[[str], None]
) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """(the model, what it attended to, all heads, those that were asked for)."""
    tell("Loading the model")
    with sources.loading():
        sources.quiet()
        from regard.recording.files import save
        from regard.recording.heads import table
        from regard.recording.page import record
        from regard.recording.picture import decode, load
        from regard.viewer import write_page

        image = decode(content, name)
        reader = load(directory)
    tell("Looking at the picture")
    look = reader.look(image)
    heads = table(look.recording, special=look.text.special)
    check_numbers(heads, reader.name)
    chosen = chosen_heads(heads, request)
    if request.html is not None:
        tell("Writing the page")
        page = record(
            look.recording,
            text=look.text,
            table=heads,
            title=name,
            model=reader.name,
            notes=reader.notes,
        )
        with sources.writing(request.html):
            write_page(page, request.html)
    if request.save is not None:
        tell("Saving the recording")
        save(look.recording, request.save, heads=heads)
    return reader, look, heads, chosen


def _maps(
    look: Any, rows: tuple[Any, ...], one_layer: bool
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """(title, shares (rows, columns)): of each head of one layer, or the means of all layers."""
    for call in dict.fromkeys(row.call for row in rows):
        patches = look.patches(call)
        of_call = [row for row in rows if row.call == call]
        if one_layer:
            for row in of_call:
                yield f"head {row.head}", patches[row.head]
        else:
            yield f"layer {of_call[0].layer}", patches.mean(axis=0)


def _as_json(name: str, reader: Any, look: Any, rows: tuple[Any, ...], maps: list[Any]) -> str:
    content = {
        "regard": __version__,
        "source": name,
        "model": reader.name,
        "notes": reader.notes,
        "grid": look.grid,
        "reader": look.reader,
        "heads": [head(row) for row in rows],
        "maps": [
            {"of": title, "patches": [[number(float(v)) for v in line] for line in shares]}
            for title, shares in maps
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _print(console: Console, name: str, reader: Any, look: Any, maps: list[Any]) -> None:
    rows, columns = look.grid
    title = f": {rows} × {columns} patches, read by "
    console.print(
        Text.assemble((show.plain(name), "bold"), title, (show.plain(reader.name), "bold"))
    )
    for note in reader.notes:
        console.print(Text(show.plain(f"Note: {note}"), style="yellow"))
    console.print()
    console.print(Text(f"What {look.reader} attends to", style="bold"))
    console.print(Text("brightest: the largest share of each map, given below it", style="dim"))
    console.print()
    coloured = console.color_system is not None
    shown = [
        Group(Text(title), heat(shares, coloured), Text(f"{shares.max():.1%}", style="dim"))
        for title, shares in maps
    ]
    console.print(Padding(Columns(shown, padding=(1, 3)), (0, 0, 1, 2)))


def heat(shares: npt.NDArray[np.float64], coloured: bool = True) -> Text:
    """A map (rows, columns) of shares, its largest the brightest.

    coloured: two rows in each line, as upper half-blocks; without, shades two characters wide.
    """
    levels = shares / max(float(shares.max()), 1e-30)
    if not coloured:
        steps = np.round(levels * (len(_SHADES) - 1)).astype(int)
        return Text("\n".join("".join(_SHADES[n] * 2 for n in line) for line in steps))
    lines = []
    for top in range(0, len(levels), 2):
        pair = levels[top : top + 2]
        cells = [_half_blocks(*map(float, column)) for column in pair.T]
        lines.append(Text.assemble(*cells))
    return Text("\n").join(lines)


def _half_blocks(upper: float, lower: float | None = None) -> tuple[str, Style]:
    """One character that shows a patch and the one below it."""
    ground = None if lower is None else _colour(lower)
    return "▀", Style(color=_colour(upper), bgcolor=ground)


def _colour(level: float) -> str:
    """A colour of the scale, level 0 to 1."""
    stops = np.linspace(0, 1, len(_COLOURS))
    red, green, blue = (round(float(np.interp(level, stops, c))) for c in _COLOURS.T)
    return f"#{red:02x}{green:02x}{blue:02x}"
