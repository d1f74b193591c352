"""sparse24: every pattern, its canonical form, what it refuses, and that a skipped position is never multiplied."""

import itertools
import struct

import numpy as np
import pytest

import fastffn as ff
from kernel_support import SMALL, arithmetic, check, forged, normal, pack, packed_values, prepare_weights
from reference import tolerance
from reference.formats import SPARSE24, kept_positions

values_list = pytest.mark.parametrize("fmt", SPARSE24)
floats = pytest.mark.parametrize("fmt", SPARSE24[:3])
TOKENS = (1, 4, 7, 16) if SMALL else (1, 2, 3, 4, 5, 6, 7, 12, 16, 17, 40, 130)
PAIRS = tuple(itertools.combinations(range(4), 2))
VALUES = tuple(fmt.partition("-")[2] for fmt in SPARSE24)


def random_patterns(rng, out_features, depth, fewer=False):
    """Small odd integers at two places of every four, or at fewer."""
    w = np.zeros((out_features, -(-depth // 4), 4), np.float32)
    for group in w.reshape(-1, 4):
        places = PAIRS[rng.integers(6)]
        for place in places[: rng.integers(3)] if fewer else places:
            group[place] = rng.choice([-5, -3, -1, 1, 3, 5])
    return w.reshape(out_features, -1)[:, :depth]


@values_list
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_pattern_exactly(fmt, tokens):
    """Sums of small integers are exact, so that no tolerance hides a wrong position: all patterns, in every lane."""
    rng = np.random.default_rng([1, tokens])
    for depth in (4, 24, 64, 100, 1, 2, 3, 5, 31, 33, 66, 127, 260):
        for fewer in (False, True):
            w = random_patterns(rng, 35, depth, fewer)
            w[:, 0] = 127  # with int8, codes are the integers themselves
            w = prepare_weights(fmt, w)
            x = rng.integers(-7, 8, (tokens, depth)).astype(np.float32)
            x[:, 0] = 127
            np.testing.assert_array_equal(ff.linear(x, pack(w, fmt)), x.astype(np.float64) @ w.T)


@values_list
def test_one_pattern_everywhere(fmt):
    """A whole matrix of one pattern, with a weight that tells each place."""
    depth = 128
    for places in [*PAIRS, (0,), (1,), (2,), (3,), ()]:
        w = np.zeros((33, depth), np.float32)
        for place in places:
            w[:, place::4] = place + 1
        x = np.eye(depth, dtype=np.float32)
        for rows in (x, x[:5]):
            np.testing.assert_allclose(ff.linear(rows, pack(w, fmt)), rows @ packed_values(pack(w, fmt)).T, rtol=1e-6)
        np.testing.assert_allclose(packed_values(pack(w, fmt)), w, rtol=0.02 if fmt == "sparse24-int8" else 0)


CODES = {(): 0xE, (0,): 0xC, (1,): 0xD, (2,): 0xE, (3,): 0xE} | {pair: pair[0] | pair[1] << 2 for pair in PAIRS}


@values_list
def test_canonical_codes(fmt):
    """The codes in the payload are those of the note at the top of layout.hpp, whatever the kernels do with them."""
    depth = 64
    for places, code in CODES.items():
        w = np.zeros((16, depth), np.float32)
        w[:, [4 * g + p for g in range(depth // 4) for p in places]] = 1
        payload = pack(w, fmt)[64:]
        sections = 128 if fmt == "sparse24-int8" else 0
        block = 64 + 8 * (128 if fmt == "sparse24-f32" else 64)
        codes = payload[sections : sections + (128 if fmt == "sparse24-int8" else 64)]
        assert (codes == code * 0x11).all()
        if sections == 0:
            assert (payload[block : block + 64] == code * 0x11).all()


@values_list
def test_bytes(fmt):
    w = prepare_weights(fmt, normal(np.random.default_rng(2), (512, 4096)))
    dense = ff.pack(w, arithmetic(fmt)).nbytes
    share = {"bf16": 9 / 16, "f16": 9 / 16, "f32": 17 / 32, "int8": 5 / 8}[arithmetic(fmt)]
    assert abs(pack(w, fmt).nbytes / dense - share) < 0.002


@values_list
@pytest.mark.parametrize("tokens", TOKENS)
def test_deep_and_odd(fmt, tokens):
    rng = np.random.default_rng([3, tokens])
    for out_features, depth in ((1, 4), (3, 2049), (65, 1023), (17, 515), (130, 96)):
        w = pack(normal(rng, (out_features, depth), scale=depth**-0.5), fmt)
        x = normal(rng, (tokens, depth))
        check(ff.linear(x, w), tolerance.linear(tolerance.Bounded.exact(x), packed_values(w), fmt), "f32")


@floats
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_skipped_positions_are_never_multiplied(fmt, tokens, poison):
    """NaN or infinity in x reaches exactly the columns that keep its position, in every regime."""
    rng = np.random.default_rng([4, tokens])
    for depth in (64, 70):
        w = random_patterns(rng, 50, depth, fewer=True)
        packed = pack(w, fmt)
        kept = kept_positions(w)
        clean = normal(rng, (tokens, depth))
        expected = ff.linear(clean, packed)
        for position in (0, 1, 2, 3, 17, 34, depth - 1):
            for row in {0, tokens // 2, tokens - 1}:
                x = clean.copy()
                x[row, position] = poison
                y = ff.linear(x, packed)
                others = np.arange(tokens) != row
                np.testing.assert_array_equal(y[others], expected[others])
                with np.errstate(invalid="ignore"):
                    product = poison * w[:, position].astype(np.float64)
                reached = kept[:, position]
                np.testing.assert_array_equal(y[row, reached], product[reached])
                assert np.isfinite(y[row, ~reached]).all()
                np.testing.assert_allclose(y[row, ~reached], expected[row, ~reached], rtol=2e-5, atol=1e-4)
    x = np.full((tokens, 70), poison, np.float32)  # every product is NaN or infinite
    assert not np.isfinite(ff.linear(x, packed)).any()


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_int8_rows_with_infinity_become_nan(tokens):
    """As with dense int8: the row's scale is NaN, wherever the infinity stands."""
    w = np.zeros((20, 40), np.float32)
    w[:, 1::4] = 1
    x = normal(np.random.default_rng(5), (tokens, 40))
    x[0, 2] = np.inf
    y = ff.linear(x, pack(w, "sparse24-int8"))
    assert np.isnan(y[0]).all() and np.isfinite(y[1:]).all()


@floats
def test_nan_and_infinite_weights(fmt):
    w = np.zeros((20, 40), np.float32)
    w[:, ::4] = 1
    w[3, 5], w[7, 11] = np.nan, -np.inf
    packed = ff.pack(w, "sparse24", values=arithmetic(fmt))
    for tokens in (1, 5, 20):
        x = np.ones((tokens, 40), np.float32)
        y = ff.linear(x, packed)
        assert np.isnan(y[:, 3]).all() and (y[:, 7] == -np.inf).all()
        np.testing.assert_array_equal(np.delete(y, [3, 7], axis=1), 10)


def test_int8_refuses_nonfinite_weights():
    w = np.zeros((20, 40), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        w[7, 11] = value
        with pytest.raises(ValueError, match="row 7"):
            ff.pack(w, "sparse24", values="int8")


@values_list
def test_negative_zero_is_zero(fmt):
    w = np.full((17, 36), -0.0, np.float32)
    w[:, 1::4] = 2
    positive = np.abs(w)
    packed = pack(w, fmt)
    np.testing.assert_array_equal(packed, ff.pack(positive, "sparse24", values=arithmetic(fmt)))
    assert not np.signbit(packed_values(packed)).any()


@values_list
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_than_two_are_refused(fmt, dtype):
    w = prepare_weights(fmt, normal(np.random.default_rng(6), (40, 70))).astype(dtype)
    w[23, 40:44] = [1, 0, -1e-30, 3]
    w[23, 60:64] = 1
    w[31] = 1
    with pytest.raises(ValueError) as error:
        ff.pack(w, "sparse24", values=arithmetic(fmt))
    assert str(error.value) == (
        "pack: row 23 of w has 3 nonzero weights in group 10 (columns 40 to 43), sparse24 keeps at most 2 of every 4; "
        "prune it first"
    )
    stack = np.zeros((2, 8, 7), dtype)
    stack[1, 5, 4:] = 2  # the last group has three columns, and all are used
    text = r"^pack: matrix 1: row 5 of w has 3 nonzero weights in group 1 \(columns 4 to 6\), "
    with pytest.raises(ValueError, match=text):
        ff.pack(stack, "sparse24", values=arithmetic(fmt))


def test_beyond_the_range_of_its_values():
    w = np.zeros((20, 40), np.float32)
    for values, beyond in (("f16", 65520), ("bf16", 3.3961776e38)):
        w[3, 5] = beyond
        with pytest.raises(ValueError, match="row 3.*beyond"):
            ff.pack(w, "sparse24", values=values)


def test_options():
    w = np.zeros((8, 8), np.float32)
    assert ff.info(ff.pack(w, "sparse24")).options == {"values": "bf16"}
    np.testing.assert_array_equal(ff.pack(w, "sparse24"), ff.pack(w, "sparse24", values="bf16"))
    for flags, values in enumerate(("bf16", "f16", "f32", "int8")):
        packed = ff.pack(w, "sparse24", values=values)
        assert ff.info(packed).options == {"values": values}
        assert struct.unpack_from("<BBI", packed, 10) == (5, 1, flags)
        assert ff.active_kernel("sparse24", values=values).startswith("sparse24/")
    for options, text in (
        ({"values": "int4"}, "option 'values' of format 'sparse24' is 'int4', expected bf16, f16, f32 or int8"),
        ({"values": 8}, "option 'values' of format 'sparse24' is 8, expected bf16, f16, f32 or int8"),
        ({"values": True}, "option 'values' of format 'sparse24' is true, expected bf16, f16, f32 or int8"),
        ({"group": 32}, "format 'sparse24' has no option 'group'; it takes values"),
        ({"values": w}, "option 'values' of format 'sparse24' is an array of shape (8, 8), expected bf16, f16, f32 or"),
    ):
        with pytest.raises(ValueError) as error:
            ff.pack(w, "sparse24", **options)
        assert str(error.value).startswith("pack: " + text)
    with pytest.raises(UnicodeEncodeError):
        ff.pack(w, "sparse24", values="\ud800")


@values_list
def test_corrupted_codes_are_refused(fmt):
    w = prepare_weights(fmt, normal(np.random.default_rng(7), (20, 70)))
    packed = pack(w, fmt)
    np.testing.assert_array_equal(forged(packed), packed)  # the checksum of this test is the library's
    at = 64 + (2 * 128 if fmt == "sparse24-int8" else 0) + 5
    for code in set(range(16)) - set(CODES.values()):
        damaged = packed.copy()
        damaged[at] = damaged[at] & 0xF0 | code
        for candidate, text in ((damaged, "checksum differs"), (forged(damaged), "codes that are no pair")):
            for call in (ff.verify, ff.unpack):
                with pytest.raises(ValueError, match=text):
                    call(candidate)
        # Kernels trust what they get: any code is some position of its group.
        for tokens in (1, 20):
            y = ff.linear(np.ones((tokens, 70), np.float32), forged(damaged))
            assert np.isfinite(y).all()


@values_list
def test_packing_what_was_unpacked(fmt):
    """Weights that are too small for their values vanish, and the pattern with them."""
    w = prepare_weights(fmt, normal(np.random.default_rng(8), (33, 50)))
    w[::3] *= np.float32(1e-42)
    w[1::3, ::2] *= np.float32(1e-5)
    packed = pack(w, fmt)
    again = ff.pack(ff.unpack(packed), "sparse24", values=arithmetic(fmt))
    if fmt == "sparse24-int8":
        np.testing.assert_allclose(packed_values(again), packed_values(packed), rtol=1e-6)
    else:
        np.testing.assert_array_equal(again, packed)


@values_list
def test_many_rows_agree_with_one(fmt):
    """Both regimes, and every number of rows between: the same sums but for the order of additions."""
    rng = np.random.default_rng(9)
    w = pack(normal(rng, (70, 260), scale=0.1), fmt)
    x = normal(rng, (20, 260))
    rows = np.concatenate([ff.linear(x[i : i + 1], w) for i in range(20)])
    for tokens in range(2, 21):
        np.testing.assert_allclose(ff.linear(x[:tokens], w), rows[:tokens], rtol=1e-4, atol=1e-5)
