"""PyTorch tensors: the same results, gradients, torch.compile, devices, in-place rules."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard
from problems import arrays
from regard.errors import BackendError, DeviceError, OptionError

MASKS = {
    "none": None,
    "causal": regard.causal("lower_right"),
    "lengths": regard.lengths(keys=torch.tensor([9, 4])),
    "dense": torch.from_numpy(np.random.default_rng(0).random((2, 1, 6, 9)) < 0.6),
}


def tensors(dtype=torch.float64, grad=True, shape=(2, 4, 2, 6, 9, 8, 5)):
    made = (torch.from_numpy(a) for a in arrays(np.random.default_rng(0), shape, "float64"))
    return [a.to(dtype).requires_grad_(grad) for a in made]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask", MASKS)
def test_output_is_numpys(dtype, mask):
    q, k, v = tensors(dtype, grad=False)
    y = regard.attention(q, k, v, mask=MASKS[mask])
    assert y.dtype == dtype
    wide = (a.double().numpy() for a in (q, k, v))
    given = MASKS[mask].numpy() if isinstance(MASKS[mask], torch.Tensor) else MASKS[mask]
    expected = regard.attention(*wide, mask=given, backend="reference")
    unit = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}.get(dtype, 1e-13)
    np.testing.assert_allclose(y.double().numpy(), expected, rtol=2 * unit, atol=2 * unit)


@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck(mask):
    q, k, v = tensors()
    bias = torch.randn(4, 1, 9, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def call(q, k, v, bias, sinks):
        return regard.attention(
            q, k, v, mask=MASKS[mask], bias=bias, sinks=sinks, softcap=3.0, scale=0.4
        )

    assert torch.autograd.gradcheck(call, (q, k, v, bias, sinks))


def test_gradcheck_of_dropout_layout_and_strided_inputs():
    q, k, v = tensors()

    def call(q, k, v):
        views = (a.transpose(1, 2) for a in (q, k[..., ::1, :], v))
        return regard.attention(*views, layout="BLHD", dropout_p=0.3, dropout_seed=5)

    assert torch.autograd.gradcheck(call, (q, k, v))
    packed = torch.randn(2, 5, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: regard.attention(*p.unbind(2), layout="BLHD", mask=regard.causal()), (packed,)
    )


def test_gradcheck_of_the_operator():
    q, k, v = tensors()
    y = torch.randn(2, 4, 6, 3, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"mask": regard.causal("lower_right"), "softcap": 2.0}

    def weights(q, k, sinks):
        return regard.weights(q, k, sinks=sinks, **options)

    check = torch.autograd.gradcheck
    assert check(lambda q, k, v, s: weights(q, k, s) @ v, (q, k, v, sinks))
    assert check(lambda q, k, y, s: weights(q, k, s).mT @ y, (q, k, y, sinks))
    assert check(lambda q, k, s: weights(q, k, s).lse(), (q, k, sinks))
    shared = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    assert check(lambda q, k, c, s: weights(q, k, s) @ c, (q, k, shared, sinks))
    assert check(lambda q, k, s: weights(q, k, s)[1, 2:].lse(), (q, k, sinks))


def test_gradients_of_padding_that_were_never_written_do_not_count():
    q, k, v = tensors(torch.float32, shape=(2, 2, 2, 6, 6, 8, 8))
    sinks = torch.randn(2, requires_grad=True)
    mask = regard.lengths(keys=[6, 3], queries=[6, 3])
    y = regard.attention(q, k, v, mask=mask, sinks=sinks)
    dy = torch.randn_like(y)
    dy[1, :, 3:] = 0
    expected = torch.autograd.grad(y, (q, k, v, sinks), dy, retain_graph=True)
    dy[1, :, 3:] = torch.nan
    found = torch.autograd.grad(y, (q, k, v, sinks), dy)
    torch.testing.assert_close(found, expected)


def test_only_the_gradients_that_are_wanted_are_computed():
    q, k, v = tensors()
    k.requires_grad_(False)
    regard.attention(q, k, v).sum().backward()
    assert k.grad is None and q.grad is not None and v.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_their_tensors_type_and_are_pytorchs(dtype):
    q, k, v = tensors(dtype, shape=(2, 4, 4, 60, 60, 32, 32))
    dy = torch.randn(2, 4, 60, 32)
    regard.attention(q, k, v, mask=regard.causal()).backward(dy.to(dtype))
    wide = [a.detach().double().requires_grad_() for a in (q, k, v)]
    sdpa(*wide, is_causal=True).backward(dy.to(dtype).double())
    unit = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5}[dtype]
    for mine, other in zip((q, k, v), wide, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=unit, atol=unit)


def test_second_derivatives():
    q, k, v = tensors(shape=(1, 2, 1, 3, 4, 3, 2))
    y = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    options = {"mask": regard.causal("lower_right"), "softcap": 2.0}
    again = torch.autograd.gradgradcheck
    assert again(lambda q, k, v: regard.attention(q, k, v, **options), (q, k, v))
    assert again(lambda q, k: regard.weights(q, k, **options).lse(), (q, k))
    assert again(lambda q, k, y: regard.weights(q, k, **options).mT @ y, (q, k, y))


def compiled(call, backend):
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend=backend)


COMPILED = {
    "plain": lambda q, k, v: regard.attention(q, k, v),
    "causal": lambda q, k, v: regard.attention(q * 2, k, v, mask=regard.causal("lower_right")) * 3,
    "lengths": lambda q, k, v: regard.attention(
        q, k, v, mask=regard.lengths(torch.tensor([9, 4])) & regard.window(4, 4, 2), softcap=2.0
    ),
    "array": lambda q, k, v: regard.attention(q, k, v, mask=(q @ k.mT).detach() > -1),
    "bias": lambda q, k, v: regard.attention(q, k, v, bias=q.sum(-1, keepdim=True)),
    "layout": lambda q, k, v: regard.attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout="BLHD"
    ),
}


@pytest.mark.parametrize("call", COMPILED.values(), ids=COMPILED)
def test_compiles_into_one_graph_forward_and_backward(call):
    q, k, v = tensors(torch.float32, shape=(2, 4, 4, 6, 9, 8, 5))
    expected = call(q, k, v)
    grads = torch.autograd.grad(expected.square().sum(), (q, k, v))
    y = compiled(call, "aot_eager")(q, k, v)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    found = torch.autograd.grad(y.square().sum(), (q, k, v))
    torch.testing.assert_close(found, grads, rtol=1e-6, atol=1e-6)


def test_compiled_dropout_is_repeated_by_the_seed_and_changes_with_every_call():
    q, k, v = tensors(torch.float32)
    call = compiled(lambda q, k, v: regard.attention(q, k, v, dropout_p=0.5), "aot_eager")
    torch.manual_seed(1)
    one, other = call(q, k, v), call(q, k, v)
    torch.manual_seed(1)
    assert torch.equal(one, call(q, k, v)) and not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning")  # PyTorch's own, while it compiles
def test_inductor():
    q, k, v = tensors(torch.float32)
    call = COMPILED["causal"]
    y = compiled(call, "inductor")(q, k, v)
    torch.testing.assert_close(y, call(q, k, v))
    y.sum().backward()


def test_the_operators_pass_pytorchs_own_check():
    q, k, v = tensors(torch.float32)
    from regard.frontends.torch import ops
    from regard.problem import make

    specification, flat = make(q, k, v, mask=regard.causal("lower_right")).flatten()
    torch.library.opcheck(ops._forward, (list(flat), specification, ""))


def test_dropout_draws_its_seed_from_pytorchs_generator():
    q, k, v = tensors(grad=False)
    torch.manual_seed(3)
    one = regard.attention(q, k, v, dropout_p=0.5)
    other = regard.attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(one, regard.attention(q, k, v, dropout_p=0.5))
    assert not torch.equal(one, other)
    with torch.device("meta"):
        torch.manual_seed(3)
        assert torch.equal(one, regard.attention(q, k, v, dropout_p=0.5))


def test_no_gradient_is_kept_without_need():
    q, k, v = tensors()
    with torch.no_grad():
        assert not regard.attention(q, k, v).requires_grad
    with torch.inference_mode():
        w = regard.weights(q, k)
        assert (w @ v).shape == (2, 4, 6, 5) and w.entropy().shape == (2, 4, 6)
    assert regard.attention(q, k, v).requires_grad
    assert not regard.weights(q, k).entropy().requires_grad


def test_pytorchs_own_attention_computes_what_ours_does():
    q, k, v = tensors()
    sinks, bias = torch.randn(4).double(), torch.randn(4, 6, 9).double()
    for options in (
        {},
        {"mask": regard.causal("lower_right")},
        {"mask": MASKS["lengths"], "sinks": sinks, "bias": bias, "softcap": 2.0},
        {"mask": regard.lengths(queries=[6, 2]), "bias": bias},
    ):
        y = regard.attention(q, k, v, **options, backend="torch")
        torch.testing.assert_close(y, regard.attention(q, k, v, **options))
        own, ours = (regard.weights(q, k, **options, backend=b) for b in ("torch", None))
        torch.testing.assert_close(own.lse(), ours.lse())
        torch.testing.assert_close(own.mT @ y, ours.mT @ y)


def test_the_plan_names_pytorch_where_it_computes():
    q, k, v = tensors()
    assert regard.plan(q, k, v, backend="torch").backend == "torch"
    assert "scaled_dot_product_attention" in str(regard.plan(q, k, v, backend="torch"))
    assert regard.plan(q, k, v).backend == "native"
    meta = [a.to("meta") for a in (q, k, v)]
    assert "no kernels of ours for meta" in str(regard.plan(*meta))
    with pytest.raises(BackendError, match="main memory"):
        regard.plan(*meta, backend="native")


def test_devices_must_agree():
    q, k, v = tensors()
    with pytest.raises(DeviceError, match=r"query on cpu, key on meta.*Wanted: one device"):
        regard.attention(q, k.to("meta"), v)


def test_dropout_is_refused_where_our_kernels_do_not_run():
    q, k, v = tensors()
    with pytest.raises(BackendError, match="main memory"):
        regard.attention(q, k, v, dropout_p=0.1, backend="torch")


def test_the_number_of_threads_is_pytorchs():
    from regard.kernels import native

    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert native.threads() == n
    finally:
        torch.set_num_threads(before)


def test_numpy_needs_a_seed():
    q, k, v = arrays(np.random.default_rng(0))
    with pytest.raises(OptionError, match="dropout_seed"):
        regard.attention(q, k, v, dropout_p=0.5)


@pytest.mark.parametrize("shape", [(2, 1, 1, 6, 9), (1, 3, 4, 6, 9), (3, 1, 1, 9), (2, 3, 1, 6, 1)])
def test_gradients_of_a_bias_shared_along_some_batch_dimensions(shape):
    q, k, v = (
        a.detach().reshape(2, 3, *a.shape[1:]).requires_grad_()
        for a in tensors(shape=(6, 4, 2, 6, 9, 8, 5))
    )
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, 6, 2, dtype=torch.float64)
    for call in (
        lambda backend: regard.attention(q, k, v, bias=bias, backend=backend),
        lambda backend: regard.weights(q, k, bias=bias, backend=backend).lse(),
        lambda backend: regard.weights(q, k, bias=bias, backend=backend).mT @ y,
    ):
        ours, own = (
            torch.autograd.grad(call(backend).square().sum(), (q, bias))
            for backend in ("native", "torch")
        )
        torch.testing.assert_close(ours, own)


def test_negated_views_are_read_as_what_they_stand_for():
    q, k, v = tensors(grad=False)
    bias, sinks = torch.randn(6, 9).double(), torch.randn(4).double()
    views = [torch._neg_view(-a) for a in (q, bias, sinks)]
    y = regard.attention(views[0], k, v, bias=views[1], sinks=views[2])
    torch.testing.assert_close(y, regard.attention(q, k, v, bias=bias, sinks=sinks))


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_traces_see_the_operator():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    given = tensors(torch.float32, grad=False)
    other = [a * 2 for a in given]

    def call(q, k, v):
        w = regard.weights(q, k, mask=regard.causal("lower_right"))
        return w @ v, w.lse()

    for trace in (make_fx(call)(*given), torch.jit.trace(call, given)):
        torch.testing.assert_close(trace(*other), call(*other))
    with FakeTensorMode() as mode:
        y, lse = call(*map(mode.from_tensor, given))
    assert y.shape == (2, 4, 6, 5) and lse.shape == (2, 4, 6)
    torch.testing.assert_close(torch.func.functionalize(call)(*given), call(*given))
    with pytest.raises(BackendError, match=r"w\.mT @ y"):
        torch.jit.trace(lambda q, k: regard.weights(q, k).mT @ q, given[:2])
    with pytest.raises(BackendError, match="read-out"):
        make_fx(lambda q, k: regard.weights(q, k).entropy())(*given[:2])


def test_the_first_call_of_all_may_be_compiled():
    code = """
import torch, regard
q = torch.randn(2, 3, 4, 5)
call = torch.compile(lambda q: regard.attention(q, q, q), fullgraph=True, backend="aot_eager")
print(*call(q).shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "3", "4", "5"], done.stderr


def test_lengths_that_torch_compile_leaves_open():
    def call(q, k, v):
        return regard.attention(q, k, v, mask=regard.causal("lower_right"))

    torch._dynamo.reset()
    fast = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    q, k, v = tensors(grad=False)
    for n in (2, 4, 6):
        torch.testing.assert_close(fast(q[..., :n, :], k, v), call(q[..., :n, :], k, v))


@pytest.mark.parametrize(
    "look",
    [
        lambda w: w.entropy(),
        lambda w: w.lse(),
        lambda w: w[0, :2, 3],
        lambda w: w.mT @ torch.ones(6, 2, dtype=torch.float64),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_operator_of_pytorchs_breaks_the_graph_and_is_right(look):
    q, k, _ = tensors(grad=False)
    torch._dynamo.reset()
    found = torch.compile(lambda q, k: look(regard.weights(q, k)), backend="eager")(q, k)
    torch.testing.assert_close(found, look(regard.weights(q, k)), rtol=0, atol=0)


def test_an_operator_made_before_is_used_in_a_compiled_function():
    q, k, v = tensors()
    w = regard.weights(q, k)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(lambda v: w @ v, backend="eager")(v), w @ v)


def test_a_mask_changed_before_the_backward_pass_is_noticed():
    q, k, v = tensors()
    mask = torch.ones(6, 9, dtype=torch.bool)
    y = regard.attention(q, k, v, mask=mask)
    mask[:, 3:] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_of_queries_that_see_nothing_do_not_count(backend):
    q, k, v = tensors()
    sinks = torch.ones(4, dtype=torch.float64, requires_grad=True)
    y = regard.attention(q, k, v, sinks=sinks, mask=regard.lengths(queries=[6, 2]), backend=backend)
    dy = torch.ones_like(y)
    dy[1, :, 2:] = torch.nan
    for gradient in torch.autograd.grad(y, (q, k, v, sinks), dy):
        assert gradient.isfinite().all()


def test_read_outs_of_pytorchs_own_attention():
    q, k, _ = tensors()
    own, ours = (regard.weights(q, k, backend=backend) for backend in ("torch", None))
    torch.testing.assert_close(own.entropy(), ours.entropy())
    torch.testing.assert_close(own[0, 1].dense(), ours[0, 1].dense())


def test_second_derivatives_through_dropout_are_refused():
    q, k, v = tensors()
    y = regard.attention(q, k, v, dropout_p=0.5, dropout_seed=1)
    with pytest.raises(BackendError, match="second derivatives"):
        torch.autograd.grad(y.sum(), q, create_graph=True)


def test_a_bias_that_hides_every_key_from_a_query_leaves_no_nan():
    q, k, v = tensors()
    bias = torch.randn(6, 9, dtype=torch.float64)
    bias[2] = -torch.inf
    bias[3, 4:] = -torch.inf
    bias.requires_grad_()
    for call in (
        lambda backend: regard.attention(q, k, v, bias=bias, softcap=2.0, backend=backend),
        lambda backend: regard.weights(q, k, bias=bias, backend=backend).lse().exp(),
    ):
        ours, own = (
            torch.autograd.grad(call(backend).square().sum(), (q, k, bias))
            for backend in ("native", "torch")
        )
        torch.testing.assert_close(ours, own)
        assert all(gradient.isfinite().all() for gradient in ours)


def test_gradients_lie_as_their_arrays_do():
    """What follows, such as a projection's gradient, need not copy them."""
    arrays = [torch.randn(2, 5, 4, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    for _ in range(2):  # the second call is repeated from memory
        gradients = torch.autograd.grad(regard.attention(*arrays).square().sum(), arrays)
        assert [g.stride() for g in gradients] == [x.stride() for x in arrays]


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4), (0, 1, 4, 3, 2), (0, 1, 2, 4, 3)])
def test_gradients_of_arrays_that_cannot_be_written_alike(order):
    arrays = [torch.randn(3, 3, 4, 4, 4).permute(order).requires_grad_() for _ in range(3)]
    plain = [x.detach().contiguous().requires_grad_() for x in arrays]
    found = torch.autograd.grad(regard.attention(*arrays).square().sum(), arrays)
    expected = torch.autograd.grad(regard.attention(*plain).square().sum(), plain)
    torch.testing.assert_close(found, expected)


def allocated(call):
    """What PyTorch allocates while a call runs, and what Python and NumPy do at most, in bytes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = call()
    events = profile.profiler.kineto_results.events()
    sizes = (event.nbytes() for event in events if event.name() == "[memory]")
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak + sum(size for size in sizes if size > 0), result


VIEWS = {
    "heads first": lambda packed: (packed.permute(2, 0, 3, 1, 4).contiguous().unbind(0), "BHLD"),
    "heads last": lambda packed: (packed.unbind(2), "BLHD"),
    "heads last, transposed": lambda packed: (packed.permute(2, 0, 3, 1, 4).unbind(0), "BHLD"),
    "a longer cache": lambda packed: (packed[:, :300].unbind(2), "BLHD"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_queries_keys_and_values_are_not_copied(view):
    (q, k, v), layout = view(torch.randn(2, 512, 3, 8, 64))

    def call():
        return regard.attention(q, k, v, layout=layout, mask=regard.causal())

    call(), call()  # what calls like this one have in common is worked out, and kept
    size, output = allocated(call)
    assert output.nbytes <= size < 1.5 * output.nbytes

    learned = [a.detach().requires_grad_() for a in (q, k, v)]
    output = regard.attention(*learned, layout=layout)
    d_output = torch.randn_like(output)
    size, found = allocated(
        lambda: torch.autograd.grad(output, learned, d_output, retain_graph=True)
    )
    assert 3 * output.nbytes <= size < 3.5 * output.nbytes
    assert len(found) == 3
