"""Models for the tests of fastffn.torch.replace: a toy with a few layers that needs torch alone, and tiny ones of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

VOCABULARY = 48
WIDTH = 32


class Mlp(nn.Module):
    """A gated layer, as Llama writes it."""

    def __init__(self, d_model: int = WIDTH, d_ff: int = 56, act: Any = None, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self.act_fn = nn.SiLU() if act is None else act

    def forward(self, x: Any) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A residual layer around an Mlp."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = mlp

    def forward(self, x: Any) -> Any:
        return x + self.mlp(self.norm(x))


class Toy(nn.Module):
    """Token ids to logits: an embedding, blocks, and a head that may share the embedding's weight."""

    def __init__(self, layers: int = 3, tied: bool = False, make: Any = Mlp) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block(make()) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def toy(seed: int = 0, dtype: Any = torch.float32, **options: Any) -> Any:
    """A Toy with weights of its own, in evaluation mode."""
    torch.manual_seed(seed)
    return Toy(**options).to(dtype).eval()


def token_ids(rows: int = 2, tokens: int = 7, seed: int = 0) -> Any:
    """Random ids that both kinds of models know."""
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A tiny model of transformers: the names of its class and configuration, and what they get."""

    model: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    layers: int = 2  # how many feed-forward layers it has
    family: str = "gated"
    generates: bool = True


_SMALL = {
    "hidden_size": WIDTH, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
_DEEPSEEK = _MOE | {
    "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 8,
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip

CASES = {
    "llama": Case("LlamaForCausalLM", "LlamaConfig"),
    "llama with biases": Case("LlamaForCausalLM", "LlamaConfig", {"mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": Case("MistralForCausalLM", "MistralConfig"),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config"),
    "gemma": Case("GemmaForCausalLM", "GemmaConfig"),
    "gemma2": Case("Gemma2ForCausalLM", "Gemma2Config"),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig"),
    "phi3": Case("Phi3ForCausalLM", "Phi3Config", family="fused gated"),
    "phi": Case("PhiForCausalLM", "PhiConfig", family="plain"),
    "gpt2": Case("GPT2LMHeadModel", "GPT2Config", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_inner": 56}, family="plain"),
    "bert": Case("BertModel", "BertConfig", family="bert", generates=False),
    "roberta": Case("RobertaModel", "RobertaConfig", family="bert", generates=False),
    "distilbert": Case(
        "DistilBertModel", "DistilBertConfig", {"dim": WIDTH, "hidden_dim": 56, "n_layers": 2, "n_heads": 4},
        family="plain", generates=False,
    ),
    "mixtral": Case("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4}, family="experts"),
    "olmoe": Case("OlmoeForCausalLM", "OlmoeConfig", {"num_experts": 8, "num_experts_per_tok": 3}, family="experts"),
    "qwen2-moe": Case(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", _MOE | {"num_experts": 4, "shared_expert_intermediate_size": 40}, 4, "experts"
    ),
    "qwen3-moe": Case("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _MOE | {"num_experts": 8}, family="experts"),
    "deepseek-v2": Case("DeepseekV2ForCausalLM", "DeepseekV2Config", _DEEPSEEK, 3, "gated"),
    "deepseek-v3": Case("DeepseekV3ForCausalLM", "DeepseekV3Config", _DEEPSEEK, 3, "gated"),
    "gpt-oss": Case("GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4}, family="experts"),
    "bitnet, not quantised": Case("BitNetForCausalLM", "BitNetConfig", {"hidden_act": "relu2"}),
}  # fmt: skip


def transformer(name: str, seed: int = 0, dtype: Any = torch.float32) -> Any:
    """The model of a case, with random weights, in evaluation mode. Skips without transformers 5."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    case = CASES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, case.config)(**{**_SMALL, **case.options})
    model = getattr(transformers, case.model)(config).to(dtype).eval()
    for parameter in model.parameters():  # transformers' own are so small that layers hardly matter
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape).to(dtype) * parameter.shape[-1] ** -0.5
    model.tie_weights()
    return model


def outputs(model: Any, ids: Any) -> Any:
    """Logits, or hidden states of models without a head; f32."""
    with torch.no_grad():
        y = model(ids)
    if not isinstance(y, torch.Tensor):
        y = y.logits if hasattr(y, "logits") else y.last_hidden_state
    return y.float()


def difference(y: Any, expected: Any) -> float:
    """Relative."""
    return float((y - expected).norm() / expected.norm())
