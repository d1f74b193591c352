"""A BitNet layer from a checkpoint's tensors: imported without rounding, run, checked against its formula, written back.

python python/examples/bitnet_import.py                                     # a small layer made up here
python python/examples/bitnet_import.py --model FOLDER --layer 0            # of a checkpoint of transformers (bitnet)

The layer of BitNet b1.58 2B4T (arXiv:2504.12285): gate and up, relu(gate)² ⊙ up, RMSNorm, down; ternary weights, activations in
eight bits per token. A checkpoint's folder holds config.json and model.safetensors.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import fastffn as ff
from fastffn import importers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", type=Path, metavar="FOLDER")
parser.add_argument("--layer", type=int, default=0)
options = parser.parse_args()
rng = np.random.default_rng(0)


def made_up(d_model: int, d_ff: int) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors and configuration as transformers writes them."""
    config = {"hidden_size": d_model, "intermediate_size": d_ff, "hidden_act": "relu2", "rms_norm_eps": 1e-5}
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    tensors = {"ffn_sub_norm.weight": rng.uniform(0.5, 1.5, d_ff).astype(np.float32)}
    for name, shape in (("gate", (d_ff, d_model)), ("up", (d_ff, d_model)), ("down", (d_model, d_ff))):
        codes = rng.integers(-1, 2, shape, dtype=np.int8)
        tensors[f"{name}_proj.weight"] = importers.pack_bitnet(codes)  # four rows to a byte
        tensors[f"{name}_proj.weight_scale"] = np.array([1.2 / shape[1] ** 0.5], np.float32)
    return tensors, config


prefix = ""
if options.model is None:
    tensors, config = made_up(256, 640)
else:
    from safetensors.numpy import load_file

    tensors = load_file(options.model / "model.safetensors")
    config = json.loads((options.model / "config.json").read_text())
    prefix = f"model.layers.{options.layer}.mlp."

layer = importers.load_bitnet(tensors, config, prefix=prefix)
x = rng.standard_normal((16, config["hidden_size"]), dtype=np.float32)
y = layer(x)


def eight_bits(x: np.ndarray) -> np.ndarray:
    """Each token on 255 levels, as the layer sees it."""
    scale = 127 / np.abs(x).max(axis=-1, keepdims=True)
    return np.round(x * scale) / scale


def latent(name: str) -> np.ndarray:
    """A weight as numbers: codes times scale."""
    return ff.unpack(getattr(layer, f"w_{name}"), dtype="f32").astype(np.float64)


quantised = eight_bits(x.astype(np.float64))
hidden = np.maximum(quantised @ latent("gate").T, 0) ** 2 * (quantised @ latent("up").T)
if layer.sub_norm is not None:
    hidden *= layer.sub_norm / np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + layer.sub_norm_eps)
exact = eight_bits(hidden) @ latent("down").T
error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
plain = sum(2 * ff.info(w).out_features * ff.info(w).in_features for w in (layer.w_gate, layer.w_up, layer.w_down))
print(f"{layer.nbytes / 1e6:.2f} MB, {plain / 1e6:.2f} in bf16; against the formula in float64: {error:.1e}")
assert error < 1e-2

back = importers.export_bitnet(layer.w_up, "autobitlinear")
assert np.array_equal(back.weight, np.asarray(tensors[f"{prefix}up_proj.weight"]))
print("written back: the same bytes as in the checkpoint")
