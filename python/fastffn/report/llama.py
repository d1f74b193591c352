"""The Llama family in f32 NumPy: RMSNorm, rotary positions, grouped-query attention, gated FFN, tied or own head.

Llama 1 to 3, Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi-3, SmolLM, Granite and OLMo 2 are one model with other settings
(llama_config.py) and other names of tensors (llama_weights.py).

Touvron et al. 2023 (arXiv:2302.13971); rotary positions Su et al. 2021 (arXiv:2104.09864); grouped queries Ainslie et
al. 2023 (arXiv:2305.13245). It exists to hand every layer's true FFN inputs to a callable of choice, and to turn the
result into a perplexity; it is no decoder to deploy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .arrays import F32, F64, I64
from .layers import FfnFunction, FfnLayer, Weights, linear, reference_function
from .llama_config import LlamaConfig
from .llama_weights import LlamaWeights

# Rows whose logits are held at a time: a vocabulary of 150k takes 150 MB.
_LOGIT_ROWS = 256


class LlamaModel:
    """A model to run: ``nll(tokens, ffn)`` and ``hidden(tokens, ffn)`` with any FfnFunction in every layer."""

    def __init__(self, weights: Weights, config: LlamaConfig) -> None:
        self.config = config
        self._weights = LlamaWeights(weights, config)

    def ffn_layer(self, layer: int) -> FfnLayer:
        """One layer's FFN weights as f32."""
        return FfnLayer(
            w_up=self._weights.need("up", layer),
            w_down=self._weights.need("down", layer),
            w_gate=self._weights.need("gate", layer),
            b_up=self._weights.get("up", layer, "bias"),
            b_down=self._weights.get("down", layer, "bias"),
            b_gate=self._weights.get("gate", layer, "bias"),
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
        x: F32 = self._weights.need("embedding")[tokens].astype(np.float32) * np.float32(config.embedding_scale)
        for layer in range(config.layers):
            normed = self._norm(x, "attn_norm", layer)
            for chunk in range(tokens.shape[0]):
                x[chunk] += self._added(self._attention(layer, normed[chunk]), "attn_post_norm", layer)
            normed = self._norm(x, "ffn_norm", layer)
            if normed is x:  # no norm in front: the stream goes on, what is captured must not
                normed = x.copy()
            if capture is not None:
                capture(layer, normed.reshape(-1, config.d_model))
            x += self._added(run(layer, self.ffn_layer(layer), normed), "ffn_post_norm", layer)
            if step is not None:
                step()
        return self._norm(x, "final_norm")

    def _norm(self, x: F32, name: str, layer: int | None = None) -> F32:
        """x normalised, or x itself where the model has no such norm."""
        factors = self._weights.norm(name, layer)
        return x if factors is None else _rms_norm(x, factors, self.config.norm_eps)

    def _added(self, y: F32, norm: str, layer: int) -> F32:
        """What a block adds to the stream."""
        added: F32 = self._norm(y, norm, layer) * np.float32(self.config.residual_scale)
        return added

    def logits(self, hidden: F32) -> F32:
        """Logits [rows, vocabulary] of hidden states [rows, d_model]."""
        head = self._weights.get("head")
        scores = linear(hidden, self._weights.need("embedding") if head is None else head)
        scores *= np.float32(self.config.logit_scale)
        return _capped(scores, self.config.logit_cap)

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

    def _attention(self, layer: int, x: F32) -> F32:
        """Causal attention over one chunk [length, d_model]."""
        config = self.config
        length = x.shape[0]
        rope = config.rope_of(layer)
        table = None if rope is None else rope.table(length)

        def heads(name: str, count: int) -> F32:
            y = linear(x, self._weights.need(name, layer), self._weights.get(name, layer, "bias"))
            factors = self._weights.norm(name + "_norm", layer) if name != "v" else None
            if factors is not None and factors.size != config.head_dim:  # over all heads at once
                y = _rms_norm(y, factors, config.norm_eps)
            y = y.reshape(length, count, config.head_dim)
            if factors is not None and factors.size == config.head_dim:
                y = _rms_norm(y, factors, config.norm_eps)
            turned = np.ascontiguousarray(y.transpose(1, 0, 2))
            return turned if rope is None or table is None or name == "v" else rope.rotate(turned, table)

        groups = config.heads // config.kv_heads
        query = heads("q", config.heads).reshape(config.kv_heads, groups * length, config.head_dim)
        scores: F32 = query @ heads("k", config.kv_heads).transpose(0, 2, 1)
        scores *= np.float32(config.attention_scale or 1 / math.sqrt(config.head_dim))
        scores = _capped(scores.reshape(config.heads, length, length), config.attention_cap)
        hidden = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        if config.is_windowed(layer):
            hidden += np.tril(np.full((length, length), -np.inf, np.float32), -config.window)
        scores += hidden
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: F32 = scores.reshape(config.kv_heads, groups * length, length) @ heads("v", config.kv_heads)
        mixed = mixed.reshape(config.heads, length, config.head_dim).transpose(1, 0, 2).reshape(length, -1)
        return linear(mixed, self._weights.need("o", layer), self._weights.get("o", layer, "bias"))


def _capped(scores: F32, cap: float) -> F32:
    """Scores held below `cap` in size; as they are where it is 0."""
    if not cap:
        return scores
    held: F32 = np.float32(cap) * np.tanh(scores / np.float32(cap))
    return held


def _rms_norm(x: F32, weight: F32, eps: float) -> F32:
    square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    scaled: F32 = x * (1 / np.sqrt(square + np.float32(eps))) * weight
    return scaled
