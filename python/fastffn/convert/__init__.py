"""Dense feed-forward layers → mixtures of experts, without training the layer itself. NumPy is all that it needs.

>>> from fastffn.convert import cmoe
>>> layer = cmoe(x, w_up, w_down, w_gate, activation="silu", experts=8, shared=3, picks=3)     # x: real inputs of the layer
>>> moe = layer.pack("bf16")
>>> y = moe(x)                                                                    # 6 of 8 experts: 75% of the weights

`moefication` groups neurons with similar input weights and trains a small router; `cmoe` keeps the neurons that fire
most for every token, groups the others by what fires together, and takes its router from the layer's own neurons. Either
way an expert is a set of hidden neurons, and all experts together are the dense layer.
"""

from ._assignment import balanced_assignment
from ._cmoe import cmoe
from ._layer import AnalyticRouter, LearnedRouter, MoeLayer
from ._moefication import moefication
from ._packed import PackedMoe

__all__ = [
    "AnalyticRouter",
    "LearnedRouter",
    "MoeLayer",
    "PackedMoe",
    "balanced_assignment",
    "cmoe",
    "moefication",
]
