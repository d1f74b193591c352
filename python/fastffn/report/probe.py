"""What this machine can do at best: the lines of the roofline.

fastffn-bench, installed beside the package, reads memory and runs each instruction set's multiply-add. Where it is
absent, NumPy gives two of the numbers: ``python -m fastffn.report.probe bandwidth|flops THREADS`` prints one, in a
process of its own because the threads of the BLAS behind NumPy are fixed when it starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fastffn

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_BENCH_SECONDS = 0.05  # for each of its numbers, of which there are about a dozen
_TIMEOUT = 60


@dataclass(frozen=True)
class Roof:
    """Read bandwidth of memory in bytes/s; arithmetic ("f32", "bf16", "int8") → operations/s; who measured them."""

    bandwidth: float
    peaks: dict[str, float]
    source: str

    def describe(self) -> str:
        """One line."""
        peaks = ", ".join(f"{name} {peak / 1e9:.0f} {rate_unit(name)}" for name, peak in self.peaks.items())
        return f"{self.bandwidth / 1e9:.1f} GB/s read from memory; at best {peaks} (measured by {self.source})"


def rate_unit(arithmetic: str) -> str:
    """GFLOP/s, or GOP/s for integers."""
    return "GOP/s" if arithmetic.startswith("int") else "GFLOP/s"


def measure(threads: int) -> Roof | None:
    """The roof for so many threads; None where neither way works, as the report can do without."""
    for attempt in (_with_bench, _with_numpy):
        try:
            return attempt(threads)
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            continue
    return None


def _with_bench(threads: int) -> Roof:
    command = [_bench_binary(), "--machine", "--json", "-", "--threads", str(threads)]
    command += ["--machine-seconds", str(_BENCH_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    return roof_of_bench(json.loads(done.stdout)["machine"], threads)


def _bench_binary() -> str:
    # An editable install has two directories: the sources, and what CMake installed.
    for root in fastffn.__path__:
        path = os.path.join(root, "bin", "fastffn-bench")
        if os.path.exists(path):
            return path
    raise FileNotFoundError("fastffn-bench")


def roof_of_bench(machine: dict[str, Any], threads: int) -> Roof:
    """From the "machine" part of fastffn-bench's JSON: DRAM, and for each arithmetic the best instruction set."""
    bandwidths = [
        1e9 * entry["best_gb_per_s"]
        for entry in machine["read_bandwidth"]
        if entry["level"] == "DRAM" and entry["threads"] == threads
    ]
    peaks: dict[str, float] = {}
    for entry in machine["peaks"]:
        if entry["threads"] == threads:
            peaks[entry["numbers"]] = max(peaks.get(entry["numbers"], 0.0), 1e9 * entry["best_gops"])
    if not bandwidths or not peaks:
        raise ValueError(f"fastffn-bench measured nothing with {threads} threads")
    return Roof(max(bandwidths), dict(sorted(peaks.items(), key=lambda peak: peak[1])), "fastffn-bench")


def _with_numpy(threads: int) -> Roof:
    # The readers are threads of Python's, each with a single-threaded product.
    bandwidth = _ask_numpy("bandwidth", threads, blas=1)
    return Roof(bandwidth, {"f32": _ask_numpy("flops", threads, blas=threads)}, "NumPy")


def _ask_numpy(question: str, threads: int, blas: int) -> float:
    environment = {**os.environ, **{name: str(blas) for name in _BLAS_THREADS}}
    command = [sys.executable, "-m", "fastffn.report.probe", question, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT, check=True)
    return float(done.stdout)


def read_bandwidth(threads: int, megabytes: int = 768) -> float:
    """Bytes per second that `threads` threads read together: the best of six passes over so much memory in all.

    More than any last-level cache in wide use holds, so the bytes come from memory each time.
    """
    import numpy as np

    # A matrix times a vector reads every byte once; a vector of 16 KiB stays in L1 beside the stream.
    vector = np.ones(1 << 12, np.float32)
    data = [np.ones((max(1, (megabytes << 6) // threads), 1 << 12), np.float32) for _ in range(threads)]

    def read(array: Any) -> None:
        array @ vector  # NumPy gives the interpreter to the other threads meanwhile

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(6):
            begin = time.perf_counter()
            list(pool.map(read, data))
            best = max(best, sum(array.nbytes for array in data) / (time.perf_counter() - begin))
    return best


def matmul_rate(size: int = 1536) -> float:
    """FLOP per second of a square f32 product: the best of thirty, which together take well under a second."""
    import numpy as np

    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    out = np.empty((size, size), np.float32)
    best = 0.0
    for _ in range(30):
        begin = time.perf_counter()
        np.matmul(a, b, out=out)
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


if __name__ == "__main__":
    print(read_bandwidth(int(sys.argv[2])) if sys.argv[1] == "bandwidth" else matmul_rate())
