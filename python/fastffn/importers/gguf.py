"""Feed-forward layers of GGUF files, packed without rounding where fastffn has the type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import fastffn as ff
from fastffn._files.errors import FileFormatError
from fastffn._files.gguf import GgufFile
from fastffn.importers.ffn_layer import FfnLayer
from fastffn.importers.quantised import QuantisedWeight, gguf_decode

# Types of plain numbers, and the format that keeps them.
_FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# Architecture → activation of its gated FFN, in llama.cpp and bitnet.cpp.
_ACTIVATIONS = {
    "llama": "silu",
    "qwen2": "silu",
    "qwen3": "silu",
    "mistral3": "silu",
    "bitnet": "silu",
    "bitnet-25": "relu2",
    "bitnet-b1.58": "relu2",
}


def load_gguf_weight(file: GgufFile | str | Path, name: str, *, variant: str | None = None) -> QuantisedWeight:
    """One quantised tensor of a file; see :func:`fastffn.importers.gguf_decode`.

    Raises:
        ValueError: a damaged file; a tensor that is not there or of another type; I2_S whose variant is not known.
    """
    source = file if isinstance(file, GgufFile) else GgufFile(file)
    raw = source.raw(name)
    tensor = source.tensors[name]
    return gguf_decode(raw, tensor.type_name, tensor.shape, variant=variant if tensor.type_name == "I2_S" else None)


def load_gguf_ffn(
    file: GgufFile | str | Path,
    layer: int,
    *,
    variant: str | None = None,
    activation: str | None = None,
    act: str | None = None,
) -> FfnLayer:
    """Feed-forward layer number `layer` of a GGUF file: blk.{layer}.ffn_gate, ffn_up, ffn_down and, of BitNet, ffn_sub_norm.

    TQ1_0, TQ2_0 and I2_S become "ternary" and Q4_0 and Q4_1 "int4" with the file's own codes and scales, F32, F16 and BF16 the
    format of that name; Q8_0 becomes "int8", whose scales are per row: its codes are rounded anew.

    Args:
        file: a path, or an open file.
        variant: of I2_S, the order of its bits: "x86", "arm" or "rows"; see :func:`fastffn.importers.gguf_decode`.
        activation: that of the file's architecture unless given.
        act: of ternary and int4; see :func:`fastffn.pack`.

    Raises:
        ValueError: a damaged file; tensors that are missing or of another type; an architecture whose activation is not
            known here and not given; I2_S whose variant is not known.
    """
    source = file if isinstance(file, GgufFile) else GgufFile(file)
    architecture = str(source.metadata.get("general.architecture", ""))
    chosen = activation or _ACTIVATIONS.get(architecture)
    if chosen is None:
        raise FileFormatError(
            f"load_gguf_ffn: the activation of architecture '{architecture}' is not known here; pass activation="
        )
    prefix = f"blk.{layer}.ffn_"

    def vector(name: str) -> Any:
        return np.ascontiguousarray(source.f32(name)) if name in source else None

    def packed(part: str) -> Any:
        name = f"{prefix}{part}.weight"
        if name not in source:
            raise FileFormatError(f"load_gguf_ffn: GGUF file {source.path.name} has no tensor '{name}'")
        kind = source.tensors[name].type_name
        scale = vector(f"{prefix}{part}.scale")
        if kind in _FLOATS:
            values = source.f32(name)
            return ff.pack(values if scale is None else values * scale, _FLOATS[kind])
        weight = load_gguf_weight(source, name, variant=variant)
        if scale is not None:  # a second scale beside the tensor, as some BitNet files have it
            return ff.pack(weight.codes, "ternary", **_scaled(weight, scale), act=act)
        return weight.pack(act=None if kind == "Q8_0" else act)

    eps = source.metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    gate = packed("gate") if f"{prefix}gate.weight" in source else None
    return FfnLayer(
        w_up=packed("up"),
        w_down=packed("down"),
        w_gate=gate,
        activation=chosen,
        b_up=vector(f"{prefix}up.bias"),
        b_down=vector(f"{prefix}down.bias"),
        b_gate=vector(f"{prefix}gate.bias"),
        sub_norm=vector(f"{prefix}sub_norm.weight"),
        sub_norm_eps=float(eps),
    )


def _scaled(weight: QuantisedWeight, scale: Any) -> dict[str, Any]:
    """Options of pack() for ternary weights with a scale for the tensor on top of their own."""
    own = np.asarray(weight.scales, np.float32)
    if weight.kind not in ("TQ1_0", "TQ2_0", "I2_S") or scale.size != 1 or not (own == own.reshape(-1)[0]).all():
        raise FileFormatError(
            f"load_gguf_ffn: a .scale tensor of {scale.size} numbers beside {weight.kind}; expected one"
        )
    return {"scale": own.reshape(-1)[:1] * scale.reshape(-1)}
