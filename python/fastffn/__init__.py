"""Efficient feed-forward layers on the CPU, on the arrays you already hold.

>>> import fastffn as ff
>>> w_up, w_down = ff.pack(W_up, "bf16"), ff.pack(W_down, "int8")      # NumPy, torch, jax, ... in; same kind out
>>> y = ff.ffn(x, w_up, w_down, activation="gelu")                     # y is the same kind of array as x
>>> ff.ffn(x, w_up, w_down, activation="gelu", out=y)                  # allocates nothing

Weights have the layout of ``torch.nn.Linear``: [out_features, in_features]. Packed weights are ordinary uint8 arrays:
``np.save``, safetensors and ``state_dict`` carry them. ``python -m fastffn`` says what this machine has.
"""

from fastffn._core import __version__, fff, ffn, linear
from fastffn._fff import FffRoute, TreeInfo, fff_route, fff_workspace, pack_tree, tree_info, unpack_tree, verify_tree
from fastffn._machine import active_kernel, get_num_threads, set_num_threads
from fastffn._paths import cmake_dir, get_include
from fastffn._weights import PackedInfo, activations, formats, info, pack, unpack, verify
from fastffn._workspace import ffn_workspace, linear_workspace

__all__ = [
    "FffRoute",
    "PackedInfo",
    "TreeInfo",
    "__version__",
    "activations",
    "active_kernel",
    "cmake_dir",
    "fff",
    "fff_route",
    "fff_workspace",
    "ffn",
    "ffn_workspace",
    "formats",
    "get_include",
    "get_num_threads",
    "info",
    "linear",
    "linear_workspace",
    "pack",
    "pack_tree",
    "set_num_threads",
    "tree_info",
    "unpack",
    "unpack_tree",
    "verify",
    "verify_tree",
]
