"""What each weight format stores, and what it makes of the activations that meet it.

| format | weights [out, in]                            | activations [..., in]                        |
|--------|----------------------------------------------|----------------------------------------------|
| f32    | f32                                          | f32                                          |
| f16    | f16                                          | f32                                          |
| bf16   | bf16                                         | bf16                                         |
| int8   | int8 and a scale per row (absmax / 127)      | int8 and a scale per token (absmax / 127)    |

sparse24 keeps two of every four consecutive weights of a row; its kept weights and its activations are those of the
format named after the dash, its "values": sparse24-bf16, sparse24-f16, sparse24-f32, sparse24-int8.

All roundings are to nearest, ties to even.
"""

import numpy as np

SPARSE24 = ("sparse24-bf16", "sparse24-f16", "sparse24-f32", "sparse24-int8")
FORMATS = ("f32", "f16", "bf16", "int8", *SPARSE24)


def pack_arguments(fmt):
    """Name and options of ff.pack for a format as FORMATS calls it."""
    name, _, values = fmt.partition("-")
    return name, ({"values": values} if values else {})


def arithmetic(fmt):
    """Which numbers a format multiplies: "f32", "f16", "bf16" or "int8"."""
    return fmt.rpartition("-")[2]


def prepare_weights(fmt, w):
    """Weights that a format can hold, near any w: 2:4 formats keep the two largest of every four, ties to the left."""
    if fmt not in SPARSE24:
        return w
    depth = w.shape[-1]
    padded = np.zeros((*w.shape[:-1], -(-depth // 4), 4), np.float64)
    padded.reshape(*w.shape[:-1], -1)[..., :depth] = np.abs(w.astype(np.float64))
    order = np.argsort(-padded, axis=-1, kind="stable")  # NaN comes last: tests with NaN prune by themselves
    keep = np.zeros(padded.shape, bool)
    np.put_along_axis(keep, order[..., :2], True, axis=-1)
    return np.where(keep.reshape(*w.shape[:-1], -1)[..., :depth], w, np.zeros((), w.dtype))


def kept_positions(w):
    """Which weights sparse24 multiplies, for values w [..., out, in] that it stores: the nonzero ones, and where a group of
    four has fewer than two, zeros at fixed positions (3 beside another one; 2 beside 3; 2 and 3 in an empty group)."""
    depth = w.shape[-1]
    groups = np.zeros((*w.shape[:-1], -(-depth // 4) * 4), bool)
    groups[..., :depth] = w != 0
    groups = groups.reshape(*w.shape[:-1], -1, 4)
    count = groups.sum(-1)
    kept = groups.copy()
    kept[..., 3] |= count < 2
    kept[..., 2] |= (count == 0) | ((count == 1) & groups[..., 3])
    return kept.reshape(*w.shape[:-1], -1)[..., :depth]


def round_f32(x):
    """f32 values nearest to x, as float64."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float64).astype(np.float32).astype(np.float64)


def round_f16(x):
    """f16 values nearest to x, as float64."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float64).astype(np.float16).astype(np.float64)


def round_bf16(x):
    """bf16 values nearest to x, as float64.

    bf16 has 8 significant bits and the exponents of f32: scale the significand to 8 bits and round it once.
    """
    x = np.asarray(x, np.float64)
    exponent = np.frexp(np.where(np.isfinite(x), x, 0))[1]
    # Below 2^-126 the spacing stays 2^-133.
    exponent = np.maximum(exponent, -125)
    rounded = np.ldexp(np.rint(np.ldexp(np.where(np.isfinite(x), x, 0), 8 - exponent)), exponent - 8)
    largest = np.ldexp(255.0, 120)
    rounded = np.where(np.abs(rounded) > largest, np.copysign(np.inf, x), rounded)
    return np.where(np.isfinite(x), rounded, x)


ROUND = {"f32": round_f32, "f16": round_f16, "bf16": round_bf16}


def quantise_rows(x):
    """Symmetric int8 along the last dimension: codes in [-127, 127] and a scale per row.

    x ≈ codes · scale, scale = max|x| / 127; rows of zeros have scale 0.
    """
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis=-1, keepdims=True, initial=0) / 127
    codes = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0))
    return np.clip(codes, -127, 127), scale


def weight_values(w, fmt):
    """The numbers that a packed weight of this format stands for, w of shape [..., out, in]."""
    w = prepare_weights(fmt, np.asarray(w))
    if arithmetic(fmt) == "int8":
        codes, scale = quantise_rows(w)
        return codes * scale
    return ROUND[arithmetic(fmt)](w)


# Tokens whose largest magnitude is below this count as zero under int8: 127 / max|x| overflows f32 near 3.7e-37.
INT8_SMALLEST_ROW = 1e-35


def activation_values(x, fmt):
    """The numbers that a format multiplies in place of the activations x of shape [..., in]."""
    if arithmetic(fmt) == "int8":
        codes, scale = quantise_rows(x)
        return np.where(scale * 127 < INT8_SMALLEST_ROW, 0, codes * scale)
    return round_bf16(x) if arithmetic(fmt) == "bf16" else np.asarray(x, np.float64)
