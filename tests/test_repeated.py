"""A repeated call gives what the long way gives; whatever is not plain takes that way."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import regard
from regard.errors import BackendError, DtypeError, MaskError, OptionError, ShapeError
from regard.frontends import numpy as numpy_front
from regard.frontends import repeated as memory
from regard.frontends import torch as front
from regard.frontends.torch import plain
from regard.problem import make

MASKS = {
    "none": None,
    "causal": regard.causal("lower_right"),
    "window": regard.window(3, 1, "upper_left") | regard.prefix(2),
}


@pytest.fixture(autouse=True)
def fresh():
    memory._known.clear()


def tensors(shape=(2, 4, 7, 8), keys=(2, 2, 9, 8), dtype=torch.float32):
    return torch.randn(shape).to(dtype), *(torch.randn(keys).to(dtype) for _ in range(2))


def long_way(query, key, value, **options):
    return front.attention(make(query, key, value, **options), None)


def same(actual, expected):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual, expected)


@pytest.fixture
def no_long_way(monkeypatch):
    """From now on, only what is remembered can be computed."""

    def forget():
        def refuse(*args, **kwargs):
            raise AssertionError("the long way")

        for each in (front, numpy_front):
            monkeypatch.setattr(each, "make", refuse)

    return forget


def views(batch, heads, length, size):
    """Tensors (B, heads, L, size) of the same shape that lie in memory in different ways."""
    yield torch.randn(batch, heads, length, size)
    yield torch.randn(batch, length, heads, size).transpose(1, 2)
    yield torch.randn(batch, heads, 2 * length, size + 3)[:, :, ::2, 1 : size + 1]
    yield torch.randn(1, heads, length, size).expand(batch, -1, -1, -1)
    yield torch.randn(batch, heads, size, length).mT  # which kernels must copy


def test_what_is_plain_does_not_depend_on_the_mode_in_which_that_is_asked():
    with torch.inference_mode():
        assert plain._plain_keys() == plain._PLAIN


@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
@pytest.mark.parametrize("heads", [1, 3])
def test_every_way_to_lie_in_memory(layout, heads):
    for _, a, b, c in itertools.product(range(2), range(5), range(5), range(5)):
        q, k, v = (list(views(2, heads, 5, 8))[i] for i in (a, b, c))
        if layout == "BLHD":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        same(regard.attention(q, k, v, layout=layout), long_way(q, k, v, layout=layout))
    assert len(memory._known) == 125


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_masks_and_options(mask, dtype, no_long_way):
    given = [tensors(dtype=dtype) for _ in range(3)]
    options = [{}, {"scale": 0.5}, {"softcap": 2.0}]
    wanted = [[long_way(*a, mask=mask, **o) for o in options] for a in given]
    for o in options:
        regard.attention(*tensors(dtype=dtype), mask=mask, **o)
    no_long_way()
    for arrays, results in zip(given, wanted, strict=True):
        for o, result in zip(options, results, strict=True):
            same(regard.attention(*arrays, mask=mask, **o), result)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 3, 4, 5, 8), (0, 2, 5, 8), (1, 1, 1, 1)])
def test_any_number_of_batch_dimensions(shape):
    for _ in range(3):
        q, k, v = (torch.randn(shape) for _ in range(3))
        same(regard.attention(q, k, v), long_way(q, k, v))


def test_values_of_another_size_and_number_of_heads():
    for _ in range(2):
        q, k, _ = tensors()
        v = torch.randn(2, 4, 9, 3)
        same(regard.attention(q, k, v), long_way(q, k, v))


def test_a_change_in_place_is_seen(no_long_way):
    q, k, v = tensors()
    regard.attention(q, k, v)
    v.mul_(2)
    expected = long_way(q, k, v)
    no_long_way()
    same(regard.attention(q, k, v), expected)


def test_outputs_are_new_each_time():
    q, k, v = tensors()
    one, two = regard.attention(q, k, v), regard.attention(q, k, v)
    assert one.data_ptr() != two.data_ptr()


def test_new_masks_that_say_the_same_are_known(no_long_way):
    q, k, v = tensors((1, 1, 5, 8), (1, 1, 5, 8))
    first = regard.attention(q, k, v, mask=regard.causal() & regard.window(2, 0))
    no_long_way()
    same(regard.attention(q, k, v, mask=regard.causal() & regard.window(2, 0)), first)


def test_arrays_in_masks_are_read_each_time():
    q, k, v = tensors()
    length = torch.tensor([9, 9])
    mask = regard.lengths(keys=length)
    for count in (9, 4, 1):
        length.fill_(count)
        same(regard.attention(q, k, v, mask=mask), long_way(q, k[:, :, :count], v[:, :, :count]))
    keep = torch.ones(7, 9, dtype=torch.bool)
    for count in (9, 4):
        keep[:, count:] = False
        same(regard.attention(q, k, v, mask=keep), long_way(q, k[:, :, :count], v[:, :, :count]))


def test_gradients_after_a_plain_call():
    q, k, v = tensors()
    regard.attention(q, k, v)
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(regard.attention(q, k, v).sum(), q)
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        assert not regard.attention(q, k, v).requires_grad


def test_forward_mode_and_transforms_go_another_way():
    q, k, v = tensors()
    wanted = regard.attention(q, k, v)
    mapped = torch.func.vmap(lambda *a: regard.attention(*a))(q[None], k[None], v[None])
    assert torch.equal(mapped[0], wanted)
    with forward_ad.dual_level():
        assert front.signature(q, k, v) is None


def test_views_that_stand_for_the_negative():
    q, k, v = tensors()
    regard.attention(q, k, v)
    same(regard.attention(torch._neg_view(q), k, v), long_way(-q, k, v))


def test_subclasses_and_traces_are_seen():
    class Marked(torch.Tensor):
        pass

    q, k, v = tensors()
    wanted = regard.attention(q, k, v)
    assert type(regard.attention(q.as_subclass(Marked), k, v)) is Marked
    found = torch.fx.experimental.proxy_tensor.make_fx(lambda *a: regard.attention(*a))(q, k, v)
    assert any("regard.attention" in str(node.target) for node in found.graph.nodes)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (q, k, v)]
        assert regard.attention(*fake).shape == wanted.shape


def test_other_devices_take_their_own_way():
    q, k, v = tensors()
    regard.attention(q, k, v)
    meta = [x.to("meta") for x in (q, k, v)]
    assert regard.attention(*meta).device.type == "meta"
    with torch.device("meta"):
        same(regard.attention(q, k, v), long_way(q, k, v))


def test_inference_mode():
    q, k, v = tensors()
    regard.attention(q, k, v)
    with torch.inference_mode():
        output = regard.attention(q, k, v)
        assert output.is_inference()
        same(regard.attention(output, output, output), long_way(output, output, output))


def test_errors_stay_what_they_were():
    q, k, v = tensors()
    for _ in range(2):
        regard.attention(q, k, v)
        with pytest.raises(DtypeError, match="float64"):
            regard.attention(q, k.double(), v)
        with pytest.raises(ShapeError):
            regard.attention(q, k[:, :, 1:], v)
        with pytest.raises(MaskError, match="align"):
            regard.attention(q, k, v, mask=regard.causal())
        with pytest.raises(MaskError, match="float32"):
            regard.attention(q, k, v, mask=torch.zeros(7, 9))
        with pytest.raises(OptionError, match="layout"):
            regard.attention(q, k, v, layout=["BHLD"])
        with pytest.raises(OptionError, match="scale"):
            regard.attention(q, k, v, scale=float("nan"))
        with pytest.raises(BackendError, match="metal"):
            regard.attention(q, k, v, backend="metal")


def test_options_that_are_arrays_are_read_each_time():
    q, k, v = tensors()
    for scale in (torch.tensor(0.5), np.array(0.5)):
        for number in (0.5, 0.25):
            scale[...] = number
            same(regard.attention(q, k, v, scale=scale), long_way(q, k, v, scale=number))
    assert not memory._known


def test_backends_by_name():
    q, k, v = tensors()
    for _ in range(2):
        same(regard.attention(q, k, v, backend="native"), long_way(q, k, v))
        expected = front.attention(make(q, k, v), "reference")
        same(regard.attention(q, k, v, backend="reference"), expected)
        own = front.attention(make(q, k, v), "torch")
        same(regard.attention(q, k, v, backend="torch"), own)


def test_nothing_of_the_callers_is_kept():
    arrays = tensors()
    known = [weakref.ref(x) for x in arrays]
    for _ in range(2):
        regard.attention(*arrays)
    del arrays
    gc.collect()
    assert all(x() is None for x in known)


def test_the_memory_is_bounded():
    for length in range(1, memory._MOST + 20):
        x = torch.randn(1, 1, length, 2)
        regard.attention(x, x, x)
        assert len(memory._known) <= memory._MOST


def test_threads_may_repeat_the_same_call():
    given = [tensors((1, 2, 33, 16), (1, 2, 65, 16)) for _ in range(8)]
    wanted = [long_way(*arrays) for arrays in given]
    wrong = []

    def work(arrays, expected):
        for _ in range(200):
            if not torch.equal(regard.attention(*arrays), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work, args=pair) for pair in zip(given, wanted, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_watch_sees_calls_that_are_remembered():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return regard.attention(q, k, v)

    layer, given = Layer(), tensors()
    for _ in range(2):
        expected = layer(*given)
    with regard.watch(layer) as seen:
        same(layer(*given), expected)
    assert len(seen) == 1


def test_numpy():
    rng = np.random.default_rng(0)
    for _ in range(3):
        q, k, v = (rng.standard_normal((1, 5, 2, 8), dtype=np.float32) for _ in range(3))
        for layout in ("BHLD", "BLHD"):
            expected = long_way(*map(torch.from_numpy, (q, k, v)), layout=layout)
            same(torch.from_numpy(regard.attention(q, k, v, layout=layout)), expected)
    packed = np.zeros(3, np.dtype([("flag", np.int8), ("row", np.float32, 8)]))["row"]
    assert not packed.flags.aligned
    packed[...] = rng.standard_normal((3, 8))
    odd, even = packed[None], packed.copy()[None]
    np.testing.assert_array_equal(
        regard.attention(odd, odd, odd), regard.attention(even, even, even)
    )


EVERY_MASK = MASKS | {
    "boolean": torch.rand(7, 9) > 0.3,
    "lengths": regard.lengths(keys=torch.tensor([9, 4])),
    "both": regard.causal("lower_right") & (torch.rand(2, 1, 7, 9) > 0.2),
}


def leaves(arrays):
    return [array.clone().requires_grad_() for array in arrays]


@pytest.mark.parametrize("mask", EVERY_MASK.values(), ids=EVERY_MASK)
@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
def test_gradients(mask, layout, no_long_way):
    def given():
        arrays = tensors()
        if layout == "BLHD":
            arrays = [x.transpose(1, 2).contiguous() for x in arrays]
        return arrays, torch.randn(4, 7, 9), torch.randn(arrays[0].shape)

    def gradients(attend, arrays, bias, upstream):
        inputs = leaves([*arrays, bias])
        output = attend(*inputs[:3], bias=inputs[3], mask=mask, layout=layout)
        return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]

    cases = [given() for _ in range(2)]
    wanted = [gradients(long_way, *case) for case in cases]
    gradients(regard.attention, *given())
    no_long_way()
    for case, results in zip(cases, wanted, strict=True):
        for found, result in zip(gradients(regard.attention, *case), results, strict=True):
            same(found, result)


def test_gradients_lie_in_memory_as_their_arrays():
    arrays = [torch.randn(2, 7, 3, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    for attend in (long_way, regard.attention):
        for gradient in torch.autograd.grad(attend(*arrays).sum(), arrays):
            assert gradient.stride() == arrays[0].stride()


def test_gradients_of_rows_that_overlap_or_are_not_together():
    _, k, v = tensors((1, 1, 8, 4), (1, 1, 8, 4))
    wide, upstream = torch.randn(1, 1, 11, requires_grad=True), torch.randn(1, 1, 8, 4)
    across = torch.randn(1, 1, 4, 8, requires_grad=True)
    for leaf, view in ((wide, wide.unfold(-1, 4, 1)), (across, across.mT)):
        (expected,) = torch.autograd.grad(regard.attention(view.clone(), k, v), leaf, upstream)
        (found,) = torch.autograd.grad(regard.attention(view, k, v), leaf, upstream)
        same(found, expected)


@pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
def test_gradients_that_are_not_wanted(name):
    for _ in range(2):
        arrays = dict(zip(("query", "key", "value"), tensors(), strict=True))
        arrays["bias"] = torch.randn(1, 1, 7, 9, dtype=torch.float32)
        arrays[name].requires_grad_()
        regard.attention(**arrays).sum().backward()
        (expected,) = torch.autograd.grad(long_way(**arrays).sum(), arrays[name])
        same(arrays[name].grad, expected)


def test_what_was_saved_and_changed_is_refused():
    mask, bias = torch.ones(7, 9, dtype=torch.bool), torch.randn(7, 9)
    for _ in range(2):
        q, k, v = leaves(tensors())
        for changed in (mask, bias):
            output = regard.attention(q, k, v, mask=mask, bias=bias)
            changed.fill_(1)
            with pytest.raises(RuntimeError, match="inplace"):
                output.sum().backward()


def test_saved_tensors_may_come_back_elsewhere():
    """With other strides: what packs them may make them contiguous, or the opposite."""
    for _ in range(2):
        q, k, v = leaves([x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors()])
        expected = torch.autograd.grad(long_way(q, k, v).square().sum(), (q, k, v))
        for move in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, move):
                output = regard.attention(q, k, v)
                found = torch.autograd.grad(output.square().sum(), (q, k, v))
            # Not to the bit: sums may be taken in another order where rows lie apart.
            torch.testing.assert_close(found, expected)


def test_second_derivatives_of_a_repeated_call():
    mask = torch.rand(7, 9) > 0.2
    mask[:, 0] = True
    for _ in range(2):
        inputs = [x.double().requires_grad_() for x in tensors((1, 2, 7, 4), (1, 2, 9, 4))]
        assert torch.autograd.gradgradcheck(lambda *a: regard.attention(*a, mask=mask), inputs)


def test_a_bias_of_some_batch_dimensions():
    for _ in range(2):
        q, k, v = (torch.randn(2, 3, 2, 5, 4) for _ in range(3))
        bias = torch.randn(3, 2, 5, 5).requires_grad_()
        expected = torch.autograd.grad(
            long_way(q, k, v, bias=bias.expand(2, 3, 2, 5, 5)).square().sum(), bias
        )
        found = torch.autograd.grad(regard.attention(q, k, v, bias=bias).square().sum(), bias)
        torch.testing.assert_close(found, expected)


def test_precision_is_part_of_what_is_known():
    q, k, v = tensors((1, 2, 256, 64), (1, 2, 256, 64))
    try:
        for setting in ("high", "highest") * 2:
            torch.set_float32_matmul_precision(setting)
            same(regard.attention(q, k, v), long_way(q, k, v))
            for precision in ("high", "highest"):
                expected = long_way(q, k, v, precision=precision)
                same(regard.attention(q, k, v, precision=precision), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
