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

from fastffn._core import __version__, ffn, linear
from fastffn._machine import active_kernel, get_num_threads, set_num_threads
from fastffn._paths import cmake_dir, get_include
from fastffn._weights import PackedInfo, activations, formats, info, pack, unpack, verify
from fastffn._workspace import ffn_workspace, linear_workspace

if TYPE_CHECKING:
    from fastffn import lowrank
    from fastffn.lowrank import Covariance, Factors, allocate_ranks, factorize

# Names whose modules need NumPy, and where they are: loaded when first asked for, so that `import fastffn` stays light.
_LATER = {
    "Covariance": "fastffn.lowrank",
    "Factors": "fastffn.lowrank",
    "allocate_ranks": "fastffn.lowrank",
    "factorize": "fastffn.lowrank",
    "lowrank": "fastffn.lowrank",
}

__all__ = [
    "Covariance",
    "Factors",
    "PackedInfo",
    "__version__",
    "activations",
    "active_kernel",
    "allocate_ranks",
    "cmake_dir",
    "factorize",
    "ffn",
    "ffn_workspace",
    "formats",
    "get_include",
    "get_num_threads",
    "info",
    "linear",
    "linear_workspace",
    "lowrank",
    "pack",
    "set_num_threads",
    "unpack",
    "verify",
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
