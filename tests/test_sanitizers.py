"""The native core under the address and undefined-behaviour sanitizers: nothing beyond a slice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "exercise_native.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed"),
    pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed"),
]


def test_every_kernel_stays_inside_its_arrays(tmp_path):
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, "-DREGARD_SANITIZE=ON"]
    # Those of the matrix unit too: what its own instructions touch no sanitizer sees.
    configure += ["-DREGARD_SOFTWARE_TILES=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path, "-j2"], check=True, capture_output=True)
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    done = subprocess.run(
        [sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1",
            "REGARD_LIBRARY": str(tmp_path / "libregard_native.so"),
        },
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip().endswith("calls")
