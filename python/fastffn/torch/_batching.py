"""torch.vmap over tokens: the operators take any leading dimensions, so a batched dimension is one more of these."""

from __future__ import annotations

from typing import Any

import torch

from . import _ops  # noqa: F401  (it defines them)
from ._library import LIBRARY


def _batched(name: str, tokens: tuple[int, ...]) -> None:
    """Registers the rule of an operator whose arguments at `tokens` have a row per token; the others may not be batched."""
    operator = getattr(torch.ops.fastffn, name)

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        moved = list(arguments)
        for i, dim in enumerate(in_dims):
            if i in tokens and moved[i] is not None:
                given = moved[i]
                if dim is None:
                    moved[i] = given.unsqueeze(0).expand(info.batch_size, *given.shape)
                else:
                    # A dimension of rows must be there, and come before the features.
                    moved[i] = given.movedim(dim, 0)
            elif any(d is not None for d in (dim if isinstance(dim, (list, tuple)) else [dim])):
                raise ValueError(f"{name}: torch.vmap may batch the tokens only, not argument {i}, a weight or a bias")
        result = operator(*moved)
        return result, (0, 0) if isinstance(result, tuple) else 0

    torch.library.register_vmap(f"fastffn::{name}", rule, lib=LIBRARY)


_batched("linear", (0,))
_batched("router_logits", (0,))
_batched("ffn", (0,))
_batched("hadamard", (0,))
_batched("moe", (0, 1, 2))
_batched("fff", (0, 7))
_batched("route_topk", (0,))
