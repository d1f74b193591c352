"""2:4 sparse weights: pruning, checking, and the forms that other programs keep them in.

>>> w = ff.prune24(w, "sparsegpt", calibration=inputs)           # two of every four weights stay
>>> packed = ff.pack(w, "sparse24", values="bf16")                # 9/16 of the bytes of dense bf16
>>> y = ff.linear(x, packed)

Every function here takes NumPy arrays or torch tensors on the CPU and gives back the same kind. What comes from a
checkpoint is made dense first and then packed:

>>> w = ff.sparse24.from_bitmask(tensors["compressed"], tensors["bitmask"], tensors["shape"])
"""

from ._bitmask import from_bitmask, to_bitmask
from ._calibration import Calibration24
from ._canonical import compress24, decompress24
from ._cutlass import from_cutlass, to_cutlass
from ._groups import Sparsity24, check24
from ._marlin import from_marlin24, to_marlin24
from ._prune import METHODS, prune24

__all__ = [
    "METHODS",
    "Calibration24",
    "Sparsity24",
    "check24",
    "compress24",
    "decompress24",
    "from_bitmask",
    "from_cutlass",
    "from_marlin24",
    "prune24",
    "to_bitmask",
    "to_cutlass",
    "to_marlin24",
]
