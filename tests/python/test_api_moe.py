"""moe and its relatives from Python: kinds of arrays, results, and messages that name argument, expected and actual."""

from __future__ import annotations

import gc
import inspect
import sys
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from api_support import Exporter, assert_close, silu, to_numpy, tokens

E, D, F = 6, 32, 48
W_UP, W_GATE, W_DOWN = (tokens(E, *shape, seed=i) / 6 for i, shape in enumerate(((F, D), (F, D), (D, F))))
UP, GATE, DOWN = (ff.pack(w, "f32") for w in (W_UP, W_GATE, W_DOWN))
X = tokens(5, D)
IDS = np.array([[0, 3], [5, 1], [2, -1], [4, 4], [-1, -1]], np.int32)
WEIGHTS = np.abs(tokens(5, 2, seed=9)) + np.float32(0.1)


def moe(
    x: Any = X, ids: Any = IDS, weights: Any = WEIGHTS, up: Any = UP, down: Any = DOWN, gate: Any = GATE, **rest: Any
) -> Any:
    return ff.moe(x, ids, weights, up, down, gate, **{"activation": "silu", **rest})


def expected(weights: Any = WEIGHTS) -> np.ndarray:
    y = np.zeros((5, D))
    for t in range(5):
        for j in range(2):
            if (e := IDS[t, j]) >= 0:
                hidden = silu(W_GATE[e].astype(float) @ X[t]) * (W_UP[e].astype(float) @ X[t])
                y[t] += (1 if weights is None else float(weights[t, j])) * (W_DOWN[e] @ hidden)
    return y


def error_of(kind: type[Exception], function: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(kind) as error:
        function(*arguments, **keywords)
    assert type(error.value) is kind
    return str(error.value)


def bad(*arguments: Any, **keywords: Any) -> str:
    return error_of(ValueError, moe, *arguments, **keywords)


def test_numpy() -> None:
    y = moe()
    assert isinstance(y, np.ndarray) and y.dtype == np.float32 and y.shape == X.shape
    assert_close(y, expected(), 1e-6)
    assert_close(moe(weights=None), expected(None), 1e-6)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    arguments = [torch.from_numpy(a) for a in (X, IDS, WEIGHTS, UP, DOWN, GATE)]
    y = moe(*arguments)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), moe())
    half = moe(arguments[0].bfloat16(), *arguments[1:])
    assert half.dtype == torch.bfloat16
    ids = arguments[1].long()  # as torch.topk gives them
    np.testing.assert_array_equal(moe(arguments[0], ids, *arguments[2:]).numpy(), moe())
    with pytest.raises(RuntimeError, match="moe: weights requires grad"):
        moe(arguments[0], ids, arguments[2].clone().requires_grad_(), *arguments[3:])


def test_kinds_mix() -> None:
    y = moe(Exporter(X), IDS, Exporter(WEIGHTS))
    assert isinstance(y, Exporter)
    np.testing.assert_array_equal(to_numpy(y), moe())


def test_leading_dimensions() -> None:
    for shape in ((5, 1), (1, 5), (1, 1, 5)):
        y = moe(X.reshape(*shape, D), IDS.reshape(*shape, 2), WEIGHTS.reshape(*shape, 2))
        assert y.shape == (*shape, D)
        np.testing.assert_array_equal(y.reshape(5, D), moe())
    # As routers of other libraries give them: flat ids of a batch.
    np.testing.assert_array_equal(moe(X.reshape(1, 5, D)).reshape(5, D), moe())
    np.testing.assert_array_equal(moe(X[0], IDS[0], WEIGHTS[0]), moe(X[:1], IDS[:1], WEIGHTS[:1])[0])


def test_lists_of_stacks() -> None:
    parts = slice(0, 2), slice(2, 3), slice(3, 6)

    def cut(w: np.ndarray) -> list[np.ndarray]:
        return [ff.pack(w[part] if len(w[part]) > 1 else w[part][0], "f32") for part in parts]

    y = moe(up=cut(W_UP), down=tuple(cut(W_DOWN)), gate=cut(W_GATE))
    np.testing.assert_array_equal(y, moe())
    biases = tokens(E, D, seed=20)
    with_bias = moe(b_down=biases)
    listed = [biases[:2], biases[2], biases[3:]]  # a single expert's bias may be a vector
    np.testing.assert_array_equal(moe(up=cut(W_UP), down=cut(W_DOWN), gate=cut(W_GATE), b_down=listed), with_bias)
    listed[1] = None
    partly = moe(up=cut(W_UP), down=cut(W_DOWN), gate=cut(W_GATE), b_down=listed)
    np.testing.assert_array_equal(partly[[0, 1, 3, 4]], with_bias[[0, 1, 3, 4]])
    assert (partly[2] != with_bias[2]).any()
    assert bad(up=[UP], down=DOWN) == "moe: w_down is a single one, expected a list of 1 as w_up"
    assert bad(up=[UP], down=[DOWN, DOWN]) == "moe: w_down is a list of 2, expected a list of 1 as w_up"
    assert bad(gate=[GATE]) == "moe: w_gate is a list of 1, expected a single one as w_up"
    assert bad(up=[], down=[], gate=[]) == "moe: w_up is an empty list, expected at least one packed stack"
    assert "moe: w_up[1] is a plain f32 array of shape (6, 48, 32)" in bad(
        up=[UP, W_UP], down=[DOWN, DOWN], gate=[GATE, GATE]
    )


def test_shared() -> None:
    shared = ff.SharedExperts(ff.pack(W_UP[0], "f32"), ff.pack(W_DOWN[0], "f32"), ff.pack(W_GATE[0], "f32"))
    alone = ff.ffn(X, shared.w_up, shared.w_down, shared.w_gate, activation="silu")
    assert_close(moe(shared=shared), expected() + alone, 1e-6)
    assert_close(moe(shared=[shared, shared]), expected() + 2 * alone, 1e-6)
    gate = tokens(D, seed=21) / 6
    gated = ff.SharedExperts(shared.w_up, shared.w_down, shared.w_gate, gate=gate)
    assert_close(moe(shared=gated), expected() + alone / (1 + np.exp(-(X @ gate)))[:, None], 1e-6)
    assert error_of(TypeError, moe, shared=shared.w_up) == (
        "moe: shared, expected fastffn.SharedExperts or a list of them, has type numpy.ndarray"
    )
    wrong = ff.SharedExperts(ff.pack(tokens(F, 31), "f32"), shared.w_down)
    assert "shared w_up" in bad(shared=wrong)
    assert bad(shared=ff.SharedExperts(shared.w_up, shared.w_down, shared.w_gate, gate=gate[:5])) == (
        "moe: shared gate has shape (1, 5), expected (1, 32) from shared w_up (1, 48, 32)"
    )


def test_special() -> None:
    ids = IDS.copy()
    ids[2], ids[4] = [6, 7], [7, 6]
    y = moe(ids=ids, special=("zero", "copy"))
    rest = expected()
    rest[2], rest[4] = WEIGHTS[2, 1] * X[2], WEIGHTS[4, 0] * X[4]
    assert_close(y, rest, 1e-6)
    vectors, mix = tokens(1, D, seed=22), tokens(1, 2, D, seed=23) / 6
    special = ff.SpecialExperts(("constant",), vectors, mix)
    a = np.exp(X @ mix[0].T)
    a /= a.sum(axis=1, keepdims=True)
    only = np.full((5, 1), 6, np.int32)
    assert_close(moe(ids=only, weights=None, special=special), a[:, :1] * X + a[:, 1:] * vectors, 1e-6)
    assert bad(special=("none",)) == "moe: special expert 0 is 'none', expected 'zero', 'copy' or 'constant'"
    assert "constant experts need vectors" in bad(special=("constant",))
    assert "without a constant expert" in bad(special=ff.SpecialExperts(("zero",), vectors, mix))
    assert "has type int" in error_of(TypeError, moe, special=3)
    assert "has kinds of type str" in error_of(TypeError, moe, special="zero")


def test_load() -> None:
    load = np.full(E, 99, np.int64)
    moe(load=load)
    assert load.tolist() == np.bincount(IDS[IDS >= 0], minlength=E).tolist()
    assert load.tolist() == ff.expert_load(IDS, E).counts.tolist()
    assert bad(load=load[:5]) == (
        "moe: load is a i64 array of shape (5,), expected a contiguous i64 array of shape (6,), one number per expert"
    )
    assert "load is a i32 array" in bad(load=load.astype(np.int32))
    more = np.zeros(E + 2, np.int64)
    moe(ids=np.full((5, 1), 7, np.int32), weights=None, special=("zero", "copy"), load=more)
    assert more.tolist() == [0] * 7 + [5]


def test_load_apart_from_the_rest() -> None:
    for name in ("out", "x", "ids", "weights"):
        memory = np.zeros(5 * D, np.int64)
        dtype, shape = {
            "out": (np.float32, (5, D)),
            "x": (np.float32, (5, D)),
            "ids": (np.int64, (5, 2)),
            "weights": (np.float32, (5, 2)),
        }[name]
        array = memory.view(dtype)[: np.prod(shape)].reshape(shape)
        message = bad(**{name: array}, load=memory[:E])
        assert message == f"moe: load and {name} share a range of memory; give load memory of its own"
        assert not memory.any()
    experts = UP.copy()
    assert "load and w_up share" in bad(up=experts, load=experts[: E * 8].view(np.int64))


def test_lists_that_change_while_they_are_read() -> None:
    """Arrays of other packages run code of theirs, and other threads run beside the call."""
    ups, downs, shared = [], [], []

    class Clearing(Exporter):
        def __dlpack__(self, *arguments: Any, **keywords: Any) -> Any:
            for values in (ups, downs, shared):
                values.clear()
            gc.collect()
            return super().__dlpack__(*arguments, **keywords)

    def fill() -> None:
        ups[:] = [Clearing(UP.copy()), UP.copy(), UP.copy()]
        downs[:] = [DOWN.copy() for _ in range(3)]
        shared[:] = [ff.SharedExperts(Clearing(UP.copy()), DOWN.copy()), ff.SharedExperts(UP.copy(), DOWN.copy())]

    plain = moe(up=[UP] * 3, down=[DOWN] * 3, gate=None, shared=[ff.SharedExperts(UP, DOWN)] * 2)
    for _ in range(3):
        fill()
        kept = shared[:]
        np.testing.assert_array_equal(moe(up=ups, down=downs, gate=None, shared=kept), plain)
        assert not ups
        fill()
        kept_ups, kept_downs = [UP] * 3, [DOWN] * 3
        np.testing.assert_array_equal(moe(up=kept_ups, down=kept_downs, gate=None, shared=shared), plain)
        assert not shared


def test_ids_out_of_range_are_refused_before_any_work() -> None:
    out = np.full((5, D), 7, np.float32)
    for value in (6, -2, 2**31 - 1, -(2**31)):
        ids = IDS.copy()
        ids[3, 1] = value
        message = bad(ids=ids, out=out)
        assert str(value) in message and message.startswith("moe: ids"), message
        assert (out == 7).all()
    assert "moe: ids" in bad(ids=np.full((5, 2), 2**40, np.int64))


def test_arguments() -> None:
    assert error_of(TypeError, ff.moe, X, IDS, WEIGHTS, UP) == "moe() missing required argument: 'w_down'"
    assert error_of(TypeError, ff.moe, X, IDS, WEIGHTS, UP, DOWN) == (
        "moe() missing required keyword argument: 'activation' (a name such as 'silu')"
    )
    assert "activation 'swish' is not known" in bad(activation="swish")
    assert "needs a gate" in bad(gate=None, activation="swiglu_clamped")
    assert "ids has dtype f32" in bad(ids=WEIGHTS)
    assert "weights has dtype f64" in bad(weights=WEIGHTS.astype(np.float64))
    assert "ids has shape (4, 2), expected (..., k) with 5 rows from x (5, 32)" in bad(ids=IDS[:4])
    assert "weights has shape (5, 1)" in bad(weights=WEIGHTS[:, :1])
    assert "x has shape (5, 31)" in bad(x=X[:, :31].copy())
    assert "w_down has shape (6, 48, 32)" in bad(down=UP)
    assert "w_gate has shape (5, 48, 32), expected (6, 48, 32) from w_up" in bad(gate=ff.pack(W_GATE[:5], "f32"))
    assert "b_up has shape (6, 32), expected (6, 48) from w_up (6, 48, 32)" in bad(b_up=tokens(E, D))
    assert "b_gate is given without w_gate" in bad(gate=None, b_gate=tokens(E, F))
    assert "moe: w_up is a plain f32 array" in bad(up=W_UP)
    assert "x has type list" in error_of(TypeError, moe, [1.0])
    assert "weights_on_input has type int" in error_of(TypeError, moe, weights_on_input=1)
    damaged = UP.copy()
    damaged[3] ^= 1
    assert "w_up" in bad(up=damaged)
    assert "w_up" in bad(up=UP[:-64])


def test_out() -> None:
    out = np.zeros((5, D + 3), np.float32)[:, 1 : D + 1]
    assert moe(out=out) is out
    np.testing.assert_array_equal(out, moe())
    half = np.zeros((5, D), ml_dtypes.bfloat16)
    moe(out=half)
    np.testing.assert_array_equal(half, moe().astype(ml_dtypes.bfloat16))
    assert "out has shape (4, 32), expected (5, 32)" in bad(out=out[:4])
    x = X.copy()
    assert bad(x, out=x) == "moe: out and x share a range of memory; give out memory of its own"
    both = np.zeros((5, D), np.float32)
    assert "out and weights share" in bad(weights=both[:, :2], out=both)


def test_out_is_allocation_free() -> None:
    out = np.empty((5, D), np.float32)
    moe(out=out)
    tracemalloc.start()
    try:
        for _ in range(3):
            ff.moe(X, IDS, WEIGHTS, UP, DOWN, GATE, activation="silu", out=out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            ff.moe(X, IDS, WEIGHTS, UP, DOWN, GATE, activation="silu", out=out)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 512 and peak - before < 1024


def test_calls_leak_nothing() -> None:
    shared = ff.SharedExperts(ff.pack(W_UP[0], "f32"), ff.pack(W_DOWN[0], "f32"), ff.pack(W_GATE[0], "f32"))
    things = [X, IDS, WEIGHTS, UP, DOWN, GATE, shared.w_up, shared]
    gc.collect()
    before = [sys.getrefcount(thing) for thing in things]
    for _ in range(50):
        moe(shared=[shared])
        bad(ids=WEIGHTS, shared=[shared])
    gc.collect()
    assert [sys.getrefcount(thing) for thing in things] == before


def test_workspace() -> None:
    one, two = (ff.moe_workspace(X, IDS, UP, DOWN, GATE, threads=threads) for threads in (1, 2))
    assert 0 < one <= two
    assert ff.moe_workspace(X[:0], IDS[:0], UP, DOWN, GATE) == 0
    assert ff.moe_workspace(X, IDS, [UP], [DOWN], [GATE], special=("zero",), threads=1) >= one
    assert error_of(ValueError, ff.moe_workspace, X, IDS, UP, DOWN, threads=-1) == (
        "moe_workspace: threads is -1, expected 0 (as in calls) or more"
    )
    # Beyond x and y, at OLMoE's width: the picks' results are never an f32 array [tokens · k, d_model].
    wide = [ff.pack(np.zeros(shape, np.float32), "bf16") for shape in ((64, 64, 2048), (64, 2048, 64), (64, 64, 2048))]
    x, ids = np.empty((4096, 2048), np.float32), np.zeros((4096, 8), np.int32)
    assert ff.moe_workspace(x, ids, *wide, threads=2) <= 64 << 20


def test_signature() -> None:
    assert str(inspect.signature(ff.moe)) == (
        "(x, ids, weights, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, *, activation, shared=None, "
        "special=None, weights_on_input=False, load=None, sub_norm=None, sub_norm_eps=1e-05, out=None, stream=None, "
        "workspace=None)"
    )
