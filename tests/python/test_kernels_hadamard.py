"""Hadamard transforms and the quantisers of activations, alone and inside packed weights."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import fastffn as ff
from fastffn import _core
from kernel_support import DTYPES, SMALL, check, forged, normal
from reference import bitlinear, tolerance
from reference.formats import quantise_tokens

ORDERS = (12, 20, 28, 36, 52, 60, 108, 140, 156, 172)
# The last dimensions of published layers (and 864 = 108 · 8) with the modes that they have.
LENGTHS = {
    "pow2": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
    "kron": (12, 40, 52, 56, 60 * 4, 864, 1024, 36 * 32, 156 * 2, 4864 // 19 * 20),
    "block": (2, 6, 24, 50, 100, 864, 4864),
}
BIG = {"pow2": (16384, 32768), "kron": (6912, 8960, 11008, 13824, 14336), "block": (6912, 11008, 18944)}
CASES = [(mode, n) for mode, lengths in LENGTHS.items() for n in lengths]


@pytest.fixture(autouse=True)
def default_threads():
    yield
    ff.set_num_threads(0)


def signs_of(n, mode, **options):
    """The library's matrix as ±1 and 0, from the transforms of unit vectors."""
    h = ff.hadamard(np.eye(n, dtype=np.float32), mode, **options).T
    return np.sign(h)


def order_of(n):
    """H_K of mode "kron" for rows of n."""
    order = next((k for k in ORDERS if n % k == 0 and (n // k) & (n // k - 1) == 0), 1)
    return signs_of(order, "kron") if order > 1 else np.ones((1, 1))


def matrix_of(n, mode, block=None):
    return bitlinear.hadamard_matrix(n, mode, block, order_of(n) if mode == "kron" else None)


def bounded(x, mode, block=None):
    exact = x if isinstance(x, tolerance.Bounded) else tolerance.Bounded.exact(x)
    n = exact.value.shape[-1]
    if mode == "none":
        return exact
    return tolerance.hadamard(exact, matrix_of(n, mode, block), len(order_of(n)) if mode == "kron" else 1)


@pytest.mark.parametrize("order", ORDERS)
def test_orders_beyond_powers_of_two(order):
    """Entries ±1/√K, H · Hᵀ = I exactly in the signs, and the inverse is the transpose."""
    h = ff.hadamard(np.eye(order, dtype=np.float32), "kron")
    np.testing.assert_array_equal(np.abs(h), np.float32(order**-0.5))
    signs = signs_of(order, "kron")
    np.testing.assert_array_equal(signs @ signs.T, order * np.eye(order))
    np.testing.assert_array_equal(signs_of(order, "kron", inverse=True), signs.T)
    if order in (12, 20, 156, 172):  # so that an inverse without the transpose would be seen
        assert (signs != signs.T).any()


@pytest.mark.parametrize(("mode", "n"), CASES)
def test_matrix(mode, n):
    """All entries at once: what the paper writes as a Kronecker product or as blocks."""
    if n > (300 if SMALL else 1200):
        n = {"pow2": 256, "kron": 240, "block": 96}[mode]
    expected = np.sign(matrix_of(n, mode))
    np.testing.assert_array_equal(signs_of(n, mode), expected)
    np.testing.assert_array_equal(signs_of(n, mode, inverse=True), expected.T)


def test_chosen_blocks():
    for n, block in ((96, 2), (96, 32), (256, 16), (6912, 128)):
        x = normal(np.random.default_rng(0), (3, n))
        check(ff.hadamard(x, "block", block=block), bounded(x, "block", block), "f32")


@pytest.mark.parametrize(("mode", "n"), CASES)
def test_against_oracle(mode, n):
    rng = np.random.default_rng([n, len(mode)])
    for rows in (1, 5):
        for dtype in DTYPES:
            x = normal(rng, (rows, n), dtype)
            expected = bounded(x.astype(np.float64), mode)
            for out in DTYPES:
                y = np.full_like(x, np.nan, dtype=DTYPES[out])
                assert ff.hadamard(x, mode, out=y) is y
                check(y, expected, out)
            back = ff.hadamard(ff.hadamard(x.astype(np.float32), mode), mode, inverse=True)
            np.testing.assert_allclose(back, x.astype(np.float32), rtol=0, atol=1e-5 * np.abs(x.astype(float)).max())


@pytest.mark.parametrize(("mode", "n"), [(mode, n) for mode, lengths in BIG.items() for n in lengths])
def test_published_sizes(mode, n):
    """Too large for a matrix: unit vectors against the formula, norms and the inverse."""
    if SMALL and n > 10000:
        n = {"pow2": 8192, "kron": 6912, "block": 6912}[mode]
    rng = np.random.default_rng(n)
    x = normal(rng, (3, n))
    y = ff.hadamard(x, mode)
    np.testing.assert_allclose((y.astype(float) ** 2).sum(-1), (x.astype(float) ** 2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(ff.hadamard(y, mode, inverse=True), x, rtol=0, atol=1e-5 * np.abs(x).max())
    block = bitlinear.largest_power(n) if mode == "block" else n
    order = order_of(n) if mode == "kron" else np.ones((1, 1))
    power = block // len(order)
    for k in rng.integers(0, n, 3):
        unit = np.zeros((1, n), np.float32)
        unit[0, k] = 1
        index = np.arange(n)
        same = index // block == k // block
        parity = np.array([bin(a & k % power).count("1") for a in index % power]) % 2
        expected = same * np.where(parity, -1, 1) * order[index % block // power, k % block // power] / np.sqrt(block)
        np.testing.assert_allclose(ff.hadamard(unit, mode)[0], expected, rtol=2.0**-23)


def test_nan_and_infinity_stay_in_their_block():
    x = normal(np.random.default_rng(1), (4, 96))
    clean = ff.hadamard(x, "block")
    for value in (np.nan, np.inf, -np.inf):
        poisoned = x.copy()
        poisoned[2, 40] = value
        y = ff.hadamard(poisoned, "block")
        assert not np.isfinite(y[2, 32:64]).any()
        y[2, 32:64] = clean[2, 32:64]
        np.testing.assert_array_equal(y, clean)


def test_arrays():
    """Strides, leading dimensions, in place, nothing at all; the same bits on any number of threads."""
    rng = np.random.default_rng(2)
    x = normal(rng, (5, 7, 3, 80))
    expected = ff.hadamard(np.ascontiguousarray(x[::2, 1::3, :, 8:72]))
    view = x[::2, 1::3, :, 8:72]
    np.testing.assert_array_equal(ff.hadamard(view), expected)
    for dtype in DTYPES:
        y = x.astype(DTYPES[dtype])
        target = y[::2, 1::3, :, 8:72]
        once = ff.hadamard(np.ascontiguousarray(target))
        assert ff.hadamard(target, out=target) is target
        np.testing.assert_array_equal(
            target.view(np.uint8 if dtype != "f32" else np.float32),
            once.view(np.uint8 if dtype != "f32" else np.float32),
        )
        untouched = np.ones(x.shape, bool)
        untouched[::2, 1::3, :, 8:72] = False
        np.testing.assert_array_equal(y[untouched], x.astype(DTYPES[dtype])[untouched])
    np.testing.assert_array_equal(ff.hadamard(x, "none"), x)
    assert ff.hadamard(np.zeros((0, 64), np.float32)).shape == (0, 64)
    np.testing.assert_array_equal(ff.hadamard(view[0, 0, 0]), expected[0, 0, 0])
    x = normal(rng, (300, 1024))
    ff.set_num_threads(1)
    one = ff.hadamard(x), *ff.quantize(x), *ff.quantize(x, "int4")
    for threads in (2, 3, 5):
        ff.set_num_threads(threads)
        for a, b in zip(one, (ff.hadamard(x), *ff.quantize(x), *ff.quantize(x, "int4")), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("n", "options", "text"),
    [
        (6912, {}, r"6912 is no power of two; what works: 'kron' \(108 · 64\), 'block' \(27 of 256\)"),
        (4864, {"mode": "kron"}, r"4864 is not K · 2\^m .*what works: 'block' \(19 of 256\)"),
        (7, {"mode": "block"}, "7 is odd; no mode but 'none' works"),
        (1, {"mode": "block"}, "1 is odd; what works: 'pow2'"),
        (96, {"mode": "block", "block": 64}, "block is 64, expected a power of two that divides .* 96: 2 to 32"),
        (96, {"mode": "block", "block": 3}, "block is 3, expected a power of two"),
        (96, {"mode": "block", "block": -32}, "block is -32, expected a power of two"),
        (7, {"mode": "block", "block": 2}, "has no blocks of 2 or more"),
        (64, {"mode": "pow2", "block": 64}, "block is 64 with hadamard mode 'pow2'"),
        (64, {"mode": "walsh"}, "mode 'walsh' is not known; expected none, pow2, kron or block"),
        (0, {}, "expected a last dimension of 1 or more"),
        (64, {"out": np.zeros((2, 64), np.float32)}, r"out has shape \(2, 64\), expected \(3, 64\) from x"),
        (64, {"out": np.zeros((3, 64), np.int32)}, "out has dtype i32"),
    ],
)
def test_refused(n, options, text):
    with pytest.raises(ValueError, match=text) as error:
        ff.hadamard(np.ones((3, n), np.float32), **options)
    assert str(error.value).startswith("hadamard: ")


def test_refused_arrays():
    x = np.ones((4, 130), np.float32)
    with pytest.raises(ValueError, match="out and x share a range of memory"):
        ff.hadamard(x[:, :128], out=x[:, 2:])
    with pytest.raises(ValueError, match="its rows share memory"):
        ff.hadamard(x[:, :128], out=np.lib.stride_tricks.as_strided(np.zeros(200, np.float32), (4, 128), (4, 4)))
    with pytest.raises(ValueError, match="stride 2 in its last dimension"):
        ff.hadamard(x[:, ::2][:, :64])
    with pytest.raises(ValueError, match="x has dtype f64"):
        ff.hadamard(np.ones((2, 64)))
    with pytest.raises(ValueError, match="quantize: dtype 'int2' is not known; expected int8 or int4"):
        ff.quantize(x, "int2")
    with pytest.raises(ValueError, match="expected a last dimension of 1 to 133144"):
        ff.quantize(np.ones((1, 133145), np.float32))
    with pytest.raises(ValueError, match="quantize: x has"):
        ff.quantize(np.float32(3))


# ---- quantize ----


def test_refused_names_and_numbers():
    x = np.ones((2, 8), np.float32)
    for call, error, text in (
        (lambda: ff.hadamard(x, "block", block=2.0), TypeError, "hadamard: block is 2.0, expected a whole number"),
        (
            lambda: ff.hadamard(x, "block", block=2**70),
            ValueError,
            "hadamard: block is 1180591620717411303424, expected",
        ),
        (lambda: ff.hadamard(x, None), TypeError, "hadamard: mode is None, expected a string"),
        (lambda: ff.quantize(x, np.int8), TypeError, "quantize: dtype is <class 'numpy.int8'>, expected a string"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(text)


def test_quantize_ties_and_ends():
    """γ = 127, so x is its own code but for rounding: halves go to even numbers, on both sides of zero."""
    halves = np.arange(-126, 127) + 0.5
    x = np.float32([[127, *halves], [-127, *halves]])
    codes, scale = ff.quantize(x)
    assert codes.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (2,)
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_array_equal(codes[:, 1:], np.broadcast_to(np.rint(halves), (2, 253)))
    np.testing.assert_array_equal(codes[:, 0], (127, -127))
    # int4: outliers stop at -8 and 7.
    x = np.float32([[1000, -1000, *np.ones(200)]])
    codes, scale = ff.quantize(x, "int4")
    np.testing.assert_array_equal(codes[0, :3], (7, -8, 0))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantize(dtype):
    """The oracle's codes, but where f32 arithmetic stands on a half; zeros, tokens below ε, NaN and infinity."""
    rng = np.random.default_rng(3)
    quantise = bitlinear.QUANTISE[dtype]
    low, high = (-127, 127) if dtype == "int8" else (-8, 7)
    for n in (1, 15, 64, 100, 1000, 4096):
        for kind in DTYPES:
            x = normal(rng, (9, n), kind)
            x[1] = 0
            x[2] *= np.asarray(1e-6, x.dtype)  # largest below ε, or f16's subnormals
            x[3] *= 100
            codes, scale = ff.quantize(x, dtype)
            expected, expected_scale = quantise(x.astype(np.float64))
            np.testing.assert_allclose(scale, expected_scale[:, 0], rtol=1e-6)
            assert (codes[1] == 0).all()
            if dtype == "int8":
                assert scale[1] == np.float32(1e-5) / np.float32(127)
                np.testing.assert_array_equal(codes[2], np.rint(x[2].astype(float) * 127e5))
            assert codes.min() >= low and codes.max() <= high
            different = codes != expected
            ratio = x.astype(np.float64) / (
                expected_scale + (bitlinear.SMALLEST / np.sqrt(7) if dtype == "int4" else 0)
            )
            assert (np.abs(np.abs(ratio[different]) % 1 - 0.5) < 1e-4).all()
    x = normal(rng, (6, 50))
    clean = ff.quantize(x, dtype)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[row, 49] = value
    codes, scale = ff.quantize(x, dtype)
    assert (codes[:3] == 0).all() and np.isnan(scale[:3]).all()
    np.testing.assert_array_equal(codes[3:], clean[0][3:])
    np.testing.assert_array_equal(scale[3:], clean[1][3:])
    codes, scale = ff.quantize(np.zeros((0, 5), np.float32), dtype)
    assert codes.shape == (0, 5) and scale.shape == (0,)
    codes, scale = ff.quantize(np.ones(5, np.float32), dtype)
    assert codes.shape == (5,) and scale.shape == ()


def test_torch_arrays():
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 4, 128, dtype=torch.bfloat16)
    y = ff.hadamard(x)
    assert y.dtype == torch.bfloat16 and y.shape == x.shape
    codes, scale = ff.quantize(x, "int4")
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (3, 4)
    expected, _ = ff.quantize(x.float().numpy(), "int4")
    np.testing.assert_array_equal(codes.numpy(), expected)


# ---- in packed weights ----

PACKED = [
    (name, {**options, "hadamard": mode}, n)
    for name, options in (
        ("ternary", {}),
        ("ternary", {"act": "int4"}),
        ("ternary", {"group": 64, "act": "int4"}),
        ("int4", {}),
        ("int4", {"group": 32, "zero_points": True}),
        ("int4", {"act": "int4"}),
    )
    for mode, n in (("pow2", 256), ("kron", 240), ("block", 200), ("block", 96))
]
OF_CODES = {
    ("ternary", None, None): "ternary",
    ("ternary", "int4", None): "ternary-act4",
    ("ternary", "int4", 64): "ternary-group-act4",
    ("int4", None, None): "int4",
    ("int4", None, 32): "int4-zp",
    ("int4", "int4", None): "int4-act4",
}


def oracle_format(name, options):
    return OF_CODES[name, options.get("act"), options.get("group")]


@pytest.mark.parametrize(("name", "options", "n"), PACKED)
def test_linear(name, options, n):
    """x · wᵀ with H in between: the codes are those of w · Hᵀ, and what meets them is Q(H · x)."""
    rng = np.random.default_rng(n)
    w = normal(rng, (37, n))
    packed = ff.pack(w, name, **options)
    mode = options["hadamard"]
    rotated = ff.pack(ff.hadamard(w, mode), name, **options, rotated=True)
    np.testing.assert_array_equal(packed[64:], rotated[64:])
    values = np.asarray(ff.unpack(rotated)).astype(np.float64)
    h = matrix_of(n, mode)
    np.testing.assert_allclose(ff.unpack(packed), values @ h, rtol=0, atol=1e-5 * np.abs(values).max())
    fmt = oracle_format(name, options)
    for tokens in (1, 2, 7, 20):
        for dtype in ("f32", "bf16"):
            x = normal(rng, (tokens, n), dtype)
            x[-1, 3] = 30
            expected = tolerance.linear(bounded(x.astype(np.float64), mode), values, fmt)
            y = np.zeros((tokens, 37), np.float32)
            ff.linear(x, packed, out=y)
            check(y, expected, "f32")
            np.testing.assert_array_equal(ff.linear(x, packed), ff.linear(x, rotated))


@pytest.mark.parametrize("act", ["int8", "int4"])
def test_the_fused_codes(act):
    """Unit codes bring a token's own codes to light: those of hadamard() and quantize() in turn, bit for bit."""
    rng = np.random.default_rng(4)
    for mode, n in (("none", 100), ("pow2", 128), ("kron", 480), ("block", 100), ("block", 864)):
        packed = ff.pack(np.eye(n, dtype=np.float32), "ternary", scale=np.float32([1]), act=act, hadamard=mode)
        assert ff.info(packed).options.get("rotated", True) is True
        np.testing.assert_array_equal(ff.unpack(packed), np.eye(n))
        for tokens in (1, 9):
            x = normal(rng, (tokens, n))
            codes, scale = ff.quantize(ff.hadamard(x, mode), act)
            np.testing.assert_array_equal(ff.linear(x, packed), codes.astype(np.float32) * scale[:, None])


@pytest.mark.parametrize("tokens", [1, 5, 30])
def test_in_every_layer(tokens):
    """ffn, moe and the leaves of a tree take such weights as any other."""
    rng = np.random.default_rng(5)
    d_model, d_ff, experts = 96, 80, 4
    x = normal(rng, (tokens, d_model))
    shapes = {"w_up": (d_ff, d_model), "w_gate": (d_ff, d_model), "w_down": (50, d_ff)}
    for options in ({"hadamard": "block"}, {"hadamard": "kron"}, {"hadamard": "kron", "act": "int4"}):
        w = {n: normal(rng, (experts, *s), scale=s[1] ** -0.5) for n, s in shapes.items()}
        modes = {n: options if s[1] in (96, 80) else {} for n, s in shapes.items()}
        one = [{n: ff.pack(w[n][e], "ternary", **modes[n]) for n in w} for e in range(experts)]
        stacks = {n: ff.pack(w[n], "ternary", **modes[n]) for n in w}

        def of_linears(x, weights):
            hidden = np.maximum(ff.linear(x, weights["w_gate"]), 0) * ff.linear(x, weights["w_up"])
            return ff.linear(hidden, weights["w_down"])

        for e in range(experts):
            expected = of_linears(x, one[e])
            y = ff.ffn(x, **one[e], activation="relu")
            np.testing.assert_array_equal(y, expected)
            ids = np.full((tokens, 1), e, np.int32)
            y = ff.moe(x, ids, np.ones((tokens, 1), np.float32), **stacks, activation="relu")
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        tree = ff.pack_tree(normal(rng, (experts - 1, d_model)))
        plain = {n: stacks[n] for n in ("w_up", "w_down")}
        leaf = np.asarray(ff.fff_route(x, tree).leaf).reshape(-1)
        y = ff.fff(x, tree, **plain, activation="relu")
        for t in range(tokens):
            weights = one[leaf[t]]
            hidden = np.maximum(ff.linear(x[t : t + 1], weights["w_up"]), 0)
            np.testing.assert_allclose(y[t], ff.linear(hidden, weights["w_down"])[0], rtol=1e-5, atol=1e-5)


def test_gate_and_up_of_different_bases():
    rng = np.random.default_rng(6)
    x = normal(rng, (9, 96))
    w = normal(rng, (2, 40, 96))
    down = ff.pack(normal(rng, (20, 40)), "f32")
    for one in ("none", "kron", "block"):
        for other in ("none", "kron", "block"):
            up, gate = ff.pack(w[0], "ternary", hadamard=one), ff.pack(w[1], "ternary", hadamard=other)
            expected = ff.linear(np.maximum(ff.linear(x, gate), 0) * ff.linear(x, up), down)
            np.testing.assert_allclose(ff.ffn(x, up, down, gate, activation="relu"), expected, rtol=1e-5, atol=1e-5)


def test_outliers_cost_less():
    """What the transform is for: one huge channel no longer decides every code of its token."""
    rng = np.random.default_rng(7)
    x, w = normal(rng, (32, 512)), normal(rng, (64, 512))
    x[:, 100] *= 100
    exact = x.astype(float) @ w.astype(float).T
    for name in ("ternary", "int4"):
        error = {}
        for mode in ("none", "pow2"):
            packed = ff.pack(w, name, act="int4", hadamard=mode)
            values = np.asarray(ff.unpack(packed)).astype(float)
            error[mode] = np.abs(ff.linear(x, packed) - x.astype(float) @ values.T).mean() / np.abs(exact).mean()
        assert error["pow2"] < 0.5 * error["none"], error


def test_options():
    w = normal(np.random.default_rng(8), (20, 6912))
    assert ff.info(ff.pack(w, "ternary")).options["hadamard"] == "none"
    for name in ("ternary", "int4"):
        for options, expected in (
            ({"hadamard": "kron"}, {"hadamard": "kron", "rotated": False}),
            ({"hadamard": "block"}, {"hadamard": "block", "block": 256, "rotated": False}),
            ({"hadamard": "block", "block": 64, "rotated": True}, {"hadamard": "block", "block": 64, "rotated": True}),
        ):
            packed = ff.pack(w, name, **options)
            ff.verify(packed)
            found = ff.info(packed).options
            assert {k: v for k, v in found.items() if k in ("hadamard", "block", "rotated")} == expected
            assert packed.size == ff.pack(w, name).size
            # The options as info() gives them make the same bytes again.
            again = {k: v for k, v in found.items() if k != "zeros"}
            np.testing.assert_array_equal(ff.pack(w, name, **again), packed)
    assert "ternary/" in ff.active_kernel("ternary", hadamard="block")


@pytest.mark.parametrize(
    ("n", "options", "text"),
    [
        (4864, {"hadamard": "pow2"}, r"w's in_features 4864 is no power of two; what works: 'block' \(19 of 256\)"),
        (64, {"hadamard": "fast"}, "'hadamard' of format '{}' is 'fast', expected none, pow2, kron or block"),
        (64, {"rotated": True}, "'rotated' needs a 'hadamard' mode"),
        (64, {"block": 32}, "'block' is for hadamard='block'"),
        (64, {"hadamard": "pow2", "block": 32}, "block is 32 with hadamard mode 'pow2'"),
        (96, {"hadamard": "block", "block": 64}, "block is 64, expected a power of two that divides"),
        (65536, {"hadamard": "pow2"}, "in_features 65536, with a hadamard mode it may have up to 32768"),
    ],
)
def test_refused_options(n, options, text):
    for name in ("ternary", "int4"):
        with pytest.raises(ValueError, match=text.replace("{}", name)) as error:
            ff.pack(np.ones((2, n), np.float32), name, **options)
        assert str(error.value).startswith("pack: ")


def test_given_codes_are_rotated():
    codes = np.ones((4, 64), np.float32)
    given = {"ternary": {"scale": np.float32([1])}, "int4": {"group": 64, "scales": np.ones((4, 1), np.float32)}}
    for name, options in given.items():
        with pytest.raises(ValueError, match="'rotated' is false with given scales"):
            ff.pack(codes, name, hadamard="pow2", rotated=False, **options)
        assert ff.info(ff.pack(codes, name, hadamard="pow2", **options)).options["rotated"] is True


def test_forged_headers_are_refused():
    """Flags are at byte 12, parameters at 48: a transform that the width has not, blocks that are none, stray bits."""
    w = normal(np.random.default_rng(9), (20, 96))
    for name in ("ternary", "int4"):
        block = ff.pack(w, name, hadamard="block")
        for flags, blocks in ((1, 0), (3, 0), (3, 64), (3, 3), (2, 32), (0, 32), (4, 0)):
            damaged = block.copy()
            value = int.from_bytes(damaged[12:16].tobytes(), "little") & ~(7 << 6)
            damaged[12:16] = np.frombuffer((value | flags << 6).to_bytes(4, "little"), np.uint8)
            damaged[52:56] = np.frombuffer(blocks.to_bytes(4, "little"), np.uint8)
            with pytest.raises(ValueError, match="options that this version"):
                ff.linear(np.ones((1, 96), np.float32), forged(damaged))


PROGRAM = """
import hashlib, sys
import numpy as np
import fastffn as ff
digest = hashlib.sha256()
rng = np.random.default_rng(5)
for mode, n in (("pow2", 8), ("pow2", 64), ("pow2", 8192), ("kron", 12), ("kron", 240), ("kron", 6912), ("kron", 11008),
                ("kron", 14336), ("block", 18), ("block", 864), ("block", 6912)):
    for dtype in (np.float32, np.float16):
        x = rng.standard_normal((3, n)).astype(dtype)
        for inverse in (False, True):
            digest.update(ff.hadamard(x, mode, inverse=inverse).tobytes())
        for act in ("int8", "int4"):
            for part in ff.quantize(x, act):
                digest.update(part.tobytes())
    w = rng.standard_normal((17, n)).astype(np.float32)
    for name in ("ternary", "int4"):
        packed = ff.pack(w, name, hadamard=mode)
        digest.update(packed.tobytes())
        digest.update(ff.unpack(packed).tobytes())
        for tokens in (1, 9):
            digest.update(ff.linear(np.resize(x, (tokens, n)), packed).tobytes())
up, gate = (ff.pack(rng.standard_normal((864, 100)).astype(np.float32), "ternary") for _ in range(2))
down = ff.pack(rng.standard_normal((33, 864)).astype(np.float32), "ternary", hadamard="kron", act="int4")
gamma = rng.standard_normal(864).astype(np.float32)
for tokens in (1, 9):
    x = rng.standard_normal((tokens, 100)).astype(np.float32)
    digest.update(ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma).tobytes())
print(ff.active_kernel("ternary"), digest.hexdigest())
"""


def test_the_same_bits_on_every_instruction_set():
    found = {}
    levels = ("ref", "avx2", "avx512vnni")
    best = _core.machine()["isa_found"]
    for level in levels[: {"ref": 1, "avx2": 2, "avx512base": 2}.get(best, 3)]:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, "FASTFFN_ISA": level}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        kernel, digest = result.stdout.split()
        found[kernel] = digest
    assert len(set(found.values())) == 1, found
    assert hashlib.sha256().hexdigest() not in found.values()


def test_quantize_is_what_ternary_does():
    """The oracle's quantiser of the format tests and of this file are one."""
    x = normal(np.random.default_rng(10), (5, 70))
    for act, fmt in (("int8", "ternary"), ("int4", "ternary-act4")):
        for a, b in zip(bitlinear.QUANTISE[act](x.astype(float)), quantise_tokens(x, fmt), strict=True):
            np.testing.assert_allclose(a, b)


LONG = [
    ("ternary", {}),
    ("ternary", {"order": "rows", "act": "int4"}),
    ("ternary", {"order": "columns"}),
    ("int4", {"group": 32, "zero_points": True}),
    ("int4", {"act": "bf16"}),
]


@pytest.mark.parametrize(("fmt", "options"), LONG)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_rows_too_long_for_the_stack(fmt, options, tokens):
    """Bit for bit what hadamard() and weights of the rotated basis give, in layers whose tasks prepare rows side by side."""
    n = 9216  # 9 blocks of 1024
    rng = np.random.default_rng(12)
    w, x = normal(rng, (2, 17, n)), normal(rng, (tokens, n))
    there = [ff.pack(matrix, fmt, hadamard="block", rotated=True, **options) for matrix in w]
    plain = [ff.pack(matrix, fmt, **options) for matrix in w]
    expected = [ff.linear(ff.hadamard(x, "block"), packed) for packed in plain]
    one = ff.pack(np.eye(17, dtype=np.float32), "f32")
    ids = np.tile(np.array([[1, 0]], np.int32), (tokens, 1))
    ids[::3] = ids[::3, ::-1]
    stack = [ff.pack(w, fmt, hadamard="block", rotated=True, **options), ff.pack(np.stack([np.eye(17)] * 2), "f32")]
    for threads in (1, 3):
        ff.set_num_threads(threads)
        for packed, product in zip(there, expected, strict=True):
            np.testing.assert_array_equal(ff.linear(x, packed), product)
            np.testing.assert_array_equal(ff.ffn(x, packed, one, activation="identity"), product)
        y = ff.moe(x, ids, np.ones(ids.shape, np.float32), *stack, activation="identity")
        np.testing.assert_allclose(y, expected[0] + expected[1], rtol=1e-6, atol=1e-6 * np.abs(y).max())


SMALL_STACK = """
import threading
import numpy as np
import fastffn as ff

def run():
    for n, mode in ((32768, "pow2"), (27648, "kron"), (8192, "block")):
        x, w = np.ones((3, n), np.float32), np.ones((5, n), np.float32)
        for options in ({}, {"order": "columns"}, {"act": "bf16"}):
            packed = ff.pack(w, "int4", hadamard=mode, **options)
            assert np.isfinite(ff.linear(x, packed)).all() and np.isfinite(ff.unpack(packed)).all()
    done.append(True)

ff.set_num_threads(1)
done = []
threading.stack_size(96 << 10)
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert done
"""


def test_small_stacks():
    """Threads of 96 KiB, where some systems give 128 KiB, of which Python takes its part."""
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("sanitizers take more stack")
    result = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or result.returncode
