"""Packed weights between the CPU and devices: exact, whatever carries them; see cuda_support.py."""

import copy
import pickle

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DEVICE_FORMATS, NOT_ON_DEVICES, Device, DeviceArray
from fastffn import _core
from kernel_support import normal
from reference.formats import CODES, pack_arguments, prepare_weights

formats = pytest.mark.parametrize("fmt", DEVICE_FORMATS)
SHAPES = ((1, 1), (5, 8), (16, 64), (33, 100), (130, 257), (3, 17, 70))


def packed_pair(fmt, shape, seed=0):
    """Plain weights, and a CPU's bytes of them."""
    w = prepare_weights(fmt, normal(np.random.default_rng([seed, *shape]), shape))
    name, options = pack_arguments(fmt)
    return w, ff.pack(w, name, **options)


@formats
def test_there_and_back_is_exact(cuda, fmt):
    for shape in SHAPES:
        w, packed = packed_pair(fmt, shape)
        there = ff.to_device(packed, cuda.device())
        np.testing.assert_array_equal(cuda.get(there.array), cuda.get(cuda.weight(w, fmt).array))
        back = ff.to_cpu(there)
        np.testing.assert_array_equal(np.asarray(back), packed)
        ff.verify(np.asarray(back))


@formats
def test_what_a_device_weight_says(cuda, fmt):
    w, packed = packed_pair(fmt, (3, 17, 70))
    there = ff.to_device(packed, cuda.device())
    here = ff.info(packed)
    found = ff.info(there)
    assert (found.format, found.shape, found.options) == (here.format, here.shape, here.options)
    assert (there.format, there.count, there.out_features, there.in_features) == (here.format, 3, 17, 70)
    assert found.nbytes == there.nbytes and there.header == bytes(cuda.get(there.array)[:64])
    ff.verify(there)
    np.testing.assert_array_equal(cuda.get(ff.unpack(there)), ff.unpack(packed))
    if fmt in CODES or fmt == "int8":
        for a, b in zip(ff.unpack_codes(there), ff.unpack_codes(packed), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("factors", ["bf16", "f16", "f32", "int8"])
def test_pairs_of_factors(cuda, factors):
    rng = np.random.default_rng(7)
    for out, depth, rank in ((40, 100, 7), (33, 600, 20)):
        u, v = normal(rng, (rank, depth)), normal(rng, (out, rank))
        packed = ff.pack((u, v), "lowrank", factors=factors)
        there = cuda.pack((u, v), "lowrank", factors=factors)
        np.testing.assert_array_equal(cuda.get(ff.to_device(packed, cuda.device()).array), cuda.get(there.array))
        assert ff.info(there).options == ff.info(packed).options
        np.testing.assert_array_equal(np.asarray(ff.to_cpu(there)), packed)
        np.testing.assert_array_equal(cuda.get(ff.unpack(there)), ff.unpack(packed))


def test_special_values_come_back(cuda):
    w = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-40, 3.4e38, -1.5, 2.0**-149]], np.float32)
    for fmt in ("f32", "bf16", "f16"):
        packed = ff.pack(w if fmt == "f32" else np.where(np.abs(w) > 6e4, np.inf, w), fmt)
        np.testing.assert_array_equal(np.asarray(ff.to_cpu(ff.to_device(packed, cuda.device()))), packed)


def test_rows_of_zeros_and_given_scales_come_back(cuda):
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 2, (9, 100)).astype(np.int8)
    nibbles = rng.integers(0, 16, (9, 100)).astype(np.uint8)
    scales, zeros = normal(rng, (9, 4)), rng.integers(0, 16, (9, 4)).astype(np.float32)
    zero_rows = normal(rng, (20, 33))
    zero_rows[3] = zero_rows[17] = 0
    for packed in (
        ff.pack(codes, "ternary", scale=np.full(1, 0.3, np.float32)),
        ff.pack(codes, "ternary", scale=scales, group=32, order="rows"),
        ff.pack(nibbles, "int4", scales=scales, group=32),
        ff.pack(nibbles, "int4", scales=scales, zeros=zeros, group=32),
        ff.pack(nibbles, "int4", scales=scales, minima=normal(rng, (9, 4)), group=32, order="columns"),
        ff.pack(zero_rows, "int8"),
        ff.pack(zero_rows, "ternary", scale="row"),
    ):
        np.testing.assert_array_equal(np.asarray(ff.to_cpu(ff.to_device(packed, cuda.device()))), packed)


def test_copies_and_pickles(cuda):
    w, _ = packed_pair("int8", (12, 40))
    x = cuda.put(normal(np.random.default_rng(2), (3, 40)))
    there = cuda.weight(w, "int8")
    y = cuda.get(ff.linear(x, there))
    assert copy.copy(there).array is there.array
    for other in (copy.deepcopy(there), pickle.loads(pickle.dumps(there))):
        assert isinstance(other, ff.DeviceWeight) and other.array is not there.array
        np.testing.assert_array_equal(cuda.get(ff.linear(x, other)), y)
    again = ff.device_weight(there.array)  # as a file brings it
    np.testing.assert_array_equal(cuda.get(ff.linear(x, again)), y)
    np.testing.assert_array_equal(cuda.get(ff.linear(x, ff.to_device(there, cuda.device()))), y)


def test_bytes_of_a_file(cuda):
    """Bytes in the devices' order on a machine without one: back to the CPU's, or on to a device."""
    w, packed = packed_pair("int4-zp", (12, 40))
    saved = cuda.get(cuda.weight(w, "int4-zp").array).copy()
    np.testing.assert_array_equal(ff.to_cpu(saved), packed)
    np.testing.assert_array_equal(cuda.get(ff.to_device(saved, cuda.device()).array), saved)
    with pytest.raises(ValueError, match="packed for CUDA devices.*runs on the CPU"):
        ff.linear(normal(np.random.default_rng(3), (1, 40)), saved)
    with pytest.raises(ValueError, match="to_cpu: packed has layout 1, expected 2"):
        ff.to_cpu(packed)


@pytest.mark.parametrize("at", [0, 11, 20, 63, 64, 200])
def test_damage_is_found(cuda, at):
    w, packed = packed_pair("bf16", (12, 40))
    broken = packed.copy()
    broken[at] ^= 4
    with pytest.raises(ValueError, match="to_device: packed"):
        ff.to_device(broken, cuda.device())
    saved = cuda.get(cuda.weight(w, "bf16").array).copy()
    saved[at] ^= 4
    with pytest.raises(ValueError, match="to_cpu: packed"):
        ff.to_cpu(saved)
    if at < 64:
        with pytest.raises(ValueError, match="device_weight: packed"):
            _core.device_weight(cuda.weight(w, "bf16").array, None, bytes(saved[:64]))
    else:
        with pytest.raises(ValueError, match="damaged weights"):
            ff.verify(ff.device_weight(cuda.put(saved)))


def test_bytes_that_changed_behind_a_weight(cuda):
    w, _ = packed_pair("bf16", (12, 40))
    if cuda.is_gpu:
        pytest.skip("writes into a weight as only host memory lets us")
    there = cuda.weight(w, "bf16")
    there.array.write(there.array.values[16] ^ 1, 16)
    with pytest.raises(ValueError, match="copy_to_host: .*another header"):
        ff.to_cpu(there)


@pytest.mark.parametrize("fmt", NOT_ON_DEVICES)
def test_formats_without_kernels_are_refused(cuda, fmt):
    _, packed = packed_pair(fmt, (12, 64))
    with pytest.raises(RuntimeError, match="to_device: format '.*': .*no "):
        ff.to_device(packed, cuda.device())


def test_wrong_arguments(cuda):
    w, packed = packed_pair("bf16", (12, 40))
    with pytest.raises(ValueError, match="to_device: packed lies on a device already"):
        ff.to_device(cuda.weight(w, "bf16").array, cuda.device())
    with pytest.raises(ValueError, match="to_device: packed is a plain f32 array"):
        ff.to_device(w, cuda.device())
    with pytest.raises(ValueError, match="to_device: device is 'cpu'"):
        ff.to_device(packed, "cpu")
    with pytest.raises(ValueError, match="to_device: device is 'tpu'"):
        ff.to_device(packed, "tpu")


def test_int8_bytes_as_cuda_core_has_them(cuda):
    if cuda.is_gpu:
        pytest.skip("the GPU suite has real buffers")
    w, packed = packed_pair("bf16", (12, 40))
    there = ff.device_weight(DeviceArray(cuda.weight(w, "bf16").array.values.view(np.int8), Device(0)))
    np.testing.assert_array_equal(ff.to_cpu(there), packed)
