#!/usr/bin/env python3
"""Compiles the launchers of cuda/src and prints, per kernel: registers, shared memory, spills, and how many threads of a
multiprocessor it can fill.

    cuda/tools/kernel_report.py                       # sm_80 and sm_90a, all launchers
    cuda/tools/kernel_report.py --arch 80 --source cuda/src/launch/dense.cu

Fails if a kernel spills registers or keeps an array in local memory: every kernel counts as hot, but for those of COLD. Fails too
where ptxas says that it serialises wgmma or ignores setmaxnreg: such kernels lose most of their speed. Launchers named sm90_* are
compiled for 90a alone.
Dynamic shared memory is chosen at launch and not known here: kernels that use it are marked "+", and their occupancy counts
what the compiler sees.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Kernels that run once, or whose time does not matter; each with a reason.
COLD: dict[str, str] = {}
# Per multiprocessor: threads, shared memory in KiB (CUDA Programming Guide, "Technical Specifications per Compute Capability").
LIMITS = {80: (2048, 164), 86: (1536, 100), 89: (1536, 100), 90: (2048, 228), 100: (2048, 228), 120: (1536, 100)}


# What ptxas says of wgmma that it has to run one by one, and of setmaxnreg that it leaves out. Not C7519: a warpgroup.arrive more
# costs next to nothing.
SLOW = re.compile(r"^.*(?:\(C75(?!19)\d\d\)|wgmma\S* instructions are serialized|setmaxnreg ignored).*$", re.M)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def demangle(names: list[str]) -> list[str]:
    if not names:
        return []
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True).stdout
    short = []
    for name in text.splitlines():
        name = re.sub(r"\((fastffn::)?DType\)", "DType ", name)
        name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N_\w+::|\w*_cu_\w+::|fastffn::cuda::|^void ", "", name)
        short.append(re.sub(r"\((?!\w+\)\d|bool\)).*$", "", name).replace("(int)", "").replace("(bool)", ""))
    return short


def compile_one(source: Path, arch: str) -> tuple[list[dict], list[str]]:
    is_sm90 = source.name.startswith("sm90_")
    if is_sm90 and arch != "90a":
        return [], []
    with tempfile.TemporaryDirectory() as work:
        ptx = Path(work) / "kernels.ptx"
        includes = [f"-I{ROOT}/cuda/src", f"-I{ROOT}/cpp/include", f"-I{ROOT}/cpp/src"]
        defines = ["-DFASTFFN_CUDA_SM90"] if is_sm90 else []
        run(["nvcc", "-std=c++17", "-ptx", f"-arch=compute_{arch}", *defines, *includes, str(source), "-o", str(ptx)])
        text = ptx.read_text()
        threads = {}
        dynamic = set()
        for entry in re.finditer(r"\.entry (\w+)\s*\((.*?)\n\}", text, re.S):
            found = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", entry[0])
            count = 1
            for part in found.groups() if found else ("1024",):
                count *= int(part or 1)
            threads[entry[1]] = count
            if "fastffn_dynamic_shared" in entry[0]:
                dynamic.add(entry[1])
        report = run(["ptxas", "-v", f"-arch=sm_{arch}", str(ptx), "-o", f"{work}/kernels.cubin"])
    kernels = []
    for part in re.split(r"Compiling entry function '", report)[1:]:
        name = part.split("'", 1)[0]

        def number(pattern: str, part: str = part) -> int:
            found = re.search(pattern, part)
            return int(found[1]) if found else 0

        kernels.append(
            {
                "source": source.name,
                "arch": arch,
                "name": name,
                "registers": number(r"Used (\d+) registers"),
                "shared": number(r"(\d+) bytes smem"),
                "stack": number(r"(\d+) bytes stack frame"),
                "spill": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
                "threads": threads.get(name, 1024),
                "dynamic": name in dynamic,
            }
        )
    return kernels, [f"{source.name}, {arch}: {line.strip()}" for line in SLOW.findall(report)]


def resident_threads(kernel: dict) -> tuple[int, int]:
    """Threads a multiprocessor holds of this kernel, and how many it could."""
    most, shared = LIMITS[int(re.match(r"\d+", kernel["arch"])[0])]
    warps = (kernel["threads"] + 31) // 32
    registers_of_warp = (kernel["registers"] * 32 + 255) // 256 * 256
    blocks = min(32, most // (warps * 32), 65536 // (registers_of_warp * warps))
    blocks = min(blocks, shared * 1024 // (kernel["shared"] + 1024))
    return blocks * warps * 32, most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", action="append", help="80, 90a, …; default 80 and 90a")
    parser.add_argument("--source", action="append", type=Path, help="default: cuda/src/launch/*.cu")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    sources = arguments.source or sorted((ROOT / "cuda/src/launch").glob("*.cu"))
    tasks = [(source, arch) for arch in arguments.arch or ["80", "90a"] for source in sources]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda task: compile_one(*task), tasks))
    kernels = [kernel for result, _ in results for kernel in result]
    slow = [line for _, lines in results for line in lines]
    bad = 0
    print(f"{'arch':5} {'regs':>4} {'shared':>8} {'spill':>6} {'stack':>6} {'threads':>9}  kernel")
    for kernel, name in zip(kernels, demangle([kernel["name"] for kernel in kernels])):
        resident, most = resident_threads(kernel)
        wrong = (kernel["spill"] or kernel["stack"]) and not any(cold in name for cold in COLD)
        bad += bool(wrong)
        shared = f"{kernel['shared']}{'+' if kernel['dynamic'] else ''}"
        print(
            f"{kernel['arch']:5} {kernel['registers']:4} {shared:>8} {kernel['spill']:6} {kernel['stack']:6} "
            f"{resident:4}/{most:4}  {name}{'   <-- spills or local memory' if wrong else ''}"
        )
    print(f"{len(kernels)} kernels, {bad} with spills or local memory")
    for line in slow:
        print(line)
    return 1 if bad or slow or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
