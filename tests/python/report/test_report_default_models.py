"""The two default models: facts about them that only a right tokenizer, reader and runner together give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastffn.report.open_model import EmbeddingModel, LanguageModel, open_model
from fastffn.report.run import chunks_of, min_cosine, sentences_of, shipped_text
from fastffn.report.variants import format_variant

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> LanguageModel:
    opened = open_model(smollm2_path)
    assert isinstance(opened, LanguageModel)
    return opened


@pytest.fixture(scope="module")
def minilm(minilm_path: Path) -> EmbeddingModel:
    opened = open_model(minilm_path)
    assert isinstance(opened, EmbeddingModel)
    return opened


def test_smollm2_answers_in_english(smollm2: LanguageModel) -> None:
    tokenizer = smollm2.tokenizer
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(question, parse_special=True)  # type: ignore[call-arg]
    begin = len(ids)
    for _ in range(8):
        hidden = smollm2.model.hidden(np.array([ids]))
        ids.append(int(smollm2.model.logits(hidden[0, -1:])[0].argmax()))
    answer = tokenizer.decode(ids[begin:])  # type: ignore[attr-defined]
    assert answer.startswith("The capital of France is Paris.")


def test_smollm2_perplexity_is_that_of_a_working_model(smollm2: LanguageModel) -> None:
    known = "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their"
    known_ids = np.array([smollm2.tokenizer.encode(known)])
    assert np.exp(smollm2.model.nll(known_ids).mean()) < 5
    ids = smollm2.tokenizer.encode(shipped_text())
    assert 1500 <= len(ids) <= 2500
    chunks = chunks_of(ids, 256, 256)
    reference = float(np.exp(smollm2.model.nll(chunks).mean()))
    assert 10 < reference < 60
    for name, bound in (("f32", 1e-4), ("bf16", 0.01), ("int8", 0.05)):
        found = float(np.exp(smollm2.model.nll(chunks, format_variant(name).as_ffn()).mean()))
        assert abs(found / reference - 1) < bound, name


def test_minilm_gives_its_published_similarities(minilm: EmbeddingModel) -> None:
    sentences = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    vectors = minilm.model.embed([minilm.tokenizer.encode(sentence) for sentence in sentences])
    similar = vectors @ vectors.T
    assert similar[0, 1] == pytest.approx(0.7553, abs=2e-4)  # the model's documentation states both
    assert similar[0, 2] == pytest.approx(-0.1050, abs=2e-4)


def test_minilm_embeddings_agree_in_bf16(minilm: EmbeddingModel) -> None:
    sentences = [minilm.tokenizer.encode(sentence) for sentence in sentences_of(shipped_text(), 24)]
    original = minilm.model.embed(sentences)
    for name, bound in (("f32", 0.999999), ("f16", 0.99999), ("bf16", 0.9999), ("int8", 0.98)):
        assert min_cosine(original, minilm.model.embed(sentences, format_variant(name).as_ffn())) >= bound, name
