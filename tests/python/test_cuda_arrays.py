"""Arrays, weights and streams of CUDA devices, on a device that is the host in disguise (fake_cuda.py)."""

from __future__ import annotations

import pytest

from fake_cuda import fake_plugin, run  # noqa: F401


def test_linear_computes_where_the_weight_is(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
w, b, x = random(9, 21), random(9), random(2, 3, 21)
packed = weight(w)
assert (packed.format, packed.out_features, packed.in_features, packed.device) == ("f32", 9, 21, 1), packed
assert "cuda:1" in repr(packed) and "(9, 21)" in repr(packed)
y = ff.linear(put(x), packed, put(b))
assert type(y) is DeviceArray and y.device == 1 and y.values.dtype == np.float32
np.testing.assert_allclose(y.values, x @ w.T + b, atol=1e-5)
out = put(np.full((2, 3, 9), np.nan, np.float32))
assert ff.linear(put(x), packed, out=out) is out
np.testing.assert_allclose(out.values, x @ w.T, atol=1e-5)
stream, device, count = last_call()
assert (device, count) == (1, 2)
""",
    )


@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_formats_hold_what_the_cpu_holds(fake_plugin, format):  # noqa: F811
    run(
        fake_plugin,
        f"""
for out, depth in [(1, 1), (5, 8), (16, 17), (33, 100)]:
    w, x = random(out, depth), random(4, depth)
    rounded = ff.unpack(ff.pack(w, {format!r}))
    y = ff.linear(put(x), weight(w, {format!r}))
    np.testing.assert_allclose(y.values, x @ rounded.T, atol=1e-4, rtol=1e-5)
""",
    )


def test_ffn_plain_and_gated(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
up, gate, down = random(13, 8), random(13, 8), random(8, 13)
b_up, b_down, b_gate, x = random(13), random(8), random(13), random(5, 8)
packed = [weight(w) for w in (up, down, gate)]
relu = lambda v: np.maximum(v, 0)
y = ff.ffn(put(x), packed[0], packed[1], activation="relu", b_up=put(b_up), b_down=put(b_down))
np.testing.assert_allclose(y.values, relu(x @ up.T + b_up) @ down.T + b_down, atol=1e-4)
y = ff.ffn(put(x), *packed, activation="relu", b_gate=put(b_gate))
np.testing.assert_allclose(y.values, (relu(x @ gate.T + b_gate) * (x @ up.T)) @ down.T, atol=1e-4)
with refused(RuntimeError, "segments"):
    ff.ffn(put(x), *packed, activation="relu", segments=[(0, 13)])
with refused(RuntimeError, "sub_norm"):
    ff.ffn(put(x), *packed, activation="relu", sub_norm=put(np.ones(13, np.float32)))
""",
    )


def test_streams(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
packed, x = weight(random(3, 4)), put(random(2, 4))
class Stream:
    def __init__(self, handle): self.handle = handle
    def __cuda_stream__(self): return (0, self.handle)
for given, handle, exported in [(None, 1, 1), (0, 0, 1), (1, 1, 1), (2, 2, 2), (4096, 4096, 4096), (Stream(5120), 5120, 5120), (Stream(0), 0, 1)]:
    exports.clear()
    ff.linear(x, packed, stream=given)
    assert last_call()[0] == handle, (given, last_call())
    assert exports and set(exports) == {exported}, (given, exports)
with refused(ValueError, "linear: stream is -1"):
    ff.linear(x, packed, stream=-1)
with refused(TypeError, "linear: stream has type str"):
    ff.linear(x, packed, stream="default")
with refused(ValueError, "stream is for weights on CUDA devices"):
    ff.linear(np.zeros((1, 4), np.float32), ff.pack(np.ones((3, 4), np.float32), "f32"), stream=1)
with refused(RuntimeError, "linear: ", "grid (1, 2, 3)", "sm_85"):
    ff.linear(x, packed, stream=0xbad)
""",
    )


def test_mixed_places_are_refused(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
import pickle
w, x = random(6, 4), random(2, 4)
packed, there = weight(w), put(x)
before = last_call()[2]
with refused(ValueError, "linear: x", "CPU's memory"):
    ff.linear(x, packed)
with refused(ValueError, "linear: x is on CUDA device 0", "device 1"):
    ff.linear(put(x, device=0), packed)
with refused(ValueError, "linear: x is on DLPack device type 1"):
    ff.linear(DeviceArray(x, 0, kind=1), packed)
with refused(ValueError, "linear: x is on DLPack device type 10"):
    ff.linear(DeviceArray(x, 1, kind=10), packed)
with refused(ValueError, "linear: bias", "CPU's memory"):
    ff.linear(there, packed, np.zeros(6, np.float32))
with refused(ValueError, "linear: out is on CUDA device 0"):
    ff.linear(there, packed, out=put(np.zeros((2, 6), np.float32), device=0))
with refused(RuntimeError, "linear: x is on a CUDA device", "device="):
    ff.linear(there, ff.pack(w, "f32"))
with refused(TypeError, "ffn: w_down has type numpy.ndarray", "DeviceWeight"):
    ff.ffn(there, packed, ff.pack(random(4, 6), "f32"), activation="relu")
with refused(ValueError, "ffn: w_down is packed for CUDA device 1"):
    ff.ffn(x, ff.pack(w, "f32"), weight(random(4, 6)), activation="relu")
with refused(ValueError, "ffn: w_down is on CUDA device 0"):
    ff.ffn(there, packed, weight(random(4, 6), device=0), activation="relu")
with refused(RuntimeError, "no code for Imaginary 0", "7.5", "85 ptx85"):
    ff.linear(put(x, device=0), weight(w, device=0))
host = _core.pack_for_device(w, "f32", {})
with refused(ValueError, "packed for CUDA devices", "runs on the CPU"):
    ff.linear(x, host)
with refused(ValueError, "moe: x", "CPU's memory"):
    ff.moe(x, np.zeros((2, 1), np.int32), None, packed, packed, activation="silu")
assert last_call()[2] == before
""",
    )


def test_bad_arguments_before_any_work(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
w, x = random(6, 4), random(2, 4)
packed = weight(w)
before = last_call()[2]
with refused(ValueError, "linear: x has shape (2, 5)", "(6, 4)"):
    ff.linear(put(random(2, 5)), packed)
with refused(ValueError, "linear: out has shape (2, 5)"):
    ff.linear(put(x), packed, out=put(random(2, 5)))
with refused(ValueError, "linear: bias has shape (5,)"):
    ff.linear(put(x), packed, put(random(5)))
with refused(ValueError, "linear: x has dtype"):
    ff.linear(put(x.astype(np.int32)), packed)
with refused(ValueError, "linear: x has rows without a common stride"):
    ff.linear(DeviceArray(random(3, 4, 4)[:, :3]), packed)
with refused(ValueError, "stride", "bias"):
    ff.linear(put(x), packed, DeviceArray(random(6, 2)[:, 0]))
both = put(random(8, 6))
with refused(ValueError, "out and x share"):
    ff.linear(DeviceArray(both.values[:, :4]), packed, out=both)
assert ff.linear(put(np.zeros((0, 4), np.float32)), packed).values.shape == (0, 6)
assert last_call()[2] == before
strided = random(4, 12)
y = ff.linear(DeviceArray(strided[::2, 3:7]), packed)
np.testing.assert_allclose(y.values, strided[::2, 3:7] @ w.T, atol=1e-5)
""",
    )


def test_device_weight_reads_the_header_once(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
w, x = random(6, 4), random(2, 4)
host = _core.pack_for_device(w, "bf16", {})
packed = ff.device_weight(DeviceArray(host))
assert isinstance(packed, ff.DeviceWeight) and (packed.format, packed.nbytes) == ("bf16", host.size)
assert packed.array.values is host
np.testing.assert_allclose(ff.linear(put(x), packed).values, x @ ff.unpack(ff.pack(w, "bf16")).T, atol=1e-4)
for damage in (0, 8, 10, 20, 63):
    broken = host.copy()
    broken[damage] ^= 1
    with refused(ValueError, "device_weight: packed"):
        ff.device_weight(DeviceArray(broken))
with refused(ValueError, "device_weight: packed", "truncated"):
    ff.device_weight(DeviceArray(host[:-64]))
with refused(ValueError, "less than the 64-byte header"):
    ff.device_weight(DeviceArray(host[:10]))
with refused(ValueError, "layout 1", "CUDA"):
    ff.device_weight(DeviceArray(ff.pack(w, "bf16")))
with refused(ValueError, "expected a contiguous one-dimensional uint8 array"):
    ff.device_weight(put(w))
with refused(ValueError, "CPU"):
    ff.device_weight(host)
with refused(ValueError, "pack: row 0 of w", "sparse24 keeps at most 2 of every 4"):
    _core.pack_for_device(w, "sparse24", {})
""",
    )


@pytest.mark.parametrize("plugin", ["off", "/nowhere/libfastffn_cuda.so"])
def test_without_a_plugin_calls_say_why(plugin):
    run(
        plugin,
        """
w = random(6, 4)
packed = weight(w)
with refused(RuntimeError, "linear: CUDA is unavailable: ", PLUGIN):
    ff.linear(put(random(2, 4)), packed)
with refused(RuntimeError, "device_weight: CUDA is unavailable"):
    ff.device_weight(packed.array)
assert ff.linear(random(2, 4), ff.pack(w, "f32")).shape == (2, 6)  # the CPU is as ever
""",
    )


def test_pack_with_device_needs_a_framework_that_has_it(fake_plugin):  # noqa: F811
    run(
        fake_plugin,
        """
for name in ("torch", "cupy", "jax"):
    sys.modules[name] = None  # as if it were not installed
with refused(RuntimeError, "pack: device='cuda' needs a framework", "torch is not installed, cupy is not installed, jax is not installed"):
    ff.pack(random(6, 4), "bf16", device="cuda")
with refused(TypeError, "packs a pair of factors"):
    ff.pack(random(2, 4), "lowrank", device="cuda")
with refused(ValueError, "pack: device is 'tpu:1', expected"):
    ff.pack(random(6, 4), "bf16", device="tpu:1")
assert ff.pack(random(6, 4), "bf16", device="cpu").dtype == np.uint8
""",
    )
