"""bench/gpu: what run.py reads from other programs, and the README's table that table.py makes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "bench" / "gpu"
if not GPU.exists():
    pytest.skip("needs the repository's bench folder", allow_module_level=True)
sys.path.insert(0, str(GPU))
import parse  # noqa: E402
import run  # noqa: E402
import table  # noqa: E402

ROWS = [
    ("decode linear bf16 64x96, tokens 1", ["≥ 80 % of copy"]),
    ("prefill ffn x, tokens 9", ["≥ 1.3x y", "≥ 75 % less memory than y"]),
]
RESULTS = {
    "date": "2026-01-02",
    "commit": "abc",
    "device": {"name": "NVIDIA X1", "driver_version": "999.1", "runtime_cuda": "13.0", "emulated": False},
    "ceilings": {"copy": {"per_second": 4.25e12}, "bf16": {"per_second": 7.9e14}, "int8": {"problem": "none"}},
    "tests": {"cpp": {"passed": 3, "failed": 0, "skipped": 1}},
    "sanitizers": {"memcheck": {"verdict": "clean"}},
    "rows": [
        {
            "name": ROWS[0][0],
            "part": "decode",
            "ours": {"median_s": 17.43e-6},
            "of_copy": 0.8312,
            "rivals": [{"name": "cuBLASLt bf16", "ratio": 1.05}, {"name": "z", "problem": "absent"}],
            "asked": [{"of": "of_copy", "at_least": 0.8, "measured": 0.8312, "met": True}],
        },
        {
            "name": ROWS[1][0],
            "part": "prefill",
            "ours": {"median_s": 1.234e-3},
            "of_peak": 0.05,
            "rivals": [],
            "asked": [
                {"of": "speed", "at_least": 1.3, "measured": None, "met": None},
                {"of": "memory_saved", "at_least": 0.75, "measured": 0.7, "met": False},
            ],
        },
    ],
}


def test_junit(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(
        "<testsuites><testsuite><testcase classname='a' name='good'/><testcase classname='a' name='bad'><failure/></testcase>"
        "<testcase name='broken'><error/></testcase><testcase name='off'><skipped/></testcase>"
        "<testcase name='gone' status='notrun'/></testsuite></testsuites>"
    )
    counts = parse.junit(path)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 2, 2)
    assert counts["failures"] == ["a::bad", "broken"]


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("x\n========= ERROR SUMMARY: 12 errors\n", 12),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n", 3),
        ("========= ERROR SUMMARY: 0 errors\n========= ERROR SUMMARY: 1 error\n", 1),
        ("========= Target application returned an error\n", None),
        ("", None),
    ],
)
def test_sanitizer_errors(text, errors):
    assert parse.sanitizer_errors(text) == errors


def test_nvidia_smi():
    found = parse.smi("NVIDIA H200, 580.159.03, 9.0\nNVIDIA H200, 580.159.03, 9.0\n")
    assert found == {"name": "NVIDIA H200", "driver_version": "580.159.03", "compute_capability": "9.0"}
    assert parse.architectures("9.0") == "90-real;90a-real" and parse.architectures("8.6") == "86-real"
    assert parse.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    for text in ("No devices were found\n", ""):
        with pytest.raises((ValueError, IndexError)):
            parse.smi(text)


def test_bars_are_counted():
    assert parse.bars(RESULTS["rows"]) == {"asked": 3, "met": 1, "missed": 1, "unknown": 1}


def test_table_of_results():
    text = table.block(ROWS, [RESULTS])
    assert "NVIDIA X1, driver 999.1, CUDA 13.0; 2026-01-02, commit abc." in text
    assert "copy 4.25 TB/s, bf16 790 TFLOP/s." in text and "3 cpp passed, 0 failed" in text and "memcheck clean" in text
    assert f"| {ROWS[0][0]} | 17.4 µs | 83.1% of copy | 1.05× cuBLASLt bf16 | ≥ 80 % of copy: met |" in text
    assert "| 1.23 ms | 5.0% of peak |  | ≥ 1.3x y: not known; ≥ 75 % less memory than y (70.0%): missed |" in text


def test_table_without_results():
    for results in ([], [{**copy.deepcopy(RESULTS), "device": {**RESULTS["device"], "emulated": True}}]):
        text = table.block(ROWS, results)
        assert text.count("not yet measured |") == 2 and "17.4" not in text and "NVIDIA" not in text
        assert text.startswith("<details>\n<summary>2 rows") and text.endswith("</details>")
    failed = copy.deepcopy(RESULTS)
    failed["rows"] = [{**failed["rows"][0], "ours": {"problem": "refused"}}]
    text = table.block(ROWS, [failed])
    assert "| failed |" in text and text.count("not yet measured") == 1


def test_table_in_a_file(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["--results", str(tmp_path / "none"), "--check", str(path)]
    assert table.main(arguments) == 1 and "--write" in capsys.readouterr().err
    assert table.main(["--results", str(tmp_path / "none"), "--write", str(path)]) == 0
    assert table.main(arguments) == 0
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="expected one line"):
        table.main(arguments)


def test_the_readme_has_this_table():
    assert table.main(["--check", str(ROOT / "README.md")]) == 0


def test_numbers():
    assert [table.digits(v) for v in (0.0, 0.0123, 1.256, 12.34, 123.4, 4321)] == [
        "0.00",
        "0.0123",
        "1.26",
        "12.3",
        "123",
        "4321",
    ]
    assert table.duration(9.996e-4) == "1.00 ms" and table.duration(2.5) == "2.50 s"


def test_a_dry_run_says_what_would_run():
    command = [
        sys.executable,
        str(GPU / "run.py"),
        "--dry-run",
        "--architectures",
        "90-real",
        "--library",
        "/some/where",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in (
        "-DFASTFFN_CUDA_ARCHITECTURES=90-real",
        "ctest",
        "--cuda gpu",
        "--tool racecheck",
        "--suite decode",
        "--library /some/where",
    ):
        assert part in shown
    assert len([line for line in shown.splitlines() if "--tool" in line]) >= 4


def options_of(tmp_path, *arguments):
    return ["--work", str(tmp_path / "work"), *arguments]


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no GPU here"):
        run.main(options_of(tmp_path))


def test_time_limits_and_going_on(tmp_path, monkeypatch):
    """A step that its time ends is gone on with; one that passed is not repeated; a program past its own limit is a failure."""
    build = tmp_path / "build"
    build.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    calls = tmp_path / "calls"
    cmake = tmp_path / "cmake"
    cmake.write_text(f"#!/bin/sh\necho cmake >>{calls}\n")
    cmake.chmod(0o755)
    assert run.main(options_of(tmp_path, "--emulated", str(build), "--step", "build")) == 0
    assert run.main(options_of(tmp_path, "--emulated", str(build), "--step", "build")) == 0
    assert calls.read_text().count("cmake") == 1
    assert run.main(options_of(tmp_path, "--emulated", str(build), "--step", "build", "--again")) == 0
    assert calls.read_text().count("cmake") == 2
    cmake.write_text("#!/bin/sh\nexit 3\n")
    assert run.main(options_of(tmp_path, "--emulated", str(build), "--step", "build", "--again")) == 1
    cmake.write_text("#!/bin/sh\nsleep 60\n")
    assert (
        run.main(options_of(tmp_path, "--emulated", str(build), "--step", "build", "--again", "--minutes", "0.17")) == 3
    )
    # Nothing else runs without a build that passed.
    assert run.main(options_of(tmp_path, "--emulated", str(build), "--step", "bench")) == 1


def test_rows_measured_in_parts(tmp_path, monkeypatch):
    """A bench that is stopped keeps its rows, and the next one begins behind them."""
    build = tmp_path / "build"
    (build / "bench").mkdir(parents=True)
    cmake = tmp_path / "cmake"
    cmake.write_text("#!/bin/sh\n")
    bench = build / "bench" / "fastffn-bench"
    bench.write_text(f"""#!{sys.executable}
import json, sys, time
a = sys.argv
first, total = int(a[a.index("--first") + 1]), 3
rows = []
for number in range(first, total + 1):
    rows.append({{"name": f"{{a[a.index('--suite') + 1]}} {{number}}", "ours": {{}}, "asked": []}})
    with open(a[a.index("--json") + 1], "w") as out:
        json.dump({{"rows": rows, "device": {{"name": "x"}}}}, out)
    if first == 1 and number == 2:
        time.sleep(60)
""")
    for program in (cmake, bench):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    arguments = options_of(tmp_path, "--emulated", str(build))
    assert run.main([*arguments, "--step", "build"]) == 0
    assert run.main([*arguments, "--step", "bench", "--minutes", "0.2"]) == 3
    assert run.main([*arguments, "--step", "bench", "--minutes", "0.2"]) == 3  # prefill now
    assert run.main([*arguments, "--step", "bench"]) == 0
    results = table.json.loads((tmp_path / "work" / "emulated.json").read_text())
    assert [row["name"] for row in results["rows"]] == [
        f"{part} {n}" for part in ("decode", "prefill") for n in (1, 2, 3)
    ]


def fake_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_compute_sanitizer_says(tmp_path, monkeypatch):
    """Clean, with errors, killed at its own limit, or not even started: each is its own verdict, kept over runs."""
    fake_program(tmp_path / "bin" / "nvidia-smi", "echo NVIDIA X1, 1.2, 9.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    programs = tmp_path / "work" / "cmake" / "tests" / "cuda" / "gpu"
    for name in ("test_gpu_a", "test_gpu_b"):
        fake_program(programs / name, "exit 0")
    # $2: the tool; the last arguments: the program.
    fake_program(
        tmp_path / "sanitizer",
        """case "$2 $*" in
racecheck*test_gpu_b*) echo '========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)'; exit 66 ;;
racecheck*) echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)' ;;
synccheck*test_gpu_a*) sleep 60 ;;
initcheck*) echo 'Error: device not supported'; exit 1 ;;
*) echo '========= ERROR SUMMARY: 0 errors' ;;
esac""",
    )
    monkeypatch.setattr(run, "PROGRAM_LIMIT", 1)
    state = tmp_path / "work" / "state.json"
    state.write_text(table.json.dumps({"sources": run.sources(), "emulated": False, "build": {"ok": True}}))
    arguments = [
        "--work",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path),
        "--sanitizer",
        str(tmp_path / "sanitizer"),
    ]
    assert run.main([*arguments, "--step", "sanitize"]) == 1
    found = table.json.loads((tmp_path / "work" / "nvidia-x1.json").read_text())["sanitizers"]
    assert found["memcheck"] == {
        "verdict": "clean",
        "programs": {"test_gpu_a": "clean", "test_gpu_b": "clean", "pytest": "clean"},
    }
    assert found["racecheck"]["verdict"] == "errors" and found["racecheck"]["programs"]["test_gpu_a"] == "clean"
    assert found["synccheck"]["programs"] == {"test_gpu_a": "stopped after 1 s", "test_gpu_b": "clean"}
    assert found["synccheck"]["verdict"] == "clean but for programs that were stopped"
    assert found["initcheck"]["verdict"] == "did not run"
