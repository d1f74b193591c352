"""The report's charts: roofline, speed against tokens, error against bytes, perplexity or cosine, error by layer."""

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
        log_axis("operations per byte of weights, x and y", xs, short),
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


def latency(model: ModelResult) -> str:
    """Milliseconds of a layer, against the number of tokens."""
    every = [1e3 * timing.median for variant in model.timed for timing in variant.timings.values()]
    chart = Chart(
        "Time against tokens",
        ticks_axis("tokens per call", model.tokens, lambda value: f"{value:.0f}"),
        log_axis("milliseconds per layer", every, short),
    )
    for variant in model.timed:
        points = [(float(tokens), 1e3 * timing.median) for tokens, timing in variant.timings.items()]
        chart.line(points, styles_of(model)[variant.name])
    for variant in _peers_below(model):
        for tokens, timing in variant.timings.items():
            tip = f"{variant.name}, T={tokens}: median {1e3 * timing.median:.3f} ms of {timing.calls} calls"
            chart.mark(tokens, 1e3 * timing.median, styles_of(model)[variant.name], tip)
    return chart.render()


def pareto(model: ModelResult) -> str:
    """Error of a layer's output against bytes per weight; the staircase joins what nothing else beats in both."""
    points = [(variant.bytes / model.parameters, max(variant.error.rms, 1e-12), variant) for variant in model.variants]
    chart = Chart(
        "Error against bytes",
        linear_axis("bytes per weight", [0.0, *(x for x, _, _ in points)], lambda value: f"{value:g}"),
        log_axis("error RMS / output RMS", [y for _, y, _ in points], power_of_ten),
    )
    chart = Chart(chart.title, Axis(chart.x.label, 0.0, chart.x.high, False, _from_zero(chart.x)), chart.y)
    corners: list[tuple[float, float]] = []
    least = math.inf
    for x, y, variant in sorted(points, key=lambda point: point[:2]):
        if variant.ours and y < least:
            corners += [(x, least), (x, y)] if corners else [(x, y)]
            least = y
    if len(corners) > 1:
        chart.guide(corners)
    for x, y, variant in sorted(points, key=lambda point: point[2].ours):
        tip = f"{variant.name}: {x:.3f} bytes per weight, error {y:.2e}"
        chart.mark(x, y, styles_of(model)[variant.name], tip)
    for x, y, variant in points:
        chart.label(x, y, variant.name)
    return chart.render()


def _from_zero(axis: Axis) -> tuple[tuple[float, str], ...]:
    return tuple((value, text) for value, text in axis.ticks if value >= 0)


def outcome(model: ModelResult) -> str:
    """Perplexity of the whole model with each format inside, or 1 - cosine of its embeddings: one row per format."""
    rows: list[tuple[str, float, str]] = []
    for variant in model.variants:
        if variant.perplexity is not None:
            text = f"{variant.perplexity:.3f}" if variant.perplexity < 1e5 else f"{variant.perplexity:.2g}"
            rows.append((variant.name, variant.perplexity, text))
        elif variant.cosine is not None:
            rows.append((variant.name, max(1 - variant.cosine, 1e-9), f"1 - {max(1 - variant.cosine, 0):.1e}"))
    rows = [row for row in rows if math.isfinite(row[1])]
    count = len(rows)
    places = tuple((float(count - index), name) for index, (name, _, _) in enumerate(rows))
    y = Axis("", 0.4, count + 0.6, False, places)
    if model.reference_perplexity is not None:
        values = [value for _, value, _ in rows] + [model.reference_perplexity]
        if max(values) > 3 * min(values):
            x = log_axis("perplexity (lower is better)", values, lambda v: f"{v:.6g}")
            x = Axis(x.label, x.low, x.high * (x.high / x.low) ** 0.35, True, x.ticks)
        else:
            x = linear_axis("perplexity (lower is better)", values, lambda v: f"{v:.6g}", 0.002 * values[-1])
            x = Axis(x.label, x.low, x.high + 0.25 * (x.high - x.low), False, x.ticks)  # room for the numbers
        title = "Perplexity"
    else:
        values = [value for _, value, _ in rows]
        x = log_axis("1 - cosine, the worst sentence (lower is better)", values, power_of_ten)
        x = Axis(x.label, x.low, x.high * (x.high / x.low) ** 0.35, True, x.ticks)
        title = "Agreement of embeddings"
    chart = Chart(title, x, y, height=100 + 44 * max(count, 2), left=LEFT + 20)
    if model.reference_perplexity is not None:
        reference = model.reference_perplexity
        chart.guide([(reference, y.low), (reference, y.high)])
    for index, (name, value, shown) in enumerate(rows):
        place = float(count - index)
        chart.mark(value, place, styles_of(model)[name], f"{name}: {shown}")
        px, py = chart.at(value, place)
        if model.reference_perplexity is not None:
            line = chart.at(model.reference_perplexity, place)[0]
            if px < line < px + 60:  # the number goes on the other side of the line
                px = line - 2
        chart.text(px + 10, py + 4, shown)
    return chart.render()


def layers(model: ModelResult) -> str:
    """Relative RMS error of every layer's output."""
    values = [max(layer.rms, 1e-12) for variant in model.variants for layer in variant.error.layers]
    count = model.layers
    step = max(1, -(-(count - 1) // 10))
    ticks = tuple((float(index), str(index)) for index in range(0, count, step))
    x = Axis("layer", -0.4, count - 0.6, False, ticks)
    chart = Chart("Error by layer", x, log_axis("error RMS / output RMS", values, power_of_ten))
    for variant in model.variants:
        line = [(float(layer.layer), max(layer.rms, 1e-12)) for layer in variant.error.layers]
        chart.line(line, styles_of(model)[variant.name])
    return chart.render()


PLOTS: tuple[tuple[str, str, Callable[[ModelResult, Roof | None], str]], ...] = (
    (
        "Roofline",
        "One mark per number of tokens, more of them to the right. The thin lines are this machine's limits, measured"
        " in the same run: reading memory, then arithmetic. f16 weights are multiplied in f32. Weights that stay in"
        " cache pass the slope.",
        roofline,
    ),
    ("Speed against tokens", "Above 1: faster than fastffn with f32 weights.", lambda model, roof: speed(model)),
    ("Time against tokens", "Medians, as in the table.", lambda model, roof: latency(model)),
    (
        "Error against bytes",
        "To the left and down is better. The thin line joins the best.",
        lambda model, roof: pareto(model),
    ),
    ("The whole model", "", lambda model, roof: outcome(model)),
    (
        "Error by layer",
        "Outputs against float64, on the inputs that each layer truly saw.",
        lambda model, roof: layers(model),
    ),
)
