"""Producers and streams that misbehave, managed memory, and memory given twice; on the emulated device alone, see cuda_support.py."""

import ctypes
import gc
import sys
import threading

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DeviceArray
from kernel_support import normal


@pytest.fixture
def device(cuda):
    if cuda.is_gpu:
        pytest.skip("arrays in disguise")
    return cuda


@pytest.fixture
def layer(device):
    rng = np.random.default_rng(1)
    return device.put(normal(rng, (5, 64))), device.weight(normal(rng, (48, 64)), "int8")


def posing(array, kind=None, **methods):
    """The array again, with other methods."""
    made = DeviceArray.over(array.memory, array.device, array.kind if kind is None else kind)
    made.__class__ = type("Odd", (DeviceArray,), methods)
    return made


def interrupted(self, **_):
    raise KeyboardInterrupt


def closed(self, **_):
    raise ValueError("closed")


CALLS = {
    "linear: x": lambda a, w: ff.linear(a, w),
    "hadamard: x": lambda a, w: ff.hadamard(a),
    "quantize: x": lambda a, w: ff.quantize(a),
    "route_topk: logits": lambda a, w: ff.route_topk(a, 2),
    "expert_load: ids": lambda a, w: ff.expert_load(a, 4),
}


@pytest.mark.parametrize("where", CALLS)
def test_errors_of_producers_name_operation_and_argument(layer, where):
    x, w = layer
    for method in ("__dlpack__", "__dlpack_device__"):
        with pytest.raises(BufferError, match=f"{where} .*could not be exported: closed") as caught:
            CALLS[where](posing(x, **{method: closed}), w)
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(KeyboardInterrupt):
            CALLS[where](posing(x, **{method: interrupted}), w)
    for answer in (None, (2,), ("cuda", 0), (2, 1 << 40), 2):
        with pytest.raises(BufferError, match=rf"{where} .*__dlpack_device__ gave .*expected a tuple of two integers"):
            CALLS[where](posing(x, __dlpack_device__=lambda self, answer=answer: answer), w)


@pytest.mark.parametrize("answer", [(0, None), (0, -1), (0, 1 << 70), (1, 5), (), 5, None], ids=str)
def test_streams_that_say_none(layer, answer):
    class Stream:
        def __cuda_stream__(self):
            return answer

    with pytest.raises(ValueError, match=r"linear: __cuda_stream__ of stream .* gave .*, expected \(0, handle\)"):
        ff.linear(*layer, stream=Stream())


def test_managed_memory_is_the_devices(device, layer):
    x, w = layer
    managed = posing(x, kind=13)
    for call in CALLS.values():
        given = (x, managed)
        if call is CALLS["expert_load: ids"]:
            ids = device.put(np.array([[0, 3, 3]], np.int32))
            given = (ids, posing(ids, kind=13))
        plain, same = (call(a, w) for a in given)
        if isinstance(plain, ff.ExpertLoad):
            assert plain.max == same.max == 2
            continue
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (plain, same)), strict=True):
            assert isinstance(b, DeviceArray)
            np.testing.assert_array_equal(device.get(a), device.get(b))


def test_rows_of_no_tokens(device):
    for shape in ((0, 64), (3, 0, 64)):
        codes, scale = ff.quantize(device.put(np.zeros(shape, np.float32)))
        assert codes.shape == shape and scale.shape == shape[:-1]


def test_workspace_is_memory_of_its_own(device, layer):
    x, w = layer
    rng = np.random.default_rng(2)
    down = device.weight(normal(rng, (64, 48)), "int8")
    memory = device.bytes(1 << 16)
    rows = DeviceArray.over(memory.memory[4096:5376].view(np.float32).reshape(5, 64))
    rows.write(x.values)
    out = DeviceArray.over(memory.memory[8192:9152].view(np.float32).reshape(5, 48))
    before = w.array.values
    logits, ids = device.put(normal(rng, (5, 4))), device.put(np.zeros((5, 1), np.int32))
    stacks = [device.weight(normal(rng, shape), "int8") for shape in ((2, 24, 64), (2, 64, 24))]

    aligned = DeviceArray(np.zeros((w.nbytes + 255) // 256 * 256, np.uint8))
    aligned.write(before, slice(0, w.nbytes))
    own = ff.device_weight(aligned[: w.nbytes])
    for name, call in (
        ("x", lambda: ff.linear(rows, w, workspace=memory)),
        ("out", lambda: ff.linear(x, w, out=out, workspace=memory)),
        ("w", lambda: ff.linear(x, own, workspace=aligned)),
        ("x", lambda: ff.ffn(rows, w, down, activation="relu", workspace=memory)),
        ("w_up", lambda: ff.ffn(x, own, down, activation="relu", workspace=aligned)),
        ("x", lambda: ff.hadamard(rows, workspace=memory)),
        ("x", lambda: ff.moe(rows, ids, None, *stacks, activation="relu", workspace=memory)),
        ("logits", lambda: ff.route_topk(rows, 2, workspace=memory)),
    ):
        with pytest.raises(ValueError, match=f"[a-z_]+: workspace and {name} share a range of memory"):
            call()
    np.testing.assert_array_equal(aligned.values[: w.nbytes], before)
    assert device.get(ff.route_topk(logits, 2, workspace=memory)[0]).shape == (5, 2)


@pytest.mark.parametrize(("flags", "text"), [(1, "is read-only"), (2, "exports a copy of itself")])
def test_workspace_is_written_to(device, layer, flags, text):
    memory = device.bytes(1 << 14)

    def versioned(self, **_):
        # A DLManagedTensorVersioned by hand: version, context, deleter, flags, tensor.
        shape = np.array([self.memory.size], np.int64)
        raw = np.zeros(10, np.int64)
        raw[0], raw[3], raw[4], raw[5] = 1, flags, self.memory.ctypes.data, 2
        raw[6], raw[7] = 1 | (1 << 32) | (8 << 40) | (1 << 48), shape.ctypes.data
        kept.extend((shape, raw))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(raw.ctypes.data, b"dltensor_versioned", None)

    kept = []
    with pytest.raises((ValueError, BufferError), match=f"linear: workspace .*{text}"):
        ff.linear(*layer, workspace=posing(memory, __dlpack__=versioned))


def test_calls_leave_no_references(device, layer):
    x, w = layer
    out = device.full((5, 48), 0, "f32")

    class Stream:
        def __cuda_stream__(self):
            return (0, 0)

    stream, odd = Stream(), posing(x, __dlpack__=closed)
    wrong = device.full((5, 47), 0, "f32")

    def calls():
        ff.linear(x, w, out=out, stream=stream)
        ff.linear(x, w)
        ff.hadamard(x)
        ff.device_workspace(ff.linear, x, w)
        ff.device_weight(w.array)
        for given in ((odd, w, None), (x, w, wrong), (x, w, np.zeros((5, 48), np.float32))):
            with pytest.raises((BufferError, ValueError)):
                ff.linear(given[0], given[1], out=given[2])

    watched = (x, w, w.array, out, stream, odd, wrong, x.memory)
    calls()
    gc.collect()
    counts, objects = [sys.getrefcount(thing) for thing in watched], len(gc.get_objects())
    for _ in range(200):
        calls()
    for array in (x, w.array, out, wrong):
        array.exports.clear()
    del array
    gc.collect()
    assert [sys.getrefcount(thing) for thing in watched] == counts
    assert len(gc.get_objects()) < objects + 100


def test_threads_at_once(device, layer):
    x, w = layer
    wide = device.put(
        normal(np.random.default_rng(3), (40, 512))
    )  # long enough for the interpreter's lock to be given up
    wanted, wanted_wide = device.get(ff.linear(x, w)), device.get(ff.hadamard(wide))
    # Results are made and read outside of the threads: to open the emulated memory takes a lock that calls take too.
    results = [(device.full((5, 48), 0, "f32"), device.full((40, 512), 0, "f32")) for _ in range(4)]
    bytes_, short = ff.linear_workspace(x, w), x[:, :32]
    faults = []

    def work(out, wide_out):
        try:
            for _ in range(10):
                with pytest.raises(ValueError, match="linear: x has shape"):
                    ff.linear(short, w, out=out)
                assert ff.device_workspace(ff.linear, x, w, out=out) == bytes_
                assert ff.linear(x, w, out=out) is out
                assert ff.hadamard(wide, out=wide_out) is wide_out
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults and not any(thread.is_alive() for thread in threads)
    for out, wide_out in results:
        np.testing.assert_array_equal(device.get(out), wanted)
        np.testing.assert_array_equal(device.get(wide_out), wanted_wide)
