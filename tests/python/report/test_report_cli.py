"""The whole report on tiny models, in every format of this build; its options and exit statuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_files import bert_weights, llama_weights, write_bert_folder, write_llama_folder, write_llama_gguf

import fastffn as ff
from fastffn.report import experts, probe, results, run, variants
from fastffn.report.calibration import calibrate_on
from fastffn.report.cli import main
from fastffn.report.errors import ReportError
from fastffn.report.layers import FfnLayer, float64_ffn
from fastffn.report.measure import evenly, layers_that_fit, rows_for, time_variants
from fastffn.report.open_model import open_model
from fastffn.report.quality import layer_errors


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on repeats: these tests look at everything but the times."""
    monkeypatch.setattr(run.Settings, "quick", lambda self: run.Settings(self.tokens, 200, 48, 20, 10, 0.01, 6, 300))
    monkeypatch.setattr(probe, "measure", lambda threads: probe.Roof(2e10, {"f32": 2e11}, "this test"))
    monkeypatch.setattr(variants, "has_torch", lambda: False)
    monkeypatch.setattr("fastffn.report.machine.has_torch", lambda: False)


EXPERTS = ["cmoe 75%", "moefication 75%"]


def report_on(path: Path, tmp_path: Path, *options: str) -> tuple[int, dict[str, object]]:
    target = tmp_path / "report.json"
    status = main(["--model", str(path), "--quick", "--tokens", "1,3,20", "--json", str(target), *options])
    return status, json.loads(target.read_text())


def rows_of(format: str, further: bool) -> list[str]:
    """A format's row, and those with other options that come with --formats and --methods all."""
    rows = {"int4": ["int4 g32", "int4 zeros", "int4 x bf16"], "ternary": ["ternary hadamard"]}.get(format, [])
    if "bf16" not in str(pack_error("int4", act="none")):
        rows = [row for row in rows if row != "int4 x bf16"]
    return [format, *(rows if further or format == "ternary" else [])]


def pack_error(format: str, **options: str) -> ValueError:
    with pytest.raises(ValueError) as caught:
        ff.pack(np.ones((1, 64), np.float32), format, **options)
    return caught.value


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "folder"])
def test_language_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = llama_weights(seed=3)
    path = write_llama_gguf(tmp_path / "m.gguf", weights) if kind == "gguf" else write_llama_folder(tmp_path, weights)
    every = ["--methods", "all"] if kind == "gguf" else []  # without: formats that take any weights
    target = path.parent if kind == "folder" else path
    status, data = report_on(target, tmp_path, "--html", str(tmp_path / "r.html"), *every)
    assert status == 0
    (model,) = data["models"]  # type: ignore[misc]
    assert model["kind"] == "language model" and model["layers"] == 2 and model["text_tokens"] > 100
    pruned = [f"2:4 {values} {how}" for values in ("bf16", "int8") for how in ("magnitude", "wanda", "sparsegpt")]
    low_rank = [f"{how} {share}%" for how in ("SVD", "AWSVD", "whitened SVD") for share in (80, 60, 40, 20)]
    assert [row["name"] for row in model["variants"]] == [
        *(n for format in ff.formats() if format != "sparse24" for n in rows_of(format, bool(every))),
        *([*pruned, *low_rank, *EXPERTS, "fff f32"] if every else []),
    ]
    reference = model["reference_perplexity"]
    for row in model["variants"]:
        assert [timing["tokens"] for timing in row["timings"]] == [1, 3, 20]
        assert all(timing["seconds_median"] > 0 for timing in row["timings"])
        # int8 rounds by 1/254 of the largest value, in weights, inputs and hidden activations.
        assert row["error_rms"] < {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2, "int8": 5e-2}.get(row["name"], math.inf)
        bound = {"f32": 1e-5, "f16": 1e-3, "bf16": 0.02, "int8": 0.1}.get(row["name"], math.inf)
        assert abs(row["perplexity"] / reference - 1) < bound, row["name"]
    sizes = {row["name"]: row["bytes"] for row in model["variants"]}
    for name, least in (("f32", 4), ("f16", 2), ("bf16", 2), ("int8", 1)):
        # Rows are padded to whole panels, which counts in layers as small as these.
        assert least * model["parameters"] < sizes[name] < 2 * least * model["parameters"] + 2000, name
    out = capsys.readouterr().out
    assert "perplexity" in out and "original (NumPy f32)" in out
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, data = report_on(write_bert_folder(tmp_path, bert_weights()), tmp_path)
    assert status == 0
    (model,) = data["models"]  # type: ignore[misc]
    cosines = {row["name"]: row["cosine_min"] for row in model["variants"]}
    assert cosines["f32"] > 0.999999 and cosines["bf16"] > 0.9999
    assert "cosine" in capsys.readouterr().out


def test_a_broken_promise_is_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "MIN_COSINE", {"int8": 0.99999999})
    status, data = report_on(write_bert_folder(tmp_path, bert_weights()), tmp_path, "--formats", "int8")
    assert status == 1 and len(data["broken_promises"]) == 1  # type: ignore[arg-type]
    assert "BROKEN PROMISE" in capsys.readouterr().out


def test_a_model_that_cannot_run_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_llama_folder(tmp_path / "odd", llama_weights())
    config = path.parent / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"zebra"'))
    page = tmp_path / "r.html"
    status, data = report_on(path, tmp_path, "--html", str(page), "--methods", "experts")
    assert status == 0
    (model,) = data["models"]  # type: ignore[misc]
    assert model["kind"] == "feed-forward layers" and model["layers"] == 2
    assert "model_type 'zebra' is not supported" in model["statement"] and "Left out" in model["statement"]
    rows = {row["name"]: row for row in model["variants"]}
    assert "int8" in rows and not set(EXPERTS) & set(rows)
    assert rows["f32"]["error_rms"] < 1e-5 < rows["bf16"]["error_rms"] < 1e-2
    assert all(row["perplexity"] is None and row["cosine_min"] is None for row in model["variants"])
    out = capsys.readouterr().out
    assert "was not run whole" in out and "erplexity over" not in out and "osine:" not in out
    assert "was not run whole" in page.read_text()


def test_a_model_of_nan_still_makes_a_page(tmp_path: Path) -> None:
    weights = llama_weights()
    weights["model.layers.0.mlp.down_proj.weight"][3, 3] = np.nan
    page = tmp_path / "r.html"
    status, data = report_on(
        write_llama_folder(tmp_path, weights), tmp_path, "--html", str(page), "--formats", "f32,bf16"
    )
    assert status == 0 and page.read_text().endswith("</html>\n")
    (model,) = data["models"]  # type: ignore[misc]
    assert model["variants"][0]["perplexity"] is None and model["variants"][0]["error_rms"] is None


def test_options_that_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_llama_gguf(tmp_path / "m.gguf", llama_weights()))
    for options, message in (
        (["--model", str(tmp_path / "none.gguf")], "there is no file"),
        (["--model", path, "--formats", "f32,int3"], "'int3' is unknown; this build has f32"),
        (["--model", path, "--html", str(tmp_path / "no" / "r.html")], "does not exist"),
        (["--minilm", "--no-minilm"], "exclude each other"),
        (
            ["--model", path, "--methods", "experts,magic"],
            "'magic' is unknown; there is lowrank, experts, trees, all or none",
        ),
        (["--model", path, "--text-tokens", "1"], "at least 2"),
    ):
        assert main(options) == 2
        assert message in capsys.readouterr().err
    for options in (["--tokens", "0"], ["--tokens", "x"], ["--threads", "-1"], ["--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            main(options)
        assert caught.value.code == 2


def test_formats_and_threads_are_obeyed(tmp_path: Path) -> None:
    before = ff.get_num_threads()
    try:
        path = write_llama_gguf(tmp_path / "m.gguf", llama_weights())
        _, data = report_on(path, tmp_path, "--formats", "int8", "--threads", "1", "--methods", "none")
        assert data["threads"] == 1 and ff.get_num_threads() == 1
        (model,) = data["models"]  # type: ignore[misc]
        assert [row["name"] for row in model["variants"]] == ["f32", "int8"]
    finally:
        ff.set_num_threads(before)


def test_needs_neither_torch_nor_anything_but_numpy(tmp_path: Path) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf", llama_weights())
    code = (
        "import sys; from fastffn.report.cli import main;"
        f"status = main(['--model', {str(path)!r}, '--quick', '--no-torch', '--tokens', '1', '--formats', 'f32']);"
        "foreign = {'torch', 'ml_dtypes', 'tokenizers', 'safetensors', 'matplotlib'} & set(sys.modules);"
        "assert not foreign, foreign; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_fastffn_report_shows_its_help() -> None:
    done = subprocess.run([sys.executable, "-m", "fastffn", "report", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--html" in done.stdout and "FASTFFN_CACHE" in done.stdout


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_layers_cut_into_experts(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = llama_weights(seed=3)
    path = write_llama_folder(tmp_path, weights) if kind == "llama" else write_bert_folder(tmp_path, bert_weights())
    page = tmp_path / "r.html"
    options = ["--formats", "bf16", "--methods", "experts", "--html", str(page)]
    (model,) = report_on(path, tmp_path, *options)[1]["models"]  # type: ignore[misc]
    assert [row["name"] for row in model["variants"]] == ["f32", "bf16", *EXPERTS]
    assert [row["active_fraction"] for row in model["variants"]] == [1, 1, 0.75, 0.75]
    for row in model["variants"][2:]:
        # A quarter of the neurons is missing, and the rest is what it was.
        assert 1e-2 < row["error_rms"] < 1 and "no weight was trained" in row["note"]
        if kind == "llama":
            assert math.isfinite(row["perplexity"])
        else:
            assert 0.5 < row["cosine_min"] < 0.99999
    out = capsys.readouterr().out
    assert "used per token" in out and "cmoe and moefication: the calibration text" in out
    assert "used per token" in page.read_text() and "no weight was trained" in page.read_text()


def test_experts_all_used_are_the_layer_and_need_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(write_llama_folder(tmp_path, llama_weights(seed=3)))
    monkeypatch.setattr(experts, "FORMAT", "f32")
    rows = experts.expert_variants()
    layer = opened.model.ffn_layer(1)
    with pytest.raises(ReportError, match="cmoe 75%: layer 1 was not part of the calibration"):
        rows[0].pack(layer)
    calibration = calibrate_on(opened, 600)  # type: ignore[arg-type]
    steps: list[int] = []
    for row in rows:
        assert row.calibrate is not None
        row.calibrate(calibration, lambda: steps.append(1))
    assert len(steps) == 2, "one walk serves both rows"
    x = calibration.inputs[1]
    expected = float64_ffn(layer, x)
    for row in rows:
        packed, fraction = row.pack(layer)
        assert fraction == 0.75
        everyone = replace(packed, picks=16 if row.name == "moefication 75%" else 5)
        y = everyone(x)
        assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()
        assert np.abs(packed(x) - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("gated", [True, False])
def test_variants_agree_with_float64(gated: bool) -> None:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 8).astype(np.float32)

    extra = (None, array(96), array(64), None, "gelu") if not gated else (array(96, 64), None, None, None, "silu")
    layer = FfnLayer(array(96, 64), array(64, 96), *extra)
    x = 8 * array(21, 64)
    rows = [row for row in variants.all_variants(methods=()) if row.calibrate is None]
    bounds = {"f32": 1e-5, "f16": 2e-3, "bf16": 1e-2, "int8": 5e-2}
    for variant, error in zip(rows, layer_errors(0, layer, x, rows), strict=True):
        assert error.rms < bounds.get(variant.name, math.inf), variant.name
        y = variant.as_ffn()(0, layer, x.reshape(3, 7, 64))
        assert y.shape == (3, 7, 64) and y.dtype == np.float32
    exact = float64_ffn(layer, x)
    off = layer_errors(0, layer, x, [rows[0]])[0]
    assert off.largest >= off.rms > 0 and np.isfinite(exact).all()


def test_torch_rows_compute_the_same_layer() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal(shape) / 8).astype(np.float32) for shape in ((96, 64), (64, 96), (96, 64), (96,), (64,))
    ]
    for activation in set(ff.activations()) - {"swiglu_clamped"}:  # no model of the report has it
        for layer in (
            FfnLayer(*weights[:3], activation=activation),
            FfnLayer(weights[0], weights[1], None, weights[3], weights[4], activation=activation),
        ):
            x = rng.standard_normal((9, 64)).astype(np.float32)
            rows = [variants.torch_variant("f32"), variants.torch_variant("bf16")]
            f32, bf16 = layer_errors(0, layer, x, rows)
            assert f32.rms < 1e-5 and bf16.rms < 2e-2
            assert rows[1].bytes(rows[1].pack(layer)) * 2 == rows[0].bytes(rows[0].pack(layer))


def test_rows_are_spread_or_repeated() -> None:
    captured = np.arange(10, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    assert rows_for(captured, 5)[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert sorted(set(rows_for(captured, 25)[:, 0].tolist())) == list(range(10))
    assert rows_for(captured, 25).shape == (25, 3)


def test_layers_are_chosen_evenly_and_within_memory() -> None:
    assert evenly(30, 1000) == list(range(30))
    assert evenly(30, 3) == [0, 14, 29] and evenly(1, 5) == [0]
    small = FfnLayer(np.zeros((8, 4), np.float32), np.zeros((4, 8), np.float32))
    assert layers_that_fit(small, 6) > 1000
    # One page, seen as a matrix of a billion weights.
    huge = FfnLayer(
        np.broadcast_to(np.float32(0), (1 << 15, 1 << 15)), np.broadcast_to(np.float32(0), (1 << 15, 1 << 15))
    )
    assert layers_that_fit(huge, 6) == 2


def test_timing_runs_every_variant_equally_often() -> None:
    layer = FfnLayer(np.ones((8, 4), np.float32), np.ones((4, 8), np.float32))
    calls: list[str] = []

    def spy(name: str) -> variants.Variant:
        real = variants.format_variant("f32")

        def call(packed: object, prepared: object) -> object:
            calls.append(name)
            return real.run(packed, prepared)

        return variants.Variant(name, "fastffn", real.pack, real.prepare, call, real.bytes, real.result)

    rows = [spy("a"), spy("b"), spy("c")]
    x = np.ones((5, 4), np.float32)
    stages: list[int] = []
    found = time_variants([layer] * 2, [x, x], rows, (1, 7), 0.0, stages.append)
    assert stages == [1, 7]
    assert len({calls.count(name) for name in "abc"}) == 1
    # After the warm-up, each round begins with another one.
    assert calls[3:9] == ["a", "b", "c", "b", "c", "a"]
    for name in "abc":
        for timing in found[name].values():
            assert 0 < timing.shortest <= timing.median and timing.calls >= 5


def test_chunks_are_equal_and_nearly_everything_is_read() -> None:
    ids = list(range(1000))
    chunks = run.chunks_of(ids, 700, 256)
    assert chunks.shape == (3, 233) and chunks[1, 0] == 233
    assert run.chunks_of(ids, 5000, 256).shape == (4, 250)
    assert run.chunks_of([1, 2], 5000, 256).shape == (1, 2)
    with pytest.raises(ReportError, match="at least 2"):
        run.chunks_of([1], 10, 10)


def test_shipped_text_is_enough_and_gives_sentences() -> None:
    text = run.shipped_text()
    assert 7000 < len(text) < 20000 and text.isascii()
    sentences = run.sentences_of(text, 32)
    assert len(sentences) == 32 and len(set(sentences)) == 32
    assert all(sentence in text and 3 < len(sentence) < 600 for sentence in sentences)


def test_min_cosine() -> None:
    a = np.array([[1, 0], [0, 1]], np.float32)
    assert run.min_cosine(a, a) == 1
    assert run.min_cosine(a, np.array([[1, 0], [1, 1]], np.float32)) == pytest.approx(math.sqrt(0.5))
    assert math.isnan(run.min_cosine(a, np.array([[1, 0], [np.nan, 1]], np.float32)))


def test_probe_reads_what_the_bench_measured() -> None:
    def peak(numbers: str, threads: int, rate: float) -> dict[str, object]:
        return {"numbers": numbers, "isa": "any", "threads": threads, "best_gops": rate, "median_gops": rate / 2}

    machine = {
        "read_bandwidth": [
            {"level": "L1", "threads": 2, "best_gb_per_s": 900.0},
            {"level": "DRAM", "threads": 1, "best_gb_per_s": 20.0},
            {"level": "DRAM", "threads": 2, "best_gb_per_s": 30.0},
        ],
        "peaks": [peak("int8", 2, 800.0), peak("f32", 1, 90.0), peak("f32", 2, 100.0), peak("f32", 2, 200.0)],
    }
    found = probe.roof_of_bench(machine, 2)
    assert found.bandwidth == 30e9 and found.peaks == {"f32": 200e9, "int8": 800e9}
    assert "30.0 GB/s" in found.describe() and "f32 200 GFLOP/s, int8 800 GOP/s" in found.describe()
    with pytest.raises(ValueError, match="3 threads"):
        probe.roof_of_bench(machine, 3)


def test_probe_does_without_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real one
    monkeypatch.setattr(ff, "__path__", [])
    asked = []

    def answer(question: str, threads: int, blas: int) -> float:
        asked.append((question, threads, blas))
        return {"bandwidth": 2e10, "flops": 3e11}[question]

    monkeypatch.setattr(probe, "_ask_numpy", answer)
    assert probe.measure(2) == probe.Roof(2e10, {"f32": 3e11}, "NumPy")
    assert asked == [("bandwidth", 2, 1), ("flops", 2, 2)]

    def fail(question: str, threads: int, blas: int) -> float:
        raise OSError("no such program")

    monkeypatch.setattr(probe, "_ask_numpy", fail)
    assert probe.measure(2) is None


def test_probe_measures_something() -> None:
    assert probe.read_bandwidth(2, megabytes=8) > 1e6
    assert probe.matmul_rate(64) > 1e6
