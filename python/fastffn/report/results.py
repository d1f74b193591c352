"""What the report found, as plain data: the table, the JSON file and the HTML page are all made from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .lowrank import Figure
from .measure import Timing
from .probe import Roof
from .quality import OutputError

JSON_VERSION = 1
BASELINE = "f32"
# A median that is so many times the shortest call speaks of a busy machine; an idle one stays below 1.2.
NOISY = 1.5
# What this report promises, and exits with 1 over: formats whose embeddings must agree with the original's.
MIN_COSINE = {"f32": 0.9999, "bf16": 0.9999}


@dataclass(frozen=True)
class VariantResult:
    """One row. `bytes`: weights of all FFN layers; `timings`: tokens → seconds per layer."""

    name: str
    family: str
    bytes: int
    timings: dict[int, Timing]
    error: OutputError
    perplexity: float | None = None
    cosine: float | None = None  # the smallest over the sentences
    active: float | None = None  # the part of the FFN's weights that a token uses, where that is not all of them
    note: str | None = None
    like: str | None = None  # the row whose times these are: other weights in the same format

    @property
    def ours(self) -> bool:
        """Whether this library ran it."""
        return self.family == "fastffn"


@dataclass(frozen=True)
class ModelResult:
    """One model and all its rows. `kind`: "language model", "sentence embedder" or "feed-forward layers"."""

    label: str
    kind: str
    layers: int
    timed_layers: int
    d_model: int
    d_ff: int
    gated: bool
    activation: str
    parameters: int  # of all FFN layers
    text_tokens: int
    chunk_tokens: int  # a text is read in chunks of so many, or in sentences of at most so many
    variants: list[VariantResult]
    reference_perplexity: float | None = None
    figures: tuple[Figure, ...] = ()  # drawings of methods' own
    statement: str | None = None  # of a model that was not run whole: why, and what its rows mean

    @property
    def timed(self) -> list[VariantResult]:
        """The rows that were timed themselves."""
        return [variant for variant in self.variants if variant.like is None]

    @property
    def tokens(self) -> list[int]:
        """The numbers of tokens that were timed."""
        return list(self.variants[0].timings)

    def variant(self, name: str) -> VariantResult | None:
        """The row of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)

    def best_peer(self, tokens: int, family: str = "torch") -> VariantResult | None:
        """The peer's fastest row at so many tokens: the one to beat."""
        peers = [variant for variant in self.variants if variant.family == family]
        return min(peers, key=lambda peer: peer.timings[tokens].median, default=None)

    def speedup(self, variant: VariantResult, over: VariantResult | None, tokens: int) -> float | None:
        """How many times faster `variant` is than `over`, by medians."""
        if over is None or tokens not in over.timings:
            return None
        return over.timings[tokens].median / variant.timings[tokens].median

    def flops(self, variant: VariantResult, tokens: int) -> float:
        """Operations of one layer's matrix products: those that are done, where a token uses part of the weights."""
        return 2.0 * self.parameters / self.layers * tokens * (1.0 if variant.active is None else variant.active)

    def intensity(self, variant: VariantResult, tokens: int) -> float:
        """Operations per byte that one layer must read or write: its weights once, x and y in f32.

        Tokens that choose independently leave (1 - active) ^ tokens of the weights unread.
        """
        unread = 0.0 if variant.active is None else (1 - variant.active) ** tokens
        weights = variant.bytes / self.layers * (1 - unread)
        return self.flops(variant, tokens) / (weights + 2 * 4 * tokens * self.d_model)


@dataclass(frozen=True)
class Report:
    """Everything. `machine` is shown as it is, in its order."""

    machine: dict[str, str]
    threads: int
    models: list[ModelResult]
    roof: Roof | None
    quick: bool
    seconds: float

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        said = [variant.note for model in self.models for variant in model.variants if variant.note]
        return [*dict.fromkeys(said), *self._noise()]

    def _noise(self) -> list[str]:
        ratios = [
            timing.median / timing.shortest
            for model in self.models
            for variant in model.variants
            for timing in variant.timings.values()
        ]
        noisy = [ratio for ratio in ratios if ratio > NOISY]
        if 8 * len(noisy) < len(ratios) or not noisy:
            return []
        return [
            f"The times are noisy: in {len(noisy)} of {len(ratios)} rows the median call took more than {NOISY}"
            f" times as long as the shortest, {max(noisy):.0f} times at worst. Other work is running on this"
            " machine: run again when it is idle, or with fewer --threads."
        ]

    def broken_promises(self) -> list[str]:
        """Each bound of MIN_COSINE that a model misses, as a sentence; NaN misses it."""
        return [
            f"{model.label}: {variant.name} embeddings agree to cosine {variant.cosine:.6f}, promised {bound}"
            for model in self.models
            for variant in model.variants
            for bound in [MIN_COSINE.get(variant.name)]
            if bound is not None and variant.cosine is not None and not variant.cosine >= bound
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dump: seconds, bytes, ratios; a number that is not finite becomes null."""
        models = []
        for model in self.models:
            entry = {key: value for key, value in asdict(model).items() if key not in ("variants", "figures")}
            entry["variants"] = [self._variant_json(model, variant) for variant in model.variants]
            models.append(entry)
        out = {
            "version": JSON_VERSION,
            "machine": self.machine,
            "threads": self.threads,
            "quick": self.quick,
            "seconds": self.seconds,
            "roof": None if self.roof is None else asdict(self.roof),
            "notes": self.notes,
            "broken_promises": self.broken_promises(),
            "models": models,
        }
        cleaned: dict[str, Any] = _finite(out)
        return cleaned

    @staticmethod
    def _variant_json(model: ModelResult, variant: VariantResult) -> dict[str, Any]:
        baseline = model.variant(BASELINE)
        timings = [
            {
                "tokens": tokens,
                "seconds_median": timing.median,
                "seconds_min": timing.shortest,
                "calls": timing.calls,
                "flops_per_second": model.flops(variant, tokens) / timing.median,
                "flops_per_byte": model.intensity(variant, tokens),
                "speedup_over_f32": model.speedup(variant, baseline, tokens),
                "speedup_over_torch": {
                    peer.name: model.speedup(variant, peer, tokens) for peer in model.variants if peer.family == "torch"
                },
            }
            for tokens, timing in variant.timings.items()
        ]
        return {
            "name": variant.name,
            "family": variant.family,
            "bytes": variant.bytes,
            "timings": timings,
            "error_rms": variant.error.rms,
            "error_rms_worst_layer": variant.error.worst_rms,
            "error_max": variant.error.largest,
            "error_layers": [asdict(layer) for layer in variant.error.layers],
            "perplexity": variant.perplexity,
            "cosine_min": variant.cosine,
            "active_fraction": 1.0 if variant.active is None else variant.active,
            "note": variant.note,
        }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
