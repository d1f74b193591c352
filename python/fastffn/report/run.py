"""The work: a model on a text, every variant on what its layers saw, and the whole model with each of ours inside."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from .arrays import F32, I64
from .calibration import calibrate_on
from .errors import ReportError
from .ffn_only import FeedForwardModel
from .layers import FfnLayer
from .lowrank import Figure
from .measure import Timing, evenly, layers_that_fit, rows_for, time_variants
from .open_model import EmbeddingModel, LanguageModel, OpenedModel
from .progress import Progress
from .quality import LayerError, OutputError, layer_errors
from .results import ModelResult, VariantResult
from .variants import Variant


@dataclass(frozen=True)
class Settings:
    """How much to do."""

    tokens: tuple[int, ...] = (1, 16, 128, 1024)
    text_tokens: int = 2048  # of the text that the perplexity is taken of; the whole text where it is shorter
    chunk_tokens: int = 512
    error_rows: int = 128
    error_layers: int = 1000  # at most, evenly spread
    seconds: float = 4.0  # per number of tokens
    sentences: int = 32
    calibration_tokens: int = 4096  # of the calibration text, which is shorter

    def quick(self) -> Settings:
        """Less of everything, for a first look."""
        return Settings(self.tokens, min(self.text_tokens, 512), 256, 32, 10, 0.8, 12, 1024)


# Weights of the progress bar: about the seconds that a stage takes for SmolLM2-135M on two cores.
_PASS, _ERRORS = 4.0, 6.0
_CALIBRATION = 2.0  # tokens of the calibration text over those of the perplexity


def progress_weight(settings: Settings, variants: Sequence[Variant], opened: OpenedModel) -> float:
    """What one model adds to the progress bar's total."""
    if isinstance(opened, FeedForwardModel):
        return _ERRORS + settings.seconds * len(settings.tokens)
    embedder = isinstance(opened, EmbeddingModel)
    passes = 1 + sum(variant.ours + _CALIBRATION * variant.calibration_passes for variant in variants)
    scale = 0.1 if embedder else 1.0
    seconds = settings.seconds / 2 if embedder else settings.seconds
    return scale * (_PASS * passes + _ERRORS) + seconds * len(settings.tokens)


def shipped_text() -> str:
    """The prose that comes with the report, written for it."""
    return resources.files(__package__).joinpath("prose.txt").read_text("utf-8")


def chunks_of(ids: Sequence[int], total: int, longest: int) -> I64:
    """Up to `total` ids in equal chunks of at most `longest`: [chunks, length]; a rest of a few ids is dropped."""
    count = min(len(ids), total)
    if count < 2:
        raise ReportError(f"the text gives {count} tokens; a perplexity needs at least 2")
    chunks = -(-count // longest)
    length = count // chunks
    return np.asarray(ids[: chunks * length], np.int64).reshape(chunks, length)


def sentences_of(text: str, count: int) -> list[str]:
    """`count` sentences spread over the text."""
    found = [sentence for sentence in re.split(r"(?<=[.?!])\s+", text.strip()) if sentence]
    picked = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[index] for index in picked]


def run_language_model(
    opened: LanguageModel, variants: Sequence[Variant], settings: Settings, progress: Progress
) -> ModelResult:
    """Perplexity of the original and of every variant of ours; errors and times of all variants."""
    model = opened.model
    _calibrate(opened, variants, settings, progress)
    ids = opened.tokenizer.encode(shipped_text())
    chunks = chunks_of(ids, settings.text_tokens, min(settings.chunk_tokens, model.config.context))
    captured: list[F32] = []
    step = _stepper(progress, _PASS / model.config.layers)

    def capture(layer: int, x: F32) -> None:
        captured.append(rows_for(x, min(max(settings.tokens), x.shape[0])))

    progress.stage(f"{opened.label}: the original on {chunks.size} tokens", _PASS)
    reference = float(np.exp(model.nll(chunks, capture=capture, step=step).mean()))
    errors, sizes, timings, timed = _measure(
        opened.label, model.config.layers, model.ffn_layer, captured, variants, settings, settings.seconds, progress
    )
    perplexities: dict[str, float] = {}
    for variant in variants:
        if variant.ours:
            progress.stage(f"{opened.label}: perplexity with {variant.name}", _PASS)
            perplexities[variant.name] = float(np.exp(model.nll(chunks, variant.as_ffn(), step=step).mean()))
    first = model.ffn_layer(0)
    return ModelResult(
        label=opened.label,
        kind="language model",
        layers=model.config.layers,
        timed_layers=timed,
        d_model=first.d_model,
        d_ff=first.d_ff,
        gated=first.w_gate is not None,
        activation=first.activation,
        parameters=first.parameters * model.config.layers,
        text_tokens=int(chunks.size),
        chunk_tokens=int(chunks.shape[1]),
        variants=_results(variants, sizes, timings, errors, _active(variants, first), perplexities, {}),
        reference_perplexity=reference,
        figures=_figures(variants),
    )


def run_embedding_model(
    opened: EmbeddingModel, variants: Sequence[Variant], settings: Settings, progress: Progress
) -> ModelResult:
    """Smallest cosine between the original's embeddings and those of every variant of ours; errors and times."""
    model = opened.model
    _calibrate(opened, variants, settings, progress, scale=0.1)
    sentences = [opened.tokenizer.encode(text) for text in sentences_of(shipped_text(), settings.sentences)]
    captured: list[F32] = []
    step = _stepper(progress, 0.1 * _PASS / model.config.layers)
    progress.stage(f"{opened.label}: the original on {len(sentences)} sentences", 0.1 * _PASS)
    original = model.embed(sentences, capture=lambda layer, x: captured.append(x.copy()), step=step)
    errors, sizes, timings, timed = _measure(
        opened.label,
        model.config.layers,
        model.ffn_layer,
        captured,
        variants,
        settings,
        settings.seconds / 2,
        progress,
        scale=0.1,
    )
    cosines: dict[str, float] = {}
    for variant in variants:
        if variant.ours:
            progress.stage(f"{opened.label}: embeddings with {variant.name}", 0.1 * _PASS)
            cosines[variant.name] = min_cosine(original, model.embed(sentences, variant.as_ffn(), step=step))
    first = model.ffn_layer(0)
    return ModelResult(
        label=opened.label,
        kind="sentence embedder",
        layers=model.config.layers,
        timed_layers=timed,
        d_model=first.d_model,
        d_ff=first.d_ff,
        gated=False,
        activation=first.activation,
        parameters=first.parameters * model.config.layers,
        text_tokens=sum(map(len, sentences)),
        chunk_tokens=max(map(len, sentences)),
        variants=_results(variants, sizes, timings, errors, _active(variants, first), {}, cosines),
        figures=_figures(variants),
    )


def run_feed_forward(
    opened: FeedForwardModel, variants: Sequence[Variant], settings: Settings, progress: Progress
) -> ModelResult:
    """Errors and times of the layers alone."""
    skipped = [variant.name for variant in variants if variant.calibrate is not None]
    variants = [variant for variant in variants if variant.calibrate is None]
    count = opened.layers
    inputs = [opened.inputs(index) for index in range(count)]
    errors, sizes, timings, timed = _measure(
        opened.label, count, opened.ffn_layer, inputs, variants, settings, settings.seconds, progress
    )
    first = opened.ffn_layer(0)
    more = f" Left out, as they need the whole model: {', '.join(skipped)}." if skipped else ""
    return ModelResult(
        label=opened.label,
        kind="feed-forward layers",
        layers=count,
        timed_layers=timed,
        d_model=first.d_model,
        d_ff=first.d_ff,
        gated=first.w_gate is not None,
        activation=first.activation,
        parameters=first.parameters * count,
        text_tokens=0,
        chunk_tokens=0,
        variants=_results(variants, sizes, timings, errors, _active(variants, first), {}, {}),
        statement=opened.statement + more,
    )


def run_model(opened: OpenedModel, variants: Sequence[Variant], settings: Settings, progress: Progress) -> ModelResult:
    """All that can be found out about a model."""
    if isinstance(opened, LanguageModel):
        return run_language_model(opened, variants, settings, progress)
    if isinstance(opened, EmbeddingModel):
        return run_embedding_model(opened, variants, settings, progress)
    return run_feed_forward(opened, variants, settings, progress)


def min_cosine(a: F32, b: F32) -> float:
    """The smallest cosine between rows of the same number, in float64; NaN if any is."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
    return float(np.min(np.sum(wide_a * wide_b, axis=1) / norms))


def _calibrate(
    opened: LanguageModel | EmbeddingModel,
    variants: Sequence[Variant],
    settings: Settings,
    progress: Progress,
    scale: float = 1.0,
) -> None:
    """Shows the model to every method that has to see it before it can pack."""
    if not any(variant.calibrate for variant in variants):
        return
    calibration = calibrate_on(opened, settings.calibration_tokens)
    for variant in variants:
        if variant.calibrate is not None:
            weight = scale * _PASS * _CALIBRATION * variant.calibration_passes
            progress.stage(f"{opened.label}: {variant.name} on {calibration.tokens} tokens of another text", weight)
            variant.calibrate(calibration, _stepper(progress, weight / calibration.layers))


def _stepper(progress: Progress, weight: float) -> Callable[[], None]:
    return lambda: progress.advance(weight)


def _measure(
    label: str,
    layer_count: int,
    ffn_layer: Callable[[int], FfnLayer],
    captured: Sequence[F32],
    variants: Sequence[Variant],
    settings: Settings,
    seconds: float,
    progress: Progress,
    scale: float = 1.0,
) -> tuple[list[list[LayerError]], dict[str, int], dict[str, dict[int, Timing]], int]:
    """Errors [layer][variant], bytes of all layers, timings, and how many layers were timed."""
    progress.stage(f"{label}: errors against float64", scale * _ERRORS)
    errors = []
    checked = evenly(layer_count, settings.error_layers)
    for index in checked:
        rows = rows_for(captured[index], min(settings.error_rows, captured[index].shape[0]))
        errors.append(layer_errors(index, ffn_layer(index), rows, variants))
        progress.advance(scale * _ERRORS / len(checked))
    chosen = evenly(layer_count, layers_that_fit(ffn_layer(0), len(variants)))
    layers = [ffn_layer(index) for index in chosen]
    sizes = {variant.name: _bytes_of(variant, layers[0], layer_count, ffn_layer) for variant in variants}
    names = {variant.name for variant in variants}
    like = {variant.name: variant.like for variant in variants if variant.like in names}
    timed = [variant for variant in variants if variant.name not in like]
    timings = time_variants(
        layers,
        [captured[index] for index in chosen],
        timed,
        settings.tokens,
        seconds,
        lambda count: progress.stage(f"{label}: timing {len(timed)} variants at T={count}", seconds),
    )
    timings.update({name: timings[other] for name, other in like.items() if other is not None})
    return errors, sizes, timings, len(chosen)


def _active(variants: Sequence[Variant], first: FfnLayer) -> dict[str, float]:
    """The part of the weights that a token uses, of the rows that say so; the same in every layer."""
    return {variant.name: variant.active(variant.pack(first)) for variant in variants if variant.active is not None}


def _bytes_of(variant: Variant, first: FfnLayer, layers: int, ffn_layer: Callable[[int], FfnLayer]) -> int:
    """Bytes of all layers. They have one shape; but what a method makes of them may differ from layer to layer."""
    if variant.calibrate is None:
        return variant.bytes(variant.pack(first)) * layers
    return sum(variant.bytes(variant.pack(ffn_layer(index))) for index in range(layers))


def _figures(variants: Sequence[Variant]) -> tuple[Figure, ...]:
    return tuple(figure for variant in variants if variant.figures is not None for figure in variant.figures())


def _results(
    variants: Sequence[Variant],
    sizes: dict[str, int],
    timings: dict[str, dict[int, Timing]],
    errors: list[list[LayerError]],
    active: dict[str, float],
    perplexities: dict[str, float],
    cosines: dict[str, float],
) -> list[VariantResult]:
    return [
        VariantResult(
            name=variant.name,
            family=variant.family,
            bytes=sizes[variant.name],
            timings=timings[variant.name],
            error=OutputError(tuple(layer[index] for layer in errors)),
            perplexity=perplexities.get(variant.name),
            cosine=cosines.get(variant.name),
            active=active.get(variant.name),
            note=variant.note,
            like=variant.like if variant.like in timings else None,
        )
        for index, variant in enumerate(variants)
    ]
