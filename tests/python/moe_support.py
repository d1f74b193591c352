"""What the tests of moe share: a random mixture in one or several formats, packed and as the values it stands for."""

import mmap
from dataclasses import dataclass, field

import numpy as np
import pytest

import fastffn as ff
from kernel_support import check, normal, pack
from reference import moe as oracle

_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python 3.10 does not name
SPECIAL_KINDS = ("zero", "copy", "constant", "constant")


def stack_values(packed):
    """[count, out, in] float64 of a packed stack."""
    values = np.asarray(ff.unpack(packed, "f32")).astype(np.float64)
    return values if values.ndim == 3 else values[None]


@dataclass
class Stack:
    """Experts of one shape and format."""

    fmt: str
    count: int
    d_model: int
    d_ff: int
    gated: bool = True
    bias: str | None = None
    d_out: int = 0
    seed: int = 0
    arguments: dict = field(init=False)  # as moe takes them
    experts: list = field(init=False)  # as the oracle does

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, self.count, self.d_model, self.d_ff])
        d_out = self.d_out or self.d_model
        shapes = {"w_up": (self.d_ff, self.d_model), "w_down": (d_out, self.d_ff)}
        if self.gated:
            shapes["w_gate"] = (self.d_ff, self.d_model)
        self.arguments = {
            name: pack(normal(rng, (self.count, *shape), scale=shape[1] ** -0.5), self.fmt)
            for name, shape in shapes.items()
        }
        values = {name: stack_values(packed) for name, packed in self.arguments.items()}
        if self.bias:
            for name, shape in shapes.items():
                bias = normal(rng, (self.count, shape[0]), self.bias)
                self.arguments["b" + name[1:]] = bias
                values["b" + name[1:]] = bias.astype(np.float64)
        self.experts = [
            oracle.Expert(fmt=self.fmt, **{name: value[e] for name, value in values.items()}) for e in range(self.count)
        ]


@dataclass
class Mixture:
    """A layer of stacks, shared stacks and special experts."""

    stacks: list
    activation: str = "silu"
    shared: list = field(default_factory=list)
    gated_shared: bool = False
    special: tuple = ()
    weights_on_input: bool = False
    seed: int = 0
    keywords: dict = field(init=False)
    oracle_shared: list = field(init=False)
    oracle_special: oracle.Special = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, 77])
        d_model = self.stacks[0].d_model
        names = self.stacks[0].arguments.keys()
        if len(self.stacks) == 1:
            self.keywords = dict(self.stacks[0].arguments)
        else:
            self.keywords = {name: [stack.arguments[name] for stack in self.stacks] for name in names}
        self.oracle_shared, made = [], []
        for stack in self.shared:
            gate = normal(rng, (stack.count, d_model), scale=d_model**-0.5) if self.gated_shared else None
            made.append(ff.SharedExperts(**stack.arguments, gate=gate))
            for e, expert in enumerate(stack.experts):
                expert.gate = None if gate is None else gate[e]
                self.oracle_shared.append(expert)
        if made:
            self.keywords["shared"] = made if len(made) > 1 else made[0]
        constants = self.special.count("constant")
        self.oracle_special = oracle.Special(self.special)
        if constants:
            vectors = normal(rng, (constants, d_model))
            mix = normal(rng, (constants, 2, d_model), scale=d_model**-0.5)
            self.oracle_special = oracle.Special(self.special, vectors, mix)
            self.keywords["special"] = ff.SpecialExperts(self.special, vectors, mix)
        elif self.special:
            self.keywords["special"] = self.special

    @property
    def experts(self):
        return [expert for stack in self.stacks for expert in stack.experts]

    @property
    def ids_end(self):
        return len(self.experts) + len(self.special)

    def __call__(self, x, ids, weights, **keywords):
        return ff.moe(
            x,
            ids,
            weights,
            **self.keywords,
            activation=self.activation,
            weights_on_input=self.weights_on_input,
            **keywords,
        )

    def bounded(self, x, ids, weights):
        return oracle.moe(
            x.astype(np.float64),
            ids,
            weights,
            self.experts,
            self.activation,
            self.oracle_shared,
            self.oracle_special,
            self.weights_on_input,
        )

    def check(self, x, ids, weights):
        y = self(x, ids, weights)
        check(y, self.bounded(x, ids, weights), str(x.dtype))
        return y


def one_stack(fmt, experts=8, d_model=50, d_ff=70, **options):
    mixture = {name: options.pop(name) for name in list(options) if name in Mixture.__dataclass_fields__}
    return Mixture([Stack(fmt, experts, d_model, d_ff, **options)], **mixture)


def far_rows(rows):
    """The same rows, 2^31 elements apart from each other: memory that nobody touches takes none."""
    stride = 2**31 * rows.itemsize
    try:
        memory = mmap.mmap(-1, stride * len(rows), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except (OSError, ValueError, OverflowError):
        pytest.skip("no address space for rows 2^31 elements apart")
    far = np.ndarray(rows.shape, rows.dtype, memory, strides=(stride, rows.itemsize))
    far[:] = rows
    return far


def random_route(rng, tokens, k, experts, zipf=False):
    """Distinct experts per token with weights that sum to 1."""
    scores = rng.random((tokens, experts))
    if zipf:
        scores = rng.exponential(size=(tokens, experts)) * np.arange(1, experts + 1) ** 1.2
    ids = np.argsort(scores, axis=1)[:, :k].astype(np.int32)
    weights = rng.random((tokens, k)).astype(np.float32) + np.float32(0.1)
    return ids, weights / weights.sum(axis=1, keepdims=True) if k else weights
