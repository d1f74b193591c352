"""The forms in which checkpoints hold experts, all brought to stacks [experts, out_features, in_features].

separate      experts.{e}.gate_proj.weight [I, H], up_proj [I, H], down_proj [H, I]   (Mixtral: w1, w3, w2)
concatenated  experts.gate_up_proj [E, 2I, H], gate first; down_proj [E, H, I]        (transformers v5)
transposed    [E, H, 2I] and [E, I, H]                                                (Llama 4, GPT-OSS)
interleaved   gate and up row by row                                                  (GPT-OSS)
MXFP4         blocks of 32 4-bit floats with a scale, [E, 2I, H/32, 16] and [E, 2I, H/32]   (GPT-OSS on disk)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = Any

# The values of e2m1, by code (OCP Microscaling Formats 1.0, table 4): sign, two bits of exponent, one of mantissa.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def is_torch(array: Array) -> bool:
    """Whether this is a torch tensor; imports nothing."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def stack(arrays: list[Array]) -> Array:
    """Equal arrays to one with a new first dimension; their kind."""
    if is_torch(arrays[0]):
        return sys.modules["torch"].stack([array.detach() for array in arrays])
    return np.stack(arrays)


def split_gate_up(gate_up: Array, *, interleaved: bool = False, transposed: bool = False) -> tuple[Array, Array]:
    """The gate and up projections of a fused tensor, as views [experts, d_ff, d_model].

    Args:
        gate_up: [experts, 2 · d_ff, d_model]; or [experts, d_model, 2 · d_ff] when ``transposed``. Biases: [experts, 2 · d_ff].
        interleaved: rows 0, 2, … are the gate's (GPT-OSS); else the first half is.
        transposed: in_features come before out_features.

    Raises:
        ValueError: an odd number of rows.
    """
    if transposed:
        gate_up = swapped(gate_up)
    rows = gate_up.shape[1]
    if rows % 2:
        raise ValueError(f"split_gate_up: gate_up has shape {tuple(gate_up.shape)}: {rows} rows cannot be halved")
    if interleaved:
        return gate_up[:, 0::2], gate_up[:, 1::2]
    return gate_up[:, : rows // 2], gate_up[:, rows // 2 :]


def swapped(array: Array) -> Array:
    """Its last two dimensions swapped, as a view."""
    return array.swapaxes(-1, -2)


def unpack_mxfp4(blocks: Array, scales: Array) -> Array:
    """MXFP4 weights as f32: [..., groups, 16] bytes and [..., groups] scales to [..., groups · 32].

    A byte holds two e2m1 values, the low half first; a scale s means 2^(s - 127) (e8m0; 255 is NaN).

    Raises:
        ValueError: dtypes or shapes that are not MXFP4's.
    """
    torch_like = is_torch(blocks)
    codes = np.asarray(blocks.detach().numpy() if torch_like else blocks)
    exponents = np.asarray(scales.detach().numpy() if is_torch(scales) else scales)
    if codes.dtype != np.uint8 or exponents.dtype != np.uint8:
        raise ValueError(f"unpack_mxfp4: blocks have dtype {codes.dtype} and scales {exponents.dtype}, expected uint8")
    if codes.ndim < 2 or codes.shape[-1] != 16 or codes.shape[:-1] != exponents.shape:
        raise ValueError(
            f"unpack_mxfp4: blocks have shape {codes.shape} and scales {exponents.shape}, expected (..., groups, 16) and "
            "(..., groups)"
        )
    values = np.empty((*codes.shape[:-1], 32), np.float32)
    values[..., 0::2] = _E2M1[codes & 15]
    values[..., 1::2] = _E2M1[codes >> 4]
    with np.errstate(over="ignore"):
        np.ldexp(values, exponents[..., None].astype(np.int32) - 127, out=values)
    values[exponents == 255] = np.nan
    flat = values.reshape(*codes.shape[:-2], -1)
    return sys.modules["torch"].from_numpy(flat) if torch_like else flat


class Tensors:
    """A checkpoint's tensors under one prefix; says by name what is missing."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str, family: str, operation: str = "load_moe") -> None:
        self.operation = operation
        self.tensors = {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}
        self.read: set[str] = set()
        self.prefix = prefix
        self.family = family
        if not self.tensors:
            shown = ", ".join(list(tensors)[:3]) or "none"
            raise ValueError(f"{operation}: no tensor's name starts with '{prefix}'; there are {shown}, …")

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.operation}: {self.family}: {text}")

    def get(self, *names: str) -> Array:
        """The tensor under the first of these names that there is."""
        for name in names:
            if name in self.tensors:
                self.read.add(name)
                array = self.tensors[name]
                if "float8" in str(array.dtype):
                    raise self.error(
                        f"'{self.prefix}{name}' is {array.dtype} with block scales; dequantise it first, or load a bf16 copy"
                    )
                return array
        there = ", ".join(sorted(self.tensors)[:8])
        raise self.error(f"no tensor '{self.prefix}{names[0]}'; under '{self.prefix}' there are {there}, …")

    def check_biases(self) -> None:
        """Raises where experts or the router have a bias that nothing has read: leaving it out would change the layer."""
        for name in sorted(self.tensors.keys() - self.read):
            if name.startswith(("experts.", "gate.", "router.", "shared_expert")) and name.endswith("bias"):
                raise self.error(f"'{self.prefix}{name}' is a bias that layers of this family do not have")

    def check(self, name: str, array: Array, *shape: int) -> Array:
        """The array, if its shape is this."""
        if tuple(array.shape) != shape:
            raise self.error(f"{name} has shape {tuple(array.shape)}, expected {shape} from the config")
        return array


def _sources(name: str, experts: int) -> list[str]:
    return [f"experts.{e}.{name}.weight" for e in range(experts)]


def gated_stacks(
    t: Tensors, experts: int, d_model: int, d_ff: int, *, transposed: bool = False, interleaved: bool = False
) -> dict[str, Array]:
    """w_gate, w_up and w_down as [experts, out, in], from whichever form the tensors have."""
    up, down = (experts, d_ff, d_model), (experts, d_model, d_ff)
    if "experts.gate_up_proj_blocks" in t or "experts.down_proj_blocks" in t:
        # Blocks run along in_features: never transposed.
        gate_up = unpack_mxfp4(t.get("experts.gate_up_proj_blocks"), t.get("experts.gate_up_proj_scales"))
        t.check("experts.gate_up_proj_blocks", gate_up, experts, 2 * d_ff, d_model)
        w_down = unpack_mxfp4(t.get("experts.down_proj_blocks"), t.get("experts.down_proj_scales"))
        w_gate, w_up = split_gate_up(gate_up, interleaved=interleaved)
    elif "experts.gate_up_proj" in t or "experts.gate_up_proj.weight" in t:
        gate_up = t.get("experts.gate_up_proj", "experts.gate_up_proj.weight")
        shape = (d_model, 2 * d_ff) if transposed else (2 * d_ff, d_model)
        t.check("experts.gate_up_proj", gate_up, experts, *shape)
        w_gate, w_up = split_gate_up(gate_up, interleaved=interleaved, transposed=transposed)
        w_down = t.get("experts.down_proj", "experts.down_proj.weight")
        if transposed:
            w_down = swapped(t.check("experts.down_proj", w_down, experts, d_ff, d_model))
    else:
        mixtral = "experts.0.w1.weight" in t
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        one = {names[0]: up[1:], names[1]: up[1:], names[2]: down[1:]}
        w_gate, w_up, w_down = (
            stack([t.check(source, t.get(source), *one[name]) for source in _sources(name, experts)]) for name in names
        )
    return {
        "w_gate": t.check("gate projections", w_gate, *up),
        "w_up": t.check("up projections", w_up, *up),
        "w_down": t.check("down projections", w_down, *down),
    }
