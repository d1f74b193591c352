"""GPTQ's and AWQ's int4: numbers made by hand, both meanings of zeros, and what packed weights do not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastffn as ff
from fastffn import importers


def numbers(codes: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Codes [rows, 8 n] to int32 [rows, n]: code order[i] of each eight lies in nibble i."""
    eights = codes.reshape(len(codes), -1, 8)[:, :, list(order)].astype(np.uint64)
    return (eights << np.arange(0, 32, 4, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def layer(
    method: str, inputs: int = 256, outputs: int = 24, group: int = 64, offset: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """Tensors under "up.", and the weights [out, in] that they mean."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (outputs, inputs))
    zeros = rng.integers(offset, 16, (outputs, inputs // group))
    scales = rng.uniform(0.01, 0.1, (inputs // group, outputs)).astype(np.float16)
    stored = zeros.T - offset
    if method == "gptq":
        qweight = numbers(np.ascontiguousarray(codes)).T
        tensors = {"qweight": np.ascontiguousarray(qweight), "qzeros": numbers(stored)}
        tensors["g_idx"] = (np.arange(inputs) // group).astype(np.int32)
    else:
        tensors = {"qweight": numbers(codes.T, AWQ_ORDER), "qzeros": numbers(stored, AWQ_ORDER)}
    spread = np.repeat(np.arange(inputs // group), group)
    weights = scales.T.astype(np.float32)[:, spread] * (codes - zeros[:, spread]).astype(np.float32)
    return {f"up.{name}": value for name, value in (tensors | {"scales": scales}).items()}, weights


def test_numbers_by_hand() -> None:
    tensors = {
        "qweight": np.full((32, 8), 0x76543210, np.int32),  # inputs 0 to 7 of each eight: codes 0 to 7
        "qzeros": np.array([[0x10325476]], np.int32),  # outputs 0 to 7: 6, 7, 4, 5, 2, 3, 0, 1
        "scales": np.ones((1, 8), np.float16),
    }
    w = np.asarray(ff.unpack(importers.load_int4(tensors, method="gptq", zeros="plain")))
    assert w.shape == (8, 256) and w[0, :8].tolist() == [-6, -5, -4, -3, -2, -1, 0, 1] and w[7, 8] == -1
    w = np.asarray(ff.unpack(importers.load_int4(tensors, method="gptq", zeros="minus_one")))
    assert w[0, :3].tolist() == [-7, -6, -5]
    awq = {
        "qweight": np.full((32, 1), 0x76543210, np.int32),  # outputs 0, 2, 4, 6, 1, 3, 5, 7: codes 0 to 7
        "qzeros": np.zeros((1, 1), np.int32),
        "scales": np.ones((1, 8), np.float16),
    }
    w = np.asarray(ff.unpack(importers.load_int4(awq, method="awq")))
    assert w[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(("method", "zeros"), [("gptq", "minus_one"), ("gptq", "plain"), ("awq", None)])
@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_weights_are_the_checkpoints(method: str, zeros: str | None, group: int) -> None:
    tensors, weights = layer(method, group=group, offset=1 if zeros == "minus_one" else 0)
    packed = importers.load_int4(tensors, prefix="up.", method=method, zeros=zeros)
    np.testing.assert_array_equal(np.asarray(ff.unpack(packed)), weights)
    assert ff.info(packed).options["group"] == group
    torch = pytest.importorskip("torch")
    as_torch = {name: torch.from_numpy(value) for name, value in tensors.items()}
    np.testing.assert_array_equal(importers.load_int4(as_torch, prefix="up.", method=method, zeros=zeros), packed)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"method": "marlin"}, "method is 'marlin'"),
        ({}, {"method": "gptq"}, "zeros is None, expected 'minus_one' .* or 'plain'"),
        ({}, {"method": "awq", "zeros": "minus_one"}, "AWQ stores them 'plain'"),
        ({"qzeros": None}, {}, "no tensor 'qzeros'"),
        ({"qzeros": np.zeros((4, 4), np.int32)}, {}, "qzeros has shape .4, 4. beside scales .4, 24., expected .4, 3."),
        ({"qweight": np.zeros((32, 23), np.int32)}, {}, "qweight has shape"),
        ({"qweight": np.zeros((32, 24), np.float32)}, {}, "qweight is float32"),
        (
            {"scales": np.ones((16, 24), np.float16), "qzeros": np.zeros((16, 3), np.int32)},
            {},
            "groups of 16, expected 32",
        ),
        ({"g_idx": np.arange(256)[::-1] // 64}, {}, "act-order"),
        ({"qzeros": np.full((4, 3), -1, np.int32)}, {"zeros": "minus_one"}, "zero point of 16 at output 0, group 0"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    tensors, _ = layer("gptq")
    tensors |= {f"up.{name}": value for name, value in change.items()}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    given = options if "method" in options else {"method": "gptq", "zeros": "plain"} | options
    with pytest.raises(ValueError, match=message):
        importers.load_int4(tensors, prefix="up.", **given)
