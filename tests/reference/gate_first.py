"""BitNet a4.8's feed-forward layer (Wang et al. 2024, arXiv:2411.04965) in float64, gate first.

    q, s = A4(x)                    codes clip(rint(√7 x / β), -8, 7), β = mean|x|; x ≈ q · β / √7
    g    = relu(α_gate · s · (q · Wgᵀ) + b_gate)²
    u[j] = α_up · s · (q · Wu[j]) + b_up[j]      for j with g[j] ≠ 0 alone
    y    = A8(g ⊙ u) · Wdᵀ + b_down              codes rint(127 h / max|h|)

W: codes -1, 0 and 1 with a scale α each. Tokens are taken one by one, as the rows that one skips are its own.
"""

import numpy as np

from .formats import quantise_tokens


def layer(x, w_gate, w_up, w_down, scales, b_gate=None, b_up=None, b_down=None, activation="relu2"):
    """x [tokens, d_model]; w_* codes; scales (gate, up, down). Returns y [tokens, d_model_out] and live [tokens, d_ff]."""
    x = np.asarray(x, np.float64)
    w_gate, w_up, w_down = (np.asarray(w, np.float64) for w in (w_gate, w_up, w_down))
    b_gate = np.zeros(len(w_gate)) if b_gate is None else np.asarray(b_gate, np.float64)
    b_up = np.zeros(len(w_up)) if b_up is None else np.asarray(b_up, np.float64)
    b_down = np.zeros(len(w_down)) if b_down is None else np.asarray(b_down, np.float64)
    y = np.zeros((len(x), len(w_down)))
    live = np.zeros((len(x), len(w_up)), bool)
    for token, row in enumerate(x):
        codes, scale = quantise_tokens(row, "ternary-act4")
        gate = np.maximum(scales[0] * scale * (w_gate @ codes) + b_gate, 0) ** (2 if activation == "relu2" else 1)
        live[token] = gate != 0
        hidden = np.zeros(len(w_up))
        for j in np.flatnonzero(live[token]):
            hidden[j] = gate[j] * (scales[1] * scale[0] * (w_up[j] @ codes) + b_up[j])
        hidden_codes, hidden_scale = quantise_tokens(hidden, "ternary")
        y[token] = scales[2] * hidden_scale * (w_down @ hidden_codes) + b_down
    return y, live
