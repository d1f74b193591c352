"""unpack_codes: the codes and scales that pack() was given come back, and packing them again gives the same bytes."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import forged

RNG = np.random.default_rng


def spread(values: np.ndarray, group: int, depth: int) -> np.ndarray:
    return np.repeat(values, group, axis=-1)[..., :depth]


@pytest.mark.parametrize("group", [0, 32, 256])
@pytest.mark.parametrize("shape", [(1, 1), (17, 70), (3, 33, 300)])
def test_ternary_codes_come_back(shape: tuple[int, ...], group: int) -> None:
    rng = RNG(1)
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    groups = -(-shape[-1] // group) if group else 1
    scales = rng.uniform(0.1, 1, (*shape[:-1], groups)).astype(np.float16).astype(np.float32)
    packed = ff.pack(codes, "ternary", group=group, scale=scales)
    found = ff.unpack_codes(packed)
    assert found.codes.dtype == np.int8 and found.zeros is None and found.minima is None
    assert found.group == (group or shape[-1])
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_array_equal(ff.pack(found.codes, "ternary", group=group, scale=found.scales), packed)
    # Integers and floats are the same codes.
    np.testing.assert_array_equal(ff.pack(codes.astype(np.float32), "ternary", group=group, scale=scales), packed)


@pytest.mark.parametrize("kind", ["symmetric", "zeros", "minima"])
@pytest.mark.parametrize(("shape", "group"), [((1, 1), 32), ((17, 70), 64), ((3, 33, 300), 128)])
def test_int4_codes_come_back(shape: tuple[int, ...], group: int, kind: str) -> None:
    rng = RNG(2)
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    groups = (*shape[:-1], -(-shape[-1] // group))
    scales = rng.uniform(0.1, 1, groups).astype(np.float16).astype(np.float32)
    given = {}
    if kind == "zeros":
        given["zeros"] = rng.integers(0, 16, groups).astype(np.float32)
    if kind == "minima":
        given["minima"] = -rng.uniform(0, 1, groups).astype(np.float16).astype(np.float32)
    packed = ff.pack(codes, "int4", group=group, scales=scales, **given)
    found = ff.unpack_codes(packed)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scales, scales)
    for name in ("zeros", "minima"):
        assert (getattr(found, name) is None) == (name not in given)
        if name in given:
            np.testing.assert_array_equal(getattr(found, name), given[name])
    again = ff.pack(found.codes, "int4", group=group, scales=found.scales, zeros=found.zeros, minima=found.minima)
    np.testing.assert_array_equal(again, packed)


@pytest.mark.parametrize("fmt", ["ternary", "int4", "int8"])
def test_codes_and_scales_are_the_weights(fmt: str) -> None:
    """Of weights that pack() quantised itself."""
    w = RNG(3).standard_normal((35, 200)).astype(np.float32)
    packed = ff.pack(w, fmt)
    found = ff.unpack_codes(packed)
    zero = 8 if fmt == "int4" else 0
    values = spread(found.scales, found.group, 200) * (found.codes.astype(np.float32) - zero)
    np.testing.assert_array_equal(values, ff.unpack(packed))
    if fmt == "ternary":
        assert ff.info(ff.pack(found.codes, fmt, scale=found.scales)).options["scale"] == "given"


def test_kinds_of_arrays() -> None:
    torch = pytest.importorskip("torch")
    codes = torch.randint(-1, 2, (20, 64), dtype=torch.int8)
    packed = ff.pack(codes, "ternary", scale=torch.tensor([0.5]))
    found = ff.unpack_codes(packed)
    assert isinstance(found.codes, torch.Tensor) and found.codes.dtype == torch.int8
    assert torch.equal(found.codes, codes) and isinstance(found.scales, torch.Tensor)
    int4 = ff.unpack_codes(ff.pack(torch.randn(20, 64), "int4", zero_points=True))
    assert int4.codes.dtype == torch.uint8 and int4.zeros.dtype == torch.float32
    # A kind without arrays of its own: memory that exports the buffer protocol.
    plain = ff.unpack_codes(memoryview(packed.numpy()))
    np.testing.assert_array_equal(np.asarray(plain.codes), codes.numpy())


def test_strided_codes() -> None:
    codes = RNG(4).integers(-1, 2, (40, 90)).astype(np.int8)
    packed = ff.pack(codes[::2, 1::3], "ternary", scale=np.float32([1]))
    np.testing.assert_array_equal(ff.unpack_codes(packed).codes, codes[::2, 1::3])


def test_errors() -> None:
    w = np.ones((4, 32), np.float32)
    with pytest.raises(ValueError, match="unpack_codes: packed holds format 'bf16', which has no codes"):
        ff.unpack_codes(ff.pack(w, "bf16"))
    damaged = ff.pack(w, "ternary")
    damaged[70] ^= 1
    with pytest.raises(ValueError, match="unpack_codes: packed has damaged weights"):
        ff.unpack_codes(damaged)
    with pytest.raises(ValueError, match="truncated"):
        ff.unpack_codes(ff.pack(w, "int4")[:-1])
    for fmt in ("f32", "int8"):
        with pytest.raises(ValueError, match="pack: w has dtype i8, expected f32, f16, bf16 or f64"):
            ff.pack(np.ones((4, 32), np.int8), fmt)
    for fmt in ("ternary", "int4"):
        with pytest.raises(ValueError, match="w has dtype i8, which is for codes that come with their scales"):
            ff.pack(np.ones((4, 32), np.int8), fmt)
    with pytest.raises(ValueError, match="holds a weight that is none of -1, 0 and 1"):
        ff.pack(np.full((4, 32), 2, np.int8), "ternary", scale=np.float32([1]))
    with pytest.raises(ValueError, match="no whole number from 0 to 15"):
        ff.pack(np.full((4, 32), -1, np.int8), "int4", scales=np.ones((4, 1), np.float32))


def test_code_three_is_refused() -> None:
    """Bytes that no pack() writes, with a checksum that fits."""
    packed = ff.pack(np.zeros((16, 64), np.float32), "ternary")
    packed[64] = 3
    with pytest.raises(ValueError, match="none of -1, 0 and 1"):
        ff.unpack_codes(forged(packed))


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("fmt", ["ternary", "int4"])
def test_orders_hold_the_same_codes(fmt: str, order: str) -> None:
    """The arrangement in memory is no matter of codes: one order's go into another's."""
    w = RNG(5).standard_normal((2, 70, 300)).astype(np.float32)
    for options in ({"group": 32}, {"group": 128} if fmt == "int4" else {"scale": "row"}):
        plain, ordered = (ff.unpack_codes(ff.pack(w, fmt, order=name, **options)) for name in ("panels", order))
        for name in ("codes", "scales"):
            np.testing.assert_array_equal(getattr(ordered, name), getattr(plain, name))


@pytest.mark.parametrize("mode", ["pow2", "block"])
def test_codes_behind_a_transform_are_the_stored_ones(mode: str) -> None:
    """Those of w · Hᵀ; given back as codes they are rotated already, and multiply the same."""
    rng = RNG(6)
    w, x = rng.standard_normal((20, 64)).astype(np.float32), rng.standard_normal((3, 64)).astype(np.float32)
    packed = ff.pack(w, "ternary", hadamard=mode)
    found = ff.unpack_codes(packed)
    again = ff.pack(found.codes, "ternary", scale=found.scales, hadamard=mode)
    np.testing.assert_array_equal(ff.linear(x, again), ff.linear(x, packed))
    rotated = np.asarray(ff.hadamard(w, mode))
    scale = np.float32(np.abs(rotated.astype(np.float64)).mean())
    expected = np.clip(np.rint(rotated / scale), -1, 1)
    assert (found.codes != expected).mean() < 0.01  # a sum in another order may move one on the edge
