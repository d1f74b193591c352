"""Interleaved timing of several contenders in one process, and how busy other programs were meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SAMPLE_AT_LEAST = 50e-6  # shorter calls are timed several at a time
WARM_UP_BELOW = 0.05  # longer calls stream more than any cache holds
QUIET_CORES = 0.15  # other programs may use this much of one core in a round that counts
ROUNDS_AT_LEAST = 3


class LoadMeter:
    """Cores that other programs use, on average since it was made (Linux; 0 elsewhere)."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        ours = os.times()
        try:
            with open("/proc/stat") as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except OSError:
            return time.perf_counter(), 0.0, 0.0
        idle = ticks[3] + ticks[4]
        busy = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, ours.user + ours.system

    def other_cores(self) -> float:
        start, busy, ours = self._start
        now, busy_now, ours_now = self._read()
        return max(0.0, ((busy_now - busy) - (ours_now - ours)) / max(now - start, 1e-9))


@dataclass
class Times:
    """Seconds per call of one contender, in rounds."""

    rounds: list[list[float]] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(sample for samples in self.rounds for sample in samples)

    def minimum(self) -> float:
        return min(sample for samples in self.rounds for sample in samples)

    def ratio_to(self, ours: Times) -> float:
        """Median over rounds of this time / our time: above 1 we are faster. Drift hits both sides of a round alike."""
        pairs = zip(self.rounds, ours.rounds, strict=True)
        return statistics.median(statistics.median(other) / statistics.median(mine) for other, mine in pairs)


def _burst(call: Callable[[], object], seconds: float, expected: float) -> list[float]:
    clock = time.perf_counter
    if expected < WARM_UP_BELOW:
        call()  # does not count: the contender before has used the caches, and threads sleep
    calls = max(1, round(SAMPLE_AT_LEAST / max(expected, 1e-9) + 0.5))
    samples: list[float] = []
    end = clock() + seconds
    while True:
        start = clock()
        for _ in range(calls):
            call()
        now = clock()
        samples.append((now - start) / calls)
        if now + (now - start) / 2 > end:
            return samples


def measure(
    contenders: dict[str, Callable[[], object]], *, seconds: float, rounds: int
) -> tuple[dict[str, Times], float]:
    """Times every contender for about ``seconds`` in all, taking turns over ``rounds`` rounds.

    Returns:
        The times by name, and the cores that other programs used in the rounds that count. Rounds in which they used
        more than QUIET_CORES are measured again as long as the time is not tripled.
    """
    names = list(contenders)
    expected: dict[str, float] = {}
    for name, call in contenders.items():
        call()
        start = time.perf_counter()
        call()
        expected[name] = time.perf_counter() - start

    kept: list[tuple[float, dict[str, list[float]]]] = []
    quiet = 0
    begin = time.perf_counter()
    while quiet < rounds:
        if len(kept) >= ROUNDS_AT_LEAST and time.perf_counter() - begin > 3 * seconds * len(names):
            break
        meter = LoadMeter()
        order = names[len(kept) % len(names) :] + names[: len(kept) % len(names)]
        samples = {name: _burst(contenders[name], seconds / rounds, expected[name]) for name in order}
        load = meter.other_cores()
        kept.append((load, samples))
        quiet += load <= QUIET_CORES

    calm = [entry for entry in kept if entry[0] <= QUIET_CORES]
    if len(calm) < ROUNDS_AT_LEAST:
        calm = sorted(kept, key=lambda entry: entry[0])[:ROUNDS_AT_LEAST]
    times = {name: Times([samples[name] for _, samples in calm]) for name in names}
    return times, statistics.fmean(load for load, _ in calm)
