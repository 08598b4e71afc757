"""The transforms of torch.func, and forward mode: against PyTorch's expressions, or one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import func

import regard
from problems import arrays
from regard.errors import BackendError
from regard.layers import MultiHeadAttention

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit", "ignore:Attempted to insert a get_attr"
)

SHAPE = (1, 2, 1, 3, 4, 3, 2)
MASK = regard.causal("lower_right") & np.array([True, True, False, True])


def tensors(shape=SHAPE):
    made = arrays(np.random.default_rng(0), shape, "float64")
    return tuple(map(torch.from_numpy, made))


def attend(q, k, v):
    return regard.attention(q, k, v, mask=MASK, softcap=2.0, scale=0.7)


def expected(q, k, v):
    """The same by PyTorch's own operators; the softcap keeps it from its fused function."""
    return regard.attention(q, k, v, mask=MASK, softcap=2.0, scale=0.7, backend="torch")


def loss(call):
    return lambda *given: call(*given).square().sum()


def mapped(call):
    """Mapped over queries and keys, in different dimensions; the values are shared."""
    return lambda q, k, v: func.vmap(call, (0, 1, None))(
        torch.stack([q, 2 * q, -q]), torch.stack([k, -k, 2 * k], dim=1), v
    )


def dual(call, q, k, v):
    forward = torch.autograd.forward_ad
    with forward.dual_level():
        y = call(forward.make_dual(q, q.flip(-1)), k, forward.make_dual(v, 2 * v))
        return tuple(forward.unpack_dual(y))


ALL = (0, 1, 2)
TRANSFORMS = {
    "grad": lambda f, *given: func.grad(loss(f), ALL)(*given),
    "vjp": lambda f, *given: func.vjp(f, *given)[1](f(*given)),
    "jvp": lambda f, *given: func.jvp(f, given, tuple(a.flip(-1) for a in given)),
    "dual numbers": dual,
    "linearize": lambda f, *given: func.linearize(f, *given)[1](*given),
    "vmap": lambda f, *given: mapped(f)(*given),
    "vmap of vmap": lambda f, *given: func.vmap(mapped(f), (None, 0, 0))(
        given[0], *(torch.stack([a, a.flip(-2)]) for a in given[1:])
    ),
    "grad of vmap": lambda f, *given: func.grad(loss(mapped(f)), ALL)(*given),
    "vmap of grad": lambda f, *given: mapped(func.grad(loss(f), ALL))(*given),
    "vmap of jvp": lambda f, *given: mapped(lambda *a: func.jvp(f, a, a)[1])(*given),
    "jacrev": lambda f, *given: func.jacrev(f, ALL)(*given),
    "jacfwd": lambda f, *given: func.jacfwd(f, ALL)(*given),
    "hessian": lambda f, *given: func.hessian(loss(f), (0, 1))(*given),
    "reverse over reverse": lambda f, *given: func.jacrev(func.jacrev(loss(f)))(*given),
    "reverse over forward": lambda f, *given: func.jacrev(func.jacfwd(loss(f)))(*given),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform):
    given = tensors()
    torch.testing.assert_close(transform(attend, *given), transform(expected, *given))


def test_forward_over_forward():
    # PyTorch forgets outer tangents in functions with a jvp of their own, so reverse mode judges.
    q, k, v = tensors()
    forward, reverse = (
        j(j(lambda q: attend(q, k, v).square().sum())) for j in (func.jacfwd, func.jacrev)
    )
    torch.testing.assert_close(forward(q), reverse(q))


def test_gradcheck_in_forward_mode_and_for_many_gradients_at_once():
    given = [a.requires_grad_() for a in tensors()]
    checks = {
        "check_forward_ad": True,
        "check_batched_grad": True,
        "check_batched_forward_grad": True,
    }
    assert torch.autograd.gradcheck(attend, given, **checks)
    assert torch.autograd.gradgradcheck(attend, given, check_fwd_over_rev=True)


rng = np.random.default_rng(1)
Q, K, V = (
    torch.from_numpy(rng.standard_normal(s)) for s in ((3, 2, 4, 6, 8), (2, 2, 9, 8), (2, 2, 9, 5))
)
LENGTHS = torch.tensor([[9, 4], [1, 0], [5, 5]])
DENSE = torch.from_numpy(rng.random((3, 6, 9)) < 0.6)
IDS = torch.from_numpy(rng.integers(0, 3, (3, 2, 9)))
BOUNDS = torch.tensor([[0, 2, 6], [0, 3, 4], [0, 0, 5]])
EDGES = regard.graph([[1, 2, 0], [0, 0, 1]])


def normal(*shape):
    return torch.from_numpy(rng.standard_normal(shape))


def call(**options):
    return lambda q: regard.attention(q, K, V, **options)


MAPPED = {
    "lengths": (lambda q, n: call(mask=regard.lengths(keys=n))(q), LENGTHS),
    "lengths that are shared": (call(mask=regard.lengths(keys=[9, 4])),),
    "an array": (lambda q, seen: call(mask=seen)(q), DENSE),
    "an array and causal": (
        lambda q, seen: call(mask=seen & regard.causal("lower_right"))(q),
        DENSE,
    ),
    "an array or lengths": (lambda q, m, n: call(mask=m | regard.lengths(n))(q), DENSE, LENGTHS),
    "offsets": (lambda q, n: call(mask=regard.causal(n - 3) & regard.window(2, 4, n))(q), LENGTHS),
    "prefixes": (lambda q, n: call(mask=regard.prefix(n))(q), LENGTHS),
    "keys": (lambda q, seen: call(mask=regard.keys(seen[:2]))(q), DENSE),
    "documents": (lambda q, ids: call(mask=regard.documents(ids[:, :6], ids))(q), IDS),
    "packed documents": (lambda q, cu: call(mask=regard.documents(cu_lengths=cu))(q), BOUNDS),
    "a bias": (lambda q, bias: call(bias=bias)(q), normal(3, 6, 9)),
    "a bias with a batch": (lambda q, bias: call(bias=bias)(q), normal(3, 2, 1, 1, 9)),
    "a bias that is shared": (call(bias=normal(2, 4, 6, 9)),),
    "sinks": (lambda q, sinks: call(sinks=sinks)(q), normal(3, 4)),
    "sinks that are shared": (call(sinks=normal(4)),),
    "dropout": (call(dropout_p=0.4, dropout_seed=3),),
    "a graph": (lambda q, bias: call(mask=EDGES, bias=bias)(q), normal(3, 1, 3)),
    "additive": (
        lambda q, u: call(score=regard.Additive(torch.eye(8).double(), torch.eye(8).double(), u))(
            q
        ),
        normal(3, 8),
    ),
    "bilinear": (lambda q, w: call(score=regard.Bilinear(w))(q), normal(3, 8, 8)),
    "another layout": (
        lambda q: regard.attention(
            q.transpose(-3, -2), K.transpose(1, 2), V.transpose(1, 2), layout="BLHD"
        ),
    ),
    "the log-sum-exp": (lambda q, seen: regard.weights(q, K, mask=seen).lse(), DENSE),
    "the transposed product": (lambda q, seen: regard.weights(q, K, mask=seen).mT @ q, DENSE),
}


@pytest.mark.parametrize("case", MAPPED.values(), ids=MAPPED)
def test_what_is_mapped_is_what_each_gets_alone(case):
    function, *more = case
    given = (Q, *more)
    learned = tuple(n for n, a in enumerate(given) if a.is_floating_point())

    def one_by_one(function):
        return lambda *given: torch.stack([function(*each) for each in zip(*given, strict=True)])

    def gradient(function):
        return func.grad(lambda *a: function(*a).nan_to_num(neginf=0).square().sum(), learned)

    torch.testing.assert_close(func.vmap(function)(*given), one_by_one(function)(*given))
    alone = gradient(one_by_one(function))(*given)
    torch.testing.assert_close(gradient(func.vmap(function))(*given), alone)
    torch.testing.assert_close(func.vmap(gradient(function))(*given), alone)


@pytest.mark.parametrize("name", ["lengths", "packed documents", "an array or lengths", "a graph"])
def test_tangents_under_masks_that_are_mapped(name):
    function, *more = MAPPED[name]

    def tangent(q, *more):
        return func.jvp(lambda q: function(q, *more), (q,), (q.flip(-1),))[1]

    alone = torch.stack([tangent(*each) for each in zip(Q, *more, strict=True)])
    torch.testing.assert_close(func.vmap(tangent)(Q, *more), alone)


def test_an_ensemble_of_layers():
    layers = [MultiHeadAttention(16, 4) for _ in range(3)]
    parameters, buffers = func.stack_module_state(layers)
    x = torch.randn(2, 5, 16)

    def run(parameters, buffers):
        return func.functional_call(layers[0], (parameters, buffers), (x,))

    found = func.vmap(run)(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]))


@pytest.mark.parametrize("name", ["grad", "vmap", "vmap of grad", "jvp"])
def test_compiled(name):
    given = tensors()
    results = [
        TRANSFORMS[name](lambda *a: regard.attention(*a, mask=regard.causal("lower_right")), *given)
    ]
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*given):
        return TRANSFORMS[name](
            lambda *a: regard.attention(*a, mask=regard.causal("lower_right")), *given
        )

    results.append(compiled(*given))
    torch.testing.assert_close(*results)


def test_what_has_no_values_cannot_be_read_out():
    with pytest.raises(BackendError, match="read-out inside a trace, a transform"):
        func.vmap(lambda q: regard.weights(q, K).entropy())(Q)


def test_tangents_and_second_derivatives_through_dropout_are_refused():
    with pytest.raises(BackendError, match="tangents or second derivatives"):
        func.jvp(call(dropout_p=0.4, dropout_seed=3), (Q[0],), (Q[0],))
