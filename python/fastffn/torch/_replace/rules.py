"""Which rule is whose: names, numbers and predicates of layers → a format, options, a method, or None."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from fastffn.torch._replace.methods import PackFormat
from fastffn.torch._replace.sites import Site


def assign(rules: Any, sites: list[Site]) -> list[Any]:
    """The method of each site, or None for those that stay as they are.

    Raises:
        ValueError: a key that fits no site; an unknown format or option.
        TypeError: a rule of another kind.
    """
    if not _is_table(rules):
        method = method_of(rules)
        return [method] * len(sites)
    if not rules:
        raise ValueError("replace: rules is an empty dict, which would replace nothing")
    table = [(key, _matcher(key, sites), None if rule is None else method_of(rule)) for key, rule in rules.items()]
    for key, fits, _ in table:
        if not any(fits(site) for site in sites):
            shown = ", ".join(site.name for site in sites[:4]) + (", …" if len(sites) > 4 else "")
            raise ValueError(
                f"replace: the rule for {key!r} fits none of the {len(sites)} feed-forward layers: {shown}"
            )
    return [next((method for _, fits, method in table if fits(site)), None) for site in sites]


def _is_table(rules: Any) -> bool:
    """A mapping from layers, rather than one of options: options always say "format" or one of the weights."""
    return isinstance(rules, Mapping) and not any(key in PackFormat.KEYS for key in rules)


def method_of(rule: Any) -> Any:
    """A rule as a method object: something with ``build``."""
    if isinstance(rule, str):
        return PackFormat(rule)
    if isinstance(rule, Mapping):
        return PackFormat.of(rule)
    if callable(getattr(rule, "build", None)) and not isinstance(rule, type):
        return rule
    raise TypeError(
        f"replace: a rule is {type(rule).__name__}, expected a format's name, a dict of options with 'format', a method "
        "such as fastffn.torch.LowRank(ratio=0.5), or a dict from layers to those"
    )


def _matcher(key: Any, sites: list[Site]) -> Callable[[Site], bool]:
    if isinstance(key, bool) or not (isinstance(key, (str, int)) or callable(key)):
        raise TypeError(
            f"replace: a key of rules is {key!r}, expected a pattern such as 'layers.0', a layer's number, or a function of "
            "a site"
        )
    if isinstance(key, int):
        layers = sorted({site.layer for site in sites if site.layer is not None})
        number = key if key >= 0 else (layers[-1] + 1 + key if layers else key)
        return lambda site: site.layer == number
    if isinstance(key, str):
        return lambda site: any(matches(key, name) for name in site.names)
    return lambda site: bool(key(site))


def matches(pattern: str, name: str) -> bool:
    """Whether the dotted parts of a pattern fit consecutive parts of a name: "layers.1" fits model.layers.1.mlp, not
    model.layers.10.mlp. Each part may have * ? [] as file names do; "*" alone fits everything."""
    if pattern == "*":
        return True
    wanted, parts = pattern.split("."), name.split(".")
    return any(
        all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts[begin:], wanted))
        for begin in range(len(parts) - len(wanted) + 1)
    )
