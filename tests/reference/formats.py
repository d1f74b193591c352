"""What each weight format stores, and what it makes of the activations that meet it.

| format | weights [out, in]                            | activations [..., in]                        |
|--------|----------------------------------------------|----------------------------------------------|
| f32    | f32                                          | f32                                          |
| f16    | f16                                          | f32                                          |
| bf16   | bf16                                         | bf16                                         |
| int8   | int8 and a scale per row (absmax / 127)      | int8 and a scale per token (absmax / 127)    |

sparse24 keeps two of every four consecutive weights of a row; its kept weights and its activations are those of the
format named after the dash, its "values": sparse24-bf16, sparse24-f16, sparse24-f32, sparse24-int8.

The formats of codes, CODES, hold scale · (code - zero) in 2 or 4 bits, one scale per matrix, row or group of a row, and meet
activations that are quantised per token to 8 or 4 bits, see code_values() and quantise_tokens(), or with act="bf16" rounded
to bf16.

All roundings are to nearest, ties to even.
"""

import numpy as np

SPARSE24 = ("sparse24-bf16", "sparse24-f16", "sparse24-f32", "sparse24-int8")
# Name → arguments of ff.pack. Those in FORMATS run through every kernel test, the rest through test_kernels_codes.py.
CODES = {
    "ternary": ("ternary", {}),
    "ternary-row": ("ternary", {"scale": "row"}),
    "ternary-group": ("ternary", {"group": 64}),
    "ternary-act4": ("ternary", {"act": "int4"}),
    "ternary-group-act4": ("ternary", {"act": "int4", "group": 256}),
    "int4": ("int4", {}),
    "int4-zp": ("int4", {"group": 32, "zero_points": True}),
    "int4-zp64": ("int4", {"group": 64, "zero_points": True}),
    "int4-act4": ("int4", {"act": "int4", "group": 256}),
    "int4-bf16": ("int4", {"act": "bf16"}),
    "int4-bf16-32": ("int4", {"act": "bf16", "group": 32}),
    "int4-bf16-256": ("int4", {"act": "bf16", "group": 256}),
    "int4-bf16-zp": ("int4", {"act": "bf16", "group": 64, "zero_points": True}),
    "ternary-rows": ("ternary", {"order": "rows"}),
    "ternary-rows-act4": ("ternary", {"order": "rows", "act": "int4"}),
    "ternary-rows-group": ("ternary", {"order": "rows", "act": "int4", "group": 32}),
    "int4-rows": ("int4", {"order": "rows"}),
    "int4-rows-zp": ("int4", {"order": "rows", "group": 32, "zero_points": True}),
    "int4-rows-zp256": ("int4", {"order": "rows", "group": 256, "zero_points": True}),
    "ternary-columns": ("ternary", {"order": "columns"}),
    "ternary-columns-group": ("ternary", {"order": "columns", "act": "int4", "group": 64}),
    "int4-columns": ("int4", {"order": "columns"}),
    "int4-columns-zp": ("int4", {"order": "columns", "group": 32, "zero_points": True}),
}
FORMATS = (
    "f32",
    "f16",
    "bf16",
    "int8",
    *SPARSE24,
    "ternary",
    "int4",
    "int4-zp",
    "ternary-rows",
    "ternary-columns",
    "int4-bf16",
)


def pack_arguments(fmt):
    """Name and options of ff.pack for a format as FORMATS or CODES calls it."""
    if fmt in CODES:
        return CODES[fmt]
    name, _, values = fmt.partition("-")
    return name, ({"values": values} if values else {})


def arithmetic(fmt):
    """Which numbers a format multiplies: "f32", "f16", "bf16" or "int8" (integer codes, and a scale per token)."""
    if fmt in CODES:
        return "bf16" if CODES[fmt][1].get("act") == "bf16" else "int8"
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


def code_group(fmt, depth):
    """How many weights of a row share a scale."""
    name, options = CODES[fmt]
    return options.get("group") or (128 if name == "int4" else depth)


def code_values(w, fmt):
    """scale · (code - zero) for w [..., out, in]. Scales of groups are f16, and codes are those of the scale as stored.

    ternary: scale = max(mean |w|, 1e-5) of the matrix, row or group; codes -1, 0, 1 (BitNet b1.58, arXiv:2402.17764).
    int4: scale = max |w| / 7, codes -8..7; with zero points (max - min) / 15 where min <= 0 <= max, codes 0..15.
    Quotients are f32's, so that the oracle decides near a half as the library does.
    """
    name, options = CODES[fmt]
    w = np.asarray(w).astype(np.float32)
    depth = w.shape[-1]
    group = code_group(fmt, depth)
    padded = np.zeros((*w.shape[:-1], -(-depth // group) * group), np.float32)
    padded[..., :depth] = w
    parts = padded.reshape(*w.shape[:-1], -1, group)
    rint, clip = np.rint, np.clip
    if name == "ternary":
        if "group" in options:
            count = np.minimum(group, depth - group * np.arange(parts.shape[-2]))
            scale = np.abs(parts.astype(np.float64)).sum(-1, keepdims=True) / count[:, None]
        else:
            axes = -1 if options.get("scale") == "row" else (-2, -1)
            scale = np.abs(w.astype(np.float64)).mean(axes, keepdims=True)[..., None]
        scale = np.maximum(scale.astype(np.float32), np.float32(1e-5))
        if "group" in options:
            scale = scale.astype(np.float16).astype(np.float32)
        codes = clip(rint(parts / scale), -1, 1)
    else:
        low = np.minimum(parts.min(-1, keepdims=True), 0)
        high = np.maximum(parts.max(-1, keepdims=True), 0)
        zero_points = "zero_points" in options
        scale = (high - low) / np.float32(15) if zero_points else np.maximum(-low, high) / np.float32(7)
        scale = scale.astype(np.float16).astype(np.float32)

        def steps(values):
            return rint(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0))

        zero = np.minimum(steps(-low), 15) if zero_points else np.float32(8)
        codes = clip(steps(parts) + zero, 0, 15) - zero
    values = codes.astype(np.float64) * scale
    return values.reshape(padded.shape)[..., :depth]


# The smallest magnitude that the scale of a token is made from.
CODES_SMALLEST = {"ternary": 1e-5, "int4": 1e-35}


def quantise_tokens(x, fmt):
    """Codes and scales of tokens that meet a format of codes.

    act="int8": γ = max(max|x|, smallest), codes rint(127 x / γ), x ≈ codes · γ / 127 (BitNet b1.58, arXiv:2402.17764).
    act="int4": β = mean|x|, codes clip(rint(√7 x / (β + smallest)), -8, 7), x ≈ codes · β / √7 (a4.8, arXiv:2411.04965).
    """
    x = np.asarray(x, np.float64)
    name, options = CODES[fmt]
    if options.get("act") == "int4":
        mean = np.abs(x).mean(-1, keepdims=True)
        return np.clip(np.rint(x * np.sqrt(7) / (mean + CODES_SMALLEST[name])), -8, 7), mean / np.sqrt(7)
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0), CODES_SMALLEST[name]) / 127
    return np.clip(np.rint(x / scale), -127, 127), scale


def weight_values(w, fmt):
    """The numbers that a packed weight of this format stands for, w of shape [..., out, in]."""
    if fmt in CODES:
        return code_values(w, fmt)
    w = prepare_weights(fmt, np.asarray(w))
    if arithmetic(fmt) == "int8":
        codes, scale = quantise_rows(w)
        return codes * scale
    return ROUND[arithmetic(fmt)](w)


# Tokens whose largest magnitude is below this count as zero under int8: 127 / max|x| overflows f32 near 3.7e-37.
INT8_SMALLEST_ROW = 1e-35


def activation_values(x, fmt):
    """The numbers that a format multiplies in place of the activations x of shape [..., in]."""
    if arithmetic(fmt) == "bf16":
        return round_bf16(x)
    if fmt in CODES:
        codes, scale = quantise_tokens(x, fmt)
        return codes * scale
    if arithmetic(fmt) == "int8":
        codes, scale = quantise_rows(x)
        return np.where(scale * 127 < INT8_SMALLEST_ROW, 0, codes * scale)
    return np.asarray(x, np.float64)
