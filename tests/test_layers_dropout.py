import pytest
import torch
from torch import nn

from regard.layers.dropout import Dropout


def test_numbers_are_dropped_as_often_as_asked_and_the_others_grow():
    torch.manual_seed(0)
    for p in (0.1, 0.3, 0.75):
        y = Dropout(p)(torch.ones(301, 1001))
        dropped = y == 0
        assert dropped.float().mean().item() == pytest.approx(p, abs=0.005)
        assert torch.allclose(y[~dropped], torch.tensor(1 / (1 - p)), rtol=1e-4)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(1 << 18)) == 0).float()
    for distance in (1, 2, 3, 4, 8):
        both = (dropped[distance:] * dropped[:-distance]).mean().item()
        assert both == pytest.approx(0.25, abs=0.005)


def test_what_is_dropped_has_no_gradient_and_seeds_repeat_it():
    x = torch.randn(7, 5, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), y)


def test_without_training_or_probability_nothing_changes_and_all_can_go():
    x = torch.randn(4, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(1.0)(x).count_nonzero() == 0
    with pytest.raises(ValueError, match="probability"):
        Dropout(1.5)


def test_it_keeps_types_and_compiles():
    assert Dropout(0.5)(torch.ones(8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    torch.manual_seed(0)
    compiled = torch.compile(nn.Sequential(Dropout(0.5)), backend="eager", fullgraph=True)
    assert 0 < compiled(torch.ones(1000)).count_nonzero() < 1000
