"""The smaller comparisons of moe.py: skewed routes, picks without a product, the router's share, extra memory."""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable

import torch
from moe_contenders import PEERS, fastffn
from moe_layer import MoeLayer, Route, shape_of, uniform, uniform_like, zipf
from timing import QUIET_CORES, Times, measure

import fastffn as ff
from fastffn import _core


def _time(arguments: argparse.Namespace, calls: dict[str, Callable[[], object]]) -> tuple[dict[str, Times], float]:
    return measure(calls, seconds=arguments.seconds, rounds=arguments.rounds)


def _star(load: float) -> str:
    return "  *" if load > QUIET_CORES else ""


def _milliseconds(times: Times) -> str:
    return f"{times.median() * 1e3:.4g}"


def _in_turn(
    call: Callable[[torch.Tensor, Route], object], x: torch.Tensor, routes: list[Route]
) -> Callable[[], object]:
    state = {"next": 0}

    def run() -> object:
        state["next"] += 1
        return call(x, routes[state["next"] % len(routes)])

    return run


def skew(arguments: argparse.Namespace) -> list[dict]:
    """Zipf routes, and uniform ones over the same experts: the same bytes of weights, the same number of products."""
    rows = []
    for name in arguments.shape or ["olmoe", "mixtral"]:
        layer = MoeLayer.random(*shape_of(name))
        for dtype in arguments.dtype:
            call = fastffn(layer, dtype)
            print(
                f"\nskewed routes, {name}, {dtype}, threads {arguments.threads}: median ms, and Zipf over uniform (least)"
            )
            for tokens in arguments.tokens or [16, 128, 1024, 2048]:
                x = torch.randn(tokens, layer.d_model).bfloat16()
                zipfs = [zipf(tokens, layer, index) for index in range(arguments.routes)]
                even = [uniform_like(route, layer, index) for index, route in enumerate(zipfs)]
                times, load = _time(arguments, {"zipf": _in_turn(call, x, zipfs), "uniform": _in_turn(call, x, even)})
                ratio = times["zipf"].ratio_to(times["uniform"])
                least = times["zipf"].minimum() / times["uniform"].minimum()
                active = sum(route.active for route in zipfs) / len(zipfs)
                busiest = sum(int(torch.bincount(r.ids.flatten()).max()) for r in zipfs) / len(zipfs)
                print(
                    f"  {tokens:6d} tokens: uniform {_milliseconds(times['uniform'])}, Zipf {_milliseconds(times['zipf'])},"
                    f" {ratio:.3f}x ({least:.3f}x); {active:.1f} experts used, the busiest by {busiest:.0f} tokens"
                    + _star(load),
                    flush=True,
                )
                rows.append({"shape": name, "dtype": dtype, "tokens": tokens, "ratio": ratio, "least": least,
                             "other_cores": load})  # fmt: skip
    return rows


def _moe(stacks: tuple, extra: ff.SpecialExperts, out: torch.Tensor, x: torch.Tensor, route: Route) -> object:
    return ff.moe(x, route.ids, route.weights, *stacks, activation="silu", special=extra, out=out)


def special(arguments: argparse.Namespace) -> list[dict]:
    """MoE++: every pick an expert, and a quarter of the picks zero, copy or constant experts instead."""
    rows = []
    for name in arguments.shape or ["olmoe"]:
        layer = MoeLayer.random(*shape_of(name))
        experts = layer.experts
        extra = ff.SpecialExperts(
            ("zero", "copy", "constant"),
            vectors=torch.randn(1, layer.d_model),
            mix=torch.randn(1, 2, layer.d_model) / layer.d_model**0.5,
        )
        for dtype in arguments.dtype:
            up, down, gate = (ff.pack(stack, dtype) for stack in (layer.up, layer.down, layer.gate))
            print(f"\nMoE++, {name}, {dtype}, threads {arguments.threads}: median ms, and without over with (least)")
            for tokens in arguments.tokens or [1024]:
                x = torch.randn(tokens, layer.d_model).bfloat16()
                out = torch.empty_like(x)
                plain = [uniform(tokens, layer, index) for index in range(arguments.routes)]
                mixed = []
                for index, route in enumerate(plain):
                    generator = torch.Generator().manual_seed(index)
                    ids = route.ids.clone()
                    chosen = torch.randperm(ids.numel(), generator=generator)[: ids.numel() // 4]
                    ids.view(-1)[chosen] = (experts + torch.randint(3, (chosen.numel(),), generator=generator)).int()
                    mixed.append(Route(ids, route.weights))

                run = functools.partial(_moe, (up, down, gate), extra, out)
                calls = {"without": _in_turn(run, x, plain), "with": _in_turn(run, x, mixed)}
                times, load = _time(arguments, calls)
                ratio = times["without"].ratio_to(times["with"])
                least = times["without"].minimum() / times["with"].minimum()
                print(
                    f"  {tokens:6d} tokens: without {_milliseconds(times['without'])}, with a quarter"
                    f" {_milliseconds(times['with'])}, {ratio:.3f}x ({least:.3f}x)" + _star(load),
                    flush=True,
                )
                rows.append({"shape": name, "dtype": dtype, "tokens": tokens, "ratio": ratio, "least": least,
                             "other_cores": load})  # fmt: skip
    return rows


def routing(arguments: argparse.Namespace) -> list[dict]:
    """Softmax and the best k of the logits, beside the layer; and one token's route without Python around it."""
    rows = []
    for name in arguments.shape or ["qwen3"]:
        layer = MoeLayer.random(*shape_of(name))
        for dtype in arguments.dtype:
            call = fastffn(layer, dtype)
            print(
                f"\nsoftmax and top {layer.picks} of {layer.experts}, {name}, {dtype}, threads {arguments.threads}:"
                " median µs, and share of the layer"
            )
            for tokens in arguments.tokens or [1, 16, 128, 1024, 2048]:
                x = torch.randn(tokens, layer.d_model).bfloat16()
                logits = torch.randn(tokens, layer.experts)
                out = (torch.empty(tokens, layer.picks, dtype=torch.int32), torch.empty(tokens, layer.picks))
                routes = [uniform(tokens, layer, index) for index in range(arguments.routes)]

                def route(logits=logits, out=out, picks=layer.picks) -> object:
                    return ff.route_topk(logits, picks, out=out)

                times, load = _time(arguments, {"route": route, "layer": _in_turn(call, x, routes)})
                share = times["route"].median() / times["layer"].median()
                inside = _core.seconds_per_route(2000 if tokens <= 16 else 50, logits, layer.picks, out=out)
                print(
                    f"  {tokens:6d} tokens: {times['route'].median() * 1e6:.2f} µs from Python,"
                    f" {inside * 1e6:.2f} µs without it, {100 * share:.2f}% of {_milliseconds(times['layer'])} ms"
                    + _star(load),
                    flush=True,
                )
                rows.append({"shape": name, "dtype": dtype, "tokens": tokens, "seconds": times["route"].median(),
                             "seconds_inside": inside, "share": share, "other_cores": load})  # fmt: skip
    return rows


def memory(arguments: argparse.Namespace) -> list[dict]:
    """Peak memory of a call beyond weights, x and y, every contender in a process of its own."""
    rows = []
    tokens = (arguments.tokens or [4096])[0]
    for name in arguments.shape or ["olmoe"]:
        for dtype in arguments.dtype:
            print(f"\n{name}, {dtype}, {tokens} tokens, threads {arguments.threads}: MiB beyond weights, x and y")
            for contender in ("fastffn", *(peer for peer, (_, dtypes, _) in PEERS.items() if dtype in dtypes)):
                command = [sys.executable, os.path.join(os.path.dirname(__file__), "moe.py"), "--one", contender]
                command += ["--shape", name, "--dtype", dtype, "--tokens", str(tokens)]
                command += ["--threads", "1" if contender == "kt-kernel" else str(arguments.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
                if done.returncode < 0:
                    result = {"left_out": f"the process dies with signal {-done.returncode} on this CPU"}
                elif not lines:
                    result = {"left_out": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
                else:
                    result = json.loads(lines[-1])
                rows.append({"contender": contender, "shape": name, "dtype": dtype, "tokens": tokens, **result})
                if "left_out" in result:
                    print(f"  {contender.ljust(14)} left out: {result['left_out'][:120]}")
                    continue
                own = result.get("workspace_bytes")
                text = f"first call {result['first_call_bytes'] / 2**20:.1f}, later calls {result['later_call_bytes'] / 2**20:.1f}"
                text += f", workspace {own / 2**20:.1f}" if own is not None else ""
                print(f"  {contender.ljust(14)} {text}", flush=True)
    return rows


def memory_of(arguments: argparse.Namespace) -> int:
    """One contender's part of `memory`, in a process of its own; prints JSON."""
    from memory import rise_during

    tokens, dtype = arguments.tokens[0], arguments.dtype[0]
    layer = MoeLayer.random(*shape_of(arguments.shape[0]))
    x = torch.randn(tokens, layer.d_model).bfloat16()
    route = uniform(tokens, layer, 0)
    result: dict[str, object] = {}
    try:
        if arguments.one == "fastffn":
            up, down, gate = (ff.pack(stack, dtype) for stack in (layer.up, layer.down, layer.gate))
            result["workspace_bytes"] = ff.moe_workspace(x, route.ids, up, down, gate)
            out = torch.zeros_like(x)
            own_output = 0

            def call(x: torch.Tensor, route: Route) -> object:
                return ff.moe(x, route.ids, route.weights, up, down, gate, activation="silu", out=out)

        else:
            call = PEERS[arguments.one][2](layer, dtype)
            own_output = x.numel() * 2  # they make y in the first call
        gc.collect()
        rises = [rise_during(lambda: call(x, route)) for _ in range(4)]
    except Exception as problem:
        print(json.dumps({"left_out": f"{problem}".splitlines()[0]}))
        return 0
    result["first_call_bytes"] = max(0, rises[0] - own_output)
    # The torch loop makes its output anew in every call.
    result["later_call_bytes"] = max(0, sorted(rises[1:])[1] - (own_output if arguments.one == "torch-loop" else 0))
    print(json.dumps(result))
    return 0
