"""Workspace of calls on devices: asked for, brought, and refused where it is too small; see cuda_support.py."""

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DEVICE_FORMATS
from kernel_support import normal

formats = pytest.mark.parametrize("fmt", DEVICE_FORMATS)


@formats
@pytest.mark.parametrize("tokens", [1, 20])
def test_linear_and_ffn_take_it(cuda, fmt, tokens):
    rng = np.random.default_rng(1)
    up, down = cuda.weight(normal(rng, (101, 70)), fmt), cuda.weight(normal(rng, (70, 101)), fmt)
    x = cuda.put(normal(rng, (tokens, 70)))
    for call, bytes_ in (
        (lambda **given: ff.linear(x, up, **given), ff.linear_workspace(x, up)),
        (lambda **given: ff.ffn(x, up, down, activation="relu", **given), ff.ffn_workspace(x, up, down, activation="relu")),
    ):  # fmt: skip
        assert bytes_ >= 0
        own = cuda.get(call())
        brought = cuda.get(call(workspace=cuda.bytes(bytes_)))
        np.testing.assert_array_equal(brought, own)
        np.testing.assert_array_equal(cuda.get(call(workspace=cuda.bytes(bytes_ + 4096))), own)
        if bytes_:
            with pytest.raises(ValueError, match=f"workspace has {bytes_ - 1} bytes, expected {bytes_}"):
                call(workspace=cuda.bytes(bytes_ - 1))


def test_a_query_runs_nothing(cuda):
    rng = np.random.default_rng(2)
    w, x, out = cuda.weight(normal(rng, (33, 70)), "int8"), cuda.put(normal(rng, (5, 70))), cuda.full((5, 33), 7, "f32")
    bytes_ = ff.device_workspace(ff.linear, x, w, out=out)
    assert bytes_ >= 5 * 70 and bytes_ == ff.linear_workspace(x, w)
    np.testing.assert_array_equal(cuda.get(out), 7)
    assert ff.linear_workspace(cuda.put(normal(rng, (0, 70))), w) == 0
    with pytest.raises(ValueError, match="linear: x has shape"):
        ff.linear_workspace(cuda.put(normal(rng, (5, 71))), w)
    ff.linear(x, w, out=out)  # calls after a query, and after one that failed, run
    assert not (cuda.get(out) == 7).any()


def test_wrong_workspaces(cuda):
    rng = np.random.default_rng(3)
    w, x = cuda.weight(normal(rng, (33, 70)), "int8"), cuda.put(normal(rng, (5, 70)))
    with pytest.raises(
        ValueError, match="linear: workspace is a f32 array of shape .*expected a contiguous one-dimensional uint8"
    ):
        ff.linear(x, w, workspace=cuda.full((1 << 14,), 0, "f32"))
    with pytest.raises(ValueError, match="linear: workspace .*CPU"):
        ff.linear(x, w, workspace=np.zeros(1 << 16, np.uint8))
    with pytest.raises(ValueError, match="linear: workspace .*256"):
        ff.linear(x, w, workspace=cuda.bytes(1 << 16)[1:])
    with pytest.raises(ValueError, match="linear: workspace is for weights on CUDA devices"):
        ff.linear(normal(rng, (5, 70)), ff.pack(normal(rng, (33, 70)), "int8"), workspace=np.zeros(1 << 16, np.uint8))
    with pytest.raises(ValueError, match="linear_workspace: threads is 2"):
        ff.linear_workspace(x, w, threads=2)
    with pytest.raises(ValueError, match="device_workspace: the call ran on the CPU"):
        ff.device_workspace(ff.linear, normal(rng, (5, 70)), ff.pack(normal(rng, (33, 70)), "int8"))


def test_moe_and_its_router_take_it(cuda):
    rng = np.random.default_rng(4)
    x, logits = cuda.put(normal(rng, (9, 40))), cuda.put(normal(rng, (9, 4)))
    experts = {name: cuda.weight(normal(rng, shape), "int8") for name, shape in (("w_up", (4, 24, 40)), ("w_down", (4, 40, 24)))}  # fmt: skip
    ids, weights = ff.route_topk(logits, 2)
    for call, arguments, options in (
        (ff.moe, (x, ids, weights), {**experts, "activation": "relu"}),
        (ff.moe, (x, ids, weights), {**experts, "activation": "relu", "weights_on_input": True}),
        (ff.route_topk, (logits, 2), {"capacity_factor": 0.5}),
    ):
        bytes_ = ff.device_workspace(call, *arguments, **options)
        assert bytes_ > 0
        if call is ff.moe:
            assert bytes_ == ff.moe_workspace(x, ids, **experts, weights_on_input="weights_on_input" in options)
        own, brought = call(*arguments, **options), call(*arguments, **options, workspace=cuda.bytes(bytes_))
        for a, b in zip(own, brought, strict=True) if isinstance(own, tuple) else [(own, brought)]:
            np.testing.assert_array_equal(cuda.get(a), cuda.get(b))
        with pytest.raises(ValueError, match=f"workspace has {bytes_ - 1} bytes, expected {bytes_}"):
            call(*arguments, **options, workspace=cuda.bytes(bytes_ - 1))
