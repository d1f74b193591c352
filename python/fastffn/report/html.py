"""The report as one HTML page: tables, inline SVG, CSS for light and dark; nothing from elsewhere, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from . import plots, table
from .results import BASELINE, ModelResult, Report
from .svg import Style

# Hues that the common kinds of colour blindness keep apart, darker on white and lighter on black.
_LIGHT = ("#4b5563", "#0067a8", "#00805a", "#c2410c", "#8b3fa0", "#a16207", "#be185d", "#0f766e")
_DARK = ("#b6bec9", "#56b4f0", "#35c795", "#ff9a5c", "#cf8fe3", "#e3b341", "#ff7eb6", "#4fd1c5")

_CSS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2026; --soft: #57606a; --grid: #e3e6ea; --card: #f6f7f9;
  --bad: #b42318; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e8eaed; --soft: #a3adb8; --grid: #2c3238;
  --card: #1b1f24; --bad: #ff8a80; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.35rem; margin: 44px 0 2px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0; } section > h3 { margin: 28px 0 4px; }
p { margin: 4px 0 10px; color: var(--soft); max-width: 78ch; } .bad { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 8px 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 185px), 1fr)); gap: 12px;
  margin: 14px 0 18px; padding: 0; list-style: none; }
.cards li { padding: 12px 14px; background: var(--card); border-radius: 8px; border-left: 4px solid var(--c); }
.cards strong { display: block; overflow-wrap: anywhere; } .cards b { font-size: 1.5rem; font-weight: 650;
  letter-spacing: -0.02em; } .cards span { color: var(--soft); font-size: 0.87rem; } .cards .bad { color: var(--bad); }
.cards dl { margin: 6px 0 0; font-size: 0.87rem; gap: 0 10px; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 6px 0 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; color: var(--soft); } tr > :first-child { text-align: left; } tbody th { color: var(--ink); }
td small { color: var(--soft); font-size: 0.85em; margin-left: 6px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px; }
figure { margin: 0; padding: 14px 12px 8px; background: var(--card); border-radius: 8px; display: flex;
  flex-direction: column; justify-content: space-between; }
figcaption { margin: 0 2px 8px; } figcaption p { font-size: 0.87rem; margin: 2px 0 0; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 12px; padding: 0; list-style: none;
  font-size: 0.92rem; }
.key li { display: flex; align-items: center; gap: 6px; } .key svg { width: 34px; height: 12px; }
.grid { stroke: var(--grid); stroke-width: 1; fill: none; } .guide { stroke: var(--soft); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .line.peer { stroke-dasharray: 5 4; }
.mark { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.mark.peer { fill: var(--card); stroke: var(--c); stroke-width: 2; }
.tick, .note { font-size: 13px; fill: var(--soft); } .note { fill: var(--ink); stroke: var(--card);
  stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; } .axis { font-size: 13px; fill: var(--ink); }
@media (max-width: 560px) { body { padding: 18px 12px 40px; } figure { padding: 12px 8px 6px; }
  dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: 6px; } }
@media print { figure, .cards li { break-inside: avoid; } }
"""


def render(report: Report) -> str:
    """The page."""
    facts = dict(report.machine)
    if report.roof is not None:
        facts["limits"] = report.roof.describe()
    facts["took"] = f"{report.seconds:.0f} s" + (", --quick" if report.quick else "")
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    broken = "".join(f'<p class="bad">Broken promise: {escape(line)}</p>' for line in report.broken_promises())
    notes = "".join(f"<p>{escape(line)}</p>" for line in report.notes)
    body = "".join(_model(model, report) for model in report.models)
    return page_around("fastffn report", f'<dl class="facts">{listed}</dl>\n{broken}{notes}{body}')


def page_around(title: str, body: str) -> str:
    """A page of its own: head, style for light and dark, the title, and a body of HTML."""
    css = _CSS.replace("LIGHT", _colours(_LIGHT)).replace("DARK", _colours(_DARK))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )


def _colours(values: Sequence[str]) -> str:
    return " ".join(f"--s{index}: {value};" for index, value in enumerate(values))


def _model(model: ModelResult, report: Report) -> str:
    title, _, shape = table.headline(model).splitlines()[0].partition(": ")
    figures = "".join(
        f"<figure><figcaption><h3>{escape(name)}</h3>{_caption(name, text, model)}</figcaption>"
        f"{draw(model, report.roof)}</figure>\n"
        for name, text, draw in plots.PLOTS
    )
    figures += "".join(
        f"<figure><figcaption><h3>{escape(figure.title)}</h3><p>{escape(figure.text)}</p></figcaption>"
        f"{figure.svg}</figure>\n"
        for figure in model.figures
    )
    read = model.statement or f"Read {model.text_tokens} tokens of prose."
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(shape)}. {escape(read)}</p>\n"
        f'{_cards(model)}{_key(model)}<div class="plots">\n{figures}</div>\n'
        f"<h3>All numbers</h3>\n{_times(model)}{_over_torch(model)}{_quality(model)}</section>\n"
    )


def _cards(model: ModelResult) -> str:
    """Each format at a glance: how much faster, how much smaller, what it costs."""
    baseline = model.variant(BASELINE)
    few, many = model.tokens[0], model.tokens[-1]
    items = []
    for variant in model.variants:
        if not variant.ours or variant.name == BASELINE or baseline is None:
            continue
        rows = [(f"{few} token{'s' * (few > 1)}", table.ratio_text(model.speedup(variant, baseline, few)))]
        rows.append(("size", f"{100 * variant.bytes / baseline.bytes:.0f}% of f32"))
        bad = ""
        if variant.perplexity is not None and model.reference_perplexity:
            ratio = variant.perplexity / model.reference_perplexity
            bad = "" if ratio < 1.1 else ' class="bad"'
            rows.append(("perplexity", table.change_text(ratio)))
        elif variant.cosine is not None:
            bad = "" if variant.cosine > 0.98 else ' class="bad"'
            rows.append(("least cosine", f"{variant.cosine:.5f}"))
        cells = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows]
        if bad:
            cells[-1] = cells[-1].replace("<dd>", f"<dd{bad}>")
        speed = table.ratio_text(model.speedup(variant, baseline, many)).rstrip("x")
        colour = plots.styles_of(model)[variant.name].colour
        items.append(
            f'<li style="--c:var(--s{colour})"><strong>{escape(variant.name)}</strong><b>{speed}×</b> '
            f"<span>the speed of f32 at {many} tokens</span><dl>{''.join(cells)}</dl></li>"
        )
    return f'<ul class="cards">{"".join(items)}</ul>\n' if items else ""


def _caption(name: str, text: str, model: ModelResult) -> str:
    language = model.reference_perplexity is not None
    far = plots.drawn_and_far(model)[1]
    beyond = ", ".join(f"{v.name} at {table.perplexity_text(v.perplexity or math.nan)}" for v in far)
    if name == "Quality against bytes":
        text = (
            "Of the whole model with every FFN in that format. To the left and down is better; the thin lines are the "
            f"{'original and the ' if language else ''}best for their size."
        )
    elif name == "The whole model" and language:
        text = (
            f"Perplexity over {model.text_tokens} tokens in chunks of {model.chunk_tokens}, lower is better. The line is"
            f" the original in NumPy f32: {model.reference_perplexity:.3f}."
        )
    elif name == "The whole model":
        text = "Embeddings against the original's in NumPy f32; to the left is better."
    if model.statement and name in ("Quality against bytes", "The whole model"):
        text = "Not known: the model was not run whole."
    elif name in ("Quality against bytes", "The whole model") and beyond:
        text += f" Beyond the scale: {beyond}."
    return f"<p>{escape(text)}</p>"


def _times(model: ModelResult) -> str:
    baseline = model.variant(BASELINE)
    active = any(variant.active is not None for variant in model.variants)
    header = ["", "FFN weights", *(["used per token"] if active else []), *(f"T={tokens}" for tokens in model.tokens)]
    rows = []
    for variant in model.variants:
        cells = [escape(variant.name), table.size_text(variant.bytes)]
        if active:
            cells.append(table.active_text(variant))
        for tokens in model.tokens:
            ratio = table.ratio_text(model.speedup(variant, baseline, tokens))
            cells.append(f"{table.time_text(variant.timings[tokens].median)} ms<small>{ratio}</small>")
        rows.append(cells)
    which = "every layer" if model.timed_layers == model.layers else f"{model.timed_layers} of {model.layers} layers"
    text = f"Time of one layer: median over {which}, variants in turns; small: times faster than fastffn {BASELINE}."
    return _table(text, header, rows)


def _over_torch(model: ModelResult) -> str:
    if all(variant.ours for variant in model.variants):
        return ""
    header = ["", *(f"T={tokens}" for tokens in model.tokens)]
    rows = [
        [escape(v.name), *(table.ratio_text(model.speedup(v, model.best_peer(n), n)) for n in model.tokens)]
        for v in model.variants
        if v.ours
    ]
    text = "Times faster than torch eager, the faster of its f32 and bf16 at each point; ours take and give f32."
    return _table(text, header, rows)


def _quality(model: ModelResult) -> str:
    language = model.reference_perplexity is not None
    header = ["", "bits per weight", "error RMS", "worst layer", "largest error"]
    header += [] if model.statement else ["perplexity", "change"] if language else ["smallest cosine"]
    rows = []
    for variant in model.variants:
        error = variant.error
        cells = [escape(variant.name), f"{8 * variant.bytes / model.parameters:.2f}"]
        cells += [f"{value:.1e}" for value in (error.rms, error.worst_rms, error.largest)]
        rows.append(cells + [escape(cell) for cell in table.outcome_cells(model, variant)])
    text = (
        "Errors of a layer's output against float64, over the RMS of that output, on the inputs each layer truly saw."
    )
    return _table(text, header, rows)


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in header)
    lines = []
    for first, *others in rows:
        lines.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>")
    return (
        f"<p>{escape(caption)}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>\n"
    )


def _key(model: ModelResult) -> str:
    items = []
    for name, style in plots.styles_of(model).items():
        shown = name if style.peer else f"fastffn {name}"
        items.append(f"<li>{_swatch(style)}{escape(shown)}</li>")
    return f'<ul class="key">{"".join(items)}</ul>\n'


def _swatch(style: Style) -> str:
    peer = " peer" if style.peer else ""
    line = f'<path d="M1 6H33" class="line{peer}" style="stroke:var(--s{style.colour})"/>'
    paint = f'class="mark{peer}" style="--c:var(--s{style.colour})"'
    mark = (
        f'<rect x="13" y="2" width="8" height="8" {paint}/>'
        if style.peer
        else f'<circle cx="17" cy="6" r="4.5" {paint}/>'
    )
    return f'<svg viewBox="0 0 34 12" aria-hidden="true">{line}{mark}</svg>'
