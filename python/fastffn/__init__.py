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

from fastffn._core import __version__, fff, ffn, linear
from fastffn._fff import FffRoute, TreeInfo, fff_route, fff_workspace, pack_tree, tree_info, unpack_tree, verify_tree
from fastffn._machine import active_kernel, get_num_threads, set_num_threads
from fastffn._paths import cmake_dir, get_include
from fastffn._weights import PackedInfo, activations, formats, info, pack, unpack, verify
from fastffn._workspace import ffn_workspace, linear_workspace

if TYPE_CHECKING:
    from fastffn._fff_from_dense import fff_from_dense
    from fastffn._fff_load import load_fastfeedforward, load_ultrafastbert
    from fastffn._fff_packed import PackedFff, pack_fff
    from fastffn._fff_stats import FffStats, fff_stats, stats_of_leaves
    from fastffn._fff_weights import FffMaster, FffWeights

# Names whose modules need NumPy, and where they are: loaded when first asked for, so that `import fastffn` stays light.
_LATER = {
    "FffMaster": "fastffn._fff_weights",
    "FffStats": "fastffn._fff_stats",
    "FffWeights": "fastffn._fff_weights",
    "PackedFff": "fastffn._fff_packed",
    "fff_from_dense": "fastffn._fff_from_dense",
    "fff_stats": "fastffn._fff_stats",
    "load_fastfeedforward": "fastffn._fff_load",
    "load_ultrafastbert": "fastffn._fff_load",
    "pack_fff": "fastffn._fff_packed",
    "stats_of_leaves": "fastffn._fff_stats",
}

__all__ = [
    "FffMaster",
    "FffRoute",
    "FffStats",
    "FffWeights",
    "PackedFff",
    "PackedInfo",
    "TreeInfo",
    "__version__",
    "activations",
    "active_kernel",
    "cmake_dir",
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
    "info",
    "linear",
    "linear_workspace",
    "load_fastfeedforward",
    "load_ultrafastbert",
    "pack",
    "pack_fff",
    "pack_tree",
    "set_num_threads",
    "stats_of_leaves",
    "tree_info",
    "unpack",
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
