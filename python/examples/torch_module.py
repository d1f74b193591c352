"""A torch module whose weights are packed: load from a plain one, run without gradients, save as a state_dict.

python python/examples/torch_module.py
"""

import torch

import fastffn as ff


class PackedFFN(torch.nn.Module):
    """down(gelu(up(x))), for inference."""

    def __init__(self, up: torch.nn.Linear, down: torch.nn.Linear, format: str = "bf16") -> None:
        super().__init__()
        self.register_buffer("w_up", ff.pack(up.weight, format))
        self.register_buffer("w_down", ff.pack(down.weight, format))
        self.register_buffer("b_up", up.bias.detach().clone())
        self.register_buffer("b_down", down.bias.detach().clone())

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return ff.ffn(x, self.w_up, self.w_down, b_up=self.b_up, b_down=self.b_down, activation="gelu", out=out)


torch.manual_seed(0)
up, down = torch.nn.Linear(256, 1024), torch.nn.Linear(1024, 256)
x = torch.randn(2, 16, 256)
with torch.no_grad():
    expected = down(torch.nn.functional.gelu(up(x)))
    for format in ("f32", "f16", "bf16", "int8"):
        layer = PackedFFN(up, down, format)
        y = layer(x)
        layer(x, out=y)  # a decode loop allocates nothing
        error = (y - expected).norm() / expected.norm()
        size = sum(buffer.nbytes for buffer in layer.state_dict().values())
        print(f"{format:5} {size:8} bytes in the state_dict, error {error:.1e}")
