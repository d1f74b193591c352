"""A feed-forward layer as low-rank factors: factorised on calibration data, packed, run in one pass.

python python/examples/lowrank.py
"""

import numpy as np

import fastffn as ff

rng = np.random.default_rng(0)
d_model, d_ff, tokens = 384, 1536, 4096


# Inputs of real layers do not fill their space evenly, and that is what calibration finds out.
def inputs(count: int) -> np.ndarray:
    return (rng.standard_normal((count, d_model)) * 0.98 ** np.arange(d_model)).astype(np.float32) @ mix


mix = np.linalg.qr(rng.standard_normal((d_model, d_model)))[0].astype(np.float32)
weights = {
    "w_up": rng.standard_normal((d_ff, d_model), dtype=np.float32) / d_model**0.5,
    "w_gate": rng.standard_normal((d_ff, d_model), dtype=np.float32) / d_model**0.5,
    "w_down": rng.standard_normal((d_model, d_ff), dtype=np.float32) / d_ff**0.5,
}
x = inputs(tokens)
dense = {name: ff.pack(w, "bf16") for name, w in weights.items()}
expected = ff.ffn(x, **dense, activation="silu")

# What the layer sees: x at w_up and w_gate, the hidden activations at w_down. Add inputs in as many parts as they come.
sample = inputs(2048)
gate, up = (sample @ weights[name].T for name in ("w_gate", "w_up"))
hidden = gate / (1 + np.exp(-gate)) * up
seen = ff.Covariance(d_model).add(sample)
calibration = {"w_up": seen, "w_gate": seen, "w_down": ff.Covariance(d_ff).add(hidden)}

dense_bytes = sum(packed.nbytes for packed in dense.values())
print(f"dense bf16: {dense_bytes / 2**20:.2f} MiB, {ff.ffn_workspace(x, **dense) / 2**20:.2f} MiB of workspace")
for method in ("svd", "whitened"):
    for ratio in (0.6, 0.3):
        pairs = {
            name: ff.factorize(
                w, ratio=ratio, method=method, calibration=None if method == "svd" else calibration[name]
            )
            for name, w in weights.items()
        }
        packed = {name: ff.pack(pair, "lowrank", factors="bf16") for name, pair in pairs.items()}
        y = ff.ffn(x, **packed, activation="silu")
        error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
        size = sum(weight.nbytes for weight in packed.values())
        print(
            f"{method:9s} {100 * size / dense_bytes:3.0f} % of the bytes, rank {pairs['w_up'].rank:3d}: error {error:.3f}, "
            f"{ff.ffn_workspace(x, **packed) / 2**20:.2f} MiB of workspace"
        )

# Ranks where they are worth most, for a number of bytes in all.
names = list(weights)
spectra = [ff.lowrank.spectrum(weights[name], method="whitened", calibration=calibration[name]) for name in names]
budget = int(0.3 * sum(2 * w.size for w in weights.values()))
ranks = ff.allocate_ranks(spectra, [weights[name].shape for name in names], budget, multiple=16)
print("ranks of", dict(zip(names, ranks, strict=True)))

# The first hidden columns alone: a smaller model inside this one, at no cost.
half = ff.ffn(x[:1], **packed, activation="silu", segments=[(0, d_ff // 2)])
print("half of the hidden columns, no copy:", half.shape)
