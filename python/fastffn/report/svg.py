"""Line and scatter charts as SVG text, with no library: axes, grid, lines, marks, labels that keep apart.

Colours come from CSS variables of the page (``--ink``, ``--grid``, ``--s0`` …), so one drawing serves light and dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

# Small enough to be read on a telephone, where a drawing is as wide as the page: text keeps four fifths of its size.
WIDTH, HEIGHT = 440, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 52
# Width of a character over its font size, for the page's sans-serif; on the safe side.
_CHARACTER = 0.6
_FONT = 13


@dataclass(frozen=True)
class Axis:
    """One axis: its label, its range, linear or logarithmic, and the ticks (value, text) to show."""

    label: str
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Style:
    """How a series looks: its colour's number, solid or dashed, round or square marks."""

    colour: int
    peer: bool = False


@dataclass
class Chart:
    """A drawing in the making: add to it, then `render`."""

    title: str
    x: Axis
    y: Axis
    height: int = HEIGHT
    left: int = LEFT
    _parts: list[str] = field(default_factory=list)
    _boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    _labels: list[tuple[float, float, str]] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = self.left + self.x.place(x) * (WIDTH - self.left - RIGHT)
        down = self.height - BOTTOM - self.y.place(y) * (self.height - TOP - BOTTOM)
        return across, down

    def line(self, points: Sequence[tuple[float, float]], style: Style) -> None:
        """Straight lines from point to point."""
        self._path(points, f'class="line{" peer" if style.peer else ""}" style="stroke:var(--s{style.colour})"')

    def guide(self, points: Sequence[tuple[float, float]]) -> None:
        """A thin line that is no data."""
        self._path(points, 'class="guide"')

    def _path(self, points: Sequence[tuple[float, float]], attributes: str) -> None:
        pixels = [self.at(*point) for point in points]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(pixels))
        self._parts.append(f'<path d="{path}" {attributes}/>')
        for (x0, y0), (x1, y1) in pairwise(pixels):  # small boxes along it, for text to keep off
            steps = max(1, round(math.hypot(x1 - x0, y1 - y0) / 4))
            for step in range(steps + 1):
                x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
                self._boxes.append((x - 1.5, y - 1.5, x + 1.5, y + 1.5))

    def mark(self, x: float, y: float, style: Style, tip: str) -> None:
        """A point; the tip shows when the pointer rests on it."""
        px, py = self.at(x, y)
        paint = f'class="mark{" peer" if style.peer else ""}" style="--c:var(--s{style.colour})"'
        if style.peer:
            shape = f'<rect x="{px - 4:.1f}" y="{py - 4:.1f}" width="8" height="8" {paint}>'
        else:
            shape = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" {paint}>'
        self._parts.append(f"{shape}<title>{escape(tip)}</title>{'</rect>' if style.peer else '</circle>'}")
        self._boxes.append((px - 5, py - 5, px + 5, py + 5))

    def label(self, x: float, y: float, text: str) -> None:
        """Text beside a point; placed when all marks are known."""
        self._labels.append((*self.at(x, y), text))

    def text(self, x: float, y: float, text: str, anchor: str = "start", css: str = "note") -> None:
        """Text at pixels, where it is told to be."""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>')
        width = _CHARACTER * _FONT * len(text)
        begin = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
        self._boxes.append((begin, y - _FONT, begin + width, y + 3))

    def text_at_free_spot(self, spots: Sequence[tuple[float, float]], text: str, anchor: str) -> None:
        """Text at the first of the pixels where it meets nothing; left out where there is none."""
        width = _CHARACTER * _FONT * len(text)
        for x, y in spots:
            left = x if anchor == "start" else x - width
            box = (left, y - _FONT, left + width, y + 3)
            if self._inside(box) and not any(_overlap(box, other) for other in self._boxes):
                self.text(x, y, text, anchor)
                return

    def _place_labels(self) -> None:
        for x, y, text in self._labels:
            width = _CHARACTER * _FONT * len(text)
            spots: list[tuple[float, float]] = [(x + 9, y + 4), (x - 9 - width, y + 4)]
            spots += [(x - width / 2, y - 9), (x - width / 2, y + 19), (x + 9, y - 8), (x + 9, y + 17)]
            spots += [(x - 9 - width, y - 8), (x - 9 - width, y + 17)]
            boxes = [(left, base - _FONT, left + width, base + 3) for left, base in spots]
            free = [
                box for box in boxes if self._inside(box) and not any(_overlap(box, other) for other in self._boxes)
            ]
            if free:  # a label with no room is left out: the legend and the tip still name the point
                left, _, _, bottom = free[0]
                self.text(left, bottom - 3, text)

    def empty(self, text: str) -> str:
        """The drawing with nothing in it but a sentence that says why."""
        self.text((self.left + WIDTH - RIGHT) / 2, self.height / 2, text, "middle")
        return self.render()

    def _inside(self, box: tuple[float, float, float, float]) -> bool:
        return box[0] >= self.left and box[1] >= TOP and box[2] <= WIDTH - 2 and box[3] <= self.height - BOTTOM

    def render(self) -> str:
        """The SVG element."""
        self._place_labels()
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        grid = []
        end = -math.inf
        for value, text in self.x.ticks:
            px = self.at(value, self.y.low)[0]
            grid.append(f'<path d="M{px:.1f} {TOP}V{bottom}" class="grid"/>')
            half = _CHARACTER * _FONT * len(text) / 2
            if px - half < end + 5:  # no room beside the one before: the line stays, its number goes
                continue
            end = px + half
            px = min(max(px, half + 1), WIDTH - half - 1)
            grid.append(f'<text x="{px:.1f}" y="{bottom + 18}" text-anchor="middle" class="tick">{escape(text)}</text>')
        for value, text in self.y.ticks:
            py = self.at(self.x.low, value)[1]
            grid.append(f'<path d="M{self.left} {py:.1f}H{right}" class="grid"/>')
            grid.append(
                f'<text x="{self.left - 7}" y="{py + 4:.1f}" text-anchor="end" class="tick">{escape(text)}</text>'
            )
        middle = (self.left + right) / 2
        grid.append(
            f'<text x="{middle:.1f}" y="{self.height - 10}" text-anchor="middle" class="axis">'
            f"{escape(self.x.label)}</text>"
        )
        if self.y.label:
            down = (TOP + bottom) / 2
            grid.append(
                f'<text transform="translate(14 {down:.1f}) rotate(-90)" text-anchor="middle" class="axis">'
                f"{escape(self.y.label)}</text>"
            )
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" xmlns="http://www.w3.org/2000/svg">'
            f"<title>{escape(self.title)}</title>{''.join(grid)}{''.join(self._parts)}</svg>"
        )


# The colours of the report's page on white, for drawings that stand alone: not every viewer knows CSS variables.
COLOURS = ("#4b5563", "#0067a8", "#c2410c", "#00805a", "#8b3fa0", "#a16207", "#be185d", "#0f766e")
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
    ".title{font-size:14px;font-weight:600;fill:#1c2026}.tick,.note{font-size:13px;fill:#57606a}.note{fill:#1c2026}"
    ".axis{font-size:13px;fill:#1c2026}.grid{stroke:#e3e6ea;stroke-width:1;fill:none}"
    ".guide{stroke:#57606a;stroke-width:1;fill:none}.line{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".line.peer{stroke-dasharray:5 4}"
)


def literal(chart: Chart) -> str:
    """The SVG element with its colours spelt out, as wide as drawn, for use within or as a file of its own."""
    drawing = re.sub(r"var\(--s(\d)\)", lambda match: COLOURS[int(match[1])], chart.render())
    marks = {"mark peer": r'fill="#ffffff" stroke="\1"', "mark": r'fill="\1" stroke="#ffffff"'}
    for shape, paint in marks.items():
        drawing = re.sub(rf'class="{shape}" style="--c:(#\w+)"', f'{paint} stroke-width="1.5"', drawing)
    return drawing.replace("<svg ", f'<svg width="{WIDTH}" height="{chart.height}" ', 1)


def standalone(title: str, chart: Chart) -> str:
    """An SVG file: the chart under a title."""
    return file_of(f'<text x="16" y="20" class="title">{escape(title)}</text><g transform="translate(0 26)">{literal(chart)}</g>',
                   chart.height + 26, title)  # fmt: skip


def file_of(body: str, height: float, title: str) -> str:
    """An SVG file around drawings with literal colours."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>{body}</svg>\n'
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def log_axis(label: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """Logarithmic, a little wider than the values; ticks at powers of ten, and at 2 and 5 where there are few."""
    values = values or [1.0]
    low, high = min(values), max(values)
    low, high = low / 1.25, high * 1.25
    if high / low < 4:
        middle = math.sqrt(low * high)
        low, high = min(low, middle / 2), max(high, middle * 2)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    every = -(-len(ticks) // 9)
    return Axis(label, low, high, True, tuple((tick, text(tick)) for tick in ticks[::every]))


def ticks_axis(label: str, ticks: Sequence[float], text: Callable[[float], str]) -> Axis:
    """Logarithmic, with a tick at each of the given values, which span it."""
    low, high = min(ticks), max(ticks)
    margin = (high / low) ** 0.05 if high > low else 2.0
    return Axis(label, low / margin, high * margin, True, tuple((tick, text(tick)) for tick in ticks))


def linear_axis(label: str, values: Sequence[float], text: Callable[[float], str], least: float = 0.0) -> Axis:
    """Linear, a little wider than the values and spanning at least `least`; ticks at round steps."""
    low, high = min(values), max(values)
    middle, span = (low + high) / 2, max(high - low, least, 1e-12)
    low, high = middle - 0.62 * span, middle + 0.62 * span
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    count = range(math.ceil(low / step), math.floor(high / step) + 1)
    return Axis(label, low, high, False, tuple((i * step, text(i * step)) for i in count))


def short(value: float) -> str:
    """A number for a tick: 0.001, 20, 1k, 3M."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def power_of_ten(value: float) -> str:
    """1e-6 for small ticks, plain numbers for others."""
    if value >= 0.01:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10.0**exponent:.0f}e{exponent}"
