"""A Hugging Face model with its feed-forward layers replaced, saved and loaded again; a random one, so that it takes seconds.

pip install transformers safetensors
python python/examples/replace_tiny.py
"""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fastffn.torch as ft

torch.manual_seed(0)
sizes = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
prompt = torch.randint(3, 100, (1, 8))
text = model.generate(prompt, max_new_tokens=12, do_sample=False)

# The first layer stays as it is, the last one is bf16, the others are int4 with int8 for w_down.
rules = {0: None, -1: "bf16", "*": {"format": "int4", "group": 64, "w_down": "int8"}}
summary = ft.replace(model, rules, calibration=prompt, progress=True)
print(summary)

same = (model.generate(prompt, max_new_tokens=12, do_sample=False) == text)[0, 8:].sum().item()
print(f"{same} of 12 tokens as before")

with tempfile.TemporaryDirectory() as folder:
    path = ft.save(model, Path(folder) / "model.safetensors")
    again = ft.load(path)  # builds the model without its original weights
    summary.save(Path(folder) / "layers.svg")
    print(
        f"{path.stat().st_size} bytes on disk;",
        "the same logits:",
        torch.equal(again(prompt).logits, model(prompt).logits),
    )
