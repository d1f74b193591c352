"""Gradients of fastffn.torch, against torch's own on the same formulas; training in a format; what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import fastffn as ff

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

import fastffn.torch as ft  # noqa: E402
from fastffn.torch._activations import ACTIVATIONS  # noqa: E402

D_MODEL, D_FF, D_OUT, EXPERTS, K = 40, 72, 24, 4, 2


def values(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def leaves(*tensors: Any) -> list[Any]:
    return [t.clone().requires_grad_() for t in tensors]


def reference_ffn(x: Any, up: Any, down: Any, gate: Any, b_up: Any, b_down: Any, b_gate: Any, activation: str) -> Any:
    hidden = functional.linear(x, up, b_up)
    if gate is None:
        return functional.linear(ACTIVATIONS[activation](hidden), down, b_down)
    g = functional.linear(x, gate, b_gate)
    if activation == "swiglu_clamped":
        g = g.clamp(max=7.0)
        hidden = (hidden.clamp(-7.0, 7.0) + 1) * g * torch.sigmoid(1.702 * g)
    else:
        hidden = ACTIVATIONS[activation](g) * hidden
    return functional.linear(hidden, down, b_down)


def agree(got: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """f32 against float64: sums of up to a few hundred products."""
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        assert (a.double() - b.double()).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ff.activations())
def test_ffn(activation: str, gated: bool) -> None:
    if activation == "swiglu_clamped" and not gated:
        pytest.skip("it needs a gate")
    x = leaves(4 * values(3, 5, D_MODEL, seed=1) * D_MODEL**0.5)[0]
    up, down, gate = leaves(values(D_FF, D_MODEL, seed=2), values(D_OUT, D_FF, seed=3), values(D_FF, D_MODEL, seed=4))
    biases = leaves(values(D_FF, seed=5), values(D_OUT, seed=6), values(D_FF, seed=7))
    used = [x, up, down, *([gate] if gated else []), *biases[:2], *(biases[2:] if gated else [])]
    direction = values(3, 5, D_OUT, seed=8)

    double = {id(t): t.detach().double().requires_grad_() for t in used}

    def exact(t: Any) -> Any:
        return double.get(id(t))

    y = reference_ffn(*map(exact, (x, up, down, gate, *biases)), activation)
    expected = torch.autograd.grad((y * direction).sum(), [double[id(t)] for t in used])

    y = torch.ops.fastffn.ffn_plain(
        x, [up], [down], [gate] if gated else [], biases[0], biases[1], biases[2] if gated else None, activation, ["f32"] * 3
    )  # fmt: skip
    agree(torch.autograd.grad((y * direction).sum(), used), expected)

    packed = [ff.pack(w, "f32") for w in (up, down, gate)]
    y = ft.ffn(
        x, *packed[:2], packed[2] if gated else None, *biases[:2], biases[2] if gated else None, activation=activation
    )
    kept = [i for i, t in enumerate(used) if t is not up and t is not down and t is not gate]
    agree(torch.autograd.grad((y * direction).sum(), [used[i] for i in kept]), [expected[i] for i in kept])


def test_segments_have_the_gradient_of_the_slice() -> None:
    x, up, down = leaves(values(5, D_MODEL, seed=1))[0], values(D_FF, D_MODEL, seed=2), values(D_OUT, D_FF, seed=3)
    packed = [ff.pack(w, "f32") for w in (up, down)]
    y = ft.ffn(x, *packed, activation="silu", segments=[(0, 16), (40, 7)])
    keep = [*range(16), *range(40, 47)]
    expected = reference_ffn(x, up[keep], down[:, keep], None, None, None, None, "silu")
    agree(torch.autograd.grad(y.square().sum(), [x]), torch.autograd.grad(expected.square().sum(), [x]))


def test_linear_and_router_logits() -> None:
    x, bias = leaves(values(3, 5, D_MODEL, seed=1), values(D_FF, seed=2))
    w = values(D_FF, D_MODEL, seed=3)
    packed, direction = ff.pack(w, "f32"), values(3, 5, D_FF, seed=4)
    expected = torch.autograd.grad((functional.linear(x, w, bias) * direction).sum(), [x, bias])
    for call in (ft.linear, ft.router_logits):
        agree(torch.autograd.grad((call(x, packed, bias) * direction).sum(), [x, bias]), expected)


@pytest.mark.parametrize("format", ["bf16", "f16", "int8", "ternary", "int4"])
def test_gradients_are_those_of_the_weights_that_the_format_holds(format: str) -> None:
    x = leaves(values(5, D_MODEL, seed=1) * 6)[0]
    up, down = leaves(values(D_FF, D_MODEL, seed=2), values(D_OUT, D_FF, seed=3))
    held = leaves(*(ff.unpack(ff.pack(w, format)) for w in (up, down)))
    direction = values(5, D_OUT, seed=4)
    expected = torch.autograd.grad(
        (reference_ffn(x, *held, None, None, None, None, "gelu") * direction).sum(), [x, *held]
    )  # fmt: skip
    y = torch.ops.fastffn.ffn_plain(x, [up], [down], [], None, None, None, "gelu", [format] * 3)
    agree(torch.autograd.grad((y * direction).sum(), [x, up, down]), expected)


@pytest.mark.parametrize("weights_on_input", [False, True])
@pytest.mark.parametrize(
    "route",
    [
        {"score": "softmax"}, {"score": "softmax", "renormalize": True, "scale": 2.5}, {"score": "topk_softmax"},
        {"score": "sigmoid", "renormalize": True}, {"score": "relu"},
    ],
    ids=str,
)  # fmt: skip
def test_moe(route: dict[str, Any], weights_on_input: bool) -> None:
    x, logits = leaves(values(7, D_MODEL, seed=1) * 6, values(7, EXPERTS, seed=2) * 3)
    up, gate = leaves(*(values(EXPERTS, D_FF, D_MODEL, seed=s) for s in (3, 4)))
    down = leaves(values(EXPERTS, D_OUT, D_FF, seed=5))[0]
    tables = leaves(*(values(EXPERTS, n, seed=6 + i) for i, n in enumerate((D_FF, D_OUT, D_FF))))
    direction = values(7, D_OUT, seed=9)
    ids, weights = ft.route_topk(logits, K, **route)
    assert ids.dtype == torch.int32 and weights.requires_grad

    score, chosen = route["score"], ids.long().clamp(min=0)
    if score == "topk_softmax":
        w = torch.softmax(logits.gather(-1, chosen), -1)
    elif score == "relu":
        positive = logits.relu()
        w = (positive / (positive.square().mean(-1, keepdim=True) + 1e-6).sqrt()).gather(-1, chosen)
    else:
        w = (torch.sigmoid(logits) if score == "sigmoid" else torch.softmax(logits, -1)).gather(-1, chosen)
    w = w * (ids >= 0)
    if route.get("renormalize"):
        w = w / w.sum(-1, keepdim=True)
    w = w * route.get("scale", 1.0)
    agree([weights], [w])
    rows = []
    for t in range(7):
        row: Any = 0
        for j in range(K):
            e = int(chosen[t, j])
            inputs = x[t] * w[t, j] if weights_on_input else x[t]
            y = reference_ffn(inputs, up[e], down[e], gate[e], *(b[e] for b in tables), "silu")
            row = row + (y * (ids[t, j] >= 0) if weights_on_input else y * w[t, j])
        rows.append(row)
    used = [x, logits, up, down, gate, *tables]
    expected = torch.autograd.grad((torch.stack(rows) * direction).sum(), used, retain_graph=True)
    y = torch.ops.fastffn.moe_plain(
        x, ids, weights, [up], [down], [gate], *tables, "silu", ["f32"] * 3, weights_on_input
    )  # fmt: skip
    agree(torch.autograd.grad((y * direction).sum(), used, retain_graph=True), expected)

    packed, plain = [ff.pack(s, "f32") for s in (up, down, gate)], [b.detach() for b in tables]
    y = ft.moe(x, ids, weights, *packed, *plain, activation="silu", weights_on_input=weights_on_input)
    agree(torch.autograd.grad((y * direction).sum(), [x, logits]), expected[:2])


def test_moe_with_shared_and_special_experts() -> None:
    x, weights = leaves(values(6, D_MODEL, seed=1) * 6, values(6, 3, seed=2).abs())
    up, gate = (values(EXPERTS, D_FF, D_MODEL, seed=s) for s in (3, 4))
    down = values(EXPERTS, D_MODEL, D_FF, seed=5)
    v = values(2, D_MODEL, seed=6)
    ids = torch.tensor([[0, 4, 5], [3, 1, -1], [4, 4, 2], [5, 5, 5], [1, 1, 0], [-1, -1, -1]], dtype=torch.int32)
    packed = [ff.pack(s, "f32") for s in (up, down, gate)]
    shared = ff.SharedExperts(*(ff.pack(s[:2], "f32") for s in (up, down, gate)), gate=v)
    y = ft.moe(x, ids, weights, *packed, activation="gelu", shared=shared, special=("copy", "zero"))
    rows = []
    for t in range(6):
        row: Any = sum(
            torch.sigmoid(x[t] @ v[s]) * reference_ffn(x[t], up[s], down[s], gate[s], None, None, None, "gelu")
            for s in (0, 1)
        )
        for j in range(3):
            e = int(ids[t, j])
            if e == 4:
                row = row + weights[t, j] * x[t]
            elif 0 <= e < 4:
                row = row + weights[t, j] * reference_ffn(x[t], up[e], down[e], gate[e], None, None, None, "gelu")
        rows.append(row)
    expected = torch.stack(rows)
    agree([y], [expected])
    agree(
        torch.autograd.grad(y.square().sum(), [x, weights]), torch.autograd.grad(expected.square().sum(), [x, weights])
    )


def test_masked_logits_have_finite_gradients() -> None:
    logits = values(4, EXPERTS, seed=1) * 4
    logits[0, 2] = -torch.inf
    logits[1] = -torch.inf
    logits[2, 0] = torch.nan
    for score in ("softmax", "sigmoid", "topk_softmax", "relu"):
        leaf = logits.clone().requires_grad_()
        _, weights = ft.route_topk(leaf, K, score=score, renormalize=score != "relu")
        (grad,) = torch.autograd.grad((weights * values(4, K, seed=2)).sum(), [leaf])
        assert grad.isfinite().all() and not grad[2].any() and not grad[0, 2].any()


def test_what_has_no_gradient_is_refused() -> None:
    x = leaves(values(5, D_MODEL, seed=1))[0]
    packed = [ff.pack(values(EXPERTS, *s, seed=2), "f32") for s in ((D_FF, D_MODEL), (D_MODEL, D_FF))]
    ids = torch.zeros(5, K, dtype=torch.int32)
    table = values(EXPERTS, D_FF).requires_grad_()
    with pytest.raises(RuntimeError, match="moe: gradients reach x and weights, and a bias"):
        ft.moe(x, ids, None, *packed, None, table, activation="relu")
    constant = ff.SpecialExperts(("constant",), values(1, D_MODEL), values(1, 2, D_MODEL))
    with pytest.raises(RuntimeError, match="moe: constant experts have no gradients"):
        ft.moe(x, ids, None, *packed, activation="relu", special=constant)
    tree = ff.pack_tree(values(7, D_MODEL), None, values(7, D_OUT))
    with pytest.raises(RuntimeError, match="fff: an argument requires grad, and packed trees have no gradients"):
        ft.fff(x, tree, activation="relu")
    with torch.no_grad():
        assert not ft.fff(x, tree, activation="relu").requires_grad
        assert torch.equal(ft.moe(x, ids, None, *packed, None, table, activation="relu"),
                           ff.moe(x, ids, None, *packed, None, table, activation="relu"))  # fmt: skip


def modules() -> list[Any]:
    torch.manual_seed(0)
    route = {"experts": EXPERTS, "k": K, "shared_d_ff": 16, "shared_gate": True, "renormalize": True}
    return [
        ft.FFN(D_MODEL, D_FF, activation="gelu", bias=True, format="int8", trainable=True),
        ft.FFN(D_MODEL, D_FF, activation="silu", gated=True, format="ternary:scale=row", trainable=True),
        ft.MoE(D_MODEL, 24, activation="silu", format="bf16", trainable=True, **route),
        ft.LowRankFFN(D_MODEL, D_FF, rank=12, activation="gelu", gated=True, bias=True),
    ]


@pytest.mark.parametrize("which", range(4))
def test_modules_learn_and_then_run_packed(which: int) -> None:
    module = modules()[which]
    x = values(64, D_MODEL, seed=1) * 6
    with torch.no_grad():
        target = module(x) + 0.3 * torch.tanh(x.flip(-1))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = functional.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert losses[-1] < 0.7 * losses[0]
    packed = module.packed()
    with torch.no_grad():
        agree([packed(x)], [module(x)])
    assert not list(packed.parameters())


@pytest.mark.parametrize("which", range(4))
def test_compiled_training_has_the_same_gradients(which: int) -> None:
    module, x = modules()[which], leaves(values(9, D_MODEL, seed=1) * 6)[0]
    module(x).square().sum().backward()
    expected = [t.grad.clone() for t in (x, *module.parameters())]
    x.grad = None
    module.zero_grad()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    torch.compiler.reset()
    agree([t.grad for t in (x, *module.parameters())], expected)


def test_autocast_in_training() -> None:
    for module in modules():
        x = leaves(values(9, D_MODEL, seed=1) * 6)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        assert x.grad.dtype == torch.float32 and all(p.grad.dtype == p.dtype for p in module.parameters())


def test_checkpointing_and_frozen_layers() -> None:
    layer = modules()[0].packed()
    x = leaves(values(9, D_MODEL, seed=1) * 6)[0]
    (expected,) = torch.autograd.grad(layer(x).square().sum(), [x])
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    agree(torch.autograd.grad(y.square().sum(), [x]), [expected])


def test_sub_norm() -> None:
    x, gamma, b_gate = leaves(values(5, D_MODEL, seed=1) * 6, values(D_FF, seed=2) + 1, values(D_FF, seed=3))
    up, down, gate = values(D_FF, D_MODEL, seed=4), values(D_OUT, D_FF, seed=5), values(D_FF, D_MODEL, seed=6)
    packed = [ff.pack(w, "f32") for w in (up, down, gate)]
    y = ft.ffn(x, *packed, b_gate=b_gate, activation="relu2", sub_norm=gamma, sub_norm_eps=1e-3)
    hidden = functional.relu(functional.linear(x, gate, b_gate)).square() * functional.linear(x, up)
    hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-3) * gamma
    expected = functional.linear(hidden, down)
    agree([y], [expected])
    used = [x, gamma, b_gate]
    agree(torch.autograd.grad(y.square().sum(), used), torch.autograd.grad(expected.square().sum(), used), 1e-4)


@pytest.mark.parametrize("mode", ["pow2", "kron", "block"])
def test_hadamard_and_rotated_weights(mode: str) -> None:
    width = {"pow2": 64, "kron": 96, "block": 96}[mode]
    x = leaves(values(5, width, seed=1))[0]
    y = ft.hadamard(x, mode)
    assert torch.equal(y, ff.hadamard(x.detach(), mode))
    matrix = ff.hadamard(torch.eye(width), mode).T
    agree(torch.autograd.grad((y * values(5, width, seed=2)).sum(), [x]), [values(5, width, seed=2) @ matrix])
    compiled = torch.compile(lambda x: ft.hadamard(x, mode) + 0, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), y)
    torch.compiler.reset()
    w = values(D_FF, width, seed=3)
    for rotated in (False, True):
        packed = ff.pack(w, "ternary", hadamard=mode, rotated=rotated)
        held = ff.unpack(packed) @ matrix if rotated else ff.unpack(packed)
        y = ft.linear(x, packed)
        agree(torch.autograd.grad((y * values(5, D_FF, seed=4)).sum(), [x]), [values(5, D_FF, seed=4) @ held])
