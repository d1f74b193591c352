"""Fast feedforward trees: fastffn beside torch, dense and tree, and the fastfeedforward package; in turns in one process.

    python bench/peers/fff.py nodes            # all-node 1x11, 768, f32, 16384 tokens: dense 3072 in f32 and bf16
    python bench/peers/fff.py decode           # one fresh token per call, width 4095, from Python with out=
    python bench/peers/fff.py sweep            # widths 2^7 to 2^16 at 1 and 1024 tokens; --plot sweep.svg
    python bench/peers/fff.py leaf             # leaf form, depth 7, leaves of 32, 1024 tokens
    python bench/peers/fff.py threads          # two threads against one, 4096 and 16384 tokens
    python bench/peers/fff.py all

README.md says what the baselines are. One thread unless said.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("nodes", "decode", "sweep", "leaf", "threads", "all"))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contender (2.0)")
    parser.add_argument("--rounds", type=int, default=9, help="turns within that time (9)")
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--widths", default="7:16", help="of the sweep: powers of two, FIRST:LAST (7:16)")
    parser.add_argument("--plot", metavar="FILE", help="where the sweep's drawing goes (.svg)")
    parser.add_argument("--json", metavar="FILE", help="everything, for programs")
    return parser.parse_args()


ARGUMENTS = parse_arguments()
# Before torch is imported: its OpenMP reads it once.
os.environ["OMP_NUM_THREADS"] = "2" if ARGUMENTS.table in ("threads", "all") else "1"

import fff_contenders as contenders  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from timing import QUIET_CORES, Times, measure  # noqa: E402

import fastffn as ff  # noqa: E402

ROWS: list[dict] = []


def walk(call, rows):
    """A call without arguments that takes the next row every time: fresh inputs, so the ways differ."""
    take = itertools.cycle(list(rows)).__next__
    return lambda: call(take())


def walk_fff(packed, rows, out):
    """The same of fastffn's tree, as a decode loop would write it."""
    take, fff = itertools.cycle(list(rows)).__next__, ff.fff
    return lambda: fff(take(), packed, activation="gelu", out=out)


def on(call, x):
    return lambda: call(x)


def agree(calls: dict, x: torch.Tensor, tree_tie_free: torch.Tensor | None = None, tolerance: float = 1e-4) -> None:
    """All give the first one's values; rows with a decision within rounding of a tie are left out."""
    keep = slice(None) if tree_tie_free is None else tree_tie_free
    expected = None
    for name, call in calls.items():
        y = torch.as_tensor(call(x))[keep].float()
        if expected is None:
            expected = y.clone()
        error = ((y - expected).norm() / expected.norm()).item()
        if not error < tolerance:
            raise SystemExit(f"{name}: relative error {error:.2g}, so not the same layer")


def sure_rows(tree: bytes, x: torch.Tensor) -> torch.Tensor:
    return (ff.fff_route(x, tree).margin > 1e-4).all(dim=-1)


def table(title: str, times: dict[str, Times], load: float, tokens: int, targets: dict[str, float]) -> None:
    """One line per contender: time per call, per token, and over fastffn's; what is asked for where it is."""
    ours = times["fastffn"]
    print(f"\n{title}" + ("   * other programs kept this machine busy" if load > QUIET_CORES else ""))
    print(f"  {'':28}{'µs/call':>12}{'µs/token':>11}{'/ fastffn':>11}{'of least':>10}  asked for")
    for name, time in times.items():
        ratio = 1.0 if time is ours else time.ratio_to(ours)
        asked = f">= {targets[name]:g}x  {'reached' if ratio >= targets[name] else 'MISSED'}" if name in targets else ""
        print(
            f"  {name:28}{time.median() * 1e6:12.2f}{time.median() * 1e6 / tokens:11.3f}{ratio:10.2f}x"
            f"{time.minimum() / ours.minimum():9.2f}x  {asked}",
            flush=True,
        )
        ROWS.append(
            {"table": title, "contender": name, "tokens": tokens, "median_s": time.median(), "min_s": time.minimum(),
             "time_over_fastffn": ratio, "asked": targets.get(name), "other_cores": load}
        )  # fmt: skip


def timed(calls: dict, **options) -> tuple[dict[str, Times], float]:
    return measure(calls, **{"seconds": ARGUMENTS.seconds, "rounds": ARGUMENTS.rounds, **options})


def run_nodes() -> None:
    d_model, tokens = ARGUMENTS.d_model, 16384
    tree, x = contenders.Tree.random(d_model, 11), torch.randn(tokens, d_model)
    calls = {"fastffn": contenders.fastffn_nodes(tree), "torch gather FFF f32": contenders.torch_gather(tree)}
    some = x[:256]
    agree(calls, some, sure_rows(ff.pack_tree(tree.w_in, None, tree.w_out), some))
    half = x.bfloat16()
    dense = contenders.torch_dense(d_model, 3072), contenders.torch_dense(d_model, 3072, torch.bfloat16)
    steps = {name: on(call, x) for name, call in calls.items()}
    steps |= {"torch dense 3072 f32": on(dense[0], x), "torch dense 3072 bf16": on(dense[1], half)}
    steps["fastffn bf16 weights, bf16 x"] = on(contenders.fastffn_nodes(tree, "bf16"), half)
    times, load = timed(steps)
    asked = {"torch dense 3072 f32": 40, "torch dense 3072 bf16": 10}
    table(f"all-node 1x11, {d_model} f32, {tokens} tokens, 1 thread", times, load, tokens, asked)
    print("  asked for as well: <= 1.4 µs/token for fastffn; stretch: 78x dense f32")


def run_decode() -> None:
    d_model = ARGUMENTS.d_model
    tree, x = contenders.Tree.random(d_model, 11), torch.randn(4096, d_model)
    ours, packed = contenders.fastffn_nodes(tree), ff.pack_tree(tree.w_in, None, tree.w_out)
    calls = {"fastffn": ours, "gather": contenders.torch_gather(tree)}
    sure = sure_rows(packed, x[:64])
    agree(calls, x[:64], sure)
    for row in x[:64][sure]:
        agree({"fastffn": ours, "torch walk": contenders.torch_walk(tree)}, row[None])
    rows, arrays = [row[None] for row in x], [row[None] for row in x.numpy()]
    times, load = timed(
        {
            "fastffn": walk_fff(packed, rows, torch.empty(1, d_model)),
            "fastffn, NumPy": walk_fff(packed.numpy(), arrays, np.empty((1, d_model), np.float32)),
            "torch dense 4096 f32": walk(contenders.torch_dense(d_model, 4096), rows),
            "torch gather FFF f32": walk(contenders.torch_gather(tree), rows),
            "torch walk FFF f32": walk(contenders.torch_walk(tree), rows),
        }
    )
    asked = {"torch dense 4096 f32": 150, "torch gather FFF f32": 50}
    table(
        f"one fresh token per call, width 4095, {d_model} f32, from Python with out=, 1 thread", times, load, 1, asked
    )


def run_leaf() -> None:
    d_model, depth, width, tokens = ARGUMENTS.d_model, 7, 32, 1024
    leaves, x = contenders.Leaves.random(d_model, depth, width), torch.randn(tokens, d_model)
    calls = {"fastffn": contenders.fastffn_leaves(leaves), "torch sorted FFF f32": contenders.torch_leaves(leaves)}
    try:
        calls["fastfeedforward eval"] = contenders.fastfeedforward_eval(leaves)
    except ImportError:
        print("left out: fastfeedforward is not installed (pip install --no-deps fastfeedforward==0.2.1)")
    agree(calls, x, sure_rows(ff.pack_tree(leaves.nodes), x))
    total = 2**depth * width
    calls[f"torch dense {total} f32"] = contenders.torch_dense(d_model, total)
    steps = {name: on(call, x) for name, call in calls.items()}
    steps["fastffn bf16 leaves, f32 x"] = on(contenders.fastffn_leaves(leaves, "bf16"), x)
    times, load = timed(steps)
    asked = {"fastfeedforward eval": 20, f"torch dense {total} f32": 4}
    table(f"leaf form d={depth} l={width}, {d_model} f32, {tokens} tokens, 1 thread", times, load, tokens, asked)


def run_threads() -> None:
    d_model = ARGUMENTS.d_model
    tree = contenders.Tree.random(d_model, 11)
    leaves = contenders.Leaves.random(d_model, 7, 32)
    for name, make in (("all-node 1x11", lambda: contenders.fastffn_nodes(tree)),
                       ("leaf form d=7 l=32", lambda: contenders.fastffn_leaves(leaves))):  # fmt: skip
        for tokens in (4096, 16384):
            x, call = torch.randn(tokens, d_model), make()

            def with_threads(count: int, call=call, x=x):
                def step() -> None:
                    ff.set_num_threads(count)
                    call(x)

                return step

            times, load = timed({"fastffn": with_threads(2), "fastffn, one thread": with_threads(1)})
            title = f"{name}, {d_model} f32, {tokens} tokens: two threads (fastffn) and one"
            table(title, times, load, tokens, {"fastffn, one thread": 1.8})
    ff.set_num_threads(1)


def run_sweep() -> None:
    d_model = ARGUMENTS.d_model
    first, last = (int(word) for word in ARGUMENTS.widths.split(":"))
    lines: dict[str, list[tuple[float, float]]] = {}
    print(f"\nwidth sweep, all-node 1xD, {d_model} f32, 1 thread: µs/token (and dense / tree)")
    print(f"  {'width':>6}{'1 token':>12}{'dense':>12}{'':>9}{'1024 tokens':>14}{'dense':>12}")
    for power in range(first, last + 1):
        tree = contenders.Tree.random(d_model, power - 1)
        packed, dense = ff.pack_tree(tree.w_in, None, tree.w_out), contenders.torch_dense(d_model, 2**power)
        line, width = f"  {tree.width:6d}", float(tree.width)
        for tokens in (1, 1024):
            fresh = torch.randn(4096 if tokens == 1 else 1024, d_model).split(tokens)
            # A dense call of this width may take seconds: few of them then.
            slow = 4 * tokens * 2**power * d_model > 2e10
            times, load = timed(
                {"fastffn": walk_fff(packed, fresh, torch.empty(tokens, d_model)), "dense": walk(dense, fresh)},
                **({"seconds": 0.3, "rounds": 3} if slow else {"seconds": ARGUMENTS.seconds / 2}),
            )
            ratio = times["dense"].ratio_to(times["fastffn"])
            tree_us, dense_us = (times[name].median() * 1e6 / tokens for name in ("fastffn", "dense"))
            line += f"{tree_us:12.3f}{dense_us:12.2f} {ratio:7.1f}x " + ("*" if load > QUIET_CORES else " ")
            for name, value in (("tree", tree_us), ("dense", dense_us)):
                lines.setdefault(f"{name}, {tokens} token{'s' if tokens > 1 else ''}", []).append((width, value))
            ROWS.append(
                {"table": "sweep", "width": tree.width, "tokens": tokens, "tree_us_per_token": tree_us,
                 "dense_us_per_token": dense_us, "dense_over_tree": ratio, "other_cores": load}
            )  # fmt: skip
            if tokens == 1 and tree.width == 32767:
                asked = f"  width 32767, one token: dense takes {ratio:.0f}x, asked for >= 1000x"
        print(line, flush=True)
    if first <= 15 <= last:
        print(asked)
    for name, points in lines.items():
        if name.startswith("tree"):
            growth = points[-1][1] / points[0][1]
            levels = (last - first) / first
            print(f"  {name}: {growth:.2f} times the time for {2 ** (last - first)} times the width "
                  f"(levels grew {1 + levels:.2f} times)")  # fmt: skip
    if ARGUMENTS.plot:
        draw_sweep(lines, ARGUMENTS.plot)


def draw_sweep(lines: dict[str, list[tuple[float, float]]], path: str) -> None:
    from fastffn.report.svg import Chart, Style, log_axis, standalone, ticks_axis

    widths = [width for width, _ in next(iter(lines.values()))]
    chart = Chart(
        "Time against width",
        ticks_axis("neurons of the layer", widths, lambda width: f"{width + 1:.0f}"),
        log_axis("µs per token", [value for points in lines.values() for _, value in points], lambda v: f"{v:g}"),
    )
    for index, (name, points) in enumerate(lines.items()):
        style = Style(1 + index // 2, peer=name.startswith("dense"))
        chart.line(points, style)
        for width, value in points:
            chart.mark(width, value, style, f"{name}, width {width:.0f}: {value:.3g} µs")
        chart.label(*points[len(points) // 2], name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(standalone(f"Trees (solid) and torch dense (dashed), {ARGUMENTS.d_model} f32, one thread", chart))
    print(f"  wrote {path}")


def main() -> int:
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    ff.set_num_threads(1)
    print(f"fastffn {ff.__version__} ({ff.active_kernel('f32')}), torch {torch.__version__}; contenders take turns")
    tables = {"nodes": run_nodes, "decode": run_decode, "sweep": run_sweep, "leaf": run_leaf, "threads": run_threads}
    for name, run in tables.items():
        if ARGUMENTS.table in (name, "all"):
            run()
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w", encoding="utf-8") as file:
            json.dump({"fastffn": ff.__version__, "torch": torch.__version__, "rows": ROWS}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
