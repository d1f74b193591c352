"""What torch would let pass in silence: mixed devices, dropped gradients and tangents, absent buffers, layouts."""

import copy

import numpy as np
import pytest

import fastffn as ff

torch = pytest.importorskip("torch")
import fastffn.torch as ft  # noqa: E402

D, H = 32, 64


def packed(out: int, into: int, *count: int):
    return ff.pack(torch.from_numpy(np.random.default_rng(out).standard_normal((*count, out, into), np.float32)), "f32")


W_UP, W_DOWN, UP, DOWN = packed(H, D), packed(D, H), packed(H, D, 3), packed(D, H, 3)
X = torch.linspace(-1, 1, 4 * D).reshape(4, D)
IDS, WEIGHTS = torch.tensor([[0, 1]] * 4, dtype=torch.int32), torch.full((4, 2), 0.5)


def moe(x=X, ids=IDS, weights=WEIGHTS, **options):
    return ft.moe(x, ids, weights, UP, DOWN, activation="relu", **options)


def modules():
    return [
        ft.FFN(D, H, activation="gelu", format="f32", trainable=True),
        ft.LowRankFFN(D, H, rank=4, activation="gelu"),
        ft.MoE(D, 16, experts=3, k=2, activation="silu", trainable=True),
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda: ft.linear(X, W_UP, torch.zeros(H, device="meta")),
        lambda: ft.linear(X, W_UP, out=torch.empty(4, H, device="meta")),
        lambda: ft.ffn(X, W_UP, W_DOWN, None, torch.zeros(H, device="meta"), activation="relu"),
        lambda: moe(ids=IDS.to("meta")),
        lambda: moe(weights=WEIGHTS.to("meta")),
    ],
)
def test_a_meta_tensor_among_others_is_refused(call):
    with pytest.raises(ValueError, match="expected one device"):
        call()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ft.linear(x, W_UP),
        lambda x: ft.router_logits(x, W_UP),
        lambda x: ft.ffn(x, W_UP, W_DOWN, activation="silu"),
        lambda x: moe(x),
        lambda x: ft.route_topk(x, 2)[1],
        *modules(),
    ],
)
def test_second_derivatives_are_refused(function):
    x = X.clone().requires_grad_()
    y = function(x)
    # A squared result, so that the gradient depends on x even where the function is linear.
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("module", modules())
def test_tangents_are_refused(module):
    with pytest.raises(RuntimeError, match="tangent"):
        torch.func.jvp(module, (X,), (X,))


def test_gradients_of_parts_of_experts_are_refused():
    gate = torch.zeros(D, requires_grad=True)
    shared = ff.SharedExperts(W_UP, W_DOWN, gate=gate)
    for call in (
        lambda: moe(shared=shared),
        lambda: moe(X.clone().requires_grad_(), shared=shared),
        lambda: moe(b_up=torch.zeros(3, H, requires_grad=True)),
    ):
        with pytest.raises(RuntimeError, match="requires them too"):
            call()
    with torch.no_grad():
        assert moe(shared=shared).shape == X.shape


def test_sub_norm_of_experts_is_not_dropped_where_a_call_is_recorded():
    normed = ff.SharedExperts(W_UP, W_DOWN, sub_norm=torch.ones(H))
    direct = moe(shared=normed)
    assert not torch.equal(direct, moe(shared=ff.SharedExperts(W_UP, W_DOWN)))
    for options in ({"shared": normed}, {"sub_norm": torch.ones(3, H)}):
        with pytest.raises(RuntimeError, match="sub_norm"), torch.autocast("cpu", torch.bfloat16):
            moe(**options)


def test_a_shared_layer_of_another_kind_is_refused():
    layer = ft.MoE(D, 16, experts=3, k=2, activation="silu", format="f32", trainable=True)
    weights = (layer.router, layer.w_up, layer.w_down, layer.w_gate)
    for shared, match in (
        (ft.FFN(D, 16, activation="relu"), "activation"),
        (ft.FFN(D, 16, activation="silu", sub_norm=True), "sub_norm"),
    ):
        with pytest.raises(ValueError, match=match):
            ft.MoE.from_weights(*weights, k=2, activation="silu", shared=shared)


@pytest.mark.parametrize(
    "options", [{"sub_norm": True}, {"sub_norm": True, "bias": True, "gated": True}, {"bias": True}]
)
def test_export_of_a_module_with_absent_buffers(options):
    layer = ft.FFN(D, H, activation="relu", **options)
    program = torch.export.export(layer, (X,))
    assert torch.equal(program.module()(X), layer(X))


def test_layouts():
    with pytest.raises(ValueError, match="layout nested"):
        ft.linear(torch.nested.nested_tensor([X, X[:2]]), W_UP)
    negated = torch.zeros(4, H, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    with pytest.raises(ValueError, match="lazily negated"):
        ft.linear(X, W_UP, out=negated)


def test_an_empty_packed_weight_does_not_load():
    layer = ft.FFN(D, H, activation="relu")
    before, state = layer(X), copy.deepcopy(layer.state_dict())
    state["w_up"] = state["w_up"][:0]
    with pytest.raises(RuntimeError, match="w_up is empty"):
        layer.load_state_dict(state)
    assert torch.equal(layer(X), before)


def test_hard_trees_are_traced_whole():
    layer = ft.FFF(D, 4, depth=3, trees=2).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for tokens in (4, 1, 7):
            x = torch.linspace(-2, 2, tokens * D).reshape(tokens, D).sin()
            torch.testing.assert_close(compiled(x), layer(x))
        count = torch.export.Dim("count", min=1, max=64)
        program = torch.export.export(layer, (X,), dynamic_shapes=({0: count},))
        torch.testing.assert_close(program.module()(x), layer(x))
