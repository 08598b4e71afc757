"""What the tests share: every kernel and instruction set that this machine can run."""

from __future__ import annotations

import pytest
from hypothesis import settings

from regard.kernels import native

# A busy machine is no failure, and the same tree gives the same result.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

ISAS = native.isas() if native.available() is None else []
KERNELS = ["reference", *(f"native-{isa}" for isa in ISAS)]


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set of the native core in turn, the best one restored afterwards."""
    native.select_isa(request.param)
    yield request.param
    native.select_isa(ISAS[0])


@pytest.fixture(params=KERNELS)
def kernel(request):
    """The name of each backend in turn; of the native one, with each instruction set."""
    name, _, isa = request.param.partition("-")
    if isa:
        native.select_isa(isa)
    yield name
    if isa:
        native.select_isa(ISAS[0])
