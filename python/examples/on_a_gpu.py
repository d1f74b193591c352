"""fastffn on an NVIDIA GPU: weights in its order, layers on its arrays, a CUDA graph. Without a GPU it says what is missing.

python python/examples/on_a_gpu.py

Arrays are torch's, or cupy's where torch finds no device. Never run on a GPU so far.
"""

import importlib

import numpy as np

import fastffn as ff
from fastffn import _core

D_MODEL, D_FF, EXPERTS, TOKENS = 256, 1024, 8, 4
DEVICE = "cuda:0"


def framework() -> object | None:
    """torch or cupy, whichever finds a device."""
    for name in ("torch", "cupy"):
        try:
            module = importlib.import_module(name)
            if name == "torch" and module.cuda.is_available():
                return module
            if name == "cupy" and module.cuda.runtime.getDeviceCount():
                return module
        except Exception as error:  # not installed, or no driver
            print(f"{name}: {error}")
    return None


def tour(xp: object) -> None:
    """Every call on arrays of `xp`, held against the CPU."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def put(values: np.ndarray) -> object:
        return xp.from_numpy(values).to(DEVICE) if xp.__name__ == "torch" else xp.asarray(values)

    def get(array: object) -> np.ndarray:
        return array.cpu().numpy() if xp.__name__ == "torch" else xp.asnumpy(array)

    device = DEVICE if xp.__name__ == "torch" else xp.cuda.Device(0)  # a name asks for torch first
    w_up, w_gate, w_down = weights(D_FF, D_MODEL), weights(D_FF, D_MODEL), weights(D_MODEL, D_FF)
    host = rng.standard_normal((TOKENS, D_MODEL)).astype(np.float32)
    x = put(host)

    # Pack for the device at once, or move what is packed for the CPU already: the same bytes either way.
    up, gate = (ff.pack(w, "bf16", device=device) for w in (w_up, w_gate))
    on_cpu = ff.pack(w_down, "int8")
    down = ff.to_device(on_cpu, device)
    assert (ff.to_cpu(down) == on_cpu).all()
    print(repr(up), repr(down))

    y = ff.ffn(x, up, down, gate, activation="silu")  # on the stream that the framework works on; waits for nothing
    expected = ff.ffn(host, ff.pack(w_up, "bf16"), on_cpu, ff.pack(w_gate, "bf16"), activation="silu")
    print(f"ffn   {type(y).__module__} {tuple(y.shape)}, {np.abs(get(y) - expected).max():.1e} from the CPU's")

    out = put(np.zeros((TOKENS, D_MODEL), np.float32))
    workspace = put(np.zeros(ff.ffn_workspace(x, up, down, gate, activation="silu"), np.uint8))
    ff.ffn(x, up, down, gate, activation="silu", out=out, workspace=workspace)  # allocates nothing at all
    assert (get(out) == get(y)).all()  # the same bits
    ff.linear(x, up, stream=1)  # 1: the legacy default stream; or an object with __cuda_stream__

    stacks = [weights(EXPERTS, D_FF, D_MODEL), weights(EXPERTS, D_MODEL, D_FF), weights(EXPERTS, D_FF, D_MODEL)]
    experts = [ff.pack(w, "int4", device=device) for w in stacks]
    ids, shares = ff.route_topk(put(weights(TOKENS, EXPERTS)), 2, renormalize=True)
    y = ff.moe(x, ids, shares, *experts, activation="silu")
    print(f"moe   {type(y).__module__} {tuple(y.shape)}, picks {get(ids).tolist()}")

    if xp.__name__ == "torch":
        replay(xp, x, up, down, gate, out)


def replay(torch: object, x: object, up: object, down: object, gate: object, out: object) -> None:
    """A layer captured in a CUDA graph: one launch from the host for all its kernels."""
    ff.ffn(x, up, down, gate, activation="silu", out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ff.ffn(x, up, down, gate, activation="silu", out=out)
    x.mul_(0.5)
    graph.replay()  # sees the x of now
    captured = out.clone()
    ff.ffn(x, up, down, gate, activation="silu", out=out)
    assert torch.equal(captured, out)
    print("graph replays a layer, the same bits as a call")


def main() -> None:
    """The tour, or why there is none."""
    report = _core.cuda()
    if not report["available"]:
        print(f"CUDA is unavailable: {report['reason']} (python -m fastffn says more)")
    elif (found := framework()) is None:
        print("neither torch nor cupy finds a device; one of them has to make the arrays")
    else:
        tour(found)


if __name__ == "__main__":
    main()
