"""The commands and their options; what they do is in a module each, loaded when it runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import regard
from regard.cli.sources import INTERRUPTED
from regard.errors import OptionError, RegardError

__all__ = ["app", "run"]

app = typer.Typer(
    help="Attention that is exact, fast, and visible.",
    epilog="Start with:  regard explain examples/tides.txt --html tides.html",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer's errors of use, such as an option that does not exist.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (or the process's own) and give its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal knows every character
        sys.stdout.reconfigure(errors="replace")
    try:
        result = app(given, prog_name="regard", standalone_mode=False)
        print(end="", flush=True)
    except _UsageError as error:
        shown: Any = error
        return _fail(f"{shown.format_message().rstrip('.')}. See: regard --help") if given else 0
    except RegardError as error:
        return _fail(str(error))
    except OSError as error:
        return _lost(error)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    if result == INTERRUPTED:  # some versions of Typer return it
        print("regard: interrupted", file=sys.stderr)
    return int(result or 0)


def _fail(message: str) -> int:
    from regard.cli.show import plain

    print("regard:", plain(" ".join(message.split())), file=sys.stderr)
    return 2


def _lost(error: OSError) -> int:
    """The output cannot be written; what is left of it must not fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if isinstance(error, BrokenPipeError) else _fail(f"{error.strerror or error}.")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"regard {regard.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Attention that is exact, fast, and visible."""


@app.command()
def explain(
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT_OR_FILE", help="A text, a text file, a picture, or - for stdin."
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A Hugging Face model on disk. Default: MiniLM."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to look around in.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Write JSON to stdout instead of tables.")
    ] = False,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="Look at one layer, numbered from 0.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(metavar="N", help="Look at one head of that layer.")
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="K", min=1, help="Show K things that each word attends to.")
    ] = 3,
    words: Annotated[int, typer.Option(metavar="N", min=0, help="Show N words; 0 shows all.")] = 16,
    part: Annotated[
        int, typer.Option(metavar="N", min=1, help="Which part of a text too long to read at once.")
    ] = 1,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the recording, for regard view, heads and diff."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Explain an answer of this model, by: regard explain TASK TEXT."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --checkpoint: a text in the answer's place."),
    ] = None,
) -> None:
    """Show what a model attends to in a text or a picture.

    Which heads follow a pattern, and what each word attends to most; of a picture, which patches.
    With --checkpoint, what a model that regard train made attended to for its answer.
    Nothing is downloaded.
    """
    from regard.cli.explain import Request, explain

    if checkpoint is not None:
        from regard.cli.tasks import explain_answer

        explain_answer(text, checkpoint, target, html, as_json)
        return
    if len(text) > 1 or target is not None:
        given = "--target without --checkpoint" if target is not None else f"{len(text)} texts"
        raise OptionError(given, "one text, in quotes; or TASK TEXT --checkpoint DIR")
    explain(Request(text[0], model, html, as_json, layer, head, top, words, part, save))


@app.command()
def view(
    file: Annotated[Path, typer.Argument(help="A recording.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead of printing.")
    ] = None,
) -> None:
    """Show a recording that was saved: its calls and heads, or a page to look around in."""
    from regard.cli.files import view

    view(file, html)


@app.command()
def heads(
    file: Annotated[Path, typer.Argument(help="A recording.")],
    sort: Annotated[str, typer.Option(metavar="SCORE", help="The largest first.")] = "layer",
    as_csv: Annotated[
        bool, typer.Option("--csv", metavar="", help="Write CSV, with all scores.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Write JSON, with all scores.")
    ] = False,
) -> None:
    """Show every head of a recording: its kind and the score that says so."""
    from regard.cli.files import heads

    heads(file, sort, as_csv, as_json)


@app.command()
def diff(
    one: Annotated[Path, typer.Argument(help="A recording.")],
    other: Annotated[Path, typer.Argument(help="One of the same shape.")],
    top: Annotated[int, typer.Option(metavar="N", min=0, help="Show N heads; 0 shows all.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Write JSON to stdout instead of a table.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of both instead of printing.")
    ] = None,
) -> None:
    """Show which heads differ most between two recordings, by the distance of their maps."""
    from regard.cli.files import diff

    diff(one, other, top, as_json, html)


# What follows the name of a task are options of that task, which its own settings say.
_OF_TASKS: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
_Task = Annotated[str, typer.Argument(metavar="TASK", help="translation or pronunciation.")]


@app.command(**_OF_TASKS)
def train(context: typer.Context, task: _Task = "") -> None:
    """Train a model for a task: regard train TASK --help shows its settings."""
    from regard.cli.tasks import train

    train(task, context.args)


@app.command(**_OF_TASKS)
def evaluate(context: typer.Context, task: _Task = "") -> None:
    """Measure a trained model: regard evaluate TASK --help."""
    from regard.cli.tasks import evaluate

    evaluate(task, context.args)


@app.command(**_OF_TASKS)
def predict(context: typer.Context, task: _Task = "") -> None:
    """Let a trained model answer: regard predict TASK --help."""
    from regard.cli.tasks import predict

    predict(task, context.args)


@app.command()
def bench(
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="float32, bfloat16, float16 or float64.")
    ] = "float32",
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="How long to measure each case.")
    ] = 1.5,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Write JSON to stdout instead of a table.")
    ] = False,
) -> None:
    """Measure this machine: attention here beside PyTorch's own, as ratios with their spread."""
    from regard.cli.bench import bench

    bench(dtype, seconds, as_json)


@app.command()
def doctor() -> int:
    """Check this installation: versions, native core, instruction sets, optional parts.

    The exit code is 1 if the native core cannot be used or computes wrongly.
    """
    from regard.cli.doctor import doctor

    return doctor()
