"""Ternary and int4 products, and Hadamard transforms: fastffn beside other libraries, interleaved in one process.

    python bench/peers/bitlinear.py --suite ternary --threads 1             4096x4096, 2560x6912, 4096x11008; hot
    python bench/peers/bitlinear.py --suite ternary --threads 2 --cold --tokens 1,16
    python bench/peers/bitlinear.py --suite int4 --threads 1
    python bench/peers/bitlinear.py --suite hadamard --threads 1            alone, and as a part of a product

Shapes are IN x OUT. README.md says how to install the peers; one that is missing or cannot run here is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys


def parse_arguments() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("ternary", "int4", "hadamard"), default="ternary")
    parser.add_argument("--shape", type=words, help="a list of INxOUT (4096x4096,2560x6912,4096x11008)")
    parser.add_argument("--tokens", type=numbers, help="a list (1,16,128,512)")
    parser.add_argument("--threads", type=int, default=1, help="of every contender (1)")
    parser.add_argument("--cold", action="store_true", help="weights from DRAM: turns on copies of --cold-bytes in all")
    parser.add_argument("--cold-bytes", type=int, default=1 << 30)
    parser.add_argument("--peers", type=words, help="a list (all): ggml, litespark, vllm; or none")
    parser.add_argument("--ggml", metavar="FOLDER", help="where libggml-base.so and libggml-cpu.so are")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender and number of tokens (1.0)")
    parser.add_argument("--rounds", type=int, default=9, help="turns within that time (9)")
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")
    parser.add_argument("--probe", metavar="PEER", help=argparse.SUPPRESS)
    return parser.parse_args()


ARGUMENTS = parse_arguments()
# Before torch is imported: its OpenMP reads it once.
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import ggml  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bitlinear_contenders import SUITES, Contender, Matrix  # noqa: E402
from bitlinear_hadamard import hadamard  # noqa: E402
from layer import Skip  # noqa: E402
from timing import QUIET_CORES, measure  # noqa: E402

import fastffn as ff  # noqa: E402
from fastffn.report import probe as machine  # noqa: E402

TOLERANCE = {"ternary": 0.03, "int4": 0.3}


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\033[K" + text[:100], end="", file=sys.stderr, flush=True)


def limits(threads: int) -> dict[str, float]:
    """Read bandwidth of L3 and DRAM in bytes/s, and the int8 peak in operations/s, by fastffn-bench, now."""
    command = [
        machine._bench_binary(),
        "--machine",
        "--json",
        "-",
        "--threads",
        str(threads),
        "--machine-seconds",
        "0.1",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["machine"]
    best = {e["level"]: 1e9 * e["best_gb_per_s"] for e in found["read_bandwidth"] if e["threads"] == threads}
    peaks = [1e9 * e["best_gops"] for e in found["peaks"] if e["threads"] == threads and e["numbers"] == "int8"]
    return {**best, "int8": max(peaks)}


def matrix_of(suite: str, shape: str, seed: int = 0) -> Matrix:
    columns, rows = map(int, shape.split("x"))
    rng = np.random.default_rng(seed)
    if suite == "ternary":
        codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
        scale = float(np.float16(columns**-0.5))  # which ggml's f16 holds exactly
        return Matrix(codes.astype(np.float32) * np.float32(scale), codes, scale, ARGUMENTS.threads)
    w = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(columns**-0.5)
    return Matrix(w, None, 0.0, ARGUMENTS.threads)


def error_of(contender: Contender, matrix: Matrix, x: np.ndarray) -> float:
    call, result = contender.calls(x)[0]
    call()
    expected = x.astype(np.float64) @ matrix.w.T.astype(np.float64)
    return float(np.linalg.norm(result() - expected) / np.linalg.norm(expected))


def probe(name: str) -> None:
    """Runs a peer on a small matrix in a process of its own: some die instead of raising on a CPU unknown to them."""
    command = [sys.executable, os.path.abspath(__file__), "--probe", name, "--suite", ARGUMENTS.suite, "--threads", "1"]
    command += ["--ggml", ARGUMENTS.ggml] if ARGUMENTS.ggml else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode < 0:
        raise Skip(f"the process dies with signal {-done.returncode} on this CPU")
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Skip(lines[-1][:200] if lines else f"exit status {done.returncode}")


def run_probe(name: str) -> int:
    matrix = matrix_of(ARGUMENTS.suite, "512x256")
    try:
        contender = SUITES[ARGUMENTS.suite][name][1](matrix, 1)
        for tokens in (1, 3, 16, 128):
            error = error_of(
                contender, matrix, np.random.default_rng(1).standard_normal((tokens, 512), dtype=np.float32)
            )
            if not error < TOLERANCE[ARGUMENTS.suite]:
                print(f"wrong results on a small matrix: relative error {error:.2g} with {tokens} tokens")
                return 1
    except Exception as problem:
        print(f"{problem}".splitlines()[0] if f"{problem}" else type(problem).__name__)
        return 1
    return 0


def build_all(suite: str, matrix: Matrix) -> tuple[dict[str, Contender], dict[str, str]]:
    built: dict[str, Contender] = {}
    skipped: dict[str, str] = {}
    for name, (group, builder) in SUITES[suite].items():
        if group != "fastffn" and ARGUMENTS.peers is not None and group not in ARGUMENTS.peers:
            continue
        progress(f"building {name}")
        try:
            if group != "fastffn":
                probe(name)
            one = builder(matrix, 1)
            copies = max(1, -(-ARGUMENTS.cold_bytes // one.bytes)) if ARGUMENTS.cold else 1
            built[name] = builder(matrix, copies) if copies > 1 else one
        except Exception as problem:
            skipped[name] = (str(problem) or type(problem).__name__).splitlines()[0]
    progress("")
    return built, skipped


def in_turn(calls: list) -> object:
    """One call without arguments that walks over the copies."""
    state = [0]

    def call() -> None:
        state[0] += 1
        calls[state[0] % len(calls)][0]()

    return call if len(calls) > 1 else calls[0][0]


def products(suite: str, shape: str) -> list[dict]:
    matrix = matrix_of(suite, shape)
    rows_out, columns = matrix.shape
    built, skipped = build_all(suite, matrix)
    found = limits(ARGUMENTS.threads)
    level = "DRAM" if ARGUMENTS.cold else "L3"
    print(
        f"\n{suite} {shape}, threads {ARGUMENTS.threads}, {'cold' if ARGUMENTS.cold else 'hot'}; fastffn runs "
        f"{ff.active_kernel(suite)}; {level} reads {found[level] / 1e9:.1f} GB/s, int8 at best {found['int8'] / 1e12:.2f} TOPS\n"
        "  median ms (up to 16 tokens: GB/s of packed bytes; then TOPS), times of a peer over ours, in brackets of the least"
    )
    for name, reason in skipped.items():
        print(f"  left out: {name}: {reason}")
    results = []
    for tokens in ARGUMENTS.tokens or [1, 16, 128, 512]:
        x = np.random.default_rng(tokens).standard_normal((tokens, columns), dtype=np.float32)
        calls = {}
        for name, contender in built.items():
            error = error_of(contender, matrix, x[: min(tokens, 16)])
            if error > TOLERANCE[suite]:
                print(f"  left out: {name}: relative error {error:.2g} with {tokens} tokens")
                continue
            calls[name] = in_turn(contender.calls(x))
        progress(f"tokens {tokens}: timing {len(calls)} contenders")
        times, load = measure(calls, seconds=ARGUMENTS.seconds, rounds=ARGUMENTS.rounds)
        progress("")
        ours = times["fastffn"]
        print(f"  {tokens} tokens" + ("  *" if load > QUIET_CORES else ""))
        for name, time in times.items():
            seconds, size = time.median(), built[name].bytes
            operations = 2 * tokens * rows_out * columns
            if tokens <= 16:
                rate = f"{size / seconds / 1e9:6.1f} GB/s, {100 * size / seconds / found[level]:3.0f}%"
            else:
                rate = f"{operations / seconds / 1e12:6.3f} TOPS, {100 * operations / seconds / found['int8']:3.0f}%"
            ratio = "" if name == "fastffn" else f"{time.ratio_to(ours):7.2f}x ({time.minimum() / ours.minimum():.2f}x)"
            print(f"    {name:18}{1e3 * seconds:10.4f}  {rate}{ratio:>20}", flush=True)
            results.append(
                {
                    "suite": suite, "shape": shape, "threads": ARGUMENTS.threads, "cold": ARGUMENTS.cold,
                    "tokens": tokens, "contender": name, "median_s": seconds, "min_s": time.minimum(), "bytes": size,
                    "operations": operations, "time_over_fastffn": time.ratio_to(ours),
                    "least_over_fastffn": time.minimum() / ours.minimum(), "bandwidth": found[level],
                    "int8_peak": found["int8"], "other_cores": load, "left_out": skipped,
                }
            )  # fmt: skip
    return results


def main() -> int:
    torch.set_num_threads(ARGUMENTS.threads)
    ff.set_num_threads(ARGUMENTS.threads)
    torch.set_grad_enabled(False)
    ggml.use(ARGUMENTS.ggml)
    if ARGUMENTS.probe:
        return run_probe(ARGUMENTS.probe)
    print(f"fastffn {ff.__version__}, torch {torch.__version__}; contenders take turns in one process")
    results: list[dict] = []
    if ARGUMENTS.suite == "hadamard":
        results = hadamard(ARGUMENTS)
    else:
        for shape in ARGUMENTS.shape or ["4096x4096", "2560x6912", "4096x11008"]:
            results += products(ARGUMENTS.suite, shape)
    if any(row.get("other_cores", 0) > QUIET_CORES for row in results):
        print("*: other programs kept this machine busy; do not trust these times")
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump({"fastffn": ff.__version__, "torch": torch.__version__, "rows": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
