"""The feed-forward layers of a model that cannot be run whole: found by their tensors' names, fed with stand-in inputs.

What such rows tell is bytes, times and the error of a layer on inputs of a plausible kind; no perplexity.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import F32
from .errors import FileFormatError
from .layers import FfnLayer, Weights
from .llama_config import ACTIVATIONS

_ROWS = 1024
_SEED = 0


@dataclass(frozen=True)
class _Form:
    """One way of naming a layer's tensors. `fused`: up holds gate and up; `across`: weights may be stored [in, out], as in GPT-2;
    `stacked`: all experts in one tensor."""

    up: str
    down: str
    gate: str = ""
    fused: bool = False
    across: bool = False
    stacked: bool = False


# In this order: those with a gate first, as the others' names are parts of theirs.
_FORMS = (
    _Form("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj"),
    _Form("mlp.gate_up_proj", "mlp.down_proj", fused=True),
    _Form("mlp.w1", "mlp.c_proj", "mlp.w2"),  # Qwen 1
    _Form("feed_forward.w3", "feed_forward.w2", "feed_forward.w1"),
    _Form("mlp.w3", "mlp.w2", "mlp.w1"),
    _Form("mlp.Wi", "mlp.Wo", fused=True),  # ModernBERT
    _Form("DenseReluDense.wi_1", "DenseReluDense.wo", "DenseReluDense.wi_0"),
    _Form("block_sparse_moe.experts.0.w3", "block_sparse_moe.experts.0.w2", "block_sparse_moe.experts.0.w1"),
    _Form("mlp.experts.0.up_proj", "mlp.experts.0.down_proj", "mlp.experts.0.gate_proj"),
    _Form("ffn_up", "ffn_down", "ffn_gate"),
    _Form("ffn_up_exps", "ffn_down_exps", "ffn_gate_exps", stacked=True),
    _Form("ffn_up", "ffn_down"),
    _Form("mlp.up_proj", "mlp.down_proj"),
    _Form("fc1", "fc2"),
    _Form("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    _Form("mlp.c_fc", "mlp.c_proj", across=True),
    _Form("intermediate.dense", "output.dense"),
    _Form("ffn.lin1", "ffn.lin2"),
    _Form("DenseReluDense.wi", "DenseReluDense.wo"),
)
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|word_embeddings|wte|tok_embeddings|token_embd|shared|embed_in|lm_head)\.weight$"
)


@dataclass(frozen=True)
class FeedForwardModel:
    """Layers, what to feed them, and sentences for the reader: why they stand alone, and what the inputs are."""

    label: str
    layers: int
    ffn_layer: Callable[[int], FfnLayer]
    inputs: Callable[[int], F32]
    statement: str


def open_feed_forward(label: str, weights: Weights, config: dict[str, Any], why: str) -> FeedForwardModel:
    """The feed-forward layers of a file; an error that repeats `why` where it has none that are known."""
    for form in _FORMS:
        bases = _layers_of(form, weights)
        if bases:
            break
    else:
        raise FileFormatError(f"{why}; and no feed-forward weights were found under names that this report knows")
    activation, said = _activation(config, gated=bool(form.gate) or form.fused)
    first = _layer(form, bases[0], weights, activation, 0)
    table, source = _inputs(weights, first.d_model)
    statement = (
        f"{label} was not run whole: {why}. Shown are its feed-forward layers alone"
        f"{', the first expert of each' if form.stacked or 'experts.0' in form.up else ''}, on {source}; {said}."
        " Errors on true inputs may differ, and there is no perplexity."
    )
    return FeedForwardModel(
        label, len(bases), lambda index: _layer(form, bases[index], weights, activation, index), lambda index: table,
        statement,
    )  # fmt: skip


def _layers_of(form: _Form, weights: Weights) -> list[str]:
    """What comes before the form's names, per layer, in the layers' order; only those of the first one's shape."""
    end = f".{form.up}.weight"
    found = [name.removesuffix(end) for name in weights.names() if name.endswith(end)]
    needed = [form.down, form.gate] if form.gate else [form.down]
    dimensions = 3 if form.stacked else 2
    found = [
        base
        for base in found
        if all(
            f"{base}.{name}.weight" in weights and len(weights.shape(f"{base}.{name}.weight")) == dimensions
            for name in needed
        )
    ]
    found.sort(key=lambda base: [int(part) if part.isdigit() else -1 for part in base.split(".")])
    shapes = {base: weights.shape(base + end) for base in found}
    return [base for base in found if shapes[base] == shapes[found[0]] and len(shapes[base]) == dimensions]


def _layer(form: _Form, base: str, weights: Weights, activation: str, index: int) -> FfnLayer:
    # A bias has as many values as its weight gives outputs.
    bias, rows = f"{base}.{form.up}.bias", weights.shape(f"{base}.{form.up}.weight")[0]
    across = form.across and bias in weights and weights.shape(bias)[0] != rows

    def read(name: str, kind: str = "weight") -> F32 | None:
        key = f"{base}.{name}.{kind}"
        if not name or key not in weights:
            return None
        values = weights.first_f32(key) if form.stacked and kind == "weight" else weights.f32(key)
        return np.ascontiguousarray(values.T) if across and kind == "weight" else values

    up, down = read(form.up), read(form.down)
    gate, b_up, b_gate = read(form.gate), read(form.up, "bias"), read(form.gate, "bias")
    if up is None or down is None:
        raise FileFormatError(f"the model has no tensor '{base}.{form.down}.weight'")
    if form.fused or (gate is None and up.shape[0] == 2 * down.shape[-1]):
        half = up.shape[0] // 2
        gate, up = up[:half], up[half:]
        if b_up is not None:
            b_gate, b_up = b_up[:half], b_up[half:]
    if up.ndim != 2 or down.shape != up.shape[::-1] or (gate is not None and gate.shape != up.shape):
        shapes = f"{up.shape} and {down.shape}" + ("" if gate is None else f", gate {gate.shape}")
        raise FileFormatError(f"the feed-forward weights of {base!r} have shapes {shapes}, which do not fit")
    return FfnLayer(up, down, gate, b_up, read(form.down, "bias"), b_gate, activation, index)


def _activation(config: dict[str, Any], gated: bool) -> tuple[str, str]:
    """The activation, and where it was found."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, dict) else {}):
        for key in ("hidden_activation", "hidden_act", "activation_function", "activation"):
            name = source.get(key)
            if isinstance(name, str) and name in ACTIVATIONS:
                return ACTIVATIONS[name], f"activation {ACTIVATIONS[name]} as its configuration says"
    default = "silu" if gated else "gelu"
    return default, f"activation {default}, as none that this report knows is stated"


def _inputs(weights: Weights, d_model: int) -> tuple[F32, str]:
    """Rows [1024, d_model] of unit RMS: the model's own embeddings if there are any, else normally distributed."""
    rng = np.random.default_rng(_SEED)
    for name in weights.names():
        if _EMBEDDING.search(name) and len(weights.shape(name)) == 2 and weights.shape(name)[1] == d_model:
            table = weights.f32(name)
            rows = np.array(table[rng.integers(0, table.shape[0], _ROWS)], np.float32)
            size = np.sqrt(np.mean(np.square(rows), axis=1, keepdims=True))
            if np.isfinite(rows).all() and (size > 0).all():
                return rows / size, "embeddings of random tokens at unit RMS"
    return rng.standard_normal((_ROWS, d_model), dtype=np.float32), "normally distributed random inputs"
