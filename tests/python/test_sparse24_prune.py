"""prune24 against the oracle: which weights stay, ties, edges, what SparseGPT changes, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from reference import sparse24 as oracle

SHAPES = [(1, 4), (1, 1), (2, 3), (3, 5), (5, 6), (7, 8), (33, 64), (16, 131)]


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows, columns]).standard_normal((rows, columns)).astype(np.float32)


def correlated(tokens: int, columns: int, seed: int = 1) -> np.ndarray:
    """Inputs whose columns differ in size and hang together, as hidden activations do."""
    rng = np.random.default_rng([seed, tokens, columns])
    mix = rng.standard_normal((columns, columns)) * rng.uniform(0, 1, (columns, 1)) ** 3
    return (rng.standard_normal((tokens, columns)) @ mix).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_magnitude(shape):
    w = weights(*shape)
    pruned = ff.prune24(w)
    assert np.array_equal(pruned, np.where(oracle.magnitude(w), w, 0))
    assert not np.signbit(pruned[pruned == 0]).any()
    ff.check24(pruned)


@pytest.mark.parametrize("shape", SHAPES)
def test_wanda(shape):
    w, x = weights(*shape), correlated(50, shape[1])
    expected = np.where(oracle.wanda(w, x), w, 0)
    assert np.array_equal(ff.prune24(w, "wanda", x), expected)
    assert np.array_equal(ff.prune24(w, method="wanda", calibration=x.reshape(2, 25, -1)), expected)
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(0))
    assert np.array_equal(ff.prune24(w, "wanda", norms), expected)
    seen = ff.sparse24.Calibration24(shape[1])
    seen.add(x[:20])
    seen.add(x[20:])
    assert seen.tokens == 50 and np.allclose(seen.norms, norms, rtol=1e-12)
    assert np.array_equal(ff.prune24(w, "wanda", seen), expected)


def test_wanda_orders_by_weight_times_norm():
    """By hand: |w| is 4 3 2 1, the norms 1 1 2 8, so the order is the last, then the first (of equal scores)."""
    w = np.array([[4, -3, 2, -1]], np.float32)
    assert ff.prune24(w).tolist() == [[4, -3, 0, 0]]
    assert ff.prune24(w, "wanda", np.array([1, 1, 2, 8.0])).tolist() == [[4, 0, 0, -1]]
    assert ff.prune24(w, "wanda", np.zeros(4)).tolist() == [[4, -3, 0, 0]]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_ties_keep_the_lower_index(method):
    """Every pattern of equal and unequal values of two sizes; SparseGPT with inputs that do not hang together."""
    values = np.array([[1 + (code >> bit & 1) for bit in range(4)] for code in range(16)], np.float32)
    values *= np.where(np.arange(16)[:, None] % 3 == 0, -1, 1)
    calibration = None if method == "magnitude" else np.eye(4, dtype=np.float32)
    pruned = ff.prune24(values, method, calibration)
    assert np.array_equal(pruned, np.where(oracle.keep_two(np.abs(values)), values, 0))


def test_all_zero():
    zero = np.zeros((3, 8), np.float32)
    x = np.ones((4, 8), np.float32)
    for method, calibration in (("magnitude", None), ("wanda", x), ("sparsegpt", x), ("transposable", None)):
        assert not ff.prune24(zero, method, calibration).any()
    some = weights(3, 8)
    some[1] = 0
    assert not ff.prune24(some, "sparsegpt", x)[1].any()


@pytest.mark.parametrize("shape", [(3, 4), (5, 12), (8, 30), (16, 64), (2, 3), (2, 1)])
@pytest.mark.parametrize("block", [4, 16, 128])
def test_sparsegpt_is_the_papers(shape, block):
    """The blocked solver on one Cholesky factor against the definition, which inverts what remains of H at every column."""
    w, x = weights(*shape), correlated(3 * shape[1] + 5, shape[1])
    expected = oracle.sparsegpt(w, x, damping=0.05)
    pruned = ff.prune24(w.astype(np.float64), "sparsegpt", x, damping=0.05, block=block)
    assert pruned.dtype == np.float64
    assert np.array_equal(pruned == 0, expected == 0)
    # x enters through f32 products of up to 200 rows: an error of H of 200·2^-24 against λ of 5 % of its mean diagonal.
    assert np.allclose(pruned, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    ff.check24(pruned)


def test_sparsegpt_beats_the_others_on_what_it_minimises():
    w, x = weights(48, 96), correlated(400, 96)
    losses = {
        m: oracle.loss(w, ff.prune24(w, m, None if m == "magnitude" else x), x)
        for m in ("magnitude", "wanda", "sparsegpt")
    }
    assert losses["sparsegpt"] < 0.7 * min(losses["wanda"], losses["magnitude"])
    assert losses["wanda"] < losses["magnitude"]


def test_sparsegpt_with_few_inputs_and_dead_columns():
    """Fewer rows than columns, and columns that are always 0: those go first, and nothing is NaN."""
    w, x = weights(6, 16), correlated(5, 16)
    x[:, [0, 1, 6]] = 0
    pruned = ff.prune24(w, "sparsegpt", x)
    assert np.isfinite(pruned).all() and not pruned[:, [0, 1, 6]].any()
    ff.check24(pruned)
    assert np.isfinite(ff.prune24(w, "sparsegpt", np.zeros((3, 16), np.float32))).all()
    with pytest.raises(ValueError, match="not positive definite with damping 0; give more inputs"):
        ff.prune24(w, "sparsegpt", np.ones((5, 16), np.float32), damping=0)


def test_sparsegpt_takes_sums_of_products():
    w, x = weights(6, 16), correlated(64, 16)
    seen = ff.sparse24.Calibration24(16, gram=True)
    for part in np.split(x, 4):
        seen.add(part)
    before = seen.gram.copy()
    assert np.allclose(ff.prune24(w, "sparsegpt", seen), ff.prune24(w, "sparsegpt", x), atol=1e-4)
    assert np.array_equal(seen.gram, before), "pruning overwrote the caller's sums"
    with pytest.raises(ValueError, match="gram=True"):
        other = ff.sparse24.Calibration24(16)
        other.add(x)
        ff.prune24(w, "sparsegpt", other)


def test_the_90_patterns():
    known = oracle.patterns()
    assert len(known) == 90
    assert all((pattern.sum(0) == 2).all() and (pattern.sum(1) == 2).all() for pattern in known)


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (5, 6), (1, 1), (3, 9), (33, 66), (2, 64)])
def test_transposable_is_optimal(shape):
    """Against all 90 patterns of every block."""
    w = weights(*shape)
    expected = oracle.transposable(w)
    pruned = ff.prune24(w, "transposable")
    assert np.array_equal(pruned, np.where(expected, w, 0))
    ff.check24(pruned)
    ff.check24(np.ascontiguousarray(pruned.T))


def test_transposable_is_exact_where_the_greedy_choice_is_not():
    """Taking the largest weights in turn, as torch's tile pruner does, can end in a corner: with fewer than 8, or with less."""

    def greedy(w):
        mask = np.zeros((4, 4), bool)
        for at in np.argsort(-w, axis=None, kind="stable"):
            row, column = divmod(int(at), 4)
            mask[row, column] = mask[row].sum() < 2 and mask[:, column].sum() < 2
        return mask

    short = worse = 0
    for seed in range(60):
        w = np.abs(weights(4, 4, seed))
        exact, taken = ff.prune24(w, "transposable"), greedy(w)
        assert np.count_nonzero(exact) == 8
        if taken.sum() < 8:
            short += 1
        else:
            assert exact.sum() >= w[taken].sum() - 1e-5
            worse += exact.sum() > w[taken].sum() + 1e-3
    assert short > 3 and worse > 3


def test_transposable_of_equal_weights_takes_the_first_pattern():
    w = np.full((8, 8), -2, np.float32)
    expected = np.where(np.tile(oracle.patterns()[0], (2, 2)), w, 0)
    assert np.array_equal(ff.prune24(w, "transposable"), expected)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "transposable"])
def test_kinds_dtypes_strides_and_stacks(method):
    w, x = weights(6, 8), correlated(40, 8)
    calibration = x if method in ("wanda", "sparsegpt") else None
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        given = w.astype(dtype)
        before = given.copy()
        pruned = ff.prune24(given, method, calibration)
        assert pruned.dtype == given.dtype and pruned.shape == given.shape
        assert given.tobytes() == before.tobytes(), "the caller's weights changed"
        if method != "sparsegpt":
            assert np.array_equal(pruned[pruned != 0], given[pruned != 0])
        assert ff.check24(pruned).density == 0.5
    strided = np.repeat(w, 2, axis=1)[:, ::2]
    expected = ff.prune24(w, method, calibration)
    assert np.array_equal(ff.prune24(strided, method, calibration), expected)
    assert np.array_equal(ff.prune24(np.asfortranarray(w), method, calibration), expected)
    stack = np.stack([w, weights(6, 8, 7)])
    both = ff.prune24(stack, method, calibration)
    assert np.array_equal(both[0], expected) and both.shape == stack.shape
    if calibration is not None:
        each = ff.prune24(stack, method, [x, 2 * x[::-1] ** 3])
        assert np.array_equal(each[0], expected) and not np.array_equal(each[1], both[1])


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    w, x = weights(6, 8), correlated(40, 8)
    for method in ("magnitude", "wanda", "sparsegpt", "transposable"):
        calibration = x if method in ("wanda", "sparsegpt") else None
        given = torch.nn.Parameter(torch.from_numpy(w.copy()))
        pruned = ff.prune24(given, method, None if calibration is None else torch.from_numpy(calibration))
        assert type(pruned) is torch.Tensor and not pruned.requires_grad
        assert np.array_equal(pruned.numpy(), ff.prune24(w, method, calibration))
        half = ff.prune24(given.detach().bfloat16(), method, calibration)
        assert half.dtype == torch.bfloat16 and ff.check24(half).groups == (0, 0, 12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_cannot_be_ranked(bad):
    w, x = weights(3, 8), correlated(9, 8)
    broken = w.copy()
    broken[1, 6] = bad
    for method in ("magnitude", "wanda", "sparsegpt", "transposable"):
        with pytest.raises(ValueError, match=r"prune24: w\[1, 6\] is -?(nan|inf), expected finite values"):
            ff.prune24(broken, method, x if method in ("wanda", "sparsegpt") else None)
    x[4, 2] = bad
    with pytest.raises(ValueError, match=r"x\[4, 2\]|calibration\[4, 2\]"):
        ff.prune24(w, "wanda", x)


def test_errors():
    w, x = weights(4, 8), correlated(9, 8)
    for call, message in (
        (lambda: ff.prune24(w, "best"), "method is 'best', expected magnitude, wanda, sparsegpt, transposable"),
        (lambda: ff.prune24(w, "wanda"), "method 'wanda' needs calibration"),
        (lambda: ff.prune24(w, "magnitude", x), "method 'magnitude' takes no calibration"),
        (lambda: ff.prune24(w, "wanda", x[:, :6]), r"calibration has shape \(9, 6\), expected \[..., 8\]"),
        (lambda: ff.prune24(w, "wanda", x[0, :6]), r"calibration has shape \(6,\), expected \(8,\) norms"),
        (lambda: ff.prune24(w, "wanda", -np.ones(8)), r"calibration\[0\] is negative"),
        (lambda: ff.prune24(w, "sparsegpt", np.ones(8)), r"calibration has shape \(8,\), expected \[..., 8\]"),
        (lambda: ff.prune24(w, "sparsegpt", x[:0]), r"calibration has shape \(0, 8\), expected no dimension of 0"),
        (lambda: ff.prune24(w, "sparsegpt", x, damping=-1), "damping is -1"),
        (lambda: ff.prune24(w, "sparsegpt", x, block=6), "block is 6, expected a multiple of 4"),
        (lambda: ff.prune24(w, "sparsegpt", ff.sparse24.Calibration24(8, gram=True)), "has seen no rows"),
        (lambda: ff.prune24(w, "wanda", ff.sparse24.Calibration24(4)), "is of 4 columns, expected 8"),
        (lambda: ff.prune24(w, "wanda", [x, x]), "list of 2, expected an array, or one for each of 1"),
        (lambda: ff.prune24(w[0]), r"w has shape \(8,\), expected 2 or 3 dimensions"),
        (lambda: ff.prune24(w[:0]), "expected no dimension of 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for wrong in (w.astype(np.int32), "weights", [[1.0, 2, 3, 4]], None):
        with pytest.raises(TypeError):
            ff.prune24(wrong)
