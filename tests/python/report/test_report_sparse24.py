"""Rows of 2:4 weights: pruned in order, on another text, packed once for all kinds of values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_files import bert_weights, llama_weights, write_bert_folder, write_llama_folder

import fastffn as ff
from fastffn.report import run, sparse24, variants
from fastffn.report.calibration import Calibration, calibrate_on, calibration_text
from fastffn.report.layers import FfnLayer, numpy_ffn, numpy_hidden
from fastffn.report.open_model import open_model
from fastffn.report.run import shipped_text


def toy_layer(gated: bool = True, index: int = 0) -> FfnLayer:
    rng = np.random.default_rng(index)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return FfnLayer(array(24, 16), array(16, 24), array(24, 16) if gated else None, activation="gelu", index=index)


def test_the_calibration_text_is_another_one() -> None:
    sentences = set(calibration_text().split(". "))
    assert len(sentences) > 100 and not sentences & set(shipped_text().split(". "))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pruned_layer(method: str, gated: bool) -> None:
    """Each matrix as prune24 prunes it alone; w_down by what the pruned matrices before it give."""
    layer, x = toy_layer(gated), np.random.default_rng(1).standard_normal((100, 16)).astype(np.float32)
    seen = None if method == "magnitude" else x
    made, _ = sparse24.pruned_layer(layer, method, seen)
    assert np.allclose(made.w_up, ff.prune24(layer.w_up, method, seen), atol=1e-5)
    if gated:
        assert np.allclose(made.w_gate, ff.prune24(layer.w_gate, method, seen), atol=1e-5)
    hidden = None if seen is None else numpy_hidden(made, x)
    assert np.allclose(made.w_down, ff.prune24(layer.w_down, method, hidden), atol=1e-5)
    assert made.index == layer.index and made.activation == layer.activation


def test_layers_see_what_pruned_layers_give() -> None:
    first, second = toy_layer(index=0), toy_layer(index=1)
    x = np.random.default_rng(2).standard_normal((3, 20, 16)).astype(np.float32)
    walks, steps = [], []

    def walk(ffn: object, step: object) -> None:
        walks.append(1)
        between = x + ffn(0, first, x)  # type: ignore[operator]
        ffn(1, second, between)  # type: ignore[operator]
        step()  # type: ignore[operator]

    calibration = Calibration("toy", 2, 60, True, walk)  # type: ignore[arg-type]
    rows = {row.name: row for row in variants.all_variants(["sparse24"], with_torch=False)}
    row, other = rows["2:4 bf16 wanda"], rows["2:4 int8 wanda"]
    assert row.calibrate is not None and other.calibrate is not None
    row.calibrate(calibration, lambda: steps.append(1))
    other.calibrate(calibration, lambda: steps.append(1))
    assert len(walks) == len(steps) == 1, "the second row shares the first one's work"

    flat = x.reshape(-1, 16)
    made = sparse24.pruned_layer(first, "wanda", flat)[0]
    then = sparse24.pruned_layer(second, "wanda", flat + numpy_ffn(made, flat))[0]
    for layer, pruned in ((first, made), (second, then)):
        for one, values in ((row, "bf16"), (other, "int8")):
            assert np.array_equal(one.pack(layer).w_down, ff.pack(pruned.w_down, "sparse24", values=values))
    row.calibrate(Calibration("other", 2, 60, True, walk), lambda: None)  # type: ignore[arg-type]
    assert len(walks) == 2, "another model is another calibration"


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_calibration_of_both_kinds_of_models(kind: str, tmp_path: Path) -> None:
    if kind == "llama":
        opened = open_model(write_llama_folder(tmp_path, llama_weights()))
    else:
        opened = open_model(write_bert_folder(tmp_path, bert_weights()))
    calibration = calibrate_on(opened, 900)
    assert calibration.layers == 2 and calibration.tokens > 100
    inputs = calibration.inputs
    assert [rows.shape[0] for rows in inputs] == [calibration.tokens] * 2 and inputs is calibration.inputs
    seen: list[np.ndarray] = []

    def convert(index: int, layer: FfnLayer, x: np.ndarray) -> np.ndarray:
        assert layer.index == index
        seen.append(x.reshape(-1, x.shape[-1]).copy())
        return np.zeros_like(x)

    calibration.walk(convert)
    assert np.array_equal(seen[0], inputs[0]) and not np.allclose(seen[1], inputs[1])


def test_rows_that_differ_in_weights_only_are_timed_once() -> None:
    rows = variants.all_variants(["sparse24"], with_torch=False, methods=())
    assert {row.like for row in rows if row.like} == {"2:4 bf16 magnitude", "2:4 int8 magnitude"}
    assert all(row.name.split()[1] in row.like for row in rows if row.like)
    assert run.progress_weight(run.Settings(), rows, False) > run.progress_weight(run.Settings(), rows[:1], False)
