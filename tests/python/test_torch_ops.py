"""Functions of fastffn.torch: traced, exported, cast, batched, and with every wrong kind of tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

import fastffn as ff

torch = pytest.importorskip("torch")

import fastffn.torch as ft  # noqa: E402

D_MODEL, D_FF, D_OUT, EXPERTS, K = 40, 72, 24, 4, 2
OPERATORS = torch.ops.fastffn


def values(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


W_UP, W_GATE = (ff.pack(values(D_FF, D_MODEL, seed=s), "bf16") for s in (1, 2))
W_DOWN = ff.pack(values(D_OUT, D_FF, seed=3), "int8")
B_UP, B_DOWN = values(D_FF, seed=4), values(D_OUT, seed=5)
E_UP, E_GATE = (ff.pack(values(EXPERTS, D_FF, D_MODEL, seed=s), "bf16") for s in (6, 7))
E_DOWN = ff.pack(values(EXPERTS, D_OUT, D_FF, seed=8), "int8")
SHARED = ff.SharedExperts(W_UP, W_DOWN, W_GATE, gate=values(D_MODEL, seed=9))
ROUTER = ff.pack(values(EXPERTS, D_MODEL, seed=10), "f32")
TREE = ff.pack_tree(values(15, D_MODEL, seed=11), None, values(15, D_OUT, seed=12))


def x_of(*shape: int) -> Any:
    return values(*shape, D_MODEL, seed=20) * D_MODEL**0.5


def mixture(x: Any, module: Any = ft, **keywords: Any) -> Any:
    if module is ft:
        ids, weights = ft.route_topk(ft.router_logits(x, ROUTER, experts=EXPERTS), K, renormalize=True)
        keywords["out_features"] = D_OUT
    else:
        ids, weights = ff.route_topk(ff.router_logits(x, ROUTER), K, renormalize=True)
    return module.moe(x, ids, weights, E_UP, E_DOWN, E_GATE, activation="silu", shared=SHARED, **keywords)


# Each function as a program traces it, and as the library computes it.
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "linear": (
        lambda x: ft.linear(x, W_UP, B_UP, out_features=D_FF),
        lambda x: ff.linear(x, W_UP, B_UP),
    ),
    "ffn": (
        lambda x: ft.ffn(x, W_UP, W_DOWN, None, B_UP, B_DOWN, activation="gelu", out_features=D_OUT),
        lambda x: ff.ffn(x, W_UP, W_DOWN, None, B_UP, B_DOWN, activation="gelu"),
    ),
    "gated segments": (
        lambda x: ft.ffn(x, W_UP, W_DOWN, W_GATE, activation="silu", segments=[(0, 16), (32, 8)], out_features=D_OUT),
        lambda x: ff.ffn(x, W_UP, W_DOWN, W_GATE, activation="silu", segments=[(0, 16), (32, 8)]),
    ),
    "moe": (mixture, lambda x: mixture(x, ff)),
    "fff": (
        lambda x: ft.fff(x, TREE, activation="gelu", out_features=D_OUT),
        lambda x: ff.fff(x, TREE, activation="gelu"),
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_without_a_break_for_any_number_of_tokens(name: str) -> None:
    traced, expected = FUNCTIONS[name]
    compiled = torch.compile(lambda x: traced(x * 1), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((5,), (3, 4), (1,), (0,)):
        assert torch.equal(compiled(x_of(*shape)), expected(x_of(*shape)))
    explained = torch._dynamo.explain(lambda x: traced(x) + 1)(x_of(5))
    assert explained.graph_break_count == 0 and explained.graph_count == 1


def test_compiled_by_inductor() -> None:
    traced, expected = FUNCTIONS["ffn"]
    compiled = torch.compile(lambda x: torch.relu(traced(x + 1)) * 2, fullgraph=True)
    assert torch.equal(compiled(x_of(5)), torch.relu(expected(x_of(5) + 1)) * 2)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict: bool) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", W_UP)
            self.layer = ft.FFN.from_packed(W_UP, W_DOWN, W_GATE, activation="silu")

        def forward(self, x: Any) -> Any:
            return ft.linear(x, self.w, out_features=D_FF), self.layer(x)

    tokens = torch.export.Dim("tokens")
    program = torch.export.export(Module(), (x_of(5),), dynamic_shapes={"x": {0: tokens}}, strict=strict)
    x = x_of(9)
    first, second = program.module()(x)
    assert torch.equal(first, ff.linear(x, W_UP))
    assert torch.equal(second, ff.ffn(x, W_UP, W_DOWN, W_GATE, activation="silu"))


def out_cases() -> dict[str, tuple[Any, ...]]:
    x, y = x_of(5), torch.empty(5, D_OUT)
    ids, weights = ff.route_topk(ff.router_logits(x, ROUTER), K)
    route = (K, "softmax", True, 1.0, None, values(EXPERTS), 1, None, "max", 1.0, None, 1e-6, None)
    logits = values(5, EXPERTS)
    square = [ff.pack(values(EXPERTS, D_MODEL, D_FF, seed=8), "int8")]
    down = ff.pack(values(D_MODEL, D_FF, seed=8), "int8")
    shared = [W_UP, down, *[None] * 5]
    tree = (x, TREE, None, None, None, None, "gelu", None, None, None, None, None, None, "auto")
    experts = (
        x,
        ids,
        weights,
        [E_UP],
        square,
        [E_GATE],
        [],
        [],
        [],
        "silu",
        shared,
        ["copy", "zero"],
        None,
        None,
        False,
    )
    return {
        "linear": (x.requires_grad_(), W_UP, B_UP.clone().requires_grad_(), D_FF),
        "linear_out": (x_of(5), W_UP, B_UP, torch.empty(5, D_FF)),
        "router_logits": (x, ROUTER, None, EXPERTS),
        "ffn": (x, W_UP, W_DOWN, W_GATE, B_UP.clone().requires_grad_(), B_DOWN, None, "silu", [0, 8], None, 1e-5, None, D_OUT),
        "ffn_out": (x_of(5), W_UP, W_DOWN, W_GATE, B_UP, B_DOWN, None, "silu", [0, 8], None, 1e-5, None, y),
        "moe": (*experts, D_MODEL),
        "moe_out": (x_of(5), *experts[1:], torch.empty(5, D_MODEL)),
        "fff": (x_of(5), *tree[1:], D_OUT),
        "fff_out": (x_of(5), *tree[1:], y),
        "route_topk": (logits, *route),
        "route_topk_out": (logits, *route, torch.empty(5, K, dtype=torch.int32), torch.empty(5, K)),
        "ffn_plain": (
            x, [values(D_FF, D_MODEL).requires_grad_()], [values(D_OUT, D_FF).requires_grad_()], [], B_UP, None, None, "gelu", ["bf16"] * 3,
        ),
        "moe_plain": (
            x, ids, weights.clone().requires_grad_(), [values(EXPERTS, D_FF, D_MODEL).requires_grad_()],
            [values(EXPERTS, D_OUT, D_FF)], [values(EXPERTS, D_FF, D_MODEL)], None, values(EXPERTS, D_OUT), None, "silu",
            ["f32"] * 3, False,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", out_cases())
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(OPERATORS, name), out_cases()[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_direct_is_the_library(name: str) -> None:
    traced, expected = FUNCTIONS[name]
    x = x_of(3, 2)
    assert torch.equal(traced(x), expected(x))
    empty = traced(x_of(0))
    assert tuple(empty.shape) == (0, expected(x).shape[-1])


def test_out_is_written_and_returned() -> None:
    x, y = x_of(5), torch.empty(5, D_OUT)
    expected = FUNCTIONS["ffn"][1](x)

    def call(x: Any, y: Any) -> Any:
        return ft.ffn(x, W_UP, W_DOWN, None, B_UP, B_DOWN, activation="gelu", out=y)

    assert call(x, y) is y and torch.equal(y, expected)
    for backend in ("aot_eager", "inductor"):
        y.zero_()
        assert torch.equal(torch.compile(call, fullgraph=True, backend=backend)(x, y), expected) and torch.equal(
            y, expected
        )
    with pytest.raises(RuntimeError, match="ffn: out= records no gradients"):
        call(x.requires_grad_(), y)
    ids, weights = torch.empty(5, K, dtype=torch.int32), torch.empty(5, K)
    logits = values(5, EXPERTS)
    route = torch.compile(
        lambda logits, i, w: ft.route_topk(logits, K, out=(i, w)), fullgraph=True, backend="aot_eager"
    )
    route(logits, ids, weights)
    assert torch.equal(ids, ff.route_topk(logits, K)[0]) and torch.equal(weights, ff.route_topk(logits, K)[1])


def test_the_width_of_a_traced_result() -> None:
    with pytest.raises(ValueError, match=r"^linear: out_features is 3, and the packed weights have 72$"):
        ft.linear(x_of(2), W_UP, out_features=3)
    with pytest.raises(Exception, match=r"linear: out_features is needed where a call is traced"):
        torch.compile(lambda x: ft.linear(x, W_UP), fullgraph=True, backend="eager")(x_of(2))
    with pytest.raises(ValueError, match=r"linear: out has shape \(2, 3\), expected \(2, 72\)"):
        torch.compile(lambda x: ft.linear(x, W_UP, out_features=3), fullgraph=True, backend="aot_eager")(x_of(2))
    # ffn's default is the width of x, and the kernel refuses it where it is wrong.
    with pytest.raises(ValueError, match=r"ffn: out has shape \(2, 40\), expected \(2, 24\)"):
        torch.compile(lambda x: ft.ffn(x, W_UP, W_DOWN, activation="relu"), fullgraph=True, backend="aot_eager")(
            x_of(2)
        )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_x(name: str, dtype: Any) -> None:
    traced, expected = FUNCTIONS[name]
    x = x_of(5)
    with torch.autocast("cpu", dtype=dtype):
        y = traced(x)
        compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")(x)
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(traced(x), expected(x))
    assert y.dtype == dtype == compiled.dtype and torch.equal(y, compiled)
    assert traced(x).dtype == torch.float32
    if name != "moe":  # whose router sees x before the cast, in f32
        assert torch.equal(y, expected(x.to(dtype)))


def test_views() -> None:
    x = x_of(6)
    expected = ff.linear(x, W_UP)
    assert torch.equal(ft.linear(x.T.contiguous().T, W_UP), expected)  # features far apart: copied
    assert torch.equal(ft.linear(torch.complex(torch.zeros_like(x), -x).conj().imag, W_UP), expected)  # a pending sign
    assert torch.equal(OPERATORS.linear(torch._neg_view(-x), W_UP, None, D_FF), expected)
    assert torch.equal(ft.linear(x.expand(2, 6, D_MODEL), W_UP), ff.linear(x.repeat(2, 1, 1), W_UP))
    for bad in (torch.complex(x, x).conj(), x.double(), x.int()):
        with pytest.raises(ValueError, match="^linear: x has dtype"):
            ft.linear(bad, W_UP)


def test_tensors_without_memory() -> None:
    from torch._subclasses import FakeTensorMode

    y = ft.ffn(
        x_of(5).to("meta"), *(w.to("meta") for w in (W_UP, W_DOWN, W_GATE)), activation="silu", out_features=D_OUT
    )
    assert y.is_meta and tuple(y.shape) == (5, D_OUT)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x_of(5), W_UP)]
        y = ft.linear(*fake, out_features=D_FF)
        assert type(y).__name__ == "FakeTensor" and tuple(y.shape) == (5, D_FF)
        with pytest.raises(TypeError, match="out_features is needed"):
            ft.linear(*fake)
    with pytest.raises(ValueError, match=r"linear: w is on cpu and x on meta, expected one device"):
        ft.linear(x_of(5).to("meta"), W_UP)
    with pytest.raises(ValueError, match=r"linear: w is on meta and x on cpu, expected one device"):
        ft.linear(x_of(5), W_UP.to("meta"), out_features=D_FF)
    with pytest.raises(
        ValueError, match=r"^linear: an argument has the layout torch.sparse_coo, expected dense tensors"
    ):
        ft.linear(x_of(5).to_sparse(), W_UP)


def test_make_fx_and_jit_trace_of_modules_record_the_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: ft.linear(x, W_UP))(x_of(5))
    assert "fastffn.linear" in graph.code and torch.equal(graph(x_of(5) * 2), ff.linear(x_of(5) * 2, W_UP))
    layers = [ft.FFN.from_packed(W_UP, W_DOWN, activation="silu"), ft.PackedFFF(ft.AllNodeFFF(D_MODEL, depth=2))]
    for layer in layers:
        traced = torch.jit.trace(layer, x_of(5))
        assert torch.equal(traced(x_of(5) * 2), layer(x_of(5) * 2))
    with pytest.raises(RuntimeError, match="unsupported input list type"):  # jit knows no lists with gaps
        torch.jit.trace(ft.MoE(D_MODEL, 8, experts=4, k=2, activation="silu"), x_of(5))


def test_vmap_over_tokens() -> None:
    x = x_of(5)
    for traced, expected in FUNCTIONS.values():
        assert torch.equal(torch.vmap(traced)(x), expected(x))
    linear = FUNCTIONS["linear"]
    assert torch.equal(torch.vmap(linear[0], in_dims=1)(x.T.contiguous()), linear[1](x))
    assert torch.equal(torch.vmap(torch.vmap(linear[0]))(x[None]), linear[1](x)[None])
    with pytest.raises(ValueError, match="linear: torch.vmap may batch the tokens only"):
        torch.vmap(lambda w: ft.linear(x, w, out_features=D_FF))(torch.stack([W_UP, W_UP]))


def test_other_derivatives_are_refused() -> None:
    x = x_of(5)
    with pytest.raises(RuntimeError, match="autograd.Function with functorch"):
        torch.func.grad(lambda x: ft.linear(x, W_UP).sum())(x)
    for linear in (ff.linear, ft.linear):
        with pytest.raises(
            (RuntimeError, BufferError), match="^linear: (an argument carries a tangent|x .* could not be)"
        ):
            torch.func.jvp(functools.partial(linear, w=W_UP), (x,), (x,))
        with torch.autograd.forward_ad.dual_level():
            with pytest.raises(
                RuntimeError, match="linear: (x|an argument) carries a tangent of forward-mode differentiation"
            ):
                linear(torch.autograd.forward_ad.make_dual(x, x), W_UP)
            assert torch.equal(linear(x, W_UP), ff.linear(x, W_UP))  # nothing to propagate


class Subclass(torch.Tensor):
    pass


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, whose operations go to Python."""

    seen: ClassVar[list[str]] = []

    @staticmethod
    def __new__(cls, held: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(function))
        if function is torch.ops.aten.detach.default:
            return Wrapper(args[0].held)
        return function(*(a.held if isinstance(a, Wrapper) else a for a in args), **(kwargs or {}))


def test_subclasses() -> None:
    x = x_of(5)
    y = ft.linear(x.as_subclass(Subclass), W_UP)
    assert type(y) is torch.Tensor and torch.equal(y, ff.linear(x, W_UP))
    assert torch.equal(ft.linear(torch.nn.Parameter(x, requires_grad=False), W_UP), ff.linear(x, W_UP))
    assert torch.equal(ft.linear(Wrapper(x), W_UP), ff.linear(x, W_UP)) and "fastffn.linear.default" in Wrapper.seen


def test_inference_mode() -> None:
    x = x_of(5).requires_grad_()
    with torch.inference_mode():
        y = ft.linear(x, W_UP)
        assert y.is_inference() and torch.equal(y, ff.linear(x, W_UP))
        packed = ff.pack(values(D_FF, D_MODEL), "f32")
    assert torch.equal(ft.linear(x.detach(), packed), ff.linear(x.detach(), packed))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        ft.linear(x, packed)


def test_wrong_arguments_are_named() -> None:
    x = x_of(5)
    with pytest.raises(TypeError, match=r"linear\(\) got an unexpected keyword argument 'widht'"):
        ft.linear(x, W_UP, widht=3)
    with pytest.raises(TypeError, match=r"ffn\(\) missing required keyword argument: 'activation'"):
        ft.ffn(x, W_UP, W_DOWN)
    with pytest.raises(ValueError, match="^ffn: x has shape"):
        ft.ffn(x[:, :7].contiguous(), W_UP, W_DOWN, activation="relu")
    with pytest.raises(ValueError, match="ffn: x has shape"):
        torch.compile(lambda x: ft.ffn(x, W_UP, W_DOWN, activation="relu", out_features=D_OUT), backend="aot_eager")(
            x[:, :7]
        )
    with pytest.raises(RuntimeError, match="moe: load= is not filled where a call is traced"):
        torch.autocast("cpu")(lambda: mixture(x, load=torch.zeros(EXPERTS, dtype=torch.int64)))()
