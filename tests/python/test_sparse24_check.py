"""check24: what counts as nonzero, what is counted, and how the first violation is named."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from sparse24_support import PAIRS, random24

DTYPES = [
    np.float32,
    np.float64,
    np.float16,
    ml_dtypes.bfloat16,
    np.int8,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern(dtype):
    for kept in itertools.product((0, 1), repeat=4):
        w = np.array([kept], np.float32).astype(dtype)
        if sum(kept) <= 2:
            found = ff.check24(w)
            assert found.groups[sum(kept)] == 1 and sum(found.groups) == 1
            assert found.density == sum(kept) / 4
        else:
            with pytest.raises(ValueError, match=f"row 0, group 0 .* has {sum(kept)} nonzeros"):
                ff.check24(w)


def test_all_six_pairs_are_fine():
    w = np.zeros((6, 4), np.float32)
    for row, pair in enumerate(PAIRS):
        w[row, list(pair)] = 1, -1
    assert ff.check24(w).groups == (0, 0, 6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_negative_zero_is_zero(dtype):
    w = np.array([[-0.0, 1, -0.0, 2], [-0.0, -0.0, -0.0, -0.0]], np.float32).astype(dtype)
    assert ff.check24(w).groups == (1, 0, 1)


def test_nan_infinity_and_the_smallest_are_nonzero():
    for value in (np.nan, np.inf, -np.inf, 1e-45):
        w = np.zeros((1, 4), np.float32)
        w[0, :2] = value
        assert ff.check24(w).groups == (0, 0, 1)
        w[0, 3] = value
        with pytest.raises(ValueError, match="3 nonzeros"):
            ff.check24(w)


def test_the_first_violation_is_named():
    w = random24(7, 22, holes=0)
    w[5, 9:12] = 1
    w[6, :4] = 1
    with pytest.raises(ValueError) as raised:
        ff.check24(w)
    text = str(raised.value)
    assert "row 5, group 2 (columns 8 to 11)" in text and "2 of 42 groups have more than 2" in text
    stack = np.stack([random24(3, 8), random24(3, 8, 1)])
    stack[1, 2, 4:8] = 3
    with pytest.raises(
        ValueError, match=r"matrix 1, row 2, group 1 \(columns 4 to 7\) has 4 nonzeros, .*: 3, 3, 3, 3;"
    ):
        ff.check24(stack)
    tail = np.zeros((2, 7), np.float32)
    tail[1, 4:] = 2
    with pytest.raises(ValueError, match=r"row 1, group 1 \(columns 4 to 6\) has 3 nonzeros, .*: 2, 2, 2;"):
        ff.check24(tail)


def test_a_short_last_group():
    w = np.ones((3, 2), np.float32)
    assert ff.check24(w) == ff.sparse24.Sparsity24((0, 0, 3), 6)
    assert ff.check24(w).density == 1
    assert ff.check24(np.ones((1, 1), np.float32)).groups == (0, 1, 0)


def test_torch_strides_and_errors():
    w = random24(8, 16)
    assert ff.check24(np.repeat(w, 2, axis=0)[::2]) == ff.check24(np.asfortranarray(w)) == ff.check24(w)
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        ff.check24(w[0])
    with pytest.raises(TypeError, match="dtype complex64"):
        ff.check24(w.astype(np.complex64))
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        assert ff.check24(torch.from_numpy(w).to(dtype)).groups[2] > 0
    with pytest.raises(ValueError, match="is on meta, expected an array on the CPU"):
        ff.check24(torch.empty(4, 4, device="meta"))


def test_arrays_that_only_speak_dlpack():
    from api_support import Exporter, GpuExporter

    w = random24(4, 8)
    assert ff.check24(Exporter(w)) == ff.check24(w)
    assert isinstance(ff.prune24(Exporter(w)), np.ndarray)
    with pytest.raises(ValueError, match=r"check24: w is on DLPack device \(2, 0\), expected an array on the CPU"):
        ff.check24(GpuExporter((2, 0)))
