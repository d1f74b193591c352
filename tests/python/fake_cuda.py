"""A CUDA device without CUDA: the plugin of tests/cpp/fake_cuda_plugin.cpp computes on the host, and arrays here claim to lie on
its device 1. Programs that use it run in a process of their own, as a process looks for the plugin once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What every program starts with.
ARRAYS = '''
import ctypes, sys
import numpy as np
import fastffn as ff
from fastffn import _core

DEVICE = 1
exports = []  # (stream, max_version) of every __dlpack__ call

class Namespace:
    @staticmethod
    def empty(shape, dtype, device):
        return DeviceArray(np.full(shape, np.nan, dtype), device)

class DeviceArray:
    """An array whose memory is the host's, exported as if it were on a CUDA device."""
    def __init__(self, values, device=DEVICE, kind=2):
        self.values, self.device, self.kind = values, device, kind
    @property
    def dtype(self):
        return self.values.dtype
    def __array_namespace__(self, api_version=None):
        return Namespace
    def __dlpack_device__(self):
        return (self.kind, self.device)
    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        exports.append(stream)
        capsule = self.values.__dlpack__()
        get, name = ctypes.pythonapi.PyCapsule_GetPointer, b"dltensor"
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device = ctypes.cast(get(capsule, name) + 8, ctypes.POINTER(ctypes.c_int32))  # DLTensor.device
        device[0], device[1] = self.kind, self.device
        return capsule

def put(values, device=DEVICE):
    return DeviceArray(np.ascontiguousarray(values), device)

def weight(w, format="f32", device=DEVICE, **options):
    host = _core.pack_for_device(w, format, options)
    return _core.device_weight(DeviceArray(host, device), None, bytes(host[:64]))

def last_call():
    library = ctypes.CDLL(PLUGIN)
    stream, device, count = ctypes.c_void_p(), ctypes.c_int32(), ctypes.c_int32()
    library.fake_last_call(ctypes.byref(stream), ctypes.byref(device), ctypes.byref(count))
    return stream.value or 0, device.value, count.value

def refused(kind, *parts):
    class Check:
        def __enter__(self): pass
        def __exit__(self, type_, error, trace):
            assert type_ is kind, f"{type_}: {error}"
            for part in parts:
                assert part in str(error), f"{part!r} is not in {error}"
            return True
    return Check()

rng = np.random.default_rng(7)
def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)
'''


@pytest.fixture(scope="session")
def fake_plugin(tmp_path_factory) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler")
    place = tmp_path_factory.mktemp("fake") / "libfake_cuda.so"
    subprocess.run(
        [compiler, "-std=c++17", "-shared", "-fPIC", "-DFAKE_PLUGIN=good", f"-I{ROOT}", f"-I{ROOT}/cpp/src", f"-I{ROOT}/cpp/include",
         str(ROOT / "tests/cpp/fake_cuda_plugin.cpp"), "-o", str(place)],
        check=True,
    )  # fmt: skip
    return place


def run(plugin: Path | str, program: str) -> None:
    """Runs a program that sees `plugin`; its failed assertion is the test's."""
    result = subprocess.run(
        [sys.executable, "-c", f"PLUGIN = {str(plugin)!r}\n" + ARRAYS + program],
        env={**os.environ, "FASTFFN_CUDA_PLUGIN": str(plugin)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
