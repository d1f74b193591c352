"""Data for methods that need to see some: a model run over a text that no quality is measured on.

Pruning, factorising and splitting into experts all choose by what a layer's inputs look like. The text of the
perplexities (prose.txt) must not take part in that choice, so this one is another, on other subjects, written for it.

A conversion is one walk through the model, in the order of its layers (Frantar and Alistarh 2023, arXiv:2301.00774):

    kept = {}

    def convert(index, layer, x):       # x: what the layers before, already converted, hand to this one
        kept[index] = my_method(layer, x)
        return kept[index].run(x)       # what the next layer will see

    calibration.walk(convert)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np

from .arrays import F32
from .layers import FfnFunction, FfnLayer, numpy_ffn
from .open_model import EmbeddingModel, LanguageModel

# Tokens at most; the text that comes along has about 3500. A chunk is as long as those of the perplexity.
TOKENS = 4096
CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Calibration:
    """One model with the calibration text. `layers`: how many feed-forward layers; `tokens`: rows that each sees."""

    label: str
    layers: int
    tokens: int
    language: bool
    _run: Callable[[FfnFunction, Callable[[], None] | None], Any]

    def walk(self, ffn: FfnFunction, step: Callable[[], None] | None = None) -> None:
        """Runs the model with `ffn(index, layer, x [..., d_model]) -> y` in place of every feed-forward layer.

        x is f32 and its rows are all tokens of the text; `step` is called after each layer.
        """
        self._run(ffn, step)

    @cached_property
    def inputs(self) -> list[F32]:
        """Every layer's inputs [tokens, d_model] in the original model, for methods that convert layers on their own.

        Walks once and stays in memory: 4 bytes times layers, tokens and d_model.
        """
        seen: list[F32] = []

        def capture(index: int, layer: FfnLayer, x: F32) -> F32:
            seen.append(np.array(x.reshape(-1, x.shape[-1])))
            return numpy_ffn(layer, x)

        self.walk(capture)
        return seen


def calibration_text() -> str:
    """The text that comes with the report for this purpose."""
    return resources.files(__package__).joinpath("calibration.txt").read_text("utf-8")


def calibrate_on(opened: LanguageModel | EmbeddingModel, tokens: int = TOKENS) -> Calibration:
    """The calibration text as this model reads it; `tokens` limits how much of it."""
    # Here and not above: run.py imports this module through variants.py.
    from .run import chunks_of, sentences_of

    text = calibration_text()
    if isinstance(opened, LanguageModel):
        model = opened.model
        chunks = chunks_of(opened.tokenizer.encode(text), tokens, min(CHUNK_TOKENS, model.config.context))
        return Calibration(
            opened.label,
            model.config.layers,
            int(chunks.size),
            True,
            lambda ffn, step: model.hidden(chunks, ffn, step=step),
        )
    encoder = opened.model
    sentences = [opened.tokenizer.encode(sentence) for sentence in sentences_of(text, tokens // 64)]
    return Calibration(
        opened.label,
        encoder.config.layers,
        sum(map(len, sentences)),
        False,
        lambda ffn, step: encoder.embed(sentences, ffn, step=step),
    )
