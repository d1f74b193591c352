"""Where the package keeps its C++ half: headers, static library, CMake package and the bench binary."""

from __future__ import annotations

import os
import sys


def _find(*parts: str) -> str | None:
    # An editable install has two directories: the sources, and what CMake installed.
    import fastffn

    for root in fastffn.__path__:
        path = os.path.join(root, *parts)
        if os.path.exists(path):
            return path
    return None


def _require(what: str, *parts: str) -> str:
    path = _find(*parts)
    if path is None:
        raise FileNotFoundError(
            f"this installation of fastffn has no {what} ({'/'.join(parts)}); reinstall it with pip"
        )
    return path


def get_include() -> str:
    """Directory of the C++ headers: ``#include "fastffn/fastffn.hpp"``."""
    return os.path.dirname(_require("C++ headers", "include", "fastffn"))


def cmake_dir() -> str:
    """Directory of the CMake package: ``cmake -Dfastffn_DIR=$(python -m fastffn --cmake-dir)``."""
    return _require("CMake package", "lib", "cmake", "fastffn")


def run_bench() -> None:
    """The command ``fastffn-bench``: replaces this process by the C++ binary."""
    binary = _find("bin", "fastffn-bench")
    if binary is None:
        sys.exit("fastffn-bench: this installation of fastffn was built without it (FASTFFN_BENCH=OFF)")
    os.execv(binary, ["fastffn-bench", *sys.argv[1:]])
