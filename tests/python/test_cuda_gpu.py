"""What only hardware can answer: graphs, streams, the same bits again, tensors beyond 2^31 elements, the device guard.

Written without a GPU at hand and never run so far. `pytest tests/python -k cuda --cuda gpu`; skipped elsewhere.
"""

import subprocess
import sys

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DEVICE_FORMATS
from kernel_support import normal
from reference.formats import pack_arguments, prepare_weights

formats = pytest.mark.parametrize("fmt", DEVICE_FORMATS)


DEVICE = "cuda:0"


class Calls:
    """Operations with everything that they need on the device, by name: each a function of nothing that writes `out`."""

    def __init__(self, torch, fmt="bf16", tokens=5):
        self.torch = torch
        rng = np.random.default_rng(1)
        d_model, d_ff, experts = 256, 512, 8
        name, options = pack_arguments(fmt)

        def weight(*shape):
            w = normal(rng, shape, scale=shape[-1] ** -0.5)
            return ff.pack(prepare_weights(fmt, w), name, device=torch.device(DEVICE), **options)

        def tensor(*shape, dtype=torch.bfloat16):
            return torch.from_numpy(normal(rng, shape)).to(DEVICE, dtype)

        up, gate, down = weight(d_ff, d_model), weight(d_ff, d_model), weight(d_model, d_ff)
        stacks = weight(experts, d_ff, d_model), weight(experts, d_model, d_ff), weight(experts, d_ff, d_model)
        self.x = tensor(tokens, d_model)
        ids = torch.from_numpy(rng.integers(0, experts, (tokens, 2)).astype(np.int32)).to(DEVICE)
        shares = tensor(tokens, 2, dtype=torch.float32)
        nodes = normal(rng, (1, 31, d_model), scale=d_model**-0.5)
        tree = ff.to_device(
            ff.pack_tree(nodes, None, normal(rng, (1, 31, d_model)), format="bf16"), torch.device(DEVICE)
        )
        y, hidden = torch.empty_like(self.x), torch.empty(tokens, d_ff, device=DEVICE, dtype=torch.bfloat16)
        logits = tensor(tokens, experts, dtype=torch.float32)
        picks = torch.empty(tokens, 2, device=DEVICE, dtype=torch.int32), torch.empty(tokens, 2, device=DEVICE)
        x = self.x
        self.calls = {
            "linear": (hidden, lambda **on: ff.linear(x, up, out=hidden, **on)),
            "ffn": (y, lambda **on: ff.ffn(x, up, down, gate, activation="silu", out=y, **on)),
            "moe": (y, lambda **on: ff.moe(x, ids, shares, *stacks, activation="silu", out=y, **on)),
            "fff": (y, lambda **on: ff.fff(x, tree, activation="gelu", out=y, **on)),
            "route_topk": (picks[1], lambda **on: ff.route_topk(logits, 2, out=picks, **on)),
        }


OPERATIONS = ("linear", "ffn", "moe", "fff", "route_topk")
operations = pytest.mark.parametrize("operation", OPERATIONS)
TOKENS = pytest.mark.parametrize("tokens", [1, 5, 100])


@operations
@TOKENS
def test_graphs_replay_what_was_captured(gpu, operation, tokens):
    """Captured with synchronising calls forbidden; a replay sees the values that x has then."""
    out, call = Calls(gpu, tokens=tokens).calls[operation]
    call()  # what is done once per process
    gpu.cuda.synchronize()
    expected = out.clone()
    out.fill_(0)
    graph = gpu.cuda.CUDAGraph()
    gpu.cuda.set_sync_debug_mode("error")
    try:
        with gpu.cuda.graph(graph):
            call()
    finally:
        gpu.cuda.set_sync_debug_mode("default")
    gpu.cuda.synchronize()
    assert not out.any()  # nothing ran
    for _ in range(3):
        out.fill_(0)
        graph.replay()
        gpu.cuda.synchronize()
        assert gpu.equal(out, expected)


@operations
def test_replays_see_new_inputs(gpu, operation):
    if operation == "route_topk":
        pytest.skip("its input is the logits")
    made = Calls(gpu)
    out, call = made.calls[operation]
    call()
    graph = gpu.cuda.CUDAGraph()
    with gpu.cuda.graph(graph):
        call()
    made.x.mul_(-0.5)
    graph.replay()
    gpu.cuda.synchronize()
    replayed = out.clone()
    call()
    gpu.cuda.synchronize()
    assert gpu.equal(out, replayed)


@operations
@TOKENS
def test_calls_wait_for_nothing(gpu, operation, tokens):
    """A call returns while the stream is still busy with what was there before it."""
    out, call = Calls(gpu, tokens=tokens).calls[operation]
    call()
    gpu.cuda.synchronize()
    gpu.cuda._sleep(1_000_000_000)
    call()
    still_busy = not gpu.cuda.current_stream().query()
    gpu.cuda.synchronize()
    assert still_busy


@operations
@TOKENS
def test_runs_and_streams_give_the_same_bits(gpu, operation, tokens):
    """The same bits in every run; and from several streams at once, each with its own arrays, as from one."""
    sides = [Calls(gpu, tokens=tokens).calls[operation] for _ in range(4)]
    out, call = sides[0]
    call()
    gpu.cuda.synchronize()
    expected = out.clone()
    for _ in range(20):
        out.fill_(0)
        call()
        gpu.cuda.synchronize()
        assert gpu.equal(out, expected)
    streams = [gpu.cuda.Stream() for _ in sides]
    for _ in range(20):
        for stream, (_, each) in zip(streams, sides, strict=True):
            with gpu.cuda.stream(stream):
                each()
    gpu.cuda.synchronize()
    for each, _ in sides:
        assert gpu.equal(each, expected)


@pytest.mark.parametrize("operation", ["linear", "ffn"])
def test_a_stream_by_number_and_by_object(gpu, operation):
    out, call = Calls(gpu).calls[operation]
    call()
    gpu.cuda.synchronize()
    expected = out.clone()
    stream = gpu.cuda.Stream()
    for given in (stream, stream.cuda_stream, 1, 2, 0):
        out.fill_(0)
        gpu.cuda.synchronize()
        call(stream=given)
        gpu.cuda.synchronize()
        assert gpu.equal(out, expected)


def test_the_current_stream_is_the_default(gpu):
    """Work on a stream that is current there comes after what waits on it."""
    out, call = Calls(gpu).calls["ffn"]
    call()
    gpu.cuda.synchronize()
    expected = out.clone()
    stream = gpu.cuda.Stream()
    with gpu.cuda.stream(stream):
        out.fill_(0)
        gpu.cuda._sleep(100_000_000)
        out.fill_(1)
        call()
    stream.synchronize()
    assert gpu.equal(out, expected)


@formats
def test_rows_beyond_two_to_the_31(gpu, fmt):
    """x and y of more than 2^31 elements: the last rows are those of a small call."""
    name, options = pack_arguments(fmt)
    w = normal(np.random.default_rng(2), (64, 64), scale=0.125)
    packed = ff.pack(prepare_weights(fmt, w), name, device=gpu.device("cuda"), **options)
    tokens = 2**31 // 64 + 129
    if gpu.cuda.mem_get_info()[0] < 14 * tokens * 64:
        pytest.skip("needs about 30 GB of free device memory")
    x = gpu.zeros(tokens, 64, device="cuda", dtype=gpu.bfloat16)
    tail = gpu.from_numpy(normal(np.random.default_rng(3), (300, 64))).to("cuda", gpu.bfloat16)
    x[-300:] = tail
    x[:300] = tail
    y = ff.linear(x, packed)
    expected = ff.linear(tail, packed)
    gpu.cuda.synchronize()
    assert gpu.allclose(y[-300:].float(), expected.float(), rtol=1e-2, atol=1e-3)
    assert gpu.allclose(y[:300].float(), expected.float(), rtol=1e-2, atol=1e-3)
    assert not y[1000:-1000].any()


def test_weights_beyond_two_to_the_31(gpu):
    """A stack of more than 2^31 bytes: its last expert is one packed alone."""
    if gpu.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs about 8 GB of free device memory")
    experts, d_ff, d_model = 33, 4096, 8192
    down_one = normal(np.random.default_rng(4), (d_model, 64), scale=0.1)
    one = normal(np.random.default_rng(5), (d_ff, d_model), scale=0.01)
    up = np.zeros((experts, d_ff, d_model), np.float32)
    up[-1] = one
    down = np.zeros((experts, d_model, d_ff), np.float32)
    down[-1, :, :64] = down_one
    x = gpu.from_numpy(normal(np.random.default_rng(6), (3, d_model))).cuda()
    ids = gpu.full((3, 1), experts - 1, dtype=gpu.int32, device="cuda")
    device = gpu.device("cuda")
    y = ff.moe(
        x, ids, None, ff.pack(up, "bf16", device=device), ff.pack(down, "bf16", device=device), activation="relu"
    )
    expected = ff.ffn(
        x, ff.pack(up[-1], "bf16", device=device), ff.pack(down[-1], "bf16", device=device), activation="relu"
    )
    gpu.cuda.synchronize()
    assert gpu.allclose(y, expected, rtol=1e-3, atol=1e-4)


@formats
def test_empty_inputs_launch_nothing(gpu, fmt):
    name, options = pack_arguments(fmt)
    w = prepare_weights(fmt, normal(np.random.default_rng(7), (24, 64)))
    packed = ff.pack(w, name, device=gpu.device("cuda"), **options)
    for shape in ((0, 64), (3, 0, 64)):
        y = ff.linear(gpu.empty(shape, device="cuda"), packed)
        assert y.shape == (*shape[:-1], 24)
    gpu.cuda.synchronize()


def test_the_device_guard(gpu):
    """The caller's current device stays what it was, also where weights are on another one."""
    count = gpu.cuda.device_count()
    w, x = normal(np.random.default_rng(8), (24, 64)), gpu.ones(3, 64)
    for number in range(min(count, 2)):
        packed = ff.pack(w, "bf16", device=f"cuda:{number}")
        y = ff.linear(x.to(f"cuda:{number}"), packed)
        assert y.device.index == number and gpu.cuda.current_device() == 0
        assert gpu.allclose(y.cpu(), x @ gpu.from_numpy(w).T, atol=0.1)
    if count < 2:
        pytest.skip("one device only: the rest needs two")
    with pytest.raises(ValueError, match="CUDA device 0, and the call is on CUDA device 1"):
        ff.linear(x.to("cuda:0"), packed)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_process_that_sees_no_device(gpu, hidden):
    """As a machine without a GPU: calls say why, and the CPU is as ever."""
    program = """
import numpy as np, fastffn as ff
from fastffn import _core
report = _core.cuda()
assert not report["available"] and report["reason"], report
w = np.ones((4, 8), np.float32)
assert ff.linear(np.ones((1, 8), np.float32), ff.pack(w, "f32")).shape == (1, 4)
try:
    ff.pack(w, "f32", device="cuda")
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("packed for a device that is not there")
"""
    import os

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": hidden},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_modules(gpu, mode):
    """One graph without a break, with torch's own CUDA graphs too; eager and compiled give the same bits."""
    import fastffn.torch as ffm

    layer = ffm.FFN(256, 512, activation="silu", gated=True, format="bf16").cuda()
    x = gpu.randn(5, 256, device="cuda", dtype=gpu.bfloat16)
    expected = layer(x)
    compiled = gpu.compile(layer, fullgraph=True, mode=mode)
    for _ in range(4):
        assert gpu.equal(compiled(x), expected)


def test_exported_modules(gpu):
    import fastffn.torch as ffm

    layer = ffm.FFN(256, 512, activation="silu", gated=True, format="int8").cuda()
    x = gpu.randn(5, 256, device="cuda")
    program = gpu.export.export(layer, (x,))
    assert gpu.equal(program.module()(x), layer(x))


def test_a_capture_of_unseen_weights_says_so(gpu):
    import fastffn.torch as ffm

    packed = ff.pack(normal(np.random.default_rng(9), (24, 64)), "bf16", device=gpu.device("cuda")).array.clone()
    x = gpu.ones(3, 64, device="cuda")
    graph = gpu.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="graph is being captured|never used before|captur"), gpu.cuda.graph(graph):
        ffm.linear(x, packed, out_features=24)
    ffm.linear(x, packed, out_features=24)


def test_opcheck(gpu):
    """torch's own checks of the operators on the device: schema, fake kernels, autograd registration."""
    import fastffn.torch  # noqa: F401

    device = gpu.device("cuda")
    w = ff.pack(normal(np.random.default_rng(10), (24, 64)), "bf16", device=device)
    x = gpu.ones(3, 64, device="cuda", requires_grad=True)
    gpu.library.opcheck(gpu.ops.fastffn.linear.default, (x, w.array, None, 24))
