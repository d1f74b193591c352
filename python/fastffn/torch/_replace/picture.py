"""The picture of `ReplaceSummary`: bytes per layer before and after, and what that cost in accuracy."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fastffn.report.html import page_around
from fastffn.report.svg import Axis, Chart, Style, file_of, linear_axis, literal, log_axis, short

if TYPE_CHECKING:
    from fastffn.torch._replace.summary import LayerSummary, ReplaceSummary

_BEFORE, _AFTER = Style(0, peer=True), Style(1)


def picture(summary: ReplaceSummary) -> str:
    """One SVG with literal colours, so that every viewer draws it."""
    parts, down = [], 8.0
    for chart in (_bytes(summary), _errors(summary)):
        if chart is None:
            continue
        parts.append(f'<text x="16" y="{down + 14:.0f}" class="title">{escape(chart.title)}</text>')
        parts.append(f'<g transform="translate(0 {down + 20:.0f})">{literal(chart)}</g>')
        down += chart.height + 28
    return file_of("".join(parts), down, _title(summary))


def page(summary: ReplaceSummary) -> str:
    """An HTML page: the table, and the picture."""
    return page_around(_title(summary), f"<pre>{escape(str(summary))}</pre>\n<figure>{picture(summary)}</figure>\n")


def _title(summary: ReplaceSummary) -> str:
    return f"{summary.model}: {len(summary.replaced)} of {len(summary)} feed-forward layers replaced"


def _layers_axis(count: int) -> Axis:
    step = max(1, -(-count // 12))
    ticks = tuple((float(i), str(i)) for i in range(0, count, step))
    return Axis("feed-forward layer", -0.5, max(count - 0.5, 0.5), False, ticks)


def _bytes(summary: ReplaceSummary) -> Chart:
    before = [layer.bytes_before / 1e6 for layer in summary]
    after = [layer.bytes_after / 1e6 for layer in summary]
    axis = linear_axis("MB", [0.0, *before, *after], short)
    axis = Axis(axis.label, 0.0, max(*before, *after, 1e-9) * 1.35, False, tuple(t for t in axis.ticks if t[0] >= 0))
    total = f"{summary.bytes_before / 1e6:.4g} before (□), {summary.bytes_after / 1e6:.4g} after (●)"
    chart = Chart(f"MB per layer, in all {total}", _layers_axis(len(summary)), axis, height=280)
    _series(chart, list(enumerate(before)), _BEFORE, "before", summary)
    _series(chart, list(enumerate(after)), _AFTER, "after", summary)
    return chart


def _errors(summary: ReplaceSummary) -> Chart | None:
    rows = list(enumerate(summary))
    # A layer that gives the very numbers of float32 has no place on a logarithm.
    after = [(i, layer.error) for i, layer in rows if layer.error > 0]
    before = [(i, layer.error_before) for i, layer in rows if layer.error_before > 0]
    if not after and not before:
        return None
    axis = log_axis("relative error", [value for _, value in (*before, *after)], lambda v: f"{v:.0e}")
    chart = Chart("Error against float32, before (□) and after (●)", _layers_axis(len(summary)), axis, height=280)
    _series(chart, before, _BEFORE, "before", summary)
    _series(chart, after, _AFTER, "after", summary)
    return chart


def _series(chart: Chart, points: list[tuple[int, float]], style: Style, name: str, summary: ReplaceSummary) -> None:
    if not points:
        return
    chart.line([(float(i), value) for i, value in points], style)
    for i, value in points:
        chart.mark(float(i), value, style, _tip(summary.layers[i], name, value))


def _tip(layer: LayerSummary, name: str, value: float) -> str:
    return f"{layer.name}, {name}: {value:.3g}" + (f" ({layer.rule})" if layer.rule and name == "after" else "")
