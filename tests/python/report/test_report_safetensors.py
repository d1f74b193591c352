"""The safetensors reader on files made here, whole and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from report_files import safetensors_bytes

from fastffn._files.safetensors import SafetensorsFile, SafetensorsModel
from fastffn.report.arrays import bf16_to_f32, f32_to_bf16
from fastffn.report.errors import FileFormatError


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def test_every_float_dtype_reads_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 5)).astype(np.float32)
    tensors = {
        "a": values,
        "b": values.astype(np.float16),
        "c": f32_to_bf16(values),
        "d": values.astype(np.float64),
        "empty": np.empty((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    file = SafetensorsFile(write(tmp_path, safetensors_bytes(tensors, metadata={"format": "pt"})))
    assert list(file.names()) == list(tensors) and file.metadata == {"format": "pt"}
    np.testing.assert_array_equal(file.f32("a"), values)
    np.testing.assert_array_equal(file.f32("b"), values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(file.f32("c"), bf16_to_f32(f32_to_bf16(values)))
    np.testing.assert_array_equal(file.f32("d"), values)
    assert file.f32("empty").shape == (0, 4)
    assert file.f32("scalar") == 2.5


def test_aligned_f32_is_a_view_of_the_file(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": np.arange(6, dtype=np.float32)})
    header = struct.unpack("<Q", content[:8])[0]
    file = SafetensorsFile(write(tmp_path, safetensors_bytes({"a": np.arange(6, dtype=np.float32)}, -(8 + header) % 4)))
    a = file.f32("a")
    assert not a.flags.owndata and not a.flags.writeable
    assert np.shares_memory(a, file.raw("a"))


@pytest.mark.parametrize("padding", range(4))
def test_any_alignment_reads(tmp_path: Path, padding: int) -> None:
    file = SafetensorsFile(write(tmp_path, safetensors_bytes({"a": np.arange(6, dtype=np.float32)}, padding)))
    np.testing.assert_array_equal(file.f32("a"), np.arange(6))
    assert file.f32("a").flags.aligned


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20, -1])
def test_truncated_files_say_so(tmp_path: Path, size: int) -> None:
    content = safetensors_bytes({"a": np.arange(6, dtype=np.float32)})
    with pytest.raises(FileFormatError, match=r"truncated|bytes long"):
        SafetensorsFile(write(tmp_path, content[:size]))


def with_header(header: object, data: int = 24) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data)


ENTRY = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip file, not a model", "not one"),
        (struct.pack("<Q", 4) + b"{no}", "damaged header"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "damaged header"),
        (with_header([]), "not a JSON object"),
        (with_header({"a": 1}), "damaged entry"),
        (with_header({"a": {"dtype": "F32", "shape": [6]}}), "damaged entry"),
        (with_header({"a": {**ENTRY, "dtype": "F8_E4M3"}}), "F8_E4M3"),
        (with_header({"a": {**ENTRY, "shape": [-6]}}), "damaged shape"),
        (with_header({"a": {**ENTRY, "shape": ["6"]}}), "damaged shape"),
        (with_header({"a": {**ENTRY, "shape": [7]}}), "needs 28"),
        (with_header({"a": {**ENTRY, "data_offsets": [4, 28]}}), "truncated"),
        (with_header({"a": {**ENTRY, "data_offsets": [24, 0]}}), "needs 24"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        SafetensorsFile(write(tmp_path, content))


def test_missing_file_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be opened"):
        SafetensorsFile(tmp_path / "none.safetensors")
    file = SafetensorsFile(write(tmp_path, safetensors_bytes({"a": np.zeros(2, np.int8)})))
    with pytest.raises(FileFormatError, match="no tensor 'b'"):
        file.f32("b")
    with pytest.raises(FileFormatError, match="as I8"):
        file.f32("a")


def test_shards_read_as_one(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors_bytes({name: np.full(3, value, np.float32)}))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    model = SafetensorsModel(index)
    assert "a" in model and "c" not in model and set(model.names()) == {"a", "b"}
    np.testing.assert_array_equal(model.f32("b"), [2, 2, 2])
    index.write_text("{}")
    with pytest.raises(FileFormatError, match="index"):
        SafetensorsModel(index)


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x80000000], np.uint32)
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x8000]
    np.testing.assert_array_equal(f32_to_bf16(bits.view(np.float32)), np.array(expected, np.uint16))
    special = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    back = bf16_to_f32(f32_to_bf16(special))
    assert np.isnan(back[:2]).all() and back[2] == np.inf and back[3] == -np.inf
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[np.isfinite(bf16_to_f32(every))]
    np.testing.assert_array_equal(f32_to_bf16(bf16_to_f32(finite)), finite)
