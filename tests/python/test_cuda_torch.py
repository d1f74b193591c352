"""fastffn.torch on devices: operators, modules, moving and loading. On a GPU torch's own tensors, without one tensors in disguise
(torch_disguise.py)."""

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastffn as ff  # noqa: E402
import fastffn.torch as ffm  # noqa: E402
from fastffn.torch import _device_weights  # noqa: E402

FORMATS = ("f32", "bf16", "int8", "ternary:scale=row", "int4:group=32:zero_points=True")
CUDA = "cuda:0"


@pytest.fixture
def device(cuda, monkeypatch):
    """Makes "cuda:0" usable: as it is on a GPU, in disguise without one."""
    if cuda.name == "cupy":
        pytest.skip("torch only")
    if cuda.is_gpu:
        yield torch.device(CUDA)
        return
    import torch_disguise

    torch_disguise.install(monkeypatch)
    with torch_disguise.Disguise():
        yield torch.device(CUDA)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(y, expected, tolerance):
    assert y.device.type == "cuda" and y.shape == expected.shape and y.dtype == expected.dtype
    found, expected = y.detach().cpu().double(), expected.detach().double()
    largest = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    off = (found - expected).abs()
    assert (off <= tolerance * largest).all(), off.max()


def tolerance_of(format, dtype=torch.float32):
    """Between the CPU and a device: sums in another order; codes and bf16 numbers of hidden values may fall the other way."""
    rounding = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    return rounding + (0 if format == "f32" else 2e-2)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gated", [False, True])
def test_a_module_moves_there_and_back(device, format, gated):
    torch.manual_seed(0)
    layer = ffm.FFN(40, 70, activation="silu", gated=gated, bias=True, format=format)
    x = normal(3, 40)
    here = layer(x)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    assert layer.to(device) is layer
    assert all(t.device.type == "cuda" for t in layer.state_dict().values())
    assert int(layer.w_up.cpu()[11]) == 2  # the layout of devices
    close(layer(x.to(device)), here, tolerance_of(format))
    assert layer.to("cpu") is layer
    for name, t in layer.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert torch.equal(layer(x), here)
    assert str(format.partition(":")[0]) in repr(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_shapes(device, dtype):
    layer = ffm.FFN(40, 70, activation="gelu", format="bf16")
    there = copy.deepcopy(layer).to(device)
    for shape in ((40,), (0, 40), (2, 3, 40)):
        x = normal(*shape, dtype=dtype)
        close(there(x.to(device)), layer(x), tolerance_of("bf16", dtype))
    wide = normal(6, 4, 80, dtype=dtype)
    for part in (
        lambda t: t.narrow(2, 0, 40),
        lambda t: t.narrow(2, 3, 40),
        lambda t: t.unflatten(2, (40, 2)).select(3, 1),
    ):
        views = [part(t.narrow(0, 0, 3).narrow(1, 0, 2)) for t in (wide.to(device), wide)]
        close(there(views[0]), layer(views[1]), tolerance_of("bf16", dtype))


def test_operators_take_plain_tensors(device):
    w, x, b = normal(12, 40), normal(3, 40), normal(12, seed=3)
    packed = ff.pack(w, "int8")
    expected = ffm.linear(x, packed, b)
    there = ff.to_device(packed, device)
    on_device = [t.to(device) for t in (x, b)]
    close(ffm.linear(on_device[0], there, on_device[1]), expected, 1e-5)
    close(ffm.linear(on_device[0], there.array, on_device[1]), expected, 1e-5)
    close(torch.ops.fastffn.linear(on_device[0], there.array, on_device[1], 12), expected, 1e-5)
    out = torch.empty(3, 12, device=device)
    assert ffm.linear(on_device[0], there, on_device[1], out=out) is out
    close(out, expected, 1e-5)
    with pytest.raises(ValueError, match="out has shape"):
        torch.ops.fastffn.linear(on_device[0], there.array, None, 13)


def test_headers_are_read_once_and_noticed_when_they_change(device, monkeypatch):
    w = ff.to_device(ff.pack(normal(12, 40), "int8"), device).array
    x = normal(3, 40).to(device)
    reads = []
    real = _device_weights._core.device_weight
    monkeypatch.setattr(
        _device_weights._core, "device_weight", lambda t, stream=None, header=None: reads.append(header) or real(t, stream, header)
    )  # fmt: skip
    first = ffm.linear(x, w)
    assert reads.count(None) == 1
    for _ in range(3):
        assert torch.equal(ffm.linear(x, w).cpu(), first.cpu())
    assert reads.count(None) == 1
    other = ff.to_device(ff.pack(normal(12, 40, seed=5), "int8"), device).array
    expected = ffm.linear(x, other).cpu()
    reads.clear()
    w.copy_(other)  # other contents: read again
    assert torch.equal(ffm.linear(x, w).cpu(), expected)
    assert reads.count(None) == 1


def test_headers_of_dead_tensors_are_not_taken_for_others(device):
    """Memory is used again at once by torch's allocator: the same address, another shape of equally many bytes."""
    x1, x2 = normal(2, 64).to(device), normal(2, 32).to(device)
    for _ in range(8):
        for out, depth, x in ((32, 64, x1), (64, 32, x2)):
            w = ff.to_device(ff.pack(normal(out, depth), "f32"), device).array
            assert ffm.linear(x, w).shape == (2, out)
            del w
    for i in range(200):  # entries of dead ones go
        ffm.linear(x2, ff.to_device(ff.pack(normal(i % 7 + 1, 32), "f32"), device).array)
    assert len(_device_weights._seen) < 400


def test_gradients_reach_x_and_biases(device, cuda):
    layer = ffm.FFN(40, 70, activation="silu", gated=True, bias=True, format="bf16")
    there = copy.deepcopy(layer).to(device)
    x, grad = normal(3, 40), normal(3, 40, seed=9)

    def backward(m, x, grad):
        return torch.ops.fastffn.ffn_backward(
            grad, x, m.w_up, m.w_down, m.w_gate, m.b_up, m.b_gate, m.activation, None, None, 1e-5
        )  # fmt: skip

    for found, expected in zip(backward(there, x.to(device), grad.to(device)), backward(layer, x, grad), strict=True):
        close(found, expected, 1e-5)
    if cuda.name == "torch":  # torch's autograd asks for a stream of the device
        for module in (layer, there):
            module.b_down.requires_grad_()
        mine, theirs = x.clone().requires_grad_(), x.to(device).requires_grad_()
        layer(mine).square().sum().backward()
        there(theirs).square().sum().backward()
        close(theirs.grad, mine.grad, 2e-2)
        close(there.b_down.grad, layer.b_down.grad, 2e-2)


def test_autocast_of_the_device(device):
    layer = ffm.FFN(40, 70, activation="silu", format="bf16").to(device)
    with torch.autocast("cuda", dtype=torch.float16):
        assert layer(normal(3, 40).to(device)).dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(normal(3, 40).to(device)).dtype == torch.float32


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("saved_on", ["cpu", "cuda"])
@pytest.mark.parametrize("loaded_on", ["cpu", "cuda"])
def test_state_dicts_cross(device, assign, saved_on, loaded_on):
    """Any module's state_dict loads into any: the bytes come into the order of where they are."""
    saved = ffm.FFN(40, 70, activation="silu", gated=True, format="int8")
    x = normal(3, 40)
    expected = saved(x)
    if saved_on == "cuda":
        saved.to(device)
    loaded = ffm.FFN(40, 70, activation="silu", gated=True, format="bf16")
    if loaded_on == "cuda":
        loaded.to(device)
        loaded(x.to(device))
    loaded.load_state_dict(saved.state_dict(), assign=assign)
    where = saved_on if assign else loaded_on
    assert loaded.w_up.device.type == where
    y = loaded(x.to(device) if where == "cuda" else x)
    assert (y.cpu() - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_files_of_a_device_load_on_the_cpu(device):
    layer = ffm.FFN(40, 70, activation="silu", format="int4")
    x = normal(3, 40)
    expected = layer(x)
    layer.to(device)
    saved = {name: t.cpu() for name, t in layer.state_dict().items()}  # as torch.save or safetensors keep them
    again = ffm.FFN(40, 70, activation="silu", format="int4")
    again.load_state_dict(saved)
    assert torch.equal(again(x), expected)
    saved["w_up"][100] ^= 1
    with pytest.raises(RuntimeError, match="w_up.*damaged"):
        again.load_state_dict(saved)


def test_copies_of_a_module(device):
    layer = ffm.FFN(40, 70, activation="silu", format="int8").to(device)
    x = normal(3, 40).to(device)
    y = layer(x)
    assert layer._on_device
    twin = copy.deepcopy(layer)
    assert not twin._on_device and torch.equal(twin(x).cpu(), y.cpu())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x).cpu(), y.cpu())


def test_weights_made_there(device):
    """From weights on the device: packed on the host, copied back."""
    up, down = normal(70, 40).to(device), normal(40, 70).to(device)
    layer = ffm.FFN.from_weights(up, down, activation="relu", format="bf16")
    assert layer.w_up.device.type == "cuda"
    here = ffm.FFN.from_weights(up.cpu(), down.cpu(), activation="relu", format="bf16")
    x = normal(3, 40)
    close(layer(x.to(device)), here(x), 2e-2)
    packed = [ff.pack(w, "bf16") for w in (up, down)]
    assert all(isinstance(w, ff.DeviceWeight) for w in packed)
    close(ffm.FFN.from_packed(*packed, activation="relu")(x.to(device)), here(x), 2e-2)
    assert ffm.FFN(40, 70, activation="relu", device=CUDA).w_up.device.type == "cuda"


def test_training_packs_there(device, cuda):
    if not cuda.is_gpu:
        pytest.skip("torch's autograd asks for a stream of the device")
    layer = ffm.FFN(40, 70, activation="silu", gated=True, format="bf16", trainable=True)
    there = copy.deepcopy(layer).to(device)
    x = normal(3, 40)
    layer(x).square().sum().backward()
    there(x.to(device)).square().sum().backward()
    for (name, mine), theirs in zip(layer.named_parameters(), there.parameters(), strict=True):
        close(theirs.grad, mine.grad, 3e-2), name
    packed = there.packed()
    assert packed.w_up.device.type == "cuda"
    close(packed(x.to(device)), layer(x), 2e-2)


def test_mixed_places_are_refused(device):
    layer = ffm.FFN(40, 70, activation="silu", format="bf16")
    x = normal(3, 40)
    with pytest.raises((RuntimeError, ValueError), match="CUDA|cuda|device"):
        layer(x.to(device))
    layer.to(device)
    with pytest.raises((RuntimeError, ValueError), match="CPU|cpu|device"):
        layer(x)
    moved = layer.w_up.cpu().to(device)  # bytes of devices are fine wherever they were
    assert torch.equal(ffm.linear(x.to(device), moved).cpu(), ffm.linear(x.to(device), layer.w_up).cpu())
    plain_move = ffm.FFN(40, 70, activation="silu", format="bf16").w_up.to(device)  # the CPU's order
    with pytest.raises(ValueError, match="layout 1.*device="):
        ffm.linear(x.to(device), plain_move)


def test_fake_tensors_know_the_device():
    """What tracing sees: no memory, shapes and devices. Needs no device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, w = (
            torch.empty(3, 40, device="cuda:0", dtype=torch.bfloat16),
            torch.empty(999, device="cuda:0", dtype=torch.uint8),
        )
        y = torch.ops.fastffn.linear(x, w, None, 12)
        assert (y.device.type, tuple(y.shape), y.dtype) == ("cuda", (3, 12), torch.bfloat16)
        y = torch.ops.fastffn.ffn(x, w, w, w, None, None, None, "silu", None, None, 1e-5, None, 40)
        assert (y.device.type, tuple(y.shape)) == ("cuda", (3, 40))
        with pytest.raises((ValueError, RuntimeError), match="device"):
            torch.ops.fastffn.linear(x, torch.empty(999, dtype=torch.uint8), None, 12)


def test_numpy_weights_beside_torch(device):
    packed = ff.pack(np.asarray(normal(12, 40)), "int8")
    there = ff.to_device(packed, device)
    assert isinstance(there.array, torch.Tensor)
    np.testing.assert_array_equal(np.asarray(ff.to_cpu(there)), packed)


@pytest.mark.parametrize("form", ["leaves", "nodes"])
def test_trees_move_and_load(device, form):
    torch.manual_seed(0)
    if form == "leaves":
        plain = ffm.FFF(40, 12, depth=3, activation="gelu")
    else:
        plain = ffm.AllNodeFFF(40, 40, depth=4, activation="gelu")
    layer = ffm.PackedFFF(plain, "bf16")
    x = normal(5, 40)
    here = layer(x)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    there = copy.deepcopy(layer).to(device)
    close(there(x.to(device)), here, 2e-2)
    assert torch.equal(there.route(x.to(device)).leaf.cpu(), layer.route(x).leaf)
    assert f"depth={plain.depth}" in repr(there)
    saved = there.state_dict()
    again = copy.deepcopy(layer)
    again.load_state_dict(saved)
    assert torch.equal(again(x), here)
    there.load_state_dict(layer.state_dict())
    close(there(x.to(device)), here, 2e-2)
    for name, t in there.to("cpu").state_dict().items():
        assert torch.equal(t, before[name]), name


@pytest.mark.parametrize("operation", ["linear", "ffn", "moe", "fff", "route_topk"])
def test_calls_of_the_gpu_suite(device, operation):
    """They are right before a GPU sees them; and the same bits come twice."""
    from test_cuda_gpu import Calls

    for tokens in (1, 20):
        out, call = Calls(torch, "bf16", tokens).calls[operation]
        call()
        first = out.clone()
        call()
        assert torch.equal(out.cpu(), first.cpu()) and bool(first.cpu().isfinite().all()) and bool(first.cpu().any())


@pytest.mark.parametrize("shared", [False, True])
def test_mixtures_move_and_load(device, shared):
    torch.manual_seed(0)
    more = {"shared_d_ff": 24, "shared_gate": True} if shared else {}
    layer = ffm.MoE(40, 32, experts=6, k=2, activation="silu", format="bf16", renormalize=True, **more)
    x = normal(5, 40)
    here, picks = layer(x), layer.route(x)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    there = copy.deepcopy(layer).to(device)
    ids, weights = there.route(x.to(device))
    assert torch.equal(ids.cpu(), picks[0])
    close(weights, picks[1], 1e-5)
    close(there(x.to(device)), here, 2e-2)
    again = copy.deepcopy(layer)
    again.load_state_dict(there.state_dict())
    assert torch.equal(again(x), here)
    for name, t in there.to("cpu").state_dict().items():
        assert torch.equal(t, before[name]), name


def test_hadamard_and_routers_as_operators(device):
    x = normal(5, 48)
    close(ffm.hadamard(x.to(device), "kron"), ffm.hadamard(x, "kron"), 1e-5)
    w = ff.pack(normal(8, 48), "f32")
    expected = ffm.router_logits(x, w)
    close(ffm.router_logits(x.to(device), ff.to_device(w, device)), expected, 1e-5)
    ids, weights = ffm.route_topk(expected.to(device), 2, renormalize=True)
    assert torch.equal(ids.cpu(), ffm.route_topk(expected, 2, renormalize=True)[0])


def test_streams_are_for_plain_eager_calls(device):
    w = ff.to_device(ff.pack(normal(8, 48), "f32"), device)
    x = normal(5, 48).to(device)
    with (
        torch.autocast("cuda", dtype=torch.float16),
        pytest.raises(RuntimeError, match="linear: stream= is for plain eager"),
    ):
        ffm.linear(x, w, stream=1)
    with pytest.raises(RuntimeError, match="linear: workspace= is for plain eager"):
        ffm.linear(x, w.array, workspace=torch.empty(4096, dtype=torch.uint8, device=device))


def test_the_example_of_a_gpu(device, cuda, monkeypatch, capsys):
    import runpy
    from pathlib import Path

    program = runpy.run_path(str(Path(__file__).parents[2] / "python/examples/on_a_gpu.py"))
    if not cuda.is_gpu:
        monkeypatch.setitem(program["tour"].__globals__, "replay", lambda *_: None)  # graphs need one
    program["tour"](torch)
    shown = capsys.readouterr().out
    assert "ffn   torch" in shown and "picks [[" in shown
