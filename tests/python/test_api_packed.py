"""Packed weights as plain arrays: what they hold, round trips, and damage."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from api_support import tokens, two_of_four, weights

FORMATS = ff.formats()


def test_info() -> None:
    packed = ff.pack(weights(33, 50), "int8")
    info = ff.info(packed)
    assert info == ff.PackedInfo("int8", 33, 50, 1, packed.nbytes)
    assert info.shape == (33, 50)
    assert info.bits_per_weight == 8 * packed.nbytes / (33 * 50)
    assert (
        repr(info)
        == f"PackedInfo(format='int8', out_features=33, in_features=50, count=1, nbytes={packed.nbytes}, options={{}})"
    )
    with pytest.raises(AttributeError):
        info.format = "bf16"  # type: ignore[misc]


@pytest.mark.parametrize("format", FORMATS)
def test_packed_arrays_are_plain_and_aligned(format: str) -> None:
    packed = ff.pack(weights(33, 50), format)
    assert packed.dtype == np.uint8 and packed.ndim == 1 and packed.flags.c_contiguous and packed.flags.writeable
    assert packed.ctypes.data % 64 == 0 and packed.nbytes % 64 == 0
    assert packed[:8].tobytes() == b"fastffn\0"


@pytest.mark.parametrize("format", FORMATS)
def test_unpack(format: str) -> None:
    w = weights(33, 50)
    packed = ff.pack(w, format)
    unpacked = ff.unpack(packed)
    assert unpacked.dtype == np.float32 and unpacked.shape == w.shape
    if format == "f32":
        assert np.array_equal(unpacked, w)
    elif format == "int8":
        scale = np.abs(w).max(axis=1, keepdims=True) / 127
        assert (np.abs(unpacked - w) <= scale * 0.5001).all()
    elif format == "ternary":
        scale = np.abs(w).mean(dtype=np.float64).astype(np.float32)
        assert np.array_equal(unpacked, np.clip(np.rint(w / scale), -1, 1) * scale)
    elif format == "int4":
        scale = np.abs(w).max(axis=1, keepdims=True) / 7
        assert (np.abs(unpacked - w) <= scale * 0.505).all()  # f16 scales
    else:
        dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "sparse24": ml_dtypes.bfloat16}[format]
        assert np.array_equal(unpacked, w.astype(dtype).astype(np.float32))


def test_unpack_dtypes() -> None:
    packed = ff.pack(weights(8, 8), "f32")
    for dtype, expected in (
        ("f32", "float32"),
        ("float16", "float16"),
        (np.float16, "float16"),
        (np.dtype("float32"), "float32"),
        ("bf16", "bfloat16"),
        (ml_dtypes.bfloat16, "bfloat16"),
    ):
        assert ff.unpack(packed, dtype).dtype.name == expected
    with pytest.raises(ValueError, match=r"^unpack: dtype is 'float64', expected f32, f16 or bf16$"):
        ff.unpack(packed, np.float64)


@pytest.mark.parametrize("format", FORMATS)
def test_stacks(format: str) -> None:
    w = two_of_four(tokens(3, 20, 17))
    packed = ff.pack(w, format)
    info = ff.info(packed)
    assert (info.count, info.shape) == (3, (3, 20, 17))
    for i in range(3):
        assert np.array_equal(ff.unpack(packed)[i], ff.unpack(ff.pack(w[i], format)))


def test_strides_of_plain_weights() -> None:
    w = weights(20, 17)
    expected = ff.pack(w, "bf16")
    assert np.array_equal(ff.pack(np.asfortranarray(w), "bf16"), expected)
    assert np.array_equal(ff.pack(w[::-1, ::-1].copy()[::-1, ::-1], "bf16"), expected)
    assert np.array_equal(ff.pack(np.repeat(w, 2, axis=1)[:, ::2], "bf16"), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_round_trips_through_files(format: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    packed, x = ff.pack(weights(33, 50), format), tokens(2, 50)
    expected = ff.linear(x, packed)

    np.save(tmp_path / "w.npy", packed)
    np.savez(tmp_path / "w.npz", w=packed)
    save_file({"odd": np.zeros(3, np.uint8), "w": packed}, tmp_path / "w.safetensors")
    packed.tofile(tmp_path / "w.bin")
    copies = [
        np.load(tmp_path / "w.npy"),
        np.load(tmp_path / "w.npy", mmap_mode="r"),
        np.load(tmp_path / "w.npz")["w"],
        load_file(tmp_path / "w.safetensors")["w"],
        np.fromfile(tmp_path / "w.bin", np.uint8),
        (tmp_path / "w.bin").read_bytes(),
    ]
    for copy in copies:
        ff.verify(copy)
        assert ff.info(copy) == ff.info(packed)
        assert np.array_equal(ff.linear(x, copy), expected)


def test_damage_is_found() -> None:
    packed = ff.pack(weights(33, 50), "bf16")
    x = tokens(1, 50)

    def refused(damaged: object) -> str:
        messages = []
        for function in (ff.info, ff.verify, ff.unpack, lambda w: ff.linear(x, w)):
            with pytest.raises(ValueError) as error:
                function(damaged)
            messages.append(str(error.value).partition(": ")[::2])
        operations, texts = zip(*messages, strict=True)
        assert operations == ("info", "verify", "unpack", "linear")
        assert len({re.sub("^packed ", "w ", text) for text in texts}) == 1
        return str(texts[-1])

    assert refused(packed[:0]) == "w has 0 bytes, less than the 64-byte header of a packed weight; make it with pack()"
    assert refused(packed[:63]).startswith("w has 63 bytes, less than the 64-byte header")
    assert refused(packed[:-1]) == (f"w has {packed.size - 1} bytes, its header says {packed.size}; it was truncated")
    assert refused(np.append(packed, np.uint8(0))) == (
        f"w has {packed.size + 1} bytes, its header says {packed.size}; something follows it"
    )
    assert refused(np.zeros(4096, np.uint8)) == (
        "w is not a packed weight (its first bytes are not 'fastffn'); make it with pack()"
    )
    for byte in range(8, 64):
        damaged = packed.copy()
        damaged[byte] ^= 0x10
        assert refused(damaged) == "w has a damaged header (its checksum differs)"


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_damaged_weights_are_found_by_verify(where: str) -> None:
    packed = ff.pack(weights(33, 50), "int8")
    ff.verify(packed)
    damaged = packed.copy()
    damaged[{"first": 64, "middle": packed.size // 2, "last": packed.size - 1}[where]] ^= 1
    with pytest.raises(ValueError, match=r"^verify: packed has damaged weights \(their checksum differs\)$"):
        ff.verify(damaged)
    with pytest.raises(ValueError, match=r"^unpack: packed has damaged weights \(their checksum differs\)$"):
        ff.unpack(damaged)
    ff.info(damaged)  # reads the header alone


def test_header_is_little_endian_and_as_documented() -> None:
    packed = ff.pack(tokens(2, 33, 50), "bf16")
    fields = struct.unpack("<8sHBBIqqqqIIII", packed[:64].tobytes())
    magic, version, format, layout, flags, out, into, count, nbytes = fields[:9]
    assert (magic, version, format, layout, flags, out, into, count) == (b"fastffn\0", 1, 3, 1, 0, 33, 50, 2)
    assert fields[9:11] == (0, 0)
    assert 64 + count * nbytes == packed.size


def test_what_pack_refuses() -> None:
    w = weights(8, 8)
    with pytest.raises(ValueError) as error:
        ff.pack(w, "int3")
    assert (
        str(error.value)
        == "pack: format 'int3' is not known; expected f32, f16, bf16, int8, sparse24, lowrank, ternary or int4"
    )
    for bad in (np.nan, np.inf):
        broken = w.copy()
        broken[3, 2] = bad
        with pytest.raises(ValueError, match=r"^pack: row 3 of w holds NaN or infinity"):
            ff.pack(broken, "int8")
    with pytest.raises(ValueError, match=r"^pack: w has dtype i32, expected f32, f16, bf16 or f64$"):
        ff.pack(w.astype(np.int32), "f32")
    with pytest.raises(ValueError, match=r"^pack: w has shape \(0, 8\), expected every dimension"):
        ff.pack(w[:0], "f32")
    with pytest.raises(TypeError):
        ff.pack(w, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ("f32", "f16", "bf16", "int8"))
def test_formats_without_options_take_none(format: str) -> None:
    w = weights(8, 8)
    for call in (lambda **o: ff.pack(w, format, **o), lambda **o: ff.active_kernel(format, **o)):
        for options in ({"group": 32}, {"values": "bf16"}, {"scale": 0.5}, {"hadamard": True}, {"factors": w}):
            with pytest.raises(ValueError) as error:
                call(**options)
            (name,) = options
            assert str(error.value).endswith(f": format '{format}' has no option '{name}'; it takes none")
        call(group=None)  # None: not given
    with pytest.raises(ValueError, match=r"^pack: option 'group' is 1[0]{30}, beyond 64 bits$"):
        ff.pack(w, format, group=10**30)
    with pytest.raises(TypeError):
        ff.pack(w, format, "group", 32)  # type: ignore[misc]
    assert ff.info(ff.pack(w, format)).options == {}
