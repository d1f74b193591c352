"""Modules of fastffn.torch: what they compute, and how their weights are saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

import fastffn as ff

torch = pytest.importorskip("torch")

from fastffn.torch import FFN  # noqa: E402

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
