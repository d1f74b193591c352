"""GGUF's quantised types: bytes made by hand, round trips byte for byte, every variant and every way to be damaged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from fastffn import importers
from report.report_files import gguf_bytes

BLOCKS = {"TQ1_0": (256, 54), "TQ2_0": (256, 66), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34)}
NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "I2_S": 36}
TERNARY = ("TQ1_0", "TQ2_0", "I2_S")
kinds = pytest.mark.parametrize("kind", BLOCKS)


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def random_weight(kind: str, shape: tuple[int, ...], seed: int = 0, variant: str | None = None) -> Any:
    rng = np.random.default_rng(seed)
    low, high = (-1, 2) if kind in TERNARY else (-128, 128) if kind == "Q8_0" else (0, 16)
    codes = rng.integers(low, high, shape).astype(np.uint8 if kind in ("Q4_0", "Q4_1") else np.int8)
    if kind == "I2_S":
        return importers.QuantisedWeight(kind, codes, np.array([0.37], np.float32), variant=variant)
    groups = (*shape[:-1], shape[-1] // BLOCKS[kind][0])
    scales = rng.uniform(-1, 1, groups).astype(np.float16)
    minima = rng.uniform(-1, 0, groups).astype(np.float16) if kind == "Q4_1" else None
    return importers.QuantisedWeight(kind, codes, scales, minima, group=BLOCKS[kind][0])


def test_tq2_0_by_hand() -> None:
    """Byte m of 32 holds weights m, 32 + m, 64 + m, 96 + m, lowest bits first; then the next 128."""
    raw = bytearray(b"\x55" * 64 + half(0.5))  # all codes 1: weights 0
    raw[3] = 0b10_01_00_10  # weights 3, 35, 67, 99 = 1, -1, 0, 1
    raw[32] = 0b01_01_01_00  # weight 128 = -1
    weight = importers.gguf_decode(bytes(raw), "TQ2_0", (1, 256))
    expected = np.zeros((1, 256), np.int8)
    expected[0, [3, 35, 67, 99, 128]] = 1, -1, 0, 1, -1
    np.testing.assert_array_equal(weight.codes, expected)
    assert weight.scales.tolist() == [[0.5]] and weight.group == 256
    np.testing.assert_array_equal(weight.dequantised(), expected * np.float32(0.5))


def test_tq1_0_by_hand() -> None:
    """byte = ceil(256 · v / 243), v's first trit the most significant; the last four bytes hold four trits, times 3."""

    def byte(*weights: int) -> int:
        value = 0
        for weight in weights:
            value = value * 3 + weight + 1
        return -(-256 * value // 243)

    raw = bytearray([byte(0, 0, 0, 0, 0)] * 48 + [byte(0, 0, 0, 0, -1)] * 4)
    raw[2] = byte(1, -1, 0, 1, -1)  # weights 2, 34, 66, 98, 130
    raw[33] = byte(-1, -1, 1, 1, 0)  # weights 161, 177, 193, 209, 225
    raw[51] = byte(1, 1, -1, 0, -1)  # weights 243, 247, 251, 255
    weight = importers.gguf_decode(bytes(raw) + half(-2), "TQ1_0", (1, 256))
    expected = np.zeros((1, 256), np.int8)
    expected[0, [2, 34, 66, 98, 130]] = 1, -1, 0, 1, -1
    expected[0, [161, 177, 193, 209, 225]] = -1, -1, 1, 1, 0
    expected[0, [243, 247, 251, 255]] = 1, 1, -1, 0
    np.testing.assert_array_equal(weight.codes, expected)
    assert weight.scales.tolist() == [[-2.0]]


def test_i2_s_by_hand() -> None:
    """The same bytes in all three orders, and the scale behind them."""
    raw = bytearray(b"\x55" * 128)  # 4 rows of 128, all 0
    raw[1] = 0b10_00_01_10
    data = bytes(raw) + struct.pack("<f", 0.25) + bytes(28)
    places = {
        "x86": [(0, 1), (0, 33), (0, 65), (0, 97)],
        "arm": [(0, 1), (0, 17), (0, 33), (0, 49)],
        "rows": [(0, 1), (1, 1), (2, 1), (3, 1)],
    }
    for variant, where in places.items():
        weight = importers.gguf_decode(data, "I2_S", (4, 128), variant=variant)
        expected = np.zeros((4, 128), np.int8)
        for place, value in zip(where, (1, -1, 0, 1), strict=True):
            expected[place] = value
        np.testing.assert_array_equal(weight.codes, expected)
        assert weight.scales.tolist() == [0.25] and weight.variant == variant
        assert importers.gguf_encode(weight).tobytes() == data


def test_q4_and_q8_by_hand() -> None:
    nibbles = bytes([0x10 * (15 - i) + i for i in range(16)])  # low halves first: 0 … 15, then 15 … 0
    codes = [*range(16), *range(15, -1, -1)]
    weight = importers.gguf_decode(half(0.5) + nibbles, "Q4_0", (1, 32))
    assert weight.codes.tolist() == [codes] and weight.minima is None
    np.testing.assert_array_equal(weight.dequantised(), 0.5 * (np.float32([codes]) - 8))
    weight = importers.gguf_decode(half(0.5) + half(-3) + nibbles, "Q4_1", (1, 32))
    assert weight.codes.tolist() == [codes] and weight.minima is not None
    np.testing.assert_array_equal(weight.dequantised(), 0.5 * np.float32([codes]) - 3)
    numbers = np.arange(-128, 128, 8, dtype=np.int8)
    weight = importers.gguf_decode(half(2) + numbers.tobytes(), "Q8_0", (1, 32))
    np.testing.assert_array_equal(weight.codes[0], numbers)
    np.testing.assert_array_equal(weight.dequantised()[0], numbers * np.float32(2))


@kinds
@pytest.mark.parametrize("shape", [(1, 256), (5, 768), (2, 3, 512)])
def test_round_trips(kind: str, shape: tuple[int, ...]) -> None:
    """Codes to bytes to codes, and bytes to codes to bytes, with scales of any bits."""
    weight = random_weight(kind, shape)
    raw = importers.gguf_encode(weight)
    size, block = BLOCKS[kind]
    assert raw.size == np.prod(shape) // size * block
    found = importers.gguf_decode(raw, kind, shape)
    np.testing.assert_array_equal(found.codes, weight.codes)
    np.testing.assert_array_equal(found.scales, weight.scales)
    assert (found.minima is None) == (weight.minima is None)
    if kind in ("Q4_0", "Q4_1", "Q8_0"):  # any byte is a code, any half a scale, NaN too
        raw = np.random.default_rng(1).integers(0, 256, raw.size).astype(np.uint8)
    else:
        at = 52 if kind == "TQ1_0" else 64
        raw.reshape(-1, block)[:, at:] = np.random.default_rng(1).integers(0, 256, (raw.size // block, 2))
    np.testing.assert_array_equal(importers.gguf_encode(importers.gguf_decode(raw.tobytes(), kind, shape)), raw)


@pytest.mark.parametrize("variant", ["x86", "arm", "rows"])
def test_i2_s_round_trips(variant: str) -> None:
    weight = random_weight("I2_S", (8, 384), variant=variant)
    raw = importers.gguf_encode(weight)
    assert raw.size == 8 * 384 // 4 + 32
    raw[-20:] = 7  # what lies behind the scale is kept
    found = importers.gguf_decode(raw, "I2_S", (8, 384), variant=variant)
    np.testing.assert_array_equal(found.codes, weight.codes)
    np.testing.assert_array_equal(importers.gguf_encode(found), raw)


def test_i2_s_is_never_guessed() -> None:
    raw = importers.gguf_encode(random_weight("I2_S", (8, 128), variant="x86"))
    with pytest.raises(ValueError, match="may be in 'x86' or 'arm' or 'rows'. Pass variant="):
        importers.gguf_decode(raw, "I2_S", (8, 128))
    # Where the shape leaves one order only, that is it.
    for shape, variant in (((3, 64), "arm"), ((4, 100), "rows")):
        raw = importers.gguf_encode(random_weight("I2_S", shape, variant=variant))
        assert importers.gguf_decode(raw, "I2_S", shape).variant == variant
    with pytest.raises(ValueError, match="none of them"):
        importers.gguf_decode(bytes(75 + 32), "I2_S", (3, 100))
    with pytest.raises(ValueError, match="'rows' holds multiples of 4 rows and 1 columns, not shape .3, 64."):
        importers.gguf_decode(bytes(48 + 32), "I2_S", (3, 64), variant="rows")
    with pytest.raises(ValueError, match="variant is 'neon', expected one of 'x86', 'arm', 'rows'"):
        importers.gguf_decode(bytes(64), "I2_S", (1, 128), variant="neon")
    with pytest.raises(ValueError, match="variant is for I2_S, TQ2_0 has none"):
        importers.gguf_decode(bytes(66), "TQ2_0", (1, 256), variant="x86")


@pytest.mark.parametrize("kind", [*BLOCKS, "I2_S"])
def test_truncated_and_foreign_bytes(kind: str) -> None:
    raw = importers.gguf_encode(random_weight(kind, (2, 256), variant="x86"))
    options = {"variant": "x86"} if kind == "I2_S" else {}
    for wrong, which in ((raw[:-1], "truncated"), (raw[:0], "truncated"), (np.append(raw, 0), "too long")):
        with pytest.raises(ValueError, match=f"takes {raw.size} bytes, raw has .*{which}"):
            importers.gguf_decode(wrong.astype(np.uint8), kind, (2, 256), **options)
    with pytest.raises(ValueError, match="raw has dtype int32"):
        importers.gguf_decode(raw.astype(np.int32), kind, (2, 256), **options)
    with pytest.raises(ValueError, match="expected .out_features, in_features."):
        importers.gguf_decode(raw, kind, (512,), **options)
    if kind != "I2_S":
        with pytest.raises(ValueError, match="needs in_features in multiples of"):
            importers.gguf_decode(raw, kind, (2, 250))


def test_codes_that_stand_for_no_weight() -> None:
    raw = importers.gguf_encode(random_weight("TQ2_0", (3, 256)))
    raw[2 * 66 + 5] |= 0b00001100
    with pytest.raises(ValueError, match=r"TQ2_0 .block, weight.: code 3, .* at \[2, 37\]"):
        importers.gguf_decode(raw, "TQ2_0", (3, 256))
    raw = importers.gguf_encode(random_weight("TQ1_0", (3, 256)))
    for value in set(range(256)) - {-(-256 * v // 243) for v in range(243)}:
        raw[54 + 7] = value
        with pytest.raises(ValueError, match=r"a byte that no five weights make, at \[1, 7\]"):
            importers.gguf_decode(raw, "TQ1_0", (3, 256))
    raw = importers.gguf_encode(random_weight("TQ1_0", (1, 256)))
    raw[50] = -(-256 * 1 // 243)  # the fifth trit is 0 in none of ggml's files
    with pytest.raises(ValueError, match=r"a fifth weight in a byte of four, at \[0, 2\]"):
        importers.gguf_decode(raw, "TQ1_0", (1, 256))
    for variant, place in (("x86", "0, 34"), ("arm", "0, 18"), ("rows", "1, 2")):
        raw = importers.gguf_encode(random_weight("I2_S", (4, 128), variant=variant))
        raw[2] |= 0b00110000
        with pytest.raises(ValueError, match=rf"I2_S .row, column.: code 3, .* at \[{place}\]"):
            importers.gguf_decode(raw, "I2_S", (4, 128), variant=variant)


@pytest.mark.parametrize("kind", [*BLOCKS, "I2_S"])
def test_packed_weights_are_the_files(kind: str) -> None:
    """The same numbers as dequantised; only Q8_0, whose scales are per block, is rounded anew."""
    weight = random_weight(kind, (21, 512), 3) if kind != "I2_S" else random_weight(kind, (20, 512), 3, "x86")
    packed = weight.pack(act="int8") if kind != "Q8_0" else weight.pack()
    values = weight.dequantised()
    if kind == "Q8_0":
        np.testing.assert_array_equal(packed, ff.pack(values, "int8"))
    else:
        np.testing.assert_array_equal(np.asarray(ff.unpack(packed)), values)
    x = np.random.default_rng(4).standard_normal((3, 512)).astype(np.float32)
    expected = x.astype(np.float64) @ values.T.astype(np.float64)
    assert np.abs(ff.linear(x, packed) - expected).max() <= 0.03 * np.abs(expected).max()
    expected_format = {"Q4_0": "int4", "Q4_1": "int4", "Q8_0": "int8"}.get(kind, "ternary")
    assert ff.info(packed).format == expected_format


def test_equal_scales_become_one() -> None:
    weight = random_weight("TQ2_0", (5, 512))
    same = importers.QuantisedWeight("TQ2_0", weight.codes, np.full((5, 2), 0.3, np.float16), group=256)
    assert ff.info(same.pack()).options["group"] == 0 and ff.info(weight.pack()).options["group"] == 256
    np.testing.assert_array_equal(np.asarray(ff.unpack(same.pack())), same.dequantised())


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "I2_S", "Q4_0", "Q4_1"])
def test_from_packed(kind: str) -> None:
    """Bytes → packed → the same bytes."""
    weight = random_weight(kind, (8, 512), 5, "arm" if kind == "I2_S" else None)
    raw = importers.gguf_encode(weight)
    again = importers.from_packed(weight.pack(), kind, variant=weight.variant)
    np.testing.assert_array_equal(importers.gguf_encode(again), raw)


def test_one_scale_for_blocks() -> None:
    """A matrix with one scale goes into blocks where f16 holds it, and is refused where it does not."""
    codes = np.random.default_rng(6).integers(-1, 2, (4, 512)).astype(np.int8)
    weight = importers.from_packed(ff.pack(codes, "ternary", scale=np.float32([0.25])), "TQ1_0")
    assert weight.scales.shape == (4, 2) and (weight.scales == 0.25).all()
    with pytest.raises(ValueError, match="f16 does not hold exactly"):
        importers.from_packed(ff.pack(codes, "ternary", scale=np.float32([0.1])), "TQ1_0")


def test_packed_weights_that_do_not_fit() -> None:
    w = np.random.default_rng(7).standard_normal((8, 512)).astype(np.float32)
    for packed, kind, message in (
        (ff.pack(w, "int8"), "Q8_0", "packed holds 'int8'"),
        (ff.pack(w, "int4"), "TQ2_0", "packed holds 'int4'"),
        (ff.pack(w, "int4", group=64), "Q4_0", "groups of 64, Q4_0 has 32"),
        (ff.pack(w, "int4", group=32, zero_points=True), "Q4_0", "symmetric"),
        (ff.pack(w, "int4", group=32), "Q4_1", "of minima"),
        (ff.pack(w, "ternary", scale="row"), "I2_S", "one scale for the tensor"),
        (ff.pack(w, "ternary", group=128), "TQ2_0", "groups of 128"),
        (ff.pack(w[:, :100], "ternary"), "TQ2_0", "multiple of 256"),
    ):
        with pytest.raises(ValueError, match=message):
            importers.from_packed(packed, kind)


def test_codes_that_a_kind_does_not_hold() -> None:
    good = random_weight("Q4_0", (2, 64))
    for change, message in (
        ({"codes": np.full((2, 64), 16)}, "takes integers from 0 to 15"),
        ({"codes": good.codes[:, :40]}, "multiples of 32"),
        ({"scales": good.scales[:1]}, "scales have shape .1, 2., expected .2, 2."),
        ({"scales": np.full((2, 2), 0.1, np.float64)}, "f16 does not hold exactly"),
        ({"minima": good.scales}, "Q4_0 has no minima"),
        ({"kind": "Q4_1"}, "Q4_1 needs minima"),
        ({"kind": "Q5_0"}, "kind is 'Q5_0', expected one of"),
    ):
        fields = {name: getattr(good, name) for name in ("kind", "codes", "scales", "minima", "group")} | change
        with pytest.raises(ValueError, match=message):
            importers.gguf_encode(importers.QuantisedWeight(**fields))


@kinds
def test_like_the_gguf_package(kind: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    number = pytest.importorskip("gguf").GGMLQuantizationType[kind]
    w = np.random.default_rng(8).standard_normal((6, 512)).astype(np.float32)
    raw = quants.quantize(w, number)
    weight = importers.gguf_decode(np.ascontiguousarray(raw), kind, w.shape)
    np.testing.assert_array_equal(weight.dequantised(), quants.dequantize(raw, number))
    np.testing.assert_array_equal(importers.gguf_encode(weight), raw.reshape(-1))


def model(
    tmp_path: Path, kinds: dict[str, str], architecture: str = "bitnet-b1.58", **extra: Any
) -> tuple[Path, dict[str, Any]]:
    """A file with one layer 256 → 512 → 256, each part in a type; and the weights in it."""
    tensors, weights = {}, {}
    for part, kind in kinds.items():
        shape = (256, 512) if part == "down" else (512, 256)
        if kind in ("F32", "F16"):
            values = np.random.default_rng(9).standard_normal(shape).astype("<f4" if kind == "F32" else "<f2")
            weights[part], raw = values.astype(np.float32), values.tobytes()
        else:
            weight = random_weight(kind, shape, 10, "x86" if kind == "I2_S" else None)
            weights[part], raw = weight.dequantised(), importers.gguf_encode(weight).tobytes()
        tensors[f"blk.0.ffn_{part}.weight"] = (NUMBERS[kind], shape, raw)
    for name, values in extra.items():
        tensors[f"blk.0.ffn_{name.replace('__', '.')}"] = (0, values.shape, values.astype("<f4").tobytes())
    path = tmp_path / "model.gguf"
    metadata = {
        "general.architecture": (8, architecture),
        f"{architecture}.attention.layer_norm_rms_epsilon": (6, 1e-6),
    }
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path, weights


@pytest.mark.parametrize(
    "types", [("TQ1_0", "TQ2_0", "I2_S"), ("Q4_0", "Q4_1", "Q8_0"), ("F32", "F16", "Q4_0")], ids="-".join
)
def test_a_layer_of_a_file(tmp_path: Path, types: tuple[str, ...]) -> None:
    path, weights = model(tmp_path, dict(zip(("gate", "up", "down"), types, strict=True)), "llama")
    layer = importers.load_gguf_ffn(path, 0, variant="x86")
    assert layer.activation == "silu" and layer.sub_norm is None
    for part, kind in zip(("gate", "up", "down"), types, strict=True):
        packed = getattr(layer, f"w_{part}")
        if kind == "Q8_0":
            np.testing.assert_array_equal(packed, ff.pack(weights[part], "int8"))
        else:
            np.testing.assert_array_equal(np.asarray(ff.unpack(packed)), weights[part])
    x = np.random.default_rng(11).standard_normal((4, 256)).astype(np.float32)
    y = layer(x)
    gate, up = (x.astype(np.float64) @ weights[part].T for part in ("gate", "up"))
    expected = (gate / (1 + np.exp(-np.clip(gate, -700, 700))) * up) @ weights["down"].T
    assert np.abs(y - expected).max() <= 0.05 * np.abs(expected).max()


def test_bitnet_files(tmp_path: Path) -> None:
    gamma = np.linspace(0.5, 1, 512)
    kinds_of = {"gate": "I2_S", "up": "I2_S", "down": "TQ2_0"}
    path, weights = model(tmp_path, kinds_of, sub_norm__weight=gamma, gate__scale=np.array([2.0]))
    layer = importers.load_gguf_ffn(path, 0, variant="x86")
    assert layer.activation == "relu2" and abs(layer.sub_norm_eps - 1e-6) < 1e-12
    np.testing.assert_array_equal(layer.sub_norm, gamma.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(ff.unpack(layer.w_gate)), 2 * weights["gate"])
    with pytest.raises(ValueError, match="Pass variant="):
        importers.load_gguf_ffn(path, 0)
    weight = importers.load_gguf_weight(path, "blk.0.ffn_down.weight", variant="x86")
    assert weight.kind == "TQ2_0"
    np.testing.assert_array_equal(weight.dequantised(), weights["down"])


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path, _ = model(tmp_path, {"up": "Q4_0", "down": "Q4_0"}, "mamba")
    with pytest.raises(ValueError, match="activation of architecture 'mamba' is not known here; pass activation="):
        importers.load_gguf_ffn(path, 0)
    layer = importers.load_gguf_ffn(path, 0, activation="gelu")
    assert layer.w_gate is None and layer(np.ones((1, 256), np.float32)).shape == (1, 256)
    with pytest.raises(ValueError, match="has no tensor 'blk.7.ffn_up.weight'"):
        importers.load_gguf_ffn(path, 7, activation="gelu")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated"):
        importers.load_gguf_ffn(path, 0, activation="gelu")
