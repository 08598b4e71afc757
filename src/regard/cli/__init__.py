"""The `regard` command: attention from the command line."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 an error, 130 interrupted, and 1 where doctor found a
    problem or nobody reads the output.

    arguments: those after the command's name; left out, the process's own.
    """
    try:
        from regard.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f'regard: {error.name} is missing. To do: pip install "regard[cli]"', file=sys.stderr)
        sys.exit(2)
    sys.exit(run(arguments))
