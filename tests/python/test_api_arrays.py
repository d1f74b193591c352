"""Every kind of array in, the same kind out, without copies."""

from __future__ import annotations

import array
import mmap

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from api_support import (
    TOLERANCE,
    Exporter,
    GpuExporter,
    OldExporter,
    assert_close,
    dense,
    gelu,
    held,
    silu,
    to_numpy,
    tokens,
    weights,
)

D_MODEL, D_FF, TOKENS = 40, 72, 5
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ff.formats())
def test_numpy_linear_keeps_kind_and_dtype(format: str, dtype: str) -> None:
    w = weights(D_FF, D_MODEL)
    x = tokens(TOKENS, D_MODEL).astype(DTYPES[dtype])
    y = ff.linear(x, ff.pack(w, format))
    assert type(y) is np.ndarray
    assert y.dtype == x.dtype
    assert y.flags.c_contiguous and y.flags.writeable
    expected = x.astype(np.float64) @ held(w, format).astype(np.float64).T
    assert_close(y, expected, max(TOLERANCE[format], TOLERANCE[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_reads_every_float_dtype(dtype: str) -> None:
    w = weights(D_FF, D_MODEL).astype(DTYPES[dtype])
    assert np.array_equal(ff.unpack(ff.pack(w, "f32")), w.astype(np.float32))
    assert np.array_equal(ff.unpack(ff.pack(w.astype(np.float64), "f32")), w.astype(np.float32))


def test_numpy_ffn_all_arguments() -> None:
    w_up, w_gate, w_down = weights(D_FF, D_MODEL), weights(D_FF, D_MODEL, 7), weights(D_MODEL, D_FF, 8)
    b_up, b_gate, b_down = tokens(D_FF), tokens(D_FF, seed=2), tokens(D_MODEL, seed=3)
    x = tokens(2, 3, D_MODEL)
    y = ff.ffn(
        x,
        ff.pack(w_up, "f32"),
        ff.pack(w_down, "f32"),
        ff.pack(w_gate, "f32"),
        b_up,
        b_down.astype(np.float16),
        b_gate.astype(ml_dtypes.bfloat16),
        activation="silu",
    )
    x64 = x.astype(np.float64)
    gate = silu(x64 @ w_gate.T.astype(np.float64) + b_gate.astype(ml_dtypes.bfloat16).astype(np.float64))
    hidden = gate * (x64 @ w_up.T.astype(np.float64) + b_up)
    assert_close(y, hidden @ w_down.T.astype(np.float64) + b_down.astype(np.float16).astype(np.float64), 4e-6)


def test_keywords_and_positions_mean_the_same() -> None:
    w_up, w_down = ff.pack(weights(D_FF, D_MODEL), "f32"), ff.pack(weights(D_MODEL, D_FF), "f32")
    x = tokens(TOKENS, D_MODEL)
    options = {"".join(["activ", "ation"]): "".join(["ge", "lu"])}  # neither string is interned
    assert np.array_equal(
        ff.ffn(x, w_up, w_down, activation="gelu"), ff.ffn(w_down=w_down, x=x, w_up=w_up, w_gate=None, **options)
    )
    bias = tokens(D_FF)
    assert np.array_equal(ff.linear(x, w_up, bias), ff.linear(x, w=w_up, bias=bias, out=None))


@pytest.mark.parametrize("shape", [(D_MODEL,), (0, D_MODEL), (1, D_MODEL), (2, 1, 3, D_MODEL), (0, 4, D_MODEL)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    w_up, w_down = weights(D_FF, D_MODEL), weights(24, D_FF)
    x = tokens(*shape)
    y = ff.ffn(x, ff.pack(w_up, "f32"), ff.pack(w_down, "f32"), activation="gelu")
    assert y.shape == (*shape[:-1], 24)
    if x.size:
        assert_close(y, dense(x, w_up, w_down), 4e-6)


def test_strided_unaligned_and_read_only_inputs() -> None:
    w = weights(D_FF, D_MODEL)
    packed = ff.pack(w, "bf16")
    x = tokens(TOKENS, D_MODEL)
    expected = ff.linear(x, packed)

    wide = np.zeros((TOKENS * 2, D_MODEL + 9), np.float32)
    wide[::2, 3 : 3 + D_MODEL] = x
    assert np.array_equal(ff.linear(wide[::2, 3 : 3 + D_MODEL], packed), expected)

    def unaligned(values: np.ndarray) -> np.ndarray:
        raw = np.zeros(values.nbytes + 1, np.uint8)
        raw[1:] = values.reshape(-1).view(np.uint8)
        return raw[1:].view(values.dtype).reshape(values.shape)

    assert unaligned(x).ctypes.data % 4 == 1
    assert np.array_equal(ff.linear(unaligned(x), unaligned(packed)), expected)
    bias = tokens(D_FF)
    assert np.array_equal(ff.linear(x, packed, unaligned(bias)), ff.linear(x, packed, bias))

    frozen_x, frozen_w = x.copy(), packed.copy()
    frozen_x.flags.writeable = frozen_w.flags.writeable = False
    assert np.array_equal(ff.linear(frozen_x, frozen_w), expected)

    repeated = np.broadcast_to(x[:1], (TOKENS, D_MODEL))
    assert np.array_equal(ff.linear(repeated, packed), np.broadcast_to(expected[:1], expected.shape))

    strided_bias = np.repeat(bias, 3)[::3]
    assert np.array_equal(ff.linear(x, packed, strided_bias), ff.linear(x, packed, bias))


def test_subclasses_of_ndarray(tmp_path: object) -> None:
    w, x = weights(D_FF, D_MODEL), tokens(TOKENS, D_MODEL)
    packed = ff.pack(w, "f32")
    mapped = np.memmap(f"{tmp_path}/x", np.float32, "w+", shape=x.shape)
    mapped[:] = x
    y = ff.linear(mapped, packed)
    assert type(y) is np.ndarray and np.array_equal(y, ff.linear(x, packed))
    with pytest.raises(
        TypeError, match=r"linear: x is a masked array, whose mask fastffn cannot honour; fill it first"
    ):
        ff.linear(np.ma.masked_array(x), packed)


def test_dlpack_object_gets_its_own_kind_back() -> None:
    w_up, w_down = weights(D_FF, D_MODEL), weights(D_MODEL, D_FF)
    x = Exporter(tokens(TOKENS, D_MODEL))
    packed_up = ff.pack(Exporter(w_up), "f32")
    assert isinstance(packed_up, Exporter) and packed_up.array.dtype == np.uint8
    y = ff.ffn(x, packed_up, ff.pack(w_down, "f32"), activation="gelu")
    assert isinstance(y, Exporter)
    assert_close(y, dense(x.array, w_up, w_down), 4e-6)
    assert x.calls == [{"max_version": (1, 3)}]
    assert isinstance(ff.unpack(packed_up), Exporter)


def test_dlpack_out_is_written_in_place() -> None:
    w = weights(D_FF, D_MODEL)
    x, out = tokens(TOKENS, D_MODEL), Exporter(np.empty((TOKENS, D_FF), np.float32))
    assert ff.linear(x, ff.pack(w, "f32"), out=out) is out
    assert np.array_equal(out.array, ff.linear(x, ff.pack(w, "f32")))
    assert out.calls == [{"max_version": (1, 3), "copy": False}]


def test_immutable_out_is_refused() -> None:
    """jax's capsules are not flagged read-only."""
    kind = type("ArrayImpl", (Exporter,), {"__module__": "jaxlib._jax"})
    out = kind(np.zeros((TOKENS, D_FF), np.float32))
    with pytest.raises(ValueError) as error:
        ff.linear(tokens(TOKENS, D_MODEL), ff.pack(weights(D_FF, D_MODEL), "f32"), out=out)
    assert str(error.value) == ("linear: out (jaxlib._jax.ArrayImpl) is immutable; leave it out and use the result")
    assert not out.array.any()


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    w, x = weights(D_FF, D_MODEL), tokens(TOKENS, D_MODEL)
    packed = ff.pack(jax.numpy.asarray(w), "bf16")
    assert isinstance(packed, jax.Array) and packed.dtype == np.uint8
    for dtype in (np.float32, ml_dtypes.bfloat16):
        y = ff.linear(jax.numpy.asarray(x, dtype), packed)
        assert isinstance(y, jax.Array) and y.dtype == dtype
        assert np.array_equal(np.asarray(y), ff.linear(x.astype(dtype), ff.pack(w, "bf16")))
    with pytest.raises(ValueError, match="is immutable"):
        ff.linear(jax.numpy.asarray(x), packed, out=jax.numpy.zeros((TOKENS, D_FF)))
    with pytest.raises(BufferError, match=r"^linear: x \(\S*Tracer\) could not be exported"):
        jax.jit(lambda rows: ff.linear(rows, packed))(x)


def test_old_dlpack_object() -> None:
    w, x = weights(D_FF, D_MODEL), OldExporter(tokens(TOKENS, D_MODEL))
    y = ff.linear(x, ff.pack(w, "f32"))
    assert type(y).__name__ == "Array" and repr(y) == "<fastffn f32 array of shape (5, 72)>"
    assert y.shape == (TOKENS, D_FF) and y.dtype == "f32"
    expected = ff.linear(x.array, ff.pack(w, "f32"))
    assert np.array_equal(np.asarray(y), expected)
    assert np.array_equal(np.from_dlpack(y), expected)
    out = OldExporter(np.empty((TOKENS, D_FF), np.float32))
    assert ff.linear(x, ff.pack(w, "f32"), out=out) is out
    assert np.array_equal(out.array, expected)


def test_own_array_as_a_dlpack_producer() -> None:
    y = ff.linear(OldExporter(tokens(TOKENS, D_MODEL)), ff.pack(weights(D_FF, D_MODEL), "f32"))
    assert y.__dlpack_device__() == (1, 0)
    assert np.asarray(y).ctypes.data % 64 == 0
    shared = np.from_dlpack(y)
    assert np.shares_memory(shared, np.asarray(y))
    copied = np.from_dlpack(y, copy=True)
    assert not np.shares_memory(copied, np.asarray(y)) and np.array_equal(copied, shared)
    for name, keywords in (("dltensor", {}), ("dltensor_versioned", {"max_version": (1, 0)})):
        assert f'"{name}"' in repr(y.__dlpack__(**keywords))  # and is freed unconsumed
    with pytest.raises(ValueError, match="stream must be None"):
        y.__dlpack__(stream=1)
    with pytest.raises(BufferError, match="can only be exported there"):
        y.__dlpack__(dl_device=(2, 0))
    keep = np.from_dlpack(y)
    values = keep.copy()
    del y, shared
    assert np.array_equal(keep, values)


def test_own_array_of_bf16_has_no_buffer() -> None:
    x = OldExporter(tokens(TOKENS, D_MODEL).astype(np.float16))
    y = ff.unpack(OldExporter(ff.pack(weights(8, 8), "bf16")), "bf16")
    assert y.dtype == "bf16"
    with pytest.raises(BufferError):
        memoryview(y)
    assert np.asarray(ff.linear(x, ff.pack(weights(D_FF, D_MODEL), "f32"))).dtype == np.float16


def test_buffer_objects() -> None:
    w, x = weights(D_FF, D_MODEL), tokens(TOKENS, D_MODEL)
    packed = ff.pack(w, "f32")
    expected = ff.linear(x, packed)
    assert np.array_equal(ff.linear(x, packed.tobytes()), expected)
    assert np.array_equal(ff.linear(x, bytearray(packed.tobytes())), expected)
    assert np.array_equal(np.asarray(ff.linear(memoryview(x), packed)), expected)
    one = array.array("f", x[0].tolist())
    assert np.array_equal(np.asarray(ff.linear(one, packed)), ff.linear(x[0], packed))
    with mmap.mmap(-1, packed.nbytes) as mapped:
        mapped[:] = packed.tobytes()
        assert ff.info(mapped) == ff.info(packed)
        assert np.array_equal(ff.linear(x, mapped), expected)
    out = bytearray(expected.nbytes)
    view = memoryview(out).cast("f", expected.shape)
    assert ff.linear(x, packed, out=view) is view
    assert out == expected.tobytes()


def test_buffers_are_released() -> None:
    packed = bytearray(ff.pack(weights(D_FF, D_MODEL), "f32").tobytes())
    ff.linear(tokens(1, D_MODEL), packed)
    with pytest.raises(ValueError):
        ff.linear(tokens(1, D_MODEL + 1), packed)
    packed.append(0)  # BufferError, were an export still alive


@pytest.mark.parametrize("device", [(2, 0), (10, 1), (8, 0)])
def test_arrays_on_a_gpu_are_refused(device: tuple[int, int]) -> None:
    names = {2: "a CUDA", 10: "a ROCm", 8: "another"}
    message = (
        f"linear: x is on {names[device[0]]} device (DLPack type {device[0]}, number {device[1]}), and this call "
        "runs on the CPU; move the array there" + (", or pack the weights with device=" if device[0] == 2 else "")
    )
    with pytest.raises(RuntimeError) as error:
        ff.linear(GpuExporter(device), ff.pack(weights(D_FF, D_MODEL), "f32"))
    assert str(error.value) == message


def test_broken_exporters() -> None:
    packed = ff.pack(weights(D_FF, D_MODEL), "f32")

    class Raises:
        def __dlpack__(self, **keywords: object) -> object:
            raise BufferError("not today")

    class Lies:
        def __dlpack__(self, **keywords: object) -> object:
            return 42

    class Copies(Exporter):
        def __dlpack__(self, **keywords: object) -> object:
            return self.array.__dlpack__(max_version=(1, 0), copy=True)

    with pytest.raises(BufferError, match=r"linear: x \(\S*Raises\) could not be exported: not today") as error:
        ff.linear(Raises(), packed)
    assert isinstance(error.value.__cause__, BufferError)
    with pytest.raises(BufferError, match=r"linear: x: __dlpack__ of \S*Lies returned no DLPack capsule"):
        ff.linear(Lies(), packed)
    with pytest.raises(BufferError, match=r"linear: out exports a copy of itself, so nothing can be written to it"):
        ff.linear(tokens(1, D_MODEL), packed, out=Copies(np.empty((1, D_FF), np.float32)))
    frozen = np.empty((1, D_FF), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"linear: out is read-only"):
        ff.linear(tokens(1, D_MODEL), packed, out=Exporter(frozen))
    assert np.array_equal(
        to_numpy(ff.linear(Exporter(tokens(1, D_MODEL)), packed)), ff.linear(tokens(1, D_MODEL), packed)
    )


def test_gelu_helper_is_the_exact_one() -> None:
    # The oracle above must not be the tanh approximation: they differ by 5e-4 near |x| = 2.
    assert abs(gelu(np.array([2.0]))[0] - 1.9544997361036416) < 1e-15
