"""Same input, same bits: for any number of threads, in any run, with callers side by side."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastffn as ff
from kernel_support import FORMATS, SMALL, Layer, normal

formats = pytest.mark.parametrize("fmt", FORMATS)
TOKENS = (1, 20, 70) if SMALL else (1, 3, 17, 64, 130, 300)


@pytest.fixture(autouse=True)
def default_threads():
    yield
    ff.set_num_threads(0)


@formats
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_any_number_of_threads(fmt, gated, tokens):
    layer = Layer(fmt, 257, 771, gated, "f32", "silu", d_out=390)
    x = normal(np.random.default_rng(1), (tokens, 257), "bf16")
    ff.set_num_threads(1)
    expected = layer(x)
    layer.check(x)
    for threads in range(2, 9):
        ff.set_num_threads(threads)
        for _ in range(2):
            np.testing.assert_array_equal(layer(x), expected)


@formats
def test_eight_callers_at_once(fmt):
    layers = [Layer(fmt, 130, 300, True, "f32", "silu", seed=i) for i in range(8)]
    inputs = [normal(np.random.default_rng(i), (1 + 9 * i, 130)) for i in range(8)]
    expected = [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    def call(i):
        return all(np.array_equal(layers[i](inputs[i]), expected[i]) for _ in range(5 if SMALL else 20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


PROGRAM = """
import hashlib, sys
from kernel_support import FORMATS, Layer, normal
import numpy as np
for fmt in FORMATS:
    x = normal(np.random.default_rng(1), (40, 100))
    print(hashlib.sha256(Layer(fmt, 100, 200, True, "f32", "silu")(x).tobytes()).hexdigest())
"""


def test_any_run():
    paths = [p for p in sys.path if p]
    runs = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n" + PROGRAM],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1 and len(next(iter(runs)).split()) == len(FORMATS)
