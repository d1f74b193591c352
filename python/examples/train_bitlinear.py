"""Ternary feed-forward layers on scikit-learn's digits: rounded after training they are lost, trained ternary they are not.

python python/examples/train_bitlinear.py
python python/examples/train_bitlinear.py --form v2          # 4-bit activations behind a Hadamard transform (H-BitLinear)

1. trains a float model of four gated layers; 2. rounds its weights to -1, 0 and 1 (post-hoc); 3. trains on with the rounding in
every forward pass and gradients straight through it (quantisation-aware); 4. exports to fastffn, which computes in integers.

Needs torch and scikit-learn (pip install "fastffn[examples]"). Takes some seconds on two cores.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastffn as ff
from fastffn.torch import BitFFN

FORMS = {
    "b158": {"activation": "relu2", "activation_bits": 8},
    "a48": {"activation": "relu2", "activation_bits": 4, "down_bits": 8},
    "v2": {"activation": "silu", "activation_bits": 4, "hadamard": "block"},
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--form", choices=tuple(FORMS), default="b158", help="BitNet b1.58, a4.8 or v2 (b158)")
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--d-model", type=int, default=24)
parser.add_argument("--d-ff", type=int, default=32, help="hidden width of each layer (32)")
parser.add_argument("--epochs", type=int, default=40, help="in float; as many again quantised (40)")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

torch.manual_seed(options.seed)
torch.set_num_threads(1)  # matrices this small do not gain from more
pixels, labels = load_digits(return_X_y=True)
pixels = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
train_x, test_x, train_y, test_y = (
    torch.from_numpy(part) for part in train_test_split(pixels, labels, test_size=0.25, random_state=0, stratify=labels)
)


class Model(torch.nn.Module):
    """BitNet's layers one after the other, between two small layers in float."""

    def __init__(self) -> None:
        super().__init__()
        width = options.d_model
        self.stem = torch.nn.Linear(64, width)
        self.ffns = torch.nn.ModuleList(
            BitFFN(width, options.d_ff, **FORMS[options.form]) for _ in range(options.layers)
        )
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, ffns=None) -> torch.Tensor:
        x = self.stem(x)
        for ffn in self.ffns if ffns is None else ffns:
            x = ffn(torch.nn.functional.layer_norm(x, (options.d_model,)))
        return self.head(torch.nn.functional.layer_norm(x, (options.d_model,)))


def quantise(model: Model, on: bool) -> None:
    for ffn in model.ffns:
        ffn.quantised = on


def train(model: Model, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(train_x)).split(64):
            loss = torch.nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(predict: torch.nn.Module) -> float:
    """On the test digits."""
    return (predict(test_x).argmax(-1) == test_y).float().mean().item()


begin = time.perf_counter()
model = Model()
print(model)
quantise(model, False)
train(model, options.epochs, 0.003)
model.eval()
print(f"float: accuracy {accuracy(model):.2%} on {len(test_x)} test digits")
quantise(model, True)
print(f"rounded to -1, 0 and 1 after training: {accuracy(model):.2%}")
train(model, options.epochs, 0.003)
model.eval()
print(f"trained on with the rounding: {accuracy(model):.2%}")
print(f"{time.perf_counter() - begin:.1f} s of training")

packed = [ffn.export() for ffn in model.ffns]
with torch.no_grad():
    ours, theirs = model(test_x, packed), model(test_x)
held, plain = (sum(sizes) for sizes in (
    (ffn.nbytes for ffn in packed), (4 * p.numel() for name, p in model.named_parameters() if "proj" in name)
))  # fmt: skip
differ = (ours.argmax(-1) != theirs.argmax(-1)).sum().item()
print(f"fastffn: accuracy {(ours.argmax(-1) == test_y).float().mean().item():.2%}, {differ} of {len(test_x)} predictions "
      f"differ from the module's; {plain} bytes of float weights are {held} packed, padding and headers included")  # fmt: skip
print(f"fastffn: {ff.info(packed[0].w_down)}")
