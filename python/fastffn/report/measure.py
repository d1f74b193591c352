"""Timing: every variant on the same rows of the same layers, in turns, so that a slow moment slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import F32
from .layers import FfnLayer
from .variants import Variant

# Packed weights of all variants together; more layers than fit are left out of the timing, evenly.
_PACKED_BYTES = 3 << 30
_MIN_SAMPLES = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the shortest of `calls` calls."""

    median: float
    shortest: float
    calls: int


@dataclass(frozen=True)
class _Packed:
    variant: Variant
    layers: list[Any]


def rows_for(captured: F32, tokens: int) -> F32:
    """`tokens` rows out of the captured ones [rows, d_model]: spread over the text, repeated where too few."""
    picked = np.linspace(0, captured.shape[0], tokens, endpoint=False).astype(np.int64)
    return np.ascontiguousarray(captured[picked])


def layers_that_fit(layer: FfnLayer, variants: int) -> int:
    """How many such layers are timed at most, packed for every variant at once; two at least."""
    per_layer = 3 * layer.parameters * variants  # about: f32 takes 4 bytes per weight, the others 2 and less
    return max(2, _PACKED_BYTES // max(per_layer, 1))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, most)).round()})


def time_variants(
    layers: Sequence[FfnLayer],
    captured: Sequence[F32],
    variants: Sequence[Variant],
    tokens: Sequence[int],
    seconds: float,
    progress: Callable[[int], None],
) -> dict[str, dict[int, Timing]]:
    """Times every variant at every number of tokens, spending about `seconds` on each number.

    One round is: for every layer, every variant once, beginning with another one each time. Going through all layers
    means that weights come from where they come from in a real model: memory, not the cache that the last call left.
    `progress(T)` is called when T is about to be timed.
    """
    packed = [_Packed(variant, [variant.pack(layer) for layer in layers]) for variant in variants]
    timings: dict[str, dict[int, Timing]] = {variant.name: {} for variant in variants}
    for count in tokens:
        progress(count)
        inputs = [
            [one.variant.prepare(rows_for(rows, count), layer) for one in packed]
            for rows, layer in zip(captured, layers, strict=True)
        ]
        samples = _rounds(packed, inputs, seconds)
        for one, values in zip(packed, samples, strict=True):
            timings[one.variant.name][count] = Timing(float(np.median(values)), min(values), len(values))
    return timings


def _rounds(packed: Sequence[_Packed], inputs: Sequence[Sequence[Any]], seconds: float) -> list[list[float]]:
    samples: list[list[float]] = [[] for _ in packed]
    for index, one in enumerate(packed):  # first calls start threads and allocate
        one.variant.run(one.layers[0], inputs[0][index])
    collecting = gc.isenabled()
    gc.disable()
    try:
        turn = 0
        deadline = time.perf_counter() + seconds
        while turn < _MIN_SAMPLES or time.perf_counter() < deadline:
            layer = turn % len(inputs)
            for step in range(len(packed)):
                index = (turn + step) % len(packed)
                one = packed[index]
                weights, prepared = one.layers[layer], inputs[layer][index]
                begin = time.perf_counter()
                one.variant.run(weights, prepared)
                samples[index].append(time.perf_counter() - begin)
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return samples
