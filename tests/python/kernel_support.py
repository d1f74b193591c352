"""What the kernel tests share: arrays, packed layers, and the comparison with the float64 oracle.

FASTFFN_TEST_SIZE=small takes fewer shapes: for slow ways to run kernels (plain loops, the AMX emulator, sanitizers).
"""

import os
import struct
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

import fastffn as ff
from reference import tolerance
from reference.formats import FORMATS, arithmetic, pack_arguments, prepare_weights

SMALL = os.environ.get("FASTFFN_TEST_SIZE", "full") == "small"

DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
ACTIVATIONS = ("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu")

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "FORMATS",
    "SMALL",
    "Layer",
    "active_kernel",
    "arithmetic",
    "check",
    "forged",
    "normal",
    "pack",
    "packed_values",
    "prepare_weights",
]


def normal(rng, shape, dtype="f32", scale=1.0):
    """Normally distributed array of one of our dtypes."""
    return (rng.standard_normal(shape) * scale).astype(DTYPES[dtype])


def pack(w, fmt):
    """Packed weights in one of FORMATS: w itself, or what prepare_weights() leaves of it."""
    name, options = pack_arguments(fmt)
    return ff.pack(prepare_weights(fmt, w), name, **options)


def active_kernel(fmt):
    name, options = pack_arguments(fmt)
    return ff.active_kernel(name, **options)


def packed_values(packed):
    """The weights that a packed matrix stands for, as float64. (test_kernels_pack.py compares them with the oracle.)"""
    return np.asarray(ff.unpack(packed, "f32")).astype(np.float64)


@dataclass
class Layer:
    """A random layer in one format: packed, and as the float64 values it stands for."""

    fmt: str
    d_model: int
    d_ff: int
    gated: bool = False
    bias: str | None = None  # dtype of the biases
    activation: str = "gelu"
    d_out: int = 0  # 0: d_model
    seed: int = 0
    packed: dict = field(init=False)
    biases: dict = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, self.d_model, self.d_ff])
        d_out = self.d_out or self.d_model
        shapes = {"w_up": (self.d_ff, self.d_model), "w_down": (d_out, self.d_ff)}
        if self.gated:
            shapes["w_gate"] = (self.d_ff, self.d_model)
        self.packed = {n: pack(normal(rng, s, scale=s[1] ** -0.5), self.fmt) for n, s in shapes.items()}
        self.biases = {}
        if self.bias:
            self.biases = {"b" + n[1:]: normal(rng, s[0], self.bias) for n, s in shapes.items()}

    def __call__(self, x, **keywords):
        return ff.ffn(x, **self.packed, **self.biases, activation=self.activation, **keywords)

    def bounded(self, x):
        """The oracle's output for x, with the bound on what a correct library may differ."""
        weights = {n: packed_values(p) for n, p in self.packed.items()}
        biases = {n: b.astype(np.float64) for n, b in self.biases.items()}
        return tolerance.ffn(
            x.astype(np.float64),
            weights["w_up"],
            weights["w_down"],
            self.fmt,
            w_gate=weights.get("w_gate"),
            **biases,
            activation=self.activation,
        )

    def check(self, x):
        check(self(x), self.bounded(x), str(x.dtype))


def check(y, bounded, dtype):
    """Asserts that every element of y lies where a correct library's output may lie."""
    dtype = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(dtype, dtype)
    assert y.dtype == DTYPES[dtype]
    low, high = tolerance.interval(bounded, dtype)
    found = y.astype(np.float64)
    assert found.shape == low.shape
    wrong = ~((found >= low) & (found <= high))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        error = np.abs(found - bounded.value)[wrong].max()
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} elements are out of bounds; the first at {at}: found {found[at]!r}, "
            f"expected {bounded.value[at]!r} ± {bounded.error[at]:.3g} rounded to {dtype}; largest error {error:.3g}"
        )


def forged(packed):
    """The same bytes with a checksum that fits them, as packed.cpp computes it."""

    def checksum(data, bytes_):
        factor, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
        lanes = [1, 2, 3, 4]

        def mix(lane, word):
            lane = (lane ^ word) * factor & mask
            return lane ^ lane >> 29

        words = np.frombuffer(data.tobytes() + bytes(-len(data) % 8), "<u8").tolist()
        whole = len(data) // 32 * 4
        for i, word in enumerate(words):
            lane = i % 4 if i < whole else 0
            lanes[lane] = mix(lanes[lane], word)
        total = bytes_
        for lane in lanes:
            total = mix(total, lane)
        return (total ^ total >> 32) & 0xFFFFFFFF

    packed = packed.copy()
    packed[56:60] = np.frombuffer(struct.pack("<I", checksum(packed[64:], packed.size - 64)), np.uint8)
    packed[60:64] = np.frombuffer(struct.pack("<I", checksum(packed[:60], 60)), np.uint8)
    return packed
