"""What sets the members of the Llama family apart, read from a config.json or from a GGUF file's keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import F64
from .errors import FileFormatError, UnsupportedModelError
from .rope import Rope

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip
# Hugging Face's model types, and what their configurations leave out.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "smollm3": {},
    "granite": {},
    "olmo2": {},
    "gemma": {"head_dim": 256},
    "gemma2": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
    },
}
# GGUF architectures; those of the first line keep the pairs of q and k rows next to each other.
_GGUF_PAIRED = ("llama", "smollm3", "granite")
_GGUF_FAMILIES = (*_GGUF_PAIRED, "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2")


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model. Everything below `context` is what some members of the family do and Llama does not."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    norm_eps: float
    context: int
    activation: str = "silu"
    norm_offset: float = 0.0  # Gemma's files hold w of a factor 1 + w
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float | None = None  # of q · k; by default 1 / sqrt(head_dim)
    attention_cap: float = 0.0  # scores become cap · tanh(score / cap)
    logit_cap: float = 0.0
    post_norms_only: bool = False  # OLMo 2: what a block adds is normalised, not what it reads
    window: int = 0  # a token sees so many before it, itself among them, in the layers of `windowed`
    windowed: tuple[bool, ...] = ()
    local_rope: Rope | None = None  # of the layers of `windowed`
    unrotated: tuple[bool, ...] = ()  # layers without positions

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer's tokens see only those near by."""
        return bool(self.window) and layer < len(self.windowed) and self.windowed[layer]

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary positions of a layer, if it has any."""
        if layer < len(self.unrotated) and self.unrotated[layer]:
            return None
        return self.local_rope if self.local_rope is not None and self.is_windowed(layer) else self.rope

    @staticmethod
    def from_json(config: dict[str, Any]) -> LlamaConfig:
        """From a Hugging Face config.json; of a model for text and images, the part for text."""
        if config.get("model_type") not in _FAMILIES and isinstance(config.get("text_config"), dict):
            config = config["text_config"]
        kind = config.get("model_type")
        if kind not in _FAMILIES:
            raise UnsupportedModelError(f"config.json: model_type {kind!r} is not supported")
        try:
            return _from_json(kind, {**_FAMILIES[kind], **{k: v for k, v in config.items() if v is not None}})
        except FileFormatError:
            raise
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise FileFormatError(f"config.json is incomplete: {error!r}") from error

    @staticmethod
    def from_gguf(metadata: dict[str, Any], factors: Callable[[str], F64 | None] = lambda name: None) -> LlamaConfig:
        """From a GGUF file's keys; `factors(name)` reads a tensor of rope divisors where the file has one."""
        arch = metadata.get("general.architecture")
        if arch not in _GGUF_FAMILIES:
            raise UnsupportedModelError(f"GGUF architecture {arch!r} is not supported")
        if metadata.get(f"{arch}.expert_count"):
            raise UnsupportedModelError("GGUF models with experts (MoE) are not supported")
        try:
            return _from_gguf(arch, metadata, factors)
        except FileFormatError:
            raise
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise FileFormatError(f"the GGUF file's model keys are incomplete: {error}") from error


def _from_json(kind: str, config: dict[str, Any]) -> LlamaConfig:
    layers, heads, d_model = (int(config[f]) for f in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    head_dim = int(config.get("head_dim") or d_model // heads)
    gemma = kind.startswith("gemma")
    activation = str(config.get("hidden_activation") or config.get("hidden_act", "silu"))
    if gemma:  # early files say "gelu" and mean the other
        activation = "gelu_pytorch_tanh"
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(f"config.json: hidden_act {activation!r} is not supported")
    scalar = config.get("query_pre_attn_scalar")
    context = int(config.get("max_position_embeddings", 2048))
    windowed = _windowed_of(kind, config, layers)
    rope, local = _ropes(kind, config, head_dim)
    rotated = config.get("no_rope_layers") or []
    return LlamaConfig(
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        rope=rope,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        context=min(context, int(config.get("original_max_position_embeddings") or context)),
        activation=ACTIVATIONS[activation],
        norm_offset=1.0 if gemma else 0.0,
        embedding_scale=d_model**0.5 if gemma else float(config.get("embedding_multiplier", 1.0)),
        residual_scale=float(config.get("residual_multiplier", 1.0)),
        logit_scale=1 / float(config.get("logits_scaling", 1.0)),
        attention_scale=float(scalar) ** -0.5 if scalar else config.get("attention_multiplier"),
        attention_cap=float(config.get("attn_logit_softcapping", 0.0)),
        logit_cap=float(config.get("final_logit_softcapping", 0.0)),
        post_norms_only=kind == "olmo2",
        window=int(config.get("sliding_window", 0)) if any(windowed) else 0,
        windowed=windowed,
        local_rope=local,
        unrotated=tuple(not turns for turns in rotated) if kind == "smollm3" else (),
    )


def _windowed_of(kind: str, config: dict[str, Any], layers: int) -> tuple[bool, ...]:
    if "layer_types" in config:
        return tuple(name == "sliding_attention" for name in config["layer_types"])
    if kind in ("mistral", "phi3"):
        return (True,) * layers
    if kind == "gemma2":
        return tuple(layer % 2 == 0 for layer in range(layers))
    if kind == "gemma3_text":
        return tuple((layer + 1) % int(config["sliding_window_pattern"]) != 0 for layer in range(layers))
    if config.get("use_sliding_window"):
        return tuple(layer >= int(config.get("max_window_layers", 0)) for layer in range(layers))
    return ()


def _ropes(kind: str, config: dict[str, Any], head_dim: int) -> tuple[Rope, Rope | None]:
    """The rope of most layers, and the one of windowed layers where they have their own."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    original = config.get("original_max_position_embeddings")
    longest = config.get("max_position_embeddings", 2048)

    def rope(parameters: dict[str, Any], default: float) -> Rope:
        base = float(parameters.get("rope_theta") or default)
        part = float(parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
        first = parameters.get("original_max_position_embeddings") or original or longest
        scaling = {**parameters, "original_max_position_embeddings": first, "original": first, "longest": longest}
        return Rope(base, 2 * (int(head_dim * part) // 2), scaling=scaling)

    default = float(config.get("rope_theta") or 1e4)
    if "full_attention" in given:
        return rope(given["full_attention"], default), rope(given.get("sliding_attention") or {}, 1e4)
    local = rope({}, float(config.get("rope_local_base_freq") or 1e4)) if kind == "gemma3_text" else None
    return rope(given, default), local


def _from_gguf(arch: str, metadata: dict[str, Any], factors: Callable[[str], F64 | None]) -> LlamaConfig:
    def key(name: str, default: Any = None) -> Any:
        return metadata[f"{arch}.{name}"] if default is None else metadata.get(f"{arch}.{name}", default)

    layers, heads, d_model = (int(key(f)) for f in ("block_count", "attention.head_count", "embedding_length"))
    head_dim = int(key("attention.key_length", d_model // heads))
    context = int(key("context_length", 2048))
    gemma = arch.startswith("gemma")
    scaling: dict[str, Any] = {
        "rope_type": key("rope.scaling.type", "none"),
        "factor": key("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": key("rope.scaling.original_context_length", context),
    }
    divisors = factors("rope_freqs.weight")
    if arch == "phi3":
        divisors = factors("rope_factors_short.weight")
        scaling = {"rope_type": "none", "attention_factor": key("rope.scaling.attn_factor", 1.0)}
        context = min(context, int(key("rope.scaling.original_context_length", context)))
    dims = int(key("rope.dimension_count", head_dim))
    paired = arch in _GGUF_PAIRED
    rope = Rope(float(key("rope.freq_base", 1e6 if arch == "gemma3" else 1e4)), dims, paired, scaling, divisors)
    window = int(key("attention.sliding_window", 4096)) if arch in ("gemma2", "gemma3") else 0
    pattern = 2 if arch == "gemma2" else 6
    by_width = _scales_by_width(arch, layers)
    scale = key("attention.scale", 0.0) or ((d_model / heads) ** -0.5 if by_width else None)
    return LlamaConfig(
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=int(key("attention.head_count_kv", heads)),
        head_dim=head_dim,
        rope=rope,
        norm_eps=float(key("attention.layer_norm_rms_epsilon")),
        context=context,
        activation="gelu_tanh" if gemma else "silu",
        embedding_scale=d_model**0.5 if gemma else float(key("embedding_scale", 1.0)),
        residual_scale=float(key("residual_scale", 1.0)),
        logit_scale=1 / float(key("logit_scale", 1.0)),
        attention_scale=None if scale is None else float(scale),
        attention_cap=float(key("attn_logit_softcapping", 50.0)) if arch == "gemma2" else 0.0,
        logit_cap=float(key("final_logit_softcapping", 30.0)) if arch == "gemma2" else 0.0,
        post_norms_only=arch == "olmo2",
        window=window,
        windowed=tuple((layer + 1) % pattern != 0 for layer in range(layers)) if window else (),
        local_rope=Rope(1e4, dims) if arch == "gemma3" else None,
        unrotated=tuple((layer + 1) % 4 == 0 for layer in range(layers)) if arch == "smollm3" else (),
    )


def _scales_by_width(arch: str, layers: int) -> bool:
    """Whether it is one of the two Gemmas (27B) that scale scores by width over heads; their files do not say so."""
    return (arch, layers) in (("gemma2", 46), ("gemma3", 62))


def divisors_of(values: np.ndarray[Any, Any]) -> F64:
    """A tensor of rope factors as `Rope` takes them."""
    return np.asarray(values, np.float64).reshape(-1)
