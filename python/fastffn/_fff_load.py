"""Published containers of trained fast feedforward trees → `FffWeights`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastffn._fff_weights import F32, FffMaster, FffWeights

# Counters of the packages, which inference does not need.
_COUNTERS = {"node_usage", "leaf_usage", "f"}
_MASTER = {"magic_w1", "magic_b1", "magic_w2", "magic_b2", "k"}


def load_fastfeedforward(
    state: Mapping[str, Any], *, use_b2: bool, activation: str = "relu", prefix: str = ""
) -> FffWeights:
    """The leaf form from a ``state_dict`` of ``fastfeedforward.FFF`` (0.2.1), or of eFFF's class with its master leaf.

    The package's evaluation leaves out the output biases of the leaves, `b2s`, which its training adds. So say which you
    want: with ``use_b2=True`` the layer is the one that was trained (the paper's), with ``use_b2=False`` it gives what
    ``FFF.eval()`` of that package gives. eFFF's evaluation does add them.

    Args:
        state: name → array of any kind: node_weights (2^d - 1, m), node_biases (2^d - 1, 1), w1s (2^d, m, l), b1s (2^d, l),
            w2s (2^d, l, o), b2s (2^d, o), depth; eFFF's magic_w1 (1, m, w), magic_b1, magic_w2 (1, w, o), magic_b2, k where
            they are.
        use_b2: whether the leaves add b2s.
        activation: the class keeps it outside of the state; ReLU is its default.
        prefix: of the layer's names within a larger state_dict, such as "encoder.0.fff.".

    Raises:
        ValueError: names that are missing or unknown; shapes that do not belong together.
    """
    operation = "load_fastfeedforward"
    names = {"node_weights", "node_biases", "w1s", "b1s", "w2s", "b2s"}
    found = _below(state, prefix)
    masters = _MASTER & found.keys()
    _expect_names(operation, found, names | (_MASTER if masters else set()), {"depth"} | _COUNTERS, prefix)
    arrays = {name: _f32(found[name]) for name in names | masters}
    nodes, w1s, w2s = arrays["node_weights"], arrays["w1s"], arrays["w2s"]
    if nodes.ndim != 2 or w1s.ndim != 3 or w2s.ndim != 3:
        raise ValueError(
            f"{operation}: node_weights, w1s and w2s have shapes {nodes.shape}, {w1s.shape} and {w2s.shape}, expected "
            "(2^d - 1, d_model), (2^d, d_model, leaf_width) and (2^d, leaf_width, d_out)"
        )
    depth = (nodes.shape[0] + 1).bit_length() - 1
    stated = _f32(found["depth"]) if "depth" in found else None
    if (stated is not None and (stated.size != 1 or stated.item() != depth)) or nodes.shape[0] != 2**depth - 1:
        says = "" if stated is None else f", depth is {stated.tolist()}"
        raise ValueError(f"{operation}: node_weights has shape {nodes.shape}{says}, expected (2^depth - 1, d_model)")
    leaves, d_model = 2**depth, nodes.shape[1]
    width, d_out = w1s.shape[2], w2s.shape[2]
    shapes: dict[str, tuple[int, ...]] = {
        "node_biases": (leaves - 1, 1), "w1s": (leaves, d_model, width), "b1s": (leaves, width),
        "w2s": (leaves, width, d_out), "b2s": (leaves, d_out),
    }  # fmt: skip
    if masters:
        hidden = arrays["magic_w1"].shape[-1] if arrays["magic_w1"].ndim == 3 else -1
        shapes |= {"magic_w1": (1, d_model, hidden), "magic_b1": (1, hidden), "magic_w2": (1, hidden, d_out)}
        shapes |= {"magic_b2": (1, d_out), "k": ()}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"{operation}: {name} has shape {arrays[name].shape}, expected {shape} from node_weights {nodes.shape}, "
                f"w1s {w1s.shape} and w2s {w2s.shape}"
            )
    master = None
    if masters:
        master = FffMaster(
            _transposed(arrays["magic_w1"])[0], _transposed(arrays["magic_w2"])[0], arrays["magic_b1"][0],
            arrays["magic_b2"][0], float(arrays["k"]),
        )  # fmt: skip
    return FffWeights(
        nodes=nodes[None], node_biases=arrays["node_biases"].reshape(1, -1), w_up=_transposed(w1s)[None],
        w_down=_transposed(w2s)[None], b_up=arrays["b1s"][None], b_down=arrays["b2s"][None] if use_b2 else None,
        activation=activation, tie="ge", master=master,
    )  # fmt: skip


def load_ultrafastbert(
    state: Mapping[str, Any],
    *,
    trees: int | None = None,
    depth: int | None = None,
    levels: int | None = None,
    activation: str = "gelu",
    prefix: str = "",
) -> FffWeights:
    """The all-node form from a ``state_dict`` of UltraFastBERT's FFF layer: K trees of depth D, "K×D".

    The shapes leave open how many trees there are, so say `trees`, or how deep they are. Mind the names: this project's
    model code counts decisions, ``depth`` = D = 11 for "1x11", while its CPU benchmark calls the number of nodes on the
    way, ``levels`` = D + 1 = 12, depth as well.

    Args:
        state: name → array of any kind: linear_in.weight (K·N, m), linear_in.bias (K·N) where there is one,
            linear_out.weight (o, K·N); N = 2^(D+1) - 1. Output rows are strided columns there and are transposed here.
        trees: K.
        depth: D, or levels: D + 1.
        activation: the class keeps it outside of the state; GELU is its default.
        prefix: of the layer's names within a larger state_dict, such as "encoder.layers.0.ffn.".

    Raises:
        ValueError: none of trees, depth and levels is given, or they do not agree with the shapes; missing or unknown names.
    """
    operation = "load_ultrafastbert"
    found = _below(state, prefix)
    _expect_names(operation, found, {"linear_in.weight", "linear_out.weight"}, {"linear_in.bias"}, prefix)
    w_in, w_out = _f32(found["linear_in.weight"]), _f32(found["linear_out.weight"])
    if w_in.ndim != 2 or w_out.ndim != 2 or w_in.shape[0] != w_out.shape[1]:
        raise ValueError(
            f"{operation}: linear_in.weight and linear_out.weight have shapes {w_in.shape} and {w_out.shape}, expected "
            "(trees · nodes, d_model) and (d_out, trees · nodes)"
        )
    rows = w_in.shape[0]
    count = _tree_count(operation, rows, trees, depth, levels)
    bias = _f32(found["linear_in.bias"]) if "linear_in.bias" in found else None
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"{operation}: linear_in.bias has shape {bias.shape}, expected {(rows,)}")
    return FffWeights(
        nodes=w_in.reshape(count, rows // count, -1),
        node_biases=None if bias is None else bias.reshape(count, -1),
        w_out=_transposed(w_out).reshape(count, rows // count, -1),
        activation=activation,
        tie="gt",
    )


def _tree_count(operation: str, rows: int, trees: int | None, depth: int | None, levels: int | None) -> int:
    """How many trees share the rows."""
    if depth is not None and levels is not None and levels != depth + 1:
        raise ValueError(f"{operation}: depth is {depth} and levels is {levels}, expected levels = depth + 1")
    if levels is None and depth is not None:
        levels = depth + 1
    if trees is None and levels is None:
        raise ValueError(
            f"{operation}: linear_in.weight has {rows} rows; say how they are shared: trees, depth or levels"
        )
    if trees is None and levels is not None and levels > 0 and rows % (2**levels - 1) == 0:
        trees = rows // (2**levels - 1)
    nodes = rows // trees if trees is not None and trees > 0 else 0
    shared = trees is not None and nodes > 0 and trees * nodes == rows and nodes & (nodes + 1) == 0
    if trees is None or not shared or (levels is not None and nodes != 2**levels - 1):
        told = ", ".join(
            f"{name} {value}" for name, value in (("trees", trees), ("levels", levels)) if value is not None
        )
        raise ValueError(
            f"{operation}: linear_in.weight has {rows} rows, expected trees · (2^levels - 1) with {told}; "
            "levels = depth + 1"
        )
    return trees


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _expect_names(operation: str, found: dict[str, Any], needed: set[str], other: set[str], prefix: str) -> None:
    missing, unknown = sorted(needed - found.keys()), sorted(found.keys() - needed - other)
    if missing or unknown:
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has the unknown {', '.join(unknown[:8])}{'…' if len(unknown) > 8 else ''}"] if unknown else []
        where = f" below prefix {prefix!r}" if prefix else ""
        raise ValueError(f"{operation}: the state{where} {' and '.join(problems)}")


def _f32(array: Any) -> F32:
    """Any kind of array as contiguous f32 NumPy, on the CPU."""
    if hasattr(array, "detach"):  # torch: NumPy knows neither its gradients nor its bf16
        array = array.detach().cpu().float().numpy()
    return np.array(array, np.float32, order="C")


def _transposed(array: F32) -> F32:
    """The last two dimensions exchanged, as contiguous memory."""
    return np.ascontiguousarray(array.swapaxes(-1, -2))
