"""FASTFFN_ISA: what is forced is what runs; what is unknown or not available is an error."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import fastffn as ff
from fastffn import _core
from kernel_support import FORMATS, Layer, active_kernel, normal
from reference.formats import pack_arguments

LEVELS = ("ref", "avx2", "avx512base", "avx512vnni", "avx512bf16", "amx")
# What each level runs for each format: the best kernels at or below it.
KERNELS = {
    "f32": ("ref", "avx2", "avx512base", "avx512base", "avx512base", "avx512base"),
    "f16": ("ref", "avx2", "avx512base", "avx512base", "avx512base", "avx512base"),
    "bf16": ("ref", "avx2", "avx512base", "avx512base", "avx512bf16", "amx"),
    "int8": ("ref", "avx2", "avx2", "avx512vnni", "avx512vnni", "amx"),
}
KERNELS |= {f"sparse24-{values}": row for values, row in KERNELS.items()}
KERNELS |= dict.fromkeys(("ternary", "int4"), ("ref", "avx2", "avx2", "avx512vnni", "avx512vnni", "amx"))


def kernel(fmt, level):
    name, options = pack_arguments(fmt)
    if "order" in options:
        level = min(level, "avx512vnni", key=LEVELS.index)  # AMX has no kernels for these
    numbers = "bf16" if options.get("act") == "bf16" else fmt if fmt in KERNELS else name
    return f"{name}/{KERNELS[numbers][LEVELS.index(level)]}"


def run_python(program, isa, *arguments):
    environment = dict(os.environ)
    environment.pop("FASTFFN_ISA", None)
    if isa is not None:
        environment["FASTFFN_ISA"] = isa
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)


PROGRAM = """
import numpy as np, fastffn as ff
from fastffn import _core
m = _core.machine()
print("level", m["isa_found"], m["isa_chosen"])
x = np.ones((%d, 40), np.float32)
plain = np.ones((24, 40), np.float32)
plain[:, ::4] = plain[:, 1::4] = 0
for f in ff.formats():
    for values in ("bf16", "f16", "f32", "int8") if f == "sparse24" else (None,):
        w = ff.pack(plain, f, values=values)
        ff.linear(x, w)
        print("ran", f + (f"-{values}" if values else ""), ff.active_kernel(f, values=values), _core.last_kernel())
"""


@pytest.fixture(scope="module")
def best():
    return run_python(PROGRAM % 1, None).stdout.split()[1]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_forced(level, tokens, best):
    result = run_python(PROGRAM % tokens, level)
    if LEVELS.index(level) > LEVELS.index(best):
        assert result.returncode != 0
        assert "RuntimeError" in result.stderr and level in result.stderr and best in result.stderr
        return
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["level", best, level]
    assert {line[1] for line in lines[1:]} == set(KERNELS)
    for _, fmt, active, last in lines[1:]:
        assert active == last == kernel(fmt, level)


@pytest.mark.parametrize("name", ["sse2", "AVX2", "avx512f", " "])
def test_unknown(name):
    result = run_python(PROGRAM % 1, name)
    assert result.returncode != 0
    assert "ValueError" in result.stderr and f"'{name}'" in result.stderr and "avx512vnni" in result.stderr


def test_every_entrance_refuses(tmp_path):
    program = """
import sys, numpy as np, fastffn as ff
w = np.load(sys.argv[1])
x = np.ones((1, 4), np.float32)
for call in (lambda: ff.linear(x, w), lambda: ff.ffn(x, w, w, activation="relu"), lambda: ff.active_kernel("f32")):
    try:
        call()
    except ValueError as error:
        assert "FASTFFN_ISA='nonsense'" in str(error), error
    else:
        raise SystemExit("went through")
"""
    np.save(tmp_path / "w.npy", ff.pack(np.ones((4, 4), np.float32), "f32"))
    result = run_python(program, "nonsense", str(tmp_path / "w.npy"))
    assert result.returncode == 0, result.stderr


def test_this_run():
    """The suite itself runs the kernels that its environment asks for."""
    level = _core.machine()["isa_chosen"]
    forced = os.environ.get("FASTFFN_ISA")
    if forced and forced != "avx512":
        assert level == forced
    for fmt in FORMATS:
        for tokens in (1, 40):
            Layer(fmt, 40, 24)(normal(np.random.default_rng(1), (tokens, 40)))
            assert _core.last_kernel() == active_kernel(fmt) == kernel(fmt, level)


@pytest.mark.parametrize("fmt", ["bf16", "int8", "sparse24-bf16", "sparse24-int8"])
def test_emulated_amx_runs_amx_instructions(fmt):
    try:
        count = ctypes.CDLL(None).amx_emulator_count
    except AttributeError:
        pytest.skip("not under the AMX emulator")
    if not active_kernel(fmt).endswith("/amx"):
        pytest.skip("not on the amx level")
    count.restype = ctypes.c_ulonglong
    before = count()
    Layer(fmt, 130, 200, True)(normal(np.random.default_rng(1), (70, 130)))
    # 70 × 200 × 130 takes 5 · 13 · 5 (bf16) tile products for each of three matrices, and int8 half of them.
    assert count() - before > 300
