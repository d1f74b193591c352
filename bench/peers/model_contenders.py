"""Who runs the whole model in model.py, and how they take turns."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_gguf import write_gguf
from timing import Times

import fastffn.torch as ft


class Skip(Exception):
    """This contender cannot run here; the message says why."""


def replaced(model: torch.nn.Module, rule: str) -> Any:
    """A copy of the model with its layers replaced."""
    made = copy.deepcopy(model)
    ft.replace(made, rule)
    return made


def inputs_of_layers(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """What each feed-forward layer sees, [1, tokens, d_model]."""
    caught: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0].clone()))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(ids, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return caught


def chain(modules: list[Any], inputs: list[torch.Tensor], tokens: int) -> Callable[[], object]:
    """A call of all layers, each on the last `tokens` of its inputs."""
    rows = [x[:, -tokens:].contiguous() for x in inputs]

    def call() -> None:
        with torch.no_grad():
            for module, x in zip(modules, rows, strict=True):
                module(x)

    return call


def compiled_chain(modules: list[Any], inputs: list[torch.Tensor], tokens: int) -> Callable[[], object]:
    """The same as one compiled function, with weights that inductor may pack."""
    import torch._inductor.config as inductor

    rows = [x[:, -tokens:].contiguous() for x in inputs]

    def all_layers(rows: list[torch.Tensor]) -> list[torch.Tensor]:
        return [module(x) for module, x in zip(modules, rows, strict=True)]

    compiled = torch.compile(all_layers)

    def call() -> None:
        with torch.no_grad(), inductor.patch(freezing=True):
            compiled(rows)

    return call


class Runner:
    """One way to run the model: `prefill` the prompt, then `decode` the rest; both say how long they took."""

    name: str
    text: list[int]

    def prepare(self) -> None:
        """Runs once; raises Skip."""
        self.turn()

    def turn(self) -> tuple[float, float]:
        """Seconds of prefill and of decoding; sets `text`."""
        raise NotImplementedError


class TorchRunner(Runner):
    """The model's forward in a plain loop, with transformers' growing cache."""

    def __init__(self, name: str, model: Any, ids: torch.Tensor, count: int) -> None:
        self.name, self.model, self.ids, self.count = name, model, ids, count

    def turn(self) -> tuple[float, float]:
        from transformers import DynamicCache

        with torch.no_grad():
            begin = time.perf_counter()
            cache = DynamicCache()
            logits = self.model(self.ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            middle = time.perf_counter()
            text = [int(token)]
            for _ in range(self.count):
                logits = self.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                token = logits[:, -1].argmax(-1, keepdim=True)
                text.append(int(token))
            end = time.perf_counter()
        self.text = text
        return middle - begin, end - middle


class GenerateRunner(Runner):
    """transformers' generate(): once for one token, once for all; the difference is the decoding."""

    def __init__(self, name: str, model: Any, ids: torch.Tensor, count: int) -> None:
        self.name, self.model, self.ids, self.count = name, model, ids, count

    def turn(self) -> tuple[float, float]:
        def generate(count: int) -> list[int]:
            made = self.model.generate(self.ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
            return made[0, self.ids.shape[1] :].tolist()

        begin = time.perf_counter()
        generate(1)
        middle = time.perf_counter()
        self.text = generate(self.count + 1)
        prefill = middle - begin
        return prefill, max(time.perf_counter() - middle - prefill, 1e-9)


class CompiledRunner(Runner):
    """The model's forward compiled by inductor, over a cache of fixed size; once for the prompt and once for a token."""

    def __init__(self, name: str, model: Any, ids: torch.Tensor, count: int) -> None:
        self.name, self.ids, self.count = name, ids, count
        self.model = copy.deepcopy(model)

    def prepare(self) -> None:
        from transformers import StaticCache

        try:
            length = self.ids.shape[1] + self.count + 8
            self.cache = StaticCache(config=self.model.config, max_cache_len=length)
            self.compiled = torch.compile(self.model.forward, dynamic=False)
            self.turn()
        except Exception as error:  # compilers fail in many ways, none of which should end the others' measurement
            raise Skip(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}") from error

    def turn(self) -> tuple[float, float]:
        with torch.no_grad():
            begin = time.perf_counter()
            self.cache.reset()
            length = self.ids.shape[1]
            token = self._step(self.ids, torch.arange(length))
            middle = time.perf_counter()
            text = [int(token)]
            for position in range(length, length + self.count):
                token = self._step(token, torch.tensor([position]))
                text.append(int(token))
            end = time.perf_counter()
        self.text = text
        return middle - begin, end - middle

    def _step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        out = self.compiled(
            ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1, position_ids=positions[None]
        )
        return out.logits[:, -1].argmax(-1, keepdim=True)


class LlamaRunner(Runner):
    """llama.cpp through llama-cpp-python, on a file of the same weights."""

    def __init__(self, kind: str, path: Path, ids: torch.Tensor, count: int, threads: int) -> None:
        self.name = f"llama.cpp {kind}"
        self.kind, self.path, self.ids, self.count, self.threads = kind, path, ids[0].tolist(), count, threads

    def prepare(self) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise Skip(f"{error}; see bench/peers/README.md") from error
        try:
            self.folder = tempfile.TemporaryDirectory()
            file = write_gguf(self.path, Path(self.folder.name) / f"{self.kind}.gguf", self.kind)
        except ImportError as error:
            raise Skip(f"{error}; pip install gguf") from error
        length = len(self.ids) + self.count + 8
        self.llama = llama_cpp.Llama(
            str(file), n_ctx=length, n_batch=512, n_ubatch=512, n_threads=self.threads, n_threads_batch=self.threads,
            logits_all=False, verbose=False,
        )  # fmt: skip
        self.turn()

    def turn(self) -> tuple[float, float]:
        begin = time.perf_counter()
        self.llama.reset()
        self.llama.eval(self.ids)
        token = self._best()
        middle = time.perf_counter()
        text = [token]
        for _ in range(self.count):
            self.llama.eval([token])
            token = self._best()
            text.append(token)
        self.text = text
        return middle - begin, time.perf_counter() - middle

    def _best(self) -> int:
        import numpy as np

        logits = self.llama._ctx.get_logits()
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.llama.n_vocab(),))))


def take_turns(runners: list[Runner], rounds: int) -> dict[str, dict[str, Times]]:
    """Rounds in which every contender has a turn, each time from another one on."""
    times = {runner.name: {"prefill": Times(), "decode": Times()} for runner in runners}
    for turn in range(rounds):
        for index in range(len(runners)):
            runner = runners[(index + turn) % len(runners)]
            prefill, decode = runner.turn()
            times[runner.name]["prefill"].rounds.append([prefill])
            times[runner.name]["decode"].rounds.append([decode])
    return times
