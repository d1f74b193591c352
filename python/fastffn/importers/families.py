"""What each model family calls its tensors, and how it routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import fastffn as ff
from fastffn.importers.forms import Array, Tensors, gated_stacks, split_gate_up
from fastffn.importers.layer import MoeLayer

# transformers' names of activations that are not ours.
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "swish": "silu", "linear": "identity"}

_MISSING = object()


class Config:
    """A model's configuration: a config.json as a dict, or transformers' object."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def get(self, *names: str, default: Any = _MISSING) -> Any:
        """The value under the first of these names that is set."""
        for name in names:
            value = self.source.get(name) if isinstance(self.source, Mapping) else getattr(self.source, name, None)
            if value is not None:
                return value
        if default is _MISSING:
            raise ValueError(f"load_moe: the config has no '{names[0]}'")
        return default


class Loader:
    """One layer on its way: the tensors, the config and the format."""

    def __init__(self, tensors: Tensors, config: Config, format: str) -> None:
        self.t = tensors
        self.config = config
        self.format = format
        self.d_model = int(config.get("hidden_size"))

    def activation(self) -> str:
        name = str(self.config.get("hidden_act", default="silu"))
        name = ACTIVATIONS.get(name, name)
        if name not in ff.activations():
            raise self.t.error(f"hidden_act '{name}' is none of {', '.join(ff.activations())}")
        return name

    def shared(self, name: str, d_ff: int, gate: Array = None) -> ff.SharedExperts:
        parts: dict[str, Array] = {}
        for part, shape in (
            ("gate", (d_ff, self.d_model)),
            ("up", (d_ff, self.d_model)),
            ("down", (self.d_model, d_ff)),
        ):
            source = f"{name}.{part}_proj"
            weight = self.t.check(f"{source}.weight", self.t.get(f"{source}.weight"), *shape)
            parts[f"w_{part}"] = ff.pack(weight, self.format)
            if f"{source}.bias" in self.t:
                parts[f"b_{part}"] = self.t.get(f"{source}.bias")
        return ff.SharedExperts(**parts, gate=gate)

    def layer(self, experts: int, d_ff: int, router: str, **options: Any) -> MoeLayer:
        """The layer of E experts, from their stacks; `options` are the rest of MoeLayer's."""
        if experts < 1:
            raise self.t.error(f"the config has {experts} experts, expected 1 or more")
        form = {name: options.pop(name) for name in ("transposed", "interleaved") if name in options}
        stacks = gated_stacks(self.t, experts, self.d_model, d_ff, **form)
        weight = self.t.check(router, self.t.get(router), experts, self.d_model)
        k = int(self.config.get("num_experts_per_tok"))
        if not 1 <= k <= experts:
            raise self.t.error(f"num_experts_per_tok is {k}, expected 1 to {experts}")
        options.setdefault("activation", self.activation())
        packed = {name: ff.pack(w, self.format) for name, w in stacks.items()}
        return MoeLayer(router=ff.pack(weight, "f32"), **packed, k=k, family=self.t.family, **options)


def _mixtral(load: Loader) -> MoeLayer:
    experts = int(load.config.get("num_local_experts", "num_experts"))
    return load.layer(experts, int(load.config.get("intermediate_size")), "gate.weight", routing={"renormalize": True})


def _qwen(load: Loader) -> MoeLayer:
    """Qwen2-MoE, Qwen3-MoE, OLMoE: softmax over all experts; Qwen2-MoE has a shared expert with a gate."""
    config = load.config
    shared = None
    if "shared_expert.up_proj.weight" in load.t:
        gate = load.t.get("shared_expert_gate.weight")
        load.t.check("shared_expert_gate.weight", gate, 1, load.d_model)
        shared = load.shared("shared_expert", int(config.get("shared_expert_intermediate_size")), gate)
    return load.layer(
        int(config.get("num_experts", "num_local_experts")),
        int(config.get("moe_intermediate_size", "intermediate_size")),
        "gate.weight",
        routing={"renormalize": bool(config.get("norm_topk_prob", default=False))},
        shared=shared,
    )


def _deepseek_shared(load: Loader) -> ff.SharedExperts | None:
    count = int(load.config.get("n_shared_experts", default=0))
    return load.shared("shared_experts", count * int(load.config.get("moe_intermediate_size"))) if count else None


def _deepseek_v2(load: Loader) -> MoeLayer:
    config = load.config
    method = config.get("topk_method", default="greedy")
    if config.get("norm_topk_prob", default=False):
        raise load.t.error("norm_topk_prob is set, which implementations of this family read in different ways")
    if config.get("scoring_func", default="softmax") != "softmax":
        raise load.t.error(f"scoring_func is '{config.get('scoring_func')}', expected 'softmax'")
    routing: dict[str, Any] = {"scale": float(config.get("routed_scaling_factor", default=1.0))}
    if method == "group_limited_greedy":
        routing |= {"groups": int(config.get("n_group")), "topk_groups": int(config.get("topk_group"))}
    elif method != "greedy":
        raise load.t.error(f"topk_method is '{method}', expected 'greedy' or 'group_limited_greedy'")
    return load.layer(
        int(config.get("n_routed_experts")),
        int(config.get("moe_intermediate_size")),
        "gate.weight",
        routing=routing,
        shared=_deepseek_shared(load),
    )


def _deepseek_v3(load: Loader) -> MoeLayer:
    config = load.config
    experts = int(config.get("n_routed_experts"))
    method, scoring = config.get("topk_method", default="noaux_tc"), config.get("scoring_func", default="sigmoid")
    if method != "noaux_tc" or scoring != "sigmoid":
        raise load.t.error(f"topk_method is '{method}' and scoring_func '{scoring}', expected 'noaux_tc' and 'sigmoid'")
    correction = load.t.get("gate.e_score_correction_bias")
    return load.layer(
        experts,
        int(config.get("moe_intermediate_size")),
        "gate.weight",
        routing={
            "score": "sigmoid",
            "correction_bias": load.t.check("gate.e_score_correction_bias", correction, experts),
            "groups": int(config.get("n_group", default=1)),
            "topk_groups": int(config.get("topk_group", default=1)),
            "group_score": "top2",
            "renormalize": bool(config.get("norm_topk_prob", default=True)),
            "scale": float(config.get("routed_scaling_factor", default=1.0)),
        },
        shared=_deepseek_shared(load),
    )


def _gpt_oss(load: Loader) -> MoeLayer:
    config, t = load.config, load.t
    experts, d_ff = int(config.get("num_local_experts", "num_experts")), int(config.get("intermediate_size"))
    limit, alpha = float(config.get("swiglu_limit", default=7.0)), float(config.get("swiglu_alpha", default=1.702))
    if (limit, alpha) != (7.0, 1.702):
        raise t.error(f"swiglu_limit is {limit} and swiglu_alpha {alpha}, expected 7.0 and 1.702")
    biases = t.check("experts.gate_up_proj_bias", t.get("experts.gate_up_proj_bias"), experts, 2 * d_ff)
    b_gate, b_up = split_gate_up(biases, interleaved=True)
    b_down = t.check("experts.down_proj_bias", t.get("experts.down_proj_bias"), experts, load.d_model)
    return load.layer(
        experts,
        d_ff,
        "router.weight",
        transposed=True,
        interleaved=True,
        activation="swiglu_clamped",
        routing={"score": "topk_softmax"},
        router_bias=t.check("router.bias", t.get("router.bias"), experts),
        b_gate=b_gate,
        b_up=b_up,
        b_down=b_down,
    )


def _llama4(load: Loader) -> MoeLayer:
    d_ff = int(load.config.get("intermediate_size"))
    return load.layer(
        int(load.config.get("num_local_experts")),
        d_ff,
        "router.weight",
        transposed=True,
        routing={"score": "sigmoid"},
        shared=load.shared("shared_expert", d_ff),
        weights_on_input=True,
    )


_FAMILIES: dict[str, Callable[[Loader], MoeLayer]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "olmoe": _qwen,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "llama4_text": _llama4,
}


def families() -> tuple[str, ...]:
    """The values of ``model_type`` that :func:`load_moe` reads."""
    return tuple(_FAMILIES)


def load_moe(tensors: Mapping[str, Any], config: Any, *, prefix: str = "", format: str = "bf16") -> MoeLayer:
    """The mixture-of-experts layer under ``prefix``, packed.

    Args:
        tensors: arrays by name, as a checkpoint or a module's ``state_dict()`` has them: NumPy or torch; others are left
            alone. Experts as one tensor each, or fused: concatenated, interleaved, transposed, in MXFP4 blocks, as the
            family has them. Names inside the layer are the family's ("gate.weight", "experts.0.w1.weight", …).
        config: the model's configuration: a dict of its config.json, or transformers' object. ``model_type`` names the
            family; see :func:`families`.
        prefix: what the layer's names begin with, such as "model.layers.3.mlp." or "model.layers.3.block_sparse_moe.".
        format: of experts and shared experts; see :func:`fastffn.formats`. The router stays in f32.

    Raises:
        ValueError: an unknown family; tensors that are missing or do not have the config's shapes; biases and options of a
            router that this family's code here does not have; float8 weights.
    """
    settings = Config(config)
    family = str(settings.get("model_type"))
    if family not in _FAMILIES:
        raise ValueError(f"load_moe: model_type '{family}' is not known; expected one of {', '.join(_FAMILIES)}")
    layer_tensors = Tensors(tensors, prefix, family)
    layer = _FAMILIES[family](Loader(layer_tensors, settings, format))
    layer_tensors.check_biases()
    return layer
