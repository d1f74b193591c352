"""What the report ran on, in a few lines."""

from __future__ import annotations

import os
import platform

import numpy as np

import fastffn as ff
from fastffn import _core

from .variants import has_torch, torch_facts


def facts(threads: int, with_torch: bool = True) -> dict[str, str]:
    """Name → value, in the order they are shown."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    out = {
        "fastffn": str(ff.__version__),
        "CPU": f"{_cpu_name()}, {usable} usable" + (" core" if usable == 1 else " cores"),
        "kernels": ", ".join(ff.active_kernel(name) for name in ff.formats()),
        "threads": str(threads),
        "Python": f"{platform.python_version()}, NumPy {np.__version__}",
    }
    if with_torch and has_torch():
        out["torch"] = torch_facts()
    elif with_torch:
        out["torch"] = "not installed: no comparison with it"
    else:
        out["torch"] = "left out (--no-torch)"
    return out


def _cpu_name() -> str:
    found = _core.machine()
    return found["brand"] or found["vendor"] or platform.machine()
