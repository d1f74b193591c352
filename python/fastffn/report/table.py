"""The report as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .results import BASELINE, ModelResult, Report, VariantResult


def render(report: Report) -> str:
    """The whole report, ready to be printed."""
    facts = dict(report.machine)
    if report.roof is not None:
        facts["limits"] = report.roof.describe()
    parts = ["\n".join(f"{key:<9} {value}" for key, value in facts.items())]
    for model in report.models:
        parts += [headline(model), *([model.statement] if model.statement else []), times_table(model)]
        peers = peers_table(model)
        if peers:
            parts.append(peers)
        parts.append(quality_table(model))
    parts += report.notes
    parts += [f"BROKEN PROMISE  {line}" for line in report.broken_promises()]
    return "\n\n".join(parts)


def headline(model: ModelResult) -> str:
    """What was run."""
    shape = f"{model.layers} layers, d_model {model.d_model}, d_ff {model.d_ff}, {model.activation}"
    if model.gated:
        shape += ", gated"
    title = f"{model.label}: {shape}"
    return f"{title}\n{'=' * len(title)}"


def times_table(model: ModelResult) -> str:
    """Bytes, and milliseconds per layer with the speed-up over our f32."""
    baseline = model.variant(BASELINE)
    rows = []
    active = any(variant.active is not None for variant in model.variants)
    for variant in model.variants:
        cells = [variant.name, size_text(variant.bytes)]
        if active:
            cells.append(active_text(variant))
        for tokens in model.tokens:
            cells.append(time_text(variant.timings[tokens].median))
            cells.append(ratio_text(model.speedup(variant, baseline, tokens)))
        rows.append(cells)
    header = ["", "FFN weights", *(["used per token"] if active else [])]
    for tokens in model.tokens:
        header += [f"T={tokens}", ""]
    which = "every layer" if model.timed_layers == model.layers else f"{model.timed_layers} of {model.layers} layers"
    title = f"Milliseconds per layer (median over {which}, variants in turns), and times faster than fastffn {BASELINE}"
    return f"{title}\n{_grid(header, rows)}"


def peers_table(model: ModelResult) -> str:
    """Speed-up over torch, whichever of its dtypes is faster at that point; empty without torch."""
    if not any(variant.family == "torch" for variant in model.variants):
        return ""
    rows = [
        [v.name, *(ratio_text(model.speedup(v, model.best_peer(tokens), tokens)) for tokens in model.tokens)]
        for v in model.variants
        if v.ours
    ]
    best = []
    for tokens in model.tokens:
        peer = model.best_peer(tokens)
        best.append("" if peer is None else f"({peer.name.removeprefix('torch ')})")
    rows.append(["best torch", *best])
    title = "Times faster than torch eager, the faster of its f32 and bf16 at each point; ours take and give f32"
    return f"{title}\n{_grid(['', *(f'T={tokens}' for tokens in model.tokens)], rows)}"


def quality_table(model: ModelResult) -> str:
    """Bits per weight, errors, and what becomes of the whole model."""
    language = model.reference_perplexity is not None
    last = [] if model.statement else ["perplexity", ""] if language else ["cosine"]
    header = ["", "bits/weight", "error RMS", "worst layer", "error max", *last]
    rows = []
    for variant in model.variants:
        cells = [
            variant.name,
            f"{8 * variant.bytes / model.parameters:.2f}",
            f"{variant.error.rms:.1e}",
            f"{variant.error.worst_rms:.1e}",
            f"{variant.error.largest:.1e}",
        ]
        rows.append(cells + outcome_cells(model, variant))
    if language:
        rows.append(["original (NumPy f32)", "", "", "", "", f"{model.reference_perplexity:.3f}", ""])
        what = f" Perplexity over {model.text_tokens} tokens of prose in chunks of {model.chunk_tokens}"
    elif model.statement:
        what = ""
    else:
        what = f" Cosine: the smallest between the original's embeddings and ours ({model.text_tokens} tokens of sentences)"
    title = f"Errors of a layer's output against float64, over the output's RMS.{what}"
    return f"{title}\n{_grid(header, rows)}"


def outcome_cells(model: ModelResult, variant: VariantResult) -> list[str]:
    """Perplexity and its change, or the cosine; blank for peers; nothing for a model that was not run whole."""
    if model.statement:
        return []
    if model.reference_perplexity is not None:
        if variant.perplexity is None:
            return ["", ""]
        return [perplexity_text(variant.perplexity), change_text(variant.perplexity / model.reference_perplexity)]
    return ["" if variant.cosine is None else f"{variant.cosine:.7f}"]


def perplexity_text(value: float) -> str:
    """Three decimals where they mean something."""
    return f"{value:.3f}" if value < 1e5 else f"{value:.1e}"


def change_text(ratio: float) -> str:
    """A perplexity over another, as the change in percent, or as a factor where it is large."""
    return (
        f"{ratio:.1e} times" if ratio >= 1e5 else f"{ratio:.0f} times" if ratio >= 10 else f"{100 * (ratio - 1):+.2f}%"
    )


def size_text(count: float) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:.1f} MB"


def active_text(variant: VariantResult) -> str:
    """The part of the weights that a token uses."""
    return "100%" if variant.active is None else f"{100 * variant.active:.0f}%"


def time_text(seconds: float) -> str:
    """Milliseconds, three significant digits."""
    milliseconds = 1e3 * seconds
    return (
        f"{milliseconds:.3f}"
        if milliseconds < 10
        else f"{milliseconds:.1f}"
        if milliseconds < 100
        else f"{milliseconds:.0f}"
    )


def ratio_text(ratio: float | None) -> str:
    """A speed-up."""
    return "" if ratio is None else f"{ratio:.2f}x"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  " + "  ".join(cells).rstrip())
    out.insert(1, "  " + "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(out)
