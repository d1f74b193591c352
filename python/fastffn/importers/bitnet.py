"""BitNet checkpoints as Hugging Face's transformers holds them: two bits a weight, four rows to a byte.

packed uint8 [⌈N / 4⌉, K]; bits 2i + 1:2i of byte (r, k) are weight (i · ⌈N / 4⌉ + r, k) + 1. Rows past N are padding and read -1.

`weight_scale` has two meanings. transformers' AutoBitLinear multiplies by it, its older BitLinear divides, and the config's
quantization_config.linear_class says which: "autobitlinear" (BitNet b1.58 2B4T) or "bitlinear".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import fastffn as ff
from fastffn._files.arrays import F32, I8, U8, bf16_to_f32
from fastffn._files.ternary import fields, joined
from fastffn.importers.families import ACTIVATIONS
from fastffn.importers.ffn_layer import FfnLayer
from fastffn.importers.forms import Array, Tensors, is_torch

_SHIFTS = (0, 2, 4, 6)
# linear_class → what weight_scale does.
_SCALES = {"autobitlinear": "multiply", "bitlinear": "divide"}


def _numpy(array: Array) -> Any:
    """A tensor on the CPU as NumPy; torch's bf16 as f32."""
    if not is_torch(array):
        return np.asarray(array)
    array = array.detach()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()


def _scale(array: Array, name: str) -> float:
    """The one number of a weight_scale."""
    values = _numpy(array)
    if values.dtype == np.uint16:  # bf16 as its bits, as readers without torch have it
        values = bf16_to_f32(values)
    if values.size != 1 or not np.isfinite(values.astype(np.float32)).all() or not values.astype(np.float32).all():
        raise ValueError(f"load_bitnet: {name} is {values.reshape(-1)[:4]}, expected one finite number other than 0")
    return float(values.reshape(-1)[0])


def unpack_bitnet(packed: Any, rows: int | None = None) -> I8:
    """Weights -1, 0 and 1, int8 [rows, K], of packed bytes uint8 [⌈rows / 4⌉, K].

    Args:
        packed: NumPy or torch.
        rows: out_features; four times the packed rows unless given. Rows of padding are trimmed.

    Raises:
        ValueError: another dtype or shape; rows that do not fit; code 3, which stands for no weight; padding that is not.
    """
    data = _numpy(packed)
    if data.dtype != np.uint8 or data.ndim != 2 or not data.size:
        raise ValueError(f"unpack_bitnet: packed is {data.dtype} of shape {data.shape}, expected uint8 [rows / 4, K]")
    packed_rows, columns = data.shape
    rows = 4 * packed_rows if rows is None else int(rows)
    if -(-rows // 4) != packed_rows or rows < 1:
        raise ValueError(
            f"unpack_bitnet: packed has shape {data.shape}, which holds {4 * packed_rows - 3} to {4 * packed_rows} rows, "
            f"not {rows}"
        )
    # [K, packed_rows] → [K, 4, packed_rows]: field i of packed row r is row i · packed_rows + r.
    codes = fields(np.ascontiguousarray(data.T), _SHIFTS).reshape(columns, 4 * packed_rows).T
    if codes.max() > 2:
        row, column = (int(i) for i in np.argwhere(codes == 3)[0])
        raise ValueError(f"unpack_bitnet: code 3, which stands for no weight, at row {row}, column {column}")
    if codes[rows:].any():
        raise ValueError(f"unpack_bitnet: rows from {rows} on are not padding: they hold weights other than -1")
    out: I8 = np.ascontiguousarray(codes[:rows]).astype(np.int8) - np.int8(1)
    return out


def pack_bitnet(codes: Any) -> U8:
    """Packed bytes uint8 [⌈N / 4⌉, K] of weights -1, 0 and 1 [N, K]: what :func:`unpack_bitnet` reads.

    Raises:
        ValueError: other weights, or another shape.
    """
    weights = _numpy(codes)
    if weights.ndim != 2 or not weights.size or not np.isin(weights, (-1, 0, 1)).all():
        raise ValueError(f"pack_bitnet: codes have shape {weights.shape}, expected [N, K] of -1, 0 and 1")
    rows, columns = weights.shape
    packed_rows = -(-rows // 4)
    padded = np.full((4 * packed_rows, columns), -1, np.int8)
    padded[:rows] = weights
    return np.ascontiguousarray(joined(padded.T.reshape(columns, 4, packed_rows), _SHIFTS).T)


class BitnetWeight(NamedTuple):
    """One weight as a checkpoint holds it: `weight` uint8 [⌈N / 4⌉, K] and `weight_scale` f32 [1]."""

    weight: U8
    weight_scale: F32


def export_bitnet(packed: Any, linear_class: str) -> BitnetWeight:
    """Packed "ternary" weights with one scale as transformers holds them: the other way round from :func:`load_bitnet`.

    Args:
        packed: made with one scale for the matrix and without a Hadamard transform.
        linear_class: "autobitlinear", which multiplies by weight_scale, or "bitlinear", which divides by it: then its
            reciprocal is stored, which f32 rounds.

    Raises:
        ValueError: other weights; an unknown linear_class.
    """
    if linear_class not in _SCALES:
        raise ValueError(f"export_bitnet: linear_class is {linear_class!r}, expected one of {_choices()}")
    info = ff.info(packed)
    if info.format != "ternary" or info.count != 1 or info.options.get("hadamard", "none") != "none":
        raise ValueError(
            f"export_bitnet: packed holds '{info.format}' {info.options}, expected one 'ternary' matrix without Hadamard"
        )
    held = ff.unpack_codes(packed)
    scales = np.asarray(held.scales)
    if not (scales == scales.flat[0]).all():
        raise ValueError("export_bitnet: packed has several scales, the checkpoint's form has one per matrix")
    scale = scales.reshape(-1)[:1].copy()
    if linear_class == "bitlinear":
        scale = (1 / scale.astype(np.float64)).astype(np.float32)
    return BitnetWeight(pack_bitnet(np.asarray(held.codes)), scale)


def _choices() -> str:
    return " or ".join(f"'{name}' ({what} by weight_scale)" for name, what in _SCALES.items())


class _Config:
    """What the importer reads of a config."""

    def __init__(self, source: Any, linear_class: str | None) -> None:
        self._source = source
        quantization = self.get("quantization_config", None)
        self._quantization = quantization if quantization is not None else {}
        method = _of(self._quantization, "quant_method", None)
        if method is not None and str(getattr(method, "value", method)) != "bitnet":
            raise ValueError(f"load_bitnet: the config's quant_method is '{method}', expected 'bitnet'")
        # transformers reads a quantization_config of bitnet without linear_class as "bitlinear".
        default = "bitlinear" if method is not None else None
        self.linear_class = linear_class or _of(self._quantization, "linear_class", default)
        if _of(self._quantization, "use_rms_norm", False):
            raise ValueError(
                "load_bitnet: the config has use_rms_norm, an RMSNorm before every projection; not supported"
            )

    def get(self, name: str, default: Any) -> Any:
        return _of(self._source, name, default)

    def scale(self, stored: float) -> float:
        """What weights are multiplied by."""
        if self.linear_class not in _SCALES:
            raise ValueError(
                f"load_bitnet: the config's quantization_config.linear_class is {self.linear_class!r}, expected "
                f"{_choices()}; pass linear_class= where you know which"
            )
        return stored if _SCALES[self.linear_class] == "multiply" else 1 / stored


def _of(source: Any, name: str, default: Any) -> Any:
    value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    return default if value is None else value


def load_bitnet(
    tensors: Mapping[str, Any],
    config: Any,
    *,
    prefix: str = "",
    linear_class: str | None = None,
    act: str = "int8",
    gate_first: bool = False,
    **options: Any,
) -> FfnLayer:
    """The feed-forward layer under ``prefix`` of a BitNet checkpoint, packed as "ternary": nothing is rounded.

    >>> layer = importers.load_bitnet(tensors, config, prefix="model.layers.0.mlp.")
    >>> y = layer(x)            # gate and up, relu² ⊙, sub-norm, down, each with activations of eight bits

    Args:
        tensors: arrays by name, NumPy or torch: gate_proj, up_proj and down_proj, each `.weight` uint8 with `.weight_scale`,
            or floats that were trained with online quantisation (their scale is then max(mean |w|, 1e-5)); and
            ffn_sub_norm.weight where the model has one. Others are left alone.
        config: the model's configuration: a dict of its config.json, or transformers' object.
        prefix: what the layer's names begin with.
        linear_class: "autobitlinear" (weights are multiplied by weight_scale) or "bitlinear" (divided); that of the
            config's quantization_config unless given.
        act, options: of :func:`fastffn.pack`.
        gate_first: arrange w_up by rows and w_down by columns, so that :func:`fastffn.ffn` can skip, for one or two tokens,
            what belongs to gates that are zero. The results are the same.

    Raises:
        ValueError: missing tensors; shapes that are not the config's; a linear_class that is neither; code 3.
    """
    settings = _Config(config, linear_class)
    t = Tensors(tensors, prefix, "bitnet", operation="load_bitnet")
    d_model, d_ff = (int(settings.get(name, 0)) for name in ("hidden_size", "intermediate_size"))
    if d_model < 1 or d_ff < 1:
        raise t.error(f"the config's hidden_size is {d_model} and intermediate_size {d_ff}, expected both")
    activation = str(settings.get("hidden_act", ""))
    activation = ACTIVATIONS.get(activation, activation)
    if activation not in ff.activations():
        raise t.error(f"hidden_act '{activation}' is none of {', '.join(ff.activations())}")

    orders = {"up_proj": "rows", "down_proj": "columns"} if gate_first else {}

    def packed(name: str, rows: int, columns: int) -> Any:
        order = {"order": orders[name]} if name in orders else {}
        weight = t.get(f"{name}.weight")
        if str(weight.dtype).removeprefix("torch.") != "uint8":
            t.check(f"{name}.weight", weight, rows, columns)
            if f"{name}.weight_scale" in t:
                raise t.error(f"{name}.weight is {weight.dtype} and has a weight_scale, expected uint8 codes with it")
            return ff.pack(_float_weight(weight), "ternary", act=act, **order, **options)
        t.check(f"{name}.weight", weight, -(-rows // 4), columns)
        scale = settings.scale(_scale(t.get(f"{name}.weight_scale"), f"{prefix}{name}.weight_scale"))
        try:
            codes = unpack_bitnet(weight, rows)
        except ValueError as error:
            raise t.error(f"{prefix}{name}.weight: {error}") from error
        return ff.pack(codes, "ternary", scale=np.array([scale], np.float32), act=act, **order, **options)

    parts: dict[str, Any] = {}
    for name, shape in (("gate", (d_ff, d_model)), ("up", (d_ff, d_model)), ("down", (d_model, d_ff))):
        parts[f"w_{name}"] = packed(f"{name}_proj", *shape)
        if f"{name}_proj.bias" in t:
            parts[f"b_{name}"] = _vector(t, f"{name}_proj.bias", shape[0])
    norm = None
    if "ffn_sub_norm.weight" in t:
        norm = _vector(t, "ffn_sub_norm.weight", d_ff)
    return FfnLayer(
        **parts, activation=activation, sub_norm=norm, sub_norm_eps=float(settings.get("rms_norm_eps", 1e-5))
    )


def _float_weight(weight: Array) -> Array:
    if is_torch(weight) or weight.dtype != np.uint16:
        return weight
    return bf16_to_f32(weight)


def _vector(t: Tensors, name: str, length: int) -> F32:
    values = _numpy(t.check(name, t.get(name), length))
    if values.dtype == np.uint16:
        values = bf16_to_f32(values)
    return np.ascontiguousarray(values.astype(np.float32))
