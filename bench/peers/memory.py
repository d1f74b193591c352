"""How much memory one call of a large gated layer takes beyond its weights, input and output.

    python bench/peers/memory.py            4096x11008, silu-gated, bf16, 1024 tokens

Each contender runs in a process of its own. Linux keeps the highest resident set of a process and can reset it, so
the number is the rise of that mark during a call over the resident set before it: real pages, whoever allocated them.
(Memory that malloc keeps after a free is given back before each call, so that every call shows what it needs.)
The output is allocated and touched beforehand for fastffn (``out=``); torch allocates its own, which is taken off.
The first call also counts what libraries set up once (thread stacks, compiled kernels); later calls show the steady
state. fastffn keeps its workspace for later calls, so there the first call is the one to look at; ``ffn_workspace`` is
its exact size.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys

CONTENDERS = ("fastffn", "torch", "torch-compile", "vllm-onednn")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4096x11008", metavar="DxH")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="a list (all): " + ", ".join(CONTENDERS))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def rise_during(call) -> int:
    """Highest resident set during the call, over the resident set before it."""
    # What earlier calls freed but malloc kept would hide the rise: give it back to the system first.
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the mark to the present resident set
    before = status_bytes("VmRSS")
    call()
    return max(0, status_bytes("VmHWM") - before)


def measure_one(arguments: argparse.Namespace) -> dict:
    import gc

    import contenders
    import torch
    import vllm_ops
    from layer import Layer

    import fastffn as ff

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    ff.set_num_threads(arguments.threads)
    d_model, d_ff = map(int, arguments.shape.split("x"))
    layer = Layer.random(d_model, d_ff, arguments.activation, gated=True)
    result = {}
    if arguments.one == "fastffn":
        up, down, gate = (ff.pack(weight, "bf16") for weight in (layer.up, layer.down, layer.gate))
        out = torch.zeros(arguments.tokens, d_model, dtype=torch.bfloat16)
        own_output = 0

        def call(x: torch.Tensor) -> torch.Tensor:
            return ff.ffn(x, up, down, gate, activation=arguments.activation, out=out)

    else:
        build = {
            "torch": contenders.torch_eager,
            "torch-compile": contenders.torch_compile,
            "vllm-onednn": vllm_ops.onednn,
        }
        call = build[arguments.one](layer, "bf16")
        own_output = arguments.tokens * d_model * 2
    del layer
    gc.collect()
    x = torch.randn(arguments.tokens, d_model).bfloat16()
    if arguments.one == "fastffn":
        result["workspace_bytes"] = ff.ffn_workspace(x, up, down, gate)
    if arguments.one == "torch-compile":
        call(x)  # the first call compiles
    rises = []
    for _ in range(4):
        kept = []
        rises.append(rise_during(lambda kept=kept: kept.append(call(x))) - own_output)
        kept.clear()
    result["first_call_bytes"], result["later_call_bytes"] = rises[0], sorted(rises[1:])[1]
    return result


def mebibytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.2f}"


def main() -> int:
    arguments = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.one:
        try:
            print(json.dumps(measure_one(arguments)))
        except Exception as problem:
            print(json.dumps({"left_out": f"{problem}".splitlines()[0]}))
        return 0

    results = {}
    print(
        f"gated {arguments.activation} {arguments.shape} bf16, {arguments.tokens} tokens, threads {arguments.threads}"
    )
    print("MiB beyond weights, input and output")
    print("contender".ljust(18) + "first call".rjust(12) + "later calls".rjust(13) + "workspace".rjust(12))
    for name in arguments.contenders.split(","):
        command = [sys.executable, os.path.abspath(__file__), "--one", name, "--shape", arguments.shape]
        command += [
            "--tokens",
            str(arguments.tokens),
            "--threads",
            str(arguments.threads),
            "--activation",
            arguments.activation,
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = process.stdout.strip().splitlines()
        if process.returncode or not lines:
            result = {"left_out": (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]}
        else:
            result = json.loads(lines[-1])
        results[name] = result
        if "left_out" in result:
            print(name.ljust(18) + "left out: " + result["left_out"])
            continue
        print(
            name.ljust(18)
            + mebibytes(result["first_call_bytes"]).rjust(12)
            + mebibytes(result["later_call_bytes"]).rjust(13)
            + mebibytes(result.get("workspace_bytes")).rjust(12),
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
