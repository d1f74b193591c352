"""Training modules of trees: the same numbers as the oracle, gradients, losses, and what is exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from fff_support import oracle, random_weights, tokens
from reference import fff as reference

torch = pytest.importorskip("torch")

from fastffn.torch import FFF, AllNodeFFF, auxiliary_loss, balance_loss, hardening_loss, mixture  # noqa: E402

ACTIVATIONS = ("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small gain nothing from more, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def module_of(weights: ff.FffWeights, **options: Any) -> Any:
    """In float64, so that the oracle's numbers can be expected."""
    kind = FFF if weights.form == "leaf" else AllNodeFFF
    return kind.from_weights(weights, dtype=torch.float64, **options)


def wide(x: Any) -> Any:
    return torch.from_numpy(np.asarray(x, np.float64))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_hard_decisions_are_the_oracles(form: str, activation: str) -> None:
    weights = random_weights(form, trees=2, activation=activation, thresholds=True, master=4 if form == "leaf" else 0)
    x = tokens(50)
    y, way = oracle(weights, x)
    module = module_of(weights).eval()
    with torch.no_grad():
        np.testing.assert_allclose(module(wide(x)).numpy(), y, atol=1e-6)  # relu2's squares: f32 constants like mix
        leaf, margin = module.route(wide(x))
    np.testing.assert_array_equal(leaf.numpy(), way.leaf)
    np.testing.assert_allclose(margin.numpy(), way.smallest_margin, atol=1e-12)


@pytest.mark.parametrize("trees", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_soft_decisions_are_the_oracles(depth: int, trees: int) -> None:
    weights = random_weights(trees=trees, depth=depth, thresholds=True)
    x = tokens(20)
    module = module_of(weights).train()
    w = weights
    y, share = reference.leaf_form_soft(
        x, w.nodes, w.w_up, w.w_down, w.node_biases, w.thresholds, w.b_up, w.b_down, depth=depth, activation="gelu"
    )
    np.testing.assert_allclose(module(wide(x)).detach().numpy(), y, atol=1e-12)
    p = reference.soft_probabilities(x, w.nodes, w.node_biases, w.thresholds)
    np.testing.assert_allclose(mixture(wide(p), depth).numpy(), share, atol=1e-14)
    assert float(module.hardening_loss.detach()) == pytest.approx(reference.hardening_loss(p))
    hard = reference.descend(x, w.nodes, w.node_biases, w.thresholds, depth=depth, tie="ge").leaf
    assert float(module.balance_loss.detach()) == pytest.approx(reference.balance_loss(share, hard))


@pytest.mark.parametrize("depth", [0, 3])
def test_masked_and_visited_nodes_agree(depth: int) -> None:
    weights = random_weights("nodes", trees=3, depth=depth, thresholds=True)
    module, x = module_of(weights), wide(tokens(40))
    np.testing.assert_allclose(
        module(x, masked=True).detach().numpy(), module(x, masked=False).detach().numpy(), atol=1e-12
    )


def test_gradients_of_the_leaf_form() -> None:
    torch.manual_seed(0)
    module = FFF(3, 2, 2, depth=2, trees=2, activation="silu", master_width=2, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]
    assert {"node_weight", "node_bias", "w_up", "b_up", "w_down", "b_down", "master_up", "mix"} <= set(names)

    def call(x: Any, *parameters: Any) -> Any:
        y = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
        return y, module.hardening_loss, module.balance_loss

    assert torch.autograd.gradcheck(call, (x, *(p.detach().clone().requires_grad_() for p in module.parameters())))


def test_gradients_of_the_all_node_form() -> None:
    torch.manual_seed(0)
    module = AllNodeFFF(3, 2, depth=2, trees=2, activation="gelu", dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x: Any, *parameters: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    # Decisions carry no gradient: far from a tie the numeric one agrees.
    assert float(module.route(x)[1].min().detach()) > 1e-3
    assert torch.autograd.gradcheck(call, (x, *(p.detach().clone().requires_grad_() for p in module.parameters())))


def test_hard_training_moves_leaves_and_not_nodes() -> None:
    module = module_of(random_weights(trees=2)).train()
    module(wide(tokens(30)), hard=True).square().sum().backward()
    assert module.node_weight.grad is None and module.w_up.grad.abs().sum() > 0


def test_masked_training_moves_only_visited_nodes() -> None:
    weights = random_weights("nodes", depth=4)
    module, x = module_of(weights).train(), tokens(5)
    module(wide(x)).square().sum().backward()
    visited = np.zeros(31, bool)
    visited[oracle(weights, x)[1].path.ravel()] = True
    assert 0 < visited.sum() < 31
    np.testing.assert_array_equal((module.w_out.grad.abs().sum(-1) > 0).numpy()[0], visited)


def test_region_leak() -> None:
    weights = random_weights(depth=2)
    sure = ff.FffWeights(
        nodes=weights.nodes * 1e6, node_biases=weights.node_biases, w_up=weights.w_up, w_down=weights.w_down
    )  # fmt: skip
    x = wide(tokens(2000))
    module = module_of(sure, region_leak=0.25).train()
    module(x)
    turned = module.decisions.round() != (module.logits(x) >= 0)
    assert 0.22 < float(turned.double().mean()) < 0.28
    module.eval()
    module(x, hard=False)
    assert not (module.decisions.round() != (module.logits(x) >= 0)).any(), "only in training"


def test_losses() -> None:
    assert float(hardening_loss(torch.tensor([0.5]))) == pytest.approx(np.log(2))
    assert float(hardening_loss(torch.zeros(0))) == 0
    weights = torch.eye(4)[[0, 0, 1, 1]][:, None]
    assert float(balance_loss(weights, torch.tensor([[0], [0], [1], [1]]))) == pytest.approx(2)
    model = torch.nn.Sequential(FFF(4, 2, depth=2), torch.nn.GELU(), FFF(4, 2, depth=1))
    with pytest.raises(ValueError, match="no FFF that ran a soft forward"):
        auxiliary_loss(model)
    model(torch.randn(8, 4))
    total = auxiliary_loss(model, hardening=2, balance=0.5)
    parts = [2 * model[i].hardening_loss + 0.5 * model[i].balance_loss for i in (0, 2)]
    assert float(total.detach()) == pytest.approx(float(sum(parts).detach()))


def test_hardening_brings_hard_and_soft_together() -> None:
    gaps = []
    for strength in (0.0, 20.0):
        torch.manual_seed(0)
        x = torch.randn(400, 4)
        target = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        module = FFF(4, 4, 4, depth=2)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
        for step in range(100):
            loss = torch.nn.functional.cross_entropy(module(x), target)
            loss = loss + auxiliary_loss(module, hardening=strength * step / 100, balance=0.3 * (step < 30))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            hard, soft = module(x), module(x, hard=False)
        gaps.append(float((hard.softmax(-1) - soft.softmax(-1)).abs().mean()))
        assert float((soft.argmax(-1) == target).float().mean()) > 0.85
    assert gaps[1] < gaps[0] / 2, gaps
    ours = ff.pack_fff(module.export())(x)
    sure = module.route(x)[1].min(dim=1).values > 1e-4
    np.testing.assert_allclose(ours[sure].numpy(), hard[sure].numpy(), atol=1e-3)


def test_balanced_thresholds_even_the_load() -> None:
    weights = random_weights("nodes", trees=2, depth=4)
    module, x = module_of(weights), tokens(512)
    before = ff.stats_of_leaves(module.route(wide(x))[0], 4)
    module.balance_thresholds(wide(x))
    after = ff.stats_of_leaves(module.route(wide(x))[0], 4)
    assert before.max_over_mean.min() > 1.5 and after.max_over_mean.max() < 1.1
    exported = module.export()
    assert exported.thresholds is not None
    np.testing.assert_array_equal(oracle(exported, x)[1].leaf.shape, (512, 2))


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("bias", [True, False])
def test_export_and_back(form: str, bias: bool) -> None:
    weights = random_weights(form, trees=2, bias=bias, thresholds=True, master=3 if form == "leaf" else 0)
    back = (FFF if form == "leaf" else AllNodeFFF).from_weights(weights).export()
    for name in ("nodes", "node_biases", "thresholds", "w_up", "w_down", "b_up", "b_down", "w_out"):
        expected, found = getattr(weights, name), getattr(back, name)
        assert (expected is None) == (found is None), name
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
    assert (back.activation, back.tie, back.depth) == (weights.activation, weights.tie, weights.depth)
    if weights.master is not None:
        assert back.master is not None and back.master.mix == pytest.approx(0.7)
        np.testing.assert_array_equal(back.master.w_down, weights.master.w_down)


def test_state_dict_round_trip() -> None:
    module = FFF(6, 3, 5, depth=2, trees=2, master_width=2)
    other = FFF(6, 3, 5, depth=2, trees=2, master_width=2)
    other.load_state_dict(module.state_dict())
    x = torch.randn(7, 6)
    assert torch.equal(module.eval()(x), other.eval()(x))


def test_shapes_and_forced_leaves() -> None:
    module = module_of(random_weights(trees=2)).eval()
    x = wide(tokens(12))
    assert module(x.reshape(3, 4, 24)).shape == (3, 4, 20)
    leaf, _ = module.route(x)
    assert torch.equal(module(x, leaf=leaf), module(x))
    assert not torch.equal(module(x, leaf=(leaf + 1) % 8), module(x))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("FFF: depth is -1, expected at least 0", lambda: FFF(4, 2, depth=-1)),
        ("FFF: leaf_width is 0", lambda: FFF(4, 0, depth=1)),
        ("FFF: region_leak is 2", lambda: FFF(4, 2, depth=1, region_leak=2)),
        ("FFF: activation is 'tanh'", lambda: FFF(4, 2, depth=1, activation="tanh")),
        ("FFF: tie is 'up'", lambda: FFF(4, 2, depth=1, tie="up")),
        (r"FFF: x has shape \(3, 5\), expected \(..., 4\)", lambda: FFF(4, 2, depth=1)(torch.zeros(3, 5))),
        (
            r"FFF: threshold has shape \(3,\), expected \(1, 1\)",
            lambda: FFF(4, 2, depth=1).set_thresholds(torch.zeros(3)),
        ),
        ("AllNodeFFF: trees is 0", lambda: AllNodeFFF(4, depth=1, trees=0)),
        (r"AllNodeFFF: x has shape \(3, 5\)", lambda: AllNodeFFF(4, depth=1)(torch.zeros(3, 5))),
        ("FFF: the weights are those of the all-node form", lambda: FFF.from_weights(random_weights("nodes"))),
        ("AllNodeFFF: expected weights of the all-node form", lambda: AllNodeFFF.from_weights(random_weights())),
    ],
)
def test_refusals(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call()
