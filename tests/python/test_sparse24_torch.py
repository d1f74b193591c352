"""Training with masks: gradients against their formulas, masks and flip rates by hand, the schedule, and what is exported."""

from __future__ import annotations

import numpy as np
import pytest

import fastffn as ff
from reference import sparse24 as oracle

torch = pytest.importorskip("torch")
from fastffn.torch import Sparse24Linear, Sparse24Schedule, sparse_layers, sparsify24  # noqa: E402


def layer(rows=8, columns=12, **options):
    torch.manual_seed(0)
    return Sparse24Linear(columns, rows, dtype=torch.float64, **options)


@pytest.mark.parametrize("transposable", [True, False])
def test_forward_and_mask(transposable):
    made = layer(transposable=transposable)
    w = made.weight.detach().numpy()
    expected = oracle.transposable(w) if transposable else oracle.magnitude(w)
    assert np.array_equal(made.mask.numpy(), expected)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    y = made(x)
    want = x.numpy() @ np.where(expected, w, 0).T + made.bias.detach().numpy()
    assert np.allclose(y.detach().numpy(), want, rtol=1e-13, atol=1e-13)
    assert np.array_equal(made.sparse_weight().numpy(), np.where(expected, w, 0))
    made.sparse = False
    assert np.allclose(made(x).detach().numpy(), x.numpy() @ w.T + made.bias.detach().numpy(), rtol=1e-13, atol=1e-13)


def test_gradients():
    """x and bias: the true gradients of the masked layer (by finite differences). weight: dense, straight through, and decay."""
    made = layer(decay=0.03)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))
    upstream = torch.randn(4, 8, dtype=torch.float64)
    made(x).backward(upstream)
    assert torch.allclose(x.grad, upstream @ made.sparse_weight(), rtol=0, atol=1e-13)
    assert torch.allclose(made.bias.grad, upstream.sum(0), rtol=0, atol=1e-13)
    w = made.weight.detach()
    expected = upstream.T @ x.detach() + 0.03 * w * ~made.mask
    assert torch.allclose(made.weight.grad, expected, rtol=0, atol=1e-13)
    # Where the mask is, it is the derivative of the loss: finite differences of kept weights.
    for row, column in torch.argwhere(made.mask)[:6].tolist():
        step = torch.zeros_like(w)
        step[row, column] = 1e-6
        change = ((x @ (made.sparse_weight() + step).T - x @ (made.sparse_weight() - step).T) * upstream).sum() / 2e-6
        assert abs(change.item() - made.weight.grad[row, column].item()) < 1e-7


def test_dense_gradients_have_no_decay():
    made = layer(decay=0.5)
    made.sparse = False
    x = torch.randn(4, 12, dtype=torch.float64)
    made(x).sum().backward()
    assert torch.allclose(made.weight.grad, torch.ones(8, 4, dtype=torch.float64) @ x, rtol=1e-13)


def test_masked_weights_shrink_and_may_return():
    """Plain gradient steps without data: masked weights decay by 1 - rate·decay, kept ones stay."""
    made = layer(decay=0.5, bias=False)
    before, mask = made.weight.detach().clone(), made.mask.clone()
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        made(torch.zeros(1, 12, dtype=torch.float64)).sum().backward()
        optimiser.step()
    assert torch.allclose(made.weight.detach()[~mask], before[~mask] * 0.95**3, rtol=1e-12)
    assert torch.equal(made.weight.detach()[mask], before[mask])
    with torch.no_grad():
        made.weight[0, :4] = torch.tensor([1.0, 2, 3, 4])
        made.weight[:4, :4] += 10 * torch.eye(4, dtype=torch.float64)
    assert made.refresh() > 0 and made.mask[range(4), range(4)].all()


def test_flip_rate_by_hand():
    made = layer(4, 4, transposable=False)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[4.0, 3, 2, 1]] * 4))
    made.refresh()
    assert made.refresh() == 0
    with torch.no_grad():
        made.weight[0] = torch.tensor([4.0, 1, 2, 3])  # 4 and 3 stay: two bits change
        made.weight[1] = torch.tensor([1.0, 2, 3, 4])  # four bits
    assert made.refresh() == 6 / 16


def test_schedule():
    model = torch.nn.Sequential(layer(), torch.nn.ReLU(), layer(4, 8))
    schedule = Sparse24Schedule(model, 20, every=4, dense_steps=5, freeze_steps=3)
    sparse, renewed = [], []
    for step in range(1, 21):
        sparse.append(model[0].sparse)
        with torch.no_grad():
            for made in sparse_layers(model):
                made.weight.copy_(torch.randn_like(made.weight))
        rate = schedule.step()
        if rate is not None:
            renewed.append(step)
            assert 0.05 < rate * 4 < 0.95
    assert sparse == [True] * 15 + [False] * 5
    assert renewed == [4, 8] == [step for step, _ in schedule.flip_rates]
    assert not model[0].sparse and not model[2].sparse


def test_schedule_that_stays_sparse():
    model = torch.nn.Sequential(layer())
    schedule = Sparse24Schedule(model, 8, every=4)
    assert [schedule.step() is not None for _ in range(8)] == [False, False, False, True, False, False, False, False]
    assert model[0].sparse


def test_sparsify_keeps_parameters_and_names():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(12, 8), torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False)), torch.nn.Linear(4, 2)
    )
    before = dict(model.named_parameters())
    optimiser = torch.optim.Adam(model.parameters())
    assert sparsify24(model, names={"0", "1.0"}) is model
    assert [type(made) for made in (model[0], model[1][0], model[2])] == [
        Sparse24Linear,
        Sparse24Linear,
        torch.nn.Linear,
    ]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    model(torch.randn(3, 12)).sum().backward()
    optimiser.step()
    assert {"0.mask", "1.0.mask"} <= set(model.state_dict())
    other = torch.nn.Sequential(Sparse24Linear(12, 8))
    other.load_state_dict({"0." + key: value for key, value in model[0].state_dict().items()})
    assert torch.equal(other[0].mask, model[0].mask)
    assert len(list(sparse_layers(sparsify24(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))))) == 2


def test_export_is_24_both_ways():
    made = layer(8, 12).float()
    ff.check24(made.sparse_weight())
    ff.check24(made.sparse_weight().T.contiguous())


def test_errors():
    with pytest.raises(ValueError, match="decay is -1"):
        Sparse24Linear(4, 4, decay=-1)
    with pytest.raises(ValueError, match="in_features is 0"):
        Sparse24Linear(0, 4)
    with pytest.raises(ValueError, match="no Sparse24Linear"):
        Sparse24Schedule(torch.nn.Linear(4, 4), 10)
    with pytest.raises(ValueError, match="dense_steps 8, freeze_steps 3"):
        Sparse24Schedule(layer(), 10, dense_steps=8, freeze_steps=3)
    with pytest.raises(ValueError, match="'1' is no nn.Linear of the module, expected some of 0"):
        sparsify24(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), names=["1"])
