"""2:4 sparse weights: prune a gated FFN by four methods, pack, run, and compare error, bytes and time with dense.

python python/examples/sparse24.py

Random weights and inputs whose columns differ in size, as in real layers. On a real model: `python -m fastffn report`.
"""

import time

import numpy as np

import fastffn as ff

D_MODEL, D_FF, TOKENS = 512, 1408, 2048
rng = np.random.default_rng(0)
gate, up = (rng.standard_normal((D_FF, D_MODEL), dtype=np.float32) / D_MODEL**0.5 for _ in range(2))
down = rng.standard_normal((D_MODEL, D_FF), dtype=np.float32) / D_FF**0.5
mix = rng.standard_normal((D_MODEL, D_MODEL)) * np.exp(rng.standard_normal((D_MODEL, 1))) / D_MODEL**0.5
inputs, x = ((rng.standard_normal((rows, D_MODEL)) @ mix).astype(np.float32) for rows in (TOKENS, 64))


def hidden(x: np.ndarray, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """What `down` multiplies."""
    values = x @ gate.T
    return values / (1 + np.exp(-values)) * (x @ up.T)


def milliseconds(call) -> float:
    """The shortest of a few calls."""
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def show(name: str, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray) -> None:
    """One line: bytes, error of the layer's output, time of one token."""
    y = np.empty_like(x)
    ff.ffn(x, w_up, w_down, w_gate, activation="silu", out=y)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    one, out = x[:1], np.empty_like(x[:1])
    best = milliseconds(lambda: ff.ffn(one, w_up, w_down, w_gate, activation="silu", out=out))
    size = sum(ff.info(w).nbytes for w in (w_gate, w_up, w_down)) / 1e6
    print(f"{name:28} {size:6.2f} MB   error {error:.4f}   one token {best:.3f} ms")


exact = hidden(x.astype(np.float64), gate, up) @ down.T
for values in ("bf16", "int8"):
    show(f"dense {values}", *(ff.pack(w, values) for w in (gate, up, down)))

for method in ff.sparse24.METHODS:
    # Wanda and SparseGPT look at the inputs of each layer; those of `down` are what the pruned gate and up give it.
    needs = method in ("wanda", "sparsegpt")
    sparse_gate, sparse_up = (ff.prune24(w, method, inputs if needs else None) for w in (gate, up))
    sparse_down = ff.prune24(down, method, hidden(inputs, sparse_gate, sparse_up) if needs else None)
    pruned = (sparse_gate, sparse_up, sparse_down)
    assert ff.check24(sparse_down).density <= 0.5
    for values in ("bf16", "int8"):
        show(f"2:4 {values}, {method}", *(ff.pack(w, "sparse24", values=values) for w in pruned))

# Files of other programs: dense again, then pack.
made = ff.sparse24.to_bitmask(sparse_down)
again = ff.sparse24.from_bitmask(made["compressed"], made["bitmask"], made["shape"])
assert np.array_equal(again, sparse_down)
stored = sum(part.nbytes for part in made.values()) / 1e6
print(f"as compressed-tensors' sparse-24-bitmask, `down` takes {stored:.2f} MB of {down.nbytes / 1e6:.2f} in f32")
