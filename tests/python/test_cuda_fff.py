"""Trees on devices: routes and sums against the float64 oracle, leaves and masters beside the CPU's; see cuda_support.py."""

import pickle

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DTYPES
from fff_support import oracle, random_weights, tokens
from kernel_support import check, normal
from test_kernels_fff import FORMATS, Tree

PLANS = ("auto", "per_token", "grouped")
formats = pytest.mark.parametrize("fmt", FORMATS)
plans = pytest.mark.parametrize("plan", PLANS)


class OnDevice(Tree):
    """The same trees on a device; rows go there and come back."""

    def __init__(self, cuda, *args, fmt="f32", **keywords):
        super().__init__(*args, fmt=fmt, **keywords)
        self.cuda = cuda
        self.device_tree = ff.to_device(self.packed, cuda.device())

    def route(self, x, **keywords):
        found = ff.fff_route(self.cuda.put(x), self.device_tree, z=True, **keywords)
        return ff.FffRoute(*(np.asarray(self.cuda.get(part)) for part in found))

    def run(self, x, **keywords):
        return self.cuda.get(ff.fff(self.cuda.put(x), self.device_tree, **keywords))


@formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_node(cuda, fmt, dtype):
    if dtype not in cuda.dtypes:
        pytest.skip(f"{cuda.name} has no arrays of these")
    rng = np.random.default_rng(1)
    for trees, count, depth in ((1, 1, 3), (2, 3, 2), (1, 70, 7)):
        tree = OnDevice(cuda, depth, 50, 70, trees, fmt=fmt, threshold=depth == 7)
        x = normal(rng, (count, 50), dtype)
        for plan in PLANS:
            # The oracle goes the way that the device went, which near a threshold may differ between plans.
            leaf = tree.check_route(x, plan=plan)
            check(tree.run(x, activation="gelu", plan=plan), tree.bounded(x, leaf, "gelu"), dtype)


@pytest.mark.parametrize("depth", [0, 1, 5, 11])
def test_depths(cuda, depth):
    rng = np.random.default_rng(2)
    for form_out in (0, 9):
        tree = OnDevice(cuda, depth, 24, form_out, fmt="bf16", threshold=True)
        for count in (2, 90):
            for plan in PLANS:
                tree.check_route(normal(rng, (count, 24), "bf16" if "bf16" in cuda.dtypes else "f16"), plan=plan)


@plans
@pytest.mark.parametrize("master", [0, 7])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 35)])
def test_leaves(cuda, plan, master, shape):
    weights = random_weights(trees=2, depth=3, master=master, activation="silu")
    x = tokens(int(np.prod(shape, dtype=int)), seed=3).reshape(*shape, 24)
    packed = ff.pack_fff(weights, device=cuda.device())
    y = cuda.get(packed(cuda.put(x), plan=plan))
    expected = oracle(weights, x.reshape(-1, 24))[0].reshape(*shape, 20) if x.size else np.zeros((*shape, 20))
    assert y.shape == expected.shape and y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("fmt", ["f16", "bf16", "int8"])
def test_leaves_in_other_formats(cuda, fmt):
    """Beside the CPU: hidden activations on the edge between two numbers of the format may fall either way."""
    weights = random_weights(depth=4, width=33, activation="gelu")
    for count in (3, 80):
        x = tokens(count, seed=5)
        expected = ff.pack_fff(weights, fmt)(x)
        y = cuda.get(ff.pack_fff(weights, fmt, device=cuda.device())(cuda.put(x)))
        assert np.abs(y - expected).max() <= 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("form", ["leaf", "nodes"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_forced_leaves(cuda, form, dtype):
    weights = random_weights(form, trees=2, depth=3, master=4)
    x, leaf = tokens(9), np.random.default_rng(4).integers(0, 8, (9, 2)).astype(dtype)
    packed = ff.pack_fff(weights, device=cuda.device())
    expected = oracle(weights, x, leaf)[0]
    np.testing.assert_allclose(cuda.get(packed(cuda.put(x), leaf=cuda.put(leaf))), expected, rtol=0, atol=2e-5)
    # A leaf that is not there: nobody waits to see it, so the token's row says so.
    leaf[4, 1] = 8
    lost = cuda.get(packed(cuda.put(x), leaf=cuda.put(leaf)))
    assert np.isnan(lost[4]).all() and np.isfinite(np.delete(lost, 4, 0)).all()


def test_out_strides_stream_and_workspace(cuda):
    tree = OnDevice(cuda, 4, 24, 20)
    rng = np.random.default_rng(6)
    values = normal(rng, (12, 40))
    x = cuda.strided(values, slice(1, 12, 2), slice(3, 27))
    expected = ff.fff(values[1:12:2, 3:27], tree.packed, activation="relu")
    out = cuda.full((6, 20), np.nan, "f32")
    assert ff.fff(x, tree.device_tree, activation="relu", out=out) is out
    np.testing.assert_allclose(cuda.get(out), expected, rtol=0, atol=1e-5)
    needed = ff.fff_workspace(x, tree.device_tree, activation="relu")
    y = ff.fff(x, tree.device_tree, activation="relu", stream=0, workspace=cuda.bytes(needed))
    np.testing.assert_array_equal(cuda.get(y), cuda.get(out))
    with pytest.raises(ValueError, match=r"workspace has \d+ bytes, expected"):
        ff.fff(x, tree.device_tree, activation="relu", workspace=cuda.bytes(needed - 1))
    assert ff.device_workspace(ff.fff_route, x, tree.device_tree) > 0


@formats
def test_trees_move_and_come_back(cuda, fmt):
    rng = np.random.default_rng(7)
    for form_out in (0, 13):
        parts = {
            "w_node": normal(rng, (2, 15 if form_out else 7, 33)),
            "threshold": normal(rng, (2, 15 if form_out else 7)),
        }
        if form_out:
            parts["w_out"] = normal(rng, (2, 15, form_out))
        host = ff.pack_tree(**parts, format=fmt)
        moved = ff.pack_tree(**parts, format=fmt, device=cuda.device())
        assert isinstance(moved, ff.DeviceTree)
        assert np.asarray(ff.to_cpu(moved)).tobytes() == host.tobytes()
        assert np.asarray(ff.to_cpu(moved.copy_to_host())).tobytes() == host.tobytes()
        here, there = ff.tree_info(host), ff.tree_info(moved)
        assert here.nbytes == host.nbytes and there.nbytes == moved.nbytes
        assert all(getattr(here, n) == getattr(there, n) for n in ("form", "trees", "depth", "format", "tie", "d_out"))
        ff.verify_tree(moved)
        unpacked, theirs = ff.unpack_tree(host), ff.unpack_tree(moved)
        for name, part in unpacked.items():
            assert (part is None) == (theirs[name] is None)
            if part is not None:
                np.testing.assert_array_equal(part, cuda.get(theirs[name]))
        again = ff.device_tree(moved.array)
        assert again.header == moved.header and "cuda:0" in repr(again) and "2x3" in repr(again)


def test_stats(cuda):
    tree = OnDevice(cuda, 3, 24)
    x = tokens(50)
    here, there = ff.fff_stats(x, tree.packed), ff.fff_stats(cuda.put(x), tree.device_tree)
    np.testing.assert_array_equal(here.leaf_counts, there.leaf_counts)
    assert str(there).startswith("50 tokens")


def test_pickle(cuda):
    if cuda.name == "emulated":
        pytest.skip("arrays in disguise are pickled by no framework")
    moved = OnDevice(cuda, 2, 8).device_tree
    assert pickle.loads(pickle.dumps(moved)).header == moved.header


def test_refusals(cuda):
    tree = OnDevice(cuda, 3, 24)
    weights = random_weights(depth=3)
    packed, on_cpu = ff.pack_fff(weights, device=cuda.device()), ff.pack_fff(weights)
    x = tokens(4)
    w_up, w_down = packed.options["w_up"], packed.options["w_down"]

    def refused(error, match, *args, **keywords):
        with pytest.raises(error, match=match):
            ff.fff(*args, activation="relu", **keywords)

    refused(ValueError, "w_down is missing", cuda.put(x), packed.tree, w_up)
    refused(ValueError, "w_up is packed for CUDA device 0", x, on_cpu.tree, w_up, w_down)
    refused(
        TypeError,
        "w_up has type .*ndarray, expected a DeviceWeight",
        cuda.put(x),
        packed.tree,
        on_cpu.options["w_up"],
        w_down,
    )
    refused(ValueError, "stream is for trees on CUDA devices", x, on_cpu.tree, stream=0)
    refused(ValueError, "workspace is for trees on CUDA devices", x, on_cpu.tree, workspace=np.zeros(8, np.uint8))
    refused(ValueError, r"x has shape \(4, 23\)", cuda.put(x[:, :23]), packed.tree, w_up, w_down)
    with pytest.raises(Exception, match="x "):
        ff.fff(x, packed.tree, w_up, w_down, activation="relu")  # x on the CPU
    with pytest.raises(ValueError, match="needs a gate"):
        ff.fff(cuda.put(x), packed.tree, w_up, w_down, activation="swiglu_clamped")
    with pytest.raises(ValueError, match="expected a contiguous array on CUDA devices"):
        b_up = cuda.strided(np.zeros((8, 10), np.float32), slice(0, 8), slice(0, 5))
        ff.fff(cuda.put(x), packed.tree, w_up, w_down, b_up, activation="relu")
    with pytest.raises(ValueError, match="fff_route: stream is for trees"):
        ff.fff_route(x, on_cpu.tree, stream=0)
    with pytest.raises(ValueError, match="leave it out"):
        ff.fff_workspace(cuda.put(x), tree.device_tree, threads=2)
    with pytest.raises(ValueError, match="tree is packed for the CPU"):
        ff.device_tree(cuda.put(on_cpu.tree))
    with pytest.raises(ValueError, match="not a packed tree"):
        ff.device_tree(cuda.put(np.zeros(256, np.uint8)))
    damaged = packed.tree.copy_to_host()
    damaged[300] ^= 1
    with pytest.raises(ValueError, match="damaged weights"):
        ff.to_cpu(damaged)
