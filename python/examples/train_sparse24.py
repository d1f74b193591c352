"""Train a small classifier of handwritten digits whose feed-forward layer is 2:4 sparse, and run it with fastffn.

python python/examples/train_sparse24.py        (needs torch and scikit-learn; some seconds on two cores)

Five ways to a model, from the same start, on the same batches:

    dense                       for comparison
    dense, pruned               the same weights, the two largest of every four kept
    dense, pruned, tuned        then a few more epochs with that mask fixed
    sparse from the start       masks that both W and its transpose obey, renewed every 40 steps, decay on what is masked
    sparse, dense at the end    the same, but the last sixth of the steps trains every weight: a dense model
"""

import copy
import sys
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import fastffn as ff
from fastffn.torch import Sparse24Schedule, sparse_layers, sparsify24

D_MODEL, D_FF, EPOCHS, BATCH = 64, 256, 12, 32


class Classifier(nn.Module):
    """x + down(gelu(up(x))), then a head: the layer between is what a transformer calls its FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, D_MODEL)
        self.up = nn.Linear(D_MODEL, D_FF)
        self.down = nn.Linear(D_FF, D_MODEL)
        self.head = nn.Linear(D_MODEL, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.embed(x))
        return self.head(hidden + self.down(nn.functional.gelu(self.up(hidden))))


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.from_numpy(digits.data[order].astype(np.float32) / 8 - 1)
    y = torch.from_numpy(digits.target[order])
    return x[:1300], y[:1300], x[1300:], y[1300:]


X, Y, X_TEST, Y_TEST = data()
STEPS_PER_EPOCH = len(X) // BATCH


def accuracy(logits: torch.Tensor) -> float:
    return (logits.argmax(-1) == Y_TEST).float().mean().item()


def train(
    name: str, model: Classifier, epochs: int, schedule: Sparse24Schedule | None = None, rate: float = 2e-3
) -> None:
    """AdamW with a rate that falls to zero."""
    generator = torch.Generator().manual_seed(1)
    steps = epochs * STEPS_PER_EPOCH
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(X), generator=generator)[: STEPS_PER_EPOCH * BATCH].reshape(-1, BATCH)
        for batch in order:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(X[batch]), Y[batch])
            loss.backward()
            optimiser.step()
            falling.step()
            if schedule is not None:
                schedule.step()
        if sys.stderr.isatty():
            print(f"\r\033[K{name}: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    model.eval()


def packed_accuracy(model: Classifier, values: str) -> tuple[float, int]:
    """The model with its feed-forward layer run by fastffn from packed 2:4 weights, and the bytes of those."""
    layers = {layer: getattr(model, layer) for layer in ("up", "down")}
    # A Sparse24Linear hands out its masked weights; a plain Linear has been pruned already.
    weights = {
        name: layer.sparse_weight() if hasattr(layer, "mask") else layer.weight for name, layer in layers.items()
    }
    w_up, w_down = (ff.pack(weights[name], "sparse24", values=values) for name in ("up", "down"))
    with torch.no_grad():
        hidden = torch.relu(model.embed(X_TEST))
        y = ff.ffn(hidden, w_up, w_down, b_up=layers["up"].bias, b_down=layers["down"].bias, activation="gelu")
        return accuracy(model.head(hidden + y)), w_up.nbytes + w_down.nbytes


@torch.no_grad()
def prune(model: Classifier) -> Classifier:
    """A copy whose feed-forward weights are pruned by magnitude."""
    model = copy.deepcopy(model)
    for layer in (model.up, model.down):
        layer.weight.copy_(ff.prune24(layer.weight))
    return model


def show(name: str, model: Classifier, sparse: bool) -> None:
    with torch.no_grad():
        line = f"{name:27} torch {accuracy(model(X_TEST)):.4f}"
    if sparse:
        for values in ("bf16", "int8"):
            share, size = packed_accuracy(model, values)
            line += f"   fastffn 2:4 {values} {share:.4f} ({size} bytes)"
    print(line)


torch.manual_seed(0)
start = Classifier()
began = time.perf_counter()
print(f"accuracy on {len(X_TEST)} digits; the dense layer takes {4 * 2 * D_MODEL * D_FF} bytes in f32")

dense = copy.deepcopy(start)
train("dense", dense, EPOCHS)
show("dense", dense, sparse=False)

pruned = prune(dense)
show("dense, pruned", pruned, sparse=True)

tuned = sparsify24(copy.deepcopy(pruned), names=["up", "down"], transposable=False, decay=0.0)
train("tuned", tuned, 3, rate=5e-4)
show("dense, pruned, tuned", tuned, sparse=True)

for name, dense_share in (("sparse from the start", 0.0), ("sparse, dense at the end", 1 / 6)):
    model = sparsify24(copy.deepcopy(start), names=["up", "down"], decay=2e-4)
    steps = EPOCHS * STEPS_PER_EPOCH
    schedule = Sparse24Schedule(model, steps, every=40, dense_steps=round(dense_share * steps), freeze_steps=steps // 6)
    train(name, model, EPOCHS, schedule)
    show(name, model, sparse=dense_share == 0)
    rates = [rate for _, rate in schedule.flip_rates]
    print(f"{'':27} masks: {rates[0]:.5f} of all bits changed per step at first, {rates[-1]:.5f} at the last renewal")
    for layer in sparse_layers(model):
        ff.check24(layer.sparse_weight())
print(f"{time.perf_counter() - began:.0f} s")
