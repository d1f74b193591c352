"""hadamard, quantize and weights that transform their activations, on devices; see cuda_support.py."""

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DTYPES
from kernel_support import SMALL, check, normal, packed_values
from reference import tolerance
from reference.formats import quantise_tokens
from test_kernels_hadamard import bounded, matrix_of, order_of

CASES = [
    *(("pow2", n) for n in (1, 2, 8, 64, 512, 4096)),
    *(("kron", n) for n in (12, 40, 56, 144, 36 * 32, 156 * 2)),
    *(("block", n) for n in (2, 50, 100, 864)),
]


@pytest.mark.parametrize(("mode", "n"), CASES)
def test_hadamard(cuda, mode, n):
    """Against the oracle; and the CPU's very bits where no H_K adds in another order."""
    rng = np.random.default_rng([n, len(mode)])
    for rows in (1, 5):
        for dtype in cuda.dtypes:
            x = normal(rng, (rows, n), dtype)
            expected = bounded(x.astype(np.float64), mode)
            for out in cuda.dtypes:
                target = cuda.full((rows, n), np.nan, out)
                assert ff.hadamard(cuda.put(x), mode, out=target) is target
                y = cuda.get(target)
                check(y, expected, out)
                if len(order_of(n)) == 1 or mode != "kron":
                    wanted = ff.hadamard(x, mode, out=np.zeros((rows, n), DTYPES[out]))
                    np.testing.assert_array_equal(y.view(np.uint8), wanted.view(np.uint8))
        x = normal(rng, (rows, n))
        back = cuda.get(ff.hadamard(ff.hadamard(cuda.put(x), mode), mode, inverse=True))
        np.testing.assert_allclose(back, x, rtol=0, atol=1e-5 * np.abs(x).max())


def test_blocks_in_place_and_strides(cuda):
    rng = np.random.default_rng(1)
    values = normal(rng, (2, 9, 80))
    x = cuda.strided(values, slice(1, 6, 3), slice(8, 72))
    wanted = ff.hadamard(values[..., 1:8:3, 8:72], "block", block=16)
    y = cuda.full((3, 64), np.nan, "f32")
    row = cuda.strided(values[1], slice(1, 8, 3), slice(8, 72))
    ff.hadamard(row, "block", block=16, out=y)
    np.testing.assert_array_equal(cuda.get(y), wanted[1])
    with pytest.raises(ValueError, match="common stride"):  # 2 of 9 rows, twice
        ff.hadamard(x, "block", block=16)
    x = cuda.put(values)
    assert ff.hadamard(x, "block", out=x) is x
    np.testing.assert_array_equal(cuda.get(x), ff.hadamard(values, "block"))
    assert cuda.get(ff.hadamard(cuda.put(values[:0]), "block")).shape == (0, 9, 80)


def test_long_rows_bring_their_workspace(cuda):
    """Beyond what shared memory holds rows go through memory."""
    rng = np.random.default_rng(2)
    x = normal(rng, (2, 65536), "f16")
    wanted = ff.hadamard(x)
    np.testing.assert_array_equal(cuda.get(ff.hadamard(cuda.put(x))), wanted)
    count = ff.device_workspace(ff.hadamard, cuda.put(x))
    assert count >= 2 * 65536 * 4
    y = ff.hadamard(cuda.put(x), workspace=cuda.bytes(count))
    np.testing.assert_array_equal(cuda.get(y), wanted)
    with pytest.raises(ValueError, match="workspace"):
        ff.hadamard(cuda.put(x), workspace=cuda.bytes(count - 256))
    assert ff.device_workspace(ff.hadamard, cuda.put(x[:, :4096])) == 0


def test_not_finite(cuda):
    x = normal(np.random.default_rng(3), (4, 96))
    clean = ff.hadamard(x, "block")
    for value in (np.nan, np.inf, -np.inf):
        poisoned = x.copy()
        poisoned[2, 40] = value
        y = cuda.get(ff.hadamard(cuda.put(poisoned), "block")).copy()
        assert not np.isfinite(y[2, 32:64]).any()
        y[2, 32:64] = clean[2, 32:64]
        np.testing.assert_array_equal(y, clean)


def test_errors_are_the_cpus(cuda):
    x = np.zeros((2, 24), np.float32)
    for keywords in ({}, {"mode": "block", "block": 16}, {"mode": "pow2", "block": 8}, {"mode": "rotate"}):
        messages = []
        for array in (x, cuda.put(x)):
            with pytest.raises(ValueError) as error:
                ff.hadamard(array, **keywords)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="stream is for arrays on CUDA devices"):
        ff.hadamard(x, "block", stream=0)
    with pytest.raises(ValueError, match="quantize: workspace is for arrays on CUDA devices"):
        ff.quantize(x, workspace=x)
    with pytest.raises(ValueError, match="out .*is in the CPU's memory"):
        ff.hadamard(cuda.put(x), "block", out=x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize(cuda, dtype):
    if dtype not in cuda.dtypes:
        pytest.skip(f"{cuda.name} has no arrays of it")
    rng = np.random.default_rng(4)
    for shape in ((1, 1), (3, 7), (2, 3, 300), (5, 2050)):
        x = normal(rng, shape, dtype)
        x.reshape(-1, shape[-1])[0] = 0
        codes, scale = (cuda.get(part) for part in ff.quantize(cuda.put(x)))
        wanted, wanted_scale = ff.quantize(x)
        np.testing.assert_array_equal(codes, wanted)
        np.testing.assert_array_equal(scale, wanted_scale)
        codes, scale = (cuda.get(part) for part in ff.quantize(cuda.put(x), "int4"))
        wanted, wanted_scale = ff.quantize(x, "int4")
        np.testing.assert_allclose(scale, wanted_scale, rtol=2e-6)
        # The mean is summed in another order: a code within that of an edge may fall the other way.
        assert np.abs(codes.astype(int) - wanted).max() <= 1 and (codes != wanted).mean() < 0.01
    x = normal(rng, (3, 40), dtype)
    x[1, 3] = np.inf
    codes, scale = (cuda.get(part) for part in ff.quantize(cuda.put(x)))
    assert np.isnan(scale[1]) and not codes[1].any() and np.isfinite(scale[[0, 2]]).all()


@pytest.mark.parametrize(("mode", "depth"), [("pow2", 128), ("kron", 96), ("kron", 144), ("block", 96), ("block", 200)])
@pytest.mark.parametrize("name", ["ternary", "int4", "int4-bf16"])
def test_weights_with_a_transform(cuda, mode, depth, name):
    """Rotated when they are packed, met by H · x: what they make of x is near w · x, and near the CPU's."""
    rng = np.random.default_rng([depth, len(mode)])
    w = normal(rng, (40, depth), scale=depth**-0.5)
    format, options = (name, {}) if name != "int4-bf16" else ("int4", {"act": "bf16"})
    for extra in ({}, {"group": 64}, {"rotated": True}):
        host = ff.pack(w, format, hadamard=mode, **options, **extra)
        packed = cuda.pack(w, format, hadamard=mode, **options, **extra)
        # unpack() gives rotated codes back in the basis of w, unless they came rotated.
        values = packed_values(host)
        np.testing.assert_array_equal(cuda.get(ff.unpack(packed)), ff.unpack(host))
        for tokens in (1, 3, 20):
            x = normal(rng, (tokens, depth))
            turned = bounded(x.astype(np.float64), mode)
            values_there = values if "rotated" in extra else values @ matrix_of(depth, mode).T
            fmt = "int4-bf16" if "act" in options else name
            expected = tolerance.linear(turned, values_there, fmt)
            y = cuda.get(ff.linear(cuda.put(x), packed))
            # Values of w, rotated back and forth in f32 by unpack().
            slack = 1e-5 * np.abs(expected.value).max()
            assert (np.abs(y - expected.value) <= expected.error + slack).all()


def test_oracle_of_codes_follows_the_transform(cuda):
    """H, then BitNet's 4-bit codes of it: no other order gives these numbers."""
    rng = np.random.default_rng(5)
    w = np.where(rng.random((16, 64)) < 0.5, 1.0, -1.0).astype(np.float32)
    packed = cuda.pack(w, "ternary", scale=1.0, hadamard="pow2", act="int4")
    x = normal(rng, (3, 64))
    turned = bounded(x.astype(np.float64), "pow2").value
    codes, scale = quantise_tokens(turned, "ternary-act4")
    expected = (codes * np.asarray(scale).reshape(-1, 1)) @ w.astype(np.float64).T
    y = cuda.get(ff.linear(cuda.put(x), packed))
    # One code of 64 may fall the other way.
    assert np.abs(y - expected).max() <= np.asarray(scale).max() * 1.01 + 1e-4


@pytest.mark.skipif(SMALL, reason="large")
def test_published_sizes(cuda):
    for mode, n in (("kron", 6912), ("kron", 11008), ("block", 6912), ("pow2", 16384)):
        x = normal(np.random.default_rng(n), (2, n))
        y = cuda.get(ff.hadamard(cuda.put(x), mode))
        np.testing.assert_allclose(y, ff.hadamard(x, mode), rtol=0, atol=2e-5)
