"""The report as one HTML page: tables, inline SVG, CSS for light and dark; nothing from elsewhere, no script."""

from __future__ import annotations

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
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e8eaed; --soft: #9aa4af; --grid: #2c3238;
  --card: #1b1f24; --bad: #ff8a80; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 8px; } h2 { font-size: 1.25rem; margin: 40px 0 4px; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 4px 0 10px; color: var(--soft); } .bad { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 8px 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 6px 0 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
td small { color: var(--soft); font-size: 0.85em; margin-left: 6px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px; background: var(--card); border-radius: 8px; }
figcaption { margin-bottom: 6px; } figcaption p { font-size: 0.87rem; margin: 2px 0 0; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 12px; padding: 0; list-style: none;
  font-size: 0.92rem; }
.key li { display: flex; align-items: center; gap: 6px; } .key svg { width: 34px; height: 12px; }
.grid { stroke: var(--grid); stroke-width: 1; fill: none; } .guide { stroke: var(--soft); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .line.peer { stroke-dasharray: 5 4; }
.mark { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.mark.peer { fill: var(--card); stroke: var(--c); stroke-width: 2; }
.tick, .note { font-size: 12px; fill: var(--soft); } .note { fill: var(--ink); stroke: var(--card);
  stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; } .axis { font-size: 12.5px; fill: var(--ink); }
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
    return page_around("fastffn report", f"<dl>{listed}</dl>\n{broken}{notes}{body}")


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
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(shape)}. Read {model.text_tokens} tokens of prose.</p>\n"
        f"{_times(model)}{_over_torch(model)}{_quality(model)}{_key(model)}"
        f'<div class="plots">\n{figures}</div>\n</section>\n'
    )


def _caption(name: str, text: str, model: ModelResult) -> str:
    if name == "The whole model":
        if model.reference_perplexity is not None:
            text = (
                f"Perplexity with every FFN run by fastffn, over {model.text_tokens} tokens in chunks of "
                f"{model.chunk_tokens}. The line is the original in NumPy f32: {model.reference_perplexity:.3f}."
            )
        else:
            text = "Embeddings with every FFN run by fastffn, against the original's in NumPy f32."
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
    return f"<p>{escape(text)}</p>{_table(header, rows)}"


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
    return f"<p>{escape(text)}</p>{_table(header, rows)}"


def _quality(model: ModelResult) -> str:
    language = model.reference_perplexity is not None
    header = ["", "bits per weight", "error RMS", "worst layer", "largest error"]
    header += ["perplexity", "change"] if language else ["smallest cosine"]
    rows = []
    for variant in model.variants:
        error = variant.error
        cells = [escape(variant.name), f"{8 * variant.bytes / model.parameters:.2f}"]
        cells += [f"{value:.1e}" for value in (error.rms, error.worst_rms, error.largest)]
        rows.append(cells + [escape(cell) for cell in table.outcome_cells(model, variant)])
    text = (
        "Errors of a layer's output against float64, over the RMS of that output, on the inputs each layer truly saw."
    )
    return f"<p>{escape(text)}</p>{_table(header, rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


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
