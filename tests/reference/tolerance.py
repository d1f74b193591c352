"""How far a correct f32 implementation may be from the float64 oracle, derived from depth and dtype.

Every array here is a pair: the oracle's `value` and a bound `error` with |library - value| <= error, elementwise. Each
step of the computation turns the bound of its input into that of its output; nothing is fitted to what a kernel does.
The last step, rounding to the dtype of y, is monotone, so the library's output must lie in

    [round(value - error), round(value + error)]

Notation: u = 2^-24, the unit roundoff of f32.
"""

from dataclasses import dataclass

import numpy as np

from .activations import ACTIVATIONS, SLOPE
from .formats import CODES, CODES_SMALLEST, INT8_SMALLEST_ROW, ROUND, arithmetic, code_group, round_bf16

U = 2.0**-24
SMALLEST_NORMAL = 2.0**-126
SMALLEST = 2.0**-149

# The library's promise for its gelu, gelu_tanh, silu: at most this many u of |x|, before the result is used.
ACTIVATION_UNITS = 8


@dataclass
class Bounded:
    value: np.ndarray
    error: np.ndarray

    @classmethod
    def exact(cls, value):
        value = np.asarray(value, np.float64)
        return cls(value, np.zeros_like(value))


def accumulation_units(depth):
    """Units u of Σ|a||b| by which an f32 sum of `depth` products may be off, in whatever order it is added.

    A term meets at most depth roundings: never more than depth·u·Σ|a||b| (Higham, Accuracy and Stability, 3.1). But
    roundings are independent of each other (Higham and Mary 2019, doi:10.1137/18M1226312): with partial sums that grow
    evenly to S = Σ|a||b| their variance is Σ(u·S·k/depth)² = depth·(u·S)²/3, times 1/3 for errors uniform in ±u; so six
    standard deviations are 2·√depth·u·S. The smaller of the two, and 4 for the bias, a scale, and the conversion of the
    result.
    """
    return min(depth, 2 * np.sqrt(depth)) + 4


def weighted_sum(error, w):
    """Error of Σ_k w_k·x_k where every x_k is off by up to error_k, independently: error [..., in], w [out, in].

    At most Σ|w|·error; and where many errors meet, of either sign, four times their root of summed squares.
    """
    return np.minimum(error @ np.abs(w).T, 4 * np.sqrt(error**2 @ (w**2).T))


def rounded(x, round_to):
    """A monotone rounding of x ± error, such as the one to bf16: exact about which values may round the other way."""
    value = round_to(x.value)
    with np.errstate(invalid="ignore"):
        high = round_to(x.value + x.error) - value
        low = value - round_to(x.value - x.error)
    return Bounded(value, np.nan_to_num(np.maximum(high, low), nan=0.0))


def quantised(x):
    """Symmetric int8 per row of x ± error: codes move by one where x / scale comes within the error of a half.

    The scale, max|x| / 127, is off by at most what the largest element is off, and one f32 rounding; x / scale is
    computed as x · (127 / max|x|) or as a quotient, with at most 4 roundings. Returns the row values and, apart because
    all elements of a row share it, the relative error of the scale.
    """
    largest = np.abs(x.value).max(axis=-1, keepdims=True, initial=0)
    high = (np.abs(x.value) + x.error).max(axis=-1, keepdims=True, initial=0)
    low = np.maximum(np.abs(x.value) - x.error, 0).max(axis=-1, keepdims=True, initial=0)
    scale = np.where(largest < INT8_SMALLEST_ROW, 0, largest / 127)
    scale_error = np.maximum(high - largest, largest - low) / 127 + U * scale + SMALLEST
    live = scale > 0
    scale_error = np.where(live, scale_error, 0)
    ratio = np.divide(x.value, scale, out=np.zeros_like(x.value), where=live)
    relative = np.divide(scale_error, scale, out=np.zeros_like(scale), where=live)
    shift = np.divide(x.error, scale, out=np.zeros_like(x.value), where=live) + np.abs(ratio) * (relative + 4 * U)
    code = np.clip(np.rint(ratio), -127, 127)
    moved = np.maximum(
        np.clip(np.rint(ratio + shift), -127, 127) - code, code - np.clip(np.rint(ratio - shift), -127, 127)
    )
    return Bounded(code * scale, moved * (scale + scale_error)), relative


def code_tokens(x, fmt):
    """The same for formats of codes: quantise_tokens() of x ± error, and the relative error of the scales.

    act="int4": the mean is a sum in 16 lanes, so its error is under depth/16 + 8 units; a token's elements shift it by
    their mean error at most.
    """
    name, options = CODES[fmt]
    smallest = CODES_SMALLEST[name]
    magnitude = np.abs(x.value)
    if options.get("act") == "int4":
        depth = x.value.shape[-1]
        lowest, highest = -8, 7
        base = magnitude.mean(-1, keepdims=True)
        base_error = x.error.mean(-1, keepdims=True) + (depth / 16 + 8) * U * base + SMALLEST
        step, scale = (base + smallest) / np.sqrt(7), base / np.sqrt(7)
    else:
        lowest, highest = -127, 127
        base = np.maximum(magnitude.max(axis=-1, keepdims=True, initial=0), smallest)
        high = np.maximum((magnitude + x.error).max(axis=-1, keepdims=True, initial=0), smallest)
        low = np.maximum((magnitude - x.error).max(axis=-1, keepdims=True, initial=0), smallest)
        base_error = np.maximum(high - base, base - low) + U * base
        step = scale = base / 127
    relative = np.divide(base_error, base, out=np.zeros_like(base), where=base > 0)
    ratio = x.value / step
    shift = x.error / step + np.abs(ratio) * (relative + 4 * U)
    code = np.clip(np.rint(ratio), lowest, highest)
    up, down = np.clip(np.rint(ratio + shift), lowest, highest), np.clip(np.rint(ratio - shift), lowest, highest)
    moved = np.maximum(up - code, code - down)
    # A token of zeros with errors: its scale may be that of the errors, and its codes any that these reach.
    scale_error = np.where(base > 0, relative * scale, base_error)
    return Bounded(code * scale, moved * (scale + scale_error)), relative + 2 * U


def code_terms(x, w, fmt):
    """Σ|x|·|w| as it is added up with bf16 activations. Where zero points are, Σ x · code and zero · Σ x are summed apart: codes
    and zeros of up to 15 steps each, where a group spans 13 steps at least (its ends may be rounded or cut off by one each).
    And two units for w, which unpack gives as a product in f32, and the product of a sum and its scale."""
    if not CODES[fmt][1].get("zero_points"):
        return (1 + 2 / accumulation_units(w.shape[-1])) * (x @ np.abs(w).T)
    group = code_group(fmt, w.shape[-1])
    terms = np.zeros((*x.shape[:-1], w.shape[0]))
    for k in range(0, w.shape[-1], group):
        part = w[:, k : k + group]
        span = np.maximum(part.max(-1), 0) - np.minimum(part.min(-1), 0)
        terms += x[..., k : k + group].sum(-1, keepdims=True) * (2 * 15 / 13 * span)
    return terms


def linear(x, w, fmt, bias=None):
    """x ± error [..., in] times the values w [out, in] of a packed weight: [..., out]."""
    depth = w.shape[-1]
    # Sums of a group are exact (256 · 127 · 15 < 2^24); one f32 addition per group follows.
    groups = -(-depth // code_group(fmt, depth)) if fmt in CODES else 1
    codes, fmt = fmt, arithmetic(fmt)
    if fmt == "bf16":
        x = rounded(x, round_bf16)
    elif codes in CODES:
        x, scale_relative = code_tokens(x, codes)
    elif fmt == "int8":
        x, scale_relative = quantised(x)
    value = x.value @ w.T
    magnitude = np.abs(x.value) @ np.abs(w).T
    error = weighted_sum(x.error, w)
    if fmt == "int8":
        # Integers add exactly; three roundings follow: the sum to f32, the product of the scales, their product. A
        # product of scales under 2^-126 loses bits for good. And w, as unpack gives it, is code · scale rounded to f32.
        error = error + (scale_relative + 4 * U) * (np.abs(value) + error) + 127 * 127 * depth * SMALLEST
        error = error + groups * U * magnitude
    else:
        if codes in CODES:
            magnitude = code_terms(np.abs(x.value), w, codes)
        error = error + accumulation_units(depth) * U * magnitude + depth * SMALLEST
    if fmt == "bf16":
        # The instructions take factors and results under 2^-126 for zero.
        flushed = np.abs(x.value).sum(-1, keepdims=True) + np.abs(w).sum(-1) + depth
        error = error + SMALLEST_NORMAL * flushed
    if bias is not None:
        value = value + bias
        error = error + 2 * U * (np.abs(value) + np.abs(bias))
    return Bounded(value, error)


def activate(x, activation):
    value = ACTIVATIONS[activation](x.value)
    if activation == "relu2":
        # (x + e)² - x² <= 2·|x|·e + e² where x > 0, and e² elsewhere.
        error = 2 * np.maximum(x.value, 0) * x.error + x.error**2 + 2 * U * value
    else:
        error = SLOPE[activation] * x.error
        if activation in ("gelu", "gelu_tanh", "silu"):
            error = error + ACTIVATION_UNITS * U * np.abs(x.value)
    return Bounded(value, error + SMALLEST_NORMAL)


def multiply(a, b):
    """Elementwise product: |ab - a'b'| <= |a|·eb + |b|·ea + ea·eb, and one rounding."""
    value = a.value * b.value
    error = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    return Bounded(value, error + U * (np.abs(value) + error) + SMALLEST)


def clamped_swiglu(gate, up):
    """(clamp(up, ±7) + 1) · g · σ(1.702 g), g = min(gate, 7) (GPT-OSS): clamping widens no error, and the slope of the rest
    is that of silu."""
    g = np.minimum(gate.value, 7)
    gated = Bounded(
        ACTIVATIONS["silu"](1.702 * g) / 1.702,
        SLOPE["silu"] * gate.error + ACTIVATION_UNITS * U * np.abs(g) + SMALLEST_NORMAL,
    )
    linear_part = np.clip(up.value, -7, 7) + 1
    return multiply(gated, Bounded(linear_part, up.error + U * np.abs(linear_part)))


def hadamard(x, matrix, order=1):
    """matrix · (x ± error) along the last dimension; matrix orthonormal with entries ±1/√block, order: K of H_K.

    A sum meets the rounding of the scaled input, one addition per doubling of a block, and for H_K two and one per four
    segments.
    """
    entries = np.abs(matrix)
    block = round(1 / matrix[matrix != 0].flat[0] ** 2)
    steps = 2 + np.log2(block / order) + (0 if order == 1 else 2 + order / 4)
    value = x.value @ matrix.T
    error = weighted_sum(x.error, matrix) + steps * U * (np.abs(x.value) + x.error) @ entries.T + SMALLEST
    return Bounded(value, error)


def rms_norm(x, gamma, eps=1e-5, mean_cols=None):
    """(x ± error) / √(Σ x² / mean_cols + eps) ⊙ γ: the sum is f64's, so the root is off by what x is, and one rounding."""
    mean_cols = mean_cols or x.value.shape[-1]
    squares = (x.value**2).sum(-1, keepdims=True)
    rms = np.sqrt(squares / mean_cols + eps)
    rms_error = np.sqrt((x.error**2).sum(-1, keepdims=True) / mean_cols)
    relative = np.divide(rms_error, rms - rms_error, out=np.full_like(rms, np.inf), where=rms > rms_error) + 2 * U
    value = x.value / rms * gamma
    error = np.abs(gamma) * (x.error / rms) * (1 + relative) + np.abs(value) * (relative + 4 * U) + SMALLEST
    return Bounded(value, error)


def ffn(x, w_up, w_down, fmt, w_gate=None, b_up=None, b_down=None, b_gate=None, activation="gelu"):
    """The dense or gated layer on the values of packed weights; x [..., d_model] is what the caller passes, exact or a
    Bounded."""
    x = x if isinstance(x, Bounded) else Bounded.exact(x)
    up = linear(x, w_up, fmt, b_up)
    if activation == "swiglu_clamped":
        hidden = clamped_swiglu(linear(x, w_gate, fmt, b_gate), up)
    elif w_gate is None:
        hidden = activate(up, activation)
    else:
        hidden = multiply(activate(linear(x, w_gate, fmt, b_gate), activation), up)
    return linear(hidden, w_down, fmt, b_down)


def interval(y, dtype):
    """Lowest and highest values of dtype ("f32", "f16", "bf16") that a correct output may have."""
    return ROUND[dtype](y.value - y.error), ROUND[dtype](y.value + y.error)
