"""How modules are told in which format their weights are packed, and plain weights made into packed ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import fastffn as ff

from ._device_weights import tensor, weight

PARTS = ("up", "down", "gate")


class Format(NamedTuple):
    """A format with its options, as :func:`fastffn.pack` takes them."""

    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    return int(text) if text.lstrip("-").isdigit() else text


def parse_format(given: Any, operation: str) -> Format:
    """A name, a name with options after colons ("ternary:scale=row:group=64"), or a pair (name, options)."""
    if isinstance(given, Format):
        return given
    options: dict[str, Any] = {}
    if isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[1], dict):
        given, options = given[0], dict(given[1])
    if not isinstance(given, str):
        raise TypeError(
            f"{operation}: format is {given!r}, expected a name such as 'bf16', 'ternary:scale=row', or (name, options)"
        )
    name, *pairs = given.split(":")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ValueError(f"{operation}: format is {given!r}, expected name:option=value after the colon")
        options[key] = _value(value)
    if name != "lowrank" and name not in ff.formats():
        raise ValueError(f"{operation}: format is {name!r}, expected one of {', '.join(ff.formats())}, lowrank")
    return Format(name, options)


def parse_formats(given: Any, operation: str) -> dict[str, Format]:
    """One format for all parts of a layer, or a mapping {"up": …, "down": …, "gate": …}; the gate's default is up's."""
    if not isinstance(given, dict):
        one = parse_format(given, operation)
        return dict.fromkeys(PARTS, one)
    unknown = set(given) - set(PARTS)
    if unknown or not {"up", "down"} <= set(given):
        raise ValueError(f"{operation}: format has the parts {sorted(given)}, expected up, down and perhaps gate")
    parts = {name: parse_format(value, operation) for name, value in given.items()}
    parts.setdefault("gate", parts["up"])
    return parts


def is_pair(w: Any) -> bool:
    """Whether w is a pair of factors (u, v) rather than one weight."""
    return not isinstance(w, (torch.Tensor, ff.DeviceWeight)) and (
        isinstance(w, (tuple, list)) or (hasattr(w, "u") and hasattr(w, "v"))
    )


def as_tensor(value: Any) -> Any:
    """A torch tensor of any array, sharing its memory where it can; of a weight on a device its bytes."""
    value = tensor(value)
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def pack_weight(w: Any, format: Format) -> Any:
    """A packed uint8 tensor of a weight, a stack of them, or a pair of factors; where they are."""
    if is_pair(w):
        pair = w if isinstance(w, (tuple, list)) else (w.u, w.v)
        return tensor(ff.pack(tuple(as_tensor(part).detach() for part in pair), format.name, **format.options))
    return tensor(ff.pack(as_tensor(w).detach(), format.name, **format.options))


def info(packed: Any) -> ff.PackedInfo:
    """:func:`fastffn.info` of a packed tensor, wherever it is."""
    return ff.info(weight(packed))
