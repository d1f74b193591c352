"""A gated FFN on NumPy arrays: pack once, save, load, run, and compare formats.

python python/examples/numpy_layer.py
"""

import tempfile
from pathlib import Path

import numpy as np

import fastffn as ff

d_model, d_ff, tokens = 256, 704, 16
rng = np.random.default_rng(0)
w_gate, w_up = (rng.standard_normal((d_ff, d_model), dtype=np.float32) / d_model**0.5 for _ in range(2))
w_down = rng.standard_normal((d_model, d_ff), dtype=np.float32) / d_ff**0.5
x = rng.standard_normal((tokens, d_model), dtype=np.float32)

gate = x.astype(np.float64) @ w_gate.T
exact = (gate / (1 + np.exp(-gate)) * (x.astype(np.float64) @ w_up.T)) @ w_down.T

with tempfile.TemporaryDirectory() as folder:
    for format in ("f32", "f16", "bf16", "int8"):
        # Packed weights are plain uint8 arrays: keep them in any file.
        path = Path(folder) / f"{format}.npz"
        np.savez(path, gate=ff.pack(w_gate, format), up=ff.pack(w_up, format), down=ff.pack(w_down, format))
        layer = np.load(path)
        ff.verify(layer["up"])

        y = ff.ffn(x, layer["up"], layer["down"], w_gate=layer["gate"], activation="silu")
        error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
        info = ff.info(layer["up"])
        print(
            f"{format:5} {info.nbytes:8} bytes per matrix, {info.bits_per_weight:5.2f} bits per weight, error {error:.1e}"
        )
