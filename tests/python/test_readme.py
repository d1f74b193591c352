"""The README's Python examples run as they stand, in order, in one namespace; its C++ and shell blocks are run by .ci/run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks("python")
    assert examples
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), namespace)
    assert "bf16" in capsys.readouterr().out


def test_both_commands_are_there() -> None:
    commands = blocks("bash")
    assert any("pytest" in command for command in commands)
    assert any("python -m fastffn report" in command for command in commands)
