"""The kernels for AMX where there is no AMX: its tiles computed in software."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What these kernels need of a processor besides the matrix unit.
NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_bf16"}
FILES = ["test_native.py", "test_native_amx.py", "test_native_amx_backward.py"]
FILES += ["test_native_decode.py", "test_readouts.py", "test_readouts_amx.py"]


def processor() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text(encoding="utf-8").split()) if info.exists() else set()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed"),
    pytest.mark.skipif(not processor() >= NEEDED, reason="the processor lacks AVX512_BF16 or VBMI"),
]


def test_they_pass_the_tests_of_the_matrix_unit(tmp_path):
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, "-DREGARD_SOFTWARE_TILES=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path, "-j2"], check=True, capture_output=True)
    tests = [str(ROOT / "tests" / name) for name in FILES]
    library = str(tmp_path / "libregard_native.so")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "REGARD_LIBRARY": library},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "has no AMX" not in done.stdout
