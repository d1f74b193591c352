"""Low-rank feed-forward layers: fastffn beside torch eager with the same factors, and beside our own dense layer.

    python bench/peers/lowrank.py --quick        768x3072, fewer ranks and tokens: minutes
    python bench/peers/lowrank.py                every shape, rank and number of tokens, memory, factorising: long

Contenders take turns in one process, on the same bf16 factors; the ratio is the median over rounds of the pairs. Memory comes
from processes of their own (the rise of the resident set during a call). `dense` is fastffn with w = v · u as one bf16 weight.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

SHAPES = {"768x3072": (768, 3072, (96, 256, 384)), "4096x11008": (4096, 11008, (512, 1024))}
TOKENS = {"768x3072": (1, 4, 16, 128, 1024, 4096, 32768), "4096x11008": (1, 4, 16, 128, 1024, 4096)}


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="a list: " + ", ".join(SHAPES))
    parser.add_argument("--ranks", type=numbers, help="a list; the ones of the shape without")
    parser.add_argument("--tokens", type=numbers, help="a list; the ones of the shape without")
    parser.add_argument("--kinds", default="plain,gated,shared", help="a list: plain, gated, shared (one projection)")
    parser.add_argument("--threads", type=int, default=2, help="of every contender (2)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender and number of tokens (1.0)")
    parser.add_argument("--rounds", type=int, default=9, help="turns within that time (9)")
    parser.add_argument("--cold", action="store_true", help="one token: walk over 512 MiB of copies of the factors")
    parser.add_argument("--no-dense", action="store_true", help="leave our own dense layer out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    parser.add_argument("--no-factorize", action="store_true", help="leave the time of a whitened SVD out")
    parser.add_argument(
        "--quick", action="store_true", help="768x3072, ranks 96 and 384, plain and gated, fewer tokens"
    )
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")
    parser.add_argument("--one-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.kinds = "768x3072", "plain,gated"
        arguments.ranks, arguments.tokens = arguments.ranks or [96, 384], arguments.tokens or [1, 16, 128, 1024]
        arguments.seconds, arguments.no_factorize = min(arguments.seconds, 0.4), True
    return arguments


ARGUMENTS = parse_arguments()
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)  # before torch is imported: its OpenMP reads it once

import numpy as np  # noqa: E402
import torch  # noqa: E402
from memory import rise_during  # noqa: E402
from timing import QUIET_CORES, measure  # noqa: E402

import fastffn as ff  # noqa: E402


class LowRank:
    """Factors of one layer: (u, v) of up, down and gate, bf16."""

    def __init__(self, d_model: int, d_ff: int, rank: int, kind: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def factor(rows: int, cols: int) -> torch.Tensor:
            return (torch.randn(rows, cols, generator=generator) * cols**-0.5).bfloat16()

        self.kind = kind
        self.up = (factor(rank, d_model), factor(d_ff, rank))
        self.down = (factor(rank, d_ff), factor(d_model, rank))
        self.gate = None
        if kind == "gated":
            self.gate = (factor(rank, d_model), factor(d_ff, rank))
        elif kind == "shared":
            self.gate = (self.up[0], factor(d_ff, rank))
        self.activation = "gelu" if kind == "plain" else "silu"

    @property
    def factors(self) -> list[torch.Tensor]:
        """Every matrix that a call must read once."""
        gate = [] if self.gate is None else list(self.gate[1 if self.kind == "shared" else 0 :])
        return [*self.up, *self.down, *gate]

    def torch_eager(self):
        """As model code writes it: one matrix product after the other."""
        act = torch.nn.functional.gelu if self.activation == "gelu" else torch.nn.functional.silu
        (u1, v1), (u2, v2), gate = self.up, self.down, self.gate
        linear = torch.nn.functional.linear

        def call(x: torch.Tensor) -> torch.Tensor:
            p = linear(x, u1)
            if gate is None:
                hidden = act(linear(p, v1))
            else:
                q = p if gate[0] is u1 else linear(x, gate[0])
                hidden = act(linear(q, gate[1])) * linear(p, v1)
            return linear(linear(hidden, u2), v2)

        return call

    def fastffn(self):
        """One fused call on packed factors, into an output that is there."""
        up, down = ff.pack(self.up, "lowrank"), ff.pack(self.down, "lowrank")
        gate = None if self.gate is None else ff.pack(self.gate, "lowrank")
        return self._call(up, down, gate)

    def dense(self):
        """Our dense layer with the same products."""
        packed = [
            None if pair is None else ff.pack((pair[1].float() @ pair[0].float()).bfloat16(), "bf16")
            for pair in (self.up, self.down, self.gate)
        ]
        return self._call(*packed)

    def _call(self, up, down, gate):
        outputs: dict[int, torch.Tensor] = {}

        def call(x: torch.Tensor) -> torch.Tensor:
            out = outputs.get(x.shape[0])
            if out is None:
                out = outputs[x.shape[0]] = torch.empty_like(x)
            return ff.ffn(x, up, down, gate, activation=self.activation, out=out)

        return call


def turns(calls: list, x: torch.Tensor):
    """One call without arguments that walks over copies."""
    state = {"next": 0}

    def call() -> None:
        state["next"] = (state["next"] + 1) % len(calls)
        calls[state["next"]](x)

    return call


def run_shape(name: str, kind: str, rank: int) -> list[dict]:
    d_model, d_ff, _ = SHAPES[name]
    layer = LowRank(d_model, d_ff, rank, kind)
    weight_bytes = sum(factor.numel() * 2 for factor in layer.factors)
    copies = max(2, -(-(512 << 20) // weight_bytes)) if ARGUMENTS.cold else 1
    layers = [layer] + [LowRank(d_model, d_ff, rank, kind, seed) for seed in range(1, copies)]
    parameters = weight_bytes // 2
    dense_parameters = d_model * d_ff * (2 if kind == "plain" else 3)
    built = {"fastffn": [one.fastffn() for one in layers], "torch": [one.torch_eager() for one in layers]}
    if not ARGUMENTS.no_dense:
        built["dense"] = [layer.dense()]
    print(
        f"\n{name} rank {rank} {kind}, bf16, threads {ARGUMENTS.threads}, {'cold' if ARGUMENTS.cold else 'hot'}: "
        f"{parameters / dense_parameters:.2f} of the dense FLOP, {weight_bytes / 2**20:.1f} MiB; median ms"
    )
    print("  tokens     fastffn       torch       dense   torch/ours  dense/ours  GB/s or GFLOP/s   workspace MiB")
    rows = []
    for tokens in [1] if ARGUMENTS.cold else ARGUMENTS.tokens or TOKENS[name]:
        x = torch.randn(tokens, d_model, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        y, expected = built["fastffn"][0](x).float(), built["torch"][0](x).float()
        error = float((y - expected).norm() / expected.norm())
        if not error < 0.03:
            raise SystemExit(f"relative error {error:.2g} against torch: not the same operation")
        calls = {key: turns(value, x) for key, value in built.items()}
        times, load = measure(calls, seconds=ARGUMENTS.seconds, rounds=ARGUMENTS.rounds)
        ours = times["fastffn"]
        ratio = {key: times[key].ratio_to(ours) for key in times if key != "fastffn"}
        rate = (weight_bytes if tokens <= 4 else 2 * tokens * parameters) / ours.median() * 1e-9
        pairs = [ff.pack(pair, "lowrank") if pair else None for pair in (layer.up, layer.down, layer.gate)]
        workspace = ff.ffn_workspace(x, pairs[0], pairs[1], pairs[2])
        row = {
            "shape": name,
            "kind": kind,
            "rank": rank,
            "tokens": tokens,
            "threads": ARGUMENTS.threads,
            "cold": ARGUMENTS.cold,
            "weight_bytes": weight_bytes,
            "flop_share": parameters / dense_parameters,
            "median_s": {key: value.median() for key, value in times.items()},
            "ratio": ratio,
            "rate": rate,
            "workspace_bytes": workspace,
            "relative_error": error,
            "other_cores": load,
        }
        rows.append(row)
        cells = "".join(
            f"{times[key].median() * 1e3:12.4g}" if key in times else " " * 11 + "–"
            for key in ("fastffn", "torch", "dense")
        )
        dense_cell = f"{ratio['dense']:11.2f}x" if "dense" in ratio else " " * 11 + "–"
        print(
            f"  {tokens:6d}{cells}{ratio['torch']:12.2f}x{dense_cell}{rate:16.4g}{workspace / 2**20:16.2f}"
            + ("  *" if load > QUIET_CORES else ""),
            flush=True,
        )
    return rows


def measure_memory(which: str) -> dict:
    """Extra memory of the first call at T=32768 and of the query, in this process."""
    contender, kind, rank, tokens = which.split(":")
    torch.set_num_threads(ARGUMENTS.threads)
    torch.set_grad_enabled(False)
    ff.set_num_threads(ARGUMENTS.threads)
    layer = LowRank(768, 3072, int(rank), kind)
    x = torch.randn(int(tokens), 768).bfloat16()
    if contender == "torch":
        call = layer.torch_eager()
        call(x[:64])
        rise = rise_during(lambda: call(x)) - x.numel() * 2  # its output
        return {"bytes": rise}
    up, down = ff.pack(layer.up, "lowrank"), ff.pack(layer.down, "lowrank")
    gate = None if layer.gate is None else ff.pack(layer.gate, "lowrank")
    out = torch.zeros_like(x)
    ff.ffn(x[:1], up, down, gate, activation=layer.activation, out=out[:1])
    rise = rise_during(lambda: ff.ffn(x, up, down, gate, activation=layer.activation, out=out))
    return {"bytes": rise, "workspace": ff.ffn_workspace(x, up, down, gate)}


def run_memory() -> list[dict]:
    print(f"\nmemory of one call beyond weights, x and y: 768x3072, T=32768, bf16, threads {ARGUMENTS.threads}; MiB")
    print("  rank  kind      fastffn   workspace query       torch")
    rows = []
    for kind in ("plain", "gated"):
        for rank in (96, 384):
            found = {}
            for contender in ("fastffn", "torch"):
                command = [sys.executable, os.path.abspath(__file__), "--threads", str(ARGUMENTS.threads)]
                command += ["--one-memory", f"{contender}:{kind}:{rank}:32768"]
                process = subprocess.run(command, capture_output=True, text=True, check=True)
                found[contender] = json.loads(process.stdout.strip().splitlines()[-1])
            rows.append({"kind": kind, "rank": rank, **found})
            ours, theirs = found["fastffn"], found["torch"]
            print(
                f"  {rank:4d}  {kind:6s}{ours['bytes'] / 2**20:11.2f}{ours['workspace'] / 2**20:18.2f}"
                f"{theirs['bytes'] / 2**20:12.1f}",
                flush=True,
            )
    return rows


def run_factorize() -> dict:
    """Whitened SVD of a 4096 x 11008 weight with a covariance over its 4096 inputs."""
    import time

    rng = np.random.default_rng(0)
    w = rng.standard_normal((11008, 4096), dtype=np.float32) / 64
    x = rng.standard_normal((8192, 4096), dtype=np.float32)
    found = {}
    print("\nfactorize, whitened, (11008, 4096), rank 1024; seconds")
    start = time.perf_counter()
    covariance = ff.Covariance(4096).add(x)
    found["covariance of 8192 rows"] = time.perf_counter() - start
    for solver in ("exact", "randomized"):
        start = time.perf_counter()
        ff.factorize(w, rank=1024, method="whitened", calibration=covariance, solver=solver)
        found[solver] = time.perf_counter() - start
    for key, seconds in found.items():
        print(f"  {key:24s}{seconds:8.1f}")
    return found


def main() -> int:
    if ARGUMENTS.one_memory:
        print(json.dumps(measure_memory(ARGUMENTS.one_memory)))
        return 0
    torch.set_num_threads(ARGUMENTS.threads)
    torch.set_grad_enabled(False)
    ff.set_num_threads(ARGUMENTS.threads)
    print(f"fastffn {ff.__version__} ({ff.active_kernel('lowrank')}), torch {torch.__version__}; turns in one process")
    rows = []
    for name in ARGUMENTS.shapes.split(","):
        for kind in ARGUMENTS.kinds.split(","):
            for rank in ARGUMENTS.ranks or SHAPES[name][2]:
                rows += run_shape(name, kind, rank)
    if any(row["other_cores"] > QUIET_CORES for row in rows):
        print("*: other programs kept this machine busy; do not trust these times")
    memory = None if ARGUMENTS.no_memory else run_memory()
    factorize = None if ARGUMENTS.no_factorize else run_factorize()
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump({"rows": rows, "memory": memory, "factorize": factorize}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
