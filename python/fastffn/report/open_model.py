"""From a path to a model that runs: which reader, which runner, which tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastffn._files.gguf import GgufFile
from fastffn._files.safetensors import SafetensorsModel

from .arrays import F64
from .bert import ENCODERS, BertConfig, BertModel
from .bpe import BpeTokenizer
from .errors import FileFormatError, ReportError, UnsupportedModelError
from .ffn_only import FeedForwardModel, open_feed_forward
from .llama import LlamaModel
from .llama_config import LlamaConfig, divisors_of
from .pieces import BracketedTokenizer, PieceTokenizer, first_and_last
from .spm import SpmTokenizer
from .wordpiece import WordPieceTokenizer

_SENTENCE_TOKENS = 256


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""


@dataclass(frozen=True)
class LanguageModel:
    """A Llama-family model and its tokenizer."""

    label: str
    model: LlamaModel
    tokenizer: Tokenizer


@dataclass(frozen=True)
class EmbeddingModel:
    """A BERT encoder and its tokenizer."""

    label: str
    model: BertModel
    tokenizer: Tokenizer


OpenedModel = LanguageModel | EmbeddingModel | FeedForwardModel


def open_model(path: str | Path, label: str | None = None) -> OpenedModel:
    """Opens a GGUF file, a safetensors file (or its index, or the folder of one) with the JSON files beside it.

    A sound file of a model that cannot be run whole gives its feed-forward layers.
    """
    path = _resolve(Path(path))
    if path.suffix == ".gguf":
        return _open_gguf(path, label or path.name)
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        # Nearly every such file has the same name; its folder's tells more.
        named = path.name if not path.name.startswith("model.safetensors") else path.resolve().parent.name
        return _open_safetensors(path, label or named)
    raise ReportError(f"--model: {path.name} is neither a .gguf nor a .safetensors file")


def _resolve(path: Path) -> Path:
    if path.is_dir():
        for name in ("model.safetensors", "model.safetensors.index.json"):
            if (path / name).exists():
                return path / name
        found = sorted([*path.glob("*.gguf"), *path.glob("*.safetensors")])
        if len(found) == 1:
            return found[0]
        raise ReportError(
            f"--model: the folder {path} has no model.safetensors" + (", but several files" * bool(found))
        )
    if not path.exists():
        raise ReportError(f"--model: there is no file {path}")
    return path


def _open_gguf(path: Path, label: str) -> OpenedModel:
    file = GgufFile(path)
    try:
        if file.metadata.get("general.architecture") == "bert":
            bert = BertConfig.from_gguf(file.metadata)
            model = BertModel(file, bert)
            if file.metadata.get("tokenizer.ggml.model") != "bert":
                kind = file.metadata.get("tokenizer.ggml.model")
                raise UnsupportedModelError(f"GGUF tokenizer model {kind!r} is not supported for encoders")
            longest = min(_SENTENCE_TOKENS, bert.context)
            return EmbeddingModel(label, model, WordPieceTokenizer.from_gguf(file.metadata, longest))

        def factors(name: str) -> F64 | None:
            return divisors_of(file.f32(name)) if name in file else None

        config = LlamaConfig.from_gguf(file.metadata, factors)
        tokenizer: Tokenizer
        if file.metadata.get("tokenizer.ggml.model") == "llama":
            tokenizer = SpmTokenizer.from_gguf(file.metadata)
        else:
            tokenizer = BpeTokenizer.from_gguf(file.metadata)
        return LanguageModel(label, LlamaModel(file, config), tokenizer)
    except UnsupportedModelError as error:
        return open_feed_forward(label, file, {}, str(error))


def _open_safetensors(path: Path, label: str) -> OpenedModel:
    weights = SafetensorsModel(path)
    if not (path.parent / "config.json").exists():
        return open_feed_forward(label, weights, {}, f"{path.name} has no config.json beside it")
    config = _read_json(path.parent / "config.json")
    try:
        if config.get("model_type") in ENCODERS:
            bert = BertConfig.from_json(config)
            model = BertModel(weights, bert)
            return EmbeddingModel(label, model, _encoder_tokenizer(path, min(_SENTENCE_TOKENS, bert.context)))
        llama = LlamaModel(weights, LlamaConfig.from_json(config))
        return LanguageModel(label, llama, _tokenizer(path))
    except UnsupportedModelError as error:
        return open_feed_forward(label, weights, config, str(error))


def _encoder_tokenizer(path: Path, most: int) -> Tokenizer:
    file = path.parent / "tokenizer.json"
    if not file.exists() or _kind_of(file) == "WordPiece":
        return WordPieceTokenizer.from_folder(path.parent, max_tokens=most)
    inner = BpeTokenizer.from_json(file)
    first, last = first_and_last(_read_json(file).get("post_processor"), {**inner.special})
    if first is None or last is None:
        raise UnsupportedModelError("tokenizer.json: no post_processor that puts a sentence between two tokens")
    inner.bos = None
    return BracketedTokenizer(inner, first, last, most)


def _tokenizer(path: Path) -> Tokenizer:
    file = path.parent / "tokenizer.json"
    if not file.exists():
        raise UnsupportedModelError(f"{path.name} has no tokenizer.json beside it")
    model = _read_json(file).get("model")
    fallback = isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback")
    read: Callable[[Path], Tokenizer] = PieceTokenizer.from_json if fallback else BpeTokenizer.from_json
    return read(file)


def _kind_of(file: Path) -> str:
    """The kind of a tokenizer.json's model."""
    model = _read_json(file).get("model")
    return str(model.get("type", "WordPiece")) if isinstance(model, dict) else ""


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{file.name} is not a JSON object")
    return found
