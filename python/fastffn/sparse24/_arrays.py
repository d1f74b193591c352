"""Weights of either kind, NumPy or torch, as NumPy values or as plain bits, and back to what the caller holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[Any]  # f32 or f64
Bits: TypeAlias = npt.NDArray[Any]  # uint8, uint16, uint32 or uint64
Mask: TypeAlias = npt.NDArray[np.bool_]

_FLOATS = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
# The sign bit is the highest and all other bits are zero in a zero: what _Bits relies on. (Not so in the fnuz kinds.)
_NARROW = {"float8_e4m3fn": 1, "float8_e5m2": 1}
_CPU = 1  # kDLCPU
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Source:
    """One array of the caller. `array` is a NumPy array, of its values where NumPy has the dtype, else of its bits."""

    array: npt.NDArray[Any]
    dtype: str  # NumPy's name
    torch: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def bits(self) -> Bits:
        """The elements as unsigned integers, contiguous."""
        words: Bits = np.ascontiguousarray(self.array).view(_UNSIGNED[self.array.dtype.itemsize])
        return words

    def nonzero(self) -> Mask:
        """Which elements are not zero; -0.0 is zero, NaN is not."""
        bits = self.bits()
        if not self.dtype.startswith("int"):
            bits = bits << np.array(1, bits.dtype)  # without the sign
        mask: Mask = bits != 0
        return mask

    def floats(self) -> Floats:
        """The values as f32, or f64 where they are f64. May share memory with the caller's array."""
        if self.torch and self.dtype == "bfloat16":
            widened: Floats = (self.bits().astype(np.uint32) << np.uint32(16)).view(np.float32)
            return widened
        return np.asarray(self.array, np.float64 if self.dtype == "float64" else np.float32)

    def from_bits(self, bits: Bits) -> Any:
        """An array of this kind and dtype with these bits."""
        if not self.torch:
            return np.ascontiguousarray(bits).view(self.array.dtype)
        torch = sys.modules["torch"]
        signed = np.ascontiguousarray(bits).view(f"i{bits.dtype.itemsize}")
        return torch.from_numpy(signed).view(getattr(torch, self.dtype))

    def from_floats(self, values: Floats) -> Any:
        """An array of this kind and dtype with these values, rounded to nearest."""
        if not self.torch:
            return np.ascontiguousarray(values.astype(self.array.dtype, copy=False))
        torch = sys.modules["torch"]
        return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, self.dtype))


def read(operation: str, name: str, array: Any, *, narrow: bool = False, dims: tuple[int, ...] = ()) -> Source:
    """The caller's array: f32, f64, f16 or bf16; with `narrow` also int8 and fp8. `dims`: the numbers of dimensions allowed.

    Raises:
        TypeError: no array, or one whose dtype does not fit. ValueError: another number of dimensions, or not on the CPU.
    """
    source = _read(operation, name, array)
    known = {**_FLOATS, **(_NARROW | {"int8": 1} if narrow else {})}
    if source.dtype not in known:
        raise TypeError(f"{operation}: {name} has dtype {source.dtype}, expected one of {', '.join(known)}")
    if dims and len(source.shape) not in dims:
        counts = " or ".join(map(str, dims))
        raise ValueError(f"{operation}: {name} has shape {source.shape}, expected {counts} dimensions")
    if 0 in source.shape[-2:]:
        raise ValueError(f"{operation}: {name} has shape {source.shape}, expected no dimension of 0")
    return source


def read_integers(operation: str, name: str, array: Any, kinds: tuple[str, ...], dims: int) -> npt.NDArray[Any]:
    """An integer array, such as metadata, as NumPy's; `kinds`: names of the dtypes allowed."""
    source = _read(operation, name, array)
    if source.dtype not in kinds:
        raise TypeError(f"{operation}: {name} has dtype {source.dtype}, expected {' or '.join(kinds)}")
    if len(source.shape) != dims:
        raise ValueError(f"{operation}: {name} has shape {source.shape}, expected {dims} dimensions")
    return np.ascontiguousarray(source.array)


def like(source: Source, array: npt.NDArray[Any]) -> Any:
    """A NumPy array as the kind of array that `source` was."""
    array = np.ascontiguousarray(array)
    return sys.modules["torch"].from_numpy(array) if source.torch else array


def is_torch(array: Any) -> bool:
    """Whether this is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _read(operation: str, name: str, array: Any) -> Source:
    if is_torch(array):
        torch = sys.modules["torch"]
        tensor = array.detach()
        if tensor.device.type != "cpu":
            raise ValueError(f"{operation}: {name} is on {tensor.device}, expected an array on the CPU")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype == "bfloat16":
            tensor = tensor.contiguous().view(torch.int16)
        elif dtype.startswith("float8"):
            tensor = tensor.contiguous().view(torch.uint8)
        return Source(tensor.resolve_neg().numpy(), dtype, True)
    if not isinstance(array, np.ndarray):
        if not hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
            raise TypeError(f"{operation}: {name} is of type {type(array).__name__}, expected an array")
        device = array.__dlpack_device__() if hasattr(array, "__dlpack_device__") else (_CPU, 0)
        if int(device[0]) != _CPU:
            raise ValueError(
                f"{operation}: {name} is on DLPack device {tuple(map(int, device))}, expected an array on the CPU"
            )
        # Through NumPy's own protocol where there is one: from_dlpack knows no bf16.
        array = np.asarray(array) if hasattr(array, "__array__") else np.from_dlpack(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return Source(array, array.dtype.name, False)
