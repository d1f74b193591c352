"""Efficient feed-forward layers on the CPU, on the arrays you already hold.

>>> import fastffn as ff
>>> w_up, w_down = ff.pack(W_up, "bf16"), ff.pack(W_down, "int8")      # NumPy, torch, jax, ... in; same kind out
>>> y = ff.ffn(x, w_up, w_down, activation="gelu")                     # y is the same kind of array as x
>>> ff.ffn(x, w_up, w_down, activation="gelu", out=y)                  # allocates nothing

Weights have the layout of ``torch.nn.Linear``: [out_features, in_features]. Packed weights are ordinary uint8 arrays:
``np.save``, safetensors and ``state_dict`` carry them. ``python -m fastffn`` says what this machine has.
"""

from fastffn._core import __version__, ffn, linear, moe, route_topk
from fastffn._machine import active_kernel, get_num_threads, set_num_threads
from fastffn._moe import SharedExperts, SpecialExperts, moe_workspace
from fastffn._paths import cmake_dir, get_include
from fastffn._route import (
    ExpertLoad,
    expert_load,
    limit_capacity,
    route_expert_choice,
    route_hash,
    router_logits,
    router_scores,
)
from fastffn._weights import PackedInfo, activations, formats, info, pack, unpack, verify
from fastffn._workspace import ffn_workspace, linear_workspace

__all__ = [
    "ExpertLoad",
    "PackedInfo",
    "SharedExperts",
    "SpecialExperts",
    "__version__",
    "activations",
    "active_kernel",
    "cmake_dir",
    "expert_load",
    "ffn",
    "ffn_workspace",
    "formats",
    "get_include",
    "get_num_threads",
    "info",
    "limit_capacity",
    "linear",
    "linear_workspace",
    "moe",
    "moe_workspace",
    "pack",
    "route_expert_choice",
    "route_hash",
    "route_topk",
    "router_logits",
    "router_scores",
    "set_num_threads",
    "unpack",
    "verify",
]
