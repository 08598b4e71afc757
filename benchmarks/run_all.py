"""Measure everything again that this version of the code was not measured on, and the README.

    python benchmarks/run_all.py [--prefix COMMAND] [--seconds N] [--peers ARGUMENTS]

About a quarter of an hour of an otherwise idle machine; it may be stopped and goes on from there.
--prefix is put before each command, such as "taskset -c 0,1"; --seconds is how long a command
begins new cases, after which another one goes on; --peers is handed to bench_peers.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import readme
from harness import UNFINISHED, commit, result

HERE = Path(__file__).parent
# Results that are written case by case, and those that are written at once, with arguments.
GROWING = (
    "peaks",
    "forward",
    "backward",
    "masks",
    "bias",
    "paging",
    "peers",
    "models",
    "jax",
    "tensorflow",
    "memory",
    "decoding",
)
DTYPES = ("float32", "bfloat16")
WHOLE = [
    ("watch",),
    ("graph",),
    *(("readouts", what, d) for what in ("own", "peers") for d in DTYPES),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prefix", type=shlex.split, default=[])
    parser.add_argument("--seconds", default="60")
    parser.add_argument("--peers", type=shlex.split, default=[])
    given = parser.parse_args()
    failed = []
    for name in GROWING:
        more = given.peers if name == "peers" else []
        command = [*_python(given.prefix, name), "--resume", "--seconds", given.seconds, *more]
        while (status := subprocess.run(command, check=False).returncode) == UNFINISHED:
            pass
        failed += [name] if status else []
    for name, *arguments in WHOLE:
        if not _is_new("_".join([name, *arguments])):
            command = [*_python(given.prefix, name), *arguments]
            failed += [name] if subprocess.run(command, check=False).returncode else []
    readme.main()
    if failed:
        sys.exit(f"not measured to the end: {', '.join(failed)}")


def _python(prefix: list[str], name: str) -> list[str]:
    return [*prefix, sys.executable, str(HERE / f"bench_{name}.py")]


def _is_new(name: str) -> bool:
    path = result(name)
    return path.exists() and json.loads(path.read_text())["machine"].get("commit") == commit()


if __name__ == "__main__":
    main()
