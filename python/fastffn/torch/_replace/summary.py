"""What `replace` did: one row per layer, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LayerSummary:
    """One feed-forward layer.

    Attributes:
        name, family: as the model and :func:`fastffn.torch.families` call it.
        rule: what it was replaced by, as text; "" where it stayed as it was.
        shape: (d_model, d_ff), or (experts, d_model, d_ff).
        bytes_before: of its weights in the model; bytes_after: of the packed ones, biases and norms included.
        error: ‖y - y*‖ / ‖y*‖ over the rows that were tried, y* from the model's weights in float32.
        error_before: the same of the model's own layer, in the model's dtype. Both NaN where the layer stayed.
        seconds: that packing took.
    """

    name: str
    family: str
    rule: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    error: float
    error_before: float
    seconds: float

    @property
    def replaced(self) -> bool:
        """Whether a rule was for it."""
        return bool(self.rule)


@dataclass(frozen=True)
class ReplaceSummary:
    """What :func:`fastffn.torch.replace` did. ``print(summary)`` shows a table, ``summary.save("x.svg")`` draws it.

    Attributes:
        layers: one :class:`LayerSummary` per feed-forward layer, those that stayed as they were included.
        model: the model's class.
        inputs: "calibration" or "random": what errors were measured on.
        rows: how many inputs per layer.
        left_out: modules that look like feed-forward layers but have something that none of the families has, and what.
    """

    layers: tuple[LayerSummary, ...]
    model: str
    inputs: str
    rows: int
    left_out: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def replaced(self) -> tuple[LayerSummary, ...]:
        """The layers that a rule was for."""
        return tuple(layer for layer in self.layers if layer.replaced)

    @property
    def bytes_before(self) -> int:
        """Of all feed-forward layers in the model."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of all feed-forward layers now."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def seconds(self) -> float:
        """That packing took, measuring left out."""
        return sum(layer.seconds for layer in self.layers)

    def __str__(self) -> str:
        heads = ("layer", "is now", "shape", "MB before", "MB after", "error", "before")
        rows = [
            (
                layer.name,
                layer.rule or "as it was",
                "×".join(map(str, layer.shape)),
                _megabytes(layer.bytes_before),
                _megabytes(layer.bytes_after),
                f"{layer.error:.1e}" if layer.replaced else "",
                f"{layer.error_before:.1e}" if layer.replaced else "",
            )
            for layer in self.layers
        ]
        total = ("all", "", "", _megabytes(self.bytes_before), _megabytes(self.bytes_after), "", "")
        widths = [max(len(row[i]) for row in (heads, *rows, total)) for i in range(len(heads))]

        def line(cells: tuple[str, ...]) -> str:
            texts = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
            return "  ".join(texts).rstrip()

        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        errors = (
            f"error: relative, against the layer in float32, on {self.rows} {self.inputs} inputs per layer\n"
            "before: that of the model's own layer, in its dtype"
        )
        title = f"{self.model}: {len(self.replaced)} of {len(self.layers)} feed-forward layers replaced"
        left = [f"left out: {text}" for text in self.left_out]
        return "\n".join([title, line(heads), rule, *map(line, rows), rule, line(total), errors, *left])

    def save(self, path: str | Path) -> Path:
        """Draws bytes and error per layer into an .svg, or into an .html with the table.

        Raises:
            ValueError: another ending.
        """
        from fastffn.torch._replace.picture import page, picture

        target = Path(path)
        makers = {".svg": picture, ".html": page}
        if target.suffix not in makers:
            raise ValueError(f"ReplaceSummary.save: '{target.name}' ends in '{target.suffix}', expected .svg or .html")
        target.write_text(makers[target.suffix](self), encoding="utf-8")
        return target


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3f}" if count < 1e6 else f"{count / 1e6:.1f}"
