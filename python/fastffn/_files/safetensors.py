"""A reader for safetensors files: memory mapped, nothing copied until a tensor needs converting.

Layout: 8 bytes, the header's length (u64, little endian); the header, a JSON object
``{name: {"dtype", "shape", "data_offsets": [begin, end]}}`` plus an optional ``__metadata__``; then the data, to which
the offsets are relative.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import F32, AnyArray, bf16_to_f32
from .errors import FileFormatError

# What the format's own reader refuses as well: no real header comes near it, a foreign file's first 8 bytes do.
MAX_HEADER_BYTES = 100_000_000

# bf16 is read as its bits.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the header; `begin` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    bytes: int


class SafetensorsFile:
    """One file. ``raw(name)`` is a read-only view of the map; ``f32(name)`` is that, or a converted copy."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = self.path.stat().st_size
                if size < 8:
                    raise self._error(f"is {size} bytes long; a safetensors file has at least 8")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._error(f"cannot be opened: {error.strerror or error}") from error
        self.metadata: dict[str, str] = {}
        self.tensors = self._parse(size)

    def _error(self, what: str) -> FileFormatError:
        return FileFormatError(f"safetensors file {self.path.name} {what}")

    def _parse(self, size: int) -> dict[str, TensorInfo]:
        length = int.from_bytes(self._map[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise self._error(f"is not one: its first 8 bytes ask for a header of {length} bytes")
        if 8 + length > size:
            raise self._error(f"is truncated: the header needs {8 + length} bytes, the file has {size}")
        try:
            header = json.loads(self._map[8 : 8 + length].decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise self._error(f"has a damaged header: {error}") from error
        if not isinstance(header, dict):
            raise self._error("has a header that is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if isinstance(metadata, dict):
            self.metadata = {str(key): str(value) for key, value in metadata.items()}
        return {name: self._entry(name, entry, 8 + length, size) for name, entry in header.items()}

    def _entry(self, name: str, entry: Any, data: int, size: int) -> TensorInfo:
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise self._error(f"has a damaged entry for tensor {name!r}") from error
        if dtype not in _DTYPES:
            raise self._error(f"holds tensor {name!r} of dtype {dtype}; known ones are {', '.join(_DTYPES)}")
        numbers = (*shape, begin, end)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise self._error(f"has a damaged shape or offset for tensor {name!r}")
        expected = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if end - begin != expected:
            raise self._error(f"gives tensor {name!r} {end - begin} bytes; {dtype} {shape} needs {expected}")
        if data + end > size:
            raise self._error(f"is truncated: tensor {name!r} ends at byte {data + end}, the file has {size}")
        return TensorInfo(dtype, shape, data + begin, expected)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> Iterable[str]:
        """The tensors' names, in the header's order."""
        return self.tensors.keys()

    def raw(self, name: str) -> AnyArray:
        """The tensor as a read-only view of the file; bf16 as its uint16 bits."""
        info = self.info(name)
        dtype = np.dtype(_DTYPES[info.dtype])
        count = info.bytes // dtype.itemsize
        if count == 0:
            return np.empty(info.shape, dtype)
        return np.frombuffer(self._map, dtype, count, info.begin).reshape(info.shape)

    def f32(self, name: str) -> F32:
        """The tensor as f32: a view where the file holds aligned f32, else a converted copy."""
        info = self.info(name)
        if info.dtype not in _FLOATS:
            raise self._error(f"holds {name!r} as {info.dtype}; weights must be one of {', '.join(_FLOATS)}")
        values = self.raw(name)
        if info.dtype == "BF16":
            return bf16_to_f32(values)
        # An offset off the element size is legal in the format; BLAS is faster, and NumPy happier, with a copy.
        return np.require(values, np.float32, "A")

    def info(self, name: str) -> TensorInfo:
        """The tensor's entry in the header."""
        if name not in self.tensors:
            raise self._error(f"has no tensor {name!r}")
        return self.tensors[name]


class SafetensorsModel:
    """The tensors of one file, or of all shards that a ``*.safetensors.index.json`` names."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.shards: dict[Path, SafetensorsFile] = {}
        self._where: dict[str, Path] = {}
        if path.name.endswith(".index.json"):
            try:
                listed = json.loads(path.read_text("utf-8"))["weight_map"]
                self._where = {name: path.parent / shard for name, shard in listed.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise FileFormatError(f"safetensors index {path.name} cannot be read: {error}") from error
            for shard in set(self._where.values()):
                self.shards[shard] = SafetensorsFile(shard)
        else:
            self.shards[path] = SafetensorsFile(path)
            self._where = dict.fromkeys(self.shards[path].names(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> Iterable[str]:
        """The tensors' names."""
        return self._where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shard(name).info(name).shape

    def f32(self, name: str) -> F32:
        """The tensor as f32; see SafetensorsFile.f32."""
        return self._shard(name).f32(name)

    def first_f32(self, name: str) -> F32:
        """The first matrix of a tensor of three dimensions."""
        first: F32 = self._shard(name).f32(name)[0]
        return first

    def _shard(self, name: str) -> SafetensorsFile:
        if name not in self._where:
            raise FileFormatError(f"the safetensors model has no tensor {name!r}")
        return self.shards[self._where[name]]
