"""What a call from Python costs beyond the kernel, and what importing fastffn costs beyond NumPy.

python python/examples/call_overhead.py [--quick]

The kernel is the same C++ function on the same arguments, called in a loop without Python. Rounds alternate between the
two, and the smallest time of each counts: other load on the machine can only add.
"""

import subprocess
import sys
import time

import numpy as np

import fastffn as ff
from fastffn import _core

QUICK = "--quick" in sys.argv
ROUNDS, CALLS = (3, 200) if QUICK else (60, 2000)


def overhead(operation: str, *arguments: object, **keywords: object) -> tuple[float, float]:
    """(kernel, additional) nanoseconds of a call."""
    function = getattr(ff, operation)
    kernel = python = loop = float("inf")
    for _ in range(ROUNDS):
        kernel = min(kernel, _core.seconds_per_call(operation, CALLS, *arguments, **keywords))
        # Literal keywords, as callers write them; f(*a, **k) would add the cost of unpacking.
        begin = time.perf_counter()
        if operation == "linear":
            x, w, out = *arguments, keywords["out"]
            for _ in range(CALLS):
                function(x, w, out=out)
        else:
            x, w_up, w_down, out = *arguments, keywords["out"]
            for _ in range(CALLS):
                function(x, w_up, w_down, activation="gelu", out=out)
        python = min(python, (time.perf_counter() - begin) / CALLS)
        begin = time.perf_counter()
        for _ in range(CALLS):
            pass
        loop = min(loop, (time.perf_counter() - begin) / CALLS)
    return kernel * 1e9, (python - loop - kernel) * 1e9


def import_milliseconds(statement: str) -> float:
    """Smallest time of an import in fresh interpreters, as they measure it themselves."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    runs = (subprocess.check_output([sys.executable, "-c", program]) for _ in range(2 if QUICK else 10))
    return min(map(float, runs)) * 1e3


def report(name: str, x: object, w: object, y: object) -> None:
    """Prints one line per operation on 1 x 16 arrays of one kind."""
    for operation, arguments in (("linear", (x, w)), ("ffn", (x, w, w))):
        keywords = {"out": y} if operation == "linear" else {"out": y, "activation": "gelu"}
        kernel, additional = overhead(operation, *arguments, **keywords)
        print(f"{operation:6} {name:22} kernel {kernel:5.0f} ns, Python adds {additional:5.0f} ns")


ff.set_num_threads(1)
weights = np.eye(16, dtype=np.float32)
x = np.ones((1, 16), np.float32)
report("NumPy", x, ff.pack(weights, "f32"), np.empty_like(x))
try:
    import torch
except ImportError:
    print("torch is not installed")
else:
    arrays = torch.from_numpy(x), ff.pack(torch.from_numpy(weights), "f32"), torch.empty(1, 16)
    report("torch", *arrays)
    with torch.no_grad():
        report("torch, no_grad()", *arrays)
numpy_alone = import_milliseconds("import numpy")
both = import_milliseconds("import numpy, fastffn")
print(f"import numpy {numpy_alone:.1f} ms; with fastffn {both:.1f} ms")
