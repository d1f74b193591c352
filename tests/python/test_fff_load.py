"""Published containers of trees: what their classes computed, and clear refusals of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from fff_support import oracle

# States and outputs of the published classes: so that these tests need none of them.
VECTORS = json.loads((Path(__file__).parents[1] / "data" / "fff_vectors.json").read_text(encoding="utf-8"))


def state_of(name: str, **changes: Any) -> dict[str, Any]:
    state = {key: np.array(value, np.float32) for key, value in VECTORS[name]["state"].items()}
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


def close(y: Any, expected: Any) -> None:
    np.testing.assert_allclose(y, np.array(expected), rtol=2e-6, atol=2e-6)


def test_fastfeedforward_as_trained() -> None:
    weights = ff.load_fastfeedforward(state_of("fastfeedforward"), use_b2=True)
    assert (weights.form, weights.trees, weights.depth, weights.leaf_width, weights.tie) == ("leaf", 1, 2, 3, "ge")
    x = np.array(VECTORS["fastfeedforward"]["x"], np.float32)
    y, way = oracle(weights, x)
    # Its training sends a tie left, its evaluation right: the first token's.
    assert way.margin[0, 0, 0] == 0 and way.smallest_margin[1:].min() > 1e-3
    close(y[1:], VECTORS["fastfeedforward"]["train_hard"][1:])


def test_fastfeedforward_with_its_evaluations_defect() -> None:
    weights = ff.load_fastfeedforward(state_of("fastfeedforward"), use_b2=False)
    y, _ = oracle(weights, VECTORS["fastfeedforward"]["x"])
    close(y, VECTORS["fastfeedforward"]["eval"])
    assert np.abs(y - np.array(VECTORS["fastfeedforward"]["train_hard"])).max() > 0.1


def test_efff_with_its_master_leaf() -> None:
    weights = ff.load_fastfeedforward(state_of("efff"), use_b2=True)
    assert weights.master is not None and weights.master.w_up.shape == (8, 4) and weights.master.mix == 0.75
    y, _ = oracle(weights, VECTORS["efff"]["x"])
    close(y, VECTORS["efff"]["eval"])


@pytest.mark.parametrize("told", [{"trees": 2}, {"depth": 2}, {"levels": 3}, {"trees": 2, "depth": 2, "levels": 3}])
def test_ultrafastbert(told: dict[str, int]) -> None:
    weights = ff.load_ultrafastbert(state_of("ultrafastbert"), **told)
    assert (weights.form, weights.trees, weights.depth, weights.tie) == ("nodes", 2, 2, "gt")
    assert weights.w_out is not None and weights.w_out.flags.c_contiguous
    y, way = oracle(weights, VECTORS["ultrafastbert"]["x"])
    assert way.margin[0, 1, 0] == 0, "a tie is among the tokens"
    close(y, VECTORS["ultrafastbert"]["y"])


def test_ultrafastbert_without_biases() -> None:
    state = state_of("ultrafastbert")
    zero = ff.load_ultrafastbert({**state, "linear_in.bias": np.zeros(14, np.float32)}, trees=2)
    none = ff.load_ultrafastbert(state_of("ultrafastbert", **{"linear_in.bias": None}), trees=2)
    assert none.node_biases is None
    x = VECTORS["ultrafastbert"]["x"]
    np.testing.assert_array_equal(oracle(zero, x)[0], oracle(none, x)[0])


@pytest.mark.parametrize("name", ["fastfeedforward", "ultrafastbert"])
def test_layer_of_a_larger_model(name: str) -> None:
    state = {f"encoder.0.{key}": value for key, value in state_of(name).items()} | {"head.weight": np.zeros(3)}
    told: dict[str, Any] = {"use_b2": True} if name == "fastfeedforward" else {"trees": 2}
    load = ff.load_fastfeedforward if name == "fastfeedforward" else ff.load_ultrafastbert
    inside, alone = load(state, prefix="encoder.0.", **told), load(state_of(name), **told)
    np.testing.assert_array_equal(inside.nodes, alone.nodes)
    with pytest.raises(ValueError, match="unknown head.weight"):
        load(state_of(name) | {"head.weight": np.zeros(3)}, **told)


WRONG = {
    "lacks w1s": {"w1s": None},
    "lacks k, magic_b1, magic_b2, magic_w2": {"magic_w1": np.zeros((1, 4, 8))},
    r"node_weights has shape \(4, 4\), depth is 2": {"node_weights": np.zeros((4, 4))},
    r"node_weights has shape \(3, 4\), depth is 3": {"depth": np.array(3)},
    r"node_biases has shape \(3,\), expected \(3, 1\)": {"node_biases": np.zeros(3)},
    r"w1s has shape \(4, 3, 4\), expected \(4, 4, 4\)": {"w1s": np.zeros((4, 3, 4))},
    r"w1s has shape \(3, 4, 3\), expected \(4, 4, 3\)": {"w1s": np.zeros((3, 4, 3))},
    r"w2s has shape \(4, 2, 2\), expected \(4, 3, 2\)": {"w2s": np.zeros((4, 2, 2))},
    r"b1s has shape \(4, 1, 3\), expected \(4, 3\)": {"b1s": np.zeros((4, 1, 3))},
    r"b2s has shape \(4, 3\), expected \(4, 2\)": {"b2s": np.zeros((4, 3))},
    r"w1s and w2s have shapes \(3, 4\), \(4, 4\) and": {"w1s": np.zeros((4, 4))},
}


@pytest.mark.parametrize("message", WRONG)
def test_fastfeedforward_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=f"load_fastfeedforward: .*{message}"):
        ff.load_fastfeedforward(state_of("fastfeedforward", **WRONG[message]), use_b2=True)


def test_efff_refuses_a_master_leaf_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"magic_w2 has shape \(1, 7, 2\), expected \(1, 8, 2\)"):
        ff.load_fastfeedforward(state_of("efff", magic_w2=np.zeros((1, 7, 2))), use_b2=True)


@pytest.mark.parametrize(
    ("message", "told", "changes"),
    [
        ("14 rows; say how they are shared", {}, {}),
        (r"14 rows, expected trees · \(2\^levels - 1\) with levels 4", {"levels": 4}, {}),
        (r"14 rows, expected .* with trees 1", {"trees": 1}, {}),
        (r"14 rows, expected .* with trees 3", {"trees": 3}, {}),
        (r"14 rows, expected .* with trees 2, levels 2", {"trees": 2, "depth": 1}, {}),
        ("depth is 2 and levels is 2", {"depth": 2, "levels": 2}, {}),
        (r"shapes \(14, 4\) and \(3, 13\)", {"trees": 2}, {"linear_out.weight": np.zeros((3, 13))}),
        (r"linear_in.bias has shape \(13,\), expected \(14,\)", {"trees": 2}, {"linear_in.bias": np.zeros(13)}),
        ("unknown linear_out.bias", {"trees": 2}, {"linear_out.bias": np.zeros(3)}),
    ],
)
def test_ultrafastbert_refuses(message: str, told: dict[str, int], changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"load_ultrafastbert: .*{message}"):
        ff.load_ultrafastbert(state_of("ultrafastbert", **changes), **told)


def test_weights_refuse_shapes_that_do_not_belong_together() -> None:
    good = ff.load_fastfeedforward(state_of("fastfeedforward"), use_b2=True)
    parts = {name: getattr(good, name) for name in ("nodes", "node_biases", "w_up", "w_down", "b_up", "b_down")}
    for name, shape, message in (
        ("nodes", (1, 4, 4), r"nodes has shape \(1, 4, 4\), expected \(trees, 2\^depth - 1 nodes, d_model\)"),
        ("nodes", (3, 4), r"nodes has shape \(3, 4\), expected \(trees, nodes, d_model\)"),
        ("nodes", (1, 7, 4), r"node_biases has shape \(1, 3\), expected \(1, 7\)"),
        ("w_up", (1, 4, 3, 5), r"w_up has shape \(1, 4, 3, 5\), expected \(1, 4, 3, 4\)"),
        ("w_down", (1, 4, 2, 2), r"w_down has shape \(1, 4, 2, 2\), expected \(1, 4, 2, 3\)"),
        ("b_down", (4, 2), r"b_down has shape \(4, 2\), expected \(1, 4, 2\)"),
        ("thresholds", (3,), r"thresholds has shape \(3,\), expected \(1, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"FffWeights: {message}"):
            ff.FffWeights(**{**parts, name: np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match="expected w_up and w_down"):
        ff.FffWeights(good.nodes)
    with pytest.raises(ValueError, match="tie is 'right', expected 'ge' or 'gt'"):
        ff.FffWeights(**parts, tie="right")
    with pytest.raises(ValueError, match="activation is 'tanh', expected one of identity"):
        ff.load_fastfeedforward(state_of("fastfeedforward"), use_b2=True, activation="tanh")
    with pytest.raises(ValueError, match="b_down belongs to the leaf form"):
        ff.FffWeights(good.nodes, w_out=np.zeros((1, 3, 2), np.float32), b_down=good.b_down)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("use_b2", [True, False])
def test_the_installed_fastfeedforward(depth: int, use_b2: bool) -> None:
    torch, package = pytest.importorskip("torch"), pytest.importorskip("fastfeedforward")
    torch.manual_seed(depth)
    module = package.FFF(12, 5, 7, depth, activation=torch.nn.ReLU())
    x = torch.randn(40, 12)
    weights = ff.load_fastfeedforward(module.state_dict(), use_b2=use_b2)
    with torch.no_grad():
        expected = module.train()(x, use_hard_decisions=True) if use_b2 else module.eval()(x)
    y, way = oracle(weights, x.numpy())
    assert way.smallest_margin.min() > 1e-5
    np.testing.assert_allclose(y, expected.numpy(), atol=2e-5)
    ours = ff.pack_fff(weights, "f32")(x)
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=2e-5)


def test_the_installed_fastfeedforward_without_biases() -> None:
    torch, package = pytest.importorskip("torch"), pytest.importorskip("fastfeedforward")
    module = package.FFF(12, 5, 7, 4, activation=torch.nn.GELU()).eval()
    with torch.no_grad():
        for bias in (module.node_biases, module.b1s, module.b2s):
            bias.zero_()
        x = torch.randn(64, 12)
        expected = module(x)
    for use_b2 in (True, False):
        weights = ff.load_fastfeedforward(module.state_dict(), use_b2=use_b2, activation="gelu")
        np.testing.assert_allclose(ff.pack_fff(weights)(x).numpy(), expected.numpy(), atol=2e-5)
