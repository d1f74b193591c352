"""`fastffn.torch.replace`: transformers' feed-forward layers swapped for packed ones, and kept in files.

families   which modules are feed-forward layers     weights    what such a layer is; its float32 reference
sites      where a model has them                    rules      which rule is whose
methods    what a layer becomes                      modules, converted   the modules that it becomes
capture    inputs of layers, for errors and methods  run        `replace` itself
summary, picture   what was done                     files      `save` and `load`
"""

from fastffn.torch._replace.families import families, register_family
from fastffn.torch._replace.files import load, save
from fastffn.torch._replace.gguf_llama import llama_from_gguf
from fastffn.torch._replace.methods import Cmoe, LowRank, Moefication, PackFormat
from fastffn.torch._replace.run import replace
from fastffn.torch._replace.sites import Site
from fastffn.torch._replace.summary import LayerSummary, ReplaceSummary
from fastffn.torch._replace.weights import DenseWeights, ExpertWeights

__all__ = [
    "Cmoe",
    "DenseWeights",
    "ExpertWeights",
    "LayerSummary",
    "LowRank",
    "Moefication",
    "PackFormat",
    "ReplaceSummary",
    "Site",
    "families",
    "llama_from_gguf",
    "load",
    "register_family",
    "replace",
    "save",
]
