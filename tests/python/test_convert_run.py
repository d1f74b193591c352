"""Converted layers packed and run: against float64, with every expert on against the dense layer, on arrays of all kinds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastffn.convert import AnalyticRouter, LearnedRouter, MoeLayer
from reference import convert as oracle
from reference import tolerance
from test_convert import convert, inputs, random_layer

METHODS = ("cmoe", "moefication")


def hidden_of(moe: MoeLayer, x: np.ndarray) -> np.ndarray:
    d = moe.dense
    return oracle.hidden(x, d.w_up, d.w_gate, d.b_up, d.b_gate, d.activation)


def bound(moe: MoeLayer, x: np.ndarray) -> np.ndarray:
    """What f32 arithmetic may add to the dense layer, and a rounding for each of the sums it was cut into."""
    d = moe.dense
    dense = tolerance.ffn(x, d.w_up, d.w_down, "f32", d.w_gate, d.b_up, d.b_down, d.b_gate, d.activation)
    sums = np.abs(hidden_of(moe, x)) @ np.abs(d.w_down).T.astype(np.float64)
    bias = 0 if d.b_down is None else np.abs(d.b_down)
    return dense.error + (len(moe.experts) + 2) * tolerance.U * (sums + bias)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_every_expert_on_is_the_dense_layer(method: str, gated: bool, biases: bool) -> None:
    moe = convert(method, inputs(), random_layer(gated, biases), "silu")
    x = inputs(33, seed=5)
    d = moe.dense
    expected = tolerance.ffn(x, d.w_up, d.w_down, "f32", d.w_gate, d.b_up, d.b_down, d.b_gate, d.activation).value
    y = moe.pack("f32", picks=len(moe.experts))(x)
    assert (np.abs(y - expected) <= bound(moe, x)).all()
    fewer = moe.pack("f32")(x)
    assert np.abs(fewer - expected).max() > 100 * bound(moe, x).max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_picked_experts_are_added_up(method: str, gated: bool, biases: bool) -> None:
    moe = convert(method, inputs(), random_layer(gated, biases), "gelu")
    if isinstance(moe.router, AnalyticRouter):
        # As after fine-tuning: weights that differ, and experts preferred for balance.
        balance = np.linspace(-0.1, 0.1, len(moe.experts)).astype(np.float32)
        moe = replace(moe, router=replace(moe.router, scale=0.5, balance=balance))
    x = inputs(40, seed=6)
    packed = moe.pack("f32")
    ids, weights = packed.router.route(x, packed.picks)
    y = packed(x)

    router = moe.router
    if isinstance(router, LearnedRouter):
        scores = oracle.learned_logits(x, router.w_in, router.w_out)
        expected_weights = None
        assert weights is None
    else:
        logits = oracle.analytic_logits(x, router.w_up, router.w_gate, router.b_up, router.b_gate, router.activation)
        p = oracle.softmax(logits)
        scores = p + router.balance
        expected_weights = 1 + 0.5 * np.take_along_axis(p, ids, axis=1)
        assert weights == pytest.approx(expected_weights, abs=1e-5)
    ordered = np.sort(scores, axis=1)[:, ::-1]
    clear = ordered[:, packed.picks - 1] - ordered[:, packed.picks] > 1e-5
    assert clear.mean() > 0.9
    best = np.argsort(-scores, axis=1)[:, : packed.picks]
    assert (np.sort(best, axis=1) == np.sort(ids, axis=1))[clear].all()

    h = hidden_of(moe, x)
    d = moe.dense
    expected = oracle.split_ffn(h, d.w_down, moe.experts, moe.shared, ids, expected_weights, d.b_down)
    assert (np.abs(y - expected) <= 2 * bound(moe, x)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("format", "error"), [("f16", 2e-3), ("bf16", 2e-2), ("int8", 5e-2)])
def test_other_formats(method: str, format: str, error: float) -> None:
    moe = convert(method, inputs(), random_layer(True, True), "silu")
    x = inputs(64, seed=7)
    exact, rounded = moe.pack("f32"), moe.pack(format)
    assert rounded.nbytes < exact.nbytes
    y, expected = rounded(x), exact(x)
    # Routers are f32 in both: the same experts.
    assert np.linalg.norm(y - expected) < error * np.linalg.norm(expected)
    assert np.abs(y - expected).max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_arrays_of_other_kinds_and_shapes(method: str) -> None:
    torch = pytest.importorskip("torch")
    packed = convert(method, inputs(), random_layer(True, True), "silu").pack("f32")
    x = inputs(24, seed=8)
    y = packed(x)
    out = np.empty_like(y)
    assert packed(x, out=out) is out and np.array_equal(out, y)
    assert np.array_equal(packed(x.reshape(2, 3, 4, 20)), y.reshape(2, 3, 4, 20))
    assert packed(x[0]) == pytest.approx(y[0], abs=1e-5)  # few rows: other kernels
    assert packed(x[:0]).shape == (0, 20)
    tensor = torch.from_numpy(x)
    found = packed(tensor)
    assert isinstance(found, torch.Tensor)
    # tanh is torch's own: a router's last bit may differ, the experts it picks here do not.
    assert np.array_equal(found.numpy(), y)
    half = packed(tensor.bfloat16())
    assert half.dtype == torch.bfloat16
    same = packed(tensor.bfloat16().float())
    assert (half.float() - same).abs().max() <= 2**-8 * same.abs().max()


def test_an_input_of_zeros_has_a_route() -> None:
    for method in METHODS:
        packed = convert(method, inputs(), random_layer(True, False), "silu").pack("f32")
        assert (packed(np.zeros((3, 20), np.float32)) == 0).all()


def test_picks_out_of_range() -> None:
    moe = convert("cmoe", inputs(), random_layer(True, False), "silu")
    for picks in (0, 7):
        with pytest.raises(ValueError, match=rf"pack: picks is {picks}, expected 1 to 6, the routed experts"):
            moe.pack("f32", picks=picks)
    with pytest.raises(ValueError, match="int3"):
        moe.pack("int3")
