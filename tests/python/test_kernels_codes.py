"""ternary and int4: their options, weights that come as codes, the largest sums, and the same bits on every instruction set."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import fastffn as ff
from fastffn import _core
from kernel_support import SMALL, check, forged, normal, pack, packed_values
from reference import tolerance
from reference.formats import CODES, arithmetic, quantise_tokens

labels = pytest.mark.parametrize("fmt", CODES)
TOKENS = (1, 2, 3, 6, 7, 40)


def check_against_oracle(x, packed, fmt):
    check(ff.linear(x, packed), tolerance.linear(tolerance.Bounded.exact(x), packed_values(packed), fmt), "f32")


@labels
def test_every_regime(fmt):
    """Depths that end inside a line, a group, and 64 or 128 bytes; outputs that fill no panel; few and many rows."""
    rng = np.random.default_rng(1)
    depths = (1, 33, 100, 700) if SMALL else (1, 15, 31, 33, 63, 64, 65, 100, 127, 129, 257, 300, 700, 2050)
    for depth in depths:
        for out_features in (1, 17, 70):
            packed = pack(normal(rng, (out_features, depth)), fmt)
            for tokens in TOKENS:
                check_against_oracle(normal(rng, (tokens, depth), "bf16").astype(np.float32), packed, fmt)


@labels
def test_tokens_at_the_edge(fmt):
    """NaN and infinity stay in their token, zeros are zeros, and outliers of a mean are cut off."""
    rng = np.random.default_rng(2)
    packed = pack(normal(rng, (37, 150)), fmt)
    for tokens in (4, 20):
        x = normal(rng, (tokens, 150))
        x[3] = 0
        x[2, ::7] = 50  # far beyond 7 steps of a mean
        expected = ff.linear(x, packed)
        check_against_oracle(x, packed, fmt)
        assert (expected[3] == 0).all()
        for value in (np.nan, np.inf, -np.inf):
            poisoned = x.copy()
            poisoned[1, 149] = value
            y = ff.linear(poisoned, packed)
            assert not np.isfinite(y[1]).any() if arithmetic(fmt) == "bf16" else np.isnan(y[1]).all()
            np.testing.assert_array_equal(np.delete(y, 1, 0), np.delete(expected, 1, 0))


def exact_product(x_codes, w_codes):
    return x_codes.astype(np.float64) @ w_codes.astype(np.float64).T


@pytest.mark.parametrize("tokens", TOKENS)
def test_codes_with_a_scale_are_exact(tokens):
    """x of codes and a power of two per token, w of codes: one f32 sum, exactly, or a wrong element shows."""
    rng = np.random.default_rng(3)
    for depth in (64, 130, 1000):
        x = rng.integers(-127, 128, (tokens, depth)).astype(np.float32)
        x[:, 0] = 127
        ternary = rng.integers(-1, 2, (50, depth)).astype(np.float32)
        for keywords in ({}, {"group": 32}, {"group": 256}):
            packed = ff.pack(ternary, "ternary", scale=np.float32([0.5]), **keywords)
            np.testing.assert_array_equal(np.asarray(ff.unpack(packed)), ternary * 0.5)
            np.testing.assert_array_equal(ff.linear(x, packed), exact_product(x, ternary) * 0.5)
        codes = rng.integers(0, 16, (50, depth)).astype(np.float32)
        for group in (32, 64, 128, 256):
            groups = -(-depth // group)
            spread = np.repeat(np.arange(groups), group)[:depth]
            scales = np.ldexp(1.0, rng.integers(-3, 1, (50, groups))).astype(np.float32)
            zeros = rng.integers(0, 16, (50, groups)).astype(np.float32)
            for given, values in (
                ({}, scales[:, spread] * (codes - 8)),
                ({"zeros": zeros}, scales[:, spread] * (codes - zeros[:, spread])),
                ({"minima": -zeros}, scales[:, spread] * codes - zeros[:, spread]),
            ):
                packed = ff.pack(codes, "int4", group=group, scales=scales, **given)
                np.testing.assert_array_equal(np.asarray(ff.unpack(packed)), values)
                np.testing.assert_array_equal(ff.linear(x, packed), exact_product(x, values))


def test_scales_of_other_libraries():
    """Random f16 scales per group as TQ2_0 has them, and minima as Q4_1 has them: within the rounding of one sum."""
    rng = np.random.default_rng(4)
    depth, rows = 520, 21
    x = normal(rng, (9, depth))
    x_codes, x_scale = quantise_tokens(x, "int4")
    for name, group, low, high in (("ternary", 256, -1, 1), ("int4", 32, 0, 15)):
        groups = -(-depth // group)
        spread = np.repeat(np.arange(groups), group)[:depth]
        codes = rng.integers(low, high + 1, (rows, depth)).astype(np.float32)
        scales = rng.uniform(0.001, 0.1, (rows, groups)).astype(np.float16).astype(np.float32)
        minima = -8 * rng.uniform(0.001, 0.1, (rows, groups)).astype(np.float16).astype(np.float32)
        given = {"scale": scales} if name == "ternary" else {"scales": scales, "minima": minima}
        packed = ff.pack(codes, name, group=group, **given)
        exact = codes.astype(np.float64) * scales[:, spread] + (0 if name == "ternary" else minima[:, spread])
        np.testing.assert_allclose(np.asarray(ff.unpack(packed)), exact, rtol=2.0**-23, atol=2.0**-24)
        # Codes and minima are summed apart: the terms are those, not the weights.
        terms = np.abs(x_codes) @ (np.abs(codes) * scales[:, spread] + 15 * np.abs(scales[:, spread])).T * x_scale
        for tokens in (1, 9):
            y = ff.linear(x[:tokens], packed)
            error = np.abs(y - (x_codes * x_scale)[:tokens] @ exact.T)
            assert (error <= (2 * groups + 4) * tolerance.U * terms[:tokens]).all()


@pytest.mark.parametrize("depth", [4096, 28672, 133144])
def test_largest_sums(depth):
    """Every activation ±127 and every code at its end: nothing saturates on the way, in 16 bits or in 32."""
    if SMALL and depth > 4096:
        depth = 8192
    for sign in (1, -1):
        for tokens in (1, 3, 7):
            x = np.full((tokens, depth), sign * 127, np.float32)
            for value in (1, -1, 0):
                packed = ff.pack(np.full((17, depth), value, np.float32), "ternary", scale=np.float32([1]))
                expected = np.float64(sign) * 127 * value * depth
                np.testing.assert_allclose(ff.linear(x, packed), expected, rtol=2.0**-23)
            groups = -(-depth // 256)
            ones = np.ones((17, groups), np.float32)
            for code, zero in ((15, 0), (0, 15), (15, 15), (0, 0)):
                w = np.full((17, depth), code, np.float32)
                packed = ff.pack(w, "int4", group=256, scales=ones, zeros=zero * ones)
                expected = np.float64(sign) * 127 * (code - zero) * depth
                np.testing.assert_allclose(ff.linear(x, packed), expected, rtol=groups * 2.0**-24 + 2.0**-23)


def test_too_deep():
    with pytest.raises(ValueError, match=r"in_features 133145.*at most 133144"):
        ff.pack(np.ones((1, 133145), np.float32), "ternary")


PROGRAM = """
import hashlib, sys
import numpy as np
import fastffn as ff
sys.path[:0] = sys.argv[1:]
from kernel_support import normal, pack
from reference.formats import CODES, arithmetic
digest = hashlib.sha256()
for fmt in CODES:
    if arithmetic(fmt) != "int8":
        continue  # sums in f32
    rng = np.random.default_rng(5)
    for depth in (40, 257, 1000):
        packed = pack(normal(rng, (70, depth)), fmt)
        digest.update(packed.tobytes())
        for tokens in (1, 2, 5, 6, 7, 40):
            for dtype in ("f32", "bf16"):
                digest.update(np.asarray(ff.linear(normal(rng, (tokens, depth), dtype), packed)).tobytes())
print(ff.active_kernel("ternary"), digest.hexdigest())
"""


def test_the_same_bits_on_every_instruction_set():
    found = {}
    levels = ("ref", "avx2", "avx512vnni", "amx")
    best = _core.machine()["isa_found"]
    for level in levels[: {"ref": 1, "avx2": 2, "avx512base": 2, "amx": 4}.get(best, 3)]:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, *(p for p in sys.path if p)],
            env={**os.environ, "FASTFFN_ISA": level},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        kernel, digest = result.stdout.split()
        assert kernel == f"ternary/{level}"
        found[kernel] = digest
    assert len(set(found.values())) == 1, found
    assert hashlib.sha256().hexdigest() not in found.values()


@pytest.mark.parametrize("tokens", [1, 20])
def test_gate_and_up_with_options_of_their_own(tokens):
    """Rows are prepared for one matrix: another group, or format, must not meet them."""
    rng = np.random.default_rng(6)
    x = normal(rng, (tokens, 200))
    plain = {n: normal(rng, (90, 200), scale=0.1) for n in ("w_up", "w_gate")}
    w_down = ff.pack(normal(rng, (30, 90), scale=0.1), "f32")
    for one in CODES:
        for other in ("ternary", "ternary-group", "ternary-act4", "int4", "int4-zp", "int4-act4"):
            up, gate = pack(plain["w_up"], one), pack(plain["w_gate"], other)
            y = ff.ffn(x, up, w_down, gate, activation="relu")
            hidden = np.maximum(ff.linear(x, gate), 0) * ff.linear(x, up)
            np.testing.assert_allclose(y, ff.linear(hidden, w_down), rtol=1e-4, atol=1e-4)


def test_options():
    w = normal(np.random.default_rng(7), (20, 300))
    given = np.full((20, 3), 0.5, np.float32)
    codes = np.ones((20, 300), np.float32)
    for name, options, expected in (
        ("ternary", {}, {"act": "int8", "group": 0, "scale": "tensor"}),
        ("ternary", {"scale": "row", "act": "int4"}, {"act": "int4", "group": 0, "scale": "row"}),
        ("ternary", {"group": 128}, {"act": "int8", "group": 128, "scale": "row"}),
        ("int4", {}, {"act": "int8", "group": 128, "zeros": "none"}),
        ("int4", {"group": 32, "zero_points": True}, {"act": "int8", "group": 32, "zeros": "zero_points"}),
    ):
        packed = ff.pack(w, name, **options)
        assert ff.info(packed).options == {**expected, "hadamard": "none", "order": "panels"}
        ff.verify(packed)
    assert ff.info(ff.pack(codes, "ternary", group=128, scale=given)).options["scale"] == "given"
    assert ff.info(ff.pack(codes, "int4", scales=given, minima=given)).options["zeros"] == "minima"
    # About 2 and 4 bits, and 16 per group.
    big = normal(np.random.default_rng(8), (512, 1024))
    for fmt, bits in (("ternary", 2.04), ("ternary-group", 2.26), ("int4", 4.14), ("int4-zp", 4.76)):
        assert ff.info(pack(big, fmt)).bits_per_weight < bits


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("ternary", {"values": "int8"}, "has no option 'values'"),
        ("ternary", {"act": "int2"}, "'act' of format 'ternary' is 'int2', expected int8 or int4"),
        ("ternary", {"group": 48}, "'group' of format 'ternary' is 48, expected 0"),
        ("ternary", {"group": 64, "scale": "tensor"}, "groups have scales of their own"),
        ("ternary", {"scale": np.ones(3, np.float32)}, "'scale' of format 'ternary' has shape"),
        ("ternary", {"scale": np.ones(1, np.float64)}, "'scale' of format 'ternary'"),
        ("ternary", {"scale": np.ones(1, np.float32)}, "row 0 of w holds a weight that is none of -1, 0 and 1"),
        (
            "int4",
            {"act": "bf16", "order": "rows"},
            "'act' of format 'int4' is 'bf16', which is for order 'panels' only",
        ),
        ("ternary", {"act": "bf16"}, "'act' of format 'ternary' is 'bf16', expected int8 or int4"),
        ("int4", {"group": 0}, "'group' of format 'int4'"),
        ("int4", {"group": 100}, "'group' of format 'int4' is 100, expected 32, 64, 128 or 256"),
        ("int4", {"zeros": np.ones((20, 3), np.float32)}, "need 'scales'"),
        ("int4", {"scales": np.ones((20, 2), np.float32)}, "one per row and group: 60 in all"),
        ("int4", {"scales": np.ones((20, 3), np.float32)}, "row 0 of w holds a code that is no whole number"),
        ("int4", {"scales": np.ones((20, 3), np.float32), "zero_points": True}, "give 'zeros'"),
    ],
)
def test_refused_options(name, options, text):
    w = np.full((20, 300), 0.3, np.float32)
    with pytest.raises(ValueError) as error:
        ff.pack(w, name, **options)
    assert text in str(error.value) and str(error.value).startswith("pack: ")


def test_refused_weights():
    scales = np.ones((20, 3), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        w = np.ones((20, 300), np.float32)
        w[7, 11] = value
        for name in ("ternary", "int4"):
            with pytest.raises(ValueError, match="row 7 of w holds NaN or infinity"):
                ff.pack(w, name)
    w = np.ones((20, 300), np.float32)
    w[5, 3] = 1e6
    with pytest.raises(ValueError, match="row 5 of w needs a scale beyond the range of f16"):
        ff.pack(w, "int4")
    for zero in (16, 0.5, -1):
        zeros = scales * 0
        zeros[4, 1] = zero
        with pytest.raises(ValueError, match="row 4 of w has a zero point"):
            ff.pack(np.ones((20, 300), np.float32), "int4", scales=scales, zeros=zeros)


@pytest.mark.parametrize("fmt", ["ternary", "ternary-group"])
def test_a_fourth_ternary_code_is_refused(fmt):
    packed = pack(normal(np.random.default_rng(9), (40, 70)), fmt)
    np.testing.assert_array_equal(forged(packed), packed)
    for shift in (0, 2, 4, 6):
        damaged = packed.copy()
        damaged[64 + 3] |= 3 << shift
        for candidate, text in ((damaged, "checksum differs"), (forged(damaged), "none of -1, 0 and 1, in rows")):
            for call in (ff.verify, ff.unpack):
                with pytest.raises(ValueError, match=text):
                    call(candidate)
        for tokens in (1, 20):  # a code like any other to the kernels
            assert np.isfinite(ff.linear(np.ones((tokens, 70), np.float32), forged(damaged))).all()


def test_forged_scales_and_zero_points_are_refused():
    w = normal(np.random.default_rng(10), (16, 64))
    packed = ff.pack(w, "int4", group=32, zero_points=True)  # [8 lines of 64][2 · 16 f16 scales][2 · 16 zero points]
    assert packed.size == 64 + 512 + 64 + 64
    scale, zero = packed.copy(), packed.copy()
    scale[64 + 512 : 64 + 514] = (0x00, 0x7C)
    zero[64 + 512 + 64 + 3] = 16
    ternary = ff.pack(w, "ternary")
    ternary[-64:][8:12] = np.frombuffer(np.float32([np.nan]).tobytes(), np.uint8)
    for damaged, text in (
        (scale, "a scale that is not finite, of row 0"),
        (zero, "a zero point beyond 15, of row 3"),
        (ternary, "a scale that is not finite, of row 2"),
    ):
        for call in (ff.verify, ff.unpack):
            with pytest.raises(ValueError, match=text):
                call(forged(damaged))


@pytest.mark.parametrize("tokens", [1, 20])
def test_bf16_activations_transformed(tokens):
    """act="bf16" with hadamard: the bits of transformed tokens against the same codes."""
    rng = np.random.default_rng(10)
    x, w = normal(rng, (tokens, 384)), normal(rng, (40, 384))
    packed = ff.pack(w, "int4", act="bf16", hadamard="block", rotated=True)
    plain = ff.pack(w, "int4", act="bf16")
    np.testing.assert_array_equal(ff.linear(x, packed), ff.linear(ff.hadamard(x, "block"), plain))
