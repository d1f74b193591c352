"""One suite for CUDA, two back ends: the same tests run on a GPU and, without one, on the emulated plugin.

    FASTFFN_EMULATED_PLUGIN=build/tests/cuda/libfastffn_cuda_emulated.so pytest tests/python -k cuda     kernels on the CPU
    pytest tests/python -k cuda --cuda gpu                                                    torch, and cupy where it is there

A test takes the fixture `cuda`, a Backend: it makes arrays and weights for "the device" and brings results back. On the emulated
device arrays are NumPy's in disguise: host memory, exported as memory of CUDA device 0. Tests that only hardware can answer ask for
the fixture `gpu` instead and are skipped elsewhere. With neither the variable nor the option, both kinds are skipped; with
``--cuda gpu`` a machine without a GPU fails. FASTFFN_TEST_SIZE=small takes fewer shapes, ``-m quick`` one of each test.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from typing import Any

import ml_dtypes
import numpy as np

import fastffn as ff
from kernel_support import DTYPES, prepare_weights
from reference.formats import CODES, FORMATS, pack_arguments

BF16 = np.dtype(ml_dtypes.bfloat16)

# Formats of tests/reference/formats.py that devices have: all but these. A format's name goes when its kernels come.
NOT_ON_DEVICES: tuple[str, ...] = ()
DEVICE_FORMATS = tuple(name for name in dict.fromkeys([*FORMATS, *CODES]) if name not in NOT_ON_DEVICES)

_CUDA, _CPU = 2, 1  # DLPack's device types


class DeviceMemory:
    """The emulated plugin's own memory: behind its last element a page that nobody may touch, and with FASTFFN_CUDA_HIDE=1 all of it
    closed to host code but for copies, as on a GPU."""

    _library: Any = None

    @classmethod
    def library(cls) -> Any:
        if cls._library is None:
            cls._library = ctypes.CDLL(os.environ["FASTFFN_CUDA_PLUGIN"])
            cls._library.fastffn_emulated_allocate.restype = ctypes.c_void_p
            cls._library.fastffn_emulated_allocate.argtypes = [ctypes.c_size_t]
            cls._library.fastffn_emulated_release.argtypes = [ctypes.c_void_p]
        return cls._library

    @classmethod
    def empty(cls, shape: Any, dtype: Any) -> np.ndarray:
        """An array there; nothing may look into it outside of access()."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = cls.library().fastffn_emulated_allocate(count)
        buffer = (ctypes.c_char * count).from_address(address)
        weakref.finalize(buffer, cls.library().fastffn_emulated_release, address).atexit = False
        return np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape) if count else np.empty(shape, dtype)

    @classmethod
    @contextlib.contextmanager
    def access(cls):
        cls.library().fastffn_emulated_access(1)
        try:
            yield
        finally:
            cls.library().fastffn_emulated_access(0)


class Namespace:
    """The array-API namespace of arrays in disguise."""

    @staticmethod
    def empty(shape, *, dtype, device):
        # Every element must be written: NaN where a dtype has it.
        return DeviceArray(np.full(shape, 0x7B if np.dtype(dtype).kind in "iu" else np.nan, dtype), device)

    @staticmethod
    def asarray(values, *, device):
        return DeviceArray(values, device)


class Device:
    """A CUDA device as array libraries say it."""

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __str__(self) -> str:
        return f"cuda:{self.id}"


class DeviceArray:
    """An array in the emulated device's memory, exported as memory of a CUDA device."""

    def __init__(self, values: np.ndarray, device: Any = None, kind: int = _CUDA) -> None:
        values = np.asarray(values)
        memory = DeviceMemory.empty(values.shape, values.dtype)
        with DeviceMemory.access():
            memory[...] = values
        self._set(memory, device, kind)

    @classmethod
    def over(cls, memory: np.ndarray, device: Any = None, kind: int = _CUDA) -> DeviceArray:
        """Memory that is there, without a copy; of the host's any is the emulated device's too."""
        made = object.__new__(cls)
        made._set(memory, device, kind)
        return made

    def _set(self, memory: np.ndarray, device: Any, kind: int) -> None:
        self.memory = memory
        self.device = device if isinstance(device, Device) else Device(device or 0)
        self.kind = kind
        self.exports: list[Any] = []  # the stream of every __dlpack__ call

    @property
    def values(self) -> np.ndarray:
        """A copy on the host."""
        with DeviceMemory.access():
            return self.memory.copy()

    def write(self, values: Any, key: Any = ...) -> None:
        """Copies values there."""
        with DeviceMemory.access():
            self.memory[key] = values

    @property
    def dtype(self):
        return self.memory.dtype

    @property
    def shape(self):
        return self.memory.shape

    def __deepcopy__(self, memo):
        return DeviceArray(self.values, self.device, self.kind)

    def __reduce__(self):
        return (DeviceArray, (self.values, self.device, self.kind))

    def __getitem__(self, key):
        """A view."""
        return DeviceArray.over(self.memory[key], self.device, self.kind)

    def __array_namespace__(self, api_version=None):
        return Namespace

    def __dlpack_device__(self):
        return (self.kind, self.device.id)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if dl_device is not None and tuple(dl_device) == (_CPU, 0):
            return self.values.__dlpack__()
        self.exports.append(stream)
        is_bf16 = self.memory.dtype == BF16
        capsule = (self.memory.view(np.uint16) if is_bf16 else self.memory).__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = get(capsule, b"dltensor")
        device = ctypes.cast(tensor + 8, ctypes.POINTER(ctypes.c_int32))  # DLTensor.device
        device[0], device[1] = self.kind, self.device.id
        if is_bf16:
            ctypes.cast(tensor + 20, ctypes.POINTER(ctypes.c_uint8))[0] = 4  # DLTensor.dtype.code: bfloat
        return capsule


class Backend:
    """A device and the arrays on it."""

    name: str
    is_gpu: bool
    dtypes: tuple[str, ...] = tuple(DTYPES)  # of x, biases and y

    def put(self, values: np.ndarray) -> Any:
        """A contiguous array on the device; `strided` for a view of one."""
        raise NotImplementedError

    def strided(self, values: np.ndarray, rows: slice, cols: slice) -> Any:
        """The view values[..., rows, cols] of an array on the device."""
        raise NotImplementedError

    def get(self, array: Any) -> np.ndarray:
        """The values, on the host; waits for the device."""
        raise NotImplementedError

    def full(self, shape: Any, value: float, dtype: str) -> Any:
        """A new array on the device, for out=."""
        return self.put(np.full(shape, value, DTYPES[dtype]))

    def bytes(self, count: int) -> Any:
        """uint8 memory on the device, for workspace=; frameworks align theirs to 256 bytes or more."""
        return self.put(np.full(count, 0xA5, np.uint8))

    def weight(self, w: np.ndarray, fmt: str) -> ff.DeviceWeight:
        """Weights in one of FORMATS or CODES of tests/reference/formats.py: w itself, or what prepare_weights() leaves of it."""
        name, options = pack_arguments(fmt)
        return self.pack(prepare_weights(fmt, w), name, **options)

    def device(self) -> Any:
        """What ff.pack() takes as device=."""
        raise NotImplementedError

    def pack(self, w: Any, format: str, **options: Any) -> ff.DeviceWeight:
        """ff.pack() for this device."""
        return ff.pack(w, format, device=self.device(), **options)

    def synchronize(self) -> None:
        """Waits for the device."""


class Emulated(Backend):
    """The emulated plugin; its one device has the host's memory."""

    name, is_gpu = "emulated", False

    def put(self, values):
        return DeviceArray(values)

    def strided(self, values, rows, cols):
        return DeviceArray(values)[..., rows, cols]

    def bytes(self, count):
        # Whole multiples of 256 bytes begin at one, as they end at a page.
        return DeviceArray(np.full((count + 255) // 256 * 256, 0xA5, np.uint8))[:count]

    def get(self, array):
        assert isinstance(array, DeviceArray) and array.device.id == 0
        return array.values

    def device(self):
        return DeviceArray(np.zeros(0, np.float32))  # an array that lies there


class Torch(Backend):
    """torch on a GPU."""

    name, is_gpu = "torch", True

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def _tensor(self, values):
        values = np.array(values, order="C")
        if values.dtype == BF16:
            return self.torch.from_numpy(values.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(values)

    def put(self, values):
        return self._tensor(values).cuda()

    def strided(self, values, rows, cols):
        return self.put(values)[..., rows, cols]

    def get(self, array):
        assert isinstance(array, self.torch.Tensor) and array.device.type == "cuda"
        host = array.cpu()
        return host.view(self.torch.int16).numpy().view(BF16) if host.dtype == self.torch.bfloat16 else host.numpy()

    def device(self):
        return self.torch.device("cuda")

    def synchronize(self):
        self.torch.cuda.synchronize()


class Cupy(Backend):
    """cupy on a GPU."""

    name, is_gpu = "cupy", True
    dtypes = ("f32", "f16")  # cupy's arrays of ml_dtypes are young

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def put(self, values):
        return self.cupy.asarray(np.array(values, order="C"))

    def strided(self, values, rows, cols):
        return self.put(values)[..., rows, cols]

    def get(self, array):
        assert isinstance(array, self.cupy.ndarray)
        return self.cupy.asnumpy(array)

    def device(self):
        return self.cupy.cuda.Device()

    def synchronize(self):
        self.cupy.cuda.Device().synchronize()


def backends(where: str) -> list[type[Backend]]:
    """Those that the option --cuda asks for: "gpu", "emulated", or "auto", which is the emulated one where its path is given."""
    if where == "emulated" or (where == "auto" and os.environ.get("FASTFFN_EMULATED_PLUGIN")):
        return [Emulated]
    if where == "auto":
        return []
    found: list[type[Backend]] = []
    try:
        import torch

        found += [Torch] if torch.cuda.is_available() else []
    except ImportError:
        pass
    try:
        import cupy

        found += [Cupy] if cupy.cuda.runtime.getDeviceCount() else []
    except Exception:
        pass
    return found


__all__ = [
    "BF16",
    "DEVICE_FORMATS",
    "DTYPES",
    "NOT_ON_DEVICES",
    "Backend",
    "Device",
    "DeviceArray",
    "Namespace",
    "backends",
]
