"""torch.export keeps our operator; torch.onnx.export writes ONNX's own, for other runtimes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regard
from regard.errors import BackendError

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR)


GIVEN = normal(2, 4, 6, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 5)
IDS = torch.tensor([[0, 0, 1, 1, 2, 2, 0, 0, -1]] * 2)
OPTIONS = {
    "plain": {},
    "lower right": {"mask": regard.causal("lower_right"), "softcap": 2.0, "scale": 0.3},
    "upper left": {"mask": regard.causal("upper_left")},
    "a query that sees nothing": {"mask": regard.lengths(torch.tensor([9, 0]))},
    "bias": {"mask": regard.window(3, 1, 3) | regard.prefix(1), "bias": normal(4, 6, 9)},
    "sinks": {"mask": regard.documents(IDS[:, :6], IDS), "sinks": normal(4), "softcap": 3.0},
    "array": {"mask": regard.keys(IDS == 0) & regard.window(4, None, 2)},
    "graph": {"mask": regard.graph([[1, 2, 8], [0, 0, 5]]), "bias": normal(4, 1, 3)},
    "additive": {"score": regard.Additive(normal(8, 3), normal(8, 3), normal(3))},
}


class Calls(nn.Module):
    def forward(self, query, key, value):
        return tuple(regard.attention(query, key, value, **how) for how in OPTIONS.values())


class Open(nn.Module):
    """Other batch dimensions, values of all heads, lengths that are left open, and the lse."""

    def forward(self, query, key, value):
        w = regard.weights(query, key, mask=regard.causal("lower_right"), bias=query[..., :1])
        return w @ value, w.lse()


LENGTHS = (
    {3: torch.export.Dim("queries", min=2)},
    {3: torch.export.Dim("keys", min=2)},
    {3: torch.export.Dim("keys", min=2)},
)


def opened(queries, keys):
    return normal(2, 3, 4, queries, 8), normal(2, 3, 2, keys, 8), normal(2, 3, 4, keys, 5)


def test_export_keeps_the_operator_and_lengths_open():
    program = torch.export.export(Open(), opened(4, 7), dynamic_shapes=LENGTHS)
    names = [str(node.target) for node in program.graph.nodes]
    assert "regard.attention.default" in names
    given = opened(3, 5)
    torch.testing.assert_close(program.module()(*given), Open()(*given))


def onnx_program(model, given, **options):
    pytest.importorskip("onnxscript")
    exported = torch.onnx.export(model, given, opset_version=23, verbose=False, **options)
    return exported.model_proto


def runs(proto, given):
    """What every runtime that is installed makes of it."""
    named = {i.name: a.numpy() for i, a in zip(proto.graph.input, given, strict=True)}
    reference = pytest.importorskip("onnx.reference")
    yield reference.ReferenceEvaluator(proto).run(None, named)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(proto.SerializeToString())
    yield session.run(None, named)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it exports
def test_onnx_has_its_own_operator_for_every_call():
    proto = onnx_program(Calls(), GIVEN)
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("Attention") == len(OPTIONS) - 1  # additive scores are none
    expected = Calls()(*GIVEN)
    for outputs in runs(proto, GIVEN):
        for name, found, wanted in zip(OPTIONS, outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, msg=lambda m, n=name: n + m)


@pytest.mark.filterwarnings("ignore")
def test_onnx_with_lengths_that_are_left_open():
    proto = onnx_program(Open(), opened(4, 7), dynamic_shapes=LENGTHS)
    given = opened(3, 5)
    for outputs in runs(proto, given):
        found = tuple(map(torch.from_numpy, outputs))
        torch.testing.assert_close(found, Open()(*given))


@pytest.mark.filterwarnings("ignore")
def test_dropout_is_refused_by_name(monkeypatch):
    from regard.frontends.torch import onnx

    monkeypatch.setattr(onnx, "exporting", lambda: True)
    with pytest.raises(BackendError, match=r"dropout_p=0.5 in torch.onnx.export.*eval\(\)"):
        regard.attention(*GIVEN, dropout_p=0.5)
