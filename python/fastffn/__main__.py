"""``python -m fastffn``: what this machine has; ``report`` and ``bench`` run the tools of that name."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata

import fastffn
from fastffn import _core


def _package_version(name: str) -> str:
    # Asking the metadata does not import the package: torch takes seconds.
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _size(count: int) -> str:
    if count <= 0:
        return "unknown"
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def _cpu_count() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} usable of {os.cpu_count()}"


def _kernel(format: str) -> str:
    try:
        return fastffn.active_kernel(format)
    except (RuntimeError, ValueError):
        return f"{format}/none"  # the ISA line says why


def _cuda() -> list[tuple[str, str]]:
    cuda = _core.cuda()
    rows = [("cuda plugin", cuda["path"] or f"none ({_core.machine()['cuda_build']})")]
    if cuda["path"]:
        rows.append(("  code for", cuda["architectures"]))
    for index, device in enumerate(cuda["devices"]):
        major, minor = device["capability"]
        lacks = "" if device["has_code"] else ", no code for it in the plugin"
        rows.append(
            (f"  device {index}", f"{device['name']}, sm_{major}{minor}, {_size(device['memory_bytes'])}{lacks}")
        )
    rows.append(("cuda", "available" if cuda["available"] else f"unavailable: {cuda['reason']}"))
    return rows


def diagnostics() -> str:
    """The text that ``python -m fastffn`` prints, to be pasted into a bug report."""
    machine = _core.machine()
    rows = [
        ("fastffn", f"{fastffn.__version__} (built with {machine['compiler']})"),
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        ("numpy", _package_version("numpy")),
        ("torch", _package_version("torch")),
        ("ml_dtypes", _package_version("ml_dtypes")),
        ("cpu", f"{machine['brand'] or machine['vendor'] or platform.machine()}, {_cpu_count()} cores"),
        (
            "caches",
            f"L1d {_size(machine['l1d_bytes'])}, L2 {_size(machine['l2_bytes'])}, L3 {_size(machine['l3_bytes'])}",
        ),
        ("isa found", machine["isa_found"]),
        ("isa chosen", f"error: {machine['isa_error']}" if machine["isa_error"] else machine["isa_chosen"]),
        ("  because", "" if machine["isa_error"] else machine["isa_reason"]),
        ("kernels", ", ".join(_kernel(format) for format in fastffn.formats())),
        ("threads", f"{fastffn.get_num_threads()}, {machine['threading']}"),
        *_cuda(),
        *((name, value) for name, value in sorted(os.environ.items()) if name.startswith(("FASTFFN_", "OMP_"))),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in rows if value)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        from fastffn.report.cli import main as report

        return report(arguments[1:])
    if arguments[:1] == ["bench"]:
        from fastffn._paths import run_bench

        sys.argv[1:] = arguments[1:]
        run_bench()
    parser = argparse.ArgumentParser(
        prog="python -m fastffn",
        usage="python -m fastffn [report | bench] [options]",
        description="Without arguments: what this machine has and what fastffn uses of it.",
        epilog="Commands: 'report' measures every format on a real model; 'bench' is fastffn-bench. Both take --help.",
    )
    parser.add_argument("--version", action="version", version=fastffn.__version__)
    parser.add_argument("--include-dir", action="store_true", help="print the directory of the C++ headers")
    parser.add_argument("--cmake-dir", action="store_true", help="print the directory of the CMake package")
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"there is no command {arguments[0]!r}; there are report and bench")
    options = parser.parse_args(arguments)
    if options.include_dir:
        print(fastffn.get_include())
    elif options.cmake_dir:
        print(fastffn.cmake_dir())
    else:
        print(diagnostics())
        return 1 if _core.machine()["isa_error"] else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
