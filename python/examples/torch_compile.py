"""fastffn's layers inside a torch model: compiled without a graph break, exported, trained, and run on packed weights.

python python/examples/torch_compile.py
"""

import torch

import fastffn.torch as ft

torch.manual_seed(0)
d_model, d_ff, experts = 64, 192, 8


class Block(torch.nn.Module):
    """A norm and a residual around a dense and a sparse layer."""

    def __init__(self, dense: torch.nn.Module, sparse: torch.nn.Module) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(d_model)
        self.dense, self.sparse = dense, sparse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dense(self.norm(x))
        return x + self.sparse(self.norm(x))


# Train: plain parameters, packed in every forward pass, so the loss is that of the format.
block = Block(
    ft.FFN(d_model, d_ff, activation="silu", gated=True, format="int8", trainable=True),
    ft.MoE(d_model, d_ff // 4, experts=experts, k=2, activation="silu", trainable=True),
)
x = torch.randn(256, d_model)
target = torch.tanh(x @ torch.randn(d_model, d_model) / 8)
optimizer = torch.optim.Adam(block.parameters(), lr=3e-3)
for step in range(60):
    loss = torch.nn.functional.mse_loss(block(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0 or step == 59:
        print(f"step {step:2}: loss {loss.item():.4f}")

# Pack: the same function on a fraction of the bytes; the weights are uint8 buffers of the state_dict.
packed = Block(block.dense.packed(), block.sparse.packed()).eval()
packed.norm.load_state_dict(block.norm.state_dict())
print(packed)


def bytes_of(module: torch.nn.Module) -> int:
    return sum(t.nbytes for t in module.state_dict().values())


print(f"{bytes_of(block)} bytes trained, {bytes_of(packed)} packed")

with torch.no_grad():
    expected = packed(x)
    assert torch.allclose(expected, block(x), atol=1e-4)

    # Compile: fullgraph=True is an error where a graph breaks. (Backend "inductor", the default, needs a C++ compiler.)
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (1, 7, 256):
        assert torch.equal(compiled(x[:tokens]), packed(x[:tokens]))
    print("compiled: one graph for any number of tokens")

    # Export: the operators are torch.ops.fastffn.*, the packed weights are buffers of the program.
    program = torch.export.export(packed, (x,), dynamic_shapes={"x": {0: torch.export.Dim("tokens")}})
    assert torch.equal(program.module()(x[:33]), packed(x[:33]))
    operators = {str(node.target) for node in program.graph.nodes if "fastffn" in str(node.target)}
    print("exported:", ", ".join(sorted(operators)))
