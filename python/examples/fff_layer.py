"""Fast feedforward trees on NumPy arrays: make both forms, run them, ask where tokens go, load a trained layer.

python python/examples/fff_layer.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np

import fastffn as ff

d_model, tokens = 256, 512
rng = np.random.default_rng(0)
x = rng.standard_normal((tokens, d_model), dtype=np.float32)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)


# The all-node form (UltraFastBERT's "1x9"): a tree of depth 9 has 1023 neurons, and a token uses 10 of them.
tree = ff.pack_tree(normal(1023, d_model), None, normal(1023, d_model))
y = ff.fff(x, tree, activation="gelu")
ff.fff(x, tree, activation="gelu", out=y)  # a decode loop allocates nothing
print(f"all-node form: {ff.tree_info(tree)}")

# The leaf form: 2^5 leaves, each a small FFN of 32 neurons; 31 nodes decide which one a token uses.
nodes, w_up, w_down = normal(31, d_model), normal(32, 32, d_model), normal(32, d_model, 32)
up, down = ff.pack(w_up, "bf16"), ff.pack(w_down, "bf16")
deciding = ff.pack_tree(nodes)
y = ff.fff(x, deciding, up, down, activation="gelu")

# By hand: walk down, then run the leaf.
node = np.zeros(tokens, int)
for _ in range(5):
    node = 2 * node + 1 + (np.einsum("td,td->t", x, nodes[node]) >= 0)
leaf = node - 31
route = ff.fff_route(x, deciding)
print(
    f"leaf form: {np.mean(route.leaf[:, 0] == leaf):.1%} of the leaves as by hand, closest decision {route.margin.min():.2g}"
)
up_values, down_values = ff.unpack(up), ff.unpack(down)
forced = ff.fff(x, deciding, up, down, activation="relu", leaf=leaf)
expected = np.einsum("tl,tol->to", np.maximum(np.einsum("td,tld->tl", x, up_values[leaf]), 0), down_values[leaf])
print(f"error with bf16 leaves on the same ways: {np.linalg.norm(forced - expected) / np.linalg.norm(expected):.1e}")

# All of it in one object, saved and drawn.
layer = ff.pack_fff(ff.FffWeights(nodes[None], w_up=w_up[None], w_down=w_down[None]), "int8")
stats = ff.fff_stats(x, layer)
print(stats)
with tempfile.TemporaryDirectory() as folder:
    np.savez(Path(folder) / "layer.npz", tree=layer.tree, w_up=layer.options["w_up"], w_down=layer.options["w_down"])
    stats.save(Path(folder) / "use.svg")

# A state_dict of the fastfeedforward package (here invented): its evaluation forgets b2s, so say what you want.
state = {"node_weights": nodes, "node_biases": np.zeros((31, 1)), "depth": np.array(5)}
state |= {"w1s": w_up.transpose(0, 2, 1), "b1s": np.zeros((32, 32)), "w2s": w_down.transpose(0, 2, 1)}
state |= {"b2s": np.ones((32, d_model))}
trained, evaluated = (ff.pack_fff(ff.load_fastfeedforward(state, use_b2=flag)) for flag in (True, False))
print(f"b2s: {np.mean(trained(x) - evaluated(x)):.3f} between as trained and as evaluated there")

# What it is for: as many neurons as a dense layer, a fraction of the work. (What it can learn is another question.)
dense = ff.pack(normal(1024, d_model), "f32"), ff.pack(normal(d_model, 1024), "f32")
for name, call in (
    ("dense", lambda: ff.ffn(x, *dense, activation="gelu")),
    ("tree", lambda: ff.fff(x, tree, activation="gelu")),
):
    call()
    begin = time.perf_counter()
    for _ in range(20):
        call()
    print(f"{name}: {(time.perf_counter() - begin) / 20 / tokens * 1e6:.2f} µs per token")
