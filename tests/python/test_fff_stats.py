"""Use of trees: counts, entropy, dead leaves, load, margins, and the picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from fff_support import oracle, random_weights, tokens


def leaves(*rows: Any) -> Any:
    return np.array(rows, np.int32)


def test_counts_by_hand() -> None:
    stats = ff.stats_of_leaves(leaves([0, 3], [0, 3], [1, 3], [3, 3]), 2)
    np.testing.assert_array_equal(stats.leaf_counts, [[2, 1, 0, 1], [0, 0, 0, 4]])
    np.testing.assert_array_equal(stats.node_counts, [[4, 3, 1], [4, 0, 4]])
    np.testing.assert_allclose(stats.entropy, [1.5, 0])
    np.testing.assert_array_equal(stats.dead_leaves, [1, 3])
    np.testing.assert_allclose(stats.max_over_mean, [2, 4])
    np.testing.assert_allclose(stats.shares, [[0.5, 0.25, 0, 0.25], [0, 0, 0, 1]])
    assert (stats.tokens, stats.trees, stats.leaves) == (4, 2, 4)


def test_margins() -> None:
    stats = ff.stats_of_leaves(leaves([0], [1], [1], [0]), 1, np.array([[0.1], [0.2], [0.3], [0.4]]))
    assert stats.close_decisions(0.25) == 0.5 and stats.close_decisions(1) == 1
    assert "smallest margin" in str(stats)
    with pytest.raises(ValueError, match="margins are not known"):
        ff.stats_of_leaves(leaves([0]), 1).close_decisions(0.1)


def test_an_even_load() -> None:
    stats = ff.stats_of_leaves(np.arange(64).reshape(64, 1) % 32, 5)
    np.testing.assert_allclose(stats.entropy, [5])
    np.testing.assert_allclose(stats.max_over_mean, [1])
    assert stats.dead_leaves[0] == 0


def test_more_dimensions_than_two() -> None:
    flat = np.random.default_rng(0).integers(0, 8, (24, 2))
    np.testing.assert_array_equal(
        ff.stats_of_leaves(flat.reshape(4, 6, 2), 3).leaf_counts, ff.stats_of_leaves(flat, 3).leaf_counts
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match="values 0 to 4, expected 0 to 3"):
        ff.stats_of_leaves(leaves([0], [4]), 2)
    with pytest.raises(ValueError, match="float32 of shape"):
        ff.stats_of_leaves(np.zeros((3, 1), np.float32), 2)
    with pytest.raises(ValueError, match=r"margins have shape \(1,\), expected \(2, 1\)"):
        ff.stats_of_leaves(leaves([0], [1]), 2, np.zeros(1))


@pytest.mark.parametrize("form", ["leaf", "nodes"])
def test_of_a_tree(form: str) -> None:
    weights, x = random_weights(form, trees=2, depth=4), tokens(300)
    stats = ff.fff_stats(x, ff.pack_fff(weights))
    _, way = oracle(weights, x)
    for tree in range(2):
        np.testing.assert_array_equal(stats.leaf_counts[tree], np.bincount(way.leaf[:, tree], minlength=16))
        passed = np.bincount(way.path[:, tree, :4].ravel(), minlength=15)
        np.testing.assert_array_equal(stats.node_counts[tree], passed)
    assert stats.margins is not None
    np.testing.assert_allclose(stats.margins, way.smallest_margin, atol=1e-5)


CASES = {
    "usual": (2, 4, 200),
    "deep": (1, 12, 5000),
    "no decisions": (1, 0, 5),
    "many trees": (9, 2, 30),
    "one token": (1, 3, 1),
    "no token": (1, 3, 0),
    "one leaf": (1, 6, 100),
}


@pytest.mark.parametrize("name", CASES)
def test_picture(name: str, tmp_path: Path) -> None:
    trees, depth, count = CASES[name]
    rng = np.random.default_rng(0)
    leaf = np.full((count, trees), 5) if name == "one leaf" else rng.integers(0, 1 << depth, (count, trees))
    margins = rng.random((count, trees)) if depth else np.full((count, trees), np.inf)
    stats = ff.stats_of_leaves(leaf, depth, margins)
    assert str(count) in str(stats)
    text = stats.save(tmp_path / "use.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    assert (
        "var(" not in text
        and "nan" not in text
        and "inf" not in text
        and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    )
    cells = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.find("*") is not None]
    assert cells, "every node is drawn"
    for cell in cells:
        left, down = float(cell.attrib["x"]), float(cell.attrib["y"])
        assert left >= 0 and left + float(cell.attrib["width"]) <= width + 1 and down + 20 <= height
    if name == "one leaf":  # black where no token goes
        assert sum(cell.attrib["fill"] == "#1c2026" for cell in cells) == sum(2**level - 1 for level in range(7))
    page = stats.save(tmp_path / "use.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and re.search(r"<svg .*</svg>", page, re.DOTALL) and "<script" not in page


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'use.png' ends in '.png', expected .svg or .html"):
        ff.stats_of_leaves(leaves([0]), 1).save(tmp_path / "use.png")


def test_leaves_of_a_torch_module() -> None:
    torch = pytest.importorskip("torch")
    assert ff.stats_of_leaves(torch.tensor([[0], [1], [1]]), 1, torch.zeros(3, 1)).leaf_counts.tolist() == [[1, 2]]
