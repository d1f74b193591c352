"""Hadamard transforms: fastffn's alone beside torch's two matrix products and a copy, and what one adds to a product."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import QUIET_CORES, measure

import fastffn as ff


def sylvester(order: int) -> torch.Tensor:
    h = torch.ones(1, 1)
    while h.shape[0] < order:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / order**0.5


def kron(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """H_64 ⊗ H_(n / 64) as two matrix products, in the dtype of x."""
    n = x.shape[-1]
    first, second = sylvester(64).to(x.dtype), sylvester(n // 64).to(x.dtype)
    return lambda: (first @ (x.view(-1, 64, n // 64) @ second)).view(x.shape)


def hadamard(arguments: argparse.Namespace) -> list[dict]:
    """Both tables."""
    return [*_alone(arguments), *_in_products(arguments)]


def _rows(arguments: argparse.Namespace, title: str, calls: dict[str, Callable], base: str, bytes_: int) -> list[dict]:
    times, load = measure(calls, seconds=arguments.seconds, rounds=arguments.rounds)
    print(f"  {title}" + ("  *" if load > QUIET_CORES else ""))
    results = []
    for name, time in times.items():
        over = time.ratio_to(times[base])
        rate = f"  {bytes_ / time.median() / 1e9:7.1f} GB/s" if bytes_ else ""
        print(f"    {name:22}{1e3 * time.median():10.4f} ms{rate}  {over:6.3f} of {base}", flush=True)
        results.append(
            {
                "title": title, "contender": name, "median_s": time.median(), "min_s": time.minimum(), "base": base,
                "time_over_base": over, "other_cores": load, "threads": arguments.threads,
            }
        )  # fmt: skip
    return results


def _alone(arguments: argparse.Namespace) -> list[dict]:
    print(f"\nhadamard alone, f32, threads {arguments.threads}: reads and writes each number once")
    results = []
    for n in (4096, 8192, 16384):
        # One row; 256 KiB, which lie in a core's L2 beside their results; and rows that do not.
        for tokens in arguments.tokens or [1, (1 << 16) // n, 1024]:
            x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(n))
            half, out = x.bfloat16(), torch.empty_like(x)
            calls = {
                "copy": lambda x=x, out=out: out.copy_(x),
                "fastffn": lambda x=x, out=out: ff.hadamard(x, "pow2", out=out),
                "torch kron": kron(x),
                "torch kron bf16": kron(half),
            }
            error = (calls["fastffn"]() - kron(x)()).norm() / x.norm()
            if not error < 1e-5:
                raise SystemExit(f"fastffn and torch disagree: {error:.2g}")
            results += _rows(arguments, f"{tokens} x {n}", calls, "copy", 2 * 4 * tokens * n)
    return results


def _in_products(arguments: argparse.Namespace) -> list[dict]:
    print(f"\nternary w_down with and without a transform of its input, threads {arguments.threads}")
    results = []
    for inputs, outputs in ((4096, 4096), (8192, 2048), (16384, 4096)):
        codes = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8)
        packed = {
            mode: ff.pack(codes, "ternary", scale=torch.tensor([0.01]), hadamard=mode)
            for mode in ("none", "pow2", "block")
        }
        for tokens in arguments.tokens or [1, 16, 128]:
            x, out = torch.randn(tokens, inputs), torch.empty(tokens, outputs)
            calls = {
                f"hadamard={mode}": lambda w=w, x=x, out=out: ff.linear(x, w, out=out) for mode, w in packed.items()
            }
            results += _rows(arguments, f"{tokens} tokens, {inputs}x{outputs}", calls, "hadamard=none", 0)
    return results
