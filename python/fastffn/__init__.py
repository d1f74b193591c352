"""Efficient feed-forward layers on the CPU, on the arrays you already hold.

>>> import fastffn as ff
>>> w_up, w_down = ff.pack(W_up, "bf16"), ff.pack(W_down, "int8")      # NumPy, torch, jax, ... in; same kind out
>>> y = ff.ffn(x, w_up, w_down, activation="gelu")                     # y is the same kind of array as x
>>> ff.ffn(x, w_up, w_down, activation="gelu", out=y)                  # allocates nothing

Weights have the layout of ``torch.nn.Linear``: [out_features, in_features]. Packed weights are ordinary uint8 arrays:
``np.save``, safetensors and ``state_dict`` carry them. ``python -m fastffn`` says what this machine has.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastffn._core import DeviceTree, DeviceWeight, __version__, fff, ffn, linear, moe, route_topk
from fastffn._device import device_weight, to_cpu, to_device
from fastffn._device_tree import device_tree
from fastffn._fff import FffRoute, TreeInfo, fff_route, fff_workspace, pack_tree, tree_info, unpack_tree, verify_tree
from fastffn._hadamard import hadamard, quantize
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
from fastffn._weights import PackedCodes, PackedInfo, activations, formats, info, pack, unpack, unpack_codes, verify
from fastffn._workspace import device_workspace, ffn_workspace, linear_workspace

if TYPE_CHECKING:
    from fastffn import convert, lowrank, sparse24
    from fastffn._fff_from_dense import fff_from_dense
    from fastffn._fff_load import load_fastfeedforward, load_ultrafastbert
    from fastffn._fff_packed import PackedFff, pack_fff
    from fastffn._fff_stats import FffStats, fff_stats, stats_of_leaves
    from fastffn._fff_weights import FffMaster, FffWeights
    from fastffn.lowrank import Covariance, Factors, allocate_ranks, factorize
    from fastffn.sparse24 import check24, prune24

# Names whose modules need NumPy, and where they are: loaded when first asked for, so that `import fastffn` stays light.
_LATER = {
    "Covariance": "fastffn.lowrank",
    "Factors": "fastffn.lowrank",
    "FffMaster": "fastffn._fff_weights",
    "FffStats": "fastffn._fff_stats",
    "FffWeights": "fastffn._fff_weights",
    "PackedFff": "fastffn._fff_packed",
    "allocate_ranks": "fastffn.lowrank",
    "check24": "fastffn.sparse24",
    "convert": "fastffn.convert",
    "factorize": "fastffn.lowrank",
    "fff_from_dense": "fastffn._fff_from_dense",
    "fff_stats": "fastffn._fff_stats",
    "load_fastfeedforward": "fastffn._fff_load",
    "load_ultrafastbert": "fastffn._fff_load",
    "lowrank": "fastffn.lowrank",
    "pack_fff": "fastffn._fff_packed",
    "prune24": "fastffn.sparse24",
    "sparse24": "fastffn.sparse24",
    "stats_of_leaves": "fastffn._fff_stats",
}

__all__ = [
    "Covariance",
    "DeviceTree",
    "DeviceWeight",
    "ExpertLoad",
    "Factors",
    "FffMaster",
    "FffRoute",
    "FffStats",
    "FffWeights",
    "PackedCodes",
    "PackedFff",
    "PackedInfo",
    "SharedExperts",
    "SpecialExperts",
    "TreeInfo",
    "__version__",
    "activations",
    "active_kernel",
    "allocate_ranks",
    "check24",
    "cmake_dir",
    "convert",
    "device_tree",
    "device_weight",
    "device_workspace",
    "expert_load",
    "factorize",
    "fff",
    "fff_from_dense",
    "fff_route",
    "fff_stats",
    "fff_workspace",
    "ffn",
    "ffn_workspace",
    "formats",
    "get_include",
    "get_num_threads",
    "hadamard",
    "info",
    "limit_capacity",
    "linear",
    "linear_workspace",
    "load_fastfeedforward",
    "load_ultrafastbert",
    "lowrank",
    "moe",
    "moe_workspace",
    "pack",
    "pack_fff",
    "pack_tree",
    "prune24",
    "quantize",
    "route_expert_choice",
    "route_hash",
    "route_topk",
    "router_logits",
    "router_scores",
    "set_num_threads",
    "sparse24",
    "stats_of_leaves",
    "to_cpu",
    "to_device",
    "tree_info",
    "unpack",
    "unpack_codes",
    "unpack_tree",
    "verify",
    "verify_tree",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'fastffn' has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    value = module if _LATER[name] == f"fastffn.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
