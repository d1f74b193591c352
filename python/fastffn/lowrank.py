"""Low-rank factors of weights: make them, choose their ranks, and what they lose.

A weight w [out_features, in_features] becomes v @ u, u [rank, in_features], v [out_features, rank]; ``fastffn.pack((u, v),
"lowrank")`` packs both. What "best" means is the method's choice of a matrix S that weighs the inputs:

    min ‖(w - v u) S‖²  over all u, v of this rank;  the solution is v = U_r, u = U_rᵀ w, with U_r the first left singular
    vectors of w S

| method     | S                                              | from                                                    |
|------------|------------------------------------------------|---------------------------------------------------------|
| "svd"      | identity                                       | Eckart and Young 1936                                   |
| "whitened" | C^½, C = Σ x xᵀ over calibration inputs        | SVD-LLM, Wang et al. 2024, arXiv:2403.07378             |
| "awsvd"    | diag(√Σ x²)                                    | LoRAP, Li et al. 2024, arXiv:2404.09695                 |
| "diagonal" | diag(mean|x|^½)                                | ASVD, Yuan et al. 2023, arXiv:2312.05821                |
| "fisher"   | diag(√Σ_out g²), g the gradients of the weight | FWSVD, Hsu et al. 2022, arXiv:2207.00112                |

"whitened" minimises the error of the layer's outputs, Σ ‖(w - v u) x‖², and needs no inverse of C, which may be singular.
Everything is NumPy in float64.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
METHODS = ("svd", "whitened", "diagonal", "fisher", "awsvd")
SOLVERS = ("auto", "exact", "randomized")

# LoRAP's stand-in for inputs that never fired: small, but their weights still count against each other.
_SMALLEST_SCALE = 1e-4
# Up to this size the singular value decomposition itself is quick; beyond, that of the Gram matrix, at half the digits of
# float64, which are still more than f32 weights have.
_SVD_LIMIT = 256
# Above this ratio of squared singular values, left vectors made of right ones are orthonormal to 2e-16 / 1e-8.
_DISTINCT = 1e-8
_OVERSAMPLE, _POWER_STEPS = 16, 2
# "auto" takes the randomised solver where it has a fraction of the work.
_RANDOMIZED_FROM, _RANDOMIZED_SHARE = 2048, 8


class Covariance:
    """What calibration inputs say of a weight's input dimension: sums over tokens, in float64.

    Args:
        in_features: the weight's columns.
        diagonal: keep no [in_features, in_features] matrix: enough for "awsvd" and "diagonal".

    Attributes:
        count: tokens seen.
        second: Σ x xᵀ, or None when diagonal.
        squares: Σ x², [in_features].
        magnitudes: Σ |x|.
        sums: Σ x.
    """

    def __init__(self, in_features: int, *, diagonal: bool = False) -> None:
        if in_features < 1:
            raise ValueError(f"Covariance: in_features is {in_features}, expected 1 or more")
        self.in_features = in_features
        self.count = 0
        self.second: F64 | None = None if diagonal else np.zeros((in_features, in_features))
        self.squares, self.magnitudes, self.sums = (np.zeros(in_features) for _ in range(3))

    def add(self, x: Any) -> Covariance:
        """Adds inputs [..., in_features]; returns self, so that ``Covariance(n).add(x)`` is one expression."""
        rows = _as_f64(x, "Covariance.add: x").reshape(-1, np.shape(x)[-1] if np.ndim(x) else 1)
        if rows.shape[1] != self.in_features:
            raise ValueError(f"Covariance.add: x has shape {tuple(np.shape(x))}, expected (..., {self.in_features})")
        if not np.isfinite(rows).all():
            raise ValueError("Covariance.add: x holds NaN or infinity")
        if self.second is not None:
            self.second += rows.T @ rows
        self.squares += np.einsum("ij,ij->j", rows, rows)
        self.magnitudes += np.abs(rows).sum(0)
        self.sums += rows.sum(0)
        self.count += rows.shape[0]
        return self


@dataclass(frozen=True)
class Factors:
    """A weight as v @ u; iterates as (u, v), and ``fastffn.pack(factors, "lowrank")`` takes it as it is.

    Attributes:
        u: [rank, in_features] f32, applied first.
        v: [out_features, rank] f32.
        bias: [out_features] f32 to add to the layer's own where ``center`` was asked for, else None.
        energy: squared singular values of w S, largest first: all of them from the exact solver, the first ones else.
        total: their sum; total minus the first ``rank`` of ``energy`` is the squared loss.
    """

    u: Any
    v: Any
    bias: Any
    energy: F64
    total: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.u, self.v))

    @property
    def rank(self) -> int:
        """Rows of u."""
        return int(self.u.shape[0])

    @property
    def relative_loss(self) -> float:
        """‖(w - v u) S‖² / ‖w S‖² of the exact solution at this rank (before ``update`` makes it smaller)."""
        return max(0.0, 1.0 - float(self.energy[: self.rank].sum()) / self.total) if self.total > 0 else 0.0


def rank_for(ratio: float, out_features: int, in_features: int) -> int:
    """The rank at which both factors have ``ratio`` of the weight's parameters: ⌊ratio · m n / (m + n)⌋, at least 1."""
    if not ratio > 0:
        raise ValueError(f"rank_for: ratio is {ratio}, expected more than 0")
    return max(1, int(ratio * out_features * in_features / (out_features + in_features)))


def factorize(
    w: Any,
    rank: int | None = None,
    ratio: float | None = None,
    *,
    method: str = "svd",
    calibration: Any = None,
    center: bool = False,
    update: bool = False,
    solver: str = "auto",
    seed: int = 0,
) -> Factors:
    """The best factors of a weight, as ``fastffn.lowrank`` describes the methods.

    Args:
        w: [out_features, in_features], f32, f16, bf16 or f64; NumPy, torch (CPU) or anything NumPy reads.
        rank: of the factors; more than min(w.shape) counts as that.
        ratio: instead of rank, the share of the weight's parameters that both factors have; see :func:`rank_for`.
        method: "svd", "whitened", "diagonal", "fisher" or "awsvd".
        calibration: for "whitened", "diagonal" and "awsvd" a :class:`Covariance` or inputs [..., in_features] of this layer;
            for "fisher" squared gradients of w, [out_features, in_features], or their sums over outputs, [in_features].
        center: weigh inputs by their covariance around the mean, and return as ``bias`` what the factors lose at the mean:
            (w - v u) μ. For "whitened".
        update: with u fixed, choose v by least squares on the calibration inputs (all but "whitened", which has that v).
            Needs the whole covariance.
        solver: "exact", "randomized" (subspace iteration, Halko et al. 2011, arXiv:0909.4061: 16 columns more than the rank,
            2 steps) or "auto": randomised for large weights and small ranks.
        seed: of the randomised solver.

    Returns:
        Factors, torch tensors where w is one.

    Raises:
        ValueError: both or neither of rank and ratio; a method, shape or calibration that does not fit; NaN or infinity.
    """
    weight = _as_f64(w, "factorize: w")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"factorize: w has shape {tuple(weight.shape)}, expected (out_features, in_features)")
    if not np.isfinite(weight).all():
        raise ValueError("factorize: w holds NaN or infinity")
    if (rank is None) == (ratio is None):
        raise ValueError("factorize: give either rank or ratio")
    chosen = rank if rank is not None else rank_for(ratio if ratio is not None else 1.0, *weight.shape)
    if chosen < 1:
        raise ValueError(f"factorize: rank is {chosen}, expected 1 or more")
    if solver not in SOLVERS:
        raise ValueError(f"factorize: solver is {solver!r}, expected one of {', '.join(SOLVERS)}")
    if center and method != "whitened":
        raise ValueError(f"factorize: center needs method 'whitened', found {method!r}")
    chosen = min(chosen, *weight.shape)
    inputs = _inputs(method, calibration, weight.shape, update or center)
    scale = _scale(method, calibration, inputs, weight.shape)
    second = None
    mean = np.zeros(weight.shape[1])
    if inputs is not None and inputs.second is not None and (method == "whitened" or update):
        second = inputs.second / inputs.count
        if center:
            mean = inputs.sums / inputs.count
            second = second - np.outer(mean, mean)
    if method != "whitened":
        # The decomposition is of w · diag(scale); second is for the update alone.
        basis, energy, total = _left_vectors(weight, chosen, scale, None, solver, seed)
    else:
        basis, energy, total = _left_vectors(weight, chosen, None, second, solver, seed)
    u, v = basis.T @ weight, basis
    if update and second is not None and method != "whitened":
        v = _least_squares(weight, u, second)
    bias = weight @ mean - v @ (u @ mean) if center else None
    # Both factors get the square root of each singular value: neither runs out of f16, and int8 rows have even scales.
    norms = np.sqrt(np.linalg.norm(u, axis=1) / np.maximum(np.linalg.norm(v, axis=0), 1e-300))
    norms = np.where(norms > 0, norms, 1.0)
    u, v = u / norms[:, None], v * norms
    return Factors(_like(u, w), _like(v, w), None if bias is None else _like(bias, w), energy, total)


def spectrum(w: Any, *, method: str = "svd", calibration: Any = None) -> F64:
    """Squared singular values of w S, largest first: what each rank is worth. Arguments as :func:`factorize`."""
    return factorize(w, rank=1, method=method, calibration=calibration, solver="exact").energy


def allocate_ranks(
    spectra: Sequence[Any],
    shapes: Sequence[tuple[int, int]],
    budget: int,
    *,
    bytes_per_weight: float = 2.0,
    multiple: int = 1,
    minimum: int = 1,
    normalize: bool = True,
) -> list[int]:
    """Ranks of many weights that together fit a number of bytes and lose least.

    Each weight's loss falls by its next singular value squared with each rank, at the price of out_features + in_features
    weights: taking the largest fall per byte first is optimal for sums of losses, as spectra fall.

    Args:
        spectra: per weight its squared singular values, largest first (:func:`spectrum`).
        shapes: per weight (out_features, in_features).
        budget: bytes for all factors together.
        bytes_per_weight: of the factors' format: 2 for bf16 and f16, 4 for f32, 1 for int8.
        multiple: ranks beyond the minimum are multiples of this: 16 fills the kernels' panels.
        minimum: of each rank.
        normalize: losses relative to each weight's total, so that weights of large outputs do not take all; False where
            spectra are comparable.

    Returns:
        One rank per weight, at most min(shape).

    Raises:
        ValueError: the minimum ranks do not fit the budget, or lists of different length.
    """
    if len(spectra) != len(shapes):
        raise ValueError(f"allocate_ranks: {len(spectra)} spectra and {len(shapes)} shapes, expected as many")
    if multiple < 1 or minimum < 1:
        raise ValueError(f"allocate_ranks: multiple is {multiple} and minimum {minimum}, expected 1 or more")
    gains: list[F64] = []
    for values in spectra:
        energy = np.sort(np.asarray(values, np.float64))[::-1]
        total = float(energy.sum())
        gains.append(energy / total if normalize and total > 0 else energy)
    prices = [(m + n) * bytes_per_weight for m, n in shapes]
    limits = [min(m, n) for m, n in shapes]
    ranks = [min(minimum, limit) for limit in limits]
    left = budget - sum(rank * price for rank, price in zip(ranks, prices, strict=True))
    if left < 0:
        raise ValueError(
            f"allocate_ranks: budget is {budget} bytes, the minimum ranks alone take {math.ceil(budget - left)}"
        )

    def offer(index: int) -> tuple[float, int, int]:
        step = min(multiple - ranks[index] % multiple, limits[index] - ranks[index])
        gain = float(gains[index][ranks[index] : ranks[index] + step].sum())
        return (-gain / (step * prices[index]), index, step)

    heap = [offer(index) for index in range(len(shapes)) if ranks[index] < limits[index]]
    heapq.heapify(heap)
    while heap:
        _, index, step = heapq.heappop(heap)
        if step * prices[index] > left:
            continue  # a cheaper weight's next ranks may still fit
        ranks[index] += step
        left -= step * prices[index]
        if ranks[index] < limits[index]:
            heapq.heappush(heap, offer(index))
    return ranks


def _as_f64(array: Any, name: str) -> F64:
    if type(array).__module__.partition(".")[0] == "torch":
        array = array.detach().cpu().double().numpy()
    found = np.asarray(array)
    if found.dtype.kind not in "fiu" and found.dtype.name != "bfloat16":
        raise ValueError(f"{name} has dtype {found.dtype}, expected a floating one")
    return found.astype(np.float64)


def _like(array: F64, like: Any) -> Any:
    result = np.ascontiguousarray(array, np.float32)
    if type(like).__module__.partition(".")[0] == "torch":
        import importlib

        return importlib.import_module("torch").from_numpy(result)
    return result


def _inputs(method: str, calibration: Any, shape: tuple[int, ...], whole: bool) -> Covariance | None:
    """The calibration inputs' sums; None for methods without."""
    if method not in METHODS:
        raise ValueError(f"factorize: method is {method!r}, expected one of {', '.join(METHODS)}")
    if method in ("svd", "fisher") and not whole:
        if method == "svd" and calibration is not None:
            raise ValueError("factorize: method 'svd' uses no calibration; did you mean 'whitened'?")
        return None
    if method == "fisher":
        raise ValueError("factorize: update needs calibration inputs, and 'fisher' takes gradients there")
    if calibration is None:
        raise ValueError(f"factorize: method {method!r} needs calibration: a Covariance, or inputs (..., in_features)")
    needs_whole = whole or method == "whitened"
    if isinstance(calibration, Covariance):
        inputs = calibration
    else:
        inputs = Covariance(shape[1], diagonal=not needs_whole).add(calibration)
    if inputs.in_features != shape[1]:
        raise ValueError(f"factorize: calibration has {inputs.in_features} features, expected {shape[1]} from w")
    if inputs.count == 0:
        raise ValueError("factorize: calibration has no tokens")
    if needs_whole and inputs.second is None:
        raise ValueError("factorize: calibration was made with diagonal=True, expected the whole covariance")
    return inputs


def _scale(method: str, calibration: Any, inputs: Covariance | None, shape: tuple[int, ...]) -> F64 | None:
    """The diagonal of S; None for the other methods."""
    if method == "fisher":
        if calibration is None:
            raise ValueError("factorize: method 'fisher' needs calibration: squared gradients of w")
        squares = _as_f64(calibration, "factorize: calibration")
        if squares.shape not in ((shape[1],), shape):
            raise ValueError(
                f"factorize: calibration has shape {squares.shape}, expected squared gradients {tuple(shape)} or "
                f"({shape[1]},)"
            )
        if not (np.isfinite(squares).all() and (squares >= 0).all()):
            raise ValueError("factorize: calibration holds values that are no squares")
        scale: F64 = np.sqrt(squares if squares.ndim == 1 else squares.sum(0))
    elif method == "awsvd" and inputs is not None:
        scale = np.sqrt(inputs.squares)
    elif method == "diagonal" and inputs is not None:
        scale = np.sqrt(inputs.magnitudes / inputs.count)
    else:
        return None
    return np.where(scale > 0, scale, _SMALLEST_SCALE)


def _left_vectors(
    weight: F64, rank: int, scale: F64 | None, second: F64 | None, solver: str, seed: int
) -> tuple[F64, F64, float]:
    """First left singular vectors of weight · S, all (or the first) squared singular values, and their sum."""
    scaled = weight if scale is None else weight * scale
    rows, cols = weight.shape
    smaller = min(rows, cols)
    weighed = scaled if second is None else scaled @ second
    total = float(np.einsum("ij,ij->", weighed, scaled))  # trace(w S Sᵀ wᵀ)
    if solver == "auto":
        cheap = smaller >= _RANDOMIZED_FROM and rank * _RANDOMIZED_SHARE <= smaller
        solver = "randomized" if cheap else "exact"
    if solver == "randomized" and rank + _OVERSAMPLE < smaller:
        return (*_subspace_iteration(scaled, second, rank, seed), total)
    if smaller <= _SVD_LIMIT and second is None:
        basis, values, _ = np.linalg.svd(scaled, full_matrices=False)
        return basis[:, :rank], values**2, total
    if rows <= cols:
        energy, vectors = np.linalg.eigh(weighed @ scaled.T)
        return vectors[:, ::-1][:, :rank], np.maximum(energy[::-1], 0), total
    root = None if second is None else _square_root(second)
    inner = scaled if root is None else scaled @ root
    energy, vectors = np.linalg.eigh(inner.T @ inner)
    energy = np.maximum(energy[::-1], 0)
    if rank == cols:
        return np.asarray(np.linalg.qr(weight)[0], np.float64), energy, total  # all of w, also where S is singular
    basis = inner @ vectors[:, ::-1][:, :rank]
    if energy[rank - 1] > _DISTINCT * energy[0]:
        return basis / np.sqrt(energy[:rank]), energy, total
    # Orthonormal even where singular values are 0 or their digits are lost: the first columns keep their span.
    return np.asarray(np.linalg.qr(basis)[0], np.float64), energy, total


def _square_root(second: F64) -> F64:
    """Any S with S Sᵀ = second: Cholesky's where it is positive definite, else from eigenvectors, ten times as long."""
    try:
        return np.asarray(np.linalg.cholesky(second), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(second)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float64)


def _subspace_iteration(scaled: F64, second: F64 | None, rank: int, seed: int) -> tuple[F64, F64]:
    """Halko, Martinsson and Tropp's algorithm on w S Sᵀ wᵀ, which is applied and never formed."""

    def product(block: F64) -> F64:
        inner = scaled.T @ block
        applied: F64 = scaled @ (inner if second is None else second @ inner)
        return applied

    block = np.random.default_rng(seed).standard_normal((scaled.shape[0], rank + _OVERSAMPLE))
    for _ in range(_POWER_STEPS + 1):
        block, _ = np.linalg.qr(product(block))
    energy, vectors = np.linalg.eigh(block.T @ product(block))
    return block @ vectors[:, ::-1][:, :rank], np.maximum(energy[::-1], 0)


def _least_squares(weight: F64, u: F64, second: F64) -> F64:
    """v that minimises Σ ‖(w - v u) x‖² over inputs with this second moment."""
    cross = weight @ second @ u.T
    gram = u @ second @ u.T
    solution = np.linalg.lstsq(gram, cross.T, rcond=None)[0].T
    return np.asarray(solution, np.float64)
