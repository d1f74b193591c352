"""The documentation holds: its Python runs, its links lead somewhere, its messages exist, its pictures are what they are made from."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "python" / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    )
]
SVG = "{http://www.w3.org/2000/svg}"
EXAMPLES = sorted((ROOT / "python" / "examples").glob("*.py"))


@pytest.mark.parametrize("block", BLOCKS)
def test_python_of_the_pages_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "import torch" in block:
        pytest.importorskip("torch")
    exec(compile(block, "docs", "exec"), {"__name__": "docs"})


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_and_every_example_is_in_the_gallery() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    gallery = (DOCS / "gallery.md").read_text("utf-8")
    for page in PAGES:
        assert page.name == "README.md" or str(page.relative_to(DOCS)) in index, page
    for program in EXAMPLES:
        assert f"../examples/{program.name}" in gallery, program
    used = set(re.findall(r"pictures/(\w+)\.svg", "".join(page.read_text("utf-8") for page in PAGES)))
    assert used == {path.stem for path in (DOCS / "pictures").glob("*.svg")}


@pytest.mark.parametrize(("language", "program"), [("cpp", "main.cpp"), ("c", "main.c")])
def test_native_code_is_that_of_the_programs_that_run(language: str, program: str) -> None:
    (block,) = re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / "native.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    source = [line.strip() for line in (ROOT / "tests" / "cpp" / "example" / program).read_text("utf-8").splitlines()]
    quoted = [line.strip() for line in block.splitlines()]
    begin = source.index(quoted[0])
    assert source[begin : begin + len(quoted)] == quoted


@lru_cache(maxsize=1)
def words_of_the_sources() -> str:
    """All text that messages are made of: of Python what its literals say, joined where they are."""
    parts = []
    for folder, pattern in (("cpp/src", "*.?pp"), ("python/src", "*.?pp")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            text = path.read_text("utf-8")
            parts.append(re.sub(r'"\s*\n\s*"', "", text).replace('\\"', '"'))
    for path in sorted((ROOT / "python" / "fastffn").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
    return "\n".join(parts)


MESSAGES = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_of_the_page_exists(message: str) -> None:
    pieces = [piece.strip(" '") for piece in message.split("…")]
    assert any(len(piece) >= 6 for piece in pieces), "too little to recognise"
    for piece in pieces:
        # Names of operations are prepended where a message is sent off.
        rest = re.sub(r"^(ffn|pack|unpack|linear|moe): ", "", piece)
        # Lists of arguments are put together from parts.
        found = piece in words_of_the_sources() or rest in words_of_the_sources()
        assert found or not piece, f"{piece!r} is in no source"


def test_messages_were_found() -> None:
    assert len(MESSAGES) > 40 and len(set(MESSAGES)) == len(MESSAGES)
    assert "a message that nobody sends" not in words_of_the_sources()


def test_pictures_are_up_to_date() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pictures\nfor n, d in pictures.PICTURES.items(): print(n, len(d().render()))"
    done = subprocess.run([sys.executable, "-c", code, str(DOCS)], capture_output=True, text=True, check=True)
    sizes = dict(line.split() for line in done.stdout.splitlines())
    drawn = {path.stem: str(len(path.read_text("utf-8"))) for path in (DOCS / "pictures").glob("*.svg")}
    assert sizes == drawn, "run python python/docs/pictures.py"


@pytest.mark.parametrize("path", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_words_of_pictures_keep_apart(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    assert root.find(f"{SVG}title") is not None and "prefers-color-scheme:dark" in path.read_text("utf-8")
    boxes: list[tuple[str, float, float, float, float]] = []
    for element in root.iter(f"{SVG}text"):
        text, size = element.text or "", float(element.attrib["font-size"])
        x, y, wide = float(element.attrib["x"]), float(element.attrib["y"]), 0.5 * size * len(text)
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[element.attrib["text-anchor"]]
        boxes.append((text, left, y - 0.75 * size, left + wide, y + 0.15 * size))
    for i, (text, left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and right <= width and top >= 0 and bottom <= height, f"{text!r} sticks out"
        for other, *box in boxes[:i]:
            apart = right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top
            assert apart, f"{text!r} meets {other!r}"
