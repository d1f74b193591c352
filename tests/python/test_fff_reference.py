"""The oracle of trees itself: values by hand, and agreement of forms that must agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reference import fff


def trees(seed=0, count=2, depth=3, d_model=5, d_out=4, width=3):
    rng = np.random.default_rng(seed)
    leaves = 2**depth
    return {
        "x": rng.standard_normal((9, d_model)),
        "nodes": rng.standard_normal((count, leaves - 1, d_model)),
        "w_up": rng.standard_normal((count, leaves, width, d_model)),
        "w_down": rng.standard_normal((count, leaves, d_out, width)),
        "biases": rng.standard_normal((count, leaves - 1)),
        "b_up": rng.standard_normal((count, leaves, width)),
        "b_down": rng.standard_normal((count, leaves, d_out)),
    }


def test_leaf_form_by_hand():
    # One node: x0 - 1 >= 0 goes to leaf 1, which doubles x1 and adds 10; leaf 0 negates x1.
    nodes, biases = np.array([[[1.0, 0]]]), np.array([[-1.0]])
    w_up, w_down = np.array([[[[0.0, -1]], [[0, 2]]]]), np.ones((1, 2, 1, 1))
    b_down = np.array([[[0.0], [10]]])
    x = np.array([[0.0, 3], [1, 3], [5, -1]])
    y, way = fff.leaf_form(x, nodes, w_up, w_down, biases, b_down=b_down, depth=1, activation="identity")
    np.testing.assert_array_equal(y, [[-3], [16], [8]])
    np.testing.assert_array_equal(way.leaf, [[0], [1], [1]])
    np.testing.assert_array_equal(way.margin[:, 0, 0], [-1, 0, 4])
    assert fff.leaf_form(x, nodes, w_up, w_down, biases, depth=1, activation="identity", tie="gt")[1].leaf[1, 0] == 0


def test_all_node_by_hand():
    # Root z = x0, left child z = 2·x0 + 1, right child z = x0 - 5; rows of the output 1, 10, 100.
    nodes, biases = np.array([[[1.0], [2], [1]]]), np.array([[0.0, 1, -5]])
    w_out = np.array([[[1.0], [10], [100]]])
    y, way = fff.all_node(np.array([[3.0], [0], [-1]]), nodes, w_out, biases, depth=1, activation="identity")
    np.testing.assert_array_equal(y, [[3 - 200], [0 + 10], [-1 - 10]])
    np.testing.assert_array_equal(way.path[:, 0], [[0, 2], [0, 1], [0, 1]])


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize(("tie", "leaf"), [("ge", 1), ("gt", 0)])
def test_ties(zero, tie, leaf):
    way = fff.descend(np.array([[zero]]), np.array([[[1.0]]]), depth=1, tie=tie)
    assert way.leaf[0, 0] == leaf and way.smallest_margin[0, 0] == 0


@pytest.mark.parametrize("tie", fff.TIE_RULES)
def test_nan_goes_left(tie):
    assert fff.descend(np.array([[math.nan]]), np.array([[[1.0], [1], [1]]]), depth=2, tie=tie).leaf[0, 0] == 0


def test_thresholds_move_decisions_but_not_values():
    parts = trees()
    x, nodes = parts["x"], parts["nodes"]
    w_out = np.random.default_rng(1).standard_normal((2, 7, 4))
    far = np.full((2, 7), 1e9)
    y, way = fff.all_node(x, nodes, w_out, thresholds=far, depth=2)
    assert (way.leaf == 0).all()
    forced, _ = fff.all_node(x, nodes, w_out, depth=2, leaf=np.zeros((9, 2), int))
    np.testing.assert_array_equal(y, forced)
    assert (fff.all_node(x, nodes, w_out, thresholds=-far, depth=2)[1].leaf == 3).all()


@pytest.mark.parametrize("tie", fff.TIE_RULES)
def test_visited_nodes_are_the_masked_ones(tie):
    parts = trees(depth=4)
    w_out = np.random.default_rng(1).standard_normal((2, 15, 4))
    thresholds = np.random.default_rng(2).standard_normal((2, 15))
    arguments = (parts["x"], parts["nodes"], w_out, parts["biases"], thresholds)
    y, _ = fff.all_node(*arguments, depth=3, tie=tie)
    np.testing.assert_allclose(y, fff.all_node_masked(*arguments, depth=3, tie=tie), atol=1e-12)


def test_soft_becomes_hard_as_nodes_grow():
    parts = trees()
    parts["nodes"], parts["biases"] = parts["nodes"] * 1e6, parts["biases"] * 1e6
    hard, way = fff.leaf_form(**parts, depth=3)
    soft, weights = fff.leaf_form_soft(**parts, depth=3)
    np.testing.assert_allclose(soft, hard, atol=1e-12)
    np.testing.assert_array_equal(weights.argmax(axis=-1), way.leaf)


def test_mixture_is_a_distribution_and_leaks_turn_it():
    parts = trees()
    p = fff.soft_probabilities(parts["x"], parts["nodes"], parts["biases"])
    weights = fff.mixture(p, 3)
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    leak = np.zeros(p.shape, bool)
    leak[..., 0] = True
    root = p[..., :1]
    leaked = fff.mixture(p, 3, leak)
    np.testing.assert_allclose(leaked[..., :4], weights[..., :4] * root / (1 - root))
    np.testing.assert_allclose(leaked[..., 4:], weights[..., 4:] * (1 - root) / root)


def test_forced_leaves_give_their_paths():
    parts = trees()
    leaf = np.tile(np.arange(8), (2, 1)).T
    way = fff.descend(parts["x"][:8], parts["nodes"], depth=3, tie="ge", leaf=leaf)
    np.testing.assert_array_equal(way.leaf, leaf)
    np.testing.assert_array_equal(way.path[5, 0], [0, 2, 5])
    for number in range(8):
        path, right = fff.path_of_leaf(number, 3)
        np.testing.assert_array_equal(way.path[number, 0], path)
        np.testing.assert_array_equal(way.right[number, 0], right)


def test_depth_zero():
    parts = trees(depth=0)
    y, way = fff.leaf_form(**parts, depth=0)
    assert way.smallest_margin.min() == np.inf and (way.leaf == 0).all()
    np.testing.assert_allclose(fff.leaf_form_soft(**parts, depth=0)[0], y)


def test_master_and_losses_by_hand():
    y = fff.with_master(np.array([[8.0]]), np.array([[1.0]]), 0.0, np.array([[2.0]]), np.array([[1.0]]))
    np.testing.assert_array_equal(y, [[5.0]])  # σ(0) = ½ of 8 and of 2
    assert fff.with_master(np.array([[8.0]]), np.array([[1.0]]), None, np.array([[2.0]]), np.array([[1.0]]))[0, 0] == 10
    assert fff.hardening_loss(np.array([0.5])) == pytest.approx(math.log(2))
    assert fff.hardening_loss(np.array([0.0, 1])) < 2e-5
    even = np.full((4, 1, 2), 0.5)
    assert fff.balance_loss(even, np.array([[0], [1], [0], [1]])) == pytest.approx(1)
    assert fff.balance_loss(np.eye(2)[[0, 0]][:, None], np.array([[0], [0]])) == pytest.approx(2)
