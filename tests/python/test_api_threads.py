"""Many Python threads at once, fork, and the thread setting."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from api_support import tokens, weights

D_MODEL, D_FF = 64, 160
LAYERS = [
    (ff.pack(weights(D_FF, D_MODEL, seed), format), ff.pack(weights(D_MODEL, D_FF, seed + 1), format))
    for seed, format in enumerate(("f32", "f16", "bf16", "int8") * 2)
]


@pytest.mark.parametrize("rows", [1, 70])
def test_eight_threads_at_once(rows: int) -> None:
    inputs = [tokens(rows, D_MODEL, seed=seed) for seed in range(8)]
    expected = [ff.ffn(x, up, down, activation="silu") for x, (up, down) in zip(inputs, LAYERS, strict=True)]
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            out = np.empty((rows, D_MODEL), np.float32)
            barrier.wait()
            for call in range(60):
                out.fill(np.nan)
                layer = LAYERS[index]
                y = ff.ffn(inputs[index], *layer, activation="silu", out=out if call % 2 else None)
                assert np.array_equal(y, expected[index])
                if call % 20 == 0:
                    packed = ff.pack(weights(32, 32, index), "int8")
                    ff.verify(packed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_the_interpreter_runs_during_a_call() -> None:
    """A call of some milliseconds must not hold the GIL."""
    w = ff.pack(weights(1024, 1024), "f32")
    x, ticks, stop = tokens(600, 1024), 0, False
    out = np.empty((600, 1024), np.float32)
    during = 0

    def call() -> None:
        nonlocal stop
        for _ in range(5):
            ff.linear(x, w, out=out)
        stop = True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread gives the GIL up only where it chooses to
    try:
        thread = threading.Thread(target=call)
        thread.start()
        while not stop:
            ticks += 1
            during += not stop
            if ticks % 1000 == 0:
                threading.Event().wait(0.0001)  # lets the other thread take the GIL
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert during > 1000


def _child(queue: Any, x: np.ndarray, layer: tuple[np.ndarray, np.ndarray]) -> None:
    queue.put(hashlib.sha256(ff.ffn(x, *layer, activation="gelu").tobytes()).digest())  # less than a pipe holds


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_and_during_calls() -> None:
    """The child computes the same, even where another thread of the parent was inside a call at that moment."""
    x = tokens(300, D_MODEL)
    expected = ff.ffn(x, *LAYERS[0], activation="gelu")
    context = multiprocessing.get_context("fork")
    stop = threading.Event()

    def keep_calling() -> None:
        while not stop.is_set():
            ff.ffn(x, *LAYERS[1], activation="gelu")

    threads = [threading.Thread(target=keep_calling) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            queue = context.SimpleQueue()
            process = context.Process(target=_child, args=(queue, x, LAYERS[0]))
            process.start()
            process.join(60)
            if process.is_alive():
                process.kill()
            assert process.exitcode == 0
            assert queue.get() == hashlib.sha256(expected.tobytes()).digest()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert np.array_equal(ff.ffn(x, *LAYERS[0], activation="gelu"), expected)


def test_thread_setting() -> None:
    default = ff.get_num_threads()
    x = tokens(200, D_MODEL)
    try:
        results = []
        for threads in (1, 2, 3):
            ff.set_num_threads(threads)
            assert ff.get_num_threads() == threads
            results.append(ff.ffn(x, *LAYERS[0], activation="gelu"))
        assert all(np.array_equal(result, results[0]) for result in results)
    finally:
        ff.set_num_threads(0)
    assert ff.get_num_threads() == default
    with pytest.raises(ValueError, match=r"^set_num_threads: threads is -1, expected 0 \(OpenMP's default\) or more$"):
        ff.set_num_threads(-1)


def test_calls_from_daemon_threads_at_exit() -> None:
    program = """
import threading, numpy as np, fastffn as ff
w = ff.pack(np.ones((256, 256), np.float32), "f32")
x = np.ones((64, 256), np.float32)
def forever():
    while True:
        ff.linear(x, w)
for _ in range(4):
    threading.Thread(target=forever, daemon=True).start()
threading.Event().wait(0.2)
"""
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", program], timeout=120, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
