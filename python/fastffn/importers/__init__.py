"""Layers of published checkpoints, packed; and other programs' quantised weights, read and written byte for byte.

>>> from fastffn import importers
>>> tensors = safetensors.torch.load_file("model.safetensors")          # or a module's state_dict(), or NumPy arrays
>>> layer = importers.load_moe(tensors, config, prefix="model.layers.3.mlp.", format="bf16")
>>> y = layer(x)                                                        # router, experts, shared experts
>>> ids, weights = layer.route(x)

Families: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2 and V3, GPT-OSS (MXFP4 blocks too), Llama 4; from one tensor per
expert, as checkpoints have them, or from the fused tensors of transformers v5. Needs NumPy; torch only for torch tensors.

>>> layer = importers.load_bitnet(tensors, config, prefix="model.layers.0.mlp.")     # BitNet, as transformers holds it
>>> layer = importers.load_gguf_ffn("model.gguf", 0)                                 # TQ1_0, TQ2_0, I2_S, Q4_0, Q4_1, Q8_0
>>> w_up = importers.load_int4(tensors, prefix="model.layers.0.mlp.up_proj.", method="awq")    # or "gptq"
"""

from fastffn.importers.bitnet import BitnetWeight, export_bitnet, load_bitnet, pack_bitnet, unpack_bitnet
from fastffn.importers.families import families, load_moe
from fastffn.importers.ffn_layer import FfnLayer
from fastffn.importers.forms import split_gate_up, unpack_mxfp4
from fastffn.importers.gguf import load_gguf_ffn, load_gguf_weight
from fastffn.importers.gptq import load_int4
from fastffn.importers.layer import MoeLayer
from fastffn.importers.quantised import QuantisedWeight, from_packed, gguf_decode, gguf_encode

__all__ = [
    "BitnetWeight",
    "FfnLayer",
    "MoeLayer",
    "QuantisedWeight",
    "export_bitnet",
    "families",
    "from_packed",
    "gguf_decode",
    "gguf_encode",
    "load_bitnet",
    "load_gguf_ffn",
    "load_gguf_weight",
    "load_int4",
    "load_moe",
    "pack_bitnet",
    "split_gate_up",
    "unpack_bitnet",
    "unpack_mxfp4",
]
