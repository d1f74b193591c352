"""Rules of fastffn.torch.replace: which layer gets what, options, methods, and the summary."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import fastffn as ff
from torch_replace_support import WIDTH, Mlp, difference, outputs, token_ids, toy, transformer

torch = pytest.importorskip("torch")
ft = pytest.importorskip("fastffn.torch")


def formats_of(model: Any) -> list[str]:
    """Per layer the format of w_up, or "-"."""
    return [ff.info(b.mlp.w_up).format if hasattr(b.mlp, "w_up") else "-" for b in model.layers]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("int8", ["int8"] * 12),
        ({"*": "bf16"}, ["bf16"] * 12),
        ({"layers.1": "int8"}, ["-", "int8", *["-"] * 10]),
        ({"layers.0": None, "*": "int8"}, ["-", *["int8"] * 11]),
        ({0: None, -1: "f32", "*": "int8"}, ["-", *["int8"] * 10, "f32"]),
        ({"layers.1?": "bf16"}, [*["-"] * 10, "bf16", "bf16"]),
        ({"layers.[2-4].mlp": "bf16", "mlp": "f16"}, ["f16", "f16", "bf16", "bf16", "bf16", *["f16"] * 7]),
        ({lambda site: site.layer % 2 == 0: "bf16"}, ["bf16", "-"] * 6),
        ({lambda site: site.number > 9: "bf16", 3: {"format": "int4", "group": 32}}, [*"---", "int4", *["-"] * 6, "bf16", "bf16"]),
    ],
)  # fmt: skip
def test_which_layer_gets_what(rules: Any, expected: list[str]) -> None:
    model = toy(layers=12)
    summary = ft.replace(model, rules)
    assert formats_of(model) == expected
    assert [layer.rule.split()[0] if layer.rule else "-" for layer in summary] == expected
    assert len(summary.replaced) == 12 - expected.count("-")


def test_patterns_fit_whole_parts_of_names() -> None:
    from fastffn.torch._replace.rules import matches

    assert matches("layers.1", "model.layers.1.mlp") and not matches("layers.1", "model.layers.11.mlp")
    assert matches("*", "a") and matches("layers.*.mlp", "model.layers.7.mlp.experts")
    assert not matches("layers.*.mlp", "layers.mlp") and not matches("mlp.experts.x", "mlp.experts")


def test_shared_experts_and_experts_apart() -> None:
    model, ids = transformer("qwen2-moe"), token_ids()
    summary = ft.replace(model, {"shared_expert": "bf16", "experts": {"format": "int8", "w_down": "f32"}})
    assert [layer.rule for layer in summary] == ["int8 w_down: f32", "bf16"] * 2
    experts = model.model.layers[0].mlp.experts
    assert (ff.info(experts.w_gate).format, ff.info(experts.w_down).format) == ("int8", "f32")
    assert ff.info(experts.w_up).count == 4
    assert outputs(model, ids).isfinite().all()


def test_formats_per_weight_and_options() -> None:
    model = toy()
    ft.replace(model, {"format": "int4", "group": 32, "w_down": {"format": "ternary", "scale": "row"}})
    mlp = model.layers[0].mlp
    assert ff.info(mlp.w_gate).options["group"] == 32
    assert (ff.info(mlp.w_down).format, ff.info(mlp.w_down).options["scale"]) == ("ternary", "row")


def test_no_key_is_forgotten() -> None:
    with pytest.raises(ValueError, match=r"the rule for 'layers\.7' fits none of the 3 .* layers\.0\.mlp"):
        ft.replace(toy(), {"layers.7": "bf16", "*": "int8"})
    with pytest.raises(ValueError, match="the rule for 3 fits none"):
        ft.replace(toy(), {3: "bf16"})


@pytest.mark.parametrize(
    ("rules", "kind", "message"),
    [
        ("int9", ValueError, "format 'int9' is none of"),
        ({"layers.0": "int9"}, ValueError, "format 'int9' is none of"),
        ({"format": "int8", "group": 32}, ValueError, r"layers\.0\.mlp: .*'int8' has no option"),
        ({"w_down": "int8"}, ValueError, "says no 'format'"),
        (3, TypeError, "a rule is int, expected a format's name"),
        ({1.5: "int8"}, TypeError, r"a key of rules is 1\.5"),
        ({"*": ff}, TypeError, "a rule is module"),
        ({"format": "sparse24", "prune": "best"}, ValueError, "method is 'best'"),
    ],
)
def test_rules_that_make_no_sense(rules: Any, kind: type, message: str) -> None:
    model = toy()
    with pytest.raises(kind, match=message):
        ft.replace(model, rules)


# ---- methods ----


def test_low_rank_of_full_rank_is_the_layer() -> None:
    model, ids = toy(), token_ids()
    expected = outputs(model, ids)
    summary = ft.replace(model, ft.LowRank(rank=WIDTH, factors="f32"))
    assert difference(outputs(model, ids), expected) < 1e-5
    assert summary.layers[0].rule == f"lowrank rank {WIDTH} f32"


def test_low_rank_prefers_what_it_saw() -> None:
    """Whitened by calibration, factors lose less on those very inputs than plain SVD."""
    ids, errors = token_ids(8, 32), []
    for method in ("svd", None):
        model = toy()
        with torch.no_grad():
            model.embed.weight *= torch.linspace(0.05, 3, WIDTH)  # some directions matter more
            for block in model.layers:
                block.norm.weight *= torch.linspace(0.05, 3, WIDTH)
        summary = ft.replace(model, ft.LowRank(ratio=0.5, method=method), calibration=ids)
        errors.append(sum(layer.error for layer in summary))
    assert errors[1] < 0.9 * errors[0]


def test_low_rank_keeps_what_it_is_told_to() -> None:
    model = toy()
    ft.replace(model, ft.LowRank(ratio=0.5, keep=("w_down",)))
    mlp = model.layers[0].mlp
    assert (ff.info(mlp.w_up).format, ff.info(mlp.w_down).format) == ("lowrank", "bf16")
    with pytest.raises(ValueError, match="either ratio or rank"):
        ft.LowRank()


@pytest.mark.parametrize("method", ["Moefication", "Cmoe"])
def test_experts_of_a_dense_layer(method: str) -> None:
    """All experts together are the layer; fewer are nearly it. Biases are added once."""
    sizes = {"Moefication": {"experts": 8, "picks": 8}, "Cmoe": {"experts": 8, "shared": 3, "picks": 5}}[method]
    for make in (Mlp, lambda: Mlp(bias=True)):
        model, ids = toy(make=make), token_ids(4, 16)
        expected = outputs(model, ids)
        ft.replace(model, {1: getattr(ft, method)(**sizes, format="f32")}, calibration=ids)
        assert difference(outputs(model, ids), expected) < 1e-5
        assert type(model.layers[1].mlp).__name__ == "ConvertedFFN"


def test_methods_that_need_calibration_say_so() -> None:
    for rule in (
        ft.Moefication(),
        ft.Cmoe(),
        ft.LowRank(ratio=0.5, method="whitened"),
        {"format": "sparse24", "prune": "wanda"},
    ):
        model = toy()
        with pytest.raises(ValueError, match=r"layers\.0\.mlp: .* needs calibration: pass token ids"):
            ft.replace(model, rule)
        assert formats_of(model) == ["-"] * 3


def test_pruning() -> None:
    """Weights that are 2:4 already are stored as they are; others are pruned, and better with calibration."""
    model, ids = toy(), token_ids(8, 32)
    for block in model.layers:
        for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            linear.weight.data = ff.prune24(linear.weight.data)
    expected = outputs(model, ids)
    ft.replace(model, {"format": "sparse24", "values": "f32"})
    assert difference(outputs(model, ids), expected) < 1e-5

    errors = {}
    for prune in ("magnitude", "sparsegpt"):
        summary = ft.replace(toy(), {"format": "sparse24", "prune": prune}, calibration=ids)
        errors[prune] = sum(layer.error for layer in summary)
    assert errors["sparsegpt"] < errors["magnitude"]


def test_a_method_of_your_own() -> None:
    class Halved:
        def build(self, weights: Any, inputs: Any) -> Any:
            assert isinstance(weights, ft.DenseWeights) and inputs.shape == (14, WIDTH)
            return torch.nn.Sequential(
                ft.PackFormat("f32").build(weights, inputs), torch.nn.Linear(WIDTH, WIDTH, bias=False)
            )

        def __str__(self) -> str:
            return "my own"

    model = toy()
    summary = ft.replace(model, {2: Halved()}, calibration=token_ids())
    assert summary.layers[2].rule == "my own" and isinstance(model.layers[2].mlp, torch.nn.Sequential)


def test_experts_take_no_dense_methods() -> None:
    model = transformer("mixtral")
    with pytest.raises(ValueError, match=r"experts: LowRank: experts are not factorised"):
        ft.replace(model, ft.LowRank(ratio=0.5))


# ---- calibration ----


def test_calibration_in_every_form() -> None:
    ids = token_ids(4, 10)
    rows = []
    for calibration in (ids, {"ids": ids}, [ids[:2], ids[2:]], iter([{"ids": ids[:2]}, {"ids": ids[2:]}])):
        summary = ft.replace(toy(), "int8", calibration=calibration, rows=12)
        rows.append((summary.rows, [round(layer.error, 9) for layer in summary]))
    assert rows[0][0] == 12 and rows[0] == rows[1] and rows[2] == rows[3]


def test_experts_are_measured_on_their_own_routes() -> None:
    model = transformer("qwen3-moe")
    summary = ft.replace(model, "f32", calibration=token_ids(2, 9))
    assert summary.rows == 18 and max(layer.error for layer in summary) < 1e-6


# ---- summary and progress ----


def test_summary_as_text_and_pictures(tmp_path: Path) -> None:
    summary = ft.replace(toy(layers=14), {"layers.3": None, "*": "int8"})
    text = str(summary)
    assert text.splitlines()[0] == "Toy: 13 of 14 feed-forward layers replaced"
    assert "layers.3.mlp   as it was" in text and "layers.13.mlp  int8" in text
    assert summary.bytes_after < 0.6 * summary.bytes_before and summary.seconds > 0
    assert [layer.name for layer in summary][:2] == ["layers.0.mlp", "layers.1.mlp"] and len(summary) == 14

    picture = summary.save(tmp_path / "x.svg")
    tree = ET.parse(picture)
    marks = [e for e in tree.iter() if e.tag.endswith(("circle", "rect")) and len(e)]
    assert len(marks) == 14 + 14 + 13  # bytes before and after; errors, but none before: f32 is its own reference
    page = summary.save(tmp_path / "x.html").read_text()
    assert "13 of 14" in page and "<svg" in page
    with pytest.raises(ValueError, match=r"expected \.svg or \.html"):
        summary.save(tmp_path / "x.png")


def test_a_summary_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    summary = ft.replace(toy(), {"*": None})
    assert not summary.replaced and "as it was" in str(summary)
    ET.parse(summary.save(tmp_path / "x.svg"))


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    error = io.StringIO()
    monkeypatch.setattr("sys.stderr", error)
    ft.replace(toy(), "bf16")
    assert error.getvalue() == ""  # no terminal
    ft.replace(toy(), "bf16", progress=True, calibration=token_ids())
    lines = error.getvalue().splitlines()
    assert len(lines) == 4 and "calibration" in lines[0] and lines[3].endswith("layers.2.mlp")


def test_what_would_replace_nothing_is_said() -> None:
    with pytest.raises(ValueError, match="empty dict"):
        ft.replace(toy(), {})
    model = toy()
    ft.replace(model, "int8")
    with pytest.raises(ValueError, match="packed already"):
        ft.replace(model, "bf16")


def test_calibration_elsewhere_is_refused() -> None:
    for given in (token_ids().to("meta"), [{"ids": token_ids().to("meta")}]):
        with pytest.raises(ValueError, match="calibration is on meta"):
            ft.replace(toy(), "int8", calibration=given)
