"""fastffn and torch: each function builds one copy of the layer and returns a call on x."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from layer import Layer, Skip

Call = Callable[[torch.Tensor], torch.Tensor]


def fastffn(layer: Layer, dtype: str) -> Call:
    import fastffn as ff

    up, down = ff.pack(layer.up, dtype), ff.pack(layer.down, dtype)
    gate = ff.pack(layer.gate, dtype) if layer.gate is not None else None
    outputs: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def call(x: torch.Tensor) -> torch.Tensor:
        key = (x.shape[0], x.dtype)
        out = outputs.get(key)
        if out is None:
            out = outputs[key] = torch.empty(x.shape[0], layer.d_model, dtype=x.dtype)
        ff.ffn(x, up, down, gate, activation=layer.activation, out=out)
        return out

    return call


class _Module(torch.nn.Module):
    """As model code writes it: nn.Linear without biases."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        super().__init__()
        self.act = layer.act
        self.up = self._linear(layer.up, dtype)
        self.down = self._linear(layer.down, dtype)
        self.gate = self._linear(layer.gate, dtype) if layer.gate is not None else None

    @staticmethod
    def _linear(weight: torch.Tensor, dtype: torch.dtype) -> torch.nn.Linear:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
        return linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:
            return self.down(self.act(self.gate(x)) * self.up(x))
        return self.down(self.act(self.up(x)))


_TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def torch_eager(layer: Layer, dtype: str) -> Call:
    return _Module(layer, _TORCH_DTYPES[dtype]).eval()


def torch_compile(layer: Layer, dtype: str) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = True  # weights become constants, which inductor packs for oneDNN
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(_Module(layer, _TORCH_DTYPES[dtype]).eval(), dynamic=False)


def _dynamic_int8(layer: Layer, engine: str) -> Call:
    if engine not in torch.backends.quantized.supported_engines:
        raise Skip(f"this torch has no quantized engine {engine}")
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _Module(layer, torch.float32).eval()
        quantized = torch.ao.quantization.quantize_dynamic(copy.copy(module), {torch.nn.Linear}, dtype=torch.qint8)

    def call(x: torch.Tensor) -> torch.Tensor:
        # The packed weights are the engine's own, and the operator looks the engine up at each call.
        torch.backends.quantized.engine = engine
        return quantized(x)

    return call


def torch_dynq_onednn(layer: Layer, dtype: str) -> Call:
    return _dynamic_int8(layer, "onednn")


def torch_dynq_x86(layer: Layer, dtype: str) -> Call:
    return _dynamic_int8(layer, "x86")


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per output row: weights (out, in) and f32 scales (out,)."""
    scale = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def gated_activation(layer: Layer, fused: torch.Tensor) -> torch.Tensor:
    """act(first half) * second half, for contenders that compute gate and up with one matrix."""
    gate, up = fused.chunk(2, dim=-1)
    return layer.act(gate) * up
