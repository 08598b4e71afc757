"""Keras's layers on Regard: Keras's own tests and keras_layers.py, on every backend."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


# On JAX, every small operation of every shape is compiled, which takes minutes.
SOME = "outputs_are_keras_s and padding or step_of_training or test_correctness"


@pytest.mark.parametrize(
    ("backend", "some", "least"),
    [
        ("numpy", (), 180),
        ("torch", (), 180),
        ("tensorflow", (), 180),
        ("jax", (SOME,), 20),
        pytest.param("jax", (), 180, marks=pytest.mark.slow),
    ],
)
def test_keras_own_tests_pass(backend, some, least):
    """Keras's backend is chosen once a process."""
    for needed in ("keras", backend):
        if not find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, HERE / "keras_own.py", *some],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    counted = done.stdout.strip().rpartition("\n")[2]
    assert int(counted.partition(" passed")[0].rpartition(" ")[2]) >= least, counted
