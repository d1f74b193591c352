"""What needs PyTorch: fastffn's functions as operators that torch traces and differentiates, and its layers as modules.

``import fastffn`` imports neither this package nor torch; say ``import fastffn.torch`` (or ``from fastffn.torch import …``).

`linear`, `ffn`, `moe`, `fff`, `route_topk`, `router_logits` and `hadamard` take the arguments of their namesakes in fastffn.
An eager call runs the library at once; what torch has to see goes through the operators torch.ops.fastffn.*, one functional and
one that writes `out`. A traced call reads no packed header, so the width of y is the argument ``out_features``, which the
kernel compares with the header (`ffn`, `moe` and `fff` take x's width where it is not given; `linear` needs it).

What happens to each kind of tensor and call:

==========================  ==========================================================================================
torch.compile, export       one operator, no graph break, any number of tokens; ``load=`` of `moe` is refused
requires_grad               x, dense biases, sub_norm, the weights of picks and logits get gradients, computed in f32 by
                            torch from dequantised weights; `fff`, biases of experts and ``out=`` are refused (RuntimeError)
plain weights that train    `FFN`, `MoE` (``trainable=True``) and `LowRankFFN` pack them in every forward pass; gradients
                            pass the format's rounding straight through
second derivatives, jvp,    refused (RuntimeError); reverse mode and torch.no_grad() are what there is
torch.func.grad
autocast                    x is cast to its dtype, which is y's; weights of picks, logits, biases and routers are not
torch.vmap                  over tokens (x, ids, weights, leaf); over weights it is refused (ValueError)
fake and meta tensors       give a fake or meta result; beside tensors with memory they are refused (ValueError, or by torch)
out=                        written without a count in its version: do not write over what a recorded graph has kept
sub_norm of `moe`           for plain eager calls; traced, recorded or under autocast it is refused (RuntimeError)
conj and neg views          conjugated ones are complex, which no function takes; a pending sign is applied first
                            (that of ``z.conj().imag``; one forced on contiguous memory by torch._neg_view is not seen)
sparse, nested layouts      refused (ValueError)
not contiguous              any strides; x is copied where its last dimension is not contiguous
no tokens                   an empty result
CUDA                        x, weights and biases on one CUDA device, where weights are in its order: a module's after
                            ``to("cuda")``, else those of :func:`fastffn.to_device` (a DeviceWeight, or its uint8 tensor, the
                            only form that a traced call takes). Calls run on torch's current stream, allocate by torch and the
                            stream's pool, wait for nothing and can be captured in a CUDA graph, but for the first use of a
                            weight, whose header is read then; backward passes unpack weights on the host and wait.
                            Tested on an emulated device; never run on a GPU so far
other devices               refused (RuntimeError)
subclasses                  read as plain tensors, y is a plain one; those with __torch_dispatch__ get the operator
inference_mode              y is an inference tensor; weights made under it cannot take part in a recorded call
make_fx                     records the operator
torch.jit.trace             records the operator of a module (MoE is refused); a function by itself becomes a constant (use
                            torch.export, as torch advises for what it deprecated)
threads                     calls from many Python threads run side by side; torch.set_num_threads counts and changes no bit
fork, DataLoader workers    safe with fork and spawn; a forked child of a process that ran threads uses its own. Backward passes
                            are torch's, whose pool does not survive a fork: torch.set_num_threads(1) there, as its workers do
==========================  ==========================================================================================
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastffn.torch needs PyTorch: pip install torch (fastffn itself does not)") from error

from fastffn.torch import _batching, _functions, _gradients, _training  # noqa: F401  (they register operators and rules)
from fastffn.torch._ffn import FFN
from fastffn.torch._functions import ffn, hadamard, linear, moe, route_topk, router_logits
from fastffn.torch._lowrank import LowRankFFN
from fastffn.torch._moe import MoE
from fastffn.torch._packed_fff import PackedFFF
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

# The function, not the module of that name, which the imports above left here.
fff = _functions.fff

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
    "LowRankFFN",
    "MoE",
    "Moefication",
    "PackFormat",
    "PackedFFF",
    "ReplaceSummary",
    "Site",
    "Sparse24Linear",
    "Sparse24Schedule",
    "auxiliary_loss",
    "balance_loss",
    "families",
    "fff",
    "ffn",
    "hadamard",
    "hardening_loss",
    "linear",
    "llama_from_gguf",
    "load",
    "mixture",
    "moe",
    "register_family",
    "replace",
    "route_topk",
    "router_logits",
    "save",
    "sparse_layers",
    "sparsify24",
    "to_bitlinear",
]
