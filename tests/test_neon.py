"""The native core on AArch64 (its baseline is NEON there), cross-compiled and emulated."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SYSTEM = Path("/usr/aarch64-linux-gnu")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPILER, reason="aarch64-linux-gnu-g++ is not installed"),
    pytest.mark.skipif(not EMULATOR, reason="qemu-aarch64 is not installed"),
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed"),
]


def test_the_core_agrees_with_the_definition_on_aarch64(tmp_path):
    configure = [
        *("cmake", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_CXX_COMPILER={COMPILER}"),
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
    ]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path, "-j2"], check=True, capture_output=True)
    program = tmp_path / "check"
    build = [
        *(COMPILER, "-std=c++17", "-O1", f"-I{ROOT / 'native/include'}"),
        *(ROOT / "tests" / "check_native.cpp", tmp_path / "libregard_native.so", "-o", program),
        f"-Wl,-rpath,{tmp_path}",
    ]
    subprocess.run(build, check=True, capture_output=True)
    run = [EMULATOR, "-L", SYSTEM, program]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "baseline: 0 failures\n"
