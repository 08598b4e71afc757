"""All of ONNX's cases for `Attention`, through the public API, on every kernel."""

import functools

import numpy as np
import pytest

import regard
from conformance.onnx_attention import TOLERANCES, Case, attention, load_cases

CASES = load_cases()


def test_all_cases_are_here():
    assert len(CASES) == 93


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, kernel: str):
    def call(name):
        return functools.partial(getattr(regard, name), backend=kernel)

    check(case, call)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_on_tensorflow(case: Case):
    tf = pytest.importorskip("tensorflow")

    def tensor(given):
        return tf.constant(given) if isinstance(given, np.ndarray) else given

    def call(name):
        def run(*arrays, **options):
            options = {key: tensor(given) for key, given in options.items()}
            found = getattr(regard, name)(*map(tensor, arrays), **options)
            return found if isinstance(found, regard.AttentionWeights) else found.numpy()

        return run

    check(case, call)


def check(case: Case, call):
    actual = attention(case.inputs, case.attributes, call)
    rtol, atol = TOLERANCES[case.dtype]
    for name, expected in case.outputs.items():
        np.testing.assert_allclose(
            np.asarray(actual[name], np.float64),
            np.asarray(expected, np.float64),
            rtol=rtol,
            atol=atol,
            err_msg=name,
        )
