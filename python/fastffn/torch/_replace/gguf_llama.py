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

    from fastffn._files.gguf import GgufFile
    from fastffn.report.bpe import BpeTokenizer

    weights = GgufFile(path)
    about = weights.metadata
    if about.get("general.architecture") != "llama" or about.get("llama.expert_count"):
        found = about.get("general.architecture")
        raise ValueError(
            f"llama_from_gguf: '{Path(path).name}' has architecture {found!r}, expected 'llama' without experts"
        )
    if about.get("tokenizer.ggml.model") != "gpt2":
        raise ValueError(f"llama_from_gguf: '{Path(path).name}' has no BPE tokenizer of kind 'gpt2'")
    tied = "output.weight" not in weights
    heads, layers = int(about["llama.attention.head_count"]), int(about["llama.block_count"])
    d_model = int(about["llama.embedding_length"])
    settings = LlamaConfig(
        vocab_size=int(weights.f32("token_embd.weight").shape[0]), hidden_size=d_model,
        intermediate_size=int(about["llama.feed_forward_length"]), num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=int(about.get("llama.attention.head_count_kv", heads)), head_dim=d_model // heads,
        max_position_embeddings=int(about["llama.context_length"]), tie_word_embeddings=tied, dtype=dtype,
        rms_norm_eps=float(about["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(about.get("llama.rope.freq_base", 1e4))},
        bos_token_id=about.get("tokenizer.ggml.bos_token_id"), eos_token_id=about.get("tokenizer.ggml.eos_token_id"),
    )  # fmt: skip
    from fastffn.torch._replace.files import _ParametersOnMeta

    with _ParametersOnMeta():
        model = LlamaForCausalLM(settings)
    state = {ours: torch.from_numpy(np.array(weights.f32(theirs))) for ours, theirs in _names(layers, tied).items()}
    for name in list(state):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            state[name] = _halves(state[name], d_model // heads)
        state[name] = state[name].to(dtype)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    unfilled = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if unfilled:
        raise ValueError(f"llama_from_gguf: '{Path(path).name}' has no {unfilled[0]}")
    return model.eval().requires_grad_(False), BpeTokenizer.from_gguf(about)


def _halves(weight: Any, head_dim: int) -> Any:
    """Rotary pairs as neighbours (GGUF) to pairs half a head apart (transformers)."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


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
