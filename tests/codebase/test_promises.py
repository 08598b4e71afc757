"""Promises about the package itself: what importing it costs, and what it makes public."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import regard

SOURCE = Path(regard.__file__).parent


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout


def test_importing_regard_loads_numpy_and_no_framework():
    loaded = python(
        "import sys, regard; print(*{name.partition('.')[0] for name in sys.modules})"
    ).split()
    assert "numpy" in loaded
    assert not {"torch", "jax", "tensorflow", "keras", "transformers", "rich", "typer"} & set(
        loaded
    )


def test_numpy_attention_works_where_no_framework_can_be_imported():
    code = """
import sys
for name in ("torch", "transformers", "jax", "tensorflow", "keras"):
    sys.modules[name] = None
import numpy, regard
x = numpy.ones((1, 2, 3, 4), "f4")
w = regard.weights(x, x, mask=regard.causal())
print((w @ x).sum(), w.top_k(2).keys.shape)
"""
    assert python(code).split() == ["24.0", "(1,", "2,", "3,", "2)"]


def test_the_public_names_exist_and_are_documented():
    for name in regard.__all__:
        thing = getattr(regard, name)
        assert thing.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'atention'"):
        regard.atention  # noqa: B018


def test_the_public_names_of_the_layers_are_documented():
    layers = pytest.importorskip("regard.layers")
    assert "MultiHeadAttention" in layers.__all__
    for name in layers.__all__:
        assert getattr(layers, name).__doc__, name
        assert getattr(layers, name).__module__.startswith("regard.layers."), name


def test_public_methods_of_the_operator_are_documented():
    for name, method in inspect.getmembers(regard.AttentionWeights):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name


def test_an_instruction_set_that_is_not_there_is_refused():
    code = """
import numpy, regard
x = numpy.ones((1, 2, 3, 4), "f4")
print(regard.plan(x, x, x).reason)
try:
    regard.attention(x, x, x, backend="native")
except regard.errors.BackendError as error:
    print(error)
"""
    said = python(code, REGARD_ISA="sse9")
    assert said.count("REGARD_ISA='sse9'") == 2


def test_every_instruction_set_can_be_forced():
    code = "from regard.kernels import native; print(native.isa(), *native.isas())"
    for name in python(code).split():
        assert python(code, REGARD_ISA=name).split()[0] == name


def test_attention_works_after_a_fork():
    code = """
import os, numpy, regard
x = numpy.random.default_rng(0).standard_normal((2, 4, 64, 32), "f4")
before = regard.attention(x, x, x)
child = os.fork()
if child == 0:
    os._exit(0 if numpy.array_equal(before, regard.attention(x, x, x)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(code).strip() == "0"


def test_files_are_short():
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in SOURCE.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert regard.__version__ == version("regard")


def test_outputs_are_of_the_type_that_went_in():
    for dtype in (np.float16, np.float32, np.float64):
        x = np.ones((1, 1, 2, 4), dtype)
        assert regard.attention(x, x, x).dtype == dtype
