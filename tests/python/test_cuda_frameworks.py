"""cupy, jax, cuda.core and bare DLPack producers on devices: what is asked of them, and what they get back. The packages are
fakes (fake_frameworks.py) on the emulated device; the suite on a GPU runs the real ones."""

import sys

import numpy as np
import pytest

import fake_frameworks
import fastffn as ff
from cuda_support import Backend, DeviceArray
from kernel_support import DTYPES, normal

RNG = np.random.default_rng(0)
W, X = normal(RNG, (12, 40)), normal(RNG, (3, 40))
EXPECTED = X @ np.asarray(ff.unpack(ff.pack(W, "f16"))).T


@pytest.fixture
def emulated(cuda: Backend):
    if cuda.is_gpu:
        pytest.skip("fakes are for the emulated device")
    return cuda


def close(y, dtype=np.float32):
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(np.float32), EXPECTED, atol=1e-4 if dtype == np.float32 else 2e-2)


def without(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("where", ["cuda", "cuda:0", "device", "array"])
def test_cupy(emulated, monkeypatch, where):
    cupy = fake_frameworks.cupy(monkeypatch)
    without(monkeypatch, "torch", "jax")
    device = {"device": cupy.cuda.Device(0), "array": cupy.asarray(X)}.get(where, where)
    for w in (W, cupy.asarray(W)):
        packed = ff.pack(w, "f16", device=device)
        assert type(packed.array) is cupy.ndarray and packed.device == 0
        y = ff.linear(cupy.asarray(X), packed)
        assert type(y) is cupy.ndarray
        close(y.values)
    here = ff.pack(cupy.asarray(W), "f16")  # where w is
    assert type(here.array) is cupy.ndarray
    assert type(ff.unpack(here)) is cupy.ndarray and type(ff.to_cpu(here)) is np.ndarray
    half = ff.linear(cupy.asarray(X.astype(np.float16)), here)
    assert type(half) is cupy.ndarray
    close(half.values, np.float16)


@pytest.mark.parametrize("current, exported", [(0, 1), (1, 1), (2, 2), (0x7000, 0x7000)])
def test_cupy_works_on_its_current_stream(emulated, monkeypatch, current, exported):
    cupy = fake_frameworks.cupy(monkeypatch, current)
    without(monkeypatch, "torch", "jax")
    packed = ff.pack(W, "f16", device="cuda")
    x = cupy.asarray(X)
    close(ff.linear(x, packed).values)
    assert set(x.exports) == {exported}
    x.exports.clear()
    close(ff.linear(x, packed, stream=fake_frameworks.Stream(0x9000)).values)
    assert set(x.exports) == {0x9000}


def test_jax(emulated, monkeypatch):
    jax = fake_frameworks.jax(monkeypatch)
    without(monkeypatch, "torch", "cupy")
    on_device = jax.device_put(X, jax.devices()[0])
    for device in ("cuda", jax.devices()[0], on_device):
        packed = ff.pack(W, "f16", device=device)
        assert type(packed.array) is jax.Array
    assert type(ff.pack(on_device, "f16").array) is jax.Array
    y = ff.linear(on_device, packed)
    assert type(y) is jax.Array and set(on_device.exports) == {1}
    close(y.values)
    with pytest.raises(ValueError, match="linear: out .* is immutable"):
        ff.linear(on_device, packed, out=y)
    y = ff.ffn(on_device, packed, ff.pack(normal(RNG, (7, 12)), "f16", device="cuda"), activation="relu")
    assert type(y) is jax.Array and y.shape == (3, 7)


def test_buffers_of_cuda_core(emulated, monkeypatch):
    core = fake_frameworks.cuda_core(monkeypatch)
    without(monkeypatch, "torch", "cupy", "jax")
    packed = ff.pack(W, "f16", device=core.Device(0))
    assert core.state.copies == core.state.waits == 1
    x = emulated.put(X)
    close(emulated.get(ff.linear(x, packed)))
    again = ff.to_device(ff.to_cpu(packed), packed.array)  # beside another buffer
    assert type(again.array) is type(packed.array)
    workspace = core.Device(0).allocate(1 << 16, None)
    close(emulated.get(ff.linear(x, packed, workspace=workspace)))
    with pytest.raises(ValueError, match="linear: x has dtype|linear: x is"):
        ff.linear(workspace, packed)


def test_producers_without_a_namespace(emulated):
    class Bare:
        """__dlpack__ and nothing else."""

        def __init__(self, values):
            self.inner = DeviceArray(values)

        def __dlpack_device__(self):
            return self.inner.__dlpack_device__()

        def __dlpack__(self, *, stream=None):
            return self.inner.__dlpack__(stream=stream)

    packed = emulated.weight(W, "f16")
    with pytest.raises(TypeError, match="linear: .*Bare says no array namespace.*pass out="):
        ff.linear(Bare(X), packed)
    out = Bare(np.full((3, 12), np.nan, np.float32))
    assert ff.linear(Bare(X), packed, out=out) is out
    close(out.inner.values)
    with pytest.raises(TypeError, match="pack: .*Bare says no array namespace that copies"):
        ff.pack(W, "f16", device=Bare(X))


def test_a_name_finds_the_framework_that_is_there(emulated, monkeypatch):
    without(monkeypatch, "torch", "cupy", "jax")
    with pytest.raises(RuntimeError, match="torch is not installed, cupy is not installed, jax is not installed"):
        ff.pack(W, "f16", device="cuda")
    cupy = fake_frameworks.cupy(monkeypatch)
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(RuntimeError, match="cupy finds no CUDA device"):
        ff.pack(W, "f16", device="cuda:0")
    fake_frameworks.jax(monkeypatch)
    assert type(ff.pack(W, "f16", device="cuda").array).__module__.startswith("jaxlib")


def test_mixed_devices_are_refused(emulated):
    packed = emulated.weight(W, "f16")
    elsewhere = DeviceArray(X, 1)
    with pytest.raises(ValueError, match="linear: x is on CUDA device 1, and the call is on CUDA device 0"):
        ff.linear(elsewhere, packed)
    with pytest.raises(ValueError, match="linear: bias is on CUDA device 1"):
        ff.linear(emulated.put(X), packed, DeviceArray(np.zeros(12, np.float32), 1))
    with pytest.raises(ValueError, match="linear: workspace is on CUDA device 1"):
        ff.linear(emulated.put(X), packed, workspace=DeviceArray(np.zeros(1 << 16, np.uint8), 1))
    with pytest.raises(ValueError, match="device_weight: device number 1, and there are 1|device number 1"):
        ff.device_weight(DeviceArray(packed.array.values, 1))
    with pytest.raises(ValueError, match="linear: x has shape \\(\\)"):
        ff.linear(emulated.put(np.float32(1)), packed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_dtype_of_x(cuda, dtype):
    if dtype not in cuda.dtypes:
        pytest.skip(f"{cuda.name} has no arrays of it")
    y = ff.linear(cuda.put(X.astype(DTYPES[dtype])), cuda.weight(W, "f16"))
    assert cuda.get(y).dtype == DTYPES[dtype]
