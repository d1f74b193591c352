"""What needs PyTorch: fastffn's functions as operators that torch traces and differentiates, and its layers as modules.

``import fastffn`` imports neither this package nor torch; say ``import fastffn.torch`` (or ``from fastffn.torch import …``).
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastffn.torch needs PyTorch: pip install torch (fastffn itself does not)") from error

from fastffn.torch._ffn import FFN
from fastffn.torch._functions import ffn, linear
from fastffn.torch._replace import (
    Cmoe,
    DenseWeights,
    ExpertWeights,
    LayerSummary,
    LowRank,
    Moefication,
    PackFormat,
    ReplaceSummary,
    Site,
    families,
    llama_from_gguf,
    load,
    register_family,
    replace,
    save,
)
from fastffn.torch._trees import auxiliary_loss, balance_loss, hardening_loss, mixture
from fastffn.torch.bitlinear import BitFFN, BitLinear, HBitLinear, to_bitlinear
from fastffn.torch.fff import FFF
from fastffn.torch.fff_nodes import AllNodeFFF
from fastffn.torch.sparse24 import Sparse24Linear, Sparse24Schedule, sparse_layers, sparsify24

__all__ = [
    "FFF",
    "FFN",
    "AllNodeFFF",
    "BitFFN",
    "BitLinear",
    "Cmoe",
    "DenseWeights",
    "ExpertWeights",
    "HBitLinear",
    "LayerSummary",
    "LowRank",
    "Moefication",
    "PackFormat",
    "ReplaceSummary",
    "Site",
    "Sparse24Linear",
    "Sparse24Schedule",
    "auxiliary_loss",
    "balance_loss",
    "families",
    "ffn",
    "hardening_loss",
    "linear",
    "llama_from_gguf",
    "load",
    "mixture",
    "register_family",
    "replace",
    "save",
    "sparse_layers",
    "sparsify24",
    "to_bitlinear",
]
