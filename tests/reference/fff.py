"""Fast feedforward trees in float64: every published form, token by token, as the papers and their code write them.

- Leaf form, "fast feedforward network" (Belcak and Wattenhofer 2023, arXiv:2308.14711): a balanced binary tree of depth d
  whose nodes decide and whose 2^d leaves are small FFNs of width l.
- All-node form, UltraFastBERT "K×D" (Belcak and Wattenhofer 2023, arXiv:2311.10770): every node on the way is one neuron,
  and its pre-activation is also its decision; D + 1 nodes are visited.
- Master leaf and load balance, eFFF (Charalampopoulos et al. 2024, arXiv:2405.16836): y = σ(k)·FFF + (1 - σ(k))·master.
- Thresholds, "go right when z > b[n]": used to balance the load without touching what a neuron computes.

Trees are heaps: node n has the children 2n + 1 (left) and 2n + 2 (right). A node's z = w·x + b (b optional) is compared with
its threshold (0 unless given): z above goes right, z below goes left, and equality follows `tie`: right if "ge" (z >= t, the leaf
form's evaluation), left if "gt" (z > t, UltraFastBERT). NaN compares false: left.

Shapes: x [tokens, d_model]; trees K; nodes [K, nodes, d_model]; biases and thresholds [K, nodes].
    leaf form:     nodes = 2^d - 1; w_up [K, 2^d, leaf_width, d_model], w_down [K, 2^d, d_out, leaf_width],
                   b_up [K, 2^d, leaf_width], b_down [K, 2^d, d_out]
    all-node form: nodes = 2^(D+1) - 1; w_out [K, nodes, d_out]
    master leaf:   w_up [width, d_model], w_down [d_out, width], b_up [width], b_down [d_out]
"""

from dataclasses import dataclass

import numpy as np

from .activations import ACTIVATIONS

TIE_RULES = ("ge", "gt")


@dataclass(frozen=True)
class Descent:
    """The way of every token through every tree.

    path [tokens, K, levels]: the nodes visited, in order; z [tokens, K, levels]: their pre-activations;
    margin [tokens, K, levels]: z - threshold, whose sign decides; right [tokens, K, levels]: where the decision went;
    leaf [tokens, K]: the leaf reached, counted from the left (of the all-node form: the node of the last level).
    """

    path: np.ndarray
    z: np.ndarray
    margin: np.ndarray
    right: np.ndarray
    leaf: np.ndarray

    @property
    def smallest_margin(self):
        """[tokens, K]: how close the closest decision was; +inf where there is none."""
        return np.abs(self.margin).min(axis=-1, initial=np.inf)


def sigmoid(x):
    x = np.asarray(x, np.float64)
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def path_of_leaf(leaf, depth):
    """The nodes from the root to (but not) leaf number `leaf` of a tree of this depth, and at each whether right is next."""
    path, right = [], []
    for level in range(depth):
        path.append(2**level - 1 + (leaf >> (depth - level)))
        right.append(bool(leaf >> (depth - level - 1) & 1))
    return path, right


def descend(x, nodes, biases=None, thresholds=None, *, depth, tie, leaf=None):
    """Walks every token down every tree: `depth` decisions, in the nodes of a heap.

    leaf [tokens, K] forces the way (z and margins are still those of the nodes on it).
    """
    assert tie in TIE_RULES
    x, nodes = np.asarray(x, np.float64), np.asarray(nodes, np.float64)
    tokens, trees = x.shape[0], nodes.shape[0]
    path = np.zeros((tokens, trees, depth), np.int64)
    z = np.zeros((tokens, trees, depth))
    margin, right = np.zeros_like(z), np.zeros(z.shape, bool)
    leaves = np.zeros((tokens, trees), np.int64)
    for token in range(tokens):
        for tree in range(trees):
            node = 0
            for level in range(depth):
                with np.errstate(invalid="ignore"):
                    value = nodes[tree, node] @ x[token]
                    value = value if biases is None else value + biases[tree, node]
                    above = value if thresholds is None else value - thresholds[tree, node]
                    # Compared as it is defined, not by the rounded difference.
                    bound = 0.0 if thresholds is None else thresholds[tree, node]
                    go_right = value >= bound if tie == "ge" else value > bound
                if leaf is not None:
                    go_right = leaf[token, tree] >> (depth - level - 1) & 1
                path[token, tree, level], z[token, tree, level] = node, value
                margin[token, tree, level], right[token, tree, level] = above, go_right
                node = 2 * node + 1 + int(go_right)
            leaves[token, tree] = node - (2**depth - 1)
    return Descent(path, z, margin, right, leaves)


def leaf_ffn(x, w_up, w_down, b_up=None, b_down=None, activation="relu"):
    """One leaf, or the master leaf: down(act(up(x))) of x [..., d_model]."""
    hidden = np.asarray(x, np.float64) @ np.asarray(w_up, np.float64).T
    hidden = ACTIVATIONS[activation](hidden if b_up is None else hidden + b_up)
    y = hidden @ np.asarray(w_down, np.float64).T
    return y if b_down is None else y + b_down


def leaf_form(
    x, nodes, w_up, w_down, biases=None, thresholds=None, b_up=None, b_down=None, *, depth, activation="relu",
    tie="ge", leaf=None,
):  # fmt: skip
    """Hard decisions: y[t] = Σ_trees leaf_{tree, leaf(t, tree)}(x[t]). Returns y and the Descent."""
    way = descend(x, nodes, biases, thresholds, depth=depth, tie=tie, leaf=leaf)
    trees = nodes.shape[0]
    y = np.zeros((x.shape[0], w_down.shape[-2]))
    for token in range(x.shape[0]):
        for tree in range(trees):
            n = way.leaf[token, tree]
            y[token] += leaf_ffn(
                x[token],
                w_up[tree, n],
                w_down[tree, n],
                None if b_up is None else b_up[tree, n],
                None if b_down is None else b_down[tree, n],
                activation,
            )
    return y, way


def soft_probabilities(x, nodes, biases=None, thresholds=None):
    """p [tokens, K, nodes] = σ(z - threshold): the probability of going right, at every node."""
    z = np.einsum("td,knd->tkn", np.asarray(x, np.float64), np.asarray(nodes, np.float64))
    z = z if biases is None else z + biases
    return sigmoid(z if thresholds is None else z - thresholds)


def mixture(p, depth, leak=None):
    """[tokens, K, 2^d]: for every leaf the product of p (right) and 1 - p (left) along its path.

    leak [tokens, K, nodes], booleans: where set, p becomes 1 - p (the region leak of training).
    """
    p = p if leak is None else np.where(leak, 1 - p, p)
    weights = np.ones((*p.shape[:2], 2**depth))
    for leaf in range(2**depth):
        for node, right in zip(*path_of_leaf(leaf, depth), strict=True):
            weights[..., leaf] *= p[..., node] if right else 1 - p[..., node]
    return weights


def leaf_form_soft(
    x, nodes, w_up, w_down, biases=None, thresholds=None, b_up=None, b_down=None, *, depth, activation="relu", leak=None
):  # fmt: skip
    """Training: y[t] = Σ_trees Σ_leaves weight(t, tree, leaf) · leaf(x[t]). Returns y and the weights [tokens, K, 2^d]."""
    weights = mixture(soft_probabilities(x, nodes, biases, thresholds), depth, leak)
    y = np.zeros((x.shape[0], w_down.shape[-2]))
    for tree in range(nodes.shape[0]):
        for leaf in range(2**depth):
            y += weights[:, tree, leaf, None] * leaf_ffn(
                x,
                w_up[tree, leaf],
                w_down[tree, leaf],
                None if b_up is None else b_up[tree, leaf],
                None if b_down is None else b_down[tree, leaf],
                activation,
            )
    return y, weights


def all_node(x, nodes, w_out, biases=None, thresholds=None, *, depth, activation="gelu", tie="gt", leaf=None):
    """y[t] = Σ_trees Σ_{visited n} act(z_n) · w_out[n], with depth + 1 nodes visited. Returns y and the Descent.

    The last level's node decides nothing: `path`, `z` and so on have depth + 1 levels, `leaf` is the place of the last
    visited node in the last level.
    """
    decisions = descend(x, nodes, biases, thresholds, depth=depth, tie=tie, leaf=leaf)
    last = decisions.leaf + 2**depth - 1
    tree = np.arange(nodes.shape[0])
    z = np.einsum("td,tkd->tk", np.asarray(x, np.float64), np.asarray(nodes, np.float64)[tree, last])
    z = z if biases is None else z + np.asarray(biases)[tree, last]
    path = np.concatenate([decisions.path, last[..., None]], axis=-1)
    every_z = np.concatenate([decisions.z, z[..., None]], axis=-1)
    y = np.einsum("tkl,tklo->to", ACTIVATIONS[activation](every_z), np.asarray(w_out, np.float64)[tree[:, None], path])
    return y, Descent(path, every_z, decisions.margin, decisions.right, decisions.leaf)


def all_node_masked(x, nodes, w_out, biases=None, thresholds=None, *, depth, activation="gelu", tie="gt"):
    """The same as UltraFastBERT trains it: every node computed, those off the way multiplied by zero."""
    z = np.einsum("td,knd->tkn", np.asarray(x, np.float64), np.asarray(nodes, np.float64))
    z = z if biases is None else z + biases
    bound = 0.0 if thresholds is None else thresholds
    right = z >= bound if tie == "ge" else z > bound
    mask = np.zeros_like(z)
    node = np.zeros(z.shape[:2], np.int64)
    for level in range(depth + 1):
        np.put_along_axis(mask, node[..., None], 1.0, axis=-1)
        if level < depth:
            node = 2 * node + 1 + np.take_along_axis(right, node[..., None], axis=-1)[..., 0]
    return np.einsum("tkn,kno->to", ACTIVATIONS[activation](z) * mask, np.asarray(w_out, np.float64))


def with_master(y, x, mix, w_up, w_down, b_up=None, b_down=None, *, activation="relu"):
    """eFFF: σ(mix)·y + (1 - σ(mix))·master(x), as its code has it (its README states the opposite). mix None: the sum."""
    if mix is None:
        return y + leaf_ffn(x, w_up, w_down, b_up, b_down, activation)
    k = sigmoid(mix)
    return k * y + (1 - k) * leaf_ffn(x, w_up, w_down, b_up, b_down, activation)


def hardening_loss(p):
    """Mean Bernoulli entropy of the decisions, in nats: p is clamped to [1e-6, 1 - 1e-6] as the reference does."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p))) if p.size else 0.0


def balance_loss(weights, hard):
    """2^d · Σ_leaf f·P, averaged over trees: f the hard-routed fraction, P the mean soft weight. 1 where both are even.

    weights [tokens, K, 2^d]: `mixture`; hard [tokens, K]: the leaf that hard decisions reach.
    """
    leaves = weights.shape[-1]
    fraction = (hard[..., None] == np.arange(leaves)).mean(axis=0)
    return float(leaves * (fraction * weights.mean(axis=0)).sum(axis=-1).mean())
