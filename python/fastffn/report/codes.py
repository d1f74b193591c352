"""Rows of int4 and ternary beyond their defaults: other groups, other activations, and a Hadamard transform before w_down.

Weights of a trained model are rounded after the fact here. int4 survives that. Ternary does not, whatever is done around it: its
rows show what such a layer costs in time and bytes, and how far post-hoc rounding falls short of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

import fastffn as ff

from .layers import FfnLayer

if TYPE_CHECKING:
    from .variants import Variant

_DESTROYED = (
    "ternary: rounding the weights of a trained model to -1, 0 and 1 destroys it, with or without a Hadamard transform. The rows "
    "show time and bytes; BitNet models are trained this way from the start (fastffn.torch.BitFFN does so, "
    "fastffn.importers reads theirs)."
)

# Format → rows beside the plain one: name, and options of pack() for w_up and w_gate, and for w_down.
_Options = dict[str, Any]
_FURTHER: dict[str, list[tuple[str, _Options, _Options]]] = {
    "int4": [
        ("int4 g32", {"group": 32}, {"group": 32}),
        ("int4 zeros", {"zero_points": True}, {"zero_points": True}),
        ("int4 x bf16", {"act": "bf16"}, {"act": "bf16"}),
    ],
    # In front of w_down only, as H-BitLinear (arXiv:2504.18415) has it.
    "ternary": [("ternary hadamard", {}, {"hadamard": "block"})],
}

_ALWAYS = ("ternary hadamard",)  # in the default report too: whether it saves the model is what one asks next


def code_variants(
    name: str, plain: Variant, pack: Callable[[FfnLayer, Callable[[str], _Options]], Any], further: bool
) -> list[Variant]:
    """The rows of a format: the plain one, those beside it that always come, and with `further` all.

    Args:
        plain: the format's row with its defaults.
        pack: packs a layer in this format, given the options for each weight's name.
    """
    rows = [replace(plain, note=_DESTROYED) if name == "ternary" else plain]

    def packed(first: _Options, down: _Options) -> Callable[[FfnLayer], Any]:
        return lambda layer: pack(layer, lambda weight: down if weight == "w_down" else first)

    for title, first, down in _FURTHER.get(name, ()):
        if not (further or title in _ALWAYS) or not _takes(name, first, down):
            continue
        rows.append(replace(plain, name=title, pack=packed(first, down), note=rows[0].note))
    return rows


def _takes(name: str, *options: _Options) -> bool:
    """Whether this build has a format's options."""
    try:
        for given in options:
            ff.pack(np.ones((1, 64), np.float32), name, **given)
    except ValueError:
        return False
    return True
