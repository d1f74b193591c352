"""The GGUF reader on files made here, whole and damaged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_files import gguf_bytes, gguf_string

from fastffn._files.gguf import GgufFile
from fastffn.report.errors import FileFormatError

METADATA: dict[str, tuple[int, Any]] = {
    "u8": (0, 200),
    "i8": (1, -100),
    "u16": (2, 60000),
    "i16": (3, -30000),
    "u32": (4, 4_000_000_000),
    "i32": (5, -2_000_000_000),
    "f32": (6, 0.5),
    "bool": (7, True),
    "string": (8, "grüße"),
    "u64": (10, 1 << 63),
    "i64": (11, -(1 << 62)),
    "f64": (12, 0.1),
    "numbers": (9, (5, [1, -2, 3])),
    "flags": (9, (7, [True, False])),
    "words": (9, (8, ["a", "", "ccc"])),
    "nested": (9, (9, [(5, [1, 2]), (8, ["x"])])),
    "nothing": (9, (6, [])),
}


def tensors() -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    values = np.arange(12, dtype=np.float32)
    return {
        "one": (0, (3, 4), values.tobytes()),
        "two": (1, (12,), values.astype(np.float16).tobytes()),
        "q": (8, (2, 32), bytes(range(68))),
    }


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_of_every_type_and_tensors(tmp_path: Path, version: int) -> None:
    file = GgufFile(write(tmp_path, gguf_bytes(METADATA, tensors(), version)))
    for key, (kind, value) in METADATA.items():
        found = file.metadata[key]
        if key == "nested":
            assert [list(item) for item in found] == [[1, 2], ["x"]]
        elif kind == 9:
            assert list(found) == list(value[1])
        else:
            assert found == value, key
    assert list(file.names()) == ["one", "two", "q"]
    np.testing.assert_array_equal(file.f32("one"), np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(file.f32("two"), np.arange(12))
    assert file.tensors["q"].type_name == "Q8_0" and file.f32("q").shape == (2, 32)
    assert not file.raw("one").flags.owndata


@pytest.mark.parametrize("alignment", [8, 64, 256])
def test_alignment_key_is_obeyed(tmp_path: Path, alignment: int) -> None:
    metadata = {"general.alignment": (4, alignment)}
    file = GgufFile(write(tmp_path, gguf_bytes(metadata, tensors(), alignment=alignment)))
    np.testing.assert_array_equal(file.f32("two"), np.arange(12))
    assert file.tensors["two"].begin % alignment == 0


def test_every_truncation_is_a_clear_error(tmp_path: Path) -> None:
    content = gguf_bytes(METADATA, tensors())
    for size in range(len(content)):
        with pytest.raises(FileFormatError, match=r"truncated|damaged|bytes long"):
            GgufFile(write(tmp_path, content[:size]))


def test_no_damaged_byte_escapes_as_another_error(tmp_path: Path) -> None:
    content = gguf_bytes({"words": METADATA["words"], "u32": METADATA["u32"]}, tensors())
    header = len(content) - 256
    for position in range(header):
        for value in (0x00, 0x09, 0x7F, 0xFF):
            damaged = content[:position] + bytes([value]) + content[position + 1 :]
            try:
                file = GgufFile(write(tmp_path, damaged))
                for name in file.names():
                    file.f32(name)
            except FileFormatError:
                pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(40), "begins with b'GGML'"),
        (gguf_bytes({}, {}, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "damaged"),
        (gguf_bytes({"general.alignment": (4, 0)}, {}), "alignment"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("k") + struct.pack("<I", 13) + bytes(8), "value type 13"),
        (gguf_bytes({}, {"t": (8, (3, 31), bytes(200))}), "multiple of Q8_0"),
        (gguf_bytes({}, {"t": (0, (1,) * 9, bytes(4))}), "9 dimensions"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        GgufFile(write(tmp_path, content))


@pytest.mark.parametrize(("kind", "name"), [(16, "IQ2_XXS"), (9, "Q8_1"), (77, "type 77")])
def test_unsupported_tensor_types_are_named_when_read(tmp_path: Path, kind: int, name: str) -> None:
    file = GgufFile(write(tmp_path, gguf_bytes({}, {"t": (kind, (1, 256), bytes(66))})))
    with pytest.raises(FileFormatError, match=f"'t' as {name}; this reader knows F32"):
        file.f32("t")


def test_missing_file_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be opened"):
        GgufFile(tmp_path / "none.gguf")
    with pytest.raises(FileFormatError, match="no tensor 'x'"):
        GgufFile(write(tmp_path, gguf_bytes({}, tensors()))).f32("x")
