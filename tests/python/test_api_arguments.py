"""Bad arguments: the right exception, and a message that names operation, argument, expected and actual."""

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
from api_support import tokens, weights

UP = ff.pack(weights(64, 32), "f32")
DOWN = ff.pack(weights(32, 64), "f32")
X = tokens(3, 32)


def error_of(kind: type[Exception], function: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(kind) as error:
        function(*arguments, **keywords)
    assert type(error.value) is kind
    return str(error.value)


def ffn(*arguments: Any, **keywords: Any) -> Any:
    return ff.ffn(*arguments, activation="gelu", **keywords)


def test_argument_lists() -> None:
    assert error_of(TypeError, ff.linear, X) == "linear() missing required argument: 'w'"
    assert error_of(TypeError, ff.ffn, X, UP) == "ffn() missing required argument: 'w_down'"
    assert error_of(TypeError, ff.linear, X, UP, None, X) == "linear() takes at most 3 positional arguments, got 4"
    assert error_of(TypeError, ff.linear, X, UP, x=X) == "linear() got multiple values for argument 'x'"
    assert error_of(TypeError, ff.linear, X, UP, b=X) == "linear() got an unexpected keyword argument 'b'"
    assert error_of(TypeError, ff.ffn, X, UP, DOWN) == (
        "ffn() missing required keyword argument: 'activation' (one of identity, relu, relu2, gelu, gelu_tanh, silu, "
        "swiglu_clamped)"
    )


def test_activations() -> None:
    assert error_of(ValueError, ff.ffn, X, UP, DOWN, activation="swish") == (
        "ffn: activation 'swish' is not known; expected identity, relu, relu2, gelu, gelu_tanh, silu or swiglu_clamped"
    )
    assert error_of(TypeError, ff.ffn, X, UP, DOWN, activation=3) == (
        "ffn: activation has type int, expected a name such as 'silu'"
    )


def test_an_activation_that_needs_a_gate() -> None:
    message = error_of(ValueError, ff.ffn, X, UP, DOWN, activation="swiglu_clamped")
    assert message.startswith("ffn: ") and "swiglu_clamped" in message and "w_gate" in message


def test_things_that_are_no_arrays() -> None:
    expected = "expected an array: NumPy, torch, or anything with __dlpack__ or the buffer protocol"
    assert error_of(TypeError, ff.linear, [1.0], UP) == f"linear: x has type list, {expected}"
    assert error_of(TypeError, ffn, X, UP, None) == f"ffn: w_down has type NoneType, {expected}"
    assert error_of(TypeError, ff.linear, X, UP, out=3) == f"linear: out has type int, {expected}"
    assert error_of(TypeError, ff.pack, "weights", "f32") == f"pack: w has type str, {expected}"


@pytest.mark.parametrize("dtype", ["complex64", ">f4", "int16", "bool", "datetime64[s]"])
def test_dtypes_that_no_view_has(dtype: str) -> None:
    name = np.dtype(dtype)
    assert error_of(ValueError, ff.linear, X.astype(np.float32).astype(dtype), UP) == (
        f"linear: x has dtype {name}, which fastffn does not read (f32, f16, bf16, f64, or uint8 where packed)"
    )


def test_dtypes_that_x_cannot_have() -> None:
    for dtype, name in ((np.float64, "f64"), (np.int32, "i32"), (np.int64, "i64"), (np.uint8, "u8"), (np.int8, "i8")):
        message = error_of(ValueError, ff.linear, X.astype(dtype), UP)
        assert message == f"linear: x has dtype {name}, expected f32, f16 or bf16"
    assert "float8_e4m3fn" in error_of(ValueError, ff.linear, X.astype(ml_dtypes.float8_e4m3fn), UP)


def test_plain_weights_where_packed_ones_belong() -> None:
    assert error_of(ValueError, ffn, X, weights(64, 32), DOWN) == (
        "ffn: w_up is a plain f32 array of shape (64, 32), expected packed weights; make them with "
        "fastffn.pack(w_up, format)"
    )
    assert error_of(ValueError, ff.linear, X, UP[::2]) == (
        f"linear: w is a u8 array of shape ({UP.size // 2},) that is not contiguous, expected packed weights: a "
        "contiguous one-dimensional uint8 array"
    )
    assert error_of(ValueError, ff.linear, X, UP.reshape(2, -1)) == (
        f"linear: w is a u8 array of shape (2, {UP.size // 2}), expected packed weights: a contiguous one-dimensional "
        "uint8 array"
    )


def test_shapes() -> None:
    assert error_of(ValueError, ff.linear, tokens(3, 31), UP) == (
        "linear: x has shape (3, 31), expected (..., 32) from w (64, 32)"
    )
    assert error_of(ValueError, ffn, X, UP, ff.pack(weights(32, 63), "f32")) == (
        "ffn: w_down has shape (32, 63), expected (32, 64) from x (3, 32) and w_up (64, 32)"
    )
    assert error_of(ValueError, ffn, X, UP, DOWN, ff.pack(weights(63, 32), "f32")) == (
        "ffn: w_gate has shape (63, 32), expected (64, 32) from w_up"
    )
    assert error_of(ValueError, ffn, X, UP, DOWN, b_gate=tokens(64)) == "ffn: b_gate is given without w_gate"
    assert error_of(ValueError, ffn, X, UP, DOWN, b_up=tokens(32)) == (
        "ffn: b_up has shape (32,), expected (64,) from w_up (64, 32)"
    )
    assert "0 dimensions" in error_of(ValueError, ff.linear, np.float32(3), UP)
    assert error_of(ValueError, ff.linear, tokens(*[1] * 8, 32), UP) == (
        "linear: x has 9 dimensions, expected at most 8"
    )
    assert error_of(ValueError, ff.pack, tokens(5), "f32") == (
        "pack: w has shape (5,), expected [out_features, in_features] or [count, out_features, in_features]"
    )


def test_stacks_are_refused_by_the_dense_layers() -> None:
    stack = ff.pack(tokens(4, 64, 32), "f32")
    assert error_of(ValueError, ff.linear, X, stack) == "linear: w is a stack of 4 matrices, expected a single one"


def test_layouts() -> None:
    assert "negative stride" in error_of(ValueError, ff.linear, X[::-1], UP)
    assert "stride" in error_of(ValueError, ff.linear, tokens(3, 64)[:, ::2], UP)
    odd = np.ndarray((3, 32), np.float32, np.zeros(3 * 134, np.uint8), strides=(134, 4))
    assert error_of(ValueError, ff.linear, odd, UP) == (
        "linear: x has a stride of 134 bytes, not a whole number of elements (4 bytes); copy it first"
    )


def test_out_is_returned_and_written() -> None:
    expected = ff.linear(X, UP)
    for out in (
        np.empty((3, 64), np.float32),
        np.zeros((3, 70), np.float32)[:, 3:67],
        np.zeros((6, 64), np.float32)[::2],
    ):
        assert ff.linear(X, UP, out=out) is out
        assert np.array_equal(out, expected)
    wide = np.zeros((3, 70), np.float32)
    ffn(X, UP, DOWN, out=wide[:, 3:35])
    assert np.array_equal(wide[:, 3:35], ffn(X, UP, DOWN))
    assert not wide[:, :3].any() and not wide[:, 35:].any()


def test_out_of_another_dtype_is_rounded_to() -> None:
    expected = ff.linear(X, UP)
    out = np.empty((3, 64), ml_dtypes.bfloat16)
    ff.linear(X, UP, out=out)
    assert np.array_equal(out, expected.astype(ml_dtypes.bfloat16))


def test_out_that_does_not_fit() -> None:
    assert error_of(ValueError, ff.linear, X, UP, out=np.empty((3, 65), np.float32)) == (
        "linear: out has shape (3, 65), expected (3, 64) from x (3, 32) and w (64, 32)"
    )
    assert error_of(ValueError, ffn, X, UP, DOWN, out=np.empty((2, 32), np.float32)) == (
        "ffn: out has shape (2, 32), expected (3, 32) from x (3, 32) and w_down (32, 64)"
    )
    assert error_of(ValueError, ff.linear, X, UP, out=np.empty((3, 64))) == (
        "linear: out has dtype f64, expected f32, f16 or bf16"
    )
    frozen = np.empty((3, 64), np.float32)
    frozen.flags.writeable = False
    assert error_of(ValueError, ff.linear, X, UP, out=frozen) == "linear: out is read-only"
    assert error_of(ValueError, ff.linear, X, UP, out=bytes(12)) == "linear: out is read-only"
    same_row = np.lib.stride_tricks.as_strided(np.empty(64, np.float32), (3, 64), (0, 4))
    assert error_of(ValueError, ff.linear, X, UP, out=same_row) == (
        "linear: out has shape (3, 64) and strides (0, 1): its rows share memory"
    )


def test_out_may_not_overlap() -> None:
    message = "{}: out and {} share a range of memory; give out memory of its own"
    x = tokens(3, 32)
    before = x.copy()
    assert error_of(ValueError, ffn, x, UP, DOWN, out=x) == message.format("ffn", "x")
    assert np.array_equal(x, before)
    both = tokens(4, 32)
    assert error_of(ValueError, ffn, both[:3], UP, DOWN, out=both[1:]) == message.format("ffn", "x")
    bias = tokens(64)
    assert error_of(ValueError, ff.linear, tokens(1, 32), UP, bias, out=bias[None]) == message.format("linear", "bias")
    room = UP.copy()
    out = room[64 : 64 + 3 * 64 * 4].view(np.float32).reshape(3, 64)
    assert error_of(ValueError, ff.linear, X, room, out=out) == message.format("linear", "w")
    assert np.array_equal(room, UP)


def test_out_is_allocation_free() -> None:
    out = np.empty((3, 32), np.float32)
    ffn(X, UP, DOWN, out=out)
    tracemalloc.start()
    try:
        for _ in range(3):
            ffn(X, UP, DOWN, out=out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            ff.ffn(X, UP, DOWN, activation="gelu", out=out)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 512 and peak - before < 1024


def test_failed_calls_leak_nothing() -> None:
    arguments = [X, UP, DOWN]
    gc.collect()
    before = [sys.getrefcount(argument) for argument in arguments]
    for _ in range(50):
        error_of(ValueError, ffn, X, UP, DOWN, out=np.empty((2, 2), np.float32))
        error_of(ValueError, ffn, X, UP, UP)
        ffn(X, UP, DOWN)
    gc.collect()  # exceptions and the frames in their tracebacks are cycles
    assert [sys.getrefcount(argument) for argument in arguments] == before


def test_workspace_queries() -> None:
    x = tokens(200, 32)
    assert ff.linear_workspace(x, UP) >= 0
    one, two = (ff.ffn_workspace(x, UP, DOWN, threads=threads) for threads in (1, 2))
    assert 0 < one <= two
    assert ff.ffn_workspace(x, UP, DOWN, UP, threads=1) >= one
    assert ff.ffn_workspace(x[:0], UP, DOWN) == 0
    assert error_of(ValueError, ff.ffn_workspace, x, UP, UP).startswith("ffn: w_down has shape (64, 32), expected")
    assert error_of(ValueError, ff.linear_workspace, x, UP, threads=-1) == (
        "linear_workspace: threads is -1, expected 0 (as in calls) or more"
    )


def test_signatures_can_be_inspected() -> None:
    assert str(inspect.signature(ff.linear)) == "(x, w, bias=None, *, out=None, stream=None, workspace=None)"
    assert str(inspect.signature(ff.ffn)) == (
        "(x, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, *, activation, segments=None, "
        "sub_norm=None, sub_norm_eps=1e-05, gate_first='auto', out=None, stream=None, workspace=None)"
    )
    for name in ff.__all__:
        if not name.startswith("__"):
            assert getattr(ff, name).__doc__, f"{name} has no docstring"
