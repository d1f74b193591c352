"""What a Python call costs beyond the kernel, and what importing fastffn costs beyond importing NumPy.

    python bench/peers/call_overhead.py

A tiny layer on one thread, torch tensors in, ``out=`` given. The kernel alone is the same C++ call on the same arrays
in a loop without Python; the two loops take turns, and the overhead is the median of their differences. torch's own
call is there for scale.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F

import fastffn as ff
import fastffn.torch as ft
from fastffn import _core

CALLS = 2000
IMPORT = "import numpy, time; t = time.perf_counter(); import fastffn; print(time.perf_counter() - t)"
IMPORT_NUMPY = "import time; t = time.perf_counter(); import numpy; print(time.perf_counter() - t)"


def per_call(call: Callable[[], object]) -> float:
    repeat = range(CALLS)
    start = time.perf_counter()
    for _ in repeat:
        call()
    return (time.perf_counter() - start) / CALLS


def empty_loop() -> float:
    return per_call(lambda: None)


def overhead(call: Callable[[], object], kernel: Callable[[], float], rounds: int) -> dict[str, float]:
    """Seconds per call: through Python, in C++ alone, and the median of the paired differences, without the loop."""
    whole, inside, differences = [], [], []
    for _ in range(rounds):
        loop = empty_loop()
        inside.append(kernel())
        whole.append(per_call(call) - loop)
        differences.append(whole[-1] - inside[-1])
    return {
        "python_s": statistics.median(whole),
        "kernel_s": statistics.median(inside),
        "overhead_s": statistics.median(differences),
        "overhead_of_least_s": min(whole) - min(inside),  # steadier where other programs interrupt
    }


def import_seconds(code: str, rounds: int) -> list[float]:
    return [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(rounds)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101, help="interleaved rounds of 2000 calls (101)")
    parser.add_argument("--imports", type=int, default=11, help="fresh processes for the import time (11)")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ff.set_num_threads(1)

    d_model, d_ff = 32, 64
    x, out = torch.randn(1, d_model), torch.empty(1, d_model)
    plain_up, plain_down = torch.randn(d_ff, d_model), torch.randn(d_model, d_ff)
    up, down = ff.pack(plain_up, "f32"), ff.pack(plain_down, "f32")
    hidden = torch.empty(1, d_ff)
    layer = ft.FFN.from_packed(up, down, activation="gelu")
    x_np, hidden_np, up_np = (np.asarray(tensor) for tensor in (x, hidden, up))

    cases = {
        "linear(x, w, out=y): three torch tensors": (
            lambda: ff.linear(x, up, out=hidden),
            lambda: _core.seconds_per_call("linear", CALLS, x, up, out=hidden),
        ),
        "ffn(x, w_up, w_down, out=y): four torch tensors": (
            lambda: ff.ffn(x, up, down, activation="gelu", out=out),
            lambda: _core.seconds_per_call("ffn", CALLS, x, up, down, activation="gelu", out=out),
        ),
        "fastffn.torch.linear(x, w, out=y)": (
            lambda: ft.linear(x, up, out=hidden),
            lambda: _core.seconds_per_call("linear", CALLS, x, up, out=hidden),
        ),
        "fastffn.torch.ffn(x, w_up, w_down, out=y)": (
            lambda: ft.ffn(x, up, down, activation="gelu", out=out),
            lambda: _core.seconds_per_call("ffn", CALLS, x, up, down, activation="gelu", out=out),
        ),
        "fastffn.torch.FFN()(x, out=y)": (
            lambda: layer(x, out=out),
            lambda: _core.seconds_per_call("ffn", CALLS, x, up, down, activation="gelu", out=out),
        ),
        "torch.ops.fastffn.linear_out(x, w, None, y)": (
            lambda: torch.ops.fastffn.linear_out(x, up, None, hidden),
            lambda: _core.seconds_per_call("linear", CALLS, x, up, out=hidden),
        ),
        "linear(x, w): the result is a new torch tensor": (
            lambda: ff.linear(x, up),
            lambda: _core.seconds_per_call("linear", CALLS, x, up, out=hidden),
        ),
        "linear(x, w, out=y): three NumPy arrays": (
            lambda: ff.linear(x_np, up_np, out=hidden_np),
            lambda: _core.seconds_per_call("linear", CALLS, x_np, up_np, out=hidden_np),
        ),
    }
    print(f"fastffn {ff.__version__}, torch {torch.__version__}, layer {d_model}x{d_ff} f32, one token, one thread")
    print("call".ljust(50) + "python ns".rjust(11) + "kernel ns".rjust(11) + "overhead ns (of least)".rjust(24))
    results = {}
    for name, (call, kernel) in cases.items():
        call()
        results[name] = result = overhead(call, kernel, arguments.rounds)
        python, inside, more, least = (
            f"{result[key] * 1e9:.0f}" for key in ("python_s", "kernel_s", "overhead_s", "overhead_of_least_s")
        )
        print(name.ljust(50) + python.rjust(11) + inside.rjust(11) + f"{more} ({least})".rjust(24))
    for name, call in {
        "for scale: torch F.linear(x, w)": lambda: F.linear(x, plain_up),
        "for scale: torch.mm(x, w, out=y)": lambda: torch.mm(x, plain_up.T, out=hidden),
    }.items():
        seconds = statistics.median(per_call(call) - empty_loop() for _ in range(arguments.rounds))
        results[name] = {"python_s": seconds}
        print(name.ljust(50) + f"{seconds * 1e9:.0f}".rjust(11))

    ours, numpy = import_seconds(IMPORT, arguments.imports), import_seconds(IMPORT_NUMPY, arguments.imports)
    results["import"] = {
        "fastffn_after_numpy_s": statistics.median(ours),
        "least_s": min(ours),
        "numpy_s": statistics.median(numpy),
    }
    print(
        f"\nimport fastffn after NumPy: median {statistics.median(ours) * 1e3:.1f} ms, least {min(ours) * 1e3:.1f} ms",
        end="",
    )
    print(f" (NumPy itself: {statistics.median(numpy) * 1e3:.0f} ms)")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
