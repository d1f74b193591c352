"""WordPiece, BERT's tokenizer: uncased text → words and punctuation → the longest known pieces, left to right.

Devlin et al. 2018 (arXiv:1810.04805); the greedy search is Schuster and Nakajima 2012's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import FileFormatError, UnsupportedModelError

# A longer word is one [UNK], as in BERT.
_MAX_WORD = 100
# Ideographs are words of one character each.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPieceTokenizer:
    """``encode(text)`` → ids with [CLS] in front and [SEP] behind, cut to `max_tokens`."""

    def __init__(self, tokens: Sequence[str], lowercase: bool = True, max_tokens: int = 256) -> None:
        self.tokens = list(tokens)
        self.max_tokens = max_tokens
        self._lowercase = lowercase
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        for needed in ("[UNK]", "[CLS]", "[SEP]"):
            if needed not in self._ids:
                raise FileFormatError(f"WordPiece vocabulary has no token {needed}")

    @classmethod
    def from_folder(cls, folder: str | Path, max_tokens: int = 256) -> WordPieceTokenizer:
        """From the vocab.txt or the tokenizer.json of a model's folder."""
        folder = Path(folder)
        vocab, as_json = folder / "vocab.txt", folder / "tokenizer.json"
        lowercase = True
        tokens: list[str]
        try:
            if as_json.exists():
                data = json.loads(as_json.read_text("utf-8"))
                if data["model"].get("type", "WordPiece") != "WordPiece":
                    raise FileFormatError(f"tokenizer.json holds a {data['model']['type']} model, not WordPiece")
                lowercase = bool((data.get("normalizer") or {}).get("lowercase", True))
                pieces: dict[str, int] = data["model"]["vocab"]
                tokens = sorted(pieces, key=lambda token: pieces[token])
                if [pieces[token] for token in tokens] != list(range(len(tokens))):
                    raise FileFormatError("tokenizer.json: the vocabulary's ids have gaps")
            elif vocab.exists():
                tokens = vocab.read_text("utf-8").rstrip("\n").split("\n")
            else:
                raise UnsupportedModelError("the model has neither vocab.txt nor tokenizer.json beside it")
        except FileFormatError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the WordPiece vocabulary cannot be read: {error!r}") from error
        return cls(tokens, lowercase, max_tokens)

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any], max_tokens: int = 256) -> WordPieceTokenizer:
        """From the ``tokenizer.ggml.*`` keys of a GGUF file, where pieces inside of words are those without a mark."""
        pieces = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(pieces, list):
            raise FileFormatError("the GGUF file has no key tokenizer.ggml.tokens")

        def plain(piece: str) -> str:
            if re.fullmatch(r"\[.+\]", piece):
                return piece
            return piece[1:] if piece.startswith("\u2581") else "##" + piece

        return cls([plain(piece) for piece in pieces], max_tokens=max_tokens)

    def encode(self, text: str) -> list[int]:
        """[CLS] pieces [SEP], at most `max_tokens` of them."""
        ids = [index for word in self._words(text) for index in self._pieces(word)]
        return [self._ids["[CLS]"], *ids[: self.max_tokens - 2], self._ids["[SEP]"]]

    def _words(self, text: str) -> list[str]:
        spaced = []
        for character in text:
            code, category = ord(character), unicodedata.category(character)
            if character in "\t\n\r" or category == "Zs":
                spaced.append(" ")
            elif code == 0xFFFD or category in ("Cc", "Cf", "Co", "Cs"):
                continue  # controls, formats and private use; unassigned ones stay, and become [UNK]
            elif any(low <= code <= high for low, high in _IDEOGRAPHS):
                spaced.append(f" {character} ")
            else:
                spaced.append(character)
        text = "".join(spaced)
        if self._lowercase:
            # Accents go with the case, as the model was trained.
            decomposed = unicodedata.normalize("NFD", text)
            text = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
        return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _MAX_WORD:
            return [self._ids["[UNK]"]]
        ids = []
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            for end in range(len(word), begin, -1):
                index = self._ids.get(prefix + word[begin:end])
                if index is not None:
                    break
            else:
                return [self._ids["[UNK]"]]
            ids.append(index)
            begin = end
        return ids


def _is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and every ASCII sign that is neither letter, digit nor space."""
    code = ord(character)
    if code < 128:
        return 33 <= code <= 126 and not character.isalnum()
    return unicodedata.category(character).startswith("P")
