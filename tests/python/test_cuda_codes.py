"""Options of ternary and int4 that the formats of test_cuda_linear.py do not have, on devices beside the CPU."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import normal

DEPTH, OUT = 384, 70


def given_codes(rng, out_features, depth, group, kind):
    """int4 as another library has it: codes, scales and minima or zero points."""
    codes = rng.integers(0, 16, (out_features, depth)).astype(np.float32)
    groups = -(-depth // group)
    options = {"group": group, "scales": rng.uniform(0.005, 0.02, (out_features, groups)).astype(np.float32)}
    if kind == "minima":
        options["minima"] = -rng.uniform(0.02, 0.1, (out_features, groups)).astype(np.float32)
    else:
        options["zeros"] = rng.integers(0, 16, (out_features, groups)).astype(np.float32)
    return codes, options


def close(found, expected):
    # The same products and the same roundings of x; f32 sums in another order: depth · 2^-23 of the sum of magnitudes, which of
    # random numbers is less than 64 times the largest result.
    bound = DEPTH * 2.0**-23 * 64 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= bound, (np.abs(found - expected).max(), bound)


@pytest.mark.parametrize("act", ["int8", "bf16"])
@pytest.mark.parametrize("kind", ["minima", "zeros"])
@pytest.mark.parametrize("tokens", [1, 11, 40])
def test_codes_of_other_libraries(cuda, act, kind, tokens):
    rng = np.random.default_rng([tokens, len(kind)])
    codes, options = given_codes(rng, OUT, DEPTH, 64, kind)
    x = normal(rng, (tokens, DEPTH))
    expected = ff.linear(x, ff.pack(codes, "int4", act=act, **options))
    found = cuda.get(ff.linear(cuda.put(x), cuda.pack(codes, "int4", act=act, **options)))
    close(found, expected)


@pytest.mark.parametrize("tokens", [3, 40])
def test_bf16_activations_behind_a_transform(cuda, tokens):
    rng = np.random.default_rng(tokens)
    w = normal(rng, (OUT, DEPTH), scale=DEPTH**-0.5)
    x = normal(rng, (tokens, DEPTH))
    for options in ({"act": "bf16"}, {"act": "bf16", "zero_points": True, "group": 32}):
        options = {**options, "hadamard": "block"}
        expected = ff.linear(x, ff.pack(w, "int4", **options))
        found = cuda.get(ff.linear(cuda.put(x), cuda.pack(w, "int4", **options)))
        # A few numbers may fall to the other side of an edge between two of bf16.
        assert np.abs(found - expected).max() <= 2.0**-11 * np.abs(expected).max()


def test_hidden_activations_are_transformed_whole(cuda):
    """In front of a transform they are f32: rounded to bf16 before it and behind it they would be further from the CPU's."""
    rng = np.random.default_rng(9)
    up = normal(rng, (DEPTH, 64), scale=0.125)
    down = normal(rng, (OUT, DEPTH), scale=DEPTH**-0.5)
    x = normal(rng, (5, 64))
    arguments = {"act": "bf16", "hadamard": "block"}
    expected = ff.ffn(x, ff.pack(up, "f32"), ff.pack(down, "int4", **arguments), activation="relu2")
    found = cuda.get(
        ff.ffn(cuda.put(x), cuda.pack(up, "f32"), cuda.pack(down, "int4", **arguments), activation="relu2")
    )
    # A few may fall to the other side of an edge between two of bf16: far less than the rounding of all of them, which is 2^-9.
    assert np.abs(found - expected).max() <= 2.0**-11 * np.abs(expected).max()
