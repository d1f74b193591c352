"""Mixture-of-experts layers of published checkpoints, packed.

>>> from fastffn import importers
>>> tensors = safetensors.torch.load_file("model.safetensors")          # or a module's state_dict(), or NumPy arrays
>>> layer = importers.load_moe(tensors, config, prefix="model.layers.3.mlp.", format="bf16")
>>> y = layer(x)                                                        # router, experts, shared experts
>>> ids, weights = layer.route(x)

Families: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2 and V3, GPT-OSS (MXFP4 blocks too), Llama 4; from one tensor per
expert, as checkpoints have them, or from the fused tensors of transformers v5. Needs NumPy; torch only for torch tensors.
"""

from fastffn.importers.families import families, load_moe
from fastffn.importers.forms import split_gate_up, unpack_mxfp4
from fastffn.importers.layer import MoeLayer

__all__ = ["MoeLayer", "families", "load_moe", "split_gate_up", "unpack_mxfp4"]
