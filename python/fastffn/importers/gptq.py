"""int4 weights of GPTQ and AWQ checkpoints: groups of a row share an f16 scale and a zero point, w = scale · (code - zero).

GPTQ  qweight int32 [in / 8, out], eight consecutive inputs to a number, the first lowest; qzeros int32 [groups, out / 8], eight
      outputs likewise, stored less one (by AutoGPTQ and GPTQModel's first format) or as they are (checkpoint_format "gptq_v2")
AWQ   qweight int32 [in, out / 8], eight outputs to a number in the order 0, 2, 4, 6, 1, 3, 5, 7; qzeros alike, as they are
scales f16 [groups, out]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import fastffn as ff
from fastffn._files.arrays import U8, AnyArray
from fastffn.importers.forms import is_torch

# Place of output o in AWQ's number: outputs 0, 2, 4, 6, 1, 3, 5, 7 lie in nibbles 0 to 7.
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)


def _array(tensors: Mapping[str, Any], name: str, dtypes: str) -> AnyArray:
    if name not in tensors:
        raise ValueError(f"load_int4: no tensor '{name}'; there are {', '.join(list(tensors)[:6]) or 'none'}")
    value = tensors[name]
    if is_torch(value):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    array: AnyArray = np.asarray(value)
    if array.dtype.kind not in dtypes or array.ndim != 2 or not array.size:
        what = "int32 of two dimensions" if dtypes == "i" else "floats of two dimensions"
        raise ValueError(f"load_int4: {name} is {array.dtype} of shape {array.shape}, expected {what}")
    return array


def _nibbles(numbers: AnyArray) -> U8:
    """int32 [rows, n] to codes [rows, n, 8], the lowest first."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    out: U8 = ((numbers.astype(np.int32).view(np.uint32)[..., None] >> shifts) & 15).astype(np.uint8)
    return out


def load_int4(
    tensors: Mapping[str, Any], *, prefix: str = "", method: str, zeros: str | None = None, act: str = "int8"
) -> Any:
    """One linear layer of a GPTQ or AWQ checkpoint as packed "int4": its own codes, scales and zero points, nothing rounded.

    Args:
        tensors: arrays by name, NumPy or torch: qweight, qzeros, scales and, of GPTQ, g_idx where there is one.
        prefix: what the layer's names begin with, such as "model.layers.0.mlp.up_proj.".
        method: "gptq" or "awq": the config's quant_method.
        zeros: of GPTQ, "minus_one" (unless checkpoint_format is "gptq_v2") or "plain": how zero points are stored. AWQ has
            them plain.
        act: of the activations; see :func:`fastffn.pack`.

    Raises:
        ValueError: missing tensors; shapes that contradict each other; groups other than 32, 64, 128 or 256;
            GPTQ's act-order (a g_idx that is not in order), whose columns would have to be moved; a
            method or a meaning of zeros that is not said; a zero point of 16, which four bits do not hold.
    """
    if method not in ("gptq", "awq"):
        raise ValueError(f"load_int4: method is {method!r}, expected 'gptq' or 'awq'")
    if method == "awq" and zeros not in (None, "plain"):
        raise ValueError(f"load_int4: zeros is {zeros!r}, AWQ stores them 'plain'")
    if method == "gptq" and zeros not in ("minus_one", "plain"):
        raise ValueError(
            f"load_int4: zeros is {zeros!r}, expected 'minus_one' (checkpoint_format 'gptq') or 'plain' ('gptq_v2')"
        )
    mine = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    qweight, qzeros = _array(mine, "qweight", "i"), _array(mine, "qzeros", "i")
    scales = _array(mine, "scales", "f").astype(np.float32)
    groups, outputs = scales.shape
    inputs = 8 * qweight.shape[0] if method == "gptq" else qweight.shape[0]
    expected = {
        "qweight": (inputs // 8, outputs) if method == "gptq" else (inputs, outputs // 8),
        "qzeros": (groups, outputs // 8),
    }
    for name, array in (("qweight", qweight), ("qzeros", qzeros)):
        if array.shape != expected[name] or outputs % 8 or inputs % groups:
            raise ValueError(
                f"load_int4: {name} has shape {array.shape} beside scales {scales.shape}, expected {expected[name]} with "
                "out_features in multiples of 8 and in_features in multiples of the groups"
            )
    group = inputs // groups
    if group not in (32, 64, 128, 256):
        raise ValueError(f"load_int4: groups of {group}, expected 32, 64, 128 or 256")
    if method == "gptq":
        codes = _nibbles(qweight).transpose(1, 0, 2).reshape(outputs, inputs)
        points = _nibbles(qzeros).reshape(groups, outputs).T.astype(np.float32)
        _check_order(mine.get("g_idx"), inputs, group)
    else:
        codes = _nibbles(qweight)[:, :, _AWQ].reshape(inputs, outputs).T
        points = _nibbles(qzeros)[:, :, _AWQ].reshape(groups, outputs).T.astype(np.float32)
    if zeros == "minus_one":
        points += 1
        if points.max() > 15:
            row, column = (int(i) for i in np.argwhere(points > 15)[0])
            raise ValueError(
                f"load_int4: a zero point of 16 at output {row}, group {column}, which four bits do not hold"
            )
    return ff.pack(
        np.ascontiguousarray(codes),
        "int4",
        group=group,
        scales=np.ascontiguousarray(scales.T),
        zeros=np.ascontiguousarray(points),
        act=act,
    )


def _check_order(g_idx: Any, inputs: int, group: int) -> None:
    if g_idx is None:
        return
    order = np.asarray(g_idx.detach().numpy() if is_torch(g_idx) else g_idx).reshape(-1)
    if order.size != inputs or not np.array_equal(order, np.arange(inputs) // group):
        raise ValueError("load_int4: g_idx is not in order (GPTQ's act-order), which packed weights do not hold")
