"""BERT encoders as sentence embedders in f32 NumPy: post-norm layers, GELU with biases, mean pooling, unit length.

Devlin et al. 2018 (arXiv:1810.04805); pooled as Sentence-BERT does (Reimers and Gurevych 2019, arXiv:1908.10084).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import F32
from .errors import FileFormatError
from .layers import FfnFunction, FfnLayer, Weights, linear, reference_function


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder."""

    layers: int
    d_model: int
    heads: int
    norm_eps: float
    context: int
    activation: str

    @staticmethod
    def from_json(config: dict[str, Any]) -> BertConfig:
        """From a Hugging Face config.json."""
        if config.get("model_type") != "bert":
            raise FileFormatError(f"config.json: model_type {config.get('model_type')!r} is not bert")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise FileFormatError(f"config.json: position_embedding_type {config['position_embedding_type']!r}")
        activations = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
        try:
            return BertConfig(
                layers=int(config["num_hidden_layers"]),
                d_model=int(config["hidden_size"]),
                heads=int(config["num_attention_heads"]),
                norm_eps=float(config.get("layer_norm_eps", 1e-12)),
                context=int(config.get("max_position_embeddings", 512)),
                activation=activations[config.get("hidden_act", "gelu")],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"config.json is incomplete: {error!r}") from error


class BertModel:
    """An encoder to run: ``embed(sentences, ffn)`` with any FfnFunction in every layer."""

    def __init__(self, weights: Weights, config: BertConfig) -> None:
        self.config = config
        self._weights = weights
        self._kept: dict[str, F32] = {}
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""

    def _tensor(self, name: str) -> F32:
        if name not in self._kept:
            self._kept[name] = self._weights.f32(self._prefix + name)
        return self._kept[name]

    def _dense(self, x: F32, name: str) -> F32:
        return linear(x, self._tensor(name + ".weight"), self._tensor(name + ".bias"))

    def _norm(self, x: F32, name: str) -> F32:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        scaled: F32 = centred / spread * self._tensor(name + ".weight") + self._tensor(name + ".bias")
        return scaled

    def ffn_layer(self, layer: int) -> FfnLayer:
        """One layer's FFN weights as f32."""
        base = f"encoder.layer.{layer}"
        return FfnLayer(
            w_up=self._tensor(f"{base}.intermediate.dense.weight"),
            w_down=self._tensor(f"{base}.output.dense.weight"),
            b_up=self._tensor(f"{base}.intermediate.dense.bias"),
            b_down=self._tensor(f"{base}.output.dense.bias"),
            activation=self.config.activation,
            index=layer,
        )

    def embed(
        self,
        sentences: Sequence[Sequence[int]],
        ffn: FfnFunction | None = None,
        capture: Callable[[int, F32], None] | None = None,
        step: Callable[[], None] | None = None,
    ) -> F32:
        """Unit vectors [sentences, d_model] of token ids. Sentences run packed: no padding, each attends to itself.

        `capture(layer, x)` sees every layer's FFN input [tokens, d_model]; `step` is called after each layer.
        """
        run = ffn or reference_function()
        lengths = [len(sentence) for sentence in sentences]
        if not lengths or min(lengths) < 1 or max(lengths) > self.config.context:
            raise ValueError(f"embed: sentence lengths {lengths}, expected 1 to {self.config.context} tokens each")
        ends = np.cumsum(lengths)
        spans = [slice(int(end) - length, int(end)) for end, length in zip(ends, lengths, strict=True)]
        ids = np.concatenate([np.asarray(sentence, np.int64) for sentence in sentences])
        positions = np.concatenate([np.arange(length) for length in lengths])
        x: F32 = (
            self._tensor("embeddings.word_embeddings.weight")[ids]
            + self._tensor("embeddings.position_embeddings.weight")[positions]
            + self._tensor("embeddings.token_type_embeddings.weight")[0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(self.config.layers):
            base = f"encoder.layer.{layer}"
            mixed = self._dense(self._attention(base, x, spans), f"{base}.attention.output.dense")
            x = self._norm(x + mixed, f"{base}.attention.output.LayerNorm")
            if capture is not None:
                capture(layer, x)
            x = self._norm(x + run(layer, self.ffn_layer(layer), x), f"{base}.output.LayerNorm")
            if step is not None:
                step()
        pooled = np.stack([x[span].mean(axis=0) for span in spans])
        unit: F32 = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.float32(1e-12))
        return unit

    def _attention(self, base: str, x: F32, spans: Sequence[slice]) -> F32:
        """Attention within each sentence, before the output projection."""
        heads = self.config.heads
        size = self.config.d_model // heads
        query, key, value = (self._dense(x, f"{base}.attention.self.{name}") for name in ("query", "key", "value"))
        out = np.empty_like(x)
        for span in spans:
            q, k, v = (part[span].reshape(-1, heads, size).transpose(1, 0, 2) for part in (query, key, value))
            scores: F32 = q @ k.transpose(0, 2, 1) * np.float32(1 / math.sqrt(size))
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            out[span] = (scores @ v).transpose(1, 0, 2).reshape(-1, heads * size)
        return out
