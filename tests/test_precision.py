"""precision=: who decides how float32 is multiplied, and what it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regard
from conftest import ISAS
from regard.kernels import native
from regard.problem import Problem, make

AMX = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")


@pytest.fixture
def setting():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def tensors(**options) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 100, 40, generator=generator, **options) for _ in range(3)]


def test_a_problem_keeps_its_precision_through_a_tracer():
    q = np.zeros((1, 2, 3, 4), np.float32)
    assert make(q, q).precision is None
    assert Problem.rebuild(*make(q, q, precision="high").flatten()).precision == "high"


def test_the_plan_says_what_precision_does():
    q = np.zeros((1, 2, 30, 4), np.float32)
    assert "precision" not in regard.plan(q, q, q).details
    assert "precision" not in regard.plan(*(q.astype(np.float16),) * 3, precision="high").details
    for isa in ISAS:
        native.select_isa(isa)
        said = regard.plan(q, q, q, precision="high", backend="native").details["precision"]
        assert ("2⁻¹⁶" in said) == (isa == "amx")
        assert ("changes nothing" in said) == (isa != "amx")
    native.select_isa(ISAS[0])


@AMX
@pytest.mark.parametrize(
    "call",
    [
        regard.attention,
        lambda q, k, v, **o: regard.weights(q, k, **o) @ v,
        lambda q, k, v, **o: regard.weights(q, k, **o).read(lse=True, entropy=True).lse,
    ],
)
def test_pytorchs_setting_decides_unless_the_call_does(setting, call):
    q, k, v = tensors()
    exact, close = (call(q, k, v, precision=precision) for precision in ("highest", "high"))
    assert 0 < (exact - close).abs().max() < 2**-14
    for chosen, expected in (("highest", exact), ("high", close), ("medium", close)):
        setting(chosen)
        torch.testing.assert_close(call(q, k, v), expected, rtol=0, atol=0)
        torch.testing.assert_close(call(q, k, v, precision="highest"), exact, rtol=0, atol=0)
        arrays = [x.numpy() for x in (q, k, v)]
        np.testing.assert_array_equal(call(*arrays), exact.numpy())


@AMX
def test_torch_compile_keeps_the_precision(setting):
    q, k, v = tensors()
    fast = torch.compile(lambda *x: regard.attention(*x), fullgraph=True, backend="aot_eager")
    for chosen in ("highest", "high"):
        setting(chosen)
        torch.testing.assert_close(fast(q, k, v), regard.attention(q, k, v), rtol=0, atol=0)


@AMX
def test_gradients_differ_by_no_more_than_outputs():
    found = {}
    for precision in ("highest", "high"):
        leaves = tensors(requires_grad=True)
        y = regard.attention(*leaves, precision=precision)
        y.backward(torch.ones_like(y).cumsum(-1))
        found[precision] = [y.detach(), *(x.grad for x in leaves)]
    for close, exact in zip(found["high"], found["highest"], strict=True):
        assert 0 < (close - exact).abs().max() < 2**-14 * exact.abs().max()
