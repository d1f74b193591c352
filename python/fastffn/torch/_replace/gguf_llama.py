"""A GGUF file of the Llama family as transformers' model, dequantised: something real to replace the layers of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def llama_from_gguf(path: str | Path, dtype: Any = torch.bfloat16) -> tuple[Any, Any]:
    """transformers' LlamaForCausalLM and a tokenizer (``encode``, ``decode``), from a GGUF file.

    transformers reads GGUF files itself where gguf and accelerate are installed; this needs neither. Weights of any GGUF
    type that the report reads are dequantised and rounded to ``dtype``.

    Args:
        path: of a file of architecture "llama".
        dtype: of the model.

    Raises:
        ImportError: transformers is not installed.
        ValueError: another architecture, or a file that cannot be read.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from fastffn.report.open_model import LanguageModel, open_model

    opened = open_model(path)
    if not isinstance(opened, LanguageModel) or not opened.model.config.interleaved:
        raise ValueError(f"llama_from_gguf: '{Path(path).name}' is not a GGUF file of architecture 'llama'")
    source, weights = opened.model.config, opened.model._weights
    tied = "output.weight" not in weights
    settings = LlamaConfig(
        vocab_size=int(weights.f32("token_embd.weight").shape[0]), hidden_size=source.d_model,
        intermediate_size=int(weights.f32("blk.0.ffn_up.weight").shape[0]), num_hidden_layers=source.layers,
        num_attention_heads=source.heads, num_key_value_heads=source.kv_heads, head_dim=source.head_dim,
        max_position_embeddings=source.context, rms_norm_eps=source.norm_eps, hidden_act=source.activation,
        rope_parameters={"rope_type": "default", "rope_theta": source.rope_base}, tie_word_embeddings=tied,
        bos_token_id=getattr(opened.tokenizer, "bos", None), eos_token_id=_eos(weights), dtype=dtype,
    )  # fmt: skip
    from fastffn.torch._replace.files import _ParametersOnMeta

    with _ParametersOnMeta():
        model = LlamaForCausalLM(settings)
    state = {
        ours: torch.from_numpy(np.array(weights.f32(theirs))) for ours, theirs in _names(source.layers, tied).items()
    }
    for name in list(state):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            state[name] = _halves(state[name], source.head_dim)
        state[name] = state[name].to(dtype)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    unfilled = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if unfilled:
        raise ValueError(f"llama_from_gguf: '{Path(path).name}' has no {unfilled[0]}")
    return model.eval().requires_grad_(False), opened.tokenizer


def _halves(weight: Any, head_dim: int) -> Any:
    """Rotary pairs as neighbours (GGUF) to pairs half a head apart (transformers)."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _eos(weights: Any) -> int | None:
    found = weights.metadata.get("tokenizer.ggml.eos_token_id")
    return None if found is None else int(found)


def _names(layers: int, tied: bool) -> dict[str, str]:
    """transformers' names → GGUF's."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not tied:
        names["lm_head.weight"] = "output.weight"
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for layer in range(layers):
        names |= {
            f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight" for ours, theirs in parts.items()
        }
    return names
