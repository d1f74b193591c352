"""A fast feedforward tree on scikit-learn's digits, from zero: trained soft, hardened, exported, run with ``fastffn``.

python python/examples/train_fff.py
python python/examples/train_fff.py --form nodes             # the all-node form, trained masked
python python/examples/train_fff.py --picture use.svg        # how test digits use the leaves

Needs torch and scikit-learn (pip install "fastffn[examples]"). Takes some seconds on two cores.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastffn as ff
from fastffn.torch import FFF, AllNodeFFF, auxiliary_loss

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--form", choices=("leaf", "nodes"), default="leaf")
parser.add_argument("--depth", type=int, default=4)
parser.add_argument("--leaf-width", type=int, default=8, help="of the leaf form (8)")
parser.add_argument("--trees", type=int, default=0, help="1 in the leaf form, 8 in the all-node form, unless given")
parser.add_argument("--epochs", type=int, default=80)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--picture", metavar="FILE", help="where to write how the leaves are used: .svg or .html")
options = parser.parse_args()

torch.manual_seed(options.seed)
torch.set_num_threads(min(2, torch.get_num_threads()))
pixels, labels = load_digits(return_X_y=True)
pixels = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
train_x, test_x, train_y, test_y = (
    torch.from_numpy(part) for part in train_test_split(pixels, labels, test_size=0.25, random_state=0, stratify=labels)
)

begin = time.perf_counter()
if options.form == "leaf":
    model = FFF(64, options.leaf_width, 10, depth=options.depth, trees=options.trees or 1, region_leak=0.02)
else:
    model = AllNodeFFF(64, 10, depth=options.depth, trees=options.trees or 8)
print(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.02)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
hardened_from = options.epochs - options.epochs // 4 if options.form == "leaf" else options.epochs


def accuracy(**how: bool) -> str:
    """On the test digits."""
    model.eval()
    with torch.no_grad():
        return f"{(model(test_x, **how).argmax(-1) == test_y).float().mean().item():.2%}"


for epoch in range(options.epochs):
    if epoch == hardened_from:
        print(f"after {epoch} epochs with soft decisions: accuracy soft {accuracy(hard=False)}, hard {accuracy()}")
    model.train()
    for rows in torch.randperm(len(train_x)).split(128):
        if options.form == "nodes":
            loss = torch.nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
        elif epoch < hardened_from:
            # First spread the digits over the leaves, then press decisions towards yes and no.
            done = epoch / hardened_from
            loss = torch.nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
            loss = loss + auxiliary_loss(model, hardening=10 * max(0.0, done - 0.1), balance=max(0.0, 1 - 2 * done))
        else:
            # Decisions stay as they are, the leaves get used to them.
            loss = torch.nn.functional.cross_entropy(model(train_x[rows], hard=True), train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
print(f"trained {options.epochs} epochs in {time.perf_counter() - begin:.1f} s")
if options.form == "leaf":
    print(f"accuracy on {len(test_x)} test digits: soft {accuracy(hard=False)}, hard {accuracy()}")
else:
    print(
        f"accuracy on {len(test_x)} test digits: masked {accuracy(masked=True)}, only the nodes on the way {accuracy()}"
    )
with torch.no_grad():
    hard = model(test_x)
    torch_leaf, margin = model.route(test_x)

weights = model.export()
for format in ("f32", "bf16", "int8"):
    tree = ff.pack_fff(weights, format)
    ours = tree(test_x)
    right = (ours.argmax(-1) == test_y).float().mean().item()
    differ = (ours.argmax(-1) != hard.argmax(-1)).nonzero().squeeze(-1)
    two = hard.topk(2, dim=-1).values
    lead = (two[:, 0] - two[:, 1])[differ]
    route = tree.route(test_x)
    moved = (route.leaf != torch_leaf).any(dim=-1).sum().item()
    print(f"fastffn {format:4} {tree.nbytes:6} bytes: accuracy {right:.2%}, {moved} digits reach other leaves, "
          f"{len(differ)} predictions differ from the hardened torch module")  # fmt: skip
    for digit, ahead in zip(differ.tolist(), lead.tolist()):
        print(f"    digit {digit}: decided by {margin[digit].min():.2g}, its best score led by {ahead:.2g}")
print(f"smallest margins of decisions: {np.sort(margin.min(dim=1).values.numpy())[:5]}")

stats = ff.fff_stats(test_x, ff.pack_fff(weights))
print(stats)
if options.picture:
    print(f"wrote {stats.save(options.picture)}")
