"""factorize, Covariance and allocate_ranks: against the papers' own formulas, in float64."""

import numpy as np
import pytest

import fastffn as ff
from fastffn import lowrank

SHAPES = ((40, 70), (70, 40), (300, 320), (330, 290))


def weight_and_inputs(m, n, tokens=400, seed=0):
    rng = np.random.default_rng([seed, m, n])
    w = rng.standard_normal((m, n)) @ np.diag(rng.uniform(0.1, 2, n))
    x = rng.standard_normal((tokens, n)) @ (rng.standard_normal((n, n)) / n**0.5) + rng.standard_normal(n)
    return w, x


def product(factors):
    return np.asarray(factors.v, np.float64) @ np.asarray(factors.u, np.float64)


def loss(w, approximation, s):
    return np.linalg.norm((w - approximation) @ s) ** 2


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rank", [1, 9, 33])
def test_svd_is_the_best_approximation(m, n, rank):
    w, _ = weight_and_inputs(m, n)
    found = ff.factorize(w, rank)
    u, s, vt = np.linalg.svd(w)
    np.testing.assert_allclose(product(found), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=2e-6 * s[0])
    np.testing.assert_allclose(found.energy, s**2, atol=1e-9 * s[0] ** 2)
    assert found.relative_loss == pytest.approx(1 - (s[:rank] ** 2).sum() / (s**2).sum(), abs=1e-9)
    # Singular values are shared out evenly.
    np.testing.assert_allclose(np.linalg.norm(found.u, axis=1), np.linalg.norm(found.v, axis=0), rtol=1e-5)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rank", [1, 9, 33])
def test_whitened_is_svd_llm(m, n, rank):
    """Cholesky C = L Lᵀ, SVD of w L, right factor times L⁻¹; the squared loss on the inputs is Σ σ² beyond the rank."""
    w, x = weight_and_inputs(m, n)
    found = ff.factorize(w, rank, method="whitened", calibration=x)
    root = np.linalg.cholesky(x.T @ x)
    u, s, vt = np.linalg.svd(w @ root)
    expected = (u[:, :rank] * s[:rank]) @ np.linalg.solve(root.T, vt[:rank].T).T
    assert np.linalg.norm(product(found) - expected) < 1e-5 * np.linalg.norm(expected)
    total = np.linalg.norm(w @ x.T) ** 2
    assert loss(w, product(found), x.T) == pytest.approx((s[rank:] ** 2).sum(), abs=1e-6 * total)
    assert found.relative_loss == pytest.approx((s[rank:] ** 2).sum() / total, abs=1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_whitened_with_fewer_tokens_than_features(m, n):
    """A singular covariance: exact on what was seen once the rank holds it."""
    w, x = weight_and_inputs(m, n, tokens=12)
    found = ff.factorize(w, 12, method="whitened", calibration=x)
    assert loss(w, product(found), x.T) < 1e-9 * np.linalg.norm(w @ x.T) ** 2
    assert loss(w, product(ff.factorize(w, 12)), x.T) > 1e-3 * np.linalg.norm(w @ x.T) ** 2


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rank", [1, 9])
def test_diagonal_methods_are_their_papers(m, n, rank):
    w, x = weight_and_inputs(m, n)
    x[:, 3] = 0  # an input that never fires
    gradients = np.random.default_rng(1).uniform(0, 1, (m, n))
    scales = {
        "awsvd": np.where(np.arange(n) == 3, 1e-4, np.sqrt((x**2).sum(0))),
        "diagonal": np.where(np.arange(n) == 3, 1e-4, np.sqrt(np.abs(x).mean(0))),
        "fisher": np.sqrt(gradients.sum(0)),
    }
    for method, scale in scales.items():
        calibration = gradients if method == "fisher" else x
        u, s, vt = np.linalg.svd(w * scale)
        expected = (u[:, :rank] * s[:rank]) @ (vt[:rank] / scale)
        found = product(ff.factorize(w, rank, method=method, calibration=calibration))
        assert np.linalg.norm((found - expected) * scale) < 1e-5 * np.linalg.norm(expected * scale), method


@pytest.mark.parametrize("method", lowrank.METHODS)
@pytest.mark.parametrize(("m", "n"), [(40, 70), (70, 40)])
def test_full_rank_is_the_weight(method, m, n):
    w, x = weight_and_inputs(m, n, tokens=10)
    calibration = {"svd": None, "fisher": np.ones((m, n))}.get(method, x)
    found = ff.factorize(w, 1000, method=method, calibration=calibration)
    assert found.rank == min(m, n)
    np.testing.assert_allclose(product(found), w, atol=1e-5)


@pytest.mark.parametrize("method", ["svd", "awsvd", "diagonal"])
def test_update_is_the_best_v(method):
    w, x = weight_and_inputs(60, 50)
    covariance = ff.Covariance(50).add(x)
    calibration = None if method == "svd" else covariance
    before = ff.factorize(w, 7, method=method, calibration=calibration)
    after = ff.factorize(w, 7, method=method, calibration=covariance, update=True)
    best = np.linalg.lstsq(x @ np.asarray(after.u, np.float64).T, x @ w.T, rcond=None)[0].T
    assert loss(w, best @ after.u, x.T) == pytest.approx(loss(w, product(after), x.T), rel=1e-5)
    assert loss(w, product(after), x.T) < loss(w, product(before), x.T)
    whitened = ff.factorize(w, 7, method="whitened", calibration=x)
    assert loss(w, product(whitened), x.T) <= loss(w, product(after), x.T) * (1 + 1e-6)


def test_center_gives_the_mean_back():
    w, x = weight_and_inputs(60, 50)
    x += 3 * np.random.default_rng(2).standard_normal(50)
    found = ff.factorize(w, 5, method="whitened", calibration=x, center=True)
    plain = ff.factorize(w, 5, method="whitened", calibration=x)
    assert plain.bias is None
    lost = x @ (w - product(found)).T - np.asarray(found.bias, np.float64)
    np.testing.assert_allclose(lost.mean(0), 0, atol=1e-4)
    assert np.linalg.norm(lost) < np.linalg.norm(x @ (w - product(plain)).T)


@pytest.mark.parametrize("method", ["svd", "whitened", "awsvd"])
@pytest.mark.parametrize(("m", "n"), [(300, 320), (330, 290)])
def test_randomized_is_nearly_as_good(method, m, n):
    rng = np.random.default_rng(3)
    decay = 0.97 ** np.arange(min(m, n))
    w = np.linalg.qr(rng.standard_normal((m, m)))[0][:, : len(decay)] * decay
    w = w @ np.linalg.qr(rng.standard_normal((n, n)))[0][: len(decay)]
    x = rng.standard_normal((500, n))
    calibration = None if method == "svd" else x
    exact = ff.factorize(w, 20, method=method, calibration=calibration, solver="exact")
    quick = ff.factorize(w, 20, method=method, calibration=calibration, solver="randomized")
    kept = float(quick.energy[:20].sum())
    assert kept == pytest.approx(float(exact.energy[:20].sum()), rel=1e-3)
    assert quick.total == pytest.approx(exact.total, rel=1e-9)
    again = ff.factorize(w, 20, method=method, calibration=calibration, solver="randomized")
    np.testing.assert_array_equal(quick.u, again.u)


def test_covariance_adds_up():
    _, x = weight_and_inputs(3, 20, tokens=90)
    whole = ff.Covariance(20).add(x)
    parts = ff.Covariance(20).add(x[:30].astype(np.float32)).add(x[30:].reshape(3, 20, 20))
    assert whole.count == parts.count == 90
    np.testing.assert_allclose(parts.second, x.T @ x, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(parts.squares, np.diag(parts.second), rtol=1e-12)
    np.testing.assert_allclose(whole.magnitudes, np.abs(x).sum(0))
    np.testing.assert_allclose(whole.sums, x.sum(0), atol=1e-9)
    light = ff.Covariance(20, diagonal=True).add(x)
    assert light.second is None
    w = np.random.default_rng(1).standard_normal((30, 20))
    for method in ("awsvd", "diagonal"):
        a, b = (ff.factorize(w, 4, method=method, calibration=c) for c in (whole, light))
        np.testing.assert_array_equal(product(a), product(b))


def test_factors_pack_and_run():
    w, x = weight_and_inputs(60, 50)
    found = ff.factorize(w, ratio=0.4)
    assert found.rank == lowrank.rank_for(0.4, 60, 50) == int(0.4 * 3000 / 110)
    packed = ff.pack(found, "lowrank", factors="f32")
    assert ff.info(packed).options == {"factors": "f32", "rank": found.rank}
    y = ff.linear(x.astype(np.float32), packed)
    np.testing.assert_allclose(y, x @ product(found).T, atol=1e-3)
    u, v = found
    np.testing.assert_array_equal(ff.pack((u, v), "lowrank", factors="f32"), packed)


def test_torch_weights_give_torch_factors():
    torch = pytest.importorskip("torch")
    w = torch.randn(40, 30).bfloat16()
    found = ff.factorize(torch.nn.Parameter(w), 5)
    assert isinstance(found.u, torch.Tensor) and found.u.shape == (5, 30) and found.v.shape == (40, 5)
    assert ff.info(ff.pack(found, "lowrank")).shape == (40, 30)


def test_ranks_go_where_they_are_worth_most():
    spectra = [np.array([9.0, 1.0, 0.1]), np.array([5.0, 4.0, 3.0])]
    shapes = [(3, 5), (3, 5)]
    ranks = ff.allocate_ranks(spectra, shapes, 4 * 8, bytes_per_weight=1, normalize=False)
    assert ranks == [1, 3]
    assert ff.allocate_ranks(spectra, shapes, 10**6) == [3, 3]
    # A weight of twice the price needs twice the gain.
    assert ff.allocate_ranks([[4, 3], [4, 3.1]], [(2, 2), (4, 4)], 12, bytes_per_weight=1, normalize=False) == [1, 1]
    assert ff.allocate_ranks([[4, 3], [4, 3.1]], [(2, 2), (4, 4)], 16, bytes_per_weight=1, normalize=False) == [2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_allocation_is_optimal(seed):
    """Against every choice of ranks."""
    rng = np.random.default_rng(seed)
    spectra = [np.sort(rng.uniform(0, 1, 4))[::-1] for _ in range(3)]
    budget = int(rng.integers(3, 13))
    ranks = ff.allocate_ranks(spectra, [(4, 4)] * 3, budget * 8, bytes_per_weight=1, normalize=False)
    kept = max(
        sum(s[:r].sum() for s, r in zip(spectra, choice, strict=True))
        for choice in np.ndindex(4, 4, 4)
        for choice in [tuple(c + 1 for c in choice)]
        if sum(choice) <= budget
    )
    assert sum(ranks) <= budget
    assert sum(s[:r].sum() for s, r in zip(spectra, ranks, strict=True)) == pytest.approx(kept)


def test_multiples():
    spectra = [np.linspace(1, 0, 100), np.linspace(2, 0, 40)]
    ranks = ff.allocate_ranks(spectra, [(100, 200), (40, 300)], 40000, multiple=16)
    assert max(ranks) > 16
    assert all(
        rank in (1, 40) or rank % 16 == 0 or rank == min(shape)
        for rank, shape in zip(ranks, [(100, 200), (40, 300)], strict=True)
    )
    assert sum(2 * r * sum(s) for r, s in zip(ranks, [(100, 200), (40, 300)], strict=True)) <= 40000


W = np.ones((4, 6))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ff.factorize(W), "either rank or ratio"),
        (lambda: ff.factorize(W, 1, 0.5), "either rank or ratio"),
        (lambda: ff.factorize(W, 0), "rank is 0"),
        (lambda: ff.factorize(W, ratio=0.0), "ratio is 0"),
        (lambda: ff.factorize(W[0], 1), "w has shape"),
        (lambda: ff.factorize(W * np.nan, 1), "NaN"),
        (lambda: ff.factorize(W, 1, method="pca"), "'pca'"),
        (lambda: ff.factorize(W, 1, solver="magic"), "'magic'"),
        (lambda: ff.factorize(W, 1, calibration=W), "did you mean 'whitened'"),
        (lambda: ff.factorize(W, 1, method="whitened"), "needs calibration"),
        (lambda: ff.factorize(W, 1, method="fisher"), "squared gradients"),
        (lambda: ff.factorize(W, 1, method="fisher", calibration=-W), "no squares"),
        (lambda: ff.factorize(W, 1, method="fisher", calibration=W.T), "squared gradients"),
        (lambda: ff.factorize(W, 1, method="fisher", calibration=W, update=True), "takes gradients"),
        (lambda: ff.factorize(W, 1, method="whitened", calibration=ff.Covariance(4).add(W.T)), "4 features"),
        (lambda: ff.factorize(W, 1, method="whitened", calibration=ff.Covariance(6)), "no tokens"),
        (
            lambda: ff.factorize(W, 1, method="whitened", calibration=ff.Covariance(6, diagonal=True).add(W)),
            "diagonal=True",
        ),
        (lambda: ff.factorize(W, 1, method="awsvd", calibration=W, center=True), "center needs"),
        (lambda: ff.Covariance(6).add(W.T), "expected (..., 6)"),
        (lambda: ff.Covariance(0), "in_features is 0"),
        (lambda: ff.Covariance(6).add(W * np.inf), "NaN or infinity"),
        (lambda: ff.allocate_ranks([[1.0]], [], 10), "1 spectra and 0 shapes"),
        (lambda: ff.allocate_ranks([[1.0]], [(4, 6)], 10), "minimum ranks alone take 20"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: ff.pack(W, "lowrank"), TypeError, "pair of factors"),
        (lambda: ff.pack((W, W), "bf16"), TypeError, "only 'lowrank'"),
        (lambda: ff.pack((W, W), "lowrank"), ValueError, "of one rank"),
        (lambda: ff.pack((W, W[:, :4]), "lowrank", factors="int4"), ValueError, "factors is 'int4'"),
        (lambda: ff.pack((W, W[:, :4]), "lowrank", rank=3), ValueError, "no option rank"),
        (lambda: ff.pack((W, W, W), "lowrank"), TypeError, "pair of factors"),
    ],
)
def test_pack_errors(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)


def test_formats_lists_what_packs_a_matrix():
    assert "lowrank" not in ff.formats()
    assert ff.active_kernel("lowrank").startswith("lowrank/bf16/")
    assert ff.active_kernel("lowrank", factors="int8").startswith("lowrank/int8/")
