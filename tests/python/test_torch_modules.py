"""Modules of fastffn.torch: what they compute, and how their weights are saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

import fastffn as ff

torch = pytest.importorskip("torch")

from fastffn.torch import FFF, FFN, AllNodeFFF, LowRankFFN, MoE, PackedFFF  # noqa: E402

D_MODEL, D_FF = 40, 72


def linears(gated: bool = True) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    gate = torch.nn.Linear(D_MODEL, D_FF) if gated else None
    return torch.nn.Linear(D_MODEL, D_FF), torch.nn.Linear(D_FF, D_MODEL), gate


def tokens(*shape: int) -> Any:
    return torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "format", ["f32", "bf16", "int8", {"up": "int4:group=32", "down": ("ternary", {"scale": "row"})}]
)
def test_ffn_is_the_function(format: Any, gated: bool) -> None:
    up, down, gate = linears(gated)
    layer = FFN.from_linear(up, down, gate, activation="silu", format=format)
    x = tokens(3, 5)
    weights = [layer.w_up, layer.w_down, layer.w_gate, up.bias, down.bias, gate.bias if gated else None]
    with torch.no_grad():
        expected = ff.ffn(x, *weights, activation="silu")
    assert torch.equal(layer(x), expected)
    if format == "f32":
        with torch.no_grad():
            hidden = torch.nn.functional.silu(gate(x)) * up(x) if gated else torch.nn.functional.silu(up(x))
            assert torch.allclose(layer(x), down(hidden), atol=1e-5)


def test_ffn_is_saved_and_loaded() -> None:
    layer, x = FFN.from_linear(*linears(), activation="silu", format="int8"), tokens(4)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    for shell in (
        FFN(D_MODEL, D_FF, activation="silu", gated=True, bias=True, device="meta"),
        FFN(D_MODEL, D_FF, activation="silu", gated=True, bias=True, format="f16"),
    ):
        for assign in (False, True):
            other = copy.deepcopy(shell)
            other.load_state_dict(state, assign=assign)
            assert torch.equal(other(x), expected)


def test_ffn_refuses_weights_that_are_not_its_own() -> None:
    layer = FFN.from_linear(*linears(), activation="silu")
    for change, message in (
        (lambda w: w.bitwise_xor(torch.eye(1, w.numel(), dtype=torch.uint8)[0].roll(200)), "w_up: .*checksum differs"),
        (lambda w: w[:-64], "w_up: .*"),
        (lambda w: torch.zeros(500, dtype=torch.uint8), "w_up: .*"),
        (lambda w: torch.zeros(D_FF, D_MODEL), r"w_up is a torch.float32 tensor of shape \(72, 40\)"),
        (lambda w: ff.pack(torch.zeros(8, 8), "f32"), r"w_up holds weights of shape \(8, 8\), expected \(72, 40\)"),
    ):
        state = layer.state_dict()
        before = layer.w_up.clone()
        with pytest.raises(RuntimeError, match=f"FFN: {message}"):
            layer.load_state_dict({**state, "w_up": change(state["w_up"])})
        assert torch.equal(layer.w_up, before)


def test_ffn_casts_its_biases_alone() -> None:
    layer = FFN.from_linear(*linears(), activation="gelu").to(torch.bfloat16)
    assert layer.w_up.dtype == torch.uint8 and layer.b_up.dtype == torch.bfloat16
    y = layer(tokens(2).bfloat16())
    assert y.dtype == torch.bfloat16


def moe(**options: Any) -> Any:
    torch.manual_seed(0)
    route = {"experts": 4, "k": 2, "shared_d_ff": 16, "shared_gate": True, "renormalize": True}
    return MoE(D_MODEL, 24, activation="silu", bias=True, **{**route, **options})


def test_moe_is_the_functions() -> None:
    layer, x = moe(format={"up": "bf16", "down": "int8"}), tokens(3, 5)
    ids, weights = ff.route_topk(x.float() @ layer.router.T, 2, renormalize=True)
    s = layer.shared
    shared = ff.SharedExperts(s.w_up, s.w_down, s.w_gate, s.b_up, s.b_down, s.b_gate, gate=layer.shared_gate)
    expected = ff.moe(
        x, ids, weights, layer.w_up, layer.w_down, layer.w_gate, layer.b_up, layer.b_down, layer.b_gate,
        activation="silu", shared=shared,
    )  # fmt: skip
    assert torch.allclose(layer(x), expected, atol=1e-6)
    half = layer.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_moe_is_saved_and_loaded() -> None:
    layer, x = moe(format="int8"), tokens(7)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
    for assign in (False, True):
        shell = moe(device="meta")
        assert shell.w_up.is_meta and not shell.w_up.numel()
        shell.load_state_dict(layer.state_dict(), assign=assign)
        assert torch.equal(shell(x), expected)
    state = layer.state_dict()
    state["w_down"] = ff.pack(torch.zeros(4, 24, D_MODEL), "int8")
    with pytest.raises(RuntimeError, match=r"MoE: w_down holds weights of shape \(4, 24, 40\), expected \(4, 40, 24\)"):
        layer.load_state_dict(state)
    state["w_down"] = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="MoE: w_down: "):
        layer.load_state_dict(state)


def test_moe_of_an_imported_layer() -> None:
    from fastffn.importers.layer import MoeLayer

    w = [
        ff.pack(torch.randn(4, *s, generator=torch.Generator().manual_seed(3)) / 8, "bf16")
        for s in ((24, D_MODEL),) * 2
    ]
    down = ff.pack(torch.randn(4, D_MODEL, 24), "bf16")
    shared = ff.SharedExperts(
        *(ff.pack(torch.randn(*s) / 8, "f32") for s in ((16, D_MODEL), (D_MODEL, 16), (16, D_MODEL)))
    )
    router = ff.pack(torch.randn(4, D_MODEL), "f32")
    layer = MoeLayer(
        router, w[0], down, w[1], 2, "silu", {"score": "sigmoid", "scale": 2.0}, torch.randn(4), shared=shared
    )
    x = tokens(9)
    assert torch.allclose(MoE.from_layer(layer)(x), layer(x), atol=1e-5)


def test_lowrank_factorises_and_packs() -> None:
    up, down, gate = linears()
    layer = LowRankFFN.from_dense(up, down, gate, activation="gelu", rank=D_MODEL, factors="f32")  # full rank
    dense = FFN.from_linear(up, down, gate, activation="gelu", format="f32")
    x = tokens(6)
    assert torch.allclose(layer(x), dense(x), atol=1e-5) and torch.equal(layer.packed()(x), layer(x))
    small = LowRankFFN.from_dense(
        up, down, activation="gelu", ratio=0.5, method="whitened", calibration={"up": tokens(200), "down": torch.rand(200, D_FF)}
    )  # fmt: skip
    assert small.up_u.shape[0] < D_MODEL and "lowrank" in repr(small.packed())
    other = LowRankFFN(
        D_MODEL, D_FF, rank={"up": small.up_u.shape[0], "down": small.down_u.shape[0]}, activation="gelu", bias=True
    )
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), small(x))
    with pytest.raises(ValueError, match="LowRankFFN: rank is 41, expected 1 to 40"):
        LowRankFFN(D_MODEL, D_FF, rank=41, activation="gelu")


def test_sub_norm_of_a_module() -> None:
    up, down, gate = linears()
    gamma = torch.rand(D_FF) + 0.5
    weights = [layer.weight for layer in (up, down, gate)]
    layer, x = FFN.from_weights(*weights, activation="relu2", sub_norm=gamma, sub_norm_eps=1e-3), tokens(5)
    assert torch.equal(
        layer(x),
        ff.ffn(x, layer.w_up, layer.w_down, layer.w_gate, activation="relu2", sub_norm=gamma, sub_norm_eps=1e-3),
    )
    shell = FFN(D_MODEL, D_FF, activation="relu2", gated=True, sub_norm=True, sub_norm_eps=1e-3, device="meta")
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell(x), layer(x))
    with pytest.raises(ValueError, match="FFN: sub_norm is for packed weights"):
        FFN(D_MODEL, D_FF, activation="relu2", sub_norm=True, trainable=True)


@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_packed_trees_are_the_trained_ones(form: str) -> None:
    torch.manual_seed(0)
    if form == "leaf":
        trained: Any = FFF(D_MODEL, 8, depth=3, trees=2, master_width=8).eval()
    else:
        trained = AllNodeFFF(D_MODEL, depth=4, activation="gelu").eval()
    layer, x = PackedFFF(trained), tokens(3, 7)
    with torch.no_grad():
        assert torch.allclose(layer(x), trained(x), atol=1e-5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    torch.compiler.reset()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    other = PackedFFF(type(trained).from_weights(trained.export()))
    state = layer.state_dict()
    other.load_state_dict(state)
    state["tree"] = state["tree"].clone()
    state["tree"][300] ^= 1
    with pytest.raises(RuntimeError, match="PackedFFF: tree: "):
        other.load_state_dict(state)


def test_what_modules_refuse() -> None:
    for make, message in (
        (lambda: FFN(0, 8, activation="gelu"), "FFN: d_model is 0, expected at least 1"),
        (lambda: FFN(8, 8, activation="geglu"), "FFN: activation is 'geglu', expected one of identity"),
        (lambda: FFN(8, 8, activation="gelu", format="int3"), "FFN: format is 'int3', expected one of f32"),
        (lambda: FFN(8, 8, activation="gelu", format="int4:group"), "expected name:option=value"),
        (lambda: FFN(8, 8, activation="gelu", format={"up": "f32"}), r"FFN: format has the parts \['up'\]"),
        (lambda: MoE(8, 8, experts=2, k=3, activation="gelu"), "MoE: k is 3, expected at most 2"),
        (
            lambda: FFN.from_weights(torch.zeros(8, 4), torch.zeros(4, 9), activation="gelu"),
            r"FFN: w_down has shape \(4, 9\), expected \(4, 8\) from w_up \(8, 4\)",
        ),
        (
            lambda: FFN.from_weights(torch.zeros(8, 4), torch.zeros(4, 8), None, torch.zeros(9), activation="gelu"),
            r"FFN: b_up has shape \(9,\), expected \(8,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="FFN: format is 3, expected a name"):
        FFN(8, 8, activation="gelu", format=3)
    trainable = FFN(8, 8, activation="gelu", trainable=True)
    with pytest.raises(RuntimeError, match="FFN: w_up holds packed weights, expected plain ones of shape"):
        trainable.load_state_dict(trainable.packed().state_dict())
    with pytest.raises(RuntimeError, match="w_up is a torch.float32 tensor"):
        trainable.packed().load_state_dict(trainable.state_dict())
