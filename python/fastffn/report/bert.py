"""BERT, RoBERTa and DistilBERT as sentence embedders in f32 NumPy: post-norm layers, mean pooling, unit length.

Devlin et al. 2018 (arXiv:1810.04805); pooled as Sentence-BERT does (Reimers and Gurevych 2019, arXiv:1908.10084).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import F32
from .errors import FileFormatError, UnsupportedModelError
from .layers import FfnFunction, FfnLayer, Weights, linear, reference_function
from .llama_config import ACTIVATIONS

# Our name → the file's, where {} is the layer.
_BERT = {
    "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings", "embedding_norm": "embeddings.LayerNorm",
    "q": "encoder.layer.{}.attention.self.query", "k": "encoder.layer.{}.attention.self.key",
    "v": "encoder.layer.{}.attention.self.value", "o": "encoder.layer.{}.attention.output.dense",
    "attn_norm": "encoder.layer.{}.attention.output.LayerNorm", "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense", "ffn_norm": "encoder.layer.{}.output.LayerNorm",
}  # fmt: skip
_DISTILBERT = {
    "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
    "token_type": "", "embedding_norm": "embeddings.LayerNorm",
    "q": "transformer.layer.{}.attention.q_lin", "k": "transformer.layer.{}.attention.k_lin",
    "v": "transformer.layer.{}.attention.v_lin", "o": "transformer.layer.{}.attention.out_lin",
    "attn_norm": "transformer.layer.{}.sa_layer_norm", "up": "transformer.layer.{}.ffn.lin1",
    "down": "transformer.layer.{}.ffn.lin2", "ffn_norm": "transformer.layer.{}.output_layer_norm",
}  # fmt: skip
_GGUF = {
    "word": "token_embd", "position": "position_embd", "token_type": "token_types", "embedding_norm": "token_embd_norm",
    "q": "blk.{}.attn_q", "k": "blk.{}.attn_k", "v": "blk.{}.attn_v", "o": "blk.{}.attn_output",
    "attn_norm": "blk.{}.attn_output_norm", "up": "blk.{}.ffn_up", "down": "blk.{}.ffn_down",
    "ffn_norm": "blk.{}.layer_output_norm",
}  # fmt: skip
# model_type → names, and how many position embeddings go before the first token's.
ENCODERS = {
    "bert": (_BERT, 0), "distilbert": (_DISTILBERT, 0),
    "roberta": (_BERT, 2), "xlm-roberta": (_BERT, 2), "camembert": (_BERT, 2),
}  # fmt: skip


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder, and where its file keeps things."""

    layers: int
    d_model: int
    heads: int
    norm_eps: float
    context: int
    activation: str
    names: dict[str, str]
    position_offset: int = 0

    @staticmethod
    def from_json(config: dict[str, Any]) -> BertConfig:
        """From a Hugging Face config.json."""
        kind = config.get("model_type")
        if kind not in ENCODERS:
            raise UnsupportedModelError(f"config.json: model_type {kind!r} is none of {', '.join(ENCODERS)}")
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute" or config.get("sinusoidal_pos_embds"):
            raise UnsupportedModelError(f"config.json: position_embedding_type {positions!r} is not supported")
        names, offset = ENCODERS[kind]
        if offset:
            offset = int(config.get("pad_token_id", 1)) + 1
        distil = kind == "distilbert"
        activation = config.get("activation" if distil else "hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            raise UnsupportedModelError(f"config.json: activation {activation!r} is not supported")
        try:
            return BertConfig(
                layers=int(config["n_layers" if distil else "num_hidden_layers"]),
                d_model=int(config["dim" if distil else "hidden_size"]),
                heads=int(config["n_heads" if distil else "num_attention_heads"]),
                norm_eps=float(config.get("layer_norm_eps", 1e-12)),
                context=int(config.get("max_position_embeddings", 512)) - offset,
                activation=ACTIVATIONS[activation],
                names=names,
                position_offset=offset,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"config.json is incomplete: {error!r}") from error

    @staticmethod
    def from_gguf(metadata: dict[str, Any]) -> BertConfig:
        """From a GGUF file of architecture "bert"."""
        try:
            return BertConfig(
                layers=int(metadata["bert.block_count"]),
                d_model=int(metadata["bert.embedding_length"]),
                heads=int(metadata["bert.attention.head_count"]),
                norm_eps=float(metadata["bert.attention.layer_norm_epsilon"]),
                context=int(metadata.get("bert.context_length", 512)),
                activation="gelu",
                names=_GGUF,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the GGUF file's model keys are incomplete: {error}") from error


class BertModel:
    """An encoder to run: ``embed(sentences, ffn)`` with any FfnFunction in every layer."""

    def __init__(self, weights: Weights, config: BertConfig) -> None:
        self.config = config
        self._weights = weights
        self._kept: dict[str, F32] = {}
        word = config.names["word"] + ".weight"
        found = [name for name in weights.names() if name == word or name.endswith("." + word)]
        if len(found) != 1:
            raise FileFormatError(f"the model has {len(found)} tensors *{word}, expected 1")
        self._prefix = found[0].removesuffix(word)
        self._check()

    def _check(self) -> None:
        """Every layer has what it needs, in the right shape, and nothing whose meaning is unknown."""
        names, d = self.config.names, self.config.d_model
        begins = self._prefix + names["up"].split("{}")[0]
        for name in self._weights.names():
            pattern = re.sub(r"^\d+", "{}", name.removeprefix(begins)).rpartition(".")[0]
            known = begins.removeprefix(self._prefix) + pattern in names.values()
            if name.startswith(begins) and not known:
                raise UnsupportedModelError(f"the model has a tensor {name!r}, whose meaning this report does not know")
        shapes: dict[str, tuple[int | None, ...]] = {
            **dict.fromkeys(("word", "position", "token_type"), (None, d)),
            **dict.fromkeys(("embedding_norm", "attn_norm", "ffn_norm"), (d,)),
            **dict.fromkeys(("q", "k", "v", "o"), (d, d)),
            "up": (None, d),
            "down": (d, None),
        }
        for name, shape in shapes.items():
            for layer in range(self.config.layers if "{}" in names[name] else 1):
                key = f"{self._prefix}{names[name].format(layer)}.weight"
                if not names[name]:
                    continue
                if key not in self._weights:
                    raise FileFormatError(f"the model has no tensor {key!r}")
                found = self._weights.shape(key)
                if len(found) != len(shape) or any(e not in (None, f) for e, f in zip(shape, found, strict=True)):
                    wanted = str(shape).replace("None", "any")
                    raise FileFormatError(f"tensor {key!r} has shape {found}, expected {wanted} from the configuration")

    def _tensor(self, name: str, layer: int | None = None, kind: str = "weight") -> F32:
        key = f"{self._prefix}{self.config.names[name].format(layer)}.{kind}"
        if key not in self._kept:
            self._kept[key] = self._weights.f32(key)
        return self._kept[key]

    def _dense(self, x: F32, name: str, layer: int) -> F32:
        return linear(x, self._tensor(name, layer), self._tensor(name, layer, "bias"))

    def _norm(self, x: F32, name: str, layer: int | None = None) -> F32:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        scaled: F32 = centred / spread * self._tensor(name, layer) + self._tensor(name, layer, "bias")
        return scaled

    def ffn_layer(self, layer: int) -> FfnLayer:
        """One layer's FFN weights as f32."""
        return FfnLayer(
            w_up=self._tensor("up", layer),
            w_down=self._tensor("down", layer),
            b_up=self._tensor("up", layer, "bias"),
            b_down=self._tensor("down", layer, "bias"),
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
        x: F32 = self._tensor("word")[ids] + self._tensor("position")[positions + self.config.position_offset]
        if self.config.names["token_type"]:
            x += self._tensor("token_type")[0]
        x = self._norm(x, "embedding_norm")
        for layer in range(self.config.layers):
            mixed = self._dense(self._attention(layer, x, spans), "o", layer)
            x = self._norm(x + mixed, "attn_norm", layer)
            if capture is not None:
                capture(layer, x)
            x = self._norm(x + run(layer, self.ffn_layer(layer), x), "ffn_norm", layer)
            if step is not None:
                step()
        pooled = np.stack([x[span].mean(axis=0) for span in spans])
        unit: F32 = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.float32(1e-12))
        return unit

    def _attention(self, layer: int, x: F32, spans: Sequence[slice]) -> F32:
        """Attention within each sentence, before the output projection."""
        heads = self.config.heads
        size = self.config.d_model // heads
        query, key, value = (self._dense(x, name, layer) for name in ("q", "k", "v"))
        out = np.empty_like(x)
        for span in spans:
            q, k, v = (part[span].reshape(-1, heads, size).transpose(1, 0, 2) for part in (query, key, value))
            scores: F32 = q @ k.transpose(0, 2, 1) * np.float32(1 / math.sqrt(size))
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            out[span] = (scores @ v).transpose(1, 0, 2).reshape(-1, heads * size)
        return out
