"""ff.fff and ff.fff_route from Python: every form against the oracle, kinds of arrays, ties, forced ways, refusals."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from api_support import TOLERANCE, assert_close, to_numpy
from fff_support import oracle, random_weights, tokens
from reference import fff as reference

FORMATS = ("f32", "f16", "bf16", "int8")
ACTIVATIONS = ("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu")
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def values(weights: ff.FffWeights, packed: ff.PackedFff) -> ff.FffWeights:
    """The numbers that the packed layer stands for."""
    tree = ff.unpack_tree(packed.tree)
    held = {"nodes": tree["w_node"], "w_out": tree["w_out"]}
    for name in ("w_up", "w_down"):
        if name in packed.options:
            held[name] = ff.unpack(packed.options[name]).reshape(getattr(weights, name).shape)
    if weights.master is not None:
        up, down = (ff.unpack(packed.options[f"master_{part}"]) for part in ("up", "down"))
        held["master"] = replace(weights.master, w_up=up, w_down=down)
    return replace(weights, **held)


def check(weights: ff.FffWeights, format: str, x: Any, route_format: str | None = None, tolerance: float = 0.0) -> None:
    """The layer's output against the oracle on the ways it took; and those ways, where no decision is close."""
    packed = ff.pack_fff(weights, format, route_format=route_format)
    exact = values(weights, packed)
    rows = to_numpy(x).astype(np.float64).reshape(-1, weights.d_model)
    route = packed.route(x)
    leaf = to_numpy(route.leaf).reshape(-1, weights.trees)
    _, free = oracle(exact, rows)
    sure = free.smallest_margin > 1e-4
    assert sure.mean() > 0.9 or not weights.depth
    np.testing.assert_array_equal(leaf[sure], free.leaf[sure])
    y, forced = oracle(exact, rows, leaf=leaf)
    np.testing.assert_allclose(to_numpy(route.margin).reshape(leaf.shape), forced.smallest_margin, atol=2e-5)
    found = packed(x)
    # int8 rounds the hidden values of leaves too.
    assert_close(found.reshape(-1, weights.d_out), y, tolerance or 2 * TOLERANCE[format])
    assert_close(packed(x, leaf=route.leaf), to_numpy(found).astype(np.float64), tolerance or TOLERANCE[format])


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("trees", [1, 3])
def test_formats(form: str, format: str, trees: int) -> None:
    check(random_weights(form, trees=trees, depth=4, width=9), format, tokens(60))


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("route_format", FORMATS)
def test_formats_of_deciding_rows(form: str, route_format: str) -> None:
    check(random_weights(form, depth=4), "f32", tokens(60), route_format)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_activations(form: str, activation: str) -> None:
    check(random_weights(form, trees=2, activation=activation), "f32", tokens(40))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("thresholds", [True, False])
@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_biases_and_thresholds(form: str, thresholds: bool, bias: bool) -> None:
    check(random_weights(form, trees=2, bias=bias, thresholds=thresholds), "f32", tokens(40))


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_master_leaf(form: str, format: str) -> None:
    weights = random_weights(form, trees=2, master=6)
    check(weights, format, tokens(40))
    assert weights.master is not None
    check(replace(weights, master=replace(weights.master, mix=None)), format, tokens(40))


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize(
    ("d_model", "d_out", "width", "depth"),
    [(1, 1, 1, 1), (17, 33, 3, 2), (16, 16, 16, 0), (100, 7, 1, 5), (3, 129, 40, 1), (64, 64, 32, 6)],
)
def test_odd_sizes(form: str, d_model: int, d_out: int, width: int, depth: int) -> None:
    weights = random_weights(form, trees=2, depth=depth, d_model=d_model, d_out=d_out, width=width)
    for count in (1, 7, 130):
        check(weights, "f32", tokens(count, d_model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_dtypes(form: str, dtype: str) -> None:
    x = tokens(30).astype(DTYPES[dtype])
    weights = random_weights(form, trees=2)
    assert ff.pack_fff(weights)(x).dtype == x.dtype
    check(weights, "f32", x, tolerance=2 * TOLERANCE[dtype])
    check(weights, "bf16", x, tolerance=2 * TOLERANCE["bf16"])


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch(form: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    weights = random_weights(form, trees=2, master=3)
    packed, x = ff.pack_fff(weights), torch.from_numpy(tokens(20)).to(getattr(torch, dtype))
    y, route = packed(x), packed.route(x)
    assert type(y) is torch.Tensor and y.dtype == x.dtype and route.leaf.dtype == torch.int32
    expected = ff.pack_fff(weights)(x.float().numpy())
    assert_close(y, expected.astype(np.float64), {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype])
    out = torch.empty_like(y)
    assert packed(x, out=out) is out and torch.equal(out, y)
    assert torch.equal(packed(x, leaf=route.leaf.long()), y)


def test_a_tree_made_by_torch_is_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    tree = ff.pack_tree(torch.randn(7, 12))
    assert type(tree) is torch.Tensor and tree.dtype == torch.uint8
    buffer = io.BytesIO()
    torch.save({"tree": tree}, buffer)
    buffer.seek(0)
    ff.verify_tree(torch.load(buffer)["tree"])


@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_shapes_and_strides(form: str) -> None:
    packed = ff.pack_fff(random_weights(form, trees=2))
    x = tokens(24)
    y, route = packed(x), packed.route(x)
    np.testing.assert_array_equal(packed(x.reshape(2, 3, 4, 24)), y.reshape(2, 3, 4, 20))
    assert packed.route(x.reshape(2, 12, 24)).leaf.shape == (2, 12, 2)
    # The leaf form groups tokens: how many there are may show in the last bits.
    assert_close(packed(x[3]), y[3].astype(np.float64), 1e-6)
    assert_close(packed(x[::2]), y[::2].astype(np.float64), 1e-6)
    wide = np.zeros((24, 31), np.float32)
    wide[:, 5:29] = x
    np.testing.assert_array_equal(packed(wide[:, 5:29]), y)
    unaligned = np.zeros(x.size + 1, np.float32)[1:].reshape(x.shape)  # 4 bytes past a multiple of 64, or the like
    unaligned[:] = x
    np.testing.assert_array_equal(packed(unaligned), y)
    out = np.full((24, 40), 7, np.float32)
    assert packed(x, out=out[:, 3:23]) is not None
    np.testing.assert_array_equal(out[:, 3:23], y)
    assert (out[:, :3] == 7).all() and (out[:, 23:] == 7).all()
    np.testing.assert_array_equal(route.leaf, packed.route(wide[:, 5:29]).leaf)


@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_no_tokens(form: str) -> None:
    packed = ff.pack_fff(random_weights(form, trees=2))
    assert packed(np.zeros((0, 24), np.float32)).shape == (0, 20)
    assert packed(np.zeros((3, 0, 24), np.float32)).shape == (3, 0, 20)
    assert packed.route(np.zeros((0, 24), np.float32)).leaf.shape == (0, 2)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("tie", [None, "ge", "gt"])
@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("route_format", FORMATS)
def test_ties(form: str, tie: str | None, zero: float, route_format: str) -> None:
    weights = random_weights(form, bias=False, tie=tie)
    packed = ff.pack_fff(weights, route_format=route_format)
    route = packed.route(np.full((5, 24), zero, np.float32))
    right = (tie or ("ge" if form == "leaf" else "gt")) == "ge"
    assert (route.leaf == (7 if right else 0)).all() and (route.margin == 0).all()


def test_a_tie_with_a_threshold() -> None:
    # z is exactly the threshold: 3 · 0.5.
    for tie, leaf in (("ge", 1), ("gt", 0)):
        tree = ff.pack_tree(np.array([[0.5]], np.float32), threshold=np.array([1.5], np.float32), tie=tie)
        route = ff.fff_route(np.array([[3.0], [2.9], [3.1]], np.float32), tree)
        np.testing.assert_array_equal(route.leaf[:, 0], [leaf, 0, 1])


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("format", FORMATS)
def test_nan_goes_left_and_stays_in_its_token(form: str, format: str) -> None:
    packed, x = ff.pack_fff(random_weights(form), format), tokens(9)
    y = packed(x)
    x[4, 3] = np.nan
    broken, route = packed(x), packed.route(x)
    assert np.isnan(broken[4]).all() and route.leaf[4, 0] == 0 and np.isnan(route.margin[4, 0])
    # (In the leaf form another grouping may show in the last bits.)
    others = np.arange(9) != 4
    assert_close(broken[others], y[others].astype(np.float64), 0.0 if form == "nodes" else 1e-6)


def test_infinite_decisions() -> None:
    tree = ff.pack_tree(np.eye(3, dtype=np.float32))
    x = np.array([[np.inf, 0, 1], [-np.inf, 1, 0]], np.float32)
    route = ff.fff_route(x, tree, z=True)
    # 0 · inf is NaN, in this sum of products as in any.
    np.testing.assert_array_equal(np.isnan(route.z[..., 0]), np.isnan((x * np.float32([1, 0, 0])).sum(1))[:, None])


@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_forced_ways(form: str) -> None:
    weights, x = random_weights(form, trees=2), tokens(16)
    packed = ff.pack_fff(weights)
    leaf = np.random.default_rng(3).integers(0, 8, (16, 2))
    y, _ = oracle(weights, x, leaf=leaf)
    for kind in (np.int32, np.int64):
        assert_close(packed(x, leaf=leaf.astype(kind)), y, 2e-6)
    assert_close(packed(x.reshape(4, 4, 24), leaf=leaf.reshape(4, 4, 2)), y.reshape(4, 4, 20), 2e-6)
    one = ff.pack_fff(random_weights(form))
    np.testing.assert_array_equal(one(x, leaf=leaf[:, :1].astype(np.int32)), one(x, leaf=leaf[:, 0].astype(np.int32)))


@pytest.mark.parametrize("format", FORMATS)
def test_all_tokens_in_one_leaf_are_a_dense_layer(format: str) -> None:
    weights, x = random_weights(depth=5, width=11), tokens(200)
    packed = ff.pack_fff(weights, format)
    y = packed(x, leaf=np.full((200, 1), 19, np.int32))
    assert weights.w_up is not None and weights.w_down is not None and weights.b_up is not None
    up, down = ff.pack(weights.w_up[0, 19], format), ff.pack(weights.w_down[0, 19], format)
    assert weights.b_down is not None
    alone = ff.ffn(x, up, down, b_up=weights.b_up[0, 19], b_down=weights.b_down[0, 19], activation="gelu")
    assert_close(y, alone.astype(np.float64), 1e-6 if format != "int8" else 1e-2)


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bits_for_any_number_of_threads(form: str, format: str) -> None:
    packed, x = ff.pack_fff(random_weights(form, trees=2, depth=5, d_model=96, d_out=80), format), tokens(700, 96)
    try:
        results = []
        for threads in (1, 2, 3):
            ff.set_num_threads(threads)
            results.append((packed(x), packed.route(x).leaf))
    finally:
        ff.set_num_threads(0)  # OpenMP's own number again
    for y, leaf in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(leaf, results[0][1])


@pytest.mark.parametrize("format", FORMATS)
def test_plans_and_numbers_of_tokens_give_the_same_bits(format: str) -> None:
    packed, x = ff.pack_fff(random_weights("nodes", trees=2, depth=6), format), tokens(500)
    y, route = packed(x), packed.route(x, z=True)
    for plan in ("per_token", "grouped"):
        np.testing.assert_array_equal(packed(x, plan=plan), y)
    for begin, end in ((0, 1), (7, 20), (100, 400)):
        np.testing.assert_array_equal(packed(x[begin:end]), y[begin:end])
        part = packed.route(x[begin:end], z=True)
        for found, expected in zip(part, route, strict=True):
            np.testing.assert_array_equal(found, expected[begin:end])


def test_plans_of_the_leaf_form_agree() -> None:
    weights, x = random_weights(trees=2, depth=5), tokens(300)
    packed = ff.pack_fff(weights)
    y, _ = oracle(weights, x)
    for plan in ("per_token", "grouped", "auto"):
        assert_close(packed(x, plan=plan), y, 4e-6)


@pytest.mark.parametrize("route_format", ["f16", "bf16", "int8"])
def test_less_precise_rows_move_only_close_decisions(route_format: str) -> None:
    weights, x = random_weights("nodes", depth=6, d_model=64), tokens(400, 64)
    tree = ff.pack_fff(weights, route_format=route_format)
    _, way = oracle(weights, x)
    moved = tree.route(x).leaf != way.leaf
    held = ff.unpack_tree(tree.tree)["w_node"]
    # A decision may move if it is closer than what rounding did to its row.
    change = np.abs(np.einsum("td,knd->tkn", x, held - weights.nodes)).max(axis=-1)
    assert not (moved & (way.smallest_margin > change + 1e-5)).any()
    assert 0 < moved.mean() < 0.2 or route_format == "f16"


def test_what_route_says() -> None:
    weights, x = random_weights("nodes", trees=2, depth=4), tokens(30)
    route = ff.fff_route(x, ff.pack_fff(weights).tree, z=True)
    _, way = oracle(weights, x)
    np.testing.assert_allclose(route.z, way.z, atol=1e-5)
    assert ff.fff_route(x, ff.pack_fff(weights).tree).z is None
    flat = ff.fff_route(x, ff.pack_tree(np.zeros((0, 24), np.float32)))
    assert (flat.leaf == 0).all() and (flat.margin == np.inf).all()


def test_packed_trees_travel(tmp_path: Path) -> None:
    weights = random_weights("nodes", trees=2, thresholds=True)
    packed = ff.pack_fff(weights, "bf16")
    np.save(tmp_path / "tree.npy", packed.tree)
    tree = np.load(tmp_path / "tree.npy", mmap_mode="r")
    ff.verify_tree(tree)
    x = tokens(5)
    np.testing.assert_array_equal(ff.fff(x, np.asarray(tree), activation="gelu"), packed(x))
    info = ff.tree_info(packed.tree)
    assert (info.form, info.trees, info.depth, info.levels, info.leaves, info.format) == ("nodes", 2, 3, 4, 8, "bf16")
    assert info.has_bias and info.has_threshold and info.tie == "gt" and packed.nbytes == info.nbytes
    damaged = packed.tree.copy()
    damaged[-5] ^= 16
    with pytest.raises(ValueError, match="verify_tree: .*checksum"):
        ff.verify_tree(damaged)
    with pytest.raises(ValueError, match="truncated"):
        ff.fff(x, packed.tree[:-64], activation="gelu")


def test_biases_of_f64_are_packed_as_f32() -> None:
    weights = random_weights(trees=2, master=3)
    assert weights.b_up is not None and weights.master is not None and weights.master.b_up is not None
    wide = replace(
        weights,
        b_up=weights.b_up.astype(np.float64),
        master=replace(weights.master, b_up=weights.master.b_up.astype(np.float64)),
    )
    np.testing.assert_array_equal(ff.pack_fff(wide)(tokens(5)), ff.pack_fff(weights)(tokens(5)))


def test_sizes() -> None:
    leaf, nodes = random_weights(trees=2, depth=3, width=5), random_weights("nodes", trees=2, depth=3)
    assert (leaf.form, leaf.leaves, leaf.width, leaf.used, leaf.leaf_width) == ("leaf", 8, 80, 10, 5)
    assert (nodes.form, nodes.leaves, nodes.width, nodes.used, nodes.leaf_width) == ("nodes", 8, 30, 8, 0)
    assert ff.pack_fff(leaf, "bf16").nbytes < 0.8 * ff.pack_fff(leaf).nbytes


LEAF, NODES = ff.pack_fff(random_weights(trees=2)), ff.pack_fff(random_weights("nodes"))
X = tokens(5)
REFUSED: dict[str, Any] = {
    r"fff: x has shape \(5, 20\), expected \(\.\.\., 24\)": lambda: LEAF(X[:, :20]),
    r"fff: out has shape \(5, 21\), expected \(5, 20\)": lambda: LEAF(X, out=np.empty((5, 21), np.float32)),
    "fff: out and x share": lambda: LEAF(X, out=X[:, :20]),
    "fff: leaf holds 8 at position 0, expected 0 to 7": lambda: LEAF(X, leaf=np.full((5, 2), 8)),
    "fff: leaf holds -1": lambda: NODES(X, leaf=np.full((5, 1), -1)),
    r"fff: leaf has shape \(5, 1\), expected \(5, 2\)": lambda: LEAF(X, leaf=np.zeros((5, 1), int)),
    "fff: leaf has dtype f32": lambda: LEAF(X, leaf=np.zeros((5, 2), np.float32)),
    "fff: plan 'fast' is not known": lambda: LEAF(X, plan="fast"),
    "fff: activation 'swiglu_clamped' needs a gate": lambda: ff.fff(X, NODES.tree, activation="swiglu_clamped"),
    "fff: activation 'swiglu_clamped' needs a gate, which trees": lambda: ff.fff(
        X, LEAF.tree, LEAF.options["w_up"], LEAF.options["w_down"], activation="swiglu_clamped"
    ),
    r"pack_tree: w_node has shape \(4, 3\)": lambda: ff.pack_tree(np.zeros((4, 3))),
    r"pack_tree: b_node has shape \(4,\), expected \(1, 3\)": lambda: ff.pack_tree(np.zeros((3, 3)), np.zeros(4)),
    r"pack_tree: w_out has shape \(4, 2\)": lambda: ff.pack_tree(np.zeros((3, 3)), None, np.zeros((4, 2))),
    r"pack_tree: threshold has shape \(1, 4\)": lambda: ff.pack_tree(np.zeros((3, 3)), threshold=np.zeros((1, 4))),
    "pack_tree: tie is 'x'": lambda: ff.pack_tree(np.zeros((3, 3)), tie="x"),
    "fff: w_up is missing": lambda: ff.fff(X, LEAF.tree, activation="gelu"),
    "fff: w_up is given, but": lambda: ff.fff(X, NODES.tree, LEAF.options["w_up"], activation="gelu"),
    r"fff: w_up has shape \(16, 20, 5\), expected \(16, d_ff, 24\)": lambda: ff.fff(
        X, LEAF.tree, LEAF.options["w_down"], LEAF.options["w_up"], activation="gelu"
    ),
    "fff: tree is not a packed tree": lambda: ff.fff(X, LEAF.options["w_up"], activation="gelu"),
    "fff_route: x has shape": lambda: ff.fff_route(X[:, :3].copy(), LEAF.tree),
    "tree_info: tree has 100 bytes": lambda: ff.tree_info(np.zeros(100, np.uint8)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


@pytest.mark.skipif(not os.environ.get("FASTFFN_TEST_HUGE"), reason="set FASTFFN_TEST_HUGE=1: 2.2 GB and half a minute")
def test_more_elements_than_an_int_counts() -> None:
    nodes, d_model = (1 << 17) - 1, 16640  # 2.18e9 weights
    # Rows that differ, in little memory: row n begins at element n of one short array.
    values = np.random.default_rng(0).standard_normal(nodes + d_model).astype(np.float16)
    rows = np.lib.stride_tricks.as_strided(values, (nodes, d_model), (2, 2))
    tree = ff.pack_tree(rows, format="int8")
    x = tokens(3, d_model)
    route = ff.fff_route(x, tree, z=True)
    for token in range(3):
        path, _ = reference.path_of_leaf(int(route.leaf[token, 0]), 17)
        z = rows[path].astype(np.float64) @ x[token]
        np.testing.assert_allclose(route.z[token, 0], z, atol=0.02 * d_model**0.5)
        assert (np.sign(z) == np.sign(route.z[token, 0]))[np.abs(z) > 3].all()


def test_torch_stays_optional() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import fastffn as ff\n"
        "assert ff.load_fastfeedforward and ff.fff_from_dense and ff.fff_stats\n"
        "try: import fastffn.torch\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "fastffn.torch needs PyTorch: pip install torch (fastffn itself does not)\n"


def test_import_fastffn_loads_no_module_of_trees() -> None:
    script = "import sys, fastffn; print([name for name in sys.modules if name.startswith('fastffn._fff_')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_callers_on_many_threads_share_a_tree(form: str) -> None:
    packed = ff.pack_fff(random_weights(form, trees=2, depth=5, master=4))
    inputs = [tokens(20 + 31 * index, seed=index) for index in range(8)]
    expected = [packed(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, y in zip(pool.map(packed, inputs), expected, strict=True):
                np.testing.assert_array_equal(found, y)
