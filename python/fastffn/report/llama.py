"""The Llama family in f32 NumPy: RMSNorm, rotary positions, grouped-query attention, gated FFN, tied or own head.

Touvron et al. 2023 (arXiv:2302.13971); rotary positions Su et al. 2021 (arXiv:2104.09864); grouped queries Ainslie et
al. 2023 (arXiv:2305.13245). It exists to hand every layer's true FFN inputs to a callable of choice, and to turn the
result into a perplexity; it is no decoder to deploy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastffn._files.gguf import GgufFile

from .arrays import F32, F64, I64
from .errors import FileFormatError
from .layers import FfnFunction, FfnLayer, Weights, linear, reference_function

# Dequantised weights are kept until this many bytes; those of a larger model are dequantised anew at each use.
_KEEP_BYTES = 4 << 30
# Rows whose logits are held at a time: a vocabulary of 150k takes 150 MB.
_LOGIT_ROWS = 256


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model. `interleaved`: rotary pairs are neighbours (GGUF's order), else half a head apart."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float
    norm_eps: float
    interleaved: bool
    context: int
    activation: str = "silu"

    @staticmethod
    def from_gguf(metadata: dict[str, Any]) -> LlamaConfig:
        """From a GGUF file's keys. Architecture "llama": its q and k rows come in pairs of neighbours; "qwen2": not."""
        arch = metadata.get("general.architecture")
        if arch not in ("llama", "qwen2"):
            raise FileFormatError(f"GGUF architecture {arch!r} is not supported; this report runs 'llama' and 'qwen2'")
        if metadata.get(f"{arch}.expert_count"):
            raise FileFormatError("GGUF models with experts (MoE) are not supported by this report")
        if metadata.get(f"{arch}.rope.scaling.type", "none") != "none":
            scaling = metadata[f"{arch}.rope.scaling.type"]
            raise FileFormatError(f"GGUF rope scaling {scaling!r} is not supported by this report")
        try:
            heads = int(metadata[f"{arch}.attention.head_count"])
            d_model = int(metadata[f"{arch}.embedding_length"])
            return LlamaConfig(
                layers=int(metadata[f"{arch}.block_count"]),
                d_model=d_model,
                heads=heads,
                kv_heads=int(metadata.get(f"{arch}.attention.head_count_kv", heads)),
                head_dim=int(metadata.get(f"{arch}.attention.key_length", d_model // heads)),
                rope_base=float(metadata.get(f"{arch}.rope.freq_base", 10000.0)),
                norm_eps=float(metadata[f"{arch}.attention.layer_norm_rms_epsilon"]),
                interleaved=arch == "llama",
                context=int(metadata.get(f"{arch}.context_length", 2048)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the GGUF file's model keys are incomplete: {error}") from error

    @staticmethod
    def from_json(config: dict[str, Any]) -> LlamaConfig:
        """From a Hugging Face config.json."""
        kind = config.get("model_type")
        if kind not in ("llama", "mistral", "qwen2"):
            raise FileFormatError(f"config.json: model_type {kind!r} is not supported; llama, mistral, qwen2, bert are")
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if scaling.get("rope_type", scaling.get("type", "default")) not in ("default", "llama3"):
            raise FileFormatError(f"config.json: rope_scaling {scaling} is not supported")
        activations = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
        try:
            heads = int(config["num_attention_heads"])
            d_model = int(config["hidden_size"])
            return LlamaConfig(
                layers=int(config["num_hidden_layers"]),
                d_model=d_model,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or d_model // heads),
                rope_base=float(config.get("rope_theta") or scaling.get("rope_theta", 1e4)),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                interleaved=False,
                context=int(config.get("max_position_embeddings", 2048)),
                activation=activations[config.get("hidden_act", "silu")],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"config.json is incomplete: {error!r}") from error


# Our name → the file's, where {} is the layer.
_GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "head": "output.weight",
    "final_norm": "output_norm.weight",
    "attn_norm": "blk.{}.attn_norm.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}
_HF_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"  # GGUF stores Llama 3's frequency scaling as divisors


class LlamaModel:
    """A model to run: ``nll(tokens, ffn)`` and ``hidden(tokens, ffn)`` with any FfnFunction in every layer."""

    def __init__(self, weights: Weights, config: LlamaConfig, rope_scaling: dict[str, Any] | None = None) -> None:
        self.config = config
        self._weights = weights
        self._names = _GGUF_NAMES if isinstance(weights, GgufFile) or "token_embd.weight" in weights else _HF_NAMES
        self._kept: dict[str, F32] = {}
        self._kept_bytes = 0
        self._frequencies = _rope_frequencies(config, rope_scaling)
        if _ROPE_FACTORS in weights:
            self._frequencies = self._frequencies / weights.f32(_ROPE_FACTORS).astype(np.float64)

    def _tensor(self, name: str, layer: int | None = None, bias: bool = False) -> F32:
        key = self._names[name].format(layer)
        if bias:
            key = key.replace(".weight", ".bias")
        if key in self._kept:
            return self._kept[key]
        values = self._weights.f32(key)
        if self._kept_bytes + values.nbytes <= _KEEP_BYTES:
            self._kept[key] = values
            self._kept_bytes += values.nbytes
        return values

    def _bias(self, name: str, layer: int) -> F32 | None:
        key = self._names[name].format(layer).replace(".weight", ".bias")
        return self._tensor(name, layer, bias=True) if key in self._weights else None

    def ffn_layer(self, layer: int) -> FfnLayer:
        """One layer's FFN weights as f32."""
        return FfnLayer(
            w_up=self._tensor("up", layer),
            w_down=self._tensor("down", layer),
            w_gate=self._tensor("gate", layer),
            b_up=self._bias("up", layer),
            b_down=self._bias("down", layer),
            b_gate=self._bias("gate", layer),
            activation=self.config.activation,
            index=layer,
        )

    def hidden(
        self,
        tokens: I64,
        ffn: FfnFunction | None = None,
        capture: Callable[[int, F32], None] | None = None,
        step: Callable[[], None] | None = None,
    ) -> F32:
        """Final hidden states [chunks, length, d_model] of tokens [chunks, length]; chunks know nothing of each other.

        `capture(layer, x)` sees every layer's FFN input, flattened to rows; `step` is called after each layer.
        """
        run = ffn or reference_function()
        config = self.config
        x: F32 = np.asarray(self._tensor("embedding")[tokens], np.float32)
        cos, sin = self._rope_table(tokens.shape[1])
        for layer in range(config.layers):
            normed = _rms_norm(x, self._tensor("attn_norm", layer), config.norm_eps)
            for chunk in range(tokens.shape[0]):
                x[chunk] += self._attention(layer, normed[chunk], cos, sin)
            normed = _rms_norm(x, self._tensor("ffn_norm", layer), config.norm_eps)
            if capture is not None:
                capture(layer, normed.reshape(-1, config.d_model))
            x += run(layer, self.ffn_layer(layer), normed)
            if step is not None:
                step()
        return _rms_norm(x, self._tensor("final_norm"), config.norm_eps)

    def logits(self, hidden: F32) -> F32:
        """Logits [rows, vocabulary] of hidden states [rows, d_model]."""
        name = "head" if self._names["head"] in self._weights else "embedding"
        return linear(hidden, self._tensor(name))

    def nll(
        self,
        tokens: I64,
        ffn: FfnFunction | None = None,
        capture: Callable[[int, F32], None] | None = None,
        step: Callable[[], None] | None = None,
    ) -> F64:
        """Negative log likelihood in nats of each token after the first of its chunk: [chunks, length - 1]."""
        hidden = self.hidden(tokens, ffn, capture, step)[:, :-1].reshape(-1, self.config.d_model)
        targets = tokens[:, 1:].reshape(-1)
        out = np.empty(targets.size, np.float64)
        for begin in range(0, targets.size, _LOGIT_ROWS):
            rows = slice(begin, begin + _LOGIT_ROWS)
            scores = self.logits(hidden[rows])
            top = scores.max(axis=1, keepdims=True)
            chosen = scores[np.arange(scores.shape[0]), targets[rows]].astype(np.float64)
            total = np.exp(scores - top).sum(axis=1, dtype=np.float64)
            out[rows] = np.log(total) + top[:, 0] - chosen
        return out.reshape(tokens.shape[0], -1)

    def _rope_table(self, length: int) -> tuple[F32, F32]:
        angles = np.arange(length, dtype=np.float64)[:, None] * self._frequencies
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def _attention(self, layer: int, x: F32, cos: F32, sin: F32) -> F32:
        """Causal attention over one chunk [length, d_model]."""
        config = self.config
        length = x.shape[0]

        def heads(name: str, count: int) -> F32:
            y = linear(x, self._tensor(name, layer), self._bias(name, layer))
            return np.ascontiguousarray(y.reshape(length, count, config.head_dim).transpose(1, 0, 2))

        groups = config.heads // config.kv_heads
        query = _rotate(heads("q", config.heads), cos, sin, config.interleaved)
        query = query.reshape(config.kv_heads, groups * length, config.head_dim)
        key = _rotate(heads("k", config.kv_heads), cos, sin, config.interleaved)
        scores: F32 = query @ key.transpose(0, 2, 1)
        scores *= np.float32(1 / math.sqrt(config.head_dim))
        scores = scores.reshape(config.heads, length, length)
        scores += np.triu(np.full((length, length), -np.inf, np.float32), 1)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: F32 = scores.reshape(config.kv_heads, groups * length, length) @ heads("v", config.kv_heads)
        mixed = mixed.reshape(config.heads, length, config.head_dim).transpose(1, 0, 2).reshape(length, -1)
        return linear(mixed, self._tensor("o", layer), self._bias("o", layer))


def _rms_norm(x: F32, weight: F32, eps: float) -> F32:
    square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    scaled: F32 = x * (1 / np.sqrt(square + np.float32(eps))) * weight
    return scaled


def _rotate(x: F32, cos: F32, sin: F32, interleaved: bool) -> F32:
    """Rotary positions on x [heads, length, head_dim]; dimensions beyond the table's stay as they are."""
    half = cos.shape[1]
    out: F32 = x.copy()
    if interleaved:
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = a * cos - b * sin, b * cos + a * sin
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
        out[..., :half], out[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
    return out


def _rope_frequencies(config: LlamaConfig, scaling: dict[str, Any] | None) -> F64:
    """Radians per position of each pair of a head."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_base**-exponents
    if scaling and scaling.get("rope_type", scaling.get("type")) == "llama3":
        # Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended.
        factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns = original * frequencies / (2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (blend + (1 - blend) / factor)
    return np.asarray(frequencies, np.float64)
