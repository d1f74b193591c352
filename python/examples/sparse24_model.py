"""2:4 of a real model's feed-forward layers: pruned on what they truly see, packed, run, and compared.

python python/examples/sparse24_model.py                      # one layer of SmolLM2-135M (93 MB, fetched once)
python python/examples/sparse24_model.py --model FILE --layer 5

Takes any file that `python -m fastffn report --model` runs whole. The perplexity of the whole model, pruned:
`python -m fastffn report --formats sparse24`.
"""

import argparse

import numpy as np

import fastffn as ff
from fastffn.report import assets
from fastffn.report.calibration import calibrate_on
from fastffn.report.open_model import open_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="a GGUF or safetensors file, or its folder")
parser.add_argument("--layer", type=int, default=5)
parser.add_argument("--tokens", type=int, default=1024, help="of the calibration text")
options = parser.parse_args()

opened = open_model(options.model or assets.fetch(assets.SMOLLM2))
layer = opened.model.ffn_layer(options.layer)
inputs = calibrate_on(opened, options.tokens).inputs[options.layer]
x = inputs[::16]


def run(gate, up, down) -> np.ndarray:
    return ff.ffn(x, up, down, gate, activation=layer.activation)


weights = [w for w in (layer.w_gate, layer.w_up, layer.w_down) if w is not None]
gated = layer.w_gate is not None
dense = [ff.pack(w, "f32") for w in weights]
exact = run(*dense) if gated else run(None, *dense)
print(f"{opened.label}, layer {options.layer}: {layer.d_model} x {layer.d_ff}, {inputs.shape[0]} tokens seen")
for method in ("magnitude", "wanda", "sparsegpt"):
    # Of every weight on its own, what it sees in the dense layer; the report prunes one after the other.
    hidden = ff.linear(inputs, ff.pack(layer.w_up, "f32"))
    if gated:
        values = ff.linear(inputs, ff.pack(layer.w_gate, "f32"))
        hidden *= values / (1 + np.exp(-values))
    seen = [inputs] * (len(weights) - 1) + [hidden]
    needs = method != "magnitude"
    pruned = [ff.prune24(w, method, s if needs else None) for w, s in zip(weights, seen, strict=True)]
    packed = [ff.pack(w, "sparse24", values="bf16") for w in pruned]
    y = run(*packed) if gated else run(None, *packed)
    size = sum(ff.info(w).nbytes for w in packed) / sum(2 * w.size for w in weights)
    print(
        f"{method:10} {100 * size:.0f}% of the bytes of bf16, error {np.linalg.norm(y - exact) / np.linalg.norm(exact):.3f}"
    )
