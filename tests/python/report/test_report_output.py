"""Table, JSON, HTML and SVG from invented results; the progress bar."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fastffn.report import html, plots, table
from fastffn.report.measure import Timing
from fastffn.report.probe import Roof
from fastffn.report.progress import Progress
from fastffn.report.quality import LayerError, OutputError
from fastffn.report.results import ModelResult, Report, VariantResult
from fastffn.report.svg import COLOURS, WIDTH, Chart, Style, linear_axis, log_axis, standalone

TOKENS = (1, 16, 1024)
ROOF = Roof(2e10, {"f32": 2e11, "bf16": 4e11, "int8": 8e11}, "this test")


def variant(
    name: str, family: str = "fastffn", speed: float = 1.0, bits: int = 32, error: float = 1e-6
) -> VariantResult:
    timings = {tokens: Timing(1e-4 * tokens**0.7 / speed, 0.9e-4 * tokens**0.7 / speed, 50) for tokens in TOKENS}
    errors = OutputError(tuple(LayerError(layer, error * (1 + layer), 9 * error) for layer in range(4)))
    ours = family == "fastffn"
    return VariantResult(name, family, bits * 1000, timings, errors, perplexity=20 + error if ours else None)


def model(**changes: object) -> ModelResult:
    rows = [variant("f32"), variant("bf16", speed=2, bits=16, error=2e-3), variant("int8", speed=3, bits=8, error=2e-2)]
    rows += [variant("torch f32", "torch", 0.8), variant("torch bf16", "torch", 1.5, 16, 3e-3)]
    base = ModelResult(
        label="Toy <model> & co", kind="language model", layers=4, timed_layers=4, d_model=32, d_ff=64, gated=True,
        activation="silu", parameters=8000, text_tokens=100, chunk_tokens=50, variants=rows, reference_perplexity=20.0,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def embedder(cosine: float = 0.99999) -> ModelResult:
    rows = [replace(row, perplexity=None, cosine=cosine if row.ours else None) for row in model().variants]
    return model(label="Toy embedder", kind="sentence embedder", reference_perplexity=None, variants=rows)


def report(*models: ModelResult, roof: Roof | None = ROOF) -> Report:
    return Report({"CPU": "<invented>", "torch": "1 & only"}, 2, list(models), roof, False, 12.0)


def one_layer(row: VariantResult) -> VariantResult:
    return replace(row, error=OutputError(row.error.layers[:1]))


def broken(row: VariantResult) -> VariantResult:
    """Errors that are no numbers, as of a model that overflows."""
    return replace(
        row, error=OutputError(tuple(LayerError(layer.layer, math.nan, math.inf) for layer in row.error.layers))
    )


CASES = {
    "both": report(model(), embedder()),
    "no roof": report(model(), roof=None),
    "low roof": report(model(), roof=Roof(1e6, {"f32": 1e7}, "this test")),
    "high roof": report(model(), roof=Roof(1e15, {"f32": 1e16}, "this test")),
    "no torch": report(model(variants=[row for row in model().variants if row.ours])),
    "part of the weights": report(
        model(variants=[*model().variants, replace(variant("experts"), active=0.25, note="<untrained> & so on")])
    ),
    "only f32": report(model(variants=model().variants[:1])),
    "equal": report(model(variants=[replace(model().variants[0], name=name) for name in ("f32", "f16", "bf16")])),
    "one layer": report(model(layers=1, timed_layers=1, variants=[one_layer(row) for row in model().variants])),
    "nan": report(model(variants=[replace(row, perplexity=math.nan) for row in model().variants])),
    "nan errors": report(
        model(
            reference_perplexity=math.nan,
            variants=[broken(replace(row, perplexity=math.nan)) for row in model().variants],
        ),
        embedder(math.nan),
    ),
    "one nan": report(model(variants=[*model().variants, broken(variant("broken"))])),
    "far": report(model(variants=[*model().variants, replace(variant("ternary", bits=2), perplexity=1.3e10)])),
    "alone": report(
        model(
            kind="feed-forward layers",
            reference_perplexity=None,
            statement="Toy was not run whole: <no> reason.",
            variants=[replace(row, perplexity=None) for row in model().variants],
        )
    ),
    "long names": report(
        model(variants=[variant("f32"), *(variant(f"a very long name of a method {i}", speed=1 + i) for i in range(3))])
    ),
    "perfect": report(embedder(1.0)),
    "many": report(model(variants=[variant("f32"), *(variant(f"method{i}", speed=1 + i) for i in range(11))])),
}


class Checker(HTMLParser):
    """Tags that open and close in order, and no address of another resource."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe", "object"):
            self.problems.append(tag)
        self.problems += [f"{name}={value}" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


@pytest.mark.parametrize("name", CASES)
def test_page_is_well_formed_and_stands_alone(name: str) -> None:
    page = html.render(CASES[name])
    checker = Checker()
    checker.feed(page)
    assert checker.problems == [] and checker.open == []
    assert "url(" not in page and "@import" not in page
    assert re.findall(r"https?://[^\"' ]+", page.replace("http://www.w3.org/2000/svg", "")) == []
    assert "<model>" not in page and "<invented>" not in page, "text from outside is escaped"
    assert "nan" not in re.sub(r"<[^>]*>", "", page) or "nan" in name
    figures = re.findall(r"<svg viewBox=\"0 0 440.*?</svg>", page, re.DOTALL)
    assert len(figures) == len(plots.PLOTS) * len(CASES[name].models)
    for figure in figures:
        root = ElementTree.fromstring(figure)
        height = float(root.attrib["viewBox"].split()[3])
        for element in root.iter():
            for key, value in element.attrib.items():
                if key in ("x", "y", "cx", "cy", "d"):
                    numbers = [float(number) for number in re.findall(r"-?[\d.]+", value)]
                    assert all(-1 <= number <= max(WIDTH, height) for number in numbers), (key, value)
            assert "nan" not in " ".join(element.attrib.values())


def text_boxes(figure: ElementTree.Element) -> list[tuple[str, float, float, float, float]]:
    """Text of a drawing, and what it covers when its letters are as wide as the widest of a page's fonts makes them."""
    found = []
    for element in figure.iter("{http://www.w3.org/2000/svg}text"):
        text, width = element.text or "", 0.55 * 13 * len(element.text or "")
        turned = re.fullmatch(r"translate\(([\d.]+) ([\d.]+)\) rotate\(-90\)", element.attrib.get("transform", ""))
        if turned:
            x, y = float(turned[1]), float(turned[2])
            found.append((text, x - 10, y - width / 2, x + 2, y + width / 2))
            continue
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[element.attrib["text-anchor"]]
        found.append((text, left, y - 10, left + width, y + 2))
    return found


@pytest.mark.parametrize("name", CASES)
def test_no_text_of_a_drawing_meets_another(name: str) -> None:
    for figure in re.findall(r"<svg viewBox=\"0 0 440.*?</svg>", html.render(CASES[name]), re.DOTALL):
        boxes = text_boxes(ElementTree.fromstring(figure))
        assert boxes
        for i, (text, left, top, right, bottom) in enumerate(boxes):
            assert left >= -1 and right <= WIDTH + 1, f"{text!r} sticks out"
            for other, *box in boxes[:i]:
                apart = right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top
                assert apart, f"{name}: {text!r} meets {other!r}"


def test_a_check_of_boxes_that_finds_nothing_is_no_check() -> None:
    drawing = '<svg xmlns="http://www.w3.org/2000/svg"><text x="9" y="9" text-anchor="start">ab</text></svg>'
    ((text, left, top, right, bottom),) = text_boxes(ElementTree.fromstring(drawing))
    assert text == "ab" and left == 9 and right > 20 and top < 0 < bottom


def test_both_colour_schemes_define_every_colour() -> None:
    page = html.render(CASES["many"])
    light, dark = page.split("prefers-color-scheme: dark")
    for name in sorted(set(re.findall(r"var\((--\w+)\)", page)) - {"--c"}):
        assert f"{name}:" in light and f"{name}:" in dark.split("box-sizing")[0], name


def test_labels_keep_off_marks_and_each_other() -> None:
    axis = linear_axis("x", [0, 10], str)
    chart = Chart("crowded", axis, linear_axis("y", [0, 10], str))
    for i in range(6):
        chart.mark(5 + 0.05 * i, 5, Style(i), "tip")
    for i in range(6):
        chart.label(5 + 0.05 * i, 5, f"label {i}")
    chart.render()
    boxes = chart._boxes
    placed = boxes[6:]
    assert len(placed) >= 3, "a label with no room is left out"
    for i, a in enumerate(placed):
        for b in boxes[:6] + placed[:i]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [1e-9, 1.0], [3.0, 4.0], [1e-7, 2e-7], [0.001, 5e6]])
def test_log_axes_hold_their_values_and_a_readable_number_of_ticks(values: list[float]) -> None:
    axis = log_axis("x", values, str)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert 2 <= len(axis.ticks) <= 9
    assert all(0 <= axis.place(value) <= 1 for value, _ in axis.ticks)


@pytest.mark.parametrize("values", [[0.0], [20.0, 20.0], [20.0, 20.001], [-3.0, 500.0]])
def test_linear_axes_hold_their_values_and_a_readable_number_of_ticks(values: list[float]) -> None:
    axis = linear_axis("x", values, str)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert 2 <= len(axis.ticks) <= 9


@pytest.mark.parametrize("name", CASES)
def test_json_is_strict_and_complete(name: str) -> None:
    data = json.loads(json.dumps(CASES[name].to_json(), allow_nan=False))
    for entry, found in zip(data["models"], CASES[name].models, strict=True):
        assert [row["name"] for row in entry["variants"]] == [row.name for row in found.variants]
        for row in entry["variants"]:
            assert [timing["tokens"] for timing in row["timings"]] == list(TOKENS)
            assert row["bytes"] > 0 and (row["error_rms"] is None or row["error_rms"] > 0)


def test_ratios() -> None:
    found = model()
    bf16 = found.variant("bf16")
    assert bf16 is not None
    assert found.speedup(bf16, found.variant("f32"), 16) == pytest.approx(2)
    peer = found.best_peer(16)
    assert peer is not None and peer.name == "torch bf16"
    assert found.speedup(bf16, peer, 16) == pytest.approx(2 / 1.5)
    assert found.speedup(bf16, None, 16) is None
    assert found.flops(bf16, 16) == 2 * 8000 / 4 * 16
    assert found.flops(replace(bf16, active=0.25), 16) == 2 * 8000 / 4 * 4
    assert found.intensity(bf16, 16) == pytest.approx(2 * 2000 * 16 / (16000 / 4 + 2 * 4 * 16 * 32))
    # One token reads a quarter; of 16 tokens, hardly any weight is chosen by none.
    assert found.intensity(replace(bf16, active=0.25), 1) == pytest.approx(1000 / (1000 + 2 * 4 * 32))
    read = 4000 * (1 - 0.75**16)
    assert found.intensity(replace(bf16, active=0.25), 16) == pytest.approx(16000 / (read + 2 * 4 * 16 * 32))
    entry = report(found).to_json()["models"][0]["variants"][1]["timings"][1]
    assert entry["speedup_over_f32"] == pytest.approx(2)
    assert entry["speedup_over_torch"] == {"torch f32": pytest.approx(2.5), "torch bf16": pytest.approx(2 / 1.5)}


def test_table_shows_every_row_and_number() -> None:
    text = table.render(CASES["both"])
    for part in ("Toy <model> & co: 4 layers, d_model 32, d_ff 64, silu, gated", "T=1024", "torch bf16", "2.00x"):
        assert part in text
    assert "1.33x" in text and "(bf16)" in text, "over the faster torch"
    assert "20.020  +0.10%" in text and "0.9999900" in text
    assert all(len(line) < 120 for line in text.splitlines() if line.startswith("  "))
    assert "torch eager" not in table.render(CASES["no torch"])


def test_promises() -> None:
    assert report(embedder(0.99995), model()).broken_promises() == []
    broken = report(embedder(0.9998)).broken_promises()
    assert len(broken) == 2 and "bf16 embeddings agree to cosine 0.999800, promised 0.9999" in broken[1]
    assert len(report(embedder(math.nan)).broken_promises()) == 2
    assert "BROKEN PROMISE" in table.render(report(embedder(0.9998)))
    assert "Broken promise" in html.render(report(embedder(0.9998)))


def test_noisy_times_are_called_so() -> None:
    assert report(model()).notes == []
    noisy = [replace(row, timings={1: Timing(1e-3, 1e-4, 50)}) for row in model().variants]
    found = report(model(variants=noisy))
    assert "5 of 5 rows" in found.notes[0] and "10 times at worst" in found.notes[0]
    assert found.notes[0] in table.render(found)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_redraws_one_line() -> None:
    stream = Terminal()
    progress = Progress(10, stream)
    progress.stage("first", 4)
    progress.advance(2)
    assert progress.fraction == pytest.approx(0.2)
    progress.advance(100)
    assert progress.fraction == pytest.approx(0.4), "a stage ends at its weight"
    progress.stage("second", 6)
    progress.finish()
    text = stream.getvalue()
    assert "\n" not in text and "first" in text and " 40% " in text and text.endswith("\r\x1b[K")


def test_progress_elsewhere_prints_a_line_per_stage() -> None:
    stream = io.StringIO()
    progress = Progress(10, stream)
    progress.stage("first", 4)
    for _ in range(100):
        progress.advance(0.01)
    progress.stage("second", 6)
    progress.finish()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and lines[0].endswith("first") and lines[1].startswith("[ 40%") and "\x1b" not in lines[0]


def test_a_drawing_that_stands_alone() -> None:
    chart = Chart("t", log_axis("x", [1, 100], str), linear_axis("y", [0, 1], str))
    chart.line([(1, 0.0), (100, 1.0)], Style(1))
    chart.mark(1, 0.0, Style(1), "ours")
    chart.mark(100, 1.0, Style(2, peer=True), "theirs")
    text = standalone("a < b", chart)
    root = ElementTree.fromstring(text)
    assert "var(" not in text and "--c" not in text and "a &lt; b" in text
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    squares = [r for r in root.findall(".//{http://www.w3.org/2000/svg}rect") if r.find("*") is not None]
    assert circles[0].attrib["fill"] == squares[0].attrib["stroke"].replace(COLOURS[2], COLOURS[1]) == COLOURS[1]
    assert squares[0].attrib["fill"] == circles[0].attrib["stroke"] == "#ffffff"


def test_rows_timed_elsewhere_are_drawn_where_they_differ() -> None:
    """A row that shares another's times is in the plots of errors and of perplexity, not in those of time."""
    shared = replace(
        variant("2:4 bf16 other", speed=2, bits=9, error=0.3), like="bf16", note="Said once.", perplexity=90.0
    )
    again = replace(shared, name="2:4 bf16 third")
    toy = model(variants=[*model().variants, shared, again])
    for draw in (plots.speed, lambda one: plots.roofline(one, ROOF)):
        assert "2:4 bf16" not in draw(toy) and "int8" in draw(toy)
    for draw in (plots.pareto, plots.outcome, plots.value_for_bytes):
        assert "2:4 bf16 other" in draw(toy)
    assert plots.styles_of(toy)["2:4 bf16 third"] == plots.styles_of(toy)["bf16"]
    assert report(toy).notes.count("Said once.") == 1
