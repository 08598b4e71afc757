"""Keras's layers on Regard: Keras's own tests and keras_layers.py, on every backend."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("backend", ["numpy", "torch", "tensorflow", "jax"])
def test_keras_own_tests_pass(backend):
    """Keras's backend is chosen once a process."""
    for needed in ("keras", backend):
        if not find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, HERE / "keras_own.py"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    counted = done.stdout.strip().rpartition("\n")[2]
    passed = int(counted.partition(" passed")[0].rpartition(" ")[2])
    assert passed >= 180, counted
