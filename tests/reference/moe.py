"""Mixture of experts in float64.

    y[t] = Σ_j weights[t, j] · expert_{ids[t, j]}(x[t])  +  Σ_s gate_s(x[t]) · shared_s(x[t])

with experts as in reference.ffn, and MoE++'s experts without matrices (arXiv:2410.07348) after them: zero: 0, copy: x,
constant: a0 · x + a1 · v with (a0, a1) = softmax(W_c · x).

Values come with the bound that reference.tolerance derives for an f32 implementation: an expert's own, then the weighted sum.
"""

from dataclasses import dataclass, field

import numpy as np

from . import tolerance
from .route import sigmoid
from .tolerance import Bounded, U, accumulation_units


@dataclass
class Expert:
    """The values of an expert's packed weights, and their format."""

    w_up: np.ndarray
    w_down: np.ndarray
    w_gate: np.ndarray | None = None
    b_up: np.ndarray | None = None
    b_down: np.ndarray | None = None
    b_gate: np.ndarray | None = None
    fmt: str = "f32"
    gate: np.ndarray | None = None  # of a shared expert: v [d_model]

    def __call__(self, x, activation):
        return tolerance.ffn(
            x,
            self.w_up,
            self.w_down,
            self.fmt,
            w_gate=self.w_gate,
            b_up=self.b_up,
            b_down=self.b_down,
            b_gate=self.b_gate,
            activation=activation,
        )


@dataclass
class Special:
    kinds: tuple = ()
    vectors: np.ndarray | None = None  # [constants, d_model]
    mix: np.ndarray | None = None  # [constants, 2, d_model]


@dataclass
class _Sum:
    """Σ w · v, term by term: the errors of terms, and the magnitude that f32 sums round with."""

    value: np.ndarray
    error: np.ndarray = field(init=False)
    magnitude: np.ndarray = field(init=False)
    terms: np.ndarray = field(init=False)

    def __post_init__(self):
        self.error = np.zeros_like(self.value)
        self.magnitude = np.zeros_like(self.value)
        self.terms = np.zeros(len(self.value))

    def add(self, rows, weight, term, weight_error=0.0):
        """term: a Bounded [rows, d]; weight [rows, 1]."""
        self.value[rows] += weight * term.value
        self.error[rows] += np.abs(weight) * term.error + weight_error * (np.abs(term.value) + term.error)
        self.magnitude[rows] += np.abs(weight * term.value)
        self.terms[rows] += 1

    def bounded(self):
        """A term meets a rounding of its product and one per addition."""
        rounds = (self.terms + 4)[:, None] * U * (self.magnitude + self.error)
        return Bounded(self.value, self.error + rounds + tolerance.SMALLEST_NORMAL * (self.terms[:, None] + 1))


def moe(x, ids, weights, experts, activation="silu", shared=(), special=None, weights_on_input=False):
    """x [tokens, d_model], ids and weights [tokens, k] (weights None: all 1): a Bounded [tokens, d_model_out]."""
    x = np.asarray(x, np.float64)
    ids = np.asarray(ids)
    weights = np.ones(ids.shape) if weights is None else np.asarray(weights, np.float64)
    special = special or Special()
    total = _Sum(np.zeros((len(x), experts[0].w_down.shape[0])))
    for e, expert in enumerate(experts):
        for j in range(ids.shape[1]):
            rows = np.flatnonzero(ids[:, j] == e)
            if not len(rows):
                continue
            w = weights[rows, j][:, None]
            if weights_on_input:
                scaled = Bounded(x[rows] * w, U * np.abs(x[rows] * w) + tolerance.SMALLEST)
                total.add(rows, np.ones_like(w), expert(scaled, activation))
            else:
                total.add(rows, w, expert(x[rows], activation))
    constant = 0
    for i, kind in enumerate(special.kinds):
        for j in range(ids.shape[1]):
            rows = np.flatnonzero(ids[:, j] == len(experts) + i)
            w = weights[rows, j][:, None]
            if kind == "copy":
                total.add(rows, w, Bounded.exact(x[rows]))
            elif kind == "constant":
                total.add(rows, w, _constant(x[rows], special.vectors[constant], special.mix[constant]))
        constant += kind == "constant"
    everyone = np.arange(len(x))
    for expert in shared:
        if expert.gate is None:
            total.add(everyone, np.ones((len(x), 1)), expert(x, activation))
            continue
        v = np.asarray(expert.gate, np.float64)
        dot, magnitude = x @ v, np.abs(x) @ np.abs(v)
        # The slope of σ is at most 1/4; and 8 u for the exponential, the sum and the quotient.
        error = 0.25 * accumulation_units(len(v)) * U * magnitude + 8 * U * (1 + np.abs(dot)) * sigmoid(dot)
        total.add(everyone, sigmoid(dot)[:, None], expert(x, activation), error[:, None])
    return total.bounded()


def _constant(x, v, mix):
    x, v, mix = (np.asarray(a, np.float64) for a in (x, v, mix))
    logits = x @ mix.T
    error = accumulation_units(x.shape[1]) * U * (np.abs(x) @ np.abs(mix).T)
    a1 = sigmoid(logits[:, 1] - logits[:, 0])[:, None]
    # d σ <= 1/4 of the difference's error, and the exponential's rounding.
    a_error = 0.25 * error.sum(axis=1, keepdims=True) + 8 * U * (1 + np.abs(logits).sum(axis=1, keepdims=True))
    value = (1 - a1) * x + a1 * v
    return Bounded(value, a_error * (np.abs(x) + np.abs(v)) + 4 * U * (np.abs(x) + np.abs(v)))
