"""BitLinear, HBitLinear and BitFFN: their quantisers against the papers' formulas, gradients, and export to fastffn."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastffn as ff

torch = pytest.importorskip("torch")

from fastffn.torch import BitFFN, BitLinear, HBitLinear, to_bitlinear  # noqa: E402
from fastffn.torch._bitquant import hadamard, quantised_activations, ternary  # noqa: E402


def close(found: Any, expected: Any, depth: int) -> None:
    """Within the rounding of two f32 sums of so many terms."""
    found, expected = (np.asarray(a.detach() if hasattr(a, "detach") else a, np.float64) for a in (found, expected))
    assert np.abs(found - expected).max() <= depth**0.5 * 2.0**-21 * max(np.abs(expected).max(), 1e-30)


def test_weights_by_hand() -> None:
    weight = torch.tensor([[0.5, -1.5, 0.0, 2.0], [1.0, -1.0, 0.4, -1.6]])  # mean magnitude 1
    codes, scale = ternary(weight)
    assert scale.tolist() == [1.0]
    assert codes.tolist() == [[0, -1, 0, 1], [1, -1, 0, -1]]  # 0.5 and 1.5 are ties: to even, and beyond 1
    codes, scale = ternary(weight, per_row=True)
    assert scale.tolist() == [[1.0], [1.0]]
    codes, scale = ternary(torch.zeros(2, 2))
    assert codes.abs().max() == 0 and scale.item() == np.float32(1e-5)


def test_activations_by_hand() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0]])
    assert quantised_activations(x, 8).tolist() == [[127.0, 0.0, 2.0, -2.0], [0.0] * 4]
    four = quantised_activations(torch.tensor([[1.0, -1.0, 1.0, -1.0, 100.0, -100.0]]), 4)
    step = 34 / 7**0.5
    np.testing.assert_allclose(four[0], [0, 0, 0, 0, 7 * step, -8 * step], rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_activations_are_the_librarys(bits: int) -> None:
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) ** 3
    codes, scale = ff.quantize(x, f"int{bits}")
    found, expected = quantised_activations(x, bits), codes.float() * scale[..., None]
    if bits == 8:
        np.testing.assert_array_equal(found, expected)
    else:  # a mean, whose sum has another order
        np.testing.assert_allclose(found, expected, rtol=300**0.5 * 2.0**-23)


@pytest.mark.parametrize("layer", [BitLinear(12, 6), HBitLinear(12, 6), HBitLinear(16, 6, hadamard="pow2")])
def test_gradients_pass_straight_through(layer: Any) -> None:
    """Those of the linear map with quantised weights and inputs, as if rounding were not there."""
    x = torch.randn(5, layer.in_features, requires_grad=True)
    out = torch.randn(5, 6)
    (layer(x) * out).sum().backward()
    rotated = hadamard(x.detach(), getattr(layer, "hadamard", "none"), getattr(layer, "block", 0))
    inputs = quantised_activations(rotated, layer.activation_bits)
    torch.testing.assert_close(layer.weight.grad, out.T @ inputs)
    torch.testing.assert_close(layer.bias.grad, out.sum(0))
    codes, scale = ternary(layer.weight)
    back = out @ (codes * scale)  # then Hᵀ, which is H of these modes
    torch.testing.assert_close(x.grad, hadamard(back, getattr(layer, "hadamard", "none"), getattr(layer, "block", 0)))


@pytest.mark.parametrize(
    ("size", "mode", "block"),
    [
        (1, "pow2", 0),
        (64, "pow2", 0),
        (48, "block", 16),
        (48, "block", 4),
        (108, "kron", 0),
        (96, "kron", 0),
        (16, "kron", 0),
    ],
)
def test_hadamard_is_the_librarys(size: int, mode: str, block: int) -> None:
    x = torch.randn(7, size)
    close(hadamard(x, mode, block), ff.hadamard(x, mode, **({"block": block} if block else {})), size)
    eye = hadamard(torch.eye(size), mode, block)
    torch.testing.assert_close(eye @ eye.T, torch.eye(size))


LAYERS = [
    (BitLinear, {}),
    (BitLinear, {"activation_bits": 4}),
    (BitLinear, {"scale": "row", "bias": False}),
    (HBitLinear, {}),
    (HBitLinear, {"hadamard": "block", "block": 8, "activation_bits": 8}),
    (HBitLinear, {"hadamard": "kron", "scale": "row"}),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=lambda value: getattr(value, "__name__", None) or str(value))
def test_export_is_the_module(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layer = kind(96, 40, **options).eval()
    x = torch.randn(3, 5, 96)
    packed = layer.export()
    assert packed.dtype == torch.uint8 and ff.info(packed).shape == (40, 96)
    with torch.no_grad():
        expected, found = layer(x), ff.linear(x, packed, layer.bias)
    if kind is BitLinear:
        close(found, expected, 96)
    else:  # sums of the transform may move a value from one code to the next
        error = (found - expected).abs().max() / expected.abs().max()
        assert error <= 0.05
        same = (found - expected).abs().amax(-1) <= 1e-4 * expected.abs().max()
        assert same.float().mean() > 0.5
    np.testing.assert_array_equal(ff.unpack_codes(packed).codes, layer.codes()[0])


FORMS = {
    "b158": {"activation": "relu2"},
    "a48": {"activation": "relu2", "activation_bits": 4, "down_bits": 8},
    "v2": {"activation": "silu", "activation_bits": 4, "hadamard": "block"},
    "plain": {"activation": "silu", "sub_norm": False, "bias": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_layer_exports(form: str) -> None:
    torch.manual_seed(2)
    module = BitFFN(32, 96, **FORMS[form]).eval()
    if module.sub_norm is not None:
        torch.nn.init.uniform_(module.sub_norm, 0.5, 2)
    x = torch.randn(4, 10, 32)
    layer = module.export()
    with torch.no_grad():
        found, expected = layer(x), module(x)
    assert found.shape == x.shape
    # A hidden value on the edge between two codes may fall to either side: a step of one code in few outputs.
    error = (found - expected).abs().amax(-1) / expected.abs().amax(-1)
    assert (error <= 1e-4).float().mean() >= 0.5 and error.max() <= 0.1


def test_the_norm_takes_what_half_precision_cannot_hold() -> None:
    """relu²(gate) ⊙ up beyond 65504, in a module of f16: as the exported layer has it."""
    torch.manual_seed(8)
    module = BitFFN(32, 96, dtype=torch.float16).eval()
    x = 200 * torch.randn(5, 32, dtype=torch.float16)
    gate, up = module.gate_proj(x).float(), module.up_proj(x).float()
    assert (gate.relu() ** 2 * up).abs().max() > 65504
    with torch.no_grad():
        found, expected = module(x).float(), module.export()(x).float()
    assert found.isfinite().all()
    assert (found - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("form", ["b158", "a48", "v2"])
def test_gate_first_exports_the_same_layer(form: str) -> None:
    torch.manual_seed(6)
    module = BitFFN(32, 96, **FORMS[form])
    x = torch.randn(2, 32)
    assert torch.equal(module.export(gate_first=True)(x), module.export()(x))
    assert ff.info(module.export(gate_first=True).w_up).options["order"] == "rows"


def test_state_dict_holds_latent_weights() -> None:
    torch.manual_seed(3)
    module = BitFFN(16, 32)
    names = {f"{part}_proj.weight" for part in ("gate", "up", "down")} | {"sub_norm"}
    assert set(module.state_dict()) == names
    other = BitFFN(16, 32)
    other.load_state_dict(module.state_dict())
    x = torch.randn(3, 16)
    assert torch.equal(other(x), module(x))
    linear = torch.nn.Linear(16, 8)
    layer = BitLinear(16, 8)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.weight, linear.weight)


def test_float_until_quantised() -> None:
    module = BitFFN(16, 32, sub_norm=False, activation="silu")
    x = torch.randn(5, 16)
    quantised = module(x)
    module.quantised = False
    assert not module.quantised and not module.down_proj.quantised
    gate, up, down = (layer.weight for layer in (module.gate_proj, module.up_proj, module.down_proj))
    plain = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(module(x), plain)
    assert not torch.allclose(quantised, plain, rtol=1e-3)


def test_training_lowers_the_loss_of_quantised_weights() -> None:
    torch.manual_seed(4)
    module, x = BitFFN(16, 64), torch.randn(128, 16)
    target = torch.tanh(x @ torch.randn(16, 16))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = (module(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_example_recovers() -> None:
    """Digits: rounding after training costs several points, training with it gives them back, and fastffn agrees."""
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[2] / "python" / "examples" / "train_bitlinear.py"
    command = [sys.executable, str(path), "--form", "v2", "--epochs", "25", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    plain, rounded, trained, ours = (float(share) / 100 for share in re.findall(r"([\d.]+)%", result.stdout))
    assert plain > 0.9 and rounded < plain - 0.05
    assert trained > plain - 0.025 and abs(ours - trained) < 0.01
    differ = re.search(r"(\d+) of 450 predictions differ", result.stdout)
    assert differ is not None and int(differ[1]) <= 2


def test_to_bitlinear() -> None:
    torch.manual_seed(5)
    shared = torch.nn.Linear(8, 8)
    model = torch.nn.Sequential(shared, torch.nn.ReLU(), shared, torch.nn.Linear(8, 2))
    before = dict(model.named_parameters())
    assert to_bitlinear(model, names=["0", "2"], activation_bits=4) is model
    assert model[0] is model[2] and isinstance(model[0], BitLinear) and type(model[3]) is torch.nn.Linear
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model[0].activation_bits == 4
    # Rotated weights compute the same until something is rounded.
    linear = torch.nn.Linear(16, 8)
    rotated = to_bitlinear(torch.nn.Sequential(copy.deepcopy(linear)), hadamard="pow2")[0]
    rotated.quantised = False
    x = torch.randn(4, 16)
    torch.testing.assert_close(rotated(x), linear(x))
    assert not torch.allclose(rotated.weight, linear.weight)
    with pytest.raises(ValueError, match="'9' is no nn.Linear of the module, expected some of 0"):
        to_bitlinear(torch.nn.Sequential(torch.nn.Linear(4, 4)), names=["9"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitLinear(0, 4), "BitLinear: in_features is 0"),
        (lambda: BitLinear(4, 4, activation_bits=2), "activation_bits is 2, expected 8 or 4"),
        (lambda: BitLinear(4, 4, scale="column"), "scale is 'column'"),
        (lambda: HBitLinear(24, 4, hadamard="pow2"), "in_features is 24, hadamard='pow2' needs a power of two"),
        (lambda: HBitLinear(19, 4, hadamard="kron"), "in_features is 19, which hadamard='kron' has no order for"),
        (lambda: HBitLinear(24, 4, block=16), "block is 16, expected a power of two that divides in_features 24"),
        (lambda: HBitLinear(33, 4), "in_features is 33, which is odd and has no blocks of 2 or more"),
        (lambda: HBitLinear(24, 4, block=1), "block is 1, expected a power of two"),
        (lambda: HBitLinear(24, 4, hadamard="kron", block=8), "block is 8 with hadamard='kron'"),
        (lambda: HBitLinear(24, 4, hadamard="walsh"), "hadamard is 'walsh', expected one of"),
        (lambda: BitFFN(4, 8, activation="mish"), "BitFFN: activation is 'mish'"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
