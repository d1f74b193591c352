"""Rows for low-rank weights: SVD, AWSVD and whitened SVD at 80, 60, 40 and 20 % of the bytes, and how ranks hold energy.

Nothing is trained after factorising. AWSVD and the whitened SVD see the calibration text, through the original model: the
inputs of each layer, and its hidden activations for w_down. Ranks are the same share in every layer, as in the papers, so
that the rows compare the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import fastffn as ff
from fastffn.lowrank import Covariance, factorize, rank_for

from .arrays import F32, F64
from .calibration import Calibration
from .layers import FfnLayer, numpy_hidden
from .svg import Axis, Chart, Style

if TYPE_CHECKING:
    from .variants import Variant

METHODS = ("svd", "awsvd", "whitened")
SHARES = (80, 60, 40, 20)
# Time of factorising all layers while the model runs once, in runs of the model.
_PASSES = 6.0
# Energy that the ranks of the plot hold.
_HELD = 0.9
_NOTE = (
    "Low-rank rows: bf16 factors with so many percent of the weights' bytes, and nothing was trained afterwards. AWSVD and the"
    " whitened SVD chose on another text than the one that perplexity is taken of."
)


@dataclass(frozen=True)
class Figure:
    """A drawing of a method's own, for the page."""

    title: str
    text: str
    svg: str


class _Layers:
    """The factors of the model at hand, at the largest share; smaller ranks are their first rows and columns."""

    def __init__(self) -> None:
        self._of: Calibration | None = None
        self._factors: dict[tuple[int, str, str], tuple[Any, Any]] = {}
        self._energy: dict[tuple[str, str], list[F64]] = {}

    def calibrate(self, calibration: Calibration, step: Callable[[], None]) -> None:
        """Factorises all layers in all ways; rows after the first find it done."""
        if self._of is calibration:
            return
        self._of, self._factors, self._energy = calibration, {}, {}

        def convert(index: int, layer: FfnLayer, x: F32) -> F32:
            rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
            hidden = numpy_hidden(layer, rows)
            self._factorize(index, layer, Covariance(layer.d_model).add(rows), Covariance(layer.d_ff).add(hidden))
            y: F32 = hidden @ layer.w_down.T
            if layer.b_down is not None:
                y += layer.b_down
            return y.reshape(x.shape)

        calibration.walk(convert, step)

    def _factorize(self, index: int, layer: FfnLayer, inputs: Covariance, hidden: Covariance) -> None:
        for name in ("w_up", "w_down", "w_gate"):
            w = getattr(layer, name)
            if w is None:
                continue
            seen = hidden if name == "w_down" else inputs
            rank = rank_for(SHARES[0] / 100, *w.shape)
            for method in METHODS:
                given = None if method == "svd" else seen
                # All singular values for the plot, so the exact solver.
                made = factorize(w, rank, method=method, calibration=given, solver="exact")
                # f16 halves what is kept of a model; factors are balanced, and bf16 in the end.
                self._factors[index, method, name] = (made.u.astype(np.float16), made.v.astype(np.float16))
                self._energy.setdefault((method, name), []).append(made.energy)

    def packed(self, layer: FfnLayer, name: str, method: str, share: int) -> Any:
        """One weight of a layer as a packed pair."""
        assert layer.index is not None
        u, v = self._factors[layer.index, method, name]
        rank = rank_for(share / 100, v.shape[0], u.shape[1])
        return ff.pack((u[:rank], v[:, :rank]), "lowrank", factors="bf16")

    def figures(self) -> list[Figure]:
        """The rank that holds most of the energy, per layer."""
        if not self._energy:
            return []
        return [energy_figure(self._energy)]


def held_rank(energy: F64, share: float = _HELD) -> int:
    """The smallest rank whose squared singular values are `share` of all."""
    total = float(energy.sum())
    return int(np.searchsorted(np.cumsum(energy), share * total * (1 - 1e-12)) + 1) if total > 0 else 1


def energy_figure(energy: dict[tuple[str, str], list[F64]]) -> Figure:
    """Ranks over layers: a colour per weight, dashed for the plain SVD."""
    names = [name for name in ("w_up", "w_gate", "w_down") if ("svd", name) in energy]
    lines = {
        (method, name): [float(held_rank(values)) for values in energy[method, name]]
        for method in ("svd", "whitened")
        for name in names
    }
    layers = len(next(iter(lines.values())))
    full = max(len(values) for values in energy["svd", names[0]])
    step = max(1, -(-(layers - 1) // 10))
    ticks = tuple((float(index), str(index)) for index in range(0, layers, step))
    grid = tuple((float(rank), str(rank)) for rank in range(0, full + 1, max(1, round(full / 6))))
    chart = Chart("Rank per layer", Axis("layer", -0.4, layers - 0.6, False, ticks), Axis("rank", 0, full, False, grid))
    for (method, name), ranks in lines.items():
        style = Style(names.index(name) + 1, peer=method == "svd")
        points = [(float(layer), rank) for layer, rank in enumerate(ranks)]
        chart.line(points, style)
        for layer, rank in points:
            chart.mark(layer, rank, style, f"{name}, {method}, layer {layer:.0f}: rank {rank:.0f} of {full}")
    for name in names:
        ranks = lines["whitened", name]
        chart.label(float(layers - 1), ranks[-1], name)
    return Figure(
        "Rank that holds the energy",
        f"The rank at which {100 * _HELD:.0f} % of the squared singular values are held, of {full}: solid where inputs are weighed"
        " by the calibration text (whitened), so that it is energy of outputs; dashed for the weights alone.",
        chart.render(),
    )


def lowrank_variants(pack: Callable[[FfnLayer, Callable[[str], Any]], Any], row: Variant) -> list[Variant]:
    """Twelve rows. `pack(layer, packed)` makes a layer of `packed(name)` for each weight; `row` says how packed layers run."""
    store = _Layers()

    def variant(method: str, share: int, first: bool) -> Variant:
        def packed(layer: FfnLayer) -> Any:
            return pack(layer, lambda name: store.packed(layer, name, method, share))

        label = {"svd": "SVD", "awsvd": "AWSVD", "whitened": "whitened SVD"}[method]
        return replace(
            row,
            name=f"{label} {share}%",
            pack=packed,
            calibrate=store.calibrate,
            calibration_passes=_PASSES if first else 0.0,  # the other rows find it done
            like=None if method == METHODS[0] else f"SVD {share}%",
            note=_NOTE,
            figures=store.figures if first else None,
        )

    return [
        variant(method, share, method == METHODS[0] and share == SHARES[0]) for method in METHODS for share in SHARES
    ]
