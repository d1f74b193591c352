"""The linear layers of transformers' BitNet: their weights as plain tensors, with the exact scale of ternary codes."""

from __future__ import annotations

from typing import Any

import torch

_ROWS_PER_BYTE = 4


def is_bit_linear(module: Any) -> bool:
    """transformers' BitLinear (packed codes) and AutoBitLinear (codes as floats, or latent weights)."""
    kind = type(module)
    return kind.__name__ in ("BitLinear", "AutoBitLinear") and kind.__module__ == "transformers.integrations.bitnet"


def read_linear(linear: Any) -> tuple[Any, Any, float | None]:
    """(weight [out, in], bias or None, scale): scale is a number where weight is codes -1, 0, 1 times it, else None."""
    bias = None if linear.bias is None else linear.bias.detach()
    if not is_bit_linear(linear):
        return linear.weight.detach(), bias, None
    if getattr(linear, "rms_norm", None) is not None:
        from fastffn.torch._replace.families import NotRecognised

        raise NotRecognised("its linear layers normalise their inputs (use_rms_norm)")
    weight = linear.weight.detach()
    if weight.dtype == torch.uint8:  # BitLinear: four rows in a byte, y = codes x / weight_scale
        codes = unpacked_codes(weight)
        scale = 1.0 / float(linear.weight_scale) if not weight.is_meta else 1.0
        return codes.float() * scale, bias, scale
    if getattr(linear, "online_quant", False):  # latent weights: absmean, as format "ternary" quantises them
        return weight, bias, None
    scale = float(linear.weight_scale) if not weight.is_meta else 1.0
    if not weight.is_meta and not torch.isin(weight, torch.tensor([-1, 0, 1], dtype=weight.dtype)).all():
        from fastffn.torch._replace.families import NotRecognised

        raise NotRecognised("its AutoBitLinear weights are not the codes -1, 0 and 1")
    return weight.float() * scale, bias, scale


def unpacked_codes(packed: Any) -> Any:
    """[4 · rows, in] int8 codes -1, 0, 1 of transformers' [rows, in] bytes: byte row r holds rows r, r + rows, …"""
    parts = [((packed >> (2 * place)) & 3).to(torch.int8) - 1 for place in range(_ROWS_PER_BYTE)]
    return torch.cat(parts)
