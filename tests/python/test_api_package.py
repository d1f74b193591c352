"""The package: imports, the command line, forced instruction sets, what the wheel holds, and the examples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastffn as ff
from fastffn.report import assets

EXAMPLES = sorted((Path(__file__).parents[2] / "python" / "examples").glob("*.py"))


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def test_import_is_light() -> None:
    """fastffn imports neither torch nor, until it sees an array, NumPy."""
    program = """
import sys
import fastffn
heavy = [name for name in ("torch", "numpy", "ml_dtypes", "argparse", "fastffn.report") if name in sys.modules]
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    result = python("-c", program)
    assert result.returncode == 0, result.stderr


def test_arrays_other_than_torch_import_no_torch() -> None:
    program = """
import sys, numpy as np, fastffn as ff
ff.linear(np.ones((1, 8), np.float32), ff.pack(np.eye(8), "bf16"))
sys.exit("torch" in sys.modules)
"""
    assert python("-c", program).returncode == 0


def test_version() -> None:
    from importlib.metadata import version

    assert ff.__version__ == version("fastffn")
    result = python("-m", "fastffn", "--version")
    assert (result.returncode, result.stdout.strip()) == (0, ff.__version__)


def test_diagnostics() -> None:
    result = python("-m", "fastffn", FASTFFN_ISA="ref", OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    rows = dict(
        line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith((" ", "isa", "cuda"))
    )
    assert rows["fastffn"].startswith(ff.__version__)
    assert rows["kernels"] == "f32/ref, f16/ref, bf16/ref, int8/ref, sparse24/ref, ternary/ref, int4/ref"
    assert rows["threads"].startswith("2, ") and "2 usable" not in rows["threads"]
    assert rows["FASTFFN_ISA"] == "ref" and rows["OMP_NUM_THREADS"] == "2"
    assert {"python", "numpy", "torch", "cpu", "caches"} <= set(rows)
    for line in ("isa found    ", "isa chosen   ref\n", "cuda plugin  ", "cuda         "):
        assert line in result.stdout


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "amx,avx2", "amx"])
def test_an_instruction_set_that_cannot_be_forced(name: str) -> None:
    """Everything that would compute says so; importing does not fail."""
    from fastffn import _core

    if name == "amx" and _core.machine()["isa_found"] == "amx":
        pytest.skip("this CPU has AMX")
    result = python("-m", "fastffn", FASTFFN_ISA=name)
    assert result.returncode == 1
    assert "isa chosen   error: " in result.stdout and name in result.stdout and "FASTFFN_ISA" in result.stdout
    program = """
import numpy as np, fastffn as ff
w, x = np.eye(8, dtype=np.float32), np.ones((1, 8), np.float32)
calls = [
    lambda: ff.pack(w, "f32"), lambda: ff.info(w), lambda: ff.verify(w), lambda: ff.unpack(w),
    lambda: ff.linear(x, bytes(64)), lambda: ff.ffn(x, bytes(64), bytes(64), activation="gelu"),
    lambda: ff.linear_workspace(x, bytes(64)), lambda: ff.ffn_workspace(x, bytes(64), bytes(64)),
    lambda: ff.active_kernel("f32"),
]
for call in calls:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        print(error)
    else:
        print("no error")
"""
    result = python("-c", program, FASTFFN_ISA=name)
    lines = result.stdout.splitlines()
    assert len(lines) == 9, result.stderr
    assert all("FASTFFN_ISA" in line and name in line for line in lines), lines


def test_headers_and_cmake_package() -> None:
    assert (Path(ff.get_include()) / "fastffn" / "fastffn.hpp").is_file()
    assert (Path(ff.cmake_dir()) / "fastffn-config.cmake").is_file()
    assert python("-m", "fastffn", "--cmake-dir").stdout.strip() == ff.cmake_dir()
    assert python("-m", "fastffn", "--include-dir").stdout.strip() == ff.get_include()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on the path")
def test_a_cpp_program_finds_the_wheel(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(user LANGUAGES CXX)\n"
        f"find_package(fastffn {ff.__version__} REQUIRED)\n"
        "add_executable(user main.cpp)\n"
        "target_link_libraries(user PRIVATE fastffn::fastffn)\n"
    )
    (tmp_path / "main.cpp").write_text(
        "#include <cstdio>\n"
        "#include <vector>\n"
        "#include <fastffn/fastffn.hpp>\n"
        "int main() {\n"
        "    const float w[4] = {1, 2, 3, 4}, x[2] = {10, 1};\n"
        "    float y[2];\n"
        "    const fastffn::TensorView view(w, fastffn::DType::f32, {2, 2});\n"
        "    std::int64_t bytes = 0;\n"
        "    fastffn::packed_bytes(view, fastffn::Format::f32, &bytes).value();\n"
        "    std::vector<char> packed(bytes);\n"
        "    fastffn::pack(view, fastffn::Format::f32, packed.data(), bytes).value();\n"
        "    fastffn::Context context;\n"
        "    fastffn::linear(context, {x, fastffn::DType::f32, {1, 2}}, {packed.data(), bytes}, nullptr,\n"
        "                    {y, fastffn::DType::f32, {1, 2}}).value();\n"
        '    std::printf("%s %g %g\\n", fastffn::version(), y[0], y[1]);\n'
        "}\n"
    )
    for command in (
        ["cmake", "-S", ".", "-B", "build", f"-Dfastffn_DIR={ff.cmake_dir()}", "-DCMAKE_BUILD_TYPE=Release"],
        ["cmake", "--build", "build"],
    ):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
    output = subprocess.run([tmp_path / "build" / "user"], capture_output=True, text=True, check=True).stdout
    assert output.split() == [ff.__version__, "12", "34"]


def test_bench_command() -> None:
    """The wheel's fastffn-bench is the C++ binary, also as `python -m fastffn bench`."""
    command = Path(sys.executable).parent / "fastffn-bench"
    assert command.is_file()
    direct = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert direct.returncode == 0 and "fastffn-bench" in direct.stdout
    assert python("-m", "fastffn", "bench", "--help").stdout == direct.stdout


def test_command_line_errors() -> None:
    result = python("-m", "fastffn", "--no-such-option")
    assert result.returncode == 2 and "usage: python -m fastffn" in result.stderr
    assert "'report' measures every format" in python("-m", "fastffn", "--help").stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path: Path, tmp_path: Path) -> None:
    for module in ("torch", "sklearn", "transformers"):
        if f"\nimport {module}" in path.read_text() or f"\nfrom {module}" in path.read_text():
            pytest.importorskip(module)
    arguments = ["--quick"] if path.stem in ("call_overhead", "replace_smollm2") else []
    if path.stem == "replace_smollm2":
        pytest.importorskip("transformers")
        if assets.locate(assets.SMOLLM2) is None:
            pytest.skip("SmolLM2 is not in the cache folder: python -m fastffn report fetches it")
        arguments += ["--plot", str(tmp_path / "plot.svg")]
    result = python("-W", "error", str(path), *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"numpy_layer", "torch_module", "call_overhead"}


@pytest.mark.parametrize(
    ("setting", "reason"), [("off", "FASTFFN_CUDA_PLUGIN=off"), ("/nowhere/lib.so", "/nowhere/lib.so")]
)
def test_cuda_says_why_it_is_unavailable(setting, reason):
    result = subprocess.run(
        [sys.executable, "-m", "fastffn"],
        env={**os.environ, "FASTFFN_CUDA_PLUGIN": setting}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (line,) = [
        line for line in result.stdout.splitlines() if line.startswith("cuda ") and not line.startswith("cuda plugin")
    ]
    assert "unavailable" in line and reason in line


def test_a_command_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from fastffn.__main__ import main

    with pytest.raises(SystemExit):
        main(["reprot"])
    assert "no command 'reprot'; there are report and bench" in capsys.readouterr().err
