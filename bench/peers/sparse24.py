"""2:4 sparse weights beside dense ones, interleaved in one process: ours in bf16 and int8, and torch in bf16.

    python bench/peers/sparse24.py                        # everything: two layers, hot and cold, 1 and 2 threads
    python bench/peers/sparse24.py --shape 2048x8192 --tokens 1,4 --threads 2 --cold --search

README.md says what the numbers are. Each number of threads is a process of its own, as OpenMP reads it once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

CONTENDERS = {
    # name: (weights' format, options of pack, bytes of a weight)
    "2:4 bf16": ("sparse24", {"values": "bf16"}, 9 / 8),
    "dense bf16": ("bf16", {}, 2),
    "2:4 int8": ("sparse24", {"values": "int8"}, 5 / 8),
    "dense int8": ("int8", {}, 1),
    "torch bf16": (None, {}, 2),
}
# What the ratios of a row compare: how many times faster the first is than the second.
RATIOS = (("2:4 bf16", "dense bf16"), ("2:4 bf16", "torch bf16"), ("2:4 int8", "dense int8"))


def parse_arguments() -> argparse.Namespace:
    def shapes(text: str) -> list[tuple[int, int]]:
        return [(int(one.split("x")[0]), int(one.split("x")[1])) for one in text.split(",")]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", type=shapes, default=[(4096, 11008), (2048, 8192)], metavar="DxH,...", help="gated layers, silu"
    )
    parser.add_argument("--tokens", type=numbers, default=[1, 2, 4, 16, 128, 512], help="a list (1,2,4,16,128,512)")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="a list (1,2)")
    parser.add_argument("--hot", action="store_true", help="only weights that stay where they are")
    parser.add_argument("--cold", action="store_true", help="only weights from DRAM: turns on copies of --cold-bytes")
    parser.add_argument("--cold-bytes", type=int, default=1 << 28, help="of the smallest contender's copies (256 MiB)")
    parser.add_argument("--search", action="store_true", help="only what --no-search leaves out")
    parser.add_argument("--no-search", action="store_true", help="without the times of pruning and of the mask search")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender and number of tokens (1.0)")
    parser.add_argument("--rounds", type=int, default=9, help="turns within that time (9)")
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")
    return parser.parse_args()


ARGUMENTS = parse_arguments()


def one_process_per_number_of_threads() -> int:
    """Runs this script again for every number of threads, and gathers what they write."""
    rows: list[dict] = []
    for threads in ARGUMENTS.threads:
        part = f"{ARGUMENTS.json}.{threads}" if ARGUMENTS.json else None
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--threads", str(threads)]
        if part:
            command += ["--json", part]
        status = subprocess.run(command, check=False).returncode
        if status:
            return status
        if part:
            with open(part) as file:
                rows += json.load(file)["rows"]
            os.remove(part)
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump({"rows": rows}, file, indent=1)
    return 0


if len(ARGUMENTS.threads) > 1:
    sys.exit(one_process_per_number_of_threads())
THREADS = ARGUMENTS.threads[0]
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy and torch are imported
    os.environ[variable] = str(THREADS)

import time  # noqa: E402

import numpy as np  # noqa: E402
from timing import QUIET_CORES, measure  # noqa: E402

import fastffn as ff  # noqa: E402
from fastffn import _core  # noqa: E402

TORCH = None
if not ARGUMENTS.no_torch:
    try:
        import torch as TORCH
    except ImportError:
        print("torch is not installed; left out")


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\033[K" + text[:100], end="", file=sys.stderr, flush=True)


class Layer:
    """Random weights that are 2:4 sparse, so that dense and sparse contenders compute the same."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        rng = np.random.default_rng(0)
        self.d_model, self.d_ff = d_model, d_ff
        progress(f"{d_model}x{d_ff}: making and pruning weights")
        shapes = {"gate": (d_ff, d_model), "up": (d_ff, d_model), "down": (d_model, d_ff)}
        self.weights = {
            name: ff.prune24(rng.standard_normal(shape, dtype=np.float32) * np.float32((shape[1] / 2) ** -0.5))
            for name, shape in shapes.items()
        }
        self.parameters = 3 * d_model * d_ff

    def reference(self, x: np.ndarray) -> np.ndarray:
        gate = x @ self.weights["gate"].T
        return (gate / (1 + np.exp(-gate)) * (x @ self.weights["up"].T)) @ self.weights["down"].T


def bf16_input(x: np.ndarray):
    """x in bf16, as a model holds it: torch's where there is torch, else f32."""
    return TORCH.from_numpy(x).bfloat16() if TORCH is not None else x


def ours(layer: Layer, name: str, copies: int) -> list:
    fmt, options, _ = CONTENDERS[name]
    first = {key: ff.pack(w, fmt, **options) for key, w in layer.weights.items()}
    packed = [first] + [{key: w.copy() for key, w in first.items()} for _ in range(copies - 1)]
    outputs: dict[int, object] = {}

    def call_with(weights: dict):
        gate, up, down = weights["gate"], weights["up"], weights["down"]

        def call(x):
            out = outputs.get(x.shape[0])
            if out is None:
                out = outputs[x.shape[0]] = TORCH.empty_like(x) if TORCH is not None else np.empty_like(x)
            ff.ffn(x, up, down, gate, activation="silu", out=out)
            return out

        return call

    return [call_with(weights) for weights in packed]


def torch_dense(layer: Layer, copies: int) -> list:
    linear, silu = TORCH.nn.functional.linear, TORCH.nn.functional.silu

    def call_with(gate, up, down):
        return lambda x: linear(silu(linear(x, gate)) * linear(x, up), down)

    made = [TORCH.from_numpy(layer.weights[name]).bfloat16() for name in ("gate", "up", "down")]
    return [call_with(*made)] + [call_with(*(w.clone() for w in made)) for _ in range(copies - 1)]


def turns(calls: list, x):
    """A call without arguments that walks over the copies."""
    state = {"next": 0}

    def call() -> None:
        index = state["next"]
        state["next"] = (index + 1) % len(calls)
        calls[index](x)

    return call


def as_numpy(y) -> np.ndarray:
    return y.float().numpy() if TORCH is not None and isinstance(y, TORCH.Tensor) else np.asarray(y, np.float32)


def run_layer(layer: Layer, cold: bool) -> list[dict]:
    # Equally many copies for all: ours are smaller, and fewer bytes in all would favour them.
    least = min(size for name, (_, _, size) in CONTENDERS.items()) * layer.parameters
    copies = max(2, -(-ARGUMENTS.cold_bytes // int(least))) if cold else 1
    names = [name for name, (fmt, _, _) in CONTENDERS.items() if fmt or TORCH is not None]
    calls = {}
    for name in names:
        progress(f"{layer.d_model}x{layer.d_ff}: {name}, {copies} copies")
        calls[name] = ours(layer, name, copies) if CONTENDERS[name][0] else torch_dense(layer, copies)
    progress("")
    print(
        f"\ngated ffn {layer.d_model}x{layer.d_ff}, silu, threads {THREADS}, {'cold' if cold else 'hot'} weights; x bf16;"
        f" fastffn runs {ff.active_kernel('sparse24')}; median ms (GB/s of the weights' bytes up to 16 tokens)"
    )
    width = 16
    heads = [f"{a} / {b.replace('2:4 ', '')}" for a, b in RATIOS if a in names and b in names]
    print("  tokens" + "".join(name.rjust(width) for name in names) + "".join(head.rjust(24) for head in heads))
    rows = []
    for tokens in ARGUMENTS.tokens:
        x_f32 = np.random.default_rng(tokens).standard_normal((tokens, layer.d_model), dtype=np.float32)
        x = bf16_input(x_f32)
        some = [*range(min(tokens, 4))]
        expected = layer.reference(x_f32[some])
        for name in names:
            error = np.linalg.norm(as_numpy(calls[name][0](x))[some] - expected) / np.linalg.norm(expected)
            if not error < (0.05 if "int8" in name else 0.02):
                raise SystemExit(f"{name}, {tokens} tokens: relative error {error:.2g}, so not the same operation")
        progress(f"tokens {tokens}: timing {len(names)} contenders")
        times, load = measure(
            {name: turns(calls[name], x) for name in names}, seconds=ARGUMENTS.seconds, rounds=ARGUMENTS.rounds
        )
        progress("")
        line = f"  {tokens:6d}"
        for name in names:
            seconds = times[name].median()
            rate = f" ({CONTENDERS[name][2] * layer.parameters / seconds * 1e-9:.1f})" if tokens <= 16 else ""
            line += f"{1e3 * seconds:.4g}{rate}".rjust(width)
        ratios = {}
        for a, b in RATIOS:
            if a in names and b in names:
                ratios[f"{b} / {a}"] = times[b].ratio_to(times[a])
                least_ratio = times[b].minimum() / times[a].minimum()
                line += f"{ratios[f'{b} / {a}']:.2f}x ({least_ratio:.2f}x)".rjust(24)
        print(line + ("  *" if load > QUIET_CORES else ""), flush=True)
        rows.append(
            {
                "d_model": layer.d_model,
                "d_ff": layer.d_ff,
                "threads": THREADS,
                "weights": "cold" if cold else "hot",
                "tokens": tokens,
                "other_cores": load,
                "median_s": {name: times[name].median() for name in names},
                "min_s": {name: times[name].minimum() for name in names},
                "ratios": ratios,
            }
        )
    return rows


def run_search() -> list[dict]:
    """Seconds of pruning one matrix: the exact transposable search, and magnitude beside it."""
    rows = []
    print(f"\npruning one f32 matrix, threads {THREADS}; shortest of 5, seconds")
    for d_model, d_ff in ARGUMENTS.shape:
        w = np.random.default_rng(0).standard_normal((d_model, d_ff), dtype=np.float32)
        pruned = ff.prune24(w)
        line, row = f"  {d_model}x{d_ff}", {"d_model": d_model, "d_ff": d_ff, "threads": THREADS}
        for name, call in (
            ("transposable mask", lambda w=w: _core.mask24(w, True)),
            ("prune24 transposable", lambda w=w: ff.prune24(w, "transposable")),
            ("prune24 magnitude", lambda w=w: ff.prune24(w)),
            ("check24 of a pruned one", lambda w=pruned: ff.check24(w)),
        ):
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            line += f"   {name} {min(times):.3f}"
            row[name] = min(times)
        print(line, flush=True)
        rows.append(row)
    return rows


def main() -> int:
    ff.set_num_threads(THREADS)
    if TORCH is not None:
        TORCH.set_num_threads(THREADS)
        TORCH.set_grad_enabled(False)
    rows: list[dict] = []
    if not ARGUMENTS.no_search:
        rows += run_search()
    if not ARGUMENTS.search:
        for shape in ARGUMENTS.shape:
            layer = Layer(*shape)
            for cold in (False, True):
                if (cold and not ARGUMENTS.hot) or (not cold and not ARGUMENTS.cold):
                    rows += run_layer(layer, cold)
    if any(row.get("other_cores", 0) > QUIET_CORES for row in rows):
        print("*: other programs kept this machine busy; do not trust these times")
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump({"fastffn": ff.__version__, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
