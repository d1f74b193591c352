"""cupy, jax and cuda.core as far as fastffn uses them, on the host's memory: what their arrays, devices and streams answer follows
their documentation. Arrays are those in disguise of cuda_support.py."""

from __future__ import annotations

import sys
import types

import numpy as np

from cuda_support import BF16, DeviceArray


def _module(monkeypatch, name, **contents):
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Stream:
    """A stream by its handle, as objects of these packages say it."""

    def __init__(self, handle):
        self.handle = self.ptr = handle

    def __cuda_stream__(self):
        return (0, self.handle)


def cupy(monkeypatch, current=0):
    """import cupy, with `current` as its current stream."""

    class Device:
        def __init__(self, number=None):
            self.id = number or 0

        def __enter__(self):
            self.entered = True
            return self

        def __exit__(self, *_):
            self.entered = False

        def __repr__(self):
            return f"<CUDA Device {self.id}>"

    class ndarray(DeviceArray):
        def __init__(self, values, device=None):
            super().__init__(values)
            self.device = device or Device()
            self.__array_namespace__ = None  # cupy had none before version 14

        def __dlpack_device__(self):
            return (2, self.device.id)

        def get(self):
            return self.values

    Device.__module__ = "cupy.cuda.device"
    ndarray.__module__ = "cupy._core.core"

    def empty(shape, dtype):
        return ndarray(np.full(shape, 0x7B if np.dtype(dtype).kind in "iu" else np.nan, dtype))

    cuda = types.SimpleNamespace(
        Device=Device,
        get_current_stream=lambda: Stream(current),
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1),
    )
    return _module(
        monkeypatch, "cupy", ndarray=ndarray, asarray=lambda a: ndarray(np.array(a)), empty=empty, cuda=cuda, float32=np.float32,
        float16=np.float16, int32=np.int32, uint8=np.uint8,
    )  # fmt: skip


def jax(monkeypatch):
    """import jax: arrays are immutable, and know no streams of their users."""

    class Device:
        platform, id = "gpu", 0

        def __str__(self):
            return "cuda:0"

    class numpy_:
        float32, float16, int32, uint8, bfloat16 = np.float32, np.float16, np.int32, np.uint8, BF16

        @staticmethod
        def empty(shape, dtype, device):
            return ArrayImpl(np.zeros(shape, dtype), device)

    class ArrayImpl(DeviceArray):
        def __init__(self, values, device):
            super().__init__(values)
            self.device = device

        def devices(self):
            return {self.device}

        def __array_namespace__(self, api_version=None):
            return numpy_

        def __dlpack_device__(self):
            return (2, self.device.id)

        def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
            assert stream is None or stream == -1 or stream >= 1  # 0 is ambiguous
            return DeviceArray.__dlpack__(self, stream=stream)

        def __array__(self, dtype=None, copy=None):
            return self.values

    Device.__module__ = ArrayImpl.__module__ = "jaxlib._jax"
    device = Device()
    return _module(
        monkeypatch,
        "jax",
        devices=lambda kind=None: [device],
        device_put=lambda a, d: ArrayImpl(np.array(a), d),
        Array=ArrayImpl,
    )


def cuda_core(monkeypatch):
    """from cuda.core import Device: buffers are bytes, copied from pinned memory; one device is current."""
    state = types.SimpleNamespace(current=None, copies=0, waits=0)

    class CoreStream(Stream):
        def sync(self):
            state.waits += 1

    class Buffer(DeviceArray):
        def __init__(self, size, number):
            super().__init__(np.zeros((size + 255) // 256 * 256, np.int8), number)
            self.memory = self.memory[:size]

        def copy_from(self, source, *, stream):
            assert isinstance(source, Pinned) and state.current is not None
            state.copies += 1
            self.write(source.values)

    class Pinned:
        def __init__(self, size):
            self.values = np.empty(size, np.int8)

        def __dlpack_device__(self):
            return (3, 0)  # kDLCUDAHost

        def __dlpack__(self, **_):
            return self.values.__dlpack__()

        def close(self):
            self.values = None

    class Device:
        def __init__(self, number=None):
            self.device_id = number or 0

        default_stream = CoreStream(1)

        def set_current(self):
            state.current = self.device_id

        def allocate(self, size, stream):
            return Buffer(size, self.device_id)

        def __repr__(self):
            return f"<Device {self.device_id}>"

    class LegacyPinnedMemoryResource:
        def allocate(self, size):
            return Pinned(size)

    Device.__module__, Buffer.__module__ = "cuda.core._device", "cuda.core._memory._buffer"
    _module(monkeypatch, "cuda")
    core = _module(
        monkeypatch, "cuda.core", Device=Device, LegacyPinnedMemoryResource=LegacyPinnedMemoryResource, state=state
    )
    return core
