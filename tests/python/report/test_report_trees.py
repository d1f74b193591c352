"""The report's row of a tree as wide as the dense layer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_files import bert_weights, llama_weights, write_bert_folder, write_llama_folder

import fastffn as ff
from fastffn.report import probe, run, trees, variants
from fastffn.report.calibration import calibrate_on
from fastffn.report.cli import main
from fastffn.report.errors import ReportError
from fastffn.report.layers import float64_ffn
from fastffn.report.open_model import open_model


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_in_the_report(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run.Settings, "quick", lambda self: run.Settings(self.tokens, 200, 48, 20, 10, 0.01, 6, 300))
    monkeypatch.setattr(probe, "measure", lambda threads: probe.Roof(2e10, {"f32": 2e11}, "this test"))
    path = (
        write_llama_folder(tmp_path, llama_weights(seed=3))
        if kind == "llama"
        else write_bert_folder(tmp_path, bert_weights())
    )
    target, page = tmp_path / "r.json", tmp_path / "r.html"
    options = ["--quick", "--no-torch", "--formats", "f32", "--methods", "trees", "--tokens", "1,16"]
    assert main(["--model", str(path), *options, "--json", str(target), "--html", str(page)]) == 0
    (model,) = json.loads(target.read_text("utf-8"))["models"]
    assert [row["name"] for row in model["variants"]] == ["f32", "fff f32"]
    row = model["variants"][1]
    assert 0 < row["active_fraction"] < 0.3 and row["error_rms"] > 1e-3
    assert math.isfinite(row["perplexity"]) if kind == "llama" else -1 <= row["cosine_min"] < 1
    for text in (capsys.readouterr().out, page.read_text("utf-8")):
        assert "Trees need training" in text


def test_one_leaf_is_the_layer_and_others_need_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(write_bert_folder(tmp_path, bert_weights()))
    (row,) = trees.tree_variants()
    layer = opened.model.ffn_layer(1)
    with pytest.raises(ReportError, match="fff f32: layer 1 was not part of the calibration"):
        row.pack(layer)
    calibration = calibrate_on(opened, 300)
    monkeypatch.setattr(trees, "_DEPTH", 0)
    steps: list[int] = []
    assert row.calibrate is not None and row.active is not None
    for _ in range(2):
        row.calibrate(calibration, lambda: steps.append(1))
    assert len(steps) == calibration.layers, "walks once per model"
    x = calibration.inputs[1]
    packed = row.pack(layer)
    assert row.active(packed) == 1
    expected = float64_ffn(layer, x)
    found = row.apply(packed, x, layer)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_shape_follows_the_layer(tmp_path: Path) -> None:
    layer = open_model(write_bert_folder(tmp_path, bert_weights())).model.ffn_layer(0)
    x = np.random.default_rng(0).standard_normal((100, layer.d_model)).astype(np.float32)
    weights = trees.tree_of(layer, x)
    assert weights.width == layer.d_ff and weights.leaves == min(16, layer.d_ff & -layer.d_ff)
    assert trees.tree_of(layer, x[:5]).leaves == 4
    assert isinstance(weights, ff.FffWeights)


def test_listed() -> None:
    assert [row.name for row in variants.all_variants(["f32"], False, ["trees"])] == ["f32", "fff f32"]
