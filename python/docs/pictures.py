"""The pictures of the pages on methods, drawn from here: ``python python/docs/pictures.py`` writes pictures/*.svg anew.

A test compares the files with what this makes, and looks for words that overlap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from drawing import Drawing

FOLDER = Path(__file__).parent / "pictures"


def ffn() -> Drawing:
    """One pass over a gated layer."""
    d = Drawing("A gated feed-forward layer in one pass: the hidden activations exist only as a tile", 760, 280)
    d.box(20, 100, 90, 70, "fa", "a", "x\na tile of\ntokens")
    d.box(190, 50, 120, 56, words="w_gate\n16 columns")
    d.box(190, 164, 120, 56, words="w_up\nthe same 16")
    d.arrow((110, 125), (190, 80))
    d.arrow((110, 145), (190, 190))
    d.box(370, 100, 130, 70, "fb", "b", "hidden tile\nact(gate) · up\nin the L2 cache")
    d.arrow((310, 78), (370, 122))
    d.arrow((310, 192), (370, 150))
    d.box(555, 107, 84, 56, words="w_down")
    d.arrow((500, 135), (555, 135))
    d.box(680, 107, 60, 56, "fa", "a", "y")
    d.arrow((639, 135), (680, 135))
    d.line((435, 170), (435, 240), (250, 240), (250, 220), stroke="soft", dashed=True)
    d.text(440, 262, "next columns, next tile: no array [tokens, d_ff] is ever written to memory", fill="soft")
    d.text(250, 36, "one read of each weight", fill="soft")
    return d


def panels() -> Drawing:
    """The packed layout."""
    d = Drawing(
        "A weight is cut into panels of 16 output columns; a step of bf16 is 16 pairs, one cache line", 760, 300
    )
    d.text(110, 30, "weight [out, in]")
    for panel in range(5):
        chosen = panel == 1
        d.box(40, 44 + 40 * panel, 140, 36, "fa" if chosen else "box", "a" if chosen else "line", "16 rows")
    d.text(110, 266, "out_features in panels of 16", fill="soft")
    d.arrow((184, 102), (262, 102), stroke="a")
    d.text(480, 30, "a panel in memory: step after step of the reduction dimension")
    for step in range(4):
        d.box(270 + 116 * step, 84, 110, 36, "fa", "a", f"step {step}")
    d.text(744, 107, "…", "end")
    d.line((386, 124), (270, 170), stroke="soft", dashed=True)
    d.line((496, 124), (734, 170), stroke="soft", dashed=True)
    for column in range(16):
        x = 270 + 29 * column
        d.box(x, 176, 27, 40, "fb" if column % 2 else "fa", "line")
    d.text(502, 240, "16 columns × 2 weights of bf16 = 64 bytes, as VDPBF16PS eats them", fill="soft")
    d.text(502, 266, "int8: 4 weights per column and step · f32, f16: 1", fill="soft")
    return d


def int8() -> Drawing:
    """Rows of weights and tokens on 255 levels."""
    d = Drawing("int8: each row of w and each token of x is scaled so that its largest value is 127", 760, 270)
    rng = np.random.default_rng(3)
    for left, name, fill, hint in (
        (40, "a row of w", "a", "packed: scale 0.0041"),
        (290, "a token of x", "b", "at run time: scale 0.013"),
    ):
        values = rng.normal(0, 0.42, 18)
        values[7] = 1.0
        d.line((left, 60), (left + 198, 60), stroke=fill, dashed=True)
        d.text(left + 202, 56, "127", "end", "soft", 12)
        d.line((left, 130), (left + 198, 130))
        for i, value in enumerate(np.clip(np.round(values * 127), -127, 127)):
            d.bar(left + 2 + 11 * i, 130, 8, value / 127 * 70, fill)
        d.text(left + 100, 36, name)
        d.text(left + 100, 220, hint, fill="soft")
    d.arrow((500, 130), (548, 130))
    d.box(550, 84, 184, 92, "box", "line", "Σ q_w · q_x\nexact, in int32\n× both scales")
    d.text(642, 220, "8 bits per weight", fill="soft")
    d.text(380, 252, "one outlier makes all its row's steps coarse: that is the error, not the arithmetic", fill="soft")
    return d


def codes() -> Drawing:
    """Lines of ternary and int4 codes."""
    d = Drawing("Codes of 2 and 4 bits: one mask turns 64 bytes into operands of a dot product", 760, 310)
    d.text(380, 30, "a line of 64 bytes: 16 columns × 4 bytes, and each byte holds the codes of several depths")
    for top, name, bits, fields in ((60, "ternary", 2, 4), (150, "int4", 4, 2)):
        d.text(40, top + 25, name, "start")
        for place in range(fields):
            field, width = fields - 1 - place, 360 / fields
            fill = "f" + "abcd"[field]
            d.box(120 + place * width, top, width - 4, 40, fill, "line", f"depth + {4 * field}")
        d.text(300, top + 60, f"bits 7 … 0 of a byte: {fields} codes of {bits} bits", fill="soft")
        d.arrow((486, top + 20), (536, top + 20))
        mask = "0x03" if bits == 2 else "0x0f"
        d.box(540, top, 200, 40, "box", "line", f"& {mask} → u8 · s8 → int32")
    d.box(120, 248, 200, 40, "box", "line", "w = scale · (code − zero)")
    d.text(340, 273, "a scale per matrix, row or group; 2 bits: −1, 0, 1", "start", "soft")
    return d


def hadamard() -> Drawing:
    """A row with an outlier before and after."""
    d = Drawing("A Hadamard transform spreads an outlier over the row, so that few bits hold all of it", 760, 290)
    rng = np.random.default_rng(1)
    n = 32
    row = rng.normal(0, 0.16, n)
    row[11] = 2.2
    h = np.array([[1.0]])
    while h.shape[0] < n:
        h = np.block([[h, h], [h, -h]])
    turned = h @ row / np.sqrt(n)
    for left, values, name in ((30, row, "x"), (410, turned, "H · x / √n")):
        top = float(np.abs(values).max())
        d.text(left + 160, 30, name)
        d.line((left, 140), (left + 320, 140))
        for i, value in enumerate(values):
            d.bar(left + 1 + 10 * i, 140, 8, value / 2.2 * 90, "c" if abs(value) == top else "a")
        step = top / 7
        error = float(np.sqrt(np.mean((np.round(values / step) * step - values) ** 2) / np.mean(values**2)))
        d.text(left + 160, 250, f"4 bits: step {step:.2f}, error {100 * error:.0f}%", fill="soft")
    d.arrow((356, 110), (404, 110))
    d.text(380, 96, "H")
    d.text(
        380,
        278,
        "H · Hᵀ = 1, so w · x = (w · Hᵀ) · (H · x): weights are turned once, when they are packed",
        fill="soft",
    )
    return d


def sparse24() -> Drawing:
    """Groups of four, what is kept, how it is stored."""
    d = Drawing("2:4: of every four weights of a row two are kept, with a 4-bit code of where they were", 760, 250)
    pattern = ["a.a.", ".aa.", "a..a", "..aa"]
    d.text(20, 62, "a row of w", "start")
    for group, kept in enumerate(pattern):
        d.cells(150 + 150 * group, 40, 34, [kept])
    d.text(20, 142, "stored values", "start")
    for group in range(4):
        d.cells(184 + 150 * group, 120, 34, ["aa"])
        d.arrow((217 + 150 * group, 78), (217 + 150 * group, 116))
    d.text(20, 206, "stored codes", "start")
    for group, kept in enumerate(pattern):
        first, second = (i for i, letter in enumerate(kept) if letter == "a")
        d.box(184 + 150 * group, 184, 66, 34, "fb", "b", f"{first} | {second}")
    d.text(380, 240, "bf16: 2 × 16 + 4 = 36 bits for four weights, 9/16 of dense", fill="soft")
    return d


def lowrank() -> Drawing:
    """A wide matrix as two thin ones, and what a tile of tokens does with them."""
    d = Drawing("Low rank: a weight as two thin factors, multiplied one after the other", 760, 290)
    d.box(40, 60, 120, 160, "box", "line", "w\n[1536, 384]")
    d.text(190, 146, "≈", size=24)
    d.box(226, 60, 46, 160, "fa", "a", "v")
    d.text(290, 146, "·", size=24)
    d.box(310, 118, 120, 46, "fb", "b", "u")
    d.text(249, 244, "[1536, 123]", fill="soft")
    d.text(370, 186, "[123, 384]", fill="soft")
    d.text(100, 244, "589 824 weights", fill="soft")
    d.text(330, 272, "236 160 weights: 40%", fill="soft")
    d.box(500, 60, 90, 46, "box", "line", "x")
    d.arrow((545, 106), (545, 134))
    d.box(500, 136, 90, 46, "fb", "b", "x · uᵀ")
    d.arrow((590, 159), (636, 159))
    d.box(638, 136, 102, 46, "fa", "a", "… · vᵀ")
    d.text(620, 226, "123 numbers per token in between;", fill="soft")
    d.text(620, 246, "gate and up with one u share them", fill="soft")
    return d


def moe() -> Drawing:
    """Tokens, picks, experts, sums."""
    d = Drawing(
        "Mixture of experts: tokens are sorted by the experts they picked, each expert runs once over its own", 760, 310
    )
    colours = "abcd"
    picks = [(0, 2), (1, 2), (0, 3), (2, 3), (0, 1)]
    d.text(60, 34, "tokens")
    d.text(380, 34, "experts, each with its tokens side by side")
    d.text(700, 34, "y")
    homes: dict[int, list[int]] = {e: [t for t, pair in enumerate(picks) if e in pair] for e in range(4)}
    for token in range(5):
        d.box(30, 52 + 46 * token, 60, 34, words=f"x{token}")
        d.box(670, 52 + 46 * token, 60, 34, words=f"y{token}")
    for expert, tokens in homes.items():
        y = 52 + 58 * expert
        d.box(270, y, 220, 44, "f" + colours[expert], colours[expert])
        for place, token in enumerate(tokens):
            d.box(280 + 66 * place, y + 8, 58, 28, "page", "line", f"x{token}")
            d.line((90, 69 + 46 * token), (270, y + 22), stroke=colours[expert])
            d.line((490, y + 22), (670, 69 + 46 * token), stroke=colours[expert])
    d.text(380, 300, "each picks 2 of 4; y is the sum of the picked experts, by the router's weights", fill="soft")
    return d


def fff() -> Drawing:
    """A tree and the path of one token."""
    d = Drawing(
        "Fast feedforward: a token walks a binary tree and uses the neurons of its path, or the leaf at its end",
        760,
        320,
    )
    levels, top, gap = 4, 50, 62
    path = [0, 2, 5, 11]

    def place(node: int) -> tuple[float, float]:
        level = (node + 1).bit_length() - 1
        first = 2**level - 1
        return 20 + 560 * (node - first + 0.5) / 2**level, top + gap * level

    for node in range(1, 2**levels - 1):
        on = node in path
        d.line(place((node - 1) // 2), place(node), stroke="a" if on else "line", wide=on)
    for node in range(2**levels - 1):
        on = node in path
        d.circle(*place(node), 13, "fa" if on else "box", "a" if on else "line")
    d.text(316, 34, "x · w > 0 ?", "start")
    d.text(180, 76, "no: left", fill="soft")
    d.text(452, 76, "yes: right", fill="soft")
    d.text(600, 130, "15 neurons,", "start")
    d.text(600, 152, "4 are computed", "start")
    d.text(600, 190, "4095 neurons,", "start", "soft")
    d.text(600, 212, "12 are computed", "start", "soft")
    d.text(
        380,
        290,
        "all-node form: y = Σ act(x · w_in) · w_out along the path · leaf form: the nodes only decide,",
        fill="soft",
        size=13,
    )
    d.text(380, 310, "and a small feed-forward layer sits under each end", fill="soft", size=13)
    return d


PICTURES: dict[str, Callable[[], Drawing]] = {
    "ffn": ffn, "panels": panels, "int8": int8, "codes": codes, "hadamard": hadamard, "sparse24": sparse24,
    "lowrank": lowrank, "moe": moe, "fff": fff,
}  # fmt: skip


def main() -> None:
    """Writes them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().render(), "utf-8")


if __name__ == "__main__":
    main()
