"""What this machine can do at best, measured with NumPy: the two lines of the roofline.

`measure` runs this file as a program, once per question, because the threads of the BLAS behind NumPy are fixed when it
starts: ``probe.py bandwidth THREADS`` and ``probe.py flops THREADS`` print one number.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


@dataclass(frozen=True)
class Roof:
    """Read bandwidth of memory in bytes/s, and rate of f32 matrix products in FLOP/s."""

    bandwidth: float
    flops: float


def measure(threads: int) -> Roof | None:
    """Both numbers for so many threads; None where the probe fails, as the report can do without."""
    try:
        # The readers are threads of Python's, each with a single-threaded product.
        return Roof(_ask("bandwidth", threads, blas=1), _ask("flops", threads, blas=threads))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _ask(question: str, threads: int, blas: int) -> float:
    environment = {**os.environ, **{name: str(blas) for name in _BLAS_THREADS}}
    command = [sys.executable, os.path.abspath(__file__), question, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
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
