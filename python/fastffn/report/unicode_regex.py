r"""Pre-tokenizer patterns for Python's `re`, which has no ``\p{...}`` classes.

Tokenizers state their patterns with ``\p{L}``, ``\p{N}`` and a Unicode ``\s``; `translate` replaces those with ranges
counted out from `unicodedata`, so the pattern means here what it means in the tokenizer's own engine.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache

from .errors import UnsupportedModelError

# Unicode's White_Space property; Python's own \s also takes the control characters 0x1c-0x1f.
_SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"


def _escape(code: int) -> str:
    return f"\\U{code:08x}"


@lru_cache(maxsize=1)
def _categories() -> dict[str, str]:
    """General category ("Lu", and its first letter "L") → the inside of a character class. About 0.3 s, once."""
    ranges: dict[str, list[list[int]]] = {}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        for key in (category, category[0]):
            runs = ranges.setdefault(key, [])
            if runs and runs[-1][1] == code - 1:
                runs[-1][1] = code
            else:
                runs.append([code, code])
    return {
        key: "".join(_escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in runs)
        for key, runs in ranges.items()
    }


def _inside(item: str) -> str:
    r"""What the class item (``\s``, ``\p{L}``) stands for, without brackets."""
    if item == "\\s":
        return _SPACES
    name = item[3:-1] if item[2] == "{" else item[2]
    if name not in _categories():
        raise UnsupportedModelError(f"tokenizer: the pattern uses {item}, which this reader does not know")
    return _categories()[name]


_ITEM = re.compile(r"\\[pP]\{\w+\}|\\[pP]\w|\\[sS]|\\.|\[\^?|\]|.", re.DOTALL)


def translate(pattern: str) -> str:
    r"""Rewrites ``\p{..}``, ``\P{..}``, ``\s`` and ``\S``, inside and outside of brackets, for Python's `re`."""
    out = []
    bracket = False
    for item in _ITEM.findall(pattern):
        kind = item[:2]
        if kind in ("\\p", "\\s"):
            out.append(_inside(item) if bracket else f"[{_inside(item)}]")
        elif kind in ("\\P", "\\S"):
            if bracket:
                raise UnsupportedModelError(
                    f"tokenizer: the pattern uses {item} inside brackets, which is not supported"
                )
            positive = item.lower() if kind == "\\S" else "\\p" + item[2:]
            out.append(f"[^{_inside(positive)}]")
        elif item in ("[", "[^") and not bracket:
            bracket = True
            out.append(item)
        elif item == "]" and bracket:
            bracket = False
            out.append(item)
        elif bracket and item in ("[", "[^"):
            out.append("".join("\\" + character for character in item))  # a plain sign there; `re` would warn
        else:
            out.append(item)
    return "".join(out)


@lru_cache(maxsize=16)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`translate`, compiled."""
    try:
        return re.compile(translate(pattern))
    except re.error as error:
        raise UnsupportedModelError(f"tokenizer: cannot use the pattern {pattern!r}: {error}") from error


def split(pattern: str, text: str) -> list[str]:
    """Text cut into the pattern's matches and what lies between them; nothing is lost."""
    pieces = []
    end = 0
    for match in compile_pattern(pattern).finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        if match.end() > match.start():
            pieces.append(match.group())
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    return pieces
