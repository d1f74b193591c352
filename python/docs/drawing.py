"""Pictures as SVG text: boxes, cells, words, arrows, in colours for light and dark pages. No library."""

from __future__ import annotations

from html import escape

FONT = 14
_LIGHT = {
    "ink": "#1c2026", "soft": "#57606a", "line": "#8c959f", "page": "#ffffff", "box": "#eef1f4",
    "a": "#0067a8", "b": "#00805a", "c": "#c2410c", "d": "#8b3fa0",
    "fa": "#cfe6f5", "fb": "#cdebdf", "fc": "#fbdccb", "fd": "#ead7f1",
}  # fmt: skip
_DARK = {
    "ink": "#e8eaed", "soft": "#a3adb8", "line": "#6b7681", "page": "#14171b", "box": "#23282e",
    "a": "#56b4f0", "b": "#35c795", "c": "#ff9a5c", "d": "#cf8fe3",
    "fa": "#12405e", "fb": "#0d4a37", "fc": "#5a2c14", "fd": "#472a52",
}  # fmt: skip


class Drawing:
    """Add to it, then `render`. `fill` and `stroke` are names of the palette above."""

    def __init__(self, title: str, width: int, height: int) -> None:
        self.title, self.width, self.height = title, width, height
        self._parts: list[str] = []

    def text(self, x: float, y: float, words: str, anchor: str = "middle", fill: str = "ink", size: int = FONT) -> None:
        """Words whose baseline is at y."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" class="{fill}">{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, w: float, h: float, fill: str = "box", stroke: str = "line", words: str = ""
    ) -> None:
        """A rectangle, with words in its middle; several lines where they hold line breaks."""
        self._parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" class="{fill} s-{stroke}"/>')
        lines = words.split("\n") if words else []
        for number, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 5 + (number - (len(lines) - 1) / 2) * 18, line)

    def cells(self, x: float, y: float, size: float, rows: list[str], height: float | None = None) -> None:
        """A grid of squares: one letter per square names its fill, a dot an empty one, a space none."""
        tall = size if height is None else height
        for i, row in enumerate(rows):
            for j, letter in enumerate(row):
                if letter != " ":
                    fill = "page" if letter == "." else "f" + letter
                    self._parts.append(
                        f'<rect x="{x + j * size:g}" y="{y + i * tall:g}" width="{size - 2:g}" height="{tall - 2:g}" '
                        f'rx="2" class="{fill} s-line"/>'
                    )

    def bar(self, x: float, y: float, w: float, h: float, fill: str) -> None:
        """A bar from y up (h > 0) or down."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y - max(h, 0):.1f}" width="{w:g}" height="{abs(h):.1f}" class="{fill}"/>'
        )

    def line(
        self, *points: tuple[float, float], stroke: str = "line", dashed: bool = False, wide: bool = False
    ) -> None:
        """Straight from point to point."""
        path = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        more = (' stroke-dasharray="4 4"' if dashed else "") + (' stroke-width="2.5"' if wide else "")
        self._parts.append(f'<path d="{path}" class="none s-{stroke}"{more}/>')

    def arrow(self, *points: tuple[float, float], stroke: str = "soft", wide: bool = False) -> None:
        """`line` with a head at its end."""
        self.line(*points, stroke=stroke, wide=wide)
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        left, right = (x1 - 9 * ux - 4 * uy, y1 - 9 * uy + 4 * ux), (x1 - 9 * ux + 4 * uy, y1 - 9 * uy - 4 * ux)
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x1, y1), left, right))
        self._parts.append(f'<polygon points="{corners}" class="{stroke}"/>')

    def circle(self, x: float, y: float, r: float, fill: str = "box", stroke: str = "line", words: str = "") -> None:
        """A disc with words in it."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" class="{fill} s-{stroke}"/>')
        if words:
            self.text(x, y + 5, words)

    def render(self) -> str:
        """The file. Its colours follow the reader's scheme, also where it is shown as an image."""

        def rules(palette: dict[str, str]) -> str:
            fills = "".join(f".{name}{{fill:{colour}}}" for name, colour in palette.items())
            return fills + "".join(
                f".s-{name}{{stroke:{palette[name]}}}" for name in ("line", "soft", "a", "b", "c", "d")
            )

        style = (
            "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
            f"{rules(_LIGHT)}.none{{fill:none}}"
            f"@media (prefers-color-scheme:dark){{{rules(_DARK)}.none{{fill:none}}}}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img"><title>{escape(self.title)}</title><style>{style}</style>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="8" class="page"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )
