"""Byte-level BPE: the tokenizer of GPT-2, SmolLM, Llama 3 and Qwen, from GGUF metadata or a tokenizer.json.

Text is cut into words by regular expressions, each word's UTF-8 bytes are written as printable characters, and the
neighbouring pair that was merged first in training is merged until none is left (Sennrich et al. 2016,
arXiv:1508.07909; the bytes as in GPT-2, Radford et al. 2019).
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import FileFormatError, UnsupportedModelError
from .unicode_regex import split

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LLAMA3_PATTERN = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GGUF's names of pre-tokenizers → the patterns applied one after the other.
PRE_TOKENIZERS = {
    "default": (GPT2_PATTERN,),
    "gpt-2": (GPT2_PATTERN,),
    "smollm": (r"\p{N}", GPT2_PATTERN),  # every digit by itself
    "llama-bpe": (_LLAMA3_PATTERN,),
    "llama3": (_LLAMA3_PATTERN,),
    "llama-v3": (_LLAMA3_PATTERN,),
    "dbrx": (_LLAMA3_PATTERN,),
    "qwen2": (_LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"),),
    "deepseek-r1-qwen": (_LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"),),
    "olmo": (GPT2_PATTERN,),
    **dict.fromkeys(("starcoder", "refact", "command-r", "exaone"), (r"\p{N}", GPT2_PATTERN)),
}
# Those whose models were trained with whole words taken before merges, and with a token in front of every text.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
# GGUF's token types.
_CONTROL, _USER_DEFINED = 3, 4


def byte_alphabet() -> list[str]:
    """Byte → the printable character that stands for it: itself where Latin-1 prints it, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


class BpeTokenizer:
    """``encode(text)`` → token ids, ``decode(ids)`` → text: lossless where the vocabulary has all 256 bytes.

    Some leave out control bytes that text never holds; `unknown`, where given, stands for those.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[tuple[str, str]],
        patterns: Sequence[str],
        special: dict[str, int] | None = None,
        bos: int | None = None,
        unknown: int | None = None,
        whole_words: bool = False,
        compose: bool = False,
    ) -> None:
        self.tokens = list(tokens)
        self.special = dict(special or {})
        self.bos = bos  # put before a text by those models that were trained so; else None
        self.unknown = unknown
        self._whole_words = whole_words  # a word that is a token is that token, whatever the merges say
        self._compose = compose  # Unicode's NFC first
        self._patterns = tuple(patterns)
        self._ids = {token: index for index, token in reversed(list(enumerate(self.tokens)))}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._alphabet = byte_alphabet()
        self._bytes = {character: byte for byte, character in enumerate(self._alphabet)}
        self._special_ids = set(self.special.values())
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any]) -> BpeTokenizer:
        """From the ``tokenizer.ggml.*`` keys of a GGUF file."""
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise UnsupportedModelError(
                f"GGUF tokenizer model {model!r} is not supported; 'gpt2' (byte-level BPE) and 'llama' are"
            )
        pre = metadata.get("tokenizer.ggml.pre", "default")
        if pre not in PRE_TOKENIZERS:
            known = ", ".join(PRE_TOKENIZERS)
            raise UnsupportedModelError(f"GGUF pre-tokenizer {pre!r} is not supported; this reader knows {known}")
        try:
            tokens = metadata["tokenizer.ggml.tokens"]
            merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
        except KeyError as error:
            raise FileFormatError(f"the GGUF file has no key {error.args[0]}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise FileFormatError("the GGUF file's merges are damaged: not all are two pieces") from error
        types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
        if len(types) != len(tokens):
            raise FileFormatError(f"the GGUF file has {len(tokens)} tokens but {len(types)} token types")
        special = {
            token: i
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        }
        # Files of Llama 3 from before that key existed mean "yes".
        begins = metadata.get("tokenizer.ggml.add_bos_token", pre in _LLAMA3)
        bos = metadata.get("tokenizer.ggml.bos_token_id", special.get("<|begin_of_text|>")) if begins else None
        unknown = metadata.get("tokenizer.ggml.unknown_token_id")
        return cls(tokens, merges, PRE_TOKENIZERS[pre], special, bos, unknown, whole_words=pre in _LLAMA3)

    @classmethod
    def from_json(cls, path: str | Path) -> BpeTokenizer:
        """From a Hugging Face tokenizer.json whose model is byte-level BPE."""
        path = Path(path)
        try:
            data = json.loads(path.read_text("utf-8"))
            model = data["model"]
            if model["type"] != "BPE" or model.get("byte_fallback"):
                kind = "BPE with byte fallback" if model.get("byte_fallback") else model["type"]
                raise UnsupportedModelError(f"{path.name}: tokenizer model {kind} is not supported; byte-level BPE is")
            vocabulary: dict[str, int] = model["vocab"]
            special = {token["content"]: int(token["id"]) for token in data.get("added_tokens", [])}
            size = 1 + max([*vocabulary.values(), *special.values()])
            tokens = [""] * size
            for token, index in [*vocabulary.items(), *special.items()]:
                tokens[index] = token
            merges = [_pair(merge) for merge in model["merges"]]
            patterns = _json_patterns(data.get("pre_tokenizer"))
            unknown = vocabulary.get(model.get("unk_token") or "")
            bos = _json_bos(data.get("post_processor"), special)
            normalizer = (data.get("normalizer") or {"type": None})["type"]
            if normalizer not in (None, "NFC"):
                raise UnsupportedModelError(f"{path.name}: normalizer {normalizer} is not supported; NFC is")
        except FileFormatError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path.name} cannot be read as a tokenizer: {error!r}") from error
        whole_words = bool(model.get("ignore_merges"))
        return cls(tokens, merges, patterns, special, bos, unknown, whole_words, normalizer == "NFC")

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Token ids. With `parse_special`, special tokens written out in the text become theirs; else plain text."""
        ids: list[int] = [] if self.bos is None else [self.bos]
        parts = [text]
        if parse_special and self.special:
            longest_first = sorted(self.special, key=len, reverse=True)
            parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        for part in parts:
            if parse_special and part in self.special:
                ids.append(self.special[part])
            else:
                ids.extend(self._encode_plain(part))
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        words = [unicodedata.normalize("NFC", text) if self._compose else text]
        for pattern in self._patterns:
            words = [piece for word in words for piece in split(pattern, word)]
        ids: list[int] = []
        for word in words:
            known = self._cache.get(word)
            if known is None:
                known = self._cache[word] = self._encode_word(word)
            ids.extend(known)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        parts = [self._alphabet[byte] for byte in word.encode("utf-8", "surrogatepass")]
        if self._whole_words and "".join(parts) in self._ids:
            parts = ["".join(parts)]
        while len(parts) > 1:
            ranked = [(self._ranks.get(pair), i) for i, pair in enumerate(itertools.pairwise(parts))]
            candidates = [(rank, i) for rank, i in ranked if rank is not None]
            if not candidates:
                break
            _, at = min(candidates)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids = [self._ids.get(part, self.unknown) for part in parts]
        if None in ids:
            missing = parts[ids.index(None)]
            raise FileFormatError(f"tokenizer: its vocabulary has no token {missing!r}, which {word!r} needs")
        return [index for index in ids if index is not None]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens as they are written, bytes that are no UTF-8 as U+FFFD."""
        out = bytearray()
        for index in ids:
            token = self.tokens[index]
            if index in self._special_ids:
                out += token.encode("utf-8")
            else:
                out += bytes(self._bytes[character] for character in token)
        return out.decode("utf-8", "replace")


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge, written "a b" or as a list of two."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _json_patterns(pre: dict[str, Any] | None) -> list[str]:
    """The patterns of a tokenizer.json's pre_tokenizer."""
    if pre is None:
        raise FileFormatError("tokenizer.json has no pre_tokenizer; byte-level BPE needs one")
    kind = pre["type"]
    if kind == "Sequence":
        return [pattern for step in pre["pretokenizers"] for pattern in _json_patterns(step)]
    if kind == "ByteLevel" and not pre.get("add_prefix_space"):
        return [GPT2_PATTERN] if pre.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if pre.get("individual_digits") else r"\p{N}+"]
    if kind == "Split" and pre.get("behavior") == "Isolated" and "Regex" in pre["pattern"] and not pre.get("invert"):
        return [_spell_out_case(pre["pattern"]["Regex"])]
    raise UnsupportedModelError(f"tokenizer.json: pre_tokenizer {json.dumps(pre)[:200]} is not supported")


def _json_bos(post: dict[str, Any] | None, special: dict[str, int]) -> int | None:
    """The token that a tokenizer.json's post_processor puts before a text, if any."""
    if post is None:
        return None
    if post["type"] == "Sequence":
        found = [_json_bos(step, special) for step in post["processors"]]
        return next((bos for bos in found if bos is not None), None)
    first = post.get("single", [{}])[0] if post["type"] == "TemplateProcessing" else {}
    return special[first["SpecialToken"]["id"]] if "SpecialToken" in first else None


def _spell_out_case(pattern: str) -> str:
    """The one case-insensitive group in use, without the flag: \\p{L} next to it must not change meaning."""
    return pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS)
