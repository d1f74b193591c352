"""The picture of `FffStats`: where tokens go, level by level; leaf loads in order; how close decisions are."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from fastffn.report.html import page_around
from fastffn.report.svg import COLOURS, WIDTH, Axis, Chart, Style, file_of, literal, log_axis, short

if TYPE_CHECKING:
    from fastffn._fff_stats import FffStats

_LEFT, _RIGHT = 66, 18
_ROW = 22
# More levels than this, or more trees, are too fine to see.
_LEVELS, _TREES = 9, 4
# Load over an even share, from empty to crowded; the middle is an even share. Told apart by the common colour blindnesses.
_SCALE = ("#08519c", "#4292c6", "#9ecae1", "#e8e8e4", "#fdbe85", "#f16913", "#a63603")
_EMPTY = "#1c2026"


def picture(stats: FffStats) -> str:
    """One SVG with literal colours, so that every viewer draws it."""
    parts, down = [], 0.0
    for drawing, height in _drawings(stats):
        parts.append(f'<g transform="translate(0 {down:.0f})">{drawing}</g>')
        down += height
    return file_of("".join(parts), down, "Use of the trees")


def page(stats: FffStats) -> str:
    """An HTML page: the numbers as text, and the picture."""
    return page_around("Use of the trees", f"<pre>{escape(str(stats))}</pre>\n<figure>{picture(stats)}</figure>\n")


def _drawings(stats: FffStats) -> list[tuple[str, float]]:
    """Each part with its height."""
    shown = min(stats.trees, _TREES)
    drawings = [_heading(stats)]
    drawings += [_tree(stats, tree) for tree in range(shown)]
    if stats.leaves > 1 and stats.tokens:
        drawings.append(_loads(stats))
        if stats.margins is not None and np.isfinite(stats.margins).any():
            drawings.append(_margins(stats))
    return drawings


def _heading(stats: FffStats) -> tuple[str, float]:
    dead, load = int(stats.dead_leaves.sum()), float(stats.max_over_mean.max())
    lines = [
        f"{stats.tokens} tokens through {stats.trees} tree{'s' if stats.trees > 1 else ''} of depth {stats.depth}: "
        f"entropy {stats.entropy.mean():.2f} of {stats.depth} bits,",
        f"{dead} of {stats.trees * stats.leaves} leaves dead, the fullest leaf has {load:.1f} times the mean load",
    ]
    if stats.trees > _TREES:
        lines[1] += f"; {_TREES} trees shown"
    text = "".join(
        f'<text x="16" y="{24 + 18 * row}" class="note">{escape(line)}</text>' for row, line in enumerate(lines)
    )
    return text + _legend(60), 92


def _legend(down: float) -> str:
    """The colours and what they stand for."""
    labels = ("no token", "⅛ and less", "¼", "½", "an even share", "2×", "4×", "8× and more")
    parts, left = [], 16.0
    for colour, label in zip((_EMPTY, *_SCALE), labels, strict=True):
        parts.append(f'<rect x="{left:.1f}" y="{down - 9:.0f}" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{left + 15:.1f}" y="{down + 1:.0f}" class="tick">{escape(label)}</text>')
        left += 33 + 6.6 * len(label)
    return "".join(parts)


def _colour(count: float, even: float) -> str:
    if count <= 0 or even <= 0:
        return _EMPTY
    return _SCALE[min(max(round(math.log2(count / even)), -3), 3) + 3]


def _tree(stats: FffStats, tree: int) -> tuple[str, float]:
    """Rows from the root to the leaves; a cell is as wide as its share of leaves and coloured by its load."""
    levels = _shown_levels(stats.depth)
    title = f"Tree {tree}: load of every node, from the root down"
    parts = [f'<text x="16" y="16" class="title">{title}</text>']
    if stats.trees > 1:  # the colour of its lines below
        colour, end = COLOURS[(tree + 1) % len(COLOURS)], WIDTH - _RIGHT
        parts.append(f'<path d="M{end - 40} 11H{end}" style="stroke:{colour}" class="line"/>')
    span = WIDTH - _LEFT - _RIGHT
    for row, level in enumerate(levels):
        counts = _level_counts(stats, tree, level)
        y, cell = 26 + row * _ROW, span / len(counts)
        gap = 1.0 if cell > 4 else 0.0
        for index, count in enumerate(counts.tolist()):
            share = f"{count} tokens, {count / max(stats.tokens, 1):.2%}; an even share is {1 / len(counts):.2%}"
            where = "leaf" if level == stats.depth else f"level {level}, node"
            parts.append(
                f'<rect x="{_LEFT + index * cell:.2f}" y="{y}" width="{max(cell - gap, 0.3):.2f}" height="{_ROW - 2}" '
                f'fill="{_colour(count, stats.tokens / len(counts))}"><title>{where} {index}: {share}</title></rect>'
            )
        name = "leaves" if level == stats.depth else f"level {level}"
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end" class="tick">{name}</text>')
    return "".join(parts), 26 + len(levels) * _ROW + 16


def _shown_levels(depth: int) -> list[int]:
    """The levels nearest to the root, and always the leaves where they can still be told apart (or nearly)."""
    return list(range(depth + 1)) if depth <= _LEVELS else [*range(_LEVELS), depth]


def _level_counts(stats: FffStats, tree: int, level: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if level == stats.depth:
        counts = stats.leaf_counts[tree]
        # At most a few cells per pixel: neighbours beyond that are one.
        fold = max(1, len(counts) >> 10)
        return np.asarray(counts.reshape(-1, fold).sum(axis=1), np.int64)
    return stats.node_counts[tree, (1 << level) - 1 : (2 << level) - 1]


def _loads(stats: FffStats) -> tuple[str, float]:
    """Leaves sorted by load, against an even share."""
    shown = min(stats.trees, _TREES)
    loads = np.sort(stats.leaf_counts[:shown], axis=1)[:, ::-1] * (stats.leaves / max(stats.tokens, 1))
    least = 0.5 * stats.leaves / max(stats.tokens, 1)  # half a token: where the dead ones are drawn
    chart = Chart(
        "Leaf loads",
        Axis("leaves, the fullest first", 0.0, float(stats.leaves), False, _round_ticks(stats.leaves)),
        log_axis("load / even share", [least, float(loads.max()), 1.0], lambda value: f"{value:g}"),
        height=280,
    )
    chart.guide([(0.0, 1.0), (float(stats.leaves), 1.0)])
    for tree in range(shown):
        steps: list[tuple[float, float]] = []
        for index, load in enumerate(loads[tree].tolist()):
            level = max(load, least)
            if not steps or steps[-1][1] != level:
                steps += [(float(index), steps[-1][1])] if steps else []
                steps.append((float(index), level))
        steps.append((float(stats.leaves), steps[-1][1]))
        chart.line(steps, Style(tree + 1))
    return _titled("Leaves by load; the thin line is an even share, the bottom no token", chart), 312


def _margins(stats: FffStats) -> tuple[str, float]:
    """How many ways have a decision closer than a margin."""
    assert stats.margins is not None
    shown = min(stats.trees, _TREES)
    finite = stats.margins[np.isfinite(stats.margins) & (stats.margins > 0)]
    low, high = (float(np.quantile(finite, q)) for q in (0.001, 1.0)) if finite.size else (0.1, 1.0)
    low = max(low, high * 1e-6)
    chart = Chart(
        "Margins",
        log_axis("smallest |z - threshold| on the way", [low, high], short),
        Axis("ways closer than that", 0.0, 1.0, False, tuple((q / 4, f"{q * 25}%") for q in range(5))),
        height=280,
    )
    values = np.geomspace(chart.x.low, chart.x.high, 120)
    for tree in range(shown):
        column = np.sort(stats.margins[:, tree])
        below = np.searchsorted(column, values) / max(len(column), 1)
        chart.line(list(zip(values.tolist(), below.tolist(), strict=True)), Style(tree + 1))
    return _titled("How close decisions are: ways with a margin below the value", chart), 312


def _titled(title: str, chart: Chart) -> str:
    """A chart under its title, its CSS colours made literal."""
    drawing = literal(chart).replace("<svg ", '<svg x="0" y="24" ', 1)
    return f'<text x="16" y="16" class="title">{escape(title)}</text>{drawing}'


def _round_ticks(leaves: int) -> tuple[tuple[float, str], ...]:
    every = max(1, leaves // 8)
    return tuple((float(value), str(value)) for value in range(0, leaves + 1, every))
