"""What the inputs of a layer look like: norms for Wanda, sums of products for SparseGPT."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import Floats, read

_ROWS = 1024  # rows that are widened to float64 at a time


class Calibration24:
    """Sums over the inputs of one layer, batch by batch, for :func:`prune24`.

    >>> seen = ff.sparse24.Calibration24(w.shape[1], gram=True)      # gram=True: SparseGPT needs it, Wanda does not
    >>> for x in batches: seen.add(x)                                # [..., in_features]
    >>> pruned = ff.prune24(w, "sparsegpt", calibration=seen)

    Attributes:
        in_features: columns of x.
        tokens: rows of x seen so far.
        squares: Σ x_k² of every column, float64 [in_features].
        gram: Σ xᵀx, float64 [in_features, in_features] (8·in_features² bytes), or None.
    """

    def __init__(self, in_features: int, gram: bool = False) -> None:
        if in_features < 1:
            raise ValueError(f"Calibration24: in_features is {in_features}, expected at least 1")
        self.in_features = int(in_features)
        self.tokens = 0
        self.squares: npt.NDArray[np.float64] = np.zeros(in_features, np.float64)
        self.gram: npt.NDArray[np.float64] | None = np.zeros((in_features, in_features)) if gram else None

    def add(self, x: Any) -> None:
        """Adds rows x [..., in_features].

        Raises:
            ValueError: x has another last dimension, or holds NaN or infinity. TypeError: a dtype that is not floating.
        """
        rows = _rows("Calibration24.add", "x", x, self.in_features)
        if self.gram is not None:
            # f32 products of a few rows, summed in float64: at 11008 columns a float64 product takes twice as long, and
            # the damping of SparseGPT is far above what f32 loses over so few rows.
            for begin in range(0, rows.shape[0], _ROWS):
                part = rows[begin : begin + _ROWS]
                self.gram += part.T @ part
            self.squares = np.diagonal(self.gram).copy()
        else:
            for begin in range(0, rows.shape[0], _ROWS):
                part = rows[begin : begin + _ROWS].astype(np.float64)
                self.squares += np.einsum("tk,tk->k", part, part)
        self.tokens += rows.shape[0]

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """‖x_k‖₂ of every column."""
        norms: npt.NDArray[np.float64] = np.sqrt(self.squares)
        return norms


def norms_of(operation: str, calibration: Any, in_features: int) -> Floats:
    """‖x_k‖₂ from inputs [..., in_features], from a vector that holds them already, or from a Calibration24."""
    if isinstance(calibration, Calibration24):
        _check_features(operation, calibration, in_features)
        return calibration.norms
    source = read(operation, "calibration", calibration)
    if len(source.shape) != 1:
        seen = Calibration24(in_features)
        seen.add(_rows(operation, "calibration", calibration, in_features))
        return seen.norms
    norms: Floats = source.floats()
    if norms.shape[0] != in_features:
        raise ValueError(f"{operation}: calibration has shape {norms.shape}, expected ({in_features},) norms")
    check_finite(operation, "calibration", norms)
    if (norms < 0).any():
        raise ValueError(f"{operation}: calibration[{int(np.argmax(norms < 0))}] is negative, expected norms")
    return norms


def gram_of(operation: str, calibration: Any, in_features: int) -> npt.NDArray[np.float64]:
    """Σ xᵀx, a fresh float64 array, from inputs or from a Calibration24."""
    if isinstance(calibration, Calibration24):
        _check_features(operation, calibration, in_features)
        if calibration.gram is None:
            raise ValueError(f"{operation}: calibration has no sums of products; make it with gram=True")
        gram: npt.NDArray[np.float64] = calibration.gram.copy()
        return gram
    seen = Calibration24(in_features, gram=True)
    seen.add(_rows(operation, "calibration", calibration, in_features))
    assert seen.gram is not None
    return seen.gram


def check_finite(operation: str, name: str, values: Floats) -> None:
    """Refuses NaN and infinity: they have no place in an order of importance."""
    finite = np.isfinite(values)
    if not finite.all():
        at = tuple(int(index) for index in np.unravel_index(int(np.argmin(finite)), values.shape))
        where = ", ".join(map(str, at))
        raise ValueError(f"{operation}: {name}[{where}] is {values[at]:g}, expected finite values")


def _check_features(operation: str, calibration: Calibration24, in_features: int) -> None:
    if calibration.in_features != in_features:
        raise ValueError(f"{operation}: calibration is of {calibration.in_features} columns, expected {in_features}")
    if calibration.tokens == 0:
        raise ValueError(f"{operation}: calibration has seen no rows")


def _rows(operation: str, name: str, x: Any, in_features: int) -> Floats:
    source = read(operation, name, x)
    if len(source.shape) < 2 or source.shape[-1] != in_features:
        raise ValueError(f"{operation}: {name} has shape {source.shape}, expected [..., {in_features}]")
    rows = source.floats().reshape(-1, in_features)
    if rows.shape[0] == 0:
        raise ValueError(f"{operation}: {name} has shape {source.shape}, expected at least one row")
    check_finite(operation, name, rows)
    return rows
