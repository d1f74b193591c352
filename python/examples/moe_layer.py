"""A mixture of experts: route, run, look at the load; then a dense layer cut into experts.

python python/examples/moe_layer.py
"""

import importlib.util

import numpy as np

import fastffn as ff
from fastffn.convert import cmoe, moefication

experts, picks, d_model, d_ff, tokens = 16, 4, 128, 96, 64
rng = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)


# ---- a mixture of experts, as OLMoE or Qwen3-MoE have it ----

w_router = ff.pack(weights(experts, d_model), "f32")
w_gate, w_up = (ff.pack(weights(experts, d_ff, d_model), "bf16") for _ in range(2))  # stacks: one array each
w_down = ff.pack(weights(experts, d_model, d_ff), "bf16")
shared = ff.SharedExperts(  # an expert that every token uses; any width, any format
    ff.pack(weights(2 * d_ff, d_model), "int8"),
    ff.pack(weights(d_model, 2 * d_ff), "int8"),
    ff.pack(weights(2 * d_ff, d_model), "int8"),
)

x = rng.standard_normal((tokens, d_model), dtype=np.float32)
ids, scores = ff.route_topk(ff.linear(x, w_router), picks, score="softmax", renormalize=True)
y = ff.moe(x, ids, scores, w_up, w_down, w_gate, activation="silu", shared=shared)
load = ff.expert_load(ids, experts)
print(f"{tokens} tokens, {picks} of {experts} experts each; the busiest has {load.max}, on average {load.mean:g}")

if importlib.util.find_spec("torch"):
    import torch

    # The same call on torch tensors gives a tensor; weights may stay NumPy arrays.
    tensor = ff.moe(
        torch.from_numpy(x), torch.from_numpy(ids), torch.from_numpy(scores), w_up, w_down, w_gate,
        activation="silu", shared=shared,
    )  # fmt: skip
    print(f"torch: {tuple(tensor.shape)} {tensor.dtype}, equal: {bool((tensor.numpy() == y).all())}")

# ---- a dense layer with ReLU whose neurons fire in groups, cut into experts ----

topics = 16
directions = np.linalg.qr(rng.standard_normal((d_model, d_model)))[0][:topics].astype(np.float32)
d_ff = 512
topic_of = rng.permutation(np.repeat(np.arange(topics), d_ff // topics))
up = directions[topic_of] + 0.02 * rng.standard_normal((d_ff, d_model), dtype=np.float32)
down = weights(d_model, d_ff)


def layer_inputs(rows: int) -> np.ndarray:
    """Each about three topics of the sixteen, and against the others."""
    chosen = np.stack([rng.choice(topics, 3, replace=False) for _ in range(rows)])
    return directions[chosen].sum(axis=1) - np.float32(0.4) * directions.sum(axis=0)


calibration, x = layer_inputs(2000), layer_inputs(200)
dense = ff.ffn(x, ff.pack(up, "f32"), ff.pack(down, "f32"), activation="relu")
for name, layer in (
    ("moefication", moefication(calibration, up, down, activation="relu", experts=16, picks=4)),
    ("cmoe", cmoe(calibration, up, down, activation="relu", experts=16, shared=2, picks=4, top=96)),
):
    y = layer.pack("f32")(x)
    everything = layer.pack("f32", picks=len(layer.experts))(x)
    error, rounding = (np.linalg.norm(found - dense) / np.linalg.norm(dense) for found in (y, everything))
    print(f"{name:11} {layer.active_fraction:.0%} of the weights: error {error:.1e}; all of them: {rounding:.1e}")
