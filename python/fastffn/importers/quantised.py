"""Quantised weights of other programs: codes, scales and minima as arrays, and the bytes of GGUF's types around them.

>>> weight = importers.gguf_decode(raw, "TQ2_0", (6912, 2560))       # raw: the tensor's bytes
>>> packed = weight.pack()                                           # fastffn's ternary: the same numbers, no rounding
>>> importers.gguf_encode(weight) == raw                             # byte for byte

type    weights  bytes  w =                       packed as
TQ1_0     256      54   scale · (-1, 0, 1)        ternary, group 256 (one scale where all are equal)
TQ2_0     256      66   scale · (-1, 0, 1)        ternary, likewise
I2_S     tensor         scale · (-1, 0, 1)        ternary, one scale
Q4_0       32      18   scale · (code - 8)        int4, group 32
Q4_1       32      20   scale · code + minimum    int4, group 32, minima
Q8_0       32      34   scale · code              int8: one scale per row, so codes are rounded anew
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastffn as ff
from fastffn._files.arrays import F32, U8, AnyArray
from fastffn._files.errors import FileFormatError
from fastffn._files.ternary import (
    I2_S_TAIL,
    I2_S_VARIANTS,
    decode_i2_s,
    decode_tq1_0,
    decode_tq2_0,
    encode_i2_s,
    encode_tq1_0,
    encode_tq2_0,
    i2_s_bytes,
    i2_s_variants,
)

# Type → (weights per block, bytes per block).
_BLOCKS = {"TQ1_0": (256, 54), "TQ2_0": (256, 66), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34)}
_TERNARY = ("TQ1_0", "TQ2_0", "I2_S")


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """A weight as another program quantised it.

    Attributes:
        kind: the type it came in: "TQ1_0", "TQ2_0", "I2_S", "Q4_0", "Q4_1" or "Q8_0".
        codes: [out_features, in_features], or [count, out_features, in_features]: int8 -1, 0, 1 of ternary types and
            -128 to 127 of Q8_0; uint8 0 to 15 of Q4_0 and Q4_1.
        scales: [..., groups] float16, one per `group` weights of a row; of I2_S one float32, shape (1,).
        minima: [..., groups] float16 of Q4_1, else None.
        group: weights of a row that share a scale; 0 of I2_S, where all do.
        variant: of I2_S, the order of its bits; else None.
        tail: of I2_S, the 28 bytes after its scale, which mean nothing.
    """

    kind: str
    codes: AnyArray
    scales: AnyArray
    minima: AnyArray | None = None
    group: int = 0
    variant: str | None = None
    tail: bytes = b""

    def dequantised(self) -> F32:
        """The weights in f32, of codes' shape."""
        scales = self._spread(self.scales)
        codes = self.codes.astype(np.float32)
        if self.kind == "Q4_0":
            codes -= 8
        values: F32 = scales * codes
        return values if self.minima is None else values + self._spread(self.minima)

    def _spread(self, scales: AnyArray) -> F32:
        wide = scales.astype(np.float32)
        return np.repeat(wide, self.group, axis=-1) if self.group else wide

    def pack(self, *, act: str | None = None, **options: Any) -> Any:
        """Packed weights: "ternary" of ternary types, "int4" of Q4_0 and Q4_1, and "int8" of Q8_0.

        All but Q8_0 keep their codes and scales exactly. int8 has one scale per row: Q8_0's codes are rounded to it.

        Args:
            act: of the activations; see :func:`fastffn.pack`.
            options: further ones of :func:`fastffn.pack`.

        Raises:
            ValueError: scales that are not finite; options that do not fit.
        """
        if act is not None:
            options["act"] = act
        scales = np.ascontiguousarray(self.scales.astype(np.float32))
        if self.kind in _TERNARY:
            first = scales.reshape(-1)[:1]
            if np.isfinite(first).all() and (scales == first).all():
                return ff.pack(self.codes, "ternary", scale=first.copy(), **options)
            return ff.pack(self.codes, "ternary", group=self.group, scale=scales, **options)
        if self.kind == "Q8_0":
            return ff.pack(self.dequantised(), "int8", **options)
        minima = None if self.minima is None else np.ascontiguousarray(self.minima.astype(np.float32))
        return ff.pack(self.codes, "int4", group=32, scales=scales, minima=minima, **options)


def _shape(kind: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(
            f"gguf_decode: shape is {sizes}, expected (out_features, in_features) or (count, out_features, in_features)"
        )
    return sizes


def _variant(operation: str, variant: str | None, shape: tuple[int, ...]) -> str:
    possible = i2_s_variants(shape)
    if variant is None:
        if len(possible) == 1:
            return possible[0]
        raise ValueError(
            f"{operation}: I2_S has three orders of bits, and a file does not say which it has; a tensor of shape {shape} "
            f"may be in {' or '.join(repr(name) for name in possible) or 'none of them'}. Pass variant='x86' (written on "
            "x86 by bitnet.cpp, and what Microsoft publishes), 'arm' (written on ARM) or 'rows' (x86 without ACT_PARALLEL)"
        )
    if variant not in I2_S_VARIANTS:
        raise ValueError(f"{operation}: variant is {variant!r}, expected one of {', '.join(map(repr, I2_S_VARIANTS))}")
    if variant not in possible:
        rows, columns = I2_S_VARIANTS[variant]
        raise ValueError(
            f"{operation}: I2_S '{variant}' holds multiples of {rows} rows and {columns} columns, not shape {shape}"
        )
    return variant


def gguf_decode(raw: Any, kind: str, shape: Any, *, variant: str | None = None) -> QuantisedWeight:
    """The codes, scales and minima in the bytes of one GGUF tensor.

    Args:
        raw: bytes, or a uint8 array, of the whole tensor.
        kind: "TQ1_0", "TQ2_0", "I2_S", "Q4_0", "Q4_1" or "Q8_0".
        shape: [out_features, in_features] or [count, out_features, in_features]. (GGUF lists dimensions the other way.)
        variant: of I2_S only, the order of its bits: "x86", "arm" or "rows". Files do not tell; where the shape fits more
            than one and none is given, that is an error.

    Raises:
        ValueError: an unknown kind; a number of bytes that is not the shape's; in_features that are no multiple of the
            block; a code 3, or a byte that no ternary weights make; an I2_S tensor whose variant is not known.
    """
    size = _shape(kind, shape)
    data = np.frombuffer(raw, np.uint8) if isinstance(raw, (bytes, bytearray, memoryview)) else np.asarray(raw)
    if data.dtype != np.uint8:
        raise ValueError(f"gguf_decode: raw has dtype {data.dtype}, expected bytes or uint8")
    data = data.reshape(-1)
    if kind != "I2_S":
        return _decode_blocks(data, kind, size, variant)
    order = _variant("gguf_decode", variant, size)
    _check_bytes(data, kind, size, i2_s_bytes(size))
    codes = decode_i2_s(data[:-I2_S_TAIL], size, order)
    scale = data[-I2_S_TAIL : 4 - I2_S_TAIL].copy().view("<f4")
    return QuantisedWeight(kind, codes, scale, variant=order, tail=data[4 - I2_S_TAIL :].tobytes())


def _check_bytes(data: U8, kind: str, shape: tuple[int, ...], expected: int) -> None:
    if data.size != expected:
        which = "truncated" if data.size < expected else "too long"
        raise FileFormatError(
            f"gguf_decode: {kind} of shape {shape} takes {expected} bytes, raw has {data.size}: {which}"
        )


def _decode_blocks(data: U8, kind: str, shape: tuple[int, ...], variant: str | None) -> QuantisedWeight:
    if kind not in _BLOCKS:
        raise ValueError(f"gguf_decode: kind is {kind!r}, expected one of {', '.join((*_BLOCKS, 'I2_S'))}")
    if variant is not None:
        raise ValueError(f"gguf_decode: variant is for I2_S, {kind} has none")
    weights, size = _BLOCKS[kind]
    if shape[-1] % weights:
        raise FileFormatError(f"gguf_decode: shape is {shape}, {kind} needs in_features in multiples of {weights}")
    groups = (*shape[:-1], shape[-1] // weights)
    _check_bytes(data, kind, shape, math.prod(groups) * size)
    blocks = data.reshape(-1, size)

    def half(begin: int) -> AnyArray:
        out: AnyArray = blocks[:, begin : begin + 2].copy().view("<f2").reshape(groups)
        return out

    codes: AnyArray
    if kind in ("TQ1_0", "TQ2_0"):
        codes = decode_tq1_0(blocks[:, :52]) if kind == "TQ1_0" else decode_tq2_0(blocks[:, :64])
        return QuantisedWeight(kind, codes.reshape(shape), half(size - 2), group=weights)
    if kind == "Q8_0":
        codes = blocks[:, 2:].copy().view(np.int8)
    else:  # low halves of the last 16 bytes first, then high ones
        codes = np.concatenate([blocks[:, -16:] & 15, blocks[:, -16:] >> 4], axis=1)
    return QuantisedWeight(kind, codes.reshape(shape), half(0), half(2) if kind == "Q4_1" else None, group=weights)


def gguf_encode(weight: QuantisedWeight) -> U8:
    """The bytes of one GGUF tensor: what :func:`gguf_decode` read, byte for byte.

    Raises:
        ValueError: codes, scales or minima that the kind does not hold.
    """
    kind, codes = weight.kind, np.asarray(weight.codes)
    if kind not in _BLOCKS and kind != "I2_S":
        raise ValueError(f"gguf_encode: kind is {kind!r}, expected one of {', '.join((*_BLOCKS, 'I2_S'))}")
    low, high = (-1, 1) if kind in _TERNARY else (-128, 127) if kind == "Q8_0" else (0, 15)
    if codes.ndim not in (2, 3) or codes.dtype.kind not in "iu" or codes.min() < low or codes.max() > high:
        raise ValueError(
            f"gguf_encode: codes are {codes.dtype} of shape {codes.shape}, {kind} takes integers from {low} to {high} in "
            "two or three dimensions"
        )
    if kind == "I2_S":
        order = _variant("gguf_encode", weight.variant, codes.shape)
        scale = np.asarray(weight.scales, "<f4").reshape(-1)
        if scale.size != 1 or len(weight.tail) not in (0, I2_S_TAIL - 4):
            raise ValueError(f"gguf_encode: I2_S has one scale and {I2_S_TAIL - 4} bytes of tail, or none")
        tail = np.frombuffer(weight.tail or bytes(I2_S_TAIL - 4), np.uint8)
        return np.concatenate([encode_i2_s(codes.astype(np.int8), order), scale.view(np.uint8), tail])
    weights, size = _BLOCKS[kind]
    if codes.shape[-1] % weights:
        raise ValueError(f"gguf_encode: codes have shape {codes.shape}, {kind} needs multiples of {weights}")
    groups = (*codes.shape[:-1], codes.shape[-1] // weights)
    blocks = codes.reshape(-1, weights)
    out = np.empty((len(blocks), size), np.uint8)

    def put_half(begin: int, values: Any, name: str) -> None:
        given = np.asarray(values)
        if given.shape != groups:
            raise ValueError(f"gguf_encode: {name} have shape {given.shape}, expected {groups}")
        half = given.astype("<f2")
        if given.dtype != half.dtype and not np.array_equal(half.astype(given.dtype), given, equal_nan=True):
            raise ValueError(f"gguf_encode: {name} are {given.dtype} that f16 does not hold exactly, as {kind} needs")
        out[:, begin : begin + 2] = np.ascontiguousarray(half).reshape(-1, 1).view(np.uint8)

    if kind in ("TQ1_0", "TQ2_0"):
        encode = encode_tq1_0 if kind == "TQ1_0" else encode_tq2_0
        out[:, : size - 2] = encode(blocks.astype(np.int8))
        put_half(size - 2, weight.scales, "scales")
        return out.reshape(-1)
    if (weight.minima is not None) != (kind == "Q4_1"):
        raise ValueError(f"gguf_encode: {kind} {'needs' if kind == 'Q4_1' else 'has no'} minima")
    put_half(0, weight.scales, "scales")
    if kind == "Q8_0":
        out[:, 2:] = blocks.astype(np.int8).view(np.uint8)
    else:
        if kind == "Q4_1":
            put_half(2, weight.minima, "minima")
        nibbles = blocks.astype(np.uint8)
        out[:, -16:] = nibbles[:, :16] | nibbles[:, 16:] << 4
    return out.reshape(-1)


def from_packed(packed: Any, kind: str, *, variant: str | None = None) -> QuantisedWeight:
    """Packed weights as a type of GGUF, for :func:`gguf_encode`: the same codes and scales, nothing rounded.

    Args:
        packed: "ternary" for TQ1_0, TQ2_0 (group 256, or one scale that f16 holds) and I2_S (one scale); "int4" of group 32
            for Q4_0 (symmetric) and Q4_1 (minima).
        kind, variant: as of :func:`gguf_decode`.

    Raises:
        ValueError: weights that the kind does not hold exactly.
    """
    info = ff.info(packed)
    expected = "ternary" if kind in _TERNARY else "int4"
    if kind not in (*_TERNARY, "Q4_0", "Q4_1") or info.format != expected:
        raise ValueError(
            f"from_packed: packed holds '{info.format}', expected 'ternary' for TQ1_0, TQ2_0 and I2_S, or 'int4' for Q4_0 "
            f"and Q4_1; kind is {kind!r}"
        )
    transform = info.options.get("hadamard", "none")
    if transform != "none" or info.options.get("rotated"):
        raise ValueError(f"from_packed: packed was made with hadamard={transform!r}, which {kind} does not say")
    held = ff.unpack_codes(packed)
    codes, scales = np.asarray(held.codes), np.asarray(held.scales)
    one = bool((scales == scales.reshape(-1)[0]).all())
    if kind == "I2_S":
        if not one:
            raise ValueError("from_packed: I2_S has one scale for the tensor, packed has several")
        return QuantisedWeight(kind, codes, scales.reshape(-1)[:1].astype("<f4"), variant=variant)
    minima = None if held.minima is None else np.asarray(held.minima)
    if kind == "Q4_0" and held.zeros is None and minima is None:
        minima_half = None
    elif kind == "Q4_1" and minima is not None:
        minima_half = minima.astype("<f2")
    elif kind in _TERNARY:
        minima_half = None
    else:
        raise ValueError(f"from_packed: {kind} is {'symmetric' if kind == 'Q4_0' else 'of minima'}, packed is not")
    group, wanted = held.group, _BLOCKS[kind][0]
    if codes.shape[-1] % wanted:
        raise ValueError(f"from_packed: in_features is {codes.shape[-1]}, {kind} needs a multiple of {wanted}")
    if kind in _TERNARY and group == info.in_features and group != wanted:
        scales = np.repeat(scales, codes.shape[-1] // wanted, axis=-1)
    elif group != wanted:
        raise ValueError(f"from_packed: packed has groups of {group}, {kind} has {wanted}")
    half = scales.astype("<f2")
    if not np.array_equal(half.astype(np.float32), scales):
        raise ValueError(f"from_packed: a scale that f16 does not hold exactly, as {kind} needs")
    return QuantisedWeight(kind, codes, half, minima_half, group=wanted)
