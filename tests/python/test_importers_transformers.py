"""Imported layers against the blocks of transformers themselves: random weights, float64 originals, f32 packed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from fastffn import importers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

COMMON = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "vocab_size": 16,
}
V2 = {"n_routed_experts": 12, "moe_intermediate_size": 40, "n_shared_experts": 2, "routed_scaling_factor": 4.0}

# family: (block, config of the family's own, names of one expert's gate, up and down on disk)
BLOCKS: dict[str, tuple[str, str, dict[str, Any], tuple[str, str, str] | None]] = {
    "mixtral": (
        "mixtral",
        "MixtralSparseMoeBlock",
        {"num_local_experts": 6, "intermediate_size": 40},
        ("w1", "w3", "w2"),
    ),
    "qwen2_moe": (
        "qwen2_moe",
        "Qwen2MoeSparseMoeBlock",
        {"num_experts": 7, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 72},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "qwen2_moe, renormalized": (
        "qwen2_moe",
        "Qwen2MoeSparseMoeBlock",
        {"num_experts": 7, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 72, "norm_topk_prob": True},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "qwen3_moe": (
        "qwen3_moe",
        "Qwen3MoeSparseMoeBlock",
        {"num_experts": 16, "moe_intermediate_size": 40, "norm_topk_prob": True},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "olmoe": (
        "olmoe",
        "OlmoeSparseMoeBlock",
        {"num_experts": 16, "intermediate_size": 40, "norm_topk_prob": False},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "deepseek_v2, greedy": (
        "deepseek_v2",
        "DeepseekV2Moe",
        {**V2, "topk_method": "greedy"},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "deepseek_v2, groups": (
        "deepseek_v2",
        "DeepseekV2Moe",
        {**V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "deepseek_v3": (
        "deepseek_v3",
        "DeepseekV3MoE",
        {**V2, "n_group": 4, "topk_group": 2, "norm_topk_prob": True},
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "gpt_oss": ("gpt_oss", "GptOssMLP", {"num_local_experts": 8, "intermediate_size": 40}, None),
    "llama4_text": (
        "llama4",
        "Llama4TextMoe",
        {"num_local_experts": 8, "intermediate_size": 40, "num_experts_per_tok": 1},
        None,
    ),
}


def make(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A block with random weights, in evaluation mode, and its config."""
    folder, block_name, options, _ = BLOCKS[name]
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    block_class = getattr(module, block_name)
    config_class = next(c for c in vars(module).values() if isinstance(c, type) and c.__name__ == config_name(name))
    config = config_class(**{**COMMON, **options})
    torch.manual_seed(seed)
    block = block_class(config).eval()
    for parameter in (*block.parameters(), *block.buffers()):
        scale = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.data = torch.randn(parameter.shape) * scale
    return block, config


def config_name(name: str) -> str:
    stem = {"qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "gpt_oss": "GptOss", "llama4": "Llama4Text"}
    folder = BLOCKS[name][0]
    parts = {"mixtral": "Mixtral", "olmoe": "Olmoe", "deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3", **stem}
    return parts[folder] + "Config"


def as_on_disk(tensors: dict[str, Any], names: tuple[str, str, str]) -> dict[str, Any]:
    """One tensor per expert, as checkpoints have them."""
    tensors = dict(tensors)
    gate_up, down = tensors.pop("experts.gate_up_proj"), tensors.pop("experts.down_proj")
    gate, up = gate_up.chunk(2, dim=1)
    for name, stack in zip(names, (gate, up, down), strict=True):
        tensors |= {f"experts.{e}.{name}.weight": weight for e, weight in enumerate(stack)}
    return tensors


def original(block: Any, x: Any) -> Any:
    with torch.no_grad():
        y = block.double()(x.double())
    block.float()
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape)


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_original(name: str) -> None:
    block, config = make(name)
    names = BLOCKS[name][3]
    forms = [block.state_dict()] + ([as_on_disk(block.state_dict(), names)] if names else [])
    for tokens in (1, 5, 64):
        x = torch.randn(1, tokens, 48)
        expected = original(block, x)
        for tensors in forms:
            for settings in (config, config.to_dict()):
                layer = importers.load_moe(tensors, settings, format="f32")
                y = layer(x)
                assert isinstance(y, torch.Tensor) and y.dtype == torch.float32
                error = (y.double() - expected).abs().max() / expected.abs().max()
                assert error < 2e-6, f"{tokens} tokens: {error}"


@pytest.mark.parametrize("name", BLOCKS)
def test_bf16_checkpoints(name: str) -> None:
    """Weights in bf16, as checkpoints are: packing loses nothing of them, so only activations are rounded."""
    block, config = make(name, 1)
    tensors = {n: t.bfloat16() if t.ndim > 1 else t for n, t in block.state_dict().items()}
    block.load_state_dict({n: t.float() for n, t in tensors.items()})
    x = torch.randn(33, 48)
    expected = original(block, x[None])[0]
    layer = importers.load_moe(tensors, config, format="bf16")
    close = (layer(x).double() - expected).norm() / expected.norm()
    assert close < 1e-2
    assert (importers.load_moe(tensors, config, format="f32")(x).double() - expected).norm() < 2e-6 * expected.norm()
