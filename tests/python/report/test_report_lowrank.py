"""The report's low-rank rows: what they pack, and the plot of ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import fastffn as ff
from fastffn.report import lowrank, variants
from fastffn.report.calibration import Calibration
from fastffn.report.errors import ReportError
from fastffn.report.layers import FfnFunction, FfnLayer, numpy_ffn


def random_layers(count: int, gated: bool) -> list[FfnLayer]:
    rng = np.random.default_rng(1)

    def w(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / shape[-1] ** 0.5

    return [
        FfnLayer(
            w(96, 40),
            w(40, 96),
            w(96, 40) if gated else None,
            b_up=w(96),
            b_down=w(40),
            activation="silu",
            index=index,
        )
        for index in range(count)
    ]


def calibration_of(layers: list[FfnLayer]) -> Calibration:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((1, 300, 40)) * 0.9 ** np.arange(40)).astype(np.float32)

    def walk(ffn: FfnFunction, step: Callable[[], None] | None) -> None:
        for index, layer in enumerate(layers):
            assert ffn(index, layer, x).shape == x.shape

    return Calibration("m", len(layers), 300, True, walk)


@pytest.mark.parametrize("gated", [False, True])
def test_rows(gated: bool) -> None:
    layers = random_layers(3, gated)
    rows = {row.name: row for row in variants.all_variants(["f32"], with_torch=False, methods=("lowrank",))}
    calibration = calibration_of(layers)
    errors = {}
    x = (np.random.default_rng(3).standard_normal((200, 40)) * 0.9 ** np.arange(40)).astype(np.float32)
    for row in rows.values():
        if row.calibrate is None:
            continue
        row.calibrate(calibration, lambda: None)
        packed = row.pack(layers[1])
        expected = numpy_ffn(layers[1], x)
        errors[row.name] = float(np.linalg.norm(row.apply(packed, x, layers[1]) - expected) / np.linalg.norm(expected))
        share = int(row.name.split()[-1].rstrip("%"))
        assert ff.info(packed.w_up).options == {"factors": "bf16", "rank": int(share / 100 * 96 * 40 / 136)}
    assert len(errors) == 12
    # More ranks lose less, and weighing what the layer sees loses less than weighing the weights.
    for how in ("SVD", "AWSVD", "whitened SVD"):
        assert errors[f"{how} 80%"] < errors[f"{how} 60%"] < errors[f"{how} 40%"] < errors[f"{how} 20%"]
    for share in (80, 60, 40, 20):
        assert errors[f"whitened SVD {share}%"] < errors[f"AWSVD {share}%"] < errors[f"SVD {share}%"]
    first = rows["SVD 80%"]
    assert first.figures is not None
    (figure,) = first.figures()
    assert figure.svg.startswith("<svg") and figure.svg.count("layer 2: rank") == (6 if gated else 4)
    assert rows["AWSVD 40%"].like == "SVD 40%" and rows["SVD 40%"].like is None


def test_held_rank() -> None:
    assert lowrank.held_rank(np.array([9.0, 1.0, 0.0])) == 1
    assert lowrank.held_rank(np.array([8.0, 1.0, 1.0])) == 2
    assert lowrank.held_rank(np.array([1.0] * 10)) == 9
    assert lowrank.held_rank(np.zeros(3)) == 1


def test_unknown_method() -> None:
    with pytest.raises(ReportError, match="'magic' is unknown"):
        variants.all_variants(["f32"], with_torch=False, methods=("magic",))
