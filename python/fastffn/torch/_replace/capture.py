"""The inputs that feed-forward layers see: caught while the model runs on calibration text, or made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fastffn.torch._replace.sites import Site, layer_at
from fastffn.torch._replace.weights import ExpertWeights, Weights


class _Enough(Exception):
    """Every layer has its rows."""


class Rows:
    """Arguments of one layer's calls, the first rows of each batch's share: x, or x, ids and weights of experts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.parts: list[tuple[Any, ...]] = []
        self.count = 0

    def add(self, arguments: tuple[Any, ...], take: int) -> None:
        """Evenly spread rows of a call, at most `take`."""
        flat = [a.detach().reshape(-1, a.shape[-1]) for a in arguments]
        rows = flat[0].shape[0]
        count = min(take, self.limit - self.count, rows)
        if count <= 0 or any(a.shape[0] != rows for a in flat):
            return
        chosen = torch.arange(count) * rows // count
        self.parts.append(tuple(a[chosen].clone() for a in flat))
        self.count += count

    def take(self) -> tuple[Any, ...] | None:
        """All rows in one tensor per argument, kept here no longer; None where there are none."""
        parts, self.parts = self.parts, []
        return tuple(torch.cat(part) for part in zip(*parts)) if parts else None


def batches_of(calibration: Any) -> list[Any]:
    """Calibration as a list of what the model is called with.

    Raises:
        TypeError: no tensor, mapping, or iterable of them.
        ValueError: on another device.
    """
    if isinstance(calibration, (torch.Tensor, Mapping)):
        return batches_of([calibration])
    if isinstance(calibration, Iterable) and not isinstance(calibration, (str, bytes)):
        batches = list(calibration)
        if batches and all(isinstance(batch, (torch.Tensor, Mapping)) for batch in batches):
            for t in tree_leaves([batch if isinstance(batch, torch.Tensor) else dict(batch) for batch in batches]):
                if isinstance(t, torch.Tensor) and t.device.type != "cpu":
                    raise ValueError(f"replace: calibration is on {t.device}, expected the CPU, where the model is")
            return batches
    raise TypeError(
        "replace: calibration is neither a tensor of token ids [batch, tokens], nor a dict of the model's arguments (as a "
        f"tokenizer returns), nor a list of those: {type(calibration).__name__}"
    )


def capture(model: nn.Module, sites: list[Site], batches: list[Any], limit: int) -> dict[str, Rows]:
    """Runs the model on the batches; returns at most `limit` rows per site, evenly from all batches, by the site's name."""
    caught = {site.name: Rows(limit) for site in sites}
    share = -(-limit // len(batches))
    hooks = []

    def hook_of(rows: Rows) -> Any:
        def hook(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = [a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor)]
            rows.add(tuple(given[:3]) if len(given) >= 3 else tuple(given[:1]), share)

        return hook

    training = model.training
    try:
        for site in sites:
            inputs = layer_at(model, site).inputs
            hooks.append(inputs.register_forward_pre_hook(hook_of(caught[site.name]), with_kwargs=True))
        model.eval()
        with torch.no_grad():
            for batch in batches:
                if isinstance(batch, Mapping):
                    model(**batch)
                else:
                    model(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return caught


def made_up(weights: Weights, rows: int, dtype: Any, seed: int) -> tuple[Any, ...]:
    """Normal inputs of variance 1, as behind a norm; for experts also random picks of two (or all), with weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, weights.d_model, generator=generator).to(dtype)
    if not isinstance(weights, ExpertWeights):
        return (x,)
    picks = min(2, weights.experts)
    scores = torch.rand(rows, weights.experts, generator=generator)
    values, ids = torch.topk(torch.softmax(scores, -1), picks)
    return x, ids, (values / values.sum(-1, keepdim=True)).to(dtype)
