"""torch tensors: kinds, dtypes, gradients, lazy views and state_dict."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from api_support import TOLERANCE, assert_close, dense, held, tokens, weights

torch = pytest.importorskip("torch")

D_MODEL, D_FF = 40, 72
W_UP, W_DOWN = weights(D_FF, D_MODEL), weights(D_MODEL, D_FF, 4)
X = tokens(5, D_MODEL)


def tensor(values: Any) -> Any:
    return torch.from_numpy(np.array(values))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", ff.formats())
def test_ffn_keeps_kind_and_dtype(format: str, dtype: str) -> None:
    up, down = (ff.pack(tensor(w), format) for w in (W_UP, W_DOWN))
    assert type(up) is torch.Tensor and up.dtype == torch.uint8 and up.data_ptr() % 64 == 0
    x = tensor(X).to(getattr(torch, dtype))
    y = ff.ffn(x, up, down, activation="gelu")
    assert type(y) is torch.Tensor and y.dtype == x.dtype and y.is_contiguous() and not y.requires_grad
    share = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    assert_close(
        y,
        dense(x.double().numpy(), held(W_UP, format), held(W_DOWN, format)),
        2 * max(TOLERANCE[format], TOLERANCE[share]),
    )


def test_the_same_bits_as_numpy() -> None:
    w = ff.pack(W_UP, "bf16")
    assert np.array_equal(ff.pack(tensor(W_UP), "bf16").numpy(), w)
    assert np.array_equal(ff.linear(tensor(X), w).numpy(), ff.linear(X, w))
    assert np.array_equal(ff.linear(X, torch.from_numpy(w)), ff.linear(X, w))  # kinds may be mixed
    bf16 = tensor(W_UP).bfloat16()
    assert torch.equal(ff.unpack(ff.pack(bf16, "bf16"), torch.bfloat16), bf16)


def test_out() -> None:
    w, x = ff.pack(tensor(W_UP), "f32"), tensor(X)
    expected = ff.linear(x, w)
    for out in (torch.empty(5, D_FF), torch.zeros(5, 90)[:, 9 : 9 + D_FF], torch.zeros(10, D_FF)[::2]):
        assert ff.linear(x, w, out=out) is out
        assert torch.equal(out, expected)
    with pytest.raises(ValueError, match=r"linear: out and x share a range of memory"):
        ff.linear(x, ff.pack(torch.zeros(D_MODEL, D_MODEL), "f32"), out=x)
    with pytest.raises(ValueError, match=r"linear: out has shape .* its rows share memory"):
        ff.linear(x, w, out=torch.zeros(1, D_FF).expand(5, D_FF))


def test_gradients_are_refused_unless_off() -> None:
    w, x, bias = ff.pack(tensor(W_UP), "f32"), tensor(X), torch.nn.Parameter(torch.zeros(D_FF))
    expected = ff.linear(x, w)
    message = (
        "linear: {0} requires grad, and fastffn computes no gradients; call it under torch.no_grad(), or pass "
        "{0}.detach()"
    )
    parameter = torch.nn.Parameter(x.clone())
    for name, arguments, keywords in (
        ("x", (parameter, w), {}),
        ("x", (x.clone().requires_grad_() * 1, w), {}),
        ("bias", (x, w, bias), {}),
        ("out", (x, w), {"out": torch.empty(5, D_FF, requires_grad=True)}),
    ):
        with pytest.raises(RuntimeError) as error:
            ff.linear(*arguments, **keywords)
        assert str(error.value) == message.format(name)
        with torch.no_grad():
            assert torch.equal(ff.linear(*arguments, **keywords), expected)
    y = ff.linear(parameter.detach(), w)
    assert torch.equal(y, expected) and not y.requires_grad
    with torch.inference_mode():
        y = ff.linear(parameter, w, bias)
        assert type(y) is torch.Tensor and y.is_inference()


def test_parameters_pack_without_ceremony() -> None:
    layer = torch.nn.Linear(D_MODEL, D_FF)
    packed = ff.pack(layer.weight, "f32")
    assert type(packed) is torch.Tensor and not packed.requires_grad
    assert torch.equal(ff.unpack(packed), layer.weight.detach())
    with torch.no_grad():
        assert torch.allclose(ff.linear(tensor(X), packed, layer.bias), layer(tensor(X)), atol=1e-5)


def test_lazily_negated_views() -> None:
    w = ff.pack(tensor(W_UP), "f32")
    x = torch.complex(torch.zeros(X.shape), tensor(X)).conj().imag
    assert x.is_neg() and not x.is_contiguous()
    assert torch.equal(ff.linear(x, w), ff.linear(tensor(-X), w))
    assert torch.equal(ff.linear(x[:1, :1], ff.pack(torch.ones(3, 1), "f32")), tensor(-X)[:1, :1].expand(1, 3))
    bias = torch.complex(torch.zeros(D_FF), torch.ones(D_FF)).conj().imag
    assert bias.is_neg()
    assert torch.equal(ff.linear(tensor(X), w, bias), ff.linear(tensor(X), w, torch.full((D_FF,), -1.0)))
    assert torch.equal(ff.unpack(ff.pack(x, "f32")), tensor(-X))
    assert torch.equal(ff.unpack(ff.pack(x.T, "f32")), tensor(-X).T)
    out = torch.zeros(5, D_FF, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match=r"^linear: out is a lazily negated view; pass a plain tensor$"):
        ff.linear(tensor(X), w, out=out)


class Subclass(torch.Tensor):
    pass


def test_subclasses() -> None:
    w, x = ff.pack(tensor(W_UP), "f32"), tensor(X)
    expected = ff.linear(x, w)
    y = ff.linear(x.as_subclass(Subclass), w)
    assert type(y) is torch.Tensor and torch.equal(y, expected)
    out = torch.empty(5, D_FF).as_subclass(Subclass)
    assert ff.linear(x, w, out=out) is out
    assert torch.equal(out.as_subclass(torch.Tensor), expected)
    assert torch.equal(ff.linear(torch._neg_view(-x).as_subclass(Subclass), w), expected)
    with pytest.raises(RuntimeError, match=r"^linear: x requires grad"):
        ff.linear(x.clone().as_subclass(Subclass).requires_grad_(), w)


def test_without_the_exchange_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch before 2.10 has __dlpack__ alone, which refuses tensors that require grad even under no_grad."""
    import subprocess
    import sys

    program = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
import fastffn as ff
w = ff.pack(torch.nn.Parameter(torch.eye(8)), "f32")
assert type(w) is torch.Tensor and w.dtype == torch.uint8
x = torch.arange(16.0).reshape(2, 8)
with torch.no_grad():
    y = ff.linear(x, w, torch.nn.Parameter(torch.ones(8)))
assert type(y) is torch.Tensor and torch.equal(y, x + 1)
out = torch.empty(2, 8, dtype=torch.bfloat16)
assert ff.linear(x.bfloat16(), w, out=out) is out and torch.equal(out.float(), x)
"""
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch is such a one: every other test covers it")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tensors_without_memory() -> None:
    w, x = ff.pack(tensor(W_UP), "f32"), tensor(X)
    for bad in (x.to("meta"), x.to_sparse()):
        with pytest.raises(BufferError, match=r"^linear: x \(torch.Tensor\) could not be exported: [^\n]*$") as error:
            ff.linear(bad, w)
        assert error.value.__cause__ is not None
    with pytest.raises(BufferError, match=r"^linear: x "):
        torch.vmap(lambda row: ff.linear(row, w))(x)
    with pytest.raises(BufferError, match=r"^linear: x "):
        torch.func.grad(lambda rows: ff.linear(rows, w).sum())(x)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode, pytest.raises(BufferError, match=r"^linear: x has no memory behind it"):
        ff.linear(mode.from_tensor(tensor(X)), ff.pack(W_UP, "f32"))


def test_dtypes_are_named() -> None:
    w = ff.pack(tensor(W_UP), "f32")
    for dtype, name in (("complex64", "complex64"), ("int16", "int16"), ("bool", "bool8"), ("float64", "f64")):
        with pytest.raises(ValueError, match=f"^linear: x has dtype {name}[, ]"):
            ff.linear(tensor(X).to(getattr(torch, dtype)), w)


def test_state_dict_and_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", ff.pack(torch.zeros(D_FF, D_MODEL), "int8"))

    source, target = Layer(), Layer()
    source.w = ff.pack(tensor(W_UP), "int8")
    stream = io.BytesIO()
    torch.save(source.half().state_dict(), stream)  # half() leaves uint8 alone
    stream.seek(0)
    target.load_state_dict(torch.load(stream, weights_only=True))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    for w in (target.w, load_file(tmp_path / "w.safetensors")["w"]):
        ff.verify(w)
        assert torch.equal(ff.linear(tensor(X), w), ff.linear(tensor(X), source.w))


def test_thread_count_follows_torch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert ff.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
