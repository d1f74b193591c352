"""From pruned weights, or from another program's file, through ff.pack to a product."""

from __future__ import annotations

import numpy as np
import pytest

import fastffn as ff
from sparse24_support import formula, random24, same_bits

s24 = ff.sparse24


@pytest.mark.parametrize("method", s24.METHODS)
def test_what_prune24_gives_is_what_pack_takes(method):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((40, 30)).astype(np.float32), rng.standard_normal((50, 30)).astype(np.float32)
    pruned = ff.prune24(w, method, x if method in ("wanda", "sparsegpt") else None)
    for values in ("f32", "f16", "bf16"):
        packed = ff.pack(pruned, "sparse24", values=values)
        assert np.array_equal(ff.unpack(packed), ff.unpack(ff.pack(pruned, values)))
    # f32 values: an f32 sum of at most 16 products per output.
    y = ff.linear(x, ff.pack(pruned, "sparse24", values="f32"))
    exact = x.astype(np.float64) @ pruned.astype(np.float64).T
    bound = 20 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(pruned).astype(np.float64).T)
    assert (np.abs(y - exact) <= bound).all()


def test_files_of_other_programs():
    """Whole numbers, which every format holds exactly: the same product from every form."""
    w = formula(64, 128)
    forms = {
        "canonical": s24.decompress24(*s24.compress24(w)),
        "bitmask": s24.from_bitmask(**s24.to_bitmask(w)),
        "cutlass": s24.from_cutlass(*s24.to_cutlass(w.astype(np.float16))),
        "marlin": s24.from_marlin24(**s24.to_marlin24(w, np.ones((64, 1), np.float16), bits=4)),
    }
    x = np.arange(-64, 64, dtype=np.float32)[None] % 7
    expected = x @ w.T
    for name, dense in forms.items():
        assert same_bits(dense.astype(np.float32), w), name
        for values in ("bf16", "f16", "f32"):
            assert np.array_equal(ff.linear(x, ff.pack(dense, "sparse24", values=values)), expected), (name, values)


def test_a_stack_and_an_odd_shape_in_one_ffn():
    """d_model 30, d_ff 41 (no multiples of four): each matrix alone sparse, and all of them, against dense ones of equal values."""
    rng = np.random.default_rng(1)
    weights = {
        name: random24(*shape) for name, shape in (("w_up", (41, 30)), ("w_down", (30, 41)), ("w_gate", (41, 30)))
    }
    x = rng.standard_normal((5, 30)).astype(np.float32)
    dense = {name: ff.pack(w, "f32") for name, w in weights.items()}
    sparse = {name: ff.pack(w, "sparse24", values="f32") for name, w in weights.items()}
    expected = ff.ffn(x, **dense, activation="silu")
    for chosen in (["w_up"], ["w_down"], ["w_gate"], list(weights)):
        y = ff.ffn(x, **{name: (sparse if name in chosen else dense)[name] for name in weights}, activation="silu")
        assert np.allclose(y, expected, rtol=1e-4, atol=1e-5)
    stack = np.stack([weights["w_up"], random24(41, 30, seed=2)])
    assert np.array_equal(ff.unpack(ff.pack(ff.prune24(stack), "sparse24", values="f32")), stack)


def test_dense_weights_are_sent_to_prune24():
    with pytest.raises(ValueError, match="row 0 .* group 0 .*prune"):
        ff.pack(np.ones((2, 8), np.float32), "sparse24")


def test_names_that_load_later():
    import fastffn

    assert {"prune24", "check24", "sparse24"} <= set(fastffn.__all__) & set(dir(fastffn))
    assert all(hasattr(fastffn, name) for name in fastffn.__all__)
    assert fastffn.sparse24.prune24 is fastffn.prune24
    with pytest.raises(AttributeError, match="module 'fastffn' has no attribute 'prune48'"):
        fastffn.prune48  # noqa: B018
