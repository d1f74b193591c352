"""Bytes to devices, by the framework whose array they become, and arrays back; nothing is imported that the caller did not.

A framework is found by what the caller holds: an array on the device, or a device as the framework says it. A name ("cuda", "cuda:1")
says none: torch, cupy and jax are asked in this order, those first that are imported already.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from typing import Any

_CUDA = (2, 13)  # DLPack's device types: CUDA, and its managed memory


def framework_of(thing: Any) -> str:
    """The package that an object's type, or one that it derives from, is from: "torch", "cupy", "jax", "cuda"; else the type's own."""
    packages = [base.__module__.partition(".")[0] for base in type(thing).__mro__]
    for package in packages:
        if package in _KNOWN:
            return _KNOWN[package]
    return packages[0]


_KNOWN = {"numpy": "numpy", "torch": "torch", "cupy": "cupy", "jax": "jax", "jaxlib": "jax", "cuda": "cuda"}


def is_on_device(array: Any) -> bool:
    """Whether an array lies on a CUDA device."""
    kind = getattr(getattr(array, "device", None), "type", None)
    if isinstance(kind, str):  # torch's way; it has tensors that DLPack does not export
        return kind == "cuda"
    if not hasattr(array, "__dlpack_device__") or framework_of(array) == "numpy":
        return False
    return int(array.__dlpack_device__()[0]) in _CUDA


def number_of(device: Any) -> int | None:
    """The number that a device's name ends in; None where it has none, or is no name of a CUDA device."""
    kind, colon, number = str(device).partition(":")
    return int(number) if kind == "cuda" and colon and number.isdigit() else None


def to_host(array: Any) -> Any:
    """Plain weights as an array in the host's memory: torch's stay torch's (bf16 has no NumPy dtype), others become NumPy's."""
    import numpy as np

    kind = framework_of(array)
    if hasattr(array, "detach") and hasattr(array, "cpu"):
        return array.detach().cpu()
    if not is_on_device(array):
        return array
    if kind == "cupy":
        return array.get()
    if kind == "jax":
        return np.asarray(array)
    return np.from_dlpack(_OnHost(array))


# What array namespaces call our dtypes.
_DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8", "u8": "uint8", "i32": "int32", "i64": "int64",
}  # fmt: skip


def empty(like: Any, shape: tuple[int, ...], dtype: str, operation: str) -> Any:
    """A new array beside `like`, which lies on a device: of its framework's own allocation, which follows its streams."""
    name = _DTYPES[dtype]
    if framework_of(like) == "cupy":
        import cupy

        with like.device:
            return cupy.empty(shape, dtype=_dtype(cupy, name, operation))
    if not (hasattr(like, "__array_namespace__") and hasattr(like, "device")):
        raise TypeError(
            f"{operation}: {type(like).__module__}.{type(like).__qualname__} says no array namespace in which the result could be made;"
            " pass out="
        )
    space = like.__array_namespace__()
    return space.empty(shape, dtype=_dtype(space, name, operation), device=like.device)


def _dtype(space: Any, name: str, operation: str) -> Any:
    if hasattr(space, name):
        return getattr(space, name)
    import numpy as np

    try:
        if name != "bfloat16":
            return np.dtype(name)
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    except ImportError as error:
        raise RuntimeError(
            f"{operation}: the result is {name}, which needs ml_dtypes here; install it, or pass out="
        ) from error


class _OnHost:
    """Asks a producer for its copy on the host, as DLPack 1.0 has it; NumPy before 2.1 cannot."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **_: Any) -> Any:
        return self._array.__dlpack__(dl_device=(1, 0), copy=True)


def to_device(host: Any, device: Any, operation: str) -> Any:
    """NumPy bytes as an array on `device`: a name, a framework's device, or an array that lies there."""
    if is_on_device(device):
        put = _BY_ARRAY.get(framework_of(device), _like_array_api)
        return put(host, device)
    kind = framework_of(device)
    if kind in _BY_DEVICE:
        return _BY_DEVICE[kind](host, device)
    if str(device).partition(":")[0] != "cuda":
        raise ValueError(
            f"{operation}: device is {str(device)!r}, expected {'' if operation == 'to_device' else 'the CPU, or '}a CUDA device: a name such as 'cuda:0', a device of"
            " torch, cupy, jax or cuda.core, or an array that lies there"
        )
    return _by_name(host, device, operation)


def _by_name(host: Any, device: Any, operation: str) -> Any:
    names = sorted(("torch", "cupy", "jax"), key=lambda name: name not in sys.modules)
    reasons = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError:
            reasons.append(f"{name} is not installed")
            continue
        if not (reason := _FINDS_NONE[name](module)):
            return _BY_NAME[name](host, number_of(device))
        reasons.append(f"{name} {reason}")
    raise RuntimeError(
        f"{operation}: device={str(device)!r} needs a framework that copies the packed bytes there: {', '.join(reasons)}; or give"
        " an array that lies there as device="
    )


def _torch_reason(torch: Any) -> str:
    return "" if torch.cuda.is_available() else "finds no CUDA device"


def _cupy_reason(cupy: Any) -> str:
    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "finds no CUDA device"
    except Exception as error:
        return f"finds no CUDA device ({error})"


def _jax_reason(jax: Any) -> str:
    try:
        return "" if jax.devices("cuda") else "finds no CUDA device"
    except RuntimeError:
        return "finds no CUDA device"


def _torch(host: Any, device: Any) -> Any:
    import torch

    made = torch.from_numpy(host).to(device)
    if made.device.type != "cuda":
        raise ValueError(f"pack: device is {str(device)!r}, expected the CPU or a CUDA device")
    return made


def _torch_like(host: Any, array: Any) -> Any:
    return _torch(host, array.device)


def _torch_number(host: Any, number: int | None) -> Any:
    return _torch(host, "cuda" if number is None else f"cuda:{number}")


def _cupy(host: Any, device: Any) -> Any:
    import cupy

    with device:
        return cupy.asarray(host)


def _cupy_like(host: Any, array: Any) -> Any:
    return _cupy(host, array.device)


def _cupy_number(host: Any, number: int | None) -> Any:
    import cupy

    return _cupy(host, cupy.cuda.Device(number))


def _jax(host: Any, device: Any) -> Any:
    import jax

    return jax.device_put(host, device)


def _jax_like(host: Any, array: Any) -> Any:
    devices = list(array.devices())
    if len(devices) != 1:
        raise ValueError(f"pack: the array lies on {len(devices)} devices, expected one")
    return _jax(host, devices[0])


def _jax_number(host: Any, number: int | None) -> Any:
    import jax

    return _jax(host, jax.devices("cuda")[number or 0])


def _cuda_core(host: Any, device: Any) -> Any:
    """A cuda.core Buffer: its bytes go through pinned memory, the only host memory that a Buffer is copied from."""
    import numpy as np

    core = importlib.import_module(type(device).__module__.partition("._")[0])
    previous = core.Device()
    device.set_current()
    try:
        stream = device.default_stream
        pinned = core.LegacyPinnedMemoryResource().allocate(host.nbytes)
        ctypes.memmove(np.from_dlpack(pinned).ctypes.data, host.ctypes.data, host.nbytes)  # NumPy calls it read-only
        made = device.allocate(host.nbytes, stream=stream)
        made.copy_from(pinned, stream=stream)
        stream.sync()
        pinned.close()
    finally:
        previous.set_current()
    return made


def _cuda_core_like(host: Any, buffer: Any) -> Any:
    core = importlib.import_module(type(buffer).__module__.partition("._")[0])
    return _cuda_core(host, core.Device(int(buffer.__dlpack_device__()[1])))


def _like_array_api(host: Any, array: Any) -> Any:
    """Any library of the array API standard."""
    if not (hasattr(array, "__array_namespace__") and hasattr(array, "device")):
        raise TypeError(
            f"pack: {type(array).__module__}.{type(array).__qualname__} says no array namespace that copies the packed bytes to its"
            " device; copy them yourself and call fastffn.device_weight"
        )
    return array.__array_namespace__().asarray(host, device=array.device)


_Put = Callable[[Any, Any], Any]
_BY_ARRAY: dict[str, _Put] = {"torch": _torch_like, "cupy": _cupy_like, "jax": _jax_like, "cuda": _cuda_core_like}
_BY_DEVICE: dict[str, _Put] = {"torch": _torch, "cupy": _cupy, "jax": _jax, "cuda": _cuda_core}
_BY_NAME: dict[str, _Put] = {"torch": _torch_number, "cupy": _cupy_number, "jax": _jax_number}
_FINDS_NONE: dict[str, Callable[[Any], str]] = {"torch": _torch_reason, "cupy": _cupy_reason, "jax": _jax_reason}
