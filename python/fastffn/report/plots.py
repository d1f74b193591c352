"""The report's charts: speed against tokens, quality and error against bytes, roofline, outcomes, error by layer."""

from __future__ import annotations

import math
from collections.abc import Callable

from .probe import Roof, rate_unit
from .results import BASELINE, ModelResult, VariantResult
from .svg import (
    LEFT,
    Axis,
    Chart,
    Style,
    linear_axis,
    log_axis,
    power_of_ten,
    short,
    ticks_axis,
)

COLOURS = 8


def styles_of(model: ModelResult) -> dict[str, Style]:
    """A colour per row that was timed; a peer takes the colour of its dtype, dashed and with square marks."""
    formats = [variant.name for variant in model.timed if variant.ours]
    styles = {name: Style(index % COLOURS) for index, name in enumerate(formats)}
    for variant in model.variants:
        if variant.like is not None:
            styles[variant.name] = styles.get(variant.like, Style(COLOURS - 1))
        elif not variant.ours:
            dtype = variant.name.rpartition(" ")[2]
            styles[variant.name] = Style(styles[dtype].colour if dtype in styles else COLOURS - 1, peer=True)
    return styles


def _peers_below(model: ModelResult) -> list[VariantResult]:
    """The rows with times of their own in drawing order: where marks meet, ours are on top."""
    return sorted(model.timed, key=lambda variant: variant.ours)


def roofline(model: ModelResult, roof: Roof | None) -> str:
    """Reached FLOP/s against FLOP per byte, under what this machine can do."""
    styles = styles_of(model)
    points = {
        variant.name: [
            (model.intensity(variant, tokens), model.flops(variant, tokens) / timing.median / 1e9)
            for tokens, timing in variant.timings.items()
        ]
        for variant in model.timed
    }
    xs = [x for line in points.values() for x, _ in line]
    ys = [y for line in points.values() for _, y in line]
    if roof is not None:
        # Half as much again above the highest peak, for its name.
        ys += [1.5e-9 * max(roof.peaks.values()), min(xs) * roof.bandwidth / 1e9]
    chart = Chart(
        "Roofline",
        log_axis("operations per byte", xs, short),
        log_axis("GFLOP/s", ys, short),
    )
    if roof is not None:
        _draw_roof(chart, roof)
    for variant in model.timed:
        chart.line(points[variant.name], styles[variant.name])
    for variant in _peers_below(model):
        for (x, y), tokens in zip(points[variant.name], variant.timings, strict=True):
            tip = f"{variant.name}, T={tokens}: {y:.1f} GFLOP/s at {x:.2f} FLOP/byte"
            chart.mark(x, y, styles[variant.name], tip)
    if roof is not None:
        _label_roof(chart, roof)
    return chart.render()


def _knee(chart: Chart, roof: Roof, peak: float) -> float:
    """Where memory stops being the limit below this peak, within the chart."""
    return min(max(peak / roof.bandwidth, chart.x.low), chart.x.high)


def _draw_roof(chart: Chart, roof: Roof) -> None:
    """Memory's slope up to the highest peak, and a level line from it for each peak."""
    begin = max(chart.x.low, chart.y.low * 1e9 / roof.bandwidth)
    top = _knee(chart, roof, max(roof.peaks.values()))
    if begin < top:
        chart.guide([(x, x * roof.bandwidth / 1e9) for x in (begin, top)])
    for peak in roof.peaks.values():
        knee = _knee(chart, roof, peak)
        if knee < chart.x.high:
            chart.guide([(knee, peak / 1e9), (chart.x.high, peak / 1e9)])


def _label_roof(chart: Chart, roof: Roof) -> None:
    """Names the lines where there is room; the page states the numbers anyway."""
    fractions = (0.98, 0.85, 0.7, 0.6, 0.5, 0.35)
    for name, peak in roof.peaks.items():
        begin, y = chart.at(_knee(chart, roof, peak), peak / 1e9)
        end = chart.at(chart.x.high, peak / 1e9)[0]
        spots = [(begin + part * (end - begin), y + off) for off in (-6, 18) for part in fractions]
        if begin < end:
            chart.text_at_free_spot(spots, f"{name} {peak / 1e9:.0f} {rate_unit(name)}", "end")
    low = max(chart.x.low, chart.y.low * 1e9 / roof.bandwidth)
    high = _knee(chart, roof, max(roof.peaks.values()))
    if low < high:
        slope = [low * (high / low) ** part for part in fractions]
        corners = [chart.at(x, x * roof.bandwidth / 1e9) for x in slope]
        spots = [(x + 8, y + 12) for x, y in reversed(corners)] + [(x + 14, y + 26) for x, y in corners]
        chart.text_at_free_spot(spots, f"memory {roof.bandwidth / 1e9:.0f} GB/s", "start")


def speed(model: ModelResult) -> str:
    """Times faster than our f32, against the number of tokens."""
    baseline = model.variant(BASELINE)
    lines: dict[str, list[tuple[int, float]]] = {}
    for variant in model.timed:
        ratios = [(tokens, model.speedup(variant, baseline, tokens)) for tokens in model.tokens]
        lines[variant.name] = [(tokens, ratio) for tokens, ratio in ratios if ratio is not None]
    every = [ratio for line in lines.values() for _, ratio in line]
    chart = Chart(
        "Speed against tokens",
        ticks_axis("tokens per call", model.tokens, lambda value: f"{value:.0f}"),
        log_axis(f"times faster than fastffn {BASELINE}", every, lambda value: f"{value:g}"),
    )
    for name, line in lines.items():
        chart.line(line, styles_of(model)[name])
    for variant in _peers_below(model):
        for tokens, ratio in lines[variant.name]:
            milliseconds = 1e3 * variant.timings[tokens].median
            tip = f"{variant.name}, T={tokens}: {milliseconds:.3f} ms, {ratio:.2f} times fastffn {BASELINE}"
            chart.mark(tokens, ratio, styles_of(model)[variant.name], tip)
    return chart.render()


# A format whose perplexity is so many times the original's is named beside the picture, not drawn: it would flatten it.
_FAR = 10.0


def drawn_and_far(model: ModelResult) -> tuple[list[VariantResult], list[VariantResult]]:
    """Our rows whose outcome fits a picture, and those that are too far off or no number at all."""
    near: list[VariantResult] = []
    far: list[VariantResult] = []
    for variant in model.variants:
        value = variant.perplexity if variant.perplexity is not None else variant.cosine
        if value is None:
            continue
        beyond = variant.perplexity is not None and variant.perplexity > _FAR * (model.reference_perplexity or math.inf)
        (far if beyond or not math.isfinite(value) else near).append(variant)
    return near, far


def _bytes_axis(xs: list[float]) -> Axis:
    axis = linear_axis("bytes per weight", [0.0, *xs], lambda value: f"{value:g}")
    return Axis(axis.label, 0.0, axis.high, False, _from_zero(axis))


def _staircase(chart: Chart, points: list[tuple[float, float, VariantResult]]) -> None:
    """Marks, their names, and the line through what nothing else beats in both directions."""
    corners: list[tuple[float, float]] = []
    least = math.inf
    for x, y, variant in sorted(points, key=lambda point: point[:2]):
        if variant.ours and y < least:
            corners += [(x, least), (x, y)] if corners else [(x, y)]
            least = y
    if len(corners) > 1:
        chart.guide(corners)


def pareto(model: ModelResult) -> str:
    """Error of a layer's output against bytes per weight; the staircase joins what nothing else beats in both."""
    found = [(variant.bytes / model.parameters, variant.error.rms, variant) for variant in model.variants]
    points = [(x, max(y, 1e-12), variant) for x, y, variant in found if math.isfinite(y)]
    chart = Chart(
        "Error against bytes",
        _bytes_axis([x for x, _, _ in found]),
        log_axis("error RMS / output RMS", [y for _, y, _ in points], power_of_ten),
    )
    if not points:
        return chart.empty("no error is a finite number")
    _staircase(chart, points)
    for x, y, variant in sorted(points, key=lambda point: point[2].ours):
        tip = f"{variant.name}: {x:.3f} bytes per weight, error {y:.2e}"
        chart.mark(x, y, styles_of(model)[variant.name], tip)
    for x, y, variant in points:
        chart.label(x, y, variant.name)
    return chart.render()


def value_for_bytes(model: ModelResult) -> str:
    """What becomes of the whole model, perplexity or 1 - cosine, against bytes per weight."""
    near, _ = drawn_and_far(model)
    xs = [variant.bytes / model.parameters for variant in near]
    if model.reference_perplexity is not None:
        ys = [variant.perplexity or 1.0 for variant in near]
        values = [*ys, model.reference_perplexity] if math.isfinite(model.reference_perplexity) else ys
        if not values or max(values) > 3 * min(values):
            y_axis = log_axis("perplexity", values, lambda value: f"{value:g}")
        else:
            y_axis = linear_axis("perplexity", values, lambda value: f"{value:.6g}", 0.002 * values[-1])
    else:
        ys = [max(1 - (variant.cosine or 0.0), 1e-9) for variant in near]
        y_axis = log_axis("1 - cosine", ys, power_of_ten)
    chart = Chart("Quality against bytes", _bytes_axis(xs or [4.0]), y_axis)
    if not near:
        return chart.empty("no outcome is a finite number" if not model.statement else "the model was not run whole")
    points = list(zip(xs, ys, near, strict=True))
    if model.reference_perplexity is not None and math.isfinite(model.reference_perplexity):
        chart.guide([(chart.x.low, model.reference_perplexity), (chart.x.high, model.reference_perplexity)])
    _staircase(chart, points)
    for x, y, variant in points:
        tip = f"{variant.name}: {x:.3f} bytes per weight, {y:.6g}"
        chart.mark(x, y, styles_of(model)[variant.name], tip)
    for x, y, variant in points:
        chart.label(x, y, variant.name)
    return chart.render()


def _from_zero(axis: Axis) -> tuple[tuple[float, str], ...]:
    return tuple((value, text) for value, text in axis.ticks if value >= 0)


def outcome(model: ModelResult) -> str:
    """Perplexity of the whole model with each format inside, or 1 - cosine of its embeddings: one row per format."""
    rows: list[tuple[str, float, str]] = []
    for variant in drawn_and_far(model)[0]:
        if variant.perplexity is not None:
            text = f"{variant.perplexity:.3f}" if variant.perplexity < 1e5 else f"{variant.perplexity:.2g}"
            rows.append((variant.name, variant.perplexity, text))
        elif variant.cosine is not None:
            rows.append((variant.name, max(1 - variant.cosine, 1e-9), f"1 - {max(1 - variant.cosine, 0):.1e}"))
    if not rows:
        axis = Axis("", 0.0, 1.0, False, ())
        return Chart("The whole model", axis, axis).empty("no outcome is a finite number")
    count = len(rows)
    places = tuple((float(count - index), name) for index, (name, _, _) in enumerate(rows))
    y = Axis("", 0.4, count + 0.6, False, places)
    if model.reference_perplexity is not None:
        values = [value for _, value, _ in rows]
        if math.isfinite(model.reference_perplexity):
            values.append(model.reference_perplexity)
        if max(values) > 3 * min(values):
            x = log_axis("perplexity", values, lambda v: f"{v:.6g}")
            x = Axis(x.label, x.low, x.high * (x.high / x.low) ** 0.35, True, x.ticks)
        else:
            x = linear_axis("perplexity", values, lambda v: f"{v:.6g}", 0.002 * values[-1])
            x = Axis(x.label, x.low, x.high + 0.25 * (x.high - x.low), False, x.ticks)  # room for the numbers
        title = "Perplexity"
    else:
        values = [value for _, value, _ in rows]
        x = log_axis("1 - cosine, the worst sentence", values, power_of_ten)
        x = Axis(x.label, x.low, x.high * (x.high / x.low) ** 0.35, True, x.ticks)
        title = "Agreement of embeddings"
    longest = max(len(name) for name, _, _ in rows)
    chart = Chart(title, x, y, height=max(330, 90 + 26 * count), left=max(LEFT, 12 + 8 * longest))
    reference = model.reference_perplexity
    if reference is not None and math.isfinite(reference):
        chart.guide([(reference, y.low), (reference, y.high)])
    for index, (name, value, shown) in enumerate(rows):
        place = float(count - index)
        chart.mark(value, place, styles_of(model)[name], f"{name}: {shown}")
        px, py = chart.at(value, place)
        if reference is not None and math.isfinite(reference):
            line = chart.at(reference, place)[0]
            if px < line < px + 66:  # the number goes on the other side of the line
                px = line - 2
        chart.text(px + 10, py + 4, shown)
    return chart.render()


def layers(model: ModelResult) -> str:
    """Relative RMS error of every layer's output."""
    every = [layer.rms for variant in model.variants for layer in variant.error.layers]
    values = [max(value, 1e-12) for value in every if math.isfinite(value)]
    count = model.layers
    step = max(1, -(-(count - 1) // 10))
    ticks = tuple((float(index), str(index)) for index in range(0, count, step))
    x = Axis("layer", -0.4, count - 0.6, False, ticks)
    chart = Chart("Error by layer", x, log_axis("error RMS / output RMS", values, power_of_ten))
    if not values:
        return chart.empty("no error is a finite number")
    for variant in model.variants:
        found = [layer for layer in variant.error.layers if math.isfinite(layer.rms)]
        line = [(float(layer.layer), max(layer.rms, 1e-12)) for layer in found]
        chart.line(line, styles_of(model)[variant.name])
    return chart.render()


PLOTS: tuple[tuple[str, str, Callable[[ModelResult, Roof | None], str]], ...] = (
    (
        "Speed against tokens",
        "How many times faster than fastffn with f32 weights: above 1 is faster.",
        lambda model, roof: speed(model),
    ),
    ("Quality against bytes", "", lambda model, roof: value_for_bytes(model)),
    (
        "Roofline",
        "One mark per number of tokens, more of them to the right. Thin lines: what this machine can do at best, measured"
        " in the same run. Weights that stay in cache pass the slope.",
        roofline,
    ),
    (
        "Error against bytes",
        "Of a layer's output. To the left and down is better; the thin line joins the best.",
        lambda model, roof: pareto(model),
    ),
    ("The whole model", "", lambda model, roof: outcome(model)),
    (
        "Error by layer",
        "Outputs against float64, on the inputs that each layer truly saw.",
        lambda model, roof: layers(model),
    ),
)
