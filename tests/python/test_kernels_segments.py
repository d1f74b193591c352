"""segments=: a layer that uses some of its hidden columns is the layer of weights sliced to them."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import SMALL, normal

# What may differ: the order of sums; where hidden values are rounded, one of them may land on its neighbour. int8 weights of
# w_down keep the scale of their whole row, and low-rank ones quantise per 256 columns of the uncut layer.
LIMITS = {"f32": 2e-6, "f16": 2e-6, "bf16": 4e-3, "int8": 3e-2}
D_MODEL, D_FF = 70, 600
SEGMENTS = (
    [(0, 600)],
    [(0, 1)],
    [(0, 256)],
    [(0, 300)],
    [(599, 1)],
    [(16, 32)],
    [(3, 5), (8, 7), (250, 12), (511, 2)],
    [(257, 255)],
    [(10, 20), (560, 40)],
)
TOKENS = (1, 6, 40, 300)


@pytest.fixture(autouse=True)
def default_threads():
    yield
    ff.set_num_threads(0)


def pieces(seed=0):
    rng = np.random.default_rng(seed)
    weights = {
        "w_up": normal(rng, (D_FF, D_MODEL), scale=D_MODEL**-0.5),
        "w_gate": normal(rng, (D_FF, D_MODEL), scale=D_MODEL**-0.5),
        "w_down": normal(rng, (50, D_FF), scale=D_FF**-0.5),
    }
    biases = {"b_up": normal(rng, D_FF), "b_gate": normal(rng, D_FF), "b_down": normal(rng, 50)}
    return weights, biases


def columns_of(segments):
    return np.concatenate([np.arange(start, start + length) for start, length in segments])


def sliced(plain, biases, columns):
    """Weights (or pairs of factors) and biases with these hidden columns alone."""
    cut = {}
    for name, w in plain.items():
        if isinstance(w, tuple):
            cut[name] = (np.ascontiguousarray(w[0][:, columns]), w[1]) if name == "w_down" else (w[0], w[1][columns])
        else:
            cut[name] = w[:, columns] if name == "w_down" else w[columns]
    return cut, {name: b if name == "b_down" else b[columns] for name, b in biases.items()}


def run(plain, biases, fmt, x, gated, **keywords):
    packed = {}
    for name, w in plain.items():
        if gated or name != "w_gate":
            packed[name] = ff.pack(w, "lowrank", factors=fmt) if isinstance(w, tuple) else ff.pack(w, fmt)
    used = {name: b for name, b in biases.items() if gated or name != "b_gate"}
    return ff.ffn(x, **packed, **used, activation="silu", **keywords)


def close(y, expected, fmt):
    assert np.linalg.norm(y - expected) <= LIMITS[fmt] * np.linalg.norm(expected)


def low_rank(plain, rank=30):
    rng = np.random.default_rng(5)
    return {
        name: (normal(rng, (rank, w.shape[1]), scale=w.shape[1] ** -0.5), normal(rng, (w.shape[0], rank), scale=0.2))
        for name, w in plain.items()
    }


@pytest.mark.parametrize("fmt", LIMITS)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["dense", "lowrank", "dense up", "dense down"])
def test_segments_are_sliced_weights(fmt, tokens, gated, kind):
    plain, biases = pieces()
    pairs = low_rank(plain)
    if kind == "lowrank":
        plain = pairs
    elif kind == "dense up":
        plain["w_down"] = pairs["w_down"]
    elif kind == "dense down":
        plain.update({name: pairs[name] for name in ("w_up", "w_gate")})
    x = normal(np.random.default_rng(1), (tokens, D_MODEL), "f32")
    for segments in SEGMENTS[:: 3 if SMALL else 1]:
        cut, cut_biases = sliced(plain, biases, columns_of(segments))
        close(run(plain, biases, fmt, x, gated, segments=segments), run(cut, cut_biases, fmt, x, gated), fmt)


@pytest.mark.parametrize("fmt", LIMITS)
@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_all_columns_are_the_layer(fmt, kind):
    plain, biases = pieces()
    if kind == "lowrank":
        plain = low_rank(plain)
    for tokens in TOKENS:
        x = normal(np.random.default_rng(2), (tokens, D_MODEL), "bf16")
        whole = run(plain, biases, fmt, x, True)
        np.testing.assert_array_equal(run(plain, biases, fmt, x, True, segments=[(0, D_FF)]), whole)
        np.testing.assert_array_equal(run(plain, biases, fmt, x, True, segments=[(0, 256), (256, 344)]), whole)
        np.testing.assert_array_equal(run(plain, biases, fmt, x, True, segments=None), whole)


@pytest.mark.parametrize("fmt", LIMITS)
@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_fused_layers_are_the_sum_of_their_parts(fmt, kind):
    """FFN Fusion: parallel layers side by side in one weight, of unequal widths; each alone is a segment of it."""
    plain, biases = pieces()
    if kind == "lowrank":
        plain = low_rank(plain)
    parts = [(0, 100), (100, 257), (357, 243)]
    for tokens in TOKENS:
        x = normal(np.random.default_rng(3), (tokens, D_MODEL))
        no_down = {name: b for name, b in biases.items() if name != "b_down"}
        fused = run(plain, no_down, fmt, x, True)
        separate = sum(run(plain, no_down, fmt, x, True, segments=[part]) for part in parts)
        close(separate, fused, fmt)


@pytest.mark.parametrize("fmt", LIMITS)
@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_what_is_left_out_does_not_matter(fmt, kind):
    """NaN in hidden columns outside, through their biases."""
    plain, biases = pieces()
    if kind == "lowrank":
        plain = low_rank(plain)
    poisoned = {name: b.copy() for name, b in biases.items()}
    for name in ("b_up", "b_gate"):
        poisoned[name][[0, 9, 260, 599]] = np.nan
    segments = [(1, 8), (10, 250), (261, 300)]
    for tokens in TOKENS:
        x = normal(np.random.default_rng(4), (tokens, D_MODEL))
        clean = run(plain, biases, fmt, x, True, segments=segments)
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(run(plain, poisoned, fmt, x, True, segments=segments), clean)


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_weights_outside_are_not_read(fmt, kind):
    """NaN in w_down beyond the blocks that segments touch: multiplied by zero it would still be NaN."""
    plain, biases = pieces()
    plain = {name: w.copy() for name, w in plain.items()}
    if kind == "lowrank":
        plain = low_rank(plain)
    clean = {name: w.copy() if isinstance(w, np.ndarray) else (w[0].copy(), w[1]) for name, w in plain.items()}
    poisoned = plain["w_down"] if kind == "dense" else plain["w_down"][0]
    block = 64 if kind == "dense" else 256
    for segments in ([(3, 50)], [(256, 200)], [(5, 9), (520, 80)]):
        touched = np.zeros(D_FF, bool)
        for start, length in segments:
            touched[start // block * block : -(-(start + length) // block) * block] = True
        poisoned[:] = clean["w_down"] if kind == "dense" else clean["w_down"][0]
        poisoned[:, ~touched] = np.nan
        for tokens in TOKENS:
            x = normal(np.random.default_rng(8), (tokens, D_MODEL))
            y = run(plain, biases, fmt, x, True, segments=segments)
            np.testing.assert_array_equal(y, run(clean, biases, fmt, x, True, segments=segments))


@pytest.mark.parametrize("fmt", LIMITS)
@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_any_number_of_threads(fmt, kind):
    plain, biases = pieces()
    if kind == "lowrank":
        plain = low_rank(plain)
    for tokens in TOKENS:
        x = normal(np.random.default_rng(6), (tokens, D_MODEL))
        ff.set_num_threads(1)
        expected = run(plain, biases, fmt, x, True, segments=SEGMENTS[6])
        for threads in (2, 3, 8):
            ff.set_num_threads(threads)
            np.testing.assert_array_equal(run(plain, biases, fmt, x, True, segments=SEGMENTS[6]), expected)


def test_depth_loops_over_slices():
    """VersatileFFN (arXiv:2512.14531): expert k is the slice [⌊kS⌋, +d_e); a loop feeds the layer its own output."""
    rng = np.random.default_rng(7)
    w_up, w_down = normal(rng, (96, 24), scale=0.2), normal(rng, (24, 96), scale=0.1)
    up, down = ff.pack(w_up, "f32"), ff.pack(w_down, "f32")
    x = expected = normal(rng, (5, 24))
    width, experts = 32, 4
    stride = (96 - width) / (experts - 1)
    for k in (0, 2, 3):
        begin = int(k * stride)
        x = ff.ffn(x, up, down, activation="relu", segments=[(begin, width)])
        hidden = np.maximum(expected.astype(np.float64) @ w_up[begin : begin + width].T, 0)
        expected = hidden @ w_down[:, begin : begin + width].T
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("segments", "kind", "text"),
    [
        ([], ValueError, "segments is empty"),
        ([(0, 0)], ValueError, "(0, 0)"),
        ([(-1, 5)], ValueError, "(-1, 5)"),
        ([(0, 601)], ValueError, "600 hidden columns"),
        ([(600, 1)], ValueError, "(600, 1)"),
        ([(1 << 62, 1 << 62)], ValueError, "hidden columns"),
        ([(5, 10), (14, 3)], ValueError, "before column 15"),
        ([(20, 10), (0, 3)], ValueError, "ascending"),
        ([(1 << 70, 1)], TypeError, "pairs of integers"),
        ([(0.5, 1)], TypeError, "pairs of integers"),
        ([3], TypeError, "pairs of integers"),
        ([(1, 2, 3)], TypeError, "pairs of integers"),
        (7, TypeError, "has type int"),
    ],
)
def test_errors(segments, kind, text):
    plain, biases = pieces()
    with pytest.raises(kind) as error:
        run(plain, biases, "f32", np.zeros((2, D_MODEL), np.float32), True, segments=segments)
    assert text in str(error.value)
