#!/usr/bin/env python3
"""Builds fastffn on a machine with an NVIDIA GPU, tests it there, checks it with compute-sanitizer and measures it.

    bench/gpu/run.py                       everything; writes bench/gpu/results/<device>.json
    bench/gpu/run.py --step build          one step of: build, test, sanitize, bench
    bench/gpu/run.py --minutes 9           stops in time, with exit status 3; the next run goes on where this one stopped
    bench/gpu/run.py --dry-run             prints what would run
    bench/gpu/run.py --emulated build      everything that needs no GPU: the emulated plugin of a CMake build, tiny rows

Needs nvcc, CMake 3.21, a C++17 compiler, and in this Python what the package builds and tests with (numpy, pybind11, pytest, ml_dtypes,
safetensors; torch or cupy for arrays on the device). No network. What is built and what was found lies in build/gpu and is
used again; a step that passed for these sources is not repeated unless --again says so.

Exit status: 0: all that ran passed (bars that rows missed are results, not failures); 1: something failed; 2: a wrong argument or
nothing to run on; 3: time ran out.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import parse
from runner import OutOfTime, Runner

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("build", "test", "sanitize", "bench")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PARTS = ("decode", "prefill")
# racecheck follows every access of shared memory: minutes where the program alone takes a second.
PROGRAM_LIMIT = 240


def commit() -> str:
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FASTFFN_COMMIT", "unknown")


def sources() -> str:
    """A hash of what is built and run: what was found counts for these files alone, committed or not."""
    found = hashlib.sha1()
    for folder in ("bench", "cpp", "cuda", "python", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and not {"__pycache__", "results"} & set(path.parts):
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:12]


def library_places(given: list[str]) -> list[str]:
    """Folders with cuBLASLt or cuSPARSELt: those given, of this Python's packages, of the toolkit."""
    patterns = [f"{folder}/nvidia/*/lib" for folder in sys.path if folder.endswith("-packages")]
    patterns += ["/usr/local/cuda*/lib64", "/usr/local/cuda*/lib"]
    folders = [folder for pattern in patterns for folder in sorted(glob.glob(pattern))]
    return given + [f for f in folders if glob.glob(f"{f}/libcublasLt.so*") or glob.glob(f"{f}/libcusparseLt.so*")]


class Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.runner = Runner(options)
        self.work: Path = options.work
        self.emulated: Path | None = options.emulated
        self.build: Path = options.emulated or options.work / "cmake"
        self.state_file = self.work / "state.json"
        self.commit = commit()
        self.failed: list[str] = []
        self.state: dict[str, Any] = {}
        if self.state_file.exists() and not options.dry_run:
            self.state = json.loads(self.state_file.read_text())
        key = {"sources": sources(), "emulated": bool(self.emulated)}
        if any(self.state.get(name) != value for name, value in key.items()):
            self.state = dict(key)
        self.device = self.find_device()

    def find_device(self) -> dict[str, str]:
        if self.emulated:
            return {"name": "emulated", "driver_version": "none", "compute_capability": "8.0"}
        command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
        if self.options.dry_run and not shutil.which("nvidia-smi"):
            return {"name": "NVIDIA GPU", "driver_version": "unknown", "compute_capability": "9.0"}
        try:
            return parse.smi(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as problem:
            sys.exit(f"run.py: no GPU here: {problem} (--dry-run and --emulated need none)")

    def keep(self) -> None:
        if self.options.dry_run:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        scratch = self.state_file.with_suffix(".new")
        scratch.write_text(json.dumps(self.state, indent=1))
        scratch.replace(self.state_file)

    def environment(self) -> dict[str, str]:
        plugin, module = self.build / "cuda/libfastffn_cuda.so", self.build / "cuda/libfastffn_cuda_bench.so"
        if self.emulated:
            plugin = self.build / "tests/cuda/libfastffn_cuda_emulated.so"
            module = self.build / "bench/tests/libfastffn_cuda_bench_emulated.so"
        return {"FASTFFN_CUDA_PLUGIN": str(plugin), "FASTFFN_CUDA_BENCH": str(module)}

    # ---- steps ----

    def build_step(self) -> None:
        if self.state.get("build", {}).get("ok") and not self.options.again:
            return self.runner.say("build: done for these sources")
        begin = time.monotonic()
        ok = True
        if self.emulated:
            targets = [
                "fastffn_cuda_emulated",
                "fastffn_cuda_bench_emulated",
                "fake_cublaslt",
                "fake_cusparselt",
                "fastffn-bench",
                "test_cuda_api",
            ]
            status, _ = self.runner.run(
                "build cmake", ["cmake", "--build", str(self.build), "--parallel", "--target", *targets]
            )
            ok = status == 0
        else:
            architectures = self.options.architectures or parse.architectures(self.device["compute_capability"])
            generator = ["-G", "Ninja"] if shutil.which("ninja") else []
            configure = ["cmake", "-S", str(ROOT), "-B", str(self.build), *generator, "-DCMAKE_BUILD_TYPE=Release"]
            configure += [
                "-DFASTFFN_CUDA=ON",
                f"-DFASTFFN_CUDA_ARCHITECTURES={architectures}",
                "-DFASTFFN_CUDA_GPU_TESTS=ON",
            ]
            headers = [
                h
                for place in library_places([])
                if (h := os.path.join(os.path.dirname(place), "include")) and os.path.isdir(h)
            ]
            configure += [f"-DFASTFFN_CUDA_LIBRARY_HEADERS={';'.join(headers)}"]
            configure += [
                "-DFASTFFN_PYTHON=ON",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={self.pybind11()}",
            ]
            targets = ["fastffn_cuda", "fastffn_cuda_bench", "fastffn-bench", "fastffn_python", "cuda_gpu_tests"]
            build = ["cmake", "--build", str(self.build), "--parallel", str(os.cpu_count()), "--target", *targets]
            for name, command in (("build configure", configure), ("build cmake", build)):
                status, _ = self.runner.run(name, command)
                ok = ok and status == 0
            ok = ok and self.make_package()
            self.state["architectures"] = architectures
        self.state["build"] = {"ok": ok, "seconds": round(time.monotonic() - begin)}
        self.note(ok, "build")

    def pybind11(self) -> str:
        command = [sys.executable, "-m", "pybind11", "--cmakedir"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def make_package(self) -> bool:
        """The Python package as pip would install it, but for headers: no build tools that may not be there, nothing compiled twice."""
        if self.options.dry_run:
            return True
        modules = sorted((self.build / "python").glob("_core*.so"))
        if not modules:
            self.runner.say("build: no Python module _core in the build")
            return False
        package = self.work / "site" / "fastffn"
        shutil.rmtree(package, ignore_errors=True)
        shutil.copytree(ROOT / "python/fastffn", package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(modules[0], package)
        return True

    def test_step(self) -> None:
        tests = self.state.setdefault("tests", {})
        for name, command, report in self.suites():
            if tests.get(name, {}).get("failed") == 0 and not self.options.again:
                self.runner.say(f"test {name}: passed for these sources")
                continue
            report.parent.mkdir(parents=True, exist_ok=True)
            report.unlink(missing_ok=True)
            status, _ = self.runner.run(f"test {name}", command, **self.test_environment())
            if self.options.dry_run:
                continue
            counts = (
                parse.junit(report) if report.exists() else {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
            )
            if status != 0 and not counts["failed"]:
                counts["failed"], counts["failures"] = 1, [f"{name}: exit status {status}"]
            if not counts["passed"] and not counts["failed"]:
                counts["failed"], counts["failures"] = 1, [f"{name}: no test ran"]
            tests[name] = counts
            self.runner.say(
                f"test {name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
            )
            self.note(not counts["failed"], f"test {name}")

    def suites(self) -> list[tuple[str, list[str], Path]]:
        cpp, python = self.work / "cpp.xml", self.work / "python.xml"
        pattern = "^cuda_api$" if self.emulated else "^gpu_"
        ctest = [
            "ctest",
            "--test-dir",
            str(self.build),
            "-R",
            pattern,
            "--output-on-failure",
            "--output-junit",
            str(cpp),
        ]
        pytest = [sys.executable, "-m", "pytest", "-q", "-rs", *self.python_tests(), f"--junitxml={python}"]
        return [("cpp", ctest, cpp), ("python", pytest if self.emulated else [*pytest, "--cuda", "gpu"], python)]

    @staticmethod
    def python_tests() -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests/python").glob("test_cuda_*.py"))]

    def test_environment(self) -> dict[str, str]:
        if self.emulated:
            return {"FASTFFN_EMULATED_PLUGIN": self.environment()["FASTFFN_CUDA_PLUGIN"], "FASTFFN_TEST_SIZE": "small"}
        path = os.pathsep.join(filter(None, [str(self.work / "site"), os.environ.get("PYTHONPATH", "")]))
        return {"FASTFFN_CUDA_PLUGIN": self.environment()["FASTFFN_CUDA_PLUGIN"], "PYTHONPATH": path}

    def sanitize_step(self) -> None:
        found = self.state.setdefault("sanitizers", {})
        if self.emulated:
            return self.runner.say("sanitize: nothing to check without a GPU")
        sanitizer = self.options.sanitizer or shutil.which("compute-sanitizer")
        for folder in sorted(glob.glob("/usr/local/cuda*/bin/compute-sanitizer")):
            sanitizer = sanitizer or folder
        if not sanitizer and not self.options.dry_run:
            for tool in TOOLS:
                found[tool] = {"verdict": "not installed"}
            return self.note(True, "sanitize")
        programs = [
            Path(p) for p in sorted(glob.glob(str(self.build / "tests/cuda/gpu/test_gpu_*"))) if os.access(p, os.X_OK)
        ]
        if self.options.dry_run:
            programs = programs or [Path("test_gpu_plugin_calls")]
        # The quick part of the Python suite under memcheck alone: frameworks' own kernels would take the others hours.
        quick = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "tests/python",
            "-k",
            "cuda",
            "--cuda",
            "gpu",
            "-m",
            "quick",
        ]
        for tool in TOOLS:
            done = found.setdefault(tool, {"verdict": "unfinished", "programs": {}})
            if "programs" not in done or self.options.again:
                done = found[tool] = {"verdict": "unfinished", "programs": {}}
            commands = {program.name: [str(program)] for program in programs}
            if tool == "memcheck":
                commands["pytest"] = quick
            for name, command in commands.items():
                if name in done["programs"]:
                    continue
                checked = [
                    sanitizer or "compute-sanitizer",
                    "--tool",
                    tool,
                    "--error-exitcode",
                    "66",
                    "--target-processes",
                    "all",
                ]
                if name == "pytest":
                    checked += ["--report-api-errors", "no"]
                environment = {**self.test_environment(), "FASTFFN_TEST_SIZE": "small"}
                status, text = self.runner.run(
                    f"sanitize {tool} {name}", [*checked, *command], PROGRAM_LIMIT, **environment
                )
                errors = parse.sanitizer_errors(text)
                verdict = "clean" if status == 0 and errors == 0 else "errors"
                if status is None and not errors:
                    verdict = f"stopped after {PROGRAM_LIMIT} s"
                elif errors is None:
                    verdict = "did not run"
                if not self.options.dry_run:
                    done["programs"][name] = verdict
                    self.runner.say(f"sanitize {tool} {name}: {verdict}")
                    self.keep()
            verdicts = list(done["programs"].values())
            bad = [v for v in verdicts if v in ("errors", "did not run")]
            stopped = [v for v in verdicts if v not in ("clean", *bad)]
            done["verdict"] = bad[0] if bad else "clean but for programs that were stopped" if stopped else "clean"
            self.note(not bad, f"sanitize {tool}")

    def bench_step(self) -> None:
        bench = self.state.setdefault("bench", {})
        program = [str(self.build / "bench/fastffn-bench"), "--device", "cuda"]
        places = [str(self.build / "bench/tests/fake")] if self.emulated else library_places(self.options.library)
        for place in places:
            program += ["--library", place]
        if self.emulated:
            program += ["--smoke"]
        for part in PARTS:
            whole = bench.get(part, {})
            if whole.get("finished") and not self.options.again:
                self.runner.say(f"bench {part}: measured for these sources")
                continue
            # Rows that an earlier run measured stay; this one begins behind them.
            rows = [] if self.options.again else whole.get("rows", [])
            path = self.work / f"bench-{part}.json"
            path.unlink(missing_ok=True)
            command = [*program, "--suite", part, "--json", str(path), "--first", str(len(rows) + 1)]
            status: int | None = None
            try:
                status, text = self.runner.run(f"bench {part}", command, **self.environment())
                if status in (0, 1) and not self.options.dry_run:
                    print(text, flush=True)
            finally:
                found = self.read_rows(path)
                if found:
                    bench[part] = {**found, "rows": rows + found["rows"], "finished": status in (0, 1)}
                    self.keep()
            failures = [row["name"] for row in bench.get(part, {}).get("rows", []) if "problem" in row["ours"]]
            for name in failures:
                self.runner.say(f"bench {part}: failed: {name}")
            self.note(status == 0 and not failures, f"bench {part}")

    @staticmethod
    def read_rows(path: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            return {}

    # ---- around them ----

    def note(self, ok: bool, what: str) -> None:
        if not ok and not self.options.dry_run:
            self.failed.append(what)
        self.keep()

    def results(self) -> dict[str, Any]:
        parts = [self.state.get("bench", {}).get(part, {}) for part in PARTS]
        first = next((part for part in parts if part), {})
        rows = [row for part in parts for row in part.get("rows", [])]
        return {
            "schema": "fastffn-gpu-results-1",
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "commit": self.commit,
            "fastffn": first.get("fastffn"),
            "device": {**first.get("device", {}), **self.device, "emulated": bool(self.emulated)},
            "python": platform.python_version(),
            "architectures": self.state.get("architectures"),
            "build": self.state.get("build"),
            "tests": self.state.get("tests", {}),
            "sanitizers": self.state.get("sanitizers", {}),
            "libraries": first.get("libraries", {}),
            "ceilings": first.get("ceilings", {}),
            "bars": parse.bars(rows),
            "rows": rows,
        }

    def write_results(self) -> None:
        if self.options.dry_run:
            return
        results = self.results()
        # Without rows there is nothing that a table could show.
        folder = self.options.results if results["rows"] else self.work
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{parse.slug(self.device['name'])}.json"
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        bars = results["bars"]
        self.runner.say(
            f"{path}: {len(results['rows'])} rows; of {bars['asked']} bars {bars['met']} met, {bars['missed']} missed, "
            f"{bars['unknown']} not known"
        )

    def go(self) -> int:
        self.runner.say(f"{self.device['name']}, driver {self.device['driver_version']}, commit {self.commit}")
        steps = STEPS if self.options.step == "all" else (self.options.step,)
        late = ""
        try:
            for step in steps:
                if step != "build" and not self.state.get("build", {}).get("ok") and not self.options.dry_run:
                    self.runner.say(f"{step}: needs a build that passed")
                    self.failed.append(step)
                    break
                getattr(self, f"{step}_step")()
        except OutOfTime as stopped:
            late = str(stopped)
        self.keep()
        self.write_results()
        if self.failed:
            self.runner.say("FAILED: " + ", ".join(self.failed))
        if late:
            self.runner.say(f"time is up at '{late}'; run again to go on")
        return 1 if self.failed else 3 if late else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=[*STEPS, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=0, help="stop in time; 0 (default): no limit")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/gpu", help="what is built and found (default build/gpu)"
    )
    parser.add_argument(
        "--results", type=Path, help="folder of the results (default bench/gpu/results; with --emulated --work)"
    )
    parser.add_argument("--architectures", help="as CMAKE_CUDA_ARCHITECTURES takes them (default: this device's)")
    parser.add_argument(
        "--library", action="append", default=[], help="file or folder of cuBLASLt or cuSPARSELt; may be repeated"
    )
    parser.add_argument("--sanitizer", help="path of compute-sanitizer (default: where PATH or the toolkit has it)")
    parser.add_argument("--again", action="store_true", help="repeat steps that passed for these sources")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument(
        "--emulated", type=Path, metavar="BUILD", help="no GPU: the emulated plugin of this CMake build"
    )
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    options.emulated = options.emulated and options.emulated.resolve()
    options.results = options.results or (options.work if options.emulated else ROOT / "bench/gpu/results")
    return Run(options).go()


if __name__ == "__main__":
    sys.exit(main())
