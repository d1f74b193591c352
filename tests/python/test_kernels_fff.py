"""Trees against the float64 oracle: both forms, every format and dtype, plans, forced ways, ties; bits that must not differ."""

import numpy as np
import pytest

import fastffn as ff
from fastffn import _core
from kernel_support import ACTIVATIONS, DTYPES, SMALL, check, normal, pack, packed_values
from reference import fff as oracle
from reference import tolerance
from reference.formats import SPARSE24, weight_values
from reference.tolerance import SMALLEST, Bounded, U, accumulation_units

FORMATS = ("f32", "f16", "bf16", "int8")
PLANS = ("per_token", "grouped")
formats = pytest.mark.parametrize("fmt", FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
plans = pytest.mark.parametrize("plan", PLANS)


class Tree:
    """Random trees in one format, packed, and as the float64 values they stand for."""

    def __init__(self, depth, d_model, d_out=0, trees=1, fmt="f32", bias=True, threshold=False, seed=0, **options):
        rng = np.random.default_rng([seed, depth, d_model, d_out, trees])
        self.depth, self.trees, self.levels = depth, trees, depth + (d_out > 0)
        nodes = 2**self.levels - 1
        self.plain = {"w_node": normal(rng, (trees, nodes, d_model), scale=d_model**-0.5)}
        self.plain["b_node"] = normal(rng, (trees, nodes), scale=0.2) if bias else None
        self.plain["threshold"] = normal(rng, (trees, nodes), scale=0.2) if threshold else None
        self.plain["w_out"] = normal(rng, (trees, nodes, d_out)) if d_out else None
        self.packed = ff.pack_tree(**self.plain, format=fmt, **options)
        self.info = ff.tree_info(self.packed)
        self.fmt = fmt
        self.values = {n: None if a is None else a.astype(np.float64) for n, a in ff.unpack_tree(self.packed).items()}

    def route(self, x, **keywords):
        return ff.fff_route(x, self.packed, z=True, **keywords)

    def run(self, x, **keywords):
        return ff.fff(x, self.packed, **keywords)

    def way(self, x, leaf=None):
        """The oracle's way, through the last level too."""
        v = self.values
        if leaf is not None and self.levels > self.depth:
            leaf = leaf * 2  # the last level decides nothing
        return oracle.descend(
            x, v["w_node"], v["b_node"], v["threshold"], depth=self.levels, tie=self.info.tie, leaf=leaf
        )

    def bounded_z(self, x, path):
        """z of the nodes of `path` [tokens, trees, levels] and how far f32 may be from it."""
        rows = self.values["w_node"][np.arange(self.trees)[:, None], path]
        bias = self.values["b_node"][np.arange(self.trees)[:, None], path]
        value = np.einsum("tc,tklc->tkl", x, rows) + bias
        magnitude = np.einsum("tc,tklc->tkl", np.abs(x), np.abs(rows))
        error = accumulation_units(x.shape[1]) * U * magnitude + 4 * U * (np.abs(value) + np.abs(bias)) + SMALLEST
        return Bounded(value, error)

    def check_route(self, x, **keywords):
        """Leaves are the oracle's but where a decision is within the error of z; returns them."""
        route = self.route(x, **keywords)
        wide = x.astype(np.float64)
        leaf = np.asarray(route.leaf)
        assert leaf.dtype == np.int32 and leaf.shape == (len(x), self.trees)
        ours, theirs = self.way(wide, leaf), self.way(wide)
        bounded = self.bounded_z(wide, ours.path)
        z = np.asarray(route.z)
        assert z.dtype == np.float32 and z.shape == bounded.value.shape
        assert (np.abs(z - bounded.value) <= bounded.error).all()
        # Decided: where the oracle's decision on our way agrees with ours beyond the error.
        shift = np.arange(self.depth)[::-1]
        right = (leaf[..., None] >> shift & 1).astype(bool)
        margin, slack = ours.margin[..., : self.depth], bounded.error[..., : self.depth]
        assert (right[margin > slack]).all() and (~right[margin < -slack]).all()
        assert not self.depth or (np.abs(ours.margin) > bounded.error).mean() > 0.9
        certain = (np.abs(theirs.margin[..., : self.depth]) > slack).all(-1)
        expected = theirs.leaf if self.levels == self.depth else theirs.leaf >> 1
        assert (leaf == expected)[certain].all()
        smallest = np.abs(margin).min(-1, initial=np.inf)
        found = np.asarray(route.margin)
        assert (
            (np.abs(found - smallest) <= slack.max(-1, initial=0) + 2 * U).all()
            if self.depth
            else np.isinf(found).all()
        )
        return leaf

    def bounded(self, x, leaf, activation):
        """y of the all-node form on the given ways."""
        x = x.astype(np.float64)
        path = self.way(x, leaf).path
        hidden = tolerance.activate(self.bounded_z(x, path), activation)
        rows = self.values["w_out"][np.arange(self.trees)[:, None], path]
        value = np.einsum("tkl,tklc->tc", hidden.value, rows)
        magnitude = np.einsum("tkl,tklc->tc", np.abs(hidden.value) + hidden.error, np.abs(rows))
        error = np.einsum("tkl,tklc->tc", hidden.error, np.abs(rows))
        units = accumulation_units(self.trees * self.levels) + 2
        return Bounded(value, error + units * U * magnitude + self.trees * self.levels * SMALLEST)

    def check(self, x, activation="gelu", **keywords):
        """Both plans against the oracle, and against each other bit for bit; returns y."""
        leaf = self.check_route(x, plan="per_token")
        expected = self.bounded(x, leaf, activation)
        outputs = [self.run(x, activation=activation, plan=plan, **keywords) for plan in PLANS]
        for y in outputs:
            check(y, expected, str(x.dtype))
        assert outputs[0].tobytes() == outputs[1].tobytes()
        routes = [self.route(x, plan=plan) for plan in PLANS]
        for a, b in zip(*routes, strict=True):
            assert a.tobytes() == b.tobytes()
        return outputs[0]


@formats
@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_node(fmt, dtype, activation):
    rng = np.random.default_rng(1)
    for trees, tokens in ((1, 1), (2, 3), (3, 70)):
        Tree(3, 50, 70, trees, fmt, bias=trees != 2).check(normal(rng, (tokens, 50), dtype), activation)


# Around the registers of 8 and 16 columns, their groups of four, and the block of 128 columns.
EDGES = (1, 15, 17, 64, 65, 130) if SMALL else (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 257)


@formats
def test_dimensions(fmt):
    rng = np.random.default_rng(2)
    for i, d_model in enumerate(EDGES):
        d_out = EDGES[-1 - i]
        Tree(2, d_model, d_out, 1 + i % 2, fmt).check(normal(rng, (5 + 60 * (i % 2), d_model)))


@formats
@pytest.mark.parametrize("depth", range(9 if SMALL else 12))
def test_depths(fmt, depth):
    """Both sides of the depth at which tokens are sorted by subtree: nodes are about 0.3 KB each."""
    rng = np.random.default_rng(3)
    for trees in (1, 2) if depth < 8 else (1,):
        tree = Tree(depth, 24, 20, trees, fmt, threshold=depth % 2 == 1)
        for tokens in (2, 300):
            tree.check(normal(rng, (tokens, 24)), "relu")


@pytest.mark.skipif(SMALL, reason="FASTFFN_TEST_SIZE=small")
def test_sorted_subtrees_of_real_width():
    """1×11 of 768 columns: six levels, a sort, six levels; chunks of several subtrees, and subtrees of several chunks."""
    rng = np.random.default_rng(4)
    tree = Tree(11, 768, 96)
    x = normal(rng, (400, 768))
    x[150:] += x[7] * 20  # most tokens take one way
    tree.check(x)


@plans
@pytest.mark.parametrize("tokens", [40, 700])
def test_all_tokens_in_one_leaf(plan, tokens):
    tree = Tree(10, 33, 40)
    x = np.repeat(normal(np.random.default_rng(5), (1, 33)), tokens, axis=0)
    y = ff.fff(x, tree.packed, activation="gelu", plan=plan)
    assert (y == y[0]).all()
    check(y[:1], tree.bounded(x[:1], ff.fff_route(x[:1], tree.packed).leaf, "gelu"), "f32")


@formats
@plans
def test_same_bits_for_any_company(fmt, plan):
    """A token's bits do not depend on how many tokens its call has, their order, or the number of threads."""
    rng = np.random.default_rng(6)
    for tree in (Tree(11, 24, 36, 1, fmt), Tree(4, 130, 65, 3, fmt)):
        x = normal(rng, (900, tree.info.d_model))
        y = ff.fff(x, tree.packed, activation="silu", plan=plan)
        for some in (slice(0, 1), slice(5, 9), slice(100, 500), np.random.default_rng(7).permutation(900)):
            assert ff.fff(x[some], tree.packed, activation="silu", plan=plan).tobytes() == y[some].tobytes()
        try:
            for threads in (1, 2, 3, 4):
                ff.set_num_threads(threads)
                for count in (1, 7, 900):
                    again = ff.fff(x[:count], tree.packed, activation="silu", plan=plan)
                    assert again.tobytes() == y[:count].tobytes()
        finally:
            ff.set_num_threads(0)  # OpenMP's own number again


@dtypes
@plans
def test_several_trees_round_once(dtype, plan):
    """Trees are added up in f32, whatever y is."""
    tree = Tree(3, 40, 50, 4)
    x = normal(np.random.default_rng(8), (130, 40), dtype)
    y = ff.fff(x, tree.packed, activation="gelu", plan=plan)
    exact = ff.fff(x.astype(np.float32), tree.packed, activation="gelu", plan=plan)
    assert y.tobytes() == exact.astype(DTYPES[dtype]).tobytes()


@plans
@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("tie", ["ge", "gt", None])
def test_ties(plan, form, tie):
    """z = ±0 against thresholds of ±0; z equal to a threshold; and NaN, which goes left."""
    w_node = np.zeros((3, 4), np.float32)
    w_node[:, 0] = 1
    w_out = np.eye(3, 4, dtype=np.float32) if form == "nodes" else None
    threshold = np.array([0.0, -0.0, 2.0], np.float32)
    depth = 1 if form == "nodes" else 2
    x = np.zeros((70, 4), np.float32)
    x[:6, 0] = (0.0, -0.0, 1e-45, -1e-45, 2.0, np.nan)
    tree = ff.pack_tree(w_node, w_out=w_out, threshold=threshold, tie=tie)
    assert ff.tree_info(tree).tie == (tie or ("gt" if form == "nodes" else "ge"))
    ties_right = ff.tree_info(tree).tie == "ge"

    def leaf_of(z):
        node = 0
        for _ in range(depth):
            right = z >= threshold[node] if ties_right else z > threshold[node]
            node = 2 * node + 1 + int(right)
        return node - (2**depth - 1)

    route = ff.fff_route(x, tree, plan=plan)
    assert route.leaf[:6, 0].tolist() == [leaf_of(z) for z in x[:6, 0]]
    assert route.leaf[5, 0] == 0 and np.isnan(route.margin[5, 0])
    assert (route.margin[:2] == 0).all()


@formats
@plans
def test_forced_ways(fmt, plan):
    rng = np.random.default_rng(9)
    for tree in (Tree(5, 30, 20, 2, fmt), Tree(11, 24, 20, 1, fmt)):
        x = normal(rng, (90, tree.info.d_model), "bf16")
        free = ff.fff(x, tree.packed, activation="gelu", plan=plan)
        leaf = np.asarray(ff.fff_route(x, tree.packed).leaf)
        assert ff.fff(x, tree.packed, activation="gelu", leaf=leaf, plan=plan).tobytes() == free.tobytes()
        other = rng.integers(0, tree.info.leaves, leaf.shape)
        y = ff.fff(x, tree.packed, activation="gelu", leaf=other, plan=plan)
        check(y, tree.bounded(x, other, "gelu"), "bf16")
        assert (
            ff.fff(x, tree.packed, activation="gelu", leaf=other.astype(np.int32), plan=plan).tobytes() == y.tobytes()
        )
        assert (
            ff.fff(
                x.reshape(9, 10, -1), tree.packed, activation="gelu", plan=plan,
                leaf=other.reshape(9, 10, -1)[..., 0] if tree.trees == 1 else other.reshape(9, 10, -1),
            ).tobytes()
            == y.tobytes()
        )  # fmt: skip


def test_near_ties_across_formats():
    """Formats round decisions differently; on one way they agree to their own precision."""
    exact = Tree(8, 64, 32)
    x = normal(np.random.default_rng(10), (200, 64))
    leaf = ff.fff_route(x, exact.packed).leaf
    y = ff.fff(x, exact.packed, activation="gelu")
    for fmt, error in (("f16", 0.005), ("bf16", 0.03), ("int8", 0.06)):
        tree = Tree(8, 64, 32, fmt=fmt)
        moved = (np.asarray(ff.fff_route(x, tree.packed).leaf) != leaf).any(-1)
        assert 0 < moved.mean() < 0.5 or fmt == "f16"
        forced = ff.fff(x, tree.packed, activation="gelu", leaf=leaf)
        assert np.linalg.norm(forced - y) < error * np.linalg.norm(y)
        # With decisions in f32 and outputs in the format, every token goes where f32 sends it.
        mixed = Tree(8, 64, 32, fmt=fmt, route_format="f32")
        assert (np.asarray(ff.fff_route(x, mixed.packed).leaf) == leaf).all()


@pytest.mark.parametrize("fmt", (*FORMATS, *SPARSE24))
@pytest.mark.parametrize("shape", [(0, 2, 3, 1), (1, 1, 1, 1), (2, 8, 20, 3), (3, 32, 24, 1)], ids=str)
def test_leaf_form(fmt, shape):
    depth, width, d_out, trees = shape
    rng = np.random.default_rng(11)
    tree = Tree(depth, 40, trees=trees)
    leaves = trees * 2**depth
    w_up, w_down = (pack(normal(rng, (leaves, *s), scale=s[1] ** -0.5), fmt) for s in ((width, 40), (d_out, width)))
    b_up, b_down = normal(rng, (leaves, width), "bf16"), normal(rng, (leaves, d_out), "f16")
    values = [packed_values(p).reshape(trees, 2**depth, *s) for p, s in ((w_up, (width, 40)), (w_down, (d_out, width)))]
    for tokens, biases, dtype in ((1, False, "f32"), (5, True, "bf16"), (100, True, "f32"), (100, False, "f16")):
        x = normal(rng, (tokens, 40), dtype)
        b = {"b_up": b_up, "b_down": b_down} if biases else {}
        leaf = tree.check_route(x)
        y = ff.fff(x, tree.packed, w_up, w_down, **b, activation="gelu")
        again = ff.fff(x, tree.packed, w_up, w_down, **b, activation="gelu", leaf=leaf)
        assert y.tobytes() == again.tobytes()
        total = Bounded.exact(np.zeros((tokens, d_out)))
        for k in range(trees):
            for n in range(2**depth):
                here = leaf[:, k] == n
                bias = {m: v[k * 2**depth + n].astype(np.float64) for m, v in b.items()}
                part = tolerance.ffn(
                    x[here].astype(np.float64), values[0][k, n], values[1][k, n], fmt, **bias, activation="gelu"
                )
                total.value[here] += part.value
                total.error[here] += part.error + trees * U * np.abs(part.value)
        check(y, Bounded(total.value, total.error + trees * U * np.abs(total.value)), dtype)


@pytest.mark.parametrize("mix", [None, 0.5, -3.0, 200.0])
@dtypes
def test_master(mix, dtype):
    rng = np.random.default_rng(12)
    tree = Tree(4, 40, 30)
    x = normal(rng, (3, 50, 40), dtype)
    up, down = normal(rng, (8, 40), scale=0.2), normal(rng, (30, 8), scale=0.3)
    b_up, b_down = normal(rng, 8), normal(rng, 30)
    w = {"master_up": ff.pack(up, "f32"), "master_down": ff.pack(down, "f32")}
    y = ff.fff(x, tree.packed, activation="silu", **w, master_b_up=b_up, master_b_down=b_down, mix=mix)
    flat = x.reshape(-1, 40)
    leaf = ff.fff_route(flat, tree.packed).leaf
    part = tree.bounded(flat, leaf, "silu")
    dense = tolerance.ffn(
        flat.astype(np.float64), *(a.astype(np.float64) for a in (up, down)), "f32",
        b_up=b_up.astype(np.float64), b_down=b_down.astype(np.float64), activation="silu",
    )  # fmt: skip
    share = 1.0 if mix is None else oracle.sigmoid(mix)
    other = 1.0 if mix is None else oracle.sigmoid(-mix)
    value = share * part.value + other * dense.value
    error = (
        share * part.error + other * dense.error + 4 * U * (np.abs(share * part.value) + np.abs(other * dense.value))
    )
    check(y.reshape(-1, 30), Bounded(value, error + SMALLEST), dtype)


@dtypes
@plans
def test_layouts(dtype, plan):
    """Strided, unaligned, three-dimensional; out= of another dtype."""
    tree = Tree(9, 48, 33, 2)
    rng = np.random.default_rng(13)
    big = normal(rng, (70, 3, 96), dtype)
    x = big[:, ::2, 5:53]
    expected = ff.fff(np.ascontiguousarray(x), tree.packed, activation="gelu", plan=plan)
    assert ff.fff(x, tree.packed, activation="gelu", plan=plan).tobytes() == expected.tobytes()
    for other in DTYPES:
        room = np.full((70, 4, 40), 7, DTYPES[other])
        out = room[:, 1:3, 3:36]
        assert ff.fff(x, tree.packed, activation="gelu", plan=plan, out=out) is out
        exact = ff.fff(x.astype(np.float32), tree.packed, activation="gelu", plan=plan)
        assert (out == exact.astype(DTYPES[other])).all()
        out[...] = 7
        assert (room == 7).all()
    shifted = np.zeros(70 * 48 + 1, np.float32)[1:].reshape(70, 48)
    shifted[...] = x[:, 0].astype(np.float32)
    assert ff.fff(shifted, tree.packed, activation="gelu", plan=plan).tobytes() == exact[:, 0].tobytes()
    tree_shifted = np.zeros(tree.packed.size + 1, np.uint8)[1:]
    tree_shifted[...] = tree.packed
    assert ff.fff(x, tree_shifted, activation="gelu", plan=plan).tobytes() == expected.tobytes()


@plans
@pytest.mark.parametrize("shape", [(0, 20), (3, 0, 20), (20,)], ids=str)
def test_no_and_single_tokens(plan, shape):
    tree = Tree(3, 20, 10)
    x = np.ones(shape, np.float32)
    y = ff.fff(x, tree.packed, activation="gelu", plan=plan)
    assert y.shape == (*shape[:-1], 10)
    assert ff.fff_route(x, tree.packed, plan=plan).leaf.shape == (*shape[:-1], 1)


@formats
@plans
def test_nan_and_infinity_stay_in_their_token(fmt, plan):
    tree = Tree(6, 40, 50, 2, fmt)
    x = normal(np.random.default_rng(14), (80, 40))
    clean = ff.fff(x, tree.packed, activation="gelu", plan=plan)
    bad = x.copy()
    bad[3, 7], bad[11, 0] = np.nan, np.inf
    y = ff.fff(bad, tree.packed, activation="gelu", plan=plan)
    assert np.isnan(y[3]).all() and not np.isfinite(y[11]).all()
    keep = np.ones(80, bool)
    keep[[3, 11]] = False
    assert y[keep].tobytes() == clean[keep].tobytes()
    assert (ff.fff_route(bad, tree.packed, plan=plan).leaf[3] == 0).all()


@plans
def test_infinite_outputs_are_not_skipped(plan):
    """relu makes zeros, whose rows are skipped; but zero times infinity is NaN."""
    tree = Tree(3, 20, 16)
    parts = dict(tree.plain)
    parts["w_out"] = parts["w_out"].copy()
    parts["w_out"][0, 0, 3] = np.inf
    x = normal(np.random.default_rng(15), (66, 20))
    z = ff.fff_route(x, tree.packed, z=True).z[:, 0, 0]
    y = ff.fff(x, ff.pack_tree(**parts), activation="relu", plan=plan)
    assert (z > 0).any() and (z < 0).any()
    assert np.isinf(y[z > 0, 3]).all() and np.isnan(y[z < 0, 3]).all() and np.isfinite(y[:, :3]).all()


@formats
def test_pack_and_unpack(fmt):
    for trees, d_out in ((1, 20), (3, 0)):
        tree = Tree(3, 30, d_out, trees, fmt, threshold=True)
        back = ff.unpack_tree(tree.packed)
        for name in ("b_node", "threshold"):
            assert (back[name] == tree.plain[name]).all()
        for name in ("w_node", "w_out"):
            if tree.plain[name] is None:
                assert back[name] is None
                continue
            expected = weight_values(tree.plain[name].astype(np.float64), fmt)
            step = np.abs(tree.plain[name]).max(-1, keepdims=True) / 127 if fmt == "int8" else 0
            # A code may round the other way where f32 moves the quotient across a half.
            assert (np.abs(back[name] - expected) <= 1.001 * step + 4 * U * np.abs(expected)).all()
            assert np.mean(np.abs(back[name] - expected) > 4 * U * np.abs(expected)) < 0.01
        info = tree.info
        assert (info.form, info.trees, info.depth, info.d_out) == ("nodes" if d_out else "leaf", trees, 3, d_out)
        assert info.format == info.route_format == fmt and info.has_bias and info.has_threshold
        assert info.nbytes == tree.packed.nbytes
        ff.verify_tree(tree.packed)


def test_workspace():
    for tree in (Tree(11, 24, 36), Tree(4, 33, 10, 3, "bf16")):
        for tokens in (1, 70, 600):
            x = normal(np.random.default_rng(16), (tokens, tree.info.d_model))
            sizes = [ff.fff_workspace(x, tree.packed, threads=t) for t in (1, 2)]
            assert all(0 < size < 20_000_000 for size in sizes)
            assert sizes[0] == ff.fff_workspace(x, tree.packed, activation="gelu", threads=1)


def test_kernels_of_this_run():
    level = _core.machine()["isa_chosen"]
    expected = level if level in ("ref", "avx2") else "avx512base"
    ff.fff(np.ones((1, 20), np.float32), Tree(3, 20, 10).packed, activation="gelu")
    assert _core.last_kernel() == f"tree/{expected}"
