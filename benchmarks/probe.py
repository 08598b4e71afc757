"""What this machine can do at most: probe.cpp, compiled for it when it is first asked for.

Each method gives a call without arguments that does so much work on all of PyTorch's threads, so
that the limit can take turns with what is measured against it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path

import torch

__all__ = ["Probe", "load"]

FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"]
Call = Callable[[], int]


@functools.cache
def load() -> Probe | None:
    """The probe; None, said once, where no compiler makes it: results then have no limits."""
    compiler = os.environ.get("CXX", "g++")
    source = Path(__file__).with_name("probe.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probe.so"
        command = [compiler, *FLAGS, "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            print(f"no limits: {compiler} does not compile {source.name}: {said.strip()}")
            return None
        return Probe(ctypes.CDLL(str(library)))


class Probe:
    """Loops that do one thing as fast as it goes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.probe_fma.argtypes = [c_double, c_int]
        library.probe_amx.argtypes = [c_double, c_int]
        library.probe_exp.argtypes = [c_double, c_int]
        library.probe_fused.argtypes = [c_double, c_int, c_int]
        library.probe_read.argtypes = [c_void_p, c_void_p, c_int, c_int]

    def fma(self, operations: float) -> Call:
        """Multiplications and additions of float32, in registers."""
        return lambda: self._library.probe_fma(operations, torch.get_num_threads())

    def exp(self, count: float) -> Call:
        """Powers of 2 of float32, from the first-level cache and back."""
        return lambda: self._library.probe_exp(count, torch.get_num_threads())

    def amx(self, operations: float) -> Call | None:
        """Multiplications and additions of bfloat16 tiles, in registers; None: no such unit."""
        if not self._library.probe_amx(0, 1):
            return None
        return lambda: self._library.probe_amx(operations, torch.get_num_threads())

    def fused(self, pairs: float, size: int) -> Call | None:
        """Attention's forward in bfloat16, operands in the caches or registers; None: no such unit.

        pairs: of a query and a key. size: of heads, 64 or 128.
        """
        if not self._library.probe_fused(0, size, 1):
            return None
        return lambda: self._library.probe_fused(pairs, size, torch.get_num_threads())

    def read(self, tensors: Sequence[torch.Tensor]) -> Call:
        """These contiguous tensors once, from wherever they lie."""
        count = len(tensors)
        places = (c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
        sizes = (c_int64 * count)(*(tensor.nbytes for tensor in tensors))

        def call() -> int:
            assert tensors  # kept alive
            return self._library.probe_read(places, sizes, count, torch.get_num_threads())

        return call
