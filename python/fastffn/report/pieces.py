"""SentencePiece BPE from a tokenizer.json: Llama 1 and 2, Mistral, Gemma, Phi-3, TinyLlama in Hugging Face's form.

Characters (spaces as "▁") are merged in the order of the file's merges; what no token covers becomes one token per byte.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .errors import FileFormatError, UnsupportedModelError
from .spm import merge_symbols

_SPACE = "\u2581"


class PieceTokenizer:
    """``encode(text)`` → token ids, with the token in front that the model was trained with."""

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: dict[tuple[str, str], int],
        bos: int | None,
        prefix: bool,
        unknown: int | None,
    ) -> None:
        self.bos = bos
        self._ids = vocabulary
        self._merges = merges
        self._prefix = prefix
        self._unknown = unknown

    @classmethod
    def from_json(cls, path: str | Path) -> PieceTokenizer:
        """From a tokenizer.json whose model is BPE with byte fallback."""
        path = Path(path)
        try:
            data = json.loads(path.read_text("utf-8"))
            model = data["model"]
            vocabulary = {str(token): int(index) for token, index in model["vocab"].items()}
            pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
            merges = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
            prefix = _prefixes(data.get("normalizer")) or _prefixes(data.get("pre_tokenizer"))
            special = {token["content"]: int(token["id"]) for token in data.get("added_tokens", [])}
            bos = first_and_last(data.get("post_processor"), {**vocabulary, **special})[0]
            unknown = vocabulary.get(model.get("unk_token") or "")
        except FileFormatError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path.name} cannot be read as a tokenizer: {error!r}") from error
        return cls(vocabulary, merges, bos, prefix, unknown)

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ids = [] if self.bos is None else [self.bos]
        # Runs of line breaks apart, for speed: no token holds both a line break and anything else.
        for part in re.findall("\n+|[^\n]+", (" " * self._prefix + text).replace(" ", _SPACE)):
            for symbol in merge_symbols(list(part), self._cost):
                ids.extend(self._ids_of(symbol))
        return ids

    def _cost(self, left: str, right: str) -> float | None:
        return self._merges.get((left, right))

    def _ids_of(self, symbol: str) -> list[int]:
        if symbol in self._ids:
            return [self._ids[symbol]]
        found = [self._ids.get(f"<0x{byte:02X}>", self._unknown) for byte in symbol.encode("utf-8", "surrogatepass")]
        if None in found:
            raise FileFormatError(f"tokenizer: its vocabulary has neither {symbol!r} nor its bytes")
        return [index for index in found if index is not None]


def _prefixes(step: dict[str, Any] | None) -> bool:
    """Whether a normalizer or pre-tokenizer puts a space in front; refuses what would change more than spaces."""
    if step is None:
        return False
    kind = step["type"]
    if kind == "Sequence":
        # All of them, not up to the first that does: each may be one to refuse.
        found = [_prefixes(part) for part in step.get("normalizers") or step.get("pretokenizers") or []]
        return any(found)
    if kind == "Prepend" and step["prepend"] == _SPACE:
        return True
    if kind == "Metaspace" and step.get("replacement", _SPACE) == _SPACE:
        return bool(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never")
    if kind in ("Replace", "Split") and step["pattern"] == {"String": " "}:  # Gemma splits where no space is left
        return False
    raise UnsupportedModelError(f"tokenizer.json: {json.dumps(step)[:200]} is not supported")


def first_and_last(post: dict[str, Any] | None, ids: dict[str, int]) -> tuple[int | None, int | None]:
    """The tokens that a tokenizer.json's post_processor puts before and behind a text, if any."""
    if post is None:
        return None, None
    if post["type"] == "Sequence":
        found = [first_and_last(step, ids) for step in post["processors"]]
        firsts, lasts = ([pair[i] for pair in found if pair[i] is not None] for i in (0, 1))
        return (firsts or [None])[0], (lasts or [None])[0]
    if post["type"] in ("RobertaProcessing", "BertProcessing"):
        return int(post["cls"][1]), int(post["sep"][1])
    if post["type"] != "TemplateProcessing":
        return None, None
    ends = [ids[part["SpecialToken"]["id"]] if "SpecialToken" in part else None for part in post["single"]]
    return (ends or [None])[0], (ends or [None])[-1]


class BracketedTokenizer:
    """A tokenizer for encoders: its ids between a first and a last token, cut to `max_tokens`."""

    def __init__(self, inner: Any, first: int, last: int, max_tokens: int) -> None:
        self._inner, self._first, self._last, self._most = inner, first, last, max_tokens

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return [self._first, *self._inner.encode(text)[: self._most - 2], self._last]
