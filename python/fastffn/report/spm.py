"""SentencePiece BPE with scores, the tokenizer of Llama 1 and 2, TinyLlama and Mistral, from GGUF metadata.

Spaces become "▁", one is put in front, and the neighbouring pair whose union scores highest is merged until none is in
the vocabulary; characters that no token covers fall back to one token per byte (Kudo and Richardson 2018,
arXiv:1808.06226).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from typing import Any

from .errors import FileFormatError

_SPACE = "\u2581"
# GGUF's token types.
_CONTROL, _BYTE = 3, 6


class SpmTokenizer:
    """``encode(text)`` → token ids, ``decode(ids)`` → text."""

    def __init__(
        self, tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], bos: int | None, prefix: bool = True
    ) -> None:
        self.tokens = list(tokens)
        self.bos = bos
        self._prefix = prefix
        self._types = [int(kind) for kind in types]
        self._scores = [float(score) for score in scores]
        # Control tokens are written out as text like any other word: a text cannot smuggle them in.
        usable = [(i, token) for i, token in enumerate(self.tokens) if self._types[i] not in (_CONTROL, _BYTE)]
        self._ids = {token: i for i, token in reversed(usable)}
        self._bytes = {int(token[3:-1], 16): i for i, token in enumerate(self.tokens) if self._types[i] == _BYTE}
        if len(self._bytes) != 256:
            raise FileFormatError(f"GGUF tokenizer 'llama' has {len(self._bytes)} byte tokens, expected 256")

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any]) -> SpmTokenizer:
        """From the ``tokenizer.ggml.*`` keys of a GGUF file."""
        try:
            tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
            types = metadata["tokenizer.ggml.token_type"]
        except KeyError as error:
            raise FileFormatError(f"the GGUF file has no key {error.args[0]}") from error
        if not len(tokens) == len(scores) == len(types):
            raise FileFormatError(f"GGUF: {len(tokens)} tokens, {len(scores)} scores and {len(types)} token types")
        bos = (
            metadata.get("tokenizer.ggml.bos_token_id", 1) if metadata.get("tokenizer.ggml.add_bos_token", 1) else None
        )
        return cls(tokens, scores, types, bos, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))

    def encode(self, text: str) -> list[int]:
        """Token ids, with the beginning-of-sequence token in front where the model was trained with it."""
        ids = [] if self.bos is None else [self.bos]
        if not text:
            return ids
        # Runs of line breaks are merged apart: no token of these vocabularies holds both a line break and anything else.
        for part in re.findall("\n+|[^\n]+", (" " * self._prefix + text).replace(" ", _SPACE)):
            for symbol in merge_symbols(list(part), self._cost):
                if symbol in self._ids:
                    ids.append(self._ids[symbol])
                else:
                    ids.extend(self._bytes[byte] for byte in symbol.encode("utf-8", "surrogatepass"))
        return ids

    def _cost(self, left: str, right: str) -> float | None:
        index = self._ids.get(left + right)
        return None if index is None else -self._scores[index]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, without control tokens and without the space that encode puts in front."""
        out = bytearray()
        for index in ids:
            if self._types[index] == _BYTE:
                out.append(int(self.tokens[index][3:-1], 16))
            elif self._types[index] != _CONTROL:
                out += self.tokens[index].replace(_SPACE, " ").encode("utf-8", "surrogateescape")
        text = out.decode("utf-8", "replace")
        return text[1:] if self._prefix and text.startswith(" ") else text


def merge_symbols(symbols: list[str], cost: Callable[[str, str], float | None]) -> list[str]:
    """The symbols left when no two neighbours may be merged: the least cost first, leftmost among equals."""
    following = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, str]] = []

    def offer(left: int) -> None:
        if left >= 0 and following[left] < len(symbols):
            right = symbols[following[left]]
            price = cost(symbols[left], right)
            if price is not None:
                heapq.heappush(queue, (price, left, symbols[left] + right))

    for index in range(len(symbols) - 1):
        offer(index)
    while queue:
        _, left, union = heapq.heappop(queue)
        right = following[left] if symbols[left] else len(symbols)
        if right >= len(symbols) or symbols[left] + symbols[right] != union:
            continue  # one of the two has been merged since
        symbols[left], symbols[right] = union, ""
        following[left] = following[right]
        if following[right] < len(symbols):
            before[following[right]] = left
        offer(before[left])
        offer(left)
    return [symbol for symbol in symbols if symbol]
