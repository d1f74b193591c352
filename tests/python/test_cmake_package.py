"""The C++ half of the installed wheel serves a CMake project: tests/cpp/example."""

import shutil
import subprocess
from pathlib import Path

import pytest

import fastffn as ff

EXAMPLE = Path(__file__).parents[1] / "cpp" / "example"


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs cmake and a compiler")
def test_example_builds_against_the_wheel(tmp_path):
    result = subprocess.run(
        ["cmake", f"-DPACKAGE={ff.cmake_dir()}", f"-DWORK={tmp_path / 'work'}", "-P", str(EXAMPLE / "run.cmake")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "expected 1.46" in result.stdout
