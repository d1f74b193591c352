"""fastffn.torch in DataLoader workers, after fork, in Python threads, and under torch's thread setting."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import pytest

import fastffn as ff

torch = pytest.importorskip("torch")

import fastffn.torch as ft  # noqa: E402

D_MODEL, D_FF, TOKENS = 64, 256, 70


def layer() -> Any:
    generator = torch.Generator().manual_seed(0)
    w = [torch.randn(*s, generator=generator) / 8 for s in ((D_FF, D_MODEL), (D_MODEL, D_FF))]
    return ft.FFN.from_weights(*w, activation="gelu", format="bf16")


def tokens(index: int) -> Any:
    return torch.randn(TOKENS, D_MODEL, generator=torch.Generator().manual_seed(index))


class Features(torch.utils.data.Dataset):  # type: ignore[misc]
    """What a data set does that computes features with a layer in its workers."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.layer(tokens(index))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_data_loader_workers(method: str) -> None:
    made = layer()
    expected = [made(tokens(i)) for i in range(6)]  # the parent has run threads when it forks
    loader = torch.utils.data.DataLoader(
        Features(made), batch_size=2, num_workers=2, multiprocessing_context=method, timeout=120
    )  # fmt: skip
    batches = torch.cat(list(loader))
    assert torch.equal(batches, torch.stack(expected))


def train_in_child(made: Any, x: Any, results: Any) -> None:
    # The backward pass is torch's: its own OpenMP pool does not survive a fork, so it runs on one thread, as in DataLoader's workers.
    torch.set_num_threads(1)
    x = x.clone().requires_grad_()
    made(x).sum().backward()
    results.put(x.grad.numpy())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_operators_after_fork() -> None:
    made, x = layer(), tokens(0)
    grad_input = x.clone().requires_grad_()
    made(grad_input).sum().backward()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=train_in_child, args=(made, x, results), daemon=True)
    child.start()
    found = results.get(timeout=120)
    child.join(60)
    assert child.exitcode == 0 and torch.allclose(torch.from_numpy(found), grad_input.grad)


def test_eight_threads_at_once() -> None:
    made = layer()
    inputs = [tokens(i) for i in range(8)]
    expected = [made(x) for x in inputs]
    operator = [
        torch.ops.fastffn.ffn(x, made.w_up, made.w_down, *[None] * 4, "gelu", None, None, 1e-5, None, D_MODEL)
        for x in inputs
    ]
    assert all(map(torch.equal, expected, operator))
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for call in range(30):
                x = inputs[i].clone().requires_grad_() if call % 3 == 0 else inputs[i]
                with torch.autocast("cpu", enabled=call % 3 == 1):
                    y = made(x)
                if call % 3 == 1:
                    assert y.dtype == torch.bfloat16  # autocast is each thread's own
                    continue
                assert torch.equal(y, expected[i])
                if call % 3 == 0:
                    y.sum().backward()
                    assert x.grad.isfinite().all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_thread_setting_changes_no_bit() -> None:
    made, x, before = layer(), tokens(0), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert ff.get_num_threads() == count
            results.append(made(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
