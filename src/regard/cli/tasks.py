"""regard train, evaluate, predict, and explain with a checkpoint: what people build with attention.

A task's settings are a dataclass; here its fields become options. Annotations are objects here, not
texts: Typer reads them.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli import sources
from regard.cli.show import plain
from regard.errors import FileFormatError, OptionError
from regard.tasks import TASKS, find
from regard.tasks.configuration import Setting, describe, from_dict, settings

if TYPE_CHECKING:
    from regard.tasks.runs import Trained
    from regard.tasks.task import Task

__all__ = ["evaluate", "explain_answer", "predict", "train"]

_Checkpoint = Annotated[Path, typer.Option(metavar="DIR", help="A run's folder, or a checkpoint.")]


def train(name: str, arguments: Sequence[str]) -> None:
    """`regard train TASK …`."""
    task = _task("train", name)

    def command(
        output: Annotated[Path, typer.Option(metavar="DIR", help="Where the run is kept.")],
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on from the run's last checkpoint, if any.")
        ] = False,
        **given: Any,
    ) -> None:
        from regard.tasks import runs

        changed = {key: value for key, value in given.items() if value is not None}
        if not resume:
            print(describe(from_dict(task.settings_type, changed)), file=sys.stderr)
        written = ["regard", "train", name, *arguments]
        trained = runs.start(task, changed, output, resume=resume, command=written, tell=_tell)
        loss = trained.checkpoint.loss
        _tell(f"Best: {trained.checkpoint.path}" + ("" if loss is None else f", loss {loss:.4f}"))

    _run(f"regard train {name}", TASKS[name], command, task.settings_type, arguments)


def evaluate(name: str, arguments: Sequence[str]) -> None:
    """`regard evaluate TASK …`."""
    task = _task("evaluate", name)

    def command(
        checkpoint: _Checkpoint,
        split: Annotated[
            str, typer.Option(metavar="NAME", help=f"One of {', '.join(task.splits)}.")
        ] = task.splits[0],
        report: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write all there is to know as JSON.")
        ] = None,
        **given: Any,
    ) -> None:
        from regard.tasks import runs

        if split not in task.splits:
            raise OptionError(f"--split {split}", f"one of {', '.join(task.splits)}")
        if report is not None:
            sources.check_output(report, "")
        use = _use(task, given)
        trained = _trained(checkpoint, task)
        found = runs.report(trained, split, use, ["regard", "evaluate", name, *arguments])
        if report is not None:
            with sources.writing(report):
                report.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")
        print(json.dumps(_short(found["figures"]), indent=1, ensure_ascii=False))

    _run(f"regard evaluate {name}", "Measure a model.", command, task.use_type, arguments)


def predict(name: str, arguments: Sequence[str]) -> None:
    """`regard predict TASK …`."""
    task = _task("predict", name)

    def command(
        checkpoint: _Checkpoint,
        texts: Annotated[
            list[str] | None, typer.Argument(metavar="TEXT", help="None: lines of stdin.")
        ] = None,
        input: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Answer each of its lines.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write the answers to it.")
        ] = None,
        **given: Any,
    ) -> None:
        if texts and input is not None:
            raise OptionError("texts and --input", "one of them")
        if output is not None:
            sources.check_output(output, "" if input is None else str(input))
        use = _use(task, given)
        trained = _trained(checkpoint, task)
        lines = iter(texts) if texts else _lines(input)
        answers = _answers(trained, lines, use)
        if output is None:
            for answer in answers:
                print(answer, flush=True)
        else:
            with sources.writing(output):
                output.write_text("".join(f"{answer}\n" for answer in answers), "utf-8")

    _run(f"regard predict {name}", "Let a model answer.", command, task.use_type, arguments)


def explain_answer(
    given: Sequence[str], checkpoint: Path, target: str | None, html: Path | None, as_json: bool
) -> None:
    """`regard explain TASK TEXT --checkpoint DIR`."""
    name, *rest = given
    if len(rest) != 1:
        raise OptionError(f"{' '.join(given)!r} with --checkpoint", "a task's name and one text")
    if html is not None:
        sources.check_output(html, rest[0])
    task = _task("explain", name)
    text, _ = sources.source(rest[0])
    trained = _trained(checkpoint, task)
    found = trained.task.explain(trained.model, text, target, task.use_type())
    if html is not None:
        from regard.viewer import write_page

        with sources.writing(html):
            write_page(found.record(), html)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
    else:
        print("\n".join(map(plain, found.lines())))
        if html is not None:
            print(f"Page written to {html}")


def _task(verb: str, name: str) -> "type[Task[Any]]":
    """The task, or, where none is named, a list of them."""
    if name in ("", "-h", "--help"):
        width = max(map(len, TASKS))
        print(f"Usage: regard {verb} TASK [OPTIONS], where TASK is one of\n")
        for task, what in TASKS.items():
            print(f"  {task:{width}}  {what}")
        raise typer.Exit
    return find(name)


def _run(
    program: str,
    help: str,
    command: Callable[..., None],
    configuration: type[Any],
    arguments: Sequence[str],
) -> None:
    """Run a command whose further options are the fields of a configuration."""
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    parameters = [*own, *map(_parameter, settings(configuration))]
    shown: Any = command
    shown.__signature__ = signature.replace(parameters=parameters)
    shown.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(help=help)(shown)
    if app(list(arguments), prog_name=program, standalone_mode=False) == sources.INTERRUPTED:
        raise KeyboardInterrupt  # which some versions of Typer return


def _parameter(setting: Setting) -> inspect.Parameter:
    """An option, None where it is left out: the configuration knows its default."""
    among = f" One of {', '.join(setting.choices)}." if setting.choices else ""
    default = "" if setting.default is None else f" Default: {setting.default}."
    shown = setting.meaning[0].upper() + setting.meaning[1:]
    declared = [setting.option] if setting.type is not bool else []
    metavar = None if setting.type is bool else setting.type.__name__.upper()
    option = typer.Option(*declared, help=f"{shown}.{among}{default}", metavar=metavar)
    optional: Any = setting.type | None
    kind: Any = Annotated[optional, option]
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
    )


def _use(task: "type[Task[Any]]", given: dict[str, Any]) -> Any:
    return from_dict(task.use_type, {k: v for k, v in given.items() if v is not None})


def _trained(checkpoint: Path, task: "type[Task[Any]]") -> "Trained":
    from regard.tasks import runs

    trained = runs.load(checkpoint, task)
    for note in trained.notes:
        _tell(note)
    return trained


def _lines(path: Path | None) -> Iterator[str]:
    if path is not None:
        from regard.tasks.fetch import read_lines

        yield from read_lines(path)
        return
    if sys.stdin is None:
        raise FileFormatError("stdin is closed", "texts on it, a line each")
    try:
        yield from (line.rstrip("\n") for line in sys.stdin)
    except UnicodeDecodeError as error:
        raise FileFormatError("stdin is not text in UTF-8", "plain text") from error


def _answers(trained: "Trained", lines: Iterator[str], use: Any) -> Iterator[str]:
    """Answers in the order of the lines; many are read at once, to put like lengths together."""
    while chunk := list(islice(lines, 16 * use.batch)):
        yield from trained.task.predict(trained.model, chunk, use)


def _short(figures: dict[str, Any]) -> dict[str, Any]:
    """Without long lists, which are for the report."""
    return {k: v for k, v in figures.items() if not (isinstance(v, list) and len(v) > 20)}


def _tell(line: str) -> None:
    print(plain(line), file=sys.stderr, flush=True)
