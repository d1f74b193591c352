"""The 2:4 mask searches and the check, against brute force."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from fastffn import _core

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
SHAPES = ((1, 1), (4, 4), (8, 64), (5, 7), (33, 70), (3, 1030), (64, 2051), (7, 4096))


def brute_patterns():
    rows = [sum(1 << c for c in pair) for pair in itertools.combinations(range(4), 2)]
    masks = []
    for chosen in itertools.product(rows, repeat=4):
        bits = np.array([[row >> c & 1 for c in range(4)] for row in chosen])
        if (bits.sum(0) == 2).all():
            masks.append((sum(row << 4 * r for r, row in enumerate(chosen)), bits))
    return sorted(masks, key=lambda entry: entry[0])


PATTERNS = brute_patterns()


def integers(rng, shape, dtype):
    """Scores whose sums are exact in f32, with many ties, of both signs."""
    return rng.integers(-6, 7, shape).astype(dtype)


def test_the_patterns():
    assert len(PATTERNS) == 90
    assert _core.patterns24() == tuple(bits for bits, _ in PATTERNS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposable_is_optimal(dtype):
    rng = np.random.default_rng(1)
    patterns = np.stack([bits for _, bits in PATTERNS])
    for rows, cols in SHAPES:
        scores = integers(rng, (rows, cols), dtype)
        padded = np.zeros((-(-rows // 4) * 4, -(-cols // 4) * 4))
        padded[:rows, :cols] = np.abs(scores.astype(np.float64))
        blocks = padded.reshape(padded.shape[0] // 4, 4, -1, 4).transpose(0, 2, 1, 3)
        sums = np.einsum("prc,ijrc->ijp", patterns, blocks)
        best = patterns[sums.argmax(-1)]  # argmax takes the lowest index, as ties do
        expected = best.transpose(0, 2, 1, 3).reshape(padded.shape)[:rows, :cols]
        mask = _core.mask24(scores, True)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest(dtype):
    rng = np.random.default_rng(2)
    for rows, cols in SHAPES:
        scores = integers(rng, (rows, cols), dtype)
        padded = np.full((rows, -(-cols // 4), 4), -1.0)
        padded.reshape(rows, -1)[:, :cols] = np.abs(scores.astype(np.float64))
        order = np.argsort(-padded, axis=-1, kind="stable")
        expected = np.zeros(padded.shape, np.uint8)
        np.put_along_axis(expected, order[..., :2], 1, axis=-1)
        np.testing.assert_array_equal(_core.mask24(scores, False), expected.reshape(rows, -1)[:, :cols])


@pytest.mark.parametrize("transposable", [False, True])
def test_layouts(transposable):
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((3, 40, 68)).astype(np.float32)
    expected = np.stack([_core.mask24(matrix.copy(), transposable) for matrix in scores])
    np.testing.assert_array_equal(_core.mask24(scores, transposable), expected)
    np.testing.assert_array_equal(_core.mask24(np.asfortranarray(scores), transposable), expected)
    wide = np.repeat(scores, 2, axis=2)
    np.testing.assert_array_equal(_core.mask24(wide[:, :, ::2], transposable), expected)
    flipped = scores[:, ::-1, ::-1].copy()
    np.testing.assert_array_equal(_core.mask24(flipped[:, ::-1, ::-1], transposable), expected)
    if transposable:
        square = scores[0, :40, :40]
        mask = _core.mask24(square, True)
        assert (mask.reshape(40, 10, 4).sum(-1) == 2).all() and (mask.T.reshape(40, 10, 4).sum(-1) == 2).all()


@pytest.mark.parametrize("transposable", [False, True])
def test_nan_and_infinity_are_kept(transposable):
    scores = np.ones((4, 8), np.float32)
    scores[1, 2], scores[3, 5], scores[0, 0] = np.nan, -np.inf, 1e38
    mask = _core.mask24(scores, transposable)
    assert mask[1, 2] and mask[3, 5] and mask[0, 0]
    assert (mask.reshape(4, 2, 4).sum(-1) == 2).all()
    empty = _core.mask24(np.zeros((0, 8), np.float32), transposable)
    assert empty.shape == (0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_check(dtype):
    rng = np.random.default_rng(4)
    for shape in (*SHAPES, (3, 17, 30), (70, 3)):
        w = integers(rng, shape, dtype)
        w[rng.random(shape) < 0.5] = -0.0
        padded = np.zeros((*shape[:-1], -(-shape[-1] // 4), 4), bool)
        padded.reshape(*shape[:-1], -1)[..., : shape[-1]] = w != 0
        counts = padded.sum(-1)
        faults = np.argwhere(counts > 2)
        first = tuple(int(i) for i in faults[0]) if len(faults) else None
        if first is not None and len(shape) == 2:
            first = (0, *first)
        expected = (tuple(int((counts == i).sum()) for i in range(5)), first)
        assert _core.check24(w) == expected
        assert _core.check24(w[..., ::-1].copy()[..., ::-1]) == expected
    assert _core.check24(np.zeros((0, 4), dtype)) == ((0, 0, 0, 0, 0), None)
    w = np.zeros((2, 8), dtype)
    w[1, 4:7] = [np.nan, np.inf, 1e-7]
    assert _core.check24(w) == ((3, 0, 0, 1, 0), (0, 1, 1))


def test_refusals():
    with pytest.raises(ValueError, match=r"^mask24: scores has shape \(8,\), expected \[rows, cols\] or"):
        _core.mask24(np.zeros(8, np.float32), False)
    with pytest.raises(ValueError, match=r"^mask24: scores has dtype i32, expected f32, f16, bf16 or f64$"):
        _core.mask24(np.zeros((8, 8), np.int32), True)
    with pytest.raises(ValueError, match=r"^check24: w has shape \(1, 2, 3, 4\), expected"):
        _core.check24(np.zeros((1, 2, 3, 4), np.float32))
