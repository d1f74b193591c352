"""From a path to a model that runs: which reader, which runner, which tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastffn._files.gguf import GgufFile
from fastffn._files.safetensors import SafetensorsModel

from .bert import BertConfig, BertModel
from .bpe import BpeTokenizer
from .errors import FileFormatError, ReportError
from .llama import LlamaConfig, LlamaModel
from .spm import SpmTokenizer
from .wordpiece import WordPieceTokenizer


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
    tokenizer: WordPieceTokenizer


def open_model(path: str | Path, label: str | None = None) -> LanguageModel | EmbeddingModel:
    """Opens a GGUF file, a safetensors file (or its index, or the folder of one) with the JSON files beside it."""
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
        raise ReportError(f"--model: the folder {path} has no model.safetensors")
    if not path.exists():
        raise ReportError(f"--model: there is no file {path}")
    return path


def _open_gguf(path: Path, label: str) -> LanguageModel:
    file = GgufFile(path)
    config = LlamaConfig.from_gguf(file.metadata)
    tokenizer: Tokenizer
    if file.metadata.get("tokenizer.ggml.model") == "llama":
        tokenizer = SpmTokenizer.from_gguf(file.metadata)
    else:
        tokenizer = BpeTokenizer.from_gguf(file.metadata)
    return LanguageModel(label, LlamaModel(file, config), tokenizer)


def _open_safetensors(path: Path, label: str) -> LanguageModel | EmbeddingModel:
    config = _beside(path, "config.json")
    weights = SafetensorsModel(path)
    if config.get("model_type") == "bert":
        bert = BertConfig.from_json(config)
        tokenizer = WordPieceTokenizer.from_folder(path.parent, max_tokens=min(256, bert.context))
        return EmbeddingModel(label, BertModel(weights, bert), tokenizer)
    llama = LlamaConfig.from_json(config)
    model = LlamaModel(weights, llama, config.get("rope_scaling") or config.get("rope_parameters"))
    if not (path.parent / "tokenizer.json").exists():
        raise ReportError(f"--model: {path.name} needs tokenizer.json beside it")
    return LanguageModel(label, model, BpeTokenizer.from_json(path.parent / "tokenizer.json"))


def _beside(path: Path, name: str) -> dict[str, Any]:
    file = path.parent / name
    if not file.exists():
        raise ReportError(f"--model: {path.name} needs {name} beside it")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{name} is not a JSON object")
    return found
