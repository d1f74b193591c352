"""Where a Llama-like file keeps what: Hugging Face's names and GGUF's, apart or fused (Phi-3), and a check of all of it."""

from __future__ import annotations

import re

import numpy as np

from .arrays import F32
from .errors import FileFormatError, UnsupportedModelError
from .layers import Weights
from .llama_config import LlamaConfig

# Dequantised weights are kept until this many bytes; those of a larger model are dequantised anew at each use.
_KEEP_BYTES = 4 << 30

# Our name → the file's within a layer.
_GGUF_LAYER = {
    "attn_norm": "attn_norm", "attn_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm", "ffn_post_norm": "post_ffw_norm",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "qkv": "attn_qkv", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "gate_up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
_HF_LAYER = {
    "attn_norm": "input_layernorm", "attn_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "ffn_post_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj",
}  # fmt: skip
# Tensors that files carry and no one needs.
_IGNORED = re.compile(r"rotary_emb\.inv_freq|\.masked_bias$|rope_factors_long|rope_freqs")


class LlamaWeights:
    """``get(name, layer)``: a tensor as f32 by our name, cut out of a fused one where the file fuses; None if absent."""

    def __init__(self, weights: Weights, config: LlamaConfig) -> None:
        self._weights = weights
        self._config = config
        self._kept: dict[str, F32] = {}
        self._kept_bytes = 0
        self._gguf = "token_embd.weight" in weights
        names = dict(_GGUF_LAYER if self._gguf else _HF_LAYER)
        prefix = ""
        if not self._gguf:
            found = [name for name in weights.names() if name.endswith("embed_tokens.weight")]
            if len(found) != 1:
                raise FileFormatError(f"the model has {len(found)} tensors *.embed_tokens.weight, expected 1")
            prefix = found[0].removesuffix("embed_tokens.weight")
            if f"{prefix}layers.0.pre_feedforward_layernorm.weight" not in weights and not config.post_norms_only:
                # Two norms per layer, not four: the second is the one in front of the FFN.
                names["ffn_norm"] = names.pop("attn_post_norm")
        self._layer_prefix = "blk.{}." if self._gguf else prefix + "layers.{}."
        self._names = names
        self._global = {
            "embedding": "token_embd.weight" if self._gguf else prefix + "embed_tokens.weight",
            "head": "output.weight" if self._gguf else self._head_name(prefix),
            "final_norm": "output_norm.weight" if self._gguf else prefix + "norm.weight",
        }
        fused = f"{self._layer_prefix.format(0)}{names['gate_up']}.weight"
        gate = f"{self._layer_prefix.format(0)}{names['gate']}.weight"
        self._fused_ffn = fused in weights and gate not in weights
        self._check()

    def _head_name(self, prefix: str) -> str:
        before = prefix.removesuffix("model.")
        return next((n for n in (before + "lm_head.weight", "lm_head.weight") if n in self._weights), "lm_head.weight")

    def name_of(self, name: str, layer: int | None = None, kind: str = "weight") -> str:
        """The file's name of a tensor."""
        if layer is None:
            return self._global[name]
        return f"{self._layer_prefix.format(layer)}{self._names.get(name, '-')}.{kind}"

    def get(self, name: str, layer: int | None = None, kind: str = "weight") -> F32 | None:
        """The tensor as f32, or None where the file has none."""
        if name in ("q", "k", "v") and self.name_of(name, layer, kind) not in self._weights:
            return self._rows(self._read(self.name_of("qkv", layer, kind)), self._qkv_rows(name))
        if name in ("gate", "up") and self._fused_ffn:
            both = self._read(self.name_of("gate_up", layer, kind))
            half = 0 if both is None else both.shape[0] // 2
            return self._rows(both, slice(0, half) if name == "gate" else slice(half, None))
        return self._read(self.name_of(name, layer, kind))

    def need(self, name: str, layer: int | None = None) -> F32:
        """`get`, where absence is an error."""
        found = self.get(name, layer)
        if found is None:
            raise FileFormatError(f"the model has no tensor {self.name_of(name, layer)!r}")
        return found

    def norm(self, name: str, layer: int | None = None) -> F32 | None:
        """A norm's factors, whatever the file counts them from."""
        found = self.get(name, layer)
        return found if found is None or not self._config.norm_offset else found + np.float32(self._config.norm_offset)

    @staticmethod
    def _rows(fused: F32 | None, rows: slice) -> F32 | None:
        return None if fused is None else fused[rows]

    def _qkv_rows(self, name: str) -> slice:
        q, kv = (heads * self._config.head_dim for heads in (self._config.heads, self._config.kv_heads))
        return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[name]

    def _read(self, key: str) -> F32 | None:
        if key in self._kept:
            return self._kept[key]
        if key not in self._weights:
            return None
        values = self._weights.f32(key)
        if self._kept_bytes + values.nbytes <= _KEEP_BYTES:
            self._kept[key] = values
            self._kept_bytes += values.nbytes
        return values

    def _check(self) -> None:
        """Every layer has what it needs, in the right shape, and nothing whose meaning is unknown."""
        config = self._config
        d, q, kv = config.d_model, config.heads * config.head_dim, config.kv_heads * config.head_dim
        if config.heads % config.kv_heads or config.heads < config.kv_heads:
            raise FileFormatError(f"the model has {config.heads} heads and {config.kv_heads} key heads: no multiple")
        begins = self._layer_prefix.split("{}")[0]
        for name in self._weights.names():
            inside = re.fullmatch(r"\d+\.(.+)\.(weight|bias)", name.removeprefix(begins))
            known = inside is not None and inside[1] in self._names.values()
            if name.startswith(begins) and not known and not _IGNORED.search(name):
                raise UnsupportedModelError(f"the model has a tensor {name!r}, whose meaning this report does not know")
        vocabulary = self._expect("embedding", None, (None, d))[0]
        if self.name_of("head") in self._weights:
            self._expect("head", None, (vocabulary, d))
        self._expect("final_norm", None, (d,))
        for layer in range(config.layers):
            names = ("attn_post_norm", "ffn_post_norm") if config.post_norms_only else ("attn_norm", "ffn_norm")
            for name in names:
                self._expect(name, layer, (d,))
            if self.name_of("qkv", layer) in self._weights:
                self._expect("qkv", layer, (q + 2 * kv, d))
            else:
                for name, rows in (("q", q), ("k", kv), ("v", kv)):
                    self._expect(name, layer, (rows, d))
            self._expect("o", layer, (d, q))
            d_ff = self._expect("down", layer, (d, None))[1]
            if self._fused_ffn:
                self._expect("gate_up", layer, (2 * d_ff, d))
            else:
                self._expect("gate", layer, (d_ff, d))
                self._expect("up", layer, (d_ff, d))

    def _expect(self, name: str, layer: int | None, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        key = self.name_of(name, layer)
        if key not in self._weights:
            raise FileFormatError(f"the model has no tensor {key!r}")
        found = self._weights.shape(key)
        if len(found) != len(shape) or any(e is not None and e != f for e, f in zip(shape, found, strict=True)):
            raise FileFormatError(
                f"tensor {key!r} has shape {found}, expected {shape}".replace("None", "any") + " from the configuration"
            )
        return found
