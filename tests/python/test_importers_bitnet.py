"""BitNet checkpoints of transformers: bytes made by hand, both meanings of weight_scale, padding, code 3, and whole layers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from fastffn import importers

D, F = 40, 72
CONFIG: dict[str, Any] = {
    "model_type": "bitnet",
    "hidden_size": D,
    "intermediate_size": F,
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}


def config(**quantization: Any) -> dict[str, Any]:
    return {**CONFIG, "quantization_config": {"quant_method": "bitnet", **quantization}}


def checkpoint(
    seed: int = 0, scale_dtype: Any = np.float32, sub_norm: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors under "mlp.", and the codes behind them."""
    rng = np.random.default_rng(seed)
    codes, tensors = {}, {}
    for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        codes[name] = rng.integers(-1, 2, shape).astype(np.int8)
        tensors[f"mlp.{name}_proj.weight"] = importers.pack_bitnet(codes[name])
        tensors[f"mlp.{name}_proj.weight_scale"] = np.array([rng.uniform(0.5, 2)], scale_dtype)
    if sub_norm:
        tensors["mlp.ffn_sub_norm.weight"] = rng.uniform(0.5, 2, F).astype(np.float32)
    return tensors, codes


def test_bytes_by_hand() -> None:
    """Bits 2i + 1:2i of byte (r, k) are row i · 2 + r of eight rows."""
    # Rows 0, 2, 4, 6 of column 0 are 0, -1, 1, 1: codes 1, 0, 2, 2, the lowest bits first.
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    expected = np.array([[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]], np.int8)
    np.testing.assert_array_equal(importers.unpack_bitnet(packed), expected)
    np.testing.assert_array_equal(importers.pack_bitnet(expected), packed)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 61])
def test_padding(rows: int) -> None:
    codes = np.random.default_rng(rows).integers(-1, 2, (rows, 13)).astype(np.int8)
    packed = importers.pack_bitnet(codes)
    assert packed.shape == (-(-rows // 4), 13) and packed.dtype == np.uint8
    np.testing.assert_array_equal(importers.unpack_bitnet(packed, rows), codes)
    whole = importers.unpack_bitnet(packed)  # untrimmed: padding reads -1
    np.testing.assert_array_equal(whole[:rows], codes)
    assert (whole[rows:] == -1).all()
    for wrong in (4 * len(packed) + 1, 4 * len(packed) - 4):
        with pytest.raises(ValueError, match="which holds"):
            importers.unpack_bitnet(packed, wrong)


def test_padding_that_holds_weights_is_refused() -> None:
    packed = importers.pack_bitnet(np.zeros((8, 3), np.int8))
    with pytest.raises(ValueError, match="rows from 7 on are not padding"):
        importers.unpack_bitnet(packed, 7)


def test_code_three_is_refused_with_its_place() -> None:
    packed = importers.pack_bitnet(np.zeros((12, 5), np.int8))
    packed[2, 4] |= 0b00110000  # field 2: row 2 · 3 + 2
    with pytest.raises(ValueError, match="code 3, which stands for no weight, at row 8, column 4"):
        importers.unpack_bitnet(packed)
    tensors, _ = checkpoint()
    tensors["mlp.up_proj.weight"][0, 0] = 255
    with pytest.raises(ValueError, match=r"mlp.up_proj.weight: .*code 3.* at row 0, column 0"):
        importers.load_bitnet(tensors, CONFIG, prefix="mlp.")


@pytest.mark.parametrize("wrong", [np.zeros((2, 3), np.int8), np.zeros(4, np.uint8), np.zeros((0, 3), np.uint8)])
def test_packed_arrays_that_are_none(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        importers.unpack_bitnet(wrong)
    with pytest.raises(ValueError, match="expected .N, K. of -1, 0 and 1"):
        importers.pack_bitnet(np.full((2, 3), 2))


@pytest.mark.parametrize(("linear_class", "inverse"), [("autobitlinear", False), ("bitlinear", True)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_both_meanings_of_weight_scale(linear_class: str, inverse: bool, dtype: Any) -> None:
    tensors, codes = checkpoint(scale_dtype=dtype, sub_norm=False)
    layer = importers.load_bitnet(tensors, config(linear_class=linear_class), prefix="mlp.")
    assert layer.activation == "relu2" and layer.sub_norm is None
    for name in codes:
        stored = float(tensors[f"mlp.{name}_proj.weight_scale"][0])
        held = ff.unpack_codes(getattr(layer, f"w_{name}"))
        np.testing.assert_array_equal(held.codes, codes[name])
        assert (held.scales == np.float32(1 / stored if inverse else stored)).all()
        exported = importers.export_bitnet(getattr(layer, f"w_{name}"), linear_class)
        np.testing.assert_array_equal(exported.weight, tensors[f"mlp.{name}_proj.weight"])
        # Multiplied: the same bits. Divided: those of f32's reciprocal, and the same once in bf16, where it came from there.
        if not inverse or dtype is not np.float32:
            assert exported.weight_scale.astype(dtype)[0] == tensors[f"mlp.{name}_proj.weight_scale"][0]
        else:
            assert abs(float(exported.weight_scale[0]) / stored - 1) <= 2.0**-23


def test_which_meaning() -> None:
    tensors, _ = checkpoint(sub_norm=False)

    def scale_of(settings: Any, **options: Any) -> float:
        layer = importers.load_bitnet(tensors, settings, prefix="mlp.", **options)
        return float(ff.unpack_codes(layer.w_up).scales[0, 0])

    stored = float(tensors["mlp.up_proj.weight_scale"][0])
    assert scale_of(CONFIG) == np.float32(stored)
    # transformers' own default where a bitnet config names no class.
    assert scale_of(config()) == np.float32(1 / stored)
    assert scale_of(config(), linear_class="autobitlinear") == np.float32(stored)
    plain = {name: value for name, value in CONFIG.items() if name != "quantization_config"}
    both = "'autobitlinear' .multiply by weight_scale. or 'bitlinear' .divide by weight_scale."
    for unknown in (plain, config(linear_class="other")):
        with pytest.raises(ValueError, match=both):
            importers.load_bitnet(tensors, unknown, prefix="mlp.")
    with pytest.raises(ValueError, match="quant_method is 'gptq'"):
        importers.load_bitnet(tensors, {**CONFIG, "quantization_config": {"quant_method": "gptq"}}, prefix="mlp.")
    with pytest.raises(ValueError, match="use_rms_norm"):
        importers.load_bitnet(tensors, config(use_rms_norm=True), prefix="mlp.")


def oracle(x: np.ndarray, tensors: dict[str, Any], codes: dict[str, Any]) -> np.ndarray:
    """The layer in float64, activations quantised to eight bits as the kernels do."""

    def linear(rows: np.ndarray, name: str) -> np.ndarray:
        scale = np.maximum(np.abs(rows).max(-1, keepdims=True), 1e-5) / 127
        q = np.clip(np.rint(rows / scale), -127, 127)
        return q * scale @ (codes[name] * float(tensors[f"mlp.{name}_proj.weight_scale"][0])).T

    hidden = np.maximum(linear(x, "gate"), 0) ** 2 * linear(x, "up")
    if "mlp.ffn_sub_norm.weight" in tensors:
        hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5) * tensors["mlp.ffn_sub_norm.weight"]
    return linear(hidden, "down")


@pytest.mark.parametrize("sub_norm", [False, True])
def test_a_whole_layer(sub_norm: bool) -> None:
    tensors, codes = checkpoint(1, sub_norm=sub_norm)
    layer = importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    assert (layer.sub_norm is not None) == sub_norm and layer.nbytes > 0
    x = np.random.default_rng(2).standard_normal((5, D)).astype(np.float32)
    y = layer(x)
    expected = oracle(x.astype(np.float64), tensors, codes)
    # A hidden value on the edge between two codes may fall to either: one step of one code in F.
    assert np.abs(y - expected).max() <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_gate_first_is_the_same_layer(tokens: int) -> None:
    tensors, _ = checkpoint(7)
    plain = importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    layer = importers.load_bitnet(tensors, CONFIG, prefix="mlp.", gate_first=True)
    assert ff.info(layer.w_up).options["order"] == "rows" and ff.info(layer.w_down).options["order"] == "columns"
    x = np.random.default_rng(8).standard_normal((tokens, D)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), plain(x))


def test_arrays_of_torch_and_biases() -> None:
    torch = pytest.importorskip("torch")
    tensors, _ = checkpoint(3, sub_norm=False)
    tensors["mlp.up_proj.bias"] = np.linspace(-1, 1, F, dtype=np.float32)
    expected = importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    as_torch = {
        name: torch.from_numpy(a).to(torch.bfloat16 if name.endswith("scale") else None) for name, a in tensors.items()
    }
    tensors = {n: a.astype(ml_dtypes.bfloat16) if n.endswith("scale") else a for n, a in tensors.items()}
    expected = importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    found = importers.load_bitnet(as_torch, CONFIG, prefix="mlp.")
    for name in ("w_gate", "w_up", "w_down", "b_up"):
        np.testing.assert_array_equal(np.asarray(getattr(found, name)), getattr(expected, name))


def test_weights_of_online_quantisation() -> None:
    """Floats, as training left them: absmean of the matrix."""
    tensors, _ = checkpoint(4)
    rng = np.random.default_rng(4)
    for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        tensors[f"mlp.{name}_proj.weight"] = rng.standard_normal(shape).astype(np.float32)
    with pytest.raises(ValueError, match="and has a weight_scale, expected uint8"):
        importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    tensors = {name: a for name, a in tensors.items() if not name.endswith("scale")}
    layer = importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    np.testing.assert_array_equal(layer.w_up, ff.pack(tensors["mlp.up_proj.weight"], "ternary"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp.up_proj.weight": None}, "no tensor 'mlp.up_proj.weight'"),
        ({"mlp.gate_proj.weight_scale": None}, "no tensor 'mlp.gate_proj.weight_scale'"),
        ({"mlp.gate_proj.weight_scale": np.zeros(1, np.float32)}, "expected one finite number other than 0"),
        ({"mlp.gate_proj.weight_scale": np.ones(3, np.float32)}, "expected one finite number other than 0"),
        ({"mlp.down_proj.weight": np.zeros((F // 4, D), np.uint8)}, "down_proj.weight has shape"),
        ({"mlp.ffn_sub_norm.weight": np.ones(D, np.float32)}, "ffn_sub_norm.weight has shape"),
    ],
)
def test_broken_checkpoints(change: dict[str, Any], message: str) -> None:
    tensors, _ = checkpoint()
    tensors = {name: a for name, a in {**tensors, **change}.items() if a is not None}
    with pytest.raises(ValueError, match=message):
        importers.load_bitnet(tensors, CONFIG, prefix="mlp.")
    with pytest.raises(ValueError, match="no tensor's name starts with"):
        importers.load_bitnet(tensors, CONFIG, prefix="other.")


def test_configs_that_do_not_fit() -> None:
    tensors, _ = checkpoint()
    for change, message in (({"hidden_act": "mish"}, "hidden_act 'mish'"), ({"hidden_size": None}, "expected both")):
        with pytest.raises(ValueError, match=message):
            importers.load_bitnet(tensors, {**CONFIG, **change}, prefix="mlp.")


def test_exports_that_do_not_fit() -> None:
    w = np.random.default_rng(5).standard_normal((8, 64)).astype(np.float32)
    with pytest.raises(ValueError, match="several scales"):
        importers.export_bitnet(ff.pack(w, "ternary", scale="row"), "bitlinear")
    with pytest.raises(ValueError, match="packed holds 'int8'"):
        importers.export_bitnet(ff.pack(w, "int8"), "bitlinear")
    with pytest.raises(ValueError, match="linear_class is 'x'"):
        importers.export_bitnet(ff.pack(w, "ternary"), "x")


def test_like_transformers() -> None:
    torch = pytest.importorskip("torch")
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    codes = np.random.default_rng(6).integers(-1, 2, (24, 10)).astype(np.int8)
    packed = bitnet.pack_weights(torch.from_numpy(codes.copy()))
    np.testing.assert_array_equal(importers.pack_bitnet(codes), packed.numpy())
    np.testing.assert_array_equal(importers.unpack_bitnet(packed), codes)
