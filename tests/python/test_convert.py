"""Dense → experts: the partition, the assignment behind it, the routers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fastffn as ff
from fastffn.convert import AnalyticRouter, LearnedRouter, MoeLayer, balanced_assignment, cmoe, moefication
from fastffn.convert._assignment import assign
from fastffn.convert._dense import activate, dense_layer
from fastffn.convert._kmeans import balanced_kmeans
from fastffn.convert._moefication import moefication_with_training
from fastffn.convert._router import _gradients, _loss, train_router
from reference import convert as oracle
from reference import ffn as dense_oracle

RNG = np.random.default_rng
NAMES = ("w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate")


def random_layer(gated: bool, biases: bool, d_model: int = 20, d_ff: int = 48, seed: int = 0) -> dict[str, np.ndarray]:
    rng = RNG(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    layer = {"w_up": matrix(d_ff, d_model), "w_down": matrix(d_model, d_ff)}
    if gated:
        layer["w_gate"] = matrix(d_ff, d_model)
    if biases:
        layer |= {"b_up": matrix(d_ff) * 3, "b_down": matrix(d_model) * 3}
        if gated:
            layer["b_gate"] = matrix(d_ff) * 3
    return layer


def inputs(rows: int = 200, d_model: int = 20, seed: int = 1) -> np.ndarray:
    return RNG(seed).standard_normal((rows, d_model)).astype(np.float32)


def convert(method: str, x: np.ndarray, layer: dict[str, np.ndarray], activation: str, **options: int) -> MoeLayer:
    if method == "cmoe":
        return cmoe(x, **layer, activation=activation, **{"experts": 8, "shared": 2, "picks": 3, **options})
    return moefication(x, **layer, activation=activation, **{"experts": 6, "picks": 2, "epochs": 3, **options})


# ---- balanced assignment ----


@pytest.mark.parametrize("seed", range(40))
def test_assignment_costs_the_least_possible(seed: int) -> None:
    rng = RNG(seed)
    sizes = [(2, 2, 2), (3, 3), (1, 4, 1), (0, 3, 2), (6,), (1,) * 6][seed % 6]
    cost = rng.standard_normal((sum(sizes), len(sizes)))
    if seed % 4 == 1:
        cost = np.round(cost)  # ties
    if seed % 4 == 2:
        cost[:, 0] -= 100  # all want the same group
    labels = balanced_assignment(cost, np.array(sizes))
    assert np.bincount(labels, minlength=len(sizes)).tolist() == list(sizes)
    found = cost[np.arange(len(labels)), labels].sum()
    assert found == pytest.approx(oracle.least_cost(cost, sizes), abs=1e-9)


@pytest.mark.parametrize("kind", ["random", "one group", "equal", "clusters"])
def test_large_assignment_is_proved_optimal_by_its_prices(kind: str) -> None:
    rng = RNG(5)
    members, groups = 360, 12
    cost = rng.random((members, groups))
    if kind == "one group":
        cost += np.where(np.arange(groups) == 3, 0, 10)
    if kind == "equal":
        cost[:] = 1
    if kind == "clusters":
        points = rng.standard_normal((members, 5))
        cost = np.square(points[:, None] - points[:groups]).sum(axis=2)
    sizes = np.full(groups, members // groups)
    for prices in (np.zeros(groups), rng.standard_normal(groups)):
        labels, final = assign(cost, sizes, prices)
        assert (np.bincount(labels, minlength=groups) == sizes).all()
        # With prices under which nobody wants to move, no other full assignment can cost less.
        reduced = cost - final
        assert (reduced[np.arange(members), labels] <= reduced.min(axis=1) + 1e-9).all()


def test_assignment_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="7 members cannot fill 2 groups"):
        balanced_assignment(np.zeros((7, 2)))
    with pytest.raises(ValueError, match="finite"):
        balanced_assignment(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="shape"):
        balanced_assignment(np.zeros(4))
    with pytest.raises(ValueError, match=r"sizes \[1, 2\].*add up to 4"):
        balanced_assignment(np.zeros((4, 2)), np.array([1, 2]))
    with pytest.raises(ValueError, match="none negative"):
        balanced_assignment(np.zeros((4, 2)), np.array([5, -1]))


# ---- k-means ----


def test_kmeans_finds_planted_clusters() -> None:
    rng = RNG(0)
    truth = rng.permutation(np.repeat(np.arange(6), 10))
    points = (rng.standard_normal((6, 16))[truth] + 0.05 * rng.standard_normal((60, 16))).astype(np.float32)
    # Seeding is random: the best of a few, as with any k-means.
    found = [balanced_kmeans(points, 6, 20, seed)[0] for seed in range(5)]
    assert any(len({(int(a), int(b)) for a, b in zip(labels, truth)}) == 6 for labels in found)
    labels, centres = balanced_kmeans(points, 6, 20, 0)
    again, _ = balanced_kmeans(points, 6, 20, 0)
    assert (labels == again).all() and np.bincount(labels).tolist() == [10] * 6
    assert centres == pytest.approx(np.stack([points[labels == c].mean(axis=0) for c in range(6)]), abs=1e-6)


def test_kmeans_rounds_lower_the_cost() -> None:
    points = RNG(1).standard_normal((96, 8)).astype(np.float32)

    def cost(rounds: int) -> float:
        labels, centres = balanced_kmeans(points, 8, rounds, 3)
        return float(np.square(points - centres[labels]).sum())

    assert cost(20) < cost(1) < np.square(points - points.mean(axis=0)).sum()


def test_kmeans_with_fewer_points_than_clusters() -> None:
    labels, _ = balanced_kmeans(np.ones((12, 3), np.float32), 4, 5, 0)
    assert np.bincount(labels).tolist() == [3] * 4


# ---- the partition ----


@pytest.mark.parametrize("method", ["cmoe", "moefication"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_every_neuron_is_in_one_place_and_all_experts_give_the_dense_layer(
    method: str, gated: bool, biases: bool, activation: str
) -> None:
    layer, x = random_layer(gated, biases), inputs()
    moe = convert(method, x, layer, activation)
    neurons = np.concatenate([moe.experts.ravel(), moe.shared])
    assert sorted(neurons.tolist()) == list(range(48))
    assert moe.experts.shape == ((6, 6) if method == "cmoe" else (6, 8))
    assert moe.shared.size == (12 if method == "cmoe" else 0)
    assert moe.active_fraction == pytest.approx((12 + 3 * 6) / 48 if method == "cmoe" else 2 / 6)
    h = oracle.hidden(x, layer["w_up"], layer.get("w_gate"), layer.get("b_up"), layer.get("b_gate"), activation)
    everyone = np.tile(np.arange(len(moe.experts)), (len(x), 1))
    y = oracle.split_ffn(h, layer["w_down"], moe.experts, moe.shared, everyone, b_down=layer.get("b_down"))
    expected = dense_oracle.ffn(x, **layer, activation=activation)
    # Only the order of the sums differs.
    assert np.abs(y - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("method", ["cmoe", "moefication"])
def test_same_input_same_result(method: str) -> None:
    layer, x = random_layer(True, True), inputs()
    a, b = (convert(method, x, layer, "silu") for _ in range(2))
    assert (a.experts == b.experts).all() and (a.shared == b.shared).all()
    for name, value in vars(a.router).items():
        assert np.array_equal(value, getattr(b.router, name)), name


def test_the_layer_is_not_written_to() -> None:
    layer, x = random_layer(True, True), inputs()
    copies = {name: array.copy() for name, array in layer.items()}
    for method in ("cmoe", "moefication"):
        moe = convert(method, x, layer, "silu")
        moe.dense.w_up[:] = 0
    assert all((layer[name] == copies[name]).all() for name in layer)


def test_one_expert_and_nearly_all_shared() -> None:
    layer, x = random_layer(False, False), inputs(5)
    one = convert("moefication", x, layer, "relu", experts=1, picks=1)
    assert one.experts.tolist() == [list(range(48))] and one.active_fraction == 1
    most = convert("cmoe", x, layer, "relu", experts=4, shared=3, picks=1)
    assert most.experts.shape == (1, 12) and most.shared.size == 36 and most.active_fraction == 1
    none = convert("cmoe", x, layer, "relu", experts=4, shared=0, picks=2)
    assert none.experts.shape == (4, 12) and none.shared.size == 0


def test_one_calibration_row_is_enough_to_run() -> None:
    layer, x = random_layer(True, False), inputs(1)
    for method in ("cmoe", "moefication"):
        assert sorted(np.concatenate([(m := convert(method, x[0], layer, "silu")).experts.ravel(), m.shared])) == list(
            range(48)
        )


# ---- what the methods look for ----


def planted(
    groups: int = 6, width: int = 8, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """A ReLU layer whose neurons fire in groups, its inputs, which of them belong together, and each row's groups."""
    rng = RNG(seed)
    directions = np.linalg.qr(rng.standard_normal((24, 24)))[0][:groups]
    truth = rng.permutation(np.repeat(np.arange(groups), width))
    w_up = directions[truth] + 0.02 * rng.standard_normal((groups * width, 24))
    on = np.stack([rng.choice(groups, 2, replace=False) for _ in range(600)])
    x = directions[on].sum(axis=1) - 0.7 * directions.sum(axis=0)
    layer = {"w_up": w_up.astype(np.float32), "w_down": rng.standard_normal((24, groups * width)).astype(np.float32)}
    return layer, x.astype(np.float32), truth, on


def test_moefication_finds_groups_and_learns_to_pick_them() -> None:
    layer, x, truth, on = planted()
    moe, training = moefication_with_training(
        x, dense_layer("test", layer["w_up"], layer["w_down"], None, None, None, None, "relu"),
        experts=6, picks=2, rounds=20, epochs=40, seed=1,
    )  # fmt: skip
    of_expert = [set(truth[members].tolist()) for members in moe.experts]
    assert all(len(groups) == 1 for groups in of_expert)
    assert training.losses[training.kept] < 0.8 * training.losses[0]
    assert training.losses[training.kept] == min(training.losses) and len(training.losses) == 41
    assert isinstance(moe.router, LearnedRouter)
    logits = oracle.learned_logits(x, moe.router.w_in, moe.router.w_out)
    picked = np.argsort(-logits, axis=1)[:, :2]
    named = np.array([groups.pop() for groups in of_expert])[picked]
    assert np.mean(np.sort(named, axis=1) == np.sort(on, axis=1)) > 0.98


def test_cmoe_shares_what_always_fires_and_groups_what_fires_together() -> None:
    layer, x, truth, on = planted()
    # Eight more neurons that fire for every token: those are for all.
    always = -np.tile(x.mean(axis=0), (8, 1)) * -30
    layer["w_up"] = np.concatenate([layer["w_up"], always.astype(np.float32)])
    layer["w_down"] = np.concatenate([layer["w_down"], np.ones((24, 8), np.float32)], axis=1)
    moe = cmoe(x, **layer, activation="relu", experts=7, shared=1, picks=2, top=24)
    rates = (oracle.hidden(x, layer["w_up"]) > 0).mean(axis=0)
    assert set(moe.shared.tolist()) == set(np.argsort(-rates, kind="stable")[:8].tolist()) == set(range(48, 56))
    assert isinstance(moe.router, AnalyticRouter)
    of_expert = [set(truth[members].tolist()) for members in moe.experts]
    # The seeds are the most-marked neurons, which may well share a group: purity need not be perfect.
    purity = np.mean([np.bincount(truth[members]).max() / len(members) for members in moe.experts])
    assert purity > 0.6, of_expert
    # The router's neurons are members of their experts, of unit length.
    unit = layer["w_up"] / np.linalg.norm(layer["w_up"], axis=1, keepdims=True)
    for row, members in zip(moe.router.w_up, moe.experts):
        assert np.abs(unit[members] - row).max(axis=1).min() < 1e-6
    assert moe.router.scale == 0 and not moe.router.balance.any() and moe.router.w_gate is None


def test_cmoe_counts_marks_as_written() -> None:
    """Against the definition, neuron by neuron, where no two rates are equal by design of the data."""
    layer, x = random_layer(True, True, seed=4), inputs(500, seed=9)
    moe = cmoe(x, **layer, activation="silu", experts=8, shared=2, picks=3, top=7)
    ones = np.ones((len(x), 1))
    xs = np.concatenate([x, ones], axis=1)
    up = np.concatenate([layer["w_up"], layer["b_up"][:, None]], axis=1)
    gate = np.concatenate([layer["w_gate"], layer["b_gate"][:, None]], axis=1)
    xs, up, gate = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (xs, up, gate))
    h = np.abs(oracle.hidden(xs, up, gate, activation="silu"))
    marks = (h >= np.sort(h, axis=1)[:, -7:-6]).astype(np.int64)
    rates = marks.sum(axis=0)
    order = np.argsort(-rates, kind="stable")
    assert set(moe.shared.tolist()) == set(order[:12].tolist())
    seeds, rest = order[12:18], order[12:]
    distance = np.abs(marks[:, rest, None] - marks[:, None, seeds]).sum(axis=0)
    labels = np.empty(48, np.int64)
    for expert, members in enumerate(moe.experts):
        labels[members] = expert
    found = distance[np.arange(len(rest)), labels[rest]].sum()
    best = distance[np.arange(len(rest)), balanced_assignment(distance)].sum()
    assert found == best
    for expert, members in enumerate(moe.experts):
        spread = np.abs(marks[:, members] - marks[:, members].mean(axis=1, keepdims=True)).sum(axis=0)
        gap = np.abs(up[members, :-1] - moe.router.w_up[expert]).max(axis=1)
        assert spread[gap.argmin()] == pytest.approx(spread.min()) and gap.min() < 1e-6


def test_cmoe_does_not_mark_what_does_not_fire() -> None:
    layer, x = random_layer(False, True, seed=6), inputs(400, seed=3)
    moe = cmoe(x, **layer, activation="relu", experts=8, shared=3, picks=3, top=48)
    fires = (oracle.hidden(x, layer["w_up"], b_up=layer["b_up"]) > 0).sum(axis=0)
    assert len(set(fires.tolist())) > 30
    assert fires[moe.shared].min() >= fires[moe.experts.ravel()].max()


# ---- the learned router ----


def test_router_gradients_are_those_of_the_loss() -> None:
    rng = RNG(2)
    x, targets = rng.standard_normal((9, 5)), rng.random((9, 4))
    weights = [rng.standard_normal((4, 5)), rng.standard_normal((4, 4))]
    for w, gradient in zip(weights, _gradients(x, targets, weights)):
        for index in np.ndindex(w.shape):
            kept = w[index]
            values = []
            for step in (1e-5, -1e-5):
                w[index] = kept + step
                values.append(_loss(x, targets, weights))
            w[index] = kept
            assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_router_keeps_its_best_epoch_and_holds_rows_out() -> None:
    rng = RNG(3)
    x = rng.standard_normal((100, 5)).astype(np.float32)
    noise = rng.random((100, 4)).astype(np.float32)  # nothing to learn: later epochs only fit the training rows
    w_in, w_out, training = train_router(x, noise, 0.1 * np.ones((4, 5), np.float32), 60, 0)
    assert training.kept == int(np.argmin(training.losses)) and len(training.losses) == 61
    order = RNG(0).permutation(100)
    assert _loss(x[order[:10]], noise[order[:10]], [w_in, w_out]) == training.losses[training.kept]
    start, identity, untouched = train_router(x, noise, np.ones((4, 5), np.float32), 0, 0)
    assert (start == 1).all() and (identity == np.eye(4)).all() and untouched.kept == 0


def test_loss_survives_huge_logits() -> None:
    x = np.full((1, 1), 1e4, np.float32)
    assert np.isfinite(_loss(x, np.ones((1, 1), np.float32), [np.ones((1, 1)), np.full((1, 1), 1e30)]))


# ---- activations through the library ----


@pytest.mark.parametrize("activation", ff.activations())
def test_activate_is_the_librarys(activation: str) -> None:
    up, gate = (RNG(seed).standard_normal((7, 45)).astype(np.float32) * 3 for seed in (0, 1))
    eye = ff.pack(np.eye(45, dtype=np.float32), "f32")
    kinds = [gate] if activation == "swiglu_clamped" else [None, gate]
    for g in kinds:
        y = activate(up, g, activation)
        for row in range(7):
            diagonal = ff.pack(np.diag(up[row]), "f32")
            with_gate = None if g is None else ff.pack(np.diag(g[row]), "f32")
            expected = ff.ffn(np.ones((1, 45), np.float32), diagonal, eye, with_gate, activation=activation)
            assert np.array_equal(y[row], expected[0])


# ---- arrays of other kinds, and what is refused ----


@pytest.mark.parametrize("method", ["cmoe", "moefication"])
def test_torch_tensors_too(method: str) -> None:
    torch = pytest.importorskip("torch")
    layer, x = random_layer(True, False), inputs().astype(np.float16).astype(np.float32)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in layer.items()}
    a = convert(method, x, layer, "silu")
    b = convert(method, torch.from_numpy(x).half().reshape(4, 50, 20), tensors, "silu")
    assert (a.experts == b.experts).all()
    c = convert(method, x, {name: t.bfloat16() for name, t in tensors.items()}, "silu")
    assert c.experts.shape == a.experts.shape


@pytest.mark.parametrize("function", [cmoe, moefication])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"activation": "tanh"}, ValueError, "activation 'tanh' is unknown; expected one of identity"),
        ({"experts": 5}, ValueError, "experts is 5, expected a divisor of d_ff = 48"),
        ({"experts": 0}, ValueError, "experts is 0"),
        ({"picks": 0}, ValueError, "picks is 0, expected 1 to"),
        ({"picks": 99}, ValueError, "picks is 99, expected 1 to"),
        ({"x": np.ones((4, 19), np.float32)}, ValueError, r"x has shape \(4, 19\), expected \[..., 20\]"),
        ({"x": np.ones((0, 20), np.float32)}, ValueError, "at least one row"),
        ({"x": np.full((2, 20), np.nan)}, ValueError, "x holds NaN or infinity"),
        ({"x": "words"}, TypeError, "x cannot be read"),
        ({"x": np.ones((2, 20), np.complex64)}, TypeError, "x cannot be read"),
        ({"w_up": np.ones(48)}, ValueError, r"w_up has shape \(48,\), expected \(any, any\)"),
        ({"w_gate": np.ones((47, 20))}, ValueError, r"w_gate has shape \(47, 20\), expected \(48, 20\)"),
        ({"w_down": np.ones((20, 47))}, ValueError, r"w_down has shape \(20, 47\), expected \(any, 48\)"),
        ({"w_down": np.full((20, 48), np.inf)}, ValueError, "w_down holds NaN"),
        ({"b_up": np.ones(20)}, ValueError, r"b_up has shape \(20,\), expected \(48\)"),
        ({"b_down": np.ones(48)}, ValueError, r"b_down has shape \(48,\), expected \(20\)"),
        ({"w_gate": None, "b_gate": np.ones(48)}, ValueError, "b_gate without w_gate"),
    ],
)
def test_bad_arguments(function: object, changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"x": inputs(8), **random_layer(True, False), "activation": "silu"} | changes
    with pytest.raises(error, match=message) as caught:
        function(**arguments)  # type: ignore[operator]
    assert str(caught.value).startswith(function.__name__ + ":")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (cmoe, {"shared": 9}, "shared is 9, expected 0 to 7: one expert at least"),
        (cmoe, {"shared": -1}, "shared is -1"),
        (cmoe, {"shared": 6, "picks": 3}, "picks is 3, expected 1 to 2, the routed experts"),
        (cmoe, {"top": 0}, "top is 0, expected 1 to d_ff = 48"),
        (cmoe, {"top": 49}, "top is 49"),
        (moefication, {"rounds": 0}, "rounds is 0, expected at least 1"),
        (moefication, {"epochs": -1}, "epochs is -1, expected at least 0"),
    ],
)
def test_bad_counts(function: object, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(inputs(8), **random_layer(True, False), activation="silu", **options)  # type: ignore[operator]
