"""A reader for GGUF files, versions 2 and 3: metadata, and tensors dequantised to f32 when asked for.

Layout (little endian): "GGUF", version u32, tensor count u64, key count u64; the keys (string, type u32, value); the
tensors (name, dimension count u32, dimensions u64 with the fastest first, type u32, offset u64); padding; the data.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import F32, U8
from .dequant import BLOCKS, I2_S, block_layout, dequantise, type_name
from .errors import FileFormatError
from .ternary import i2_s_bytes

# Metadata value types: number → struct code. 7 is bool, 8 string, 9 array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Deeper arrays exist in no real file; a damaged one could nest until the stack ends.
_MAX_NESTING = 4


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor list. `shape` is in NumPy's order (rows first); `begin` counts from the file's start."""

    type: int
    shape: tuple[int, ...]
    begin: int
    bytes: int

    @property
    def type_name(self) -> str:
        """Such as "Q4_1"."""
        return type_name(self.type)


class GgufFile:
    """One file, memory mapped. `metadata` holds every key; ``f32(name)`` dequantises one tensor."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._size = self.path.stat().st_size
                if self._size < 24:
                    raise self._error(f"is {self._size} bytes long; a GGUF file has at least 24")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._error(f"cannot be opened: {error.strerror or error}") from error
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._parse()

    def _error(self, what: str) -> FileFormatError:
        return FileFormatError(f"GGUF file {self.path.name} {what}")

    def _need(self, count: int, what: str) -> int:
        """Claims `count` bytes and returns where they begin."""
        begin = self._at
        if count > self._size - begin:
            raise self._error(
                f"is truncated or damaged: {what} needs {count} bytes at {begin}, the file has {self._size}"
            )
        self._at = begin + count
        return begin

    def _number(self, code: str, what: str) -> Any:
        begin = self._need(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self._map, begin)[0]

    def _string(self, what: str) -> str:
        length = self._number("Q", what)
        begin = self._need(length, what)
        # Token lists may hold pieces that are no UTF-8 on their own.
        return self._map[begin : begin + length].decode("utf-8", "surrogateescape")

    def _value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string(what)
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], what)
        if kind != _ARRAY or depth >= _MAX_NESTING:
            raise self._error(f"is damaged: {what} has value type {kind}")
        inner = self._number("I", what)
        length = self._number("Q", what)
        if inner in _SCALARS:
            dtype = np.dtype("<" + ("?" if inner == 7 else _SCALARS[inner]))
            begin = self._need(length * dtype.itemsize, what)
            return np.frombuffer(self._map, dtype, length, begin) if length else np.empty(0, dtype)
        self._need(0, what)
        if length > self._size - self._at:  # every string takes at least its length field
            raise self._error(f"is damaged: {what} claims {length} entries")
        return [self._value(inner, what, depth + 1) for _ in range(length)]

    def _parse(self) -> None:
        magic = self._map[self._need(4, "magic") : self._at]
        if magic != b"GGUF":
            raise self._error(f"is not one: it begins with {magic!r}, not b'GGUF'")
        version = self._number("I", "version")
        if version not in (2, 3):
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            hint = " (big-endian files are not supported)" if swapped in (2, 3) else ""
            raise self._error(f"has version {version}; this reader knows 2 and 3{hint}")
        tensor_count, key_count = self._number("Q", "tensor count"), self._number("Q", "key count")
        if tensor_count > self._size or key_count > self._size:
            raise self._error(f"is damaged: it claims {tensor_count} tensors and {key_count} keys")
        for index in range(key_count):
            key = self._string(f"name of key {index}")
            self.metadata[key] = self._value(self._number("I", f"key {key!r}"), f"key {key!r}")
        entries = [self._tensor_entry(index) for index in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise self._error(f"is damaged: general.alignment is {alignment!r}")
        data = -(-self._at // alignment) * alignment
        for name, kind, shape, offset in entries:
            self.tensors[name] = self._tensor(name, kind, shape, data + offset)

    def _tensor_entry(self, index: int) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string(f"name of tensor {index}")
        what = f"entry of tensor {name!r}"
        dims = self._number("I", what)
        if dims > 8:
            raise self._error(f"is damaged: tensor {name!r} claims {dims} dimensions")
        shape = tuple(self._number("Q", what) for _ in range(dims))[::-1]
        return name, self._number("I", what), shape, self._number("Q", what)

    def _tensor(self, name: str, kind: int, shape: tuple[int, ...], begin: int) -> GgufTensor:
        if kind == I2_S:
            size = i2_s_bytes(shape)
        elif kind not in BLOCKS:  # known by no size: listed, refused when read
            return GgufTensor(kind, shape, begin, 0)
        else:
            values, block_bytes = block_layout(kind)
            row = shape[-1] if shape else 1
            if row % values:
                raise self._error(f"is damaged: {name!r} {shape} is no multiple of {type_name(kind)}'s {values} values")
            size = math.prod(shape) // values * block_bytes
        if begin + size > self._size:
            raise self._error(f"is truncated: tensor {name!r} ends at byte {begin + size}, the file has {self._size}")
        return GgufTensor(kind, shape, begin, size)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> Iterable[str]:
        """The tensors' names, in the file's order."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, in NumPy's order of dimensions."""
        return self._get(name).shape

    def raw(self, name: str) -> U8:
        """The tensor's bytes as they are in the file: a read-only view."""
        tensor = self._get(name)
        if tensor.type not in BLOCKS and tensor.type != I2_S:
            raise self._unsupported(name, tensor)
        if tensor.bytes == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._map, np.uint8, tensor.bytes, tensor.begin)

    def f32(self, name: str) -> F32:
        """The tensor dequantised to f32, in NumPy's order of dimensions."""
        tensor = self._get(name)
        if tensor.type == I2_S:
            raise self._error(
                f"holds tensor {name!r} as I2_S, whose order of bits the file does not tell; read it with "
                "fastffn.importers.gguf_decode(…, variant=…)"
            )
        if tensor.type not in BLOCKS:
            raise self._unsupported(name, tensor)
        return dequantise(self.raw(name), tensor.type).reshape(tensor.shape)

    def first_f32(self, name: str) -> F32:
        """The first matrix of a tensor of three dimensions, without dequantising the others."""
        tensor = self._get(name)
        if tensor.type not in BLOCKS:
            raise self._unsupported(name, tensor)
        raw = self.raw(name)
        return dequantise(raw[: raw.size // tensor.shape[0]], tensor.type).reshape(tensor.shape[1:])

    def _get(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            raise self._error(f"has no tensor {name!r}")
        return self.tensors[name]

    def _unsupported(self, name: str, tensor: GgufTensor) -> FileFormatError:
        known = ", ".join(type_name(kind) for kind in BLOCKS)
        return self._error(f"holds tensor {name!r} as {tensor.type_name}; this reader knows {known}")
