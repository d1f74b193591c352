"""Importers on tensors made here, in every form: against the float64 oracle. (test_importers_transformers.py: the originals.)"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from fastffn import importers
from reference import moe as moe_oracle
from reference import route as route_oracle

E, H, F, K = 8, 32, 20, 3
BASE = {"hidden_size": H, "num_experts_per_tok": K, "hidden_act": "silu"}
RNG = np.random.default_rng


class Weights:
    """Random experts [E, out, in], a router and shared experts."""

    def __init__(self, seed: int = 0) -> None:
        rng = RNG(seed)

        def normal(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

        self.gate, self.up, self.down = normal(E, F, H), normal(E, F, H), normal(E, H, F)
        self.router, self.correction, self.router_bias = normal(E, H) * 4, normal(E) * 0.3, normal(E)
        self.shared = {"gate_proj": normal(2 * F, H), "up_proj": normal(2 * F, H), "down_proj": normal(H, 2 * F)}
        self.shared_gate = normal(1, H)
        self.b_gate_up, self.b_down = normal(E, 2 * F), normal(E, H)

    def separate(self, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> dict[str, np.ndarray]:
        named = ((gate, self.gate), (up, self.up), (down, self.down))
        return {f"experts.{e}.{name}.weight": w[e] for name, w in named for e in range(E)}

    def fused(self) -> dict[str, np.ndarray]:
        return {"experts.gate_up_proj": np.concatenate([self.gate, self.up], 1), "experts.down_proj": self.down}

    def transposed(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(w.swapaxes(1, 2)) for name, w in self.fused().items()}

    def interleaved(self) -> dict[str, np.ndarray]:
        both = np.stack([self.gate, self.up], 2).reshape(E, 2 * F, H)
        return {
            "experts.gate_up_proj": np.ascontiguousarray(both.swapaxes(1, 2)),
            "experts.down_proj": np.ascontiguousarray(self.down.swapaxes(1, 2)),
            "experts.gate_up_proj_bias": self.b_gate_up,
            "experts.down_proj_bias": self.b_down,
            "router.bias": self.router_bias,
        }

    def shared_expert(self, name: str) -> dict[str, np.ndarray]:
        return {f"{name}.{part}.weight": w for part, w in self.shared.items()}


def expected(
    w: Weights,
    x: np.ndarray,
    routing: dict[str, Any],
    k: int = K,
    shared: Any = None,
    gpt_oss: bool = False,
    **rest: Any,
) -> np.ndarray:
    logits = x.astype(np.float64) @ w.router.T.astype(np.float64) + (w.router_bias if gpt_oss else 0)
    route = route_oracle.topk(logits, k, **routing)
    experts = []
    for e in range(E):
        biases = {}
        if gpt_oss:
            biases = {"b_gate": w.b_gate_up[e, ::2], "b_up": w.b_gate_up[e, 1::2], "b_down": w.b_down[e]}
        experts.append(moe_oracle.Expert(w.up[e], w.down[e], w.gate[e], **biases))
    all_tokens = []
    if shared:
        gate = w.shared_gate[0] if shared == "gated" else None
        all_tokens = [moe_oracle.Expert(w.shared["up_proj"], w.shared["down_proj"], w.shared["gate_proj"], gate=gate)]
    activation = "swiglu_clamped" if gpt_oss else "silu"
    return moe_oracle.moe(x, route.ids, route.weights, experts, activation, all_tokens, **rest).value


def check(layer: importers.MoeLayer, value: np.ndarray, x: np.ndarray, tolerance: float = 1e-5) -> None:
    assert layer.experts == E
    y = layer(x)
    assert y.dtype == x.dtype
    assert np.abs(y.astype(np.float64) - value).max() <= tolerance * np.abs(value).max()


X = RNG(5).standard_normal((17, H)).astype(np.float32)
W = Weights()
MIXTRAL = BASE | {"model_type": "mixtral", "num_local_experts": E, "intermediate_size": F}


def test_mixtral_in_both_forms() -> None:
    value = expected(W, X, {"renormalize": True})
    for tensors in (W.separate("w1", "w3", "w2"), W.fused()):
        tensors["gate.weight"] = W.router
        check(importers.load_moe(tensors, MIXTRAL, format="f32"), value, X)
        named = {f"model.layers.3.mlp.{name}": w for name, w in tensors.items()} | {"lm_head.weight": W.router}
        check(importers.load_moe(named, MIXTRAL, prefix="model.layers.3.mlp.", format="f32"), value, X)


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_qwen3_and_olmoe(family: str, renormalize: bool) -> None:
    config = BASE | {"model_type": family, "num_experts": E, "norm_topk_prob": renormalize, "intermediate_size": F}
    if family == "qwen3_moe":
        config |= {"moe_intermediate_size": F, "intermediate_size": 999}
    for tensors in (W.separate(), W.fused()):
        layer = importers.load_moe(tensors | {"gate.weight": W.router}, config, format="f32")
        check(layer, expected(W, X, {"renormalize": renormalize}), X)


def test_qwen2_with_its_gated_shared_expert() -> None:
    config = BASE | {
        "model_type": "qwen2_moe",
        "num_experts": E,
        "moe_intermediate_size": F,
        "shared_expert_intermediate_size": 2 * F,
    }
    tensors = (
        W.separate()
        | W.shared_expert("shared_expert")
        | {"gate.weight": W.router, "shared_expert_gate.weight": W.shared_gate}
    )
    check(importers.load_moe(tensors, config, format="f32"), expected(W, X, {}, shared="gated"), X)


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_deepseek_v2(method: str) -> None:
    config = BASE | {
        "model_type": "deepseek_v2",
        "n_routed_experts": E,
        "moe_intermediate_size": F,
        "n_shared_experts": 2,
        "topk_method": method,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 16.0,
    }
    routing = {"scale": 16.0} | ({"groups": 4, "topk_groups": 2} if method != "greedy" else {})
    tensors = W.separate() | W.shared_expert("shared_experts") | {"gate.weight": W.router}
    check(importers.load_moe(tensors, config, format="f32"), expected(W, X, routing, shared="plain"), X)
    for option, value in (("norm_topk_prob", True), ("scoring_func", "sigmoid"), ("topk_method", "best")):
        with pytest.raises(ValueError, match=option):
            importers.load_moe(tensors, config | {option: value})


def test_deepseek_v3() -> None:
    config = BASE | {
        "model_type": "deepseek_v3",
        "n_routed_experts": E,
        "moe_intermediate_size": F,
        "n_shared_experts": 2,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    }
    routing = {
        "score": "sigmoid",
        "correction_bias": W.correction,
        "groups": 4,
        "topk_groups": 2,
        "group_score": "top2",
        "renormalize": True,
        "scale": 2.5,
    }
    tensors = W.separate() | W.shared_expert("shared_experts")
    tensors |= {"gate.weight": W.router, "gate.e_score_correction_bias": W.correction}
    check(importers.load_moe(tensors, config, format="f32"), expected(W, X, routing, shared="plain"), X)
    tensors["experts.0.gate_proj.weight"] = tensors["experts.0.gate_proj.weight"].astype(ml_dtypes.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"experts\.0\.gate_proj\.weight' is float8_e4m3fn with block scales"):
        importers.load_moe(tensors, config)


GPT_OSS = BASE | {"model_type": "gpt_oss", "num_local_experts": E, "intermediate_size": F, "swiglu_limit": 7.0}


def test_gpt_oss() -> None:
    value = expected(W, X, {"score": "topk_softmax"}, gpt_oss=True)
    tensors = W.interleaved() | {"router.weight": W.router}
    check(importers.load_moe(tensors, GPT_OSS, format="f32"), value, X)
    with pytest.raises(ValueError, match="swiglu_limit is 5.0"):
        importers.load_moe(tensors, GPT_OSS | {"swiglu_limit": 5.0})


def test_llama4() -> None:
    w = Weights()
    w.shared = {name: part[:F] if name != "down_proj" else part[:, :F].copy() for name, part in w.shared.items()}
    config = BASE | {
        "model_type": "llama4_text",
        "num_local_experts": E,
        "intermediate_size": F,
        "num_experts_per_tok": 1,
    }
    tensors = w.transposed() | w.shared_expert("shared_expert") | {"router.weight": w.router}
    value = expected(w, X, {"score": "sigmoid"}, 1, shared="plain", weights_on_input=True)
    check(importers.load_moe(tensors, config, format="f32"), value, X)


def test_mxfp4() -> None:
    rng = RNG(6)
    w, half = Weights(), 16  # F = 32, as blocks are of 32
    gate_up = rng.integers(0, 256, (E, 64, 1, half), np.uint8)
    down = rng.integers(0, 256, (E, H, 1, half), np.uint8)
    scales = rng.integers(122, 127, (E, 64, 1), np.uint8), rng.integers(122, 127, (E, H, 1), np.uint8)
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    both = importers.unpack_mxfp4(gate_up, scales[0])
    assert both.shape == (E, 64, 32) and both.dtype == np.float32
    for e, row, byte in ((0, 0, 0), (3, 17, 9), (7, 63, 15)):
        code = int(gate_up[e, row, 0, byte])
        for half_byte, found in ((code & 15, both[e, row, 2 * byte]), (code >> 4, both[e, row, 2 * byte + 1])):
            sign = -1 if half_byte & 8 else 1
            assert found == sign * table[half_byte & 7] * 2.0 ** (int(scales[0][e, row, 0]) - 127)
    w.gate, w.up, w.down = both[:, ::2], both[:, 1::2], importers.unpack_mxfp4(down, scales[1])
    w.b_gate_up = rng.standard_normal((E, 64)).astype(np.float32)
    tensors = {
        "experts.gate_up_proj_blocks": gate_up,
        "experts.gate_up_proj_scales": scales[0],
        "experts.down_proj_blocks": down,
        "experts.down_proj_scales": scales[1],
        "experts.gate_up_proj_bias": w.b_gate_up,
        "experts.down_proj_bias": w.b_down,
        "router.weight": w.router,
        "router.bias": w.router_bias,
    }
    config = GPT_OSS | {"intermediate_size": 32}
    check(importers.load_moe(tensors, config, format="f32"), expected(w, X, {"score": "topk_softmax"}, gpt_oss=True), X)
    assert np.isnan(importers.unpack_mxfp4(gate_up, np.full_like(scales[0], 255))).all()
    with pytest.raises(ValueError, match="expected uint8"):
        importers.unpack_mxfp4(gate_up.astype(np.int32), scales[0])
    with pytest.raises(ValueError, match="expected \\(..., groups, 16\\)"):
        importers.unpack_mxfp4(gate_up[..., :8], scales[0])


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "int8"])  # those that take dense weights
def test_formats(fmt: str) -> None:
    value = expected(W, X, {"renormalize": True})
    layer = importers.load_moe(W.fused() | {"gate.weight": W.router}, MIXTRAL, format=fmt)
    assert {ff.info(w).format for w in (layer.w_up, layer.w_gate, layer.w_down)} == {fmt}
    check(layer, value, X, {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2, "int8": 4e-2}[fmt])


def test_split_gate_up() -> None:
    both = np.arange(2 * 6 * 4).reshape(2, 6, 4)
    gate, up = importers.split_gate_up(both)
    np.testing.assert_array_equal(np.concatenate([gate, up], 1), both)
    gate, up = importers.split_gate_up(both, interleaved=True)
    np.testing.assert_array_equal(np.stack([gate, up], 2).reshape(both.shape), both)
    turned = importers.split_gate_up(both.swapaxes(1, 2), interleaved=True, transposed=True)
    np.testing.assert_array_equal(turned[0], gate)
    assert np.shares_memory(gate, both)
    with pytest.raises(ValueError, match="5 rows cannot be halved"):
        importers.split_gate_up(both[:, :5])


def test_messages() -> None:
    tensors = W.separate("w1", "w3", "w2") | {"gate.weight": W.router}

    def error(tensors: Any = tensors, config: Any = MIXTRAL, **options: Any) -> str:
        with pytest.raises(ValueError) as caught:
            importers.load_moe(tensors, config, **options)
        return str(caught.value)

    assert "model_type 'bert' is not known; expected one of mixtral," in error(config=MIXTRAL | {"model_type": "bert"})
    assert error(config={"model_type": "mixtral"}) == "load_moe: the config has no 'hidden_size'"
    assert "no tensor's name starts with 'layers.9.'" in error(prefix="layers.9.")
    missing = {name: w for name, w in tensors.items() if name != "experts.5.w3.weight"}
    assert "no tensor 'experts.5.w3.weight'" in error(missing)
    assert "gate projections has shape (8, 20, 32), expected (8, 21, 32) from the config" in error(
        config=MIXTRAL | {"intermediate_size": 21}
    )
    assert "gate.weight has shape (7, 32), expected (8, 32)" in error(tensors | {"gate.weight": W.router[:7]})
    assert "num_experts_per_tok is 9, expected 1 to 8" in error(config=MIXTRAL | {"num_experts_per_tok": 9})
    assert "hidden_act 'mish' is none of" in error(config=MIXTRAL | {"hidden_act": "mish"})
    assert "format 'int3' is not known" in error(format="int3")


def test_layer() -> None:
    layer = importers.load_moe(W.fused() | {"gate.weight": W.router}, MIXTRAL)
    ids, weights = layer.route(X)
    assert ids.shape == weights.shape == (17, K)
    load, out = np.zeros(E, np.int64), np.empty_like(X)
    assert layer(X, load=load, out=out) is out
    assert load.sum() == 17 * K
    np.testing.assert_array_equal(layer(X.reshape(1, 17, H))[0], out)
    np.testing.assert_array_equal(layer(X.astype(np.float16)).dtype, np.float16)
    assert importers.families()[0] == "mixtral"
