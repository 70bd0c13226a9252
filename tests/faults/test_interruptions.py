"""Whatever stops a call leaves no hook on the model, and the same logits."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import rolelens as rl
import tiny
from conftest import tiny_lens
from faults.conftest import Tally

TEXTS = [rl.Text(f"t{n}", text) for n, text in enumerate(tiny.PROMPTS[:3])]
QUESTIONS = [rl.Question(f"q{n}", text, ("yes", "no"), n % 2) for n, text in enumerate(tiny.OTHERS)]


class Stop(Exception):
    """What a hook of the user raises."""


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return tiny_lens("Llama")


def calls(lens: rl.Lens, hooks: Any) -> dict[str, Callable[[], Any]]:
    roles = {"a": tiny.PROMPTS, "b": tiny.PROMPTS[:3]}
    vectors = rl.role_vectors(lens, roles, base=tiny.OTHERS)
    d = vectors["a"].at(2, -1)
    grid = {"layers": [1, 2, 3], "positions": [-1]}
    return {
        "generate": lambda: lens.generate(tiny.PROMPTS, hooks=hooks, max_new_tokens=4),
        "activations": lambda: rl.activations(lens, tiny.PROMPTS, layers=[1, 3], hooks=hooks),
        "evaluate": lambda: rl.evaluate(lens, QUESTIONS, hooks=hooks),
        "evaluate texts": lambda: rl.evaluate(lens, TEXTS, hooks=hooks),
        "role_vectors": lambda: rl.role_vectors(lens, roles, base=tiny.OTHERS),
        "sweep": lambda: rl.sweep(lens, vectors, QUESTIONS, **grid),
        "search": lambda: rl.search(lens, vectors, QUESTIONS, **grid),
        "patchscope": lambda: rl.patchscope(lens, d),
        "steered": lambda: steered(lens, rl.add(d, 2.0)),
    }


def steered(lens: rl.Lens, steering: rl.Steering) -> None:
    with lens.steered(steering):
        lens.generate(tiny.PROMPTS[:2], max_new_tokens=3)


def logits(lens: rl.Lens) -> torch.Tensor:
    with torch.no_grad():
        return lens.model(torch.arange(5, 25)[None])


def check(lens: rl.Lens, fresh: torch.Tensor) -> None:
    assert torch.equal(logits(lens), fresh)
    left = [
        name for name, point in lens.model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks
    ]
    assert not left, f"hooks left at {left}"
    parts = lens.model.named_modules()
    left = [name for name, part in parts if "forward" in vars(part)]
    assert not left, f"replaced still: {left}"
    assert rl.hooks.installed(lens) == []


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Ctrl-C at some moment: a signal, whose handler is Python's own."""

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.fault("an exception in a user's hook")
def test_an_exception_in_a_hook_leaves_nothing(lens, times, tally: Tally) -> None:
    fresh, chance = logits(lens), random.Random(0)
    left = 0

    def hook(x: torch.Tensor, hook: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise chance.choice([Stop, KeyboardInterrupt, RuntimeError, StopIteration])("stop")
        return x * 1.01

    hooks = [(f"blocks.{layer}.hook_resid_pre", hook) for layer in (1, 2)]
    left = 10**9
    hooked = {k: call for k, call in calls(lens, hooks).items() if k[:3] in ("gen", "act", "eva")}
    most = {}
    for name, call in hooked.items():
        left = 10**9
        call()
        most[name] = 10**9 - left
    for _ in range(times(120, 600)):
        name = chance.choice([*hooked])
        left = chance.randrange(most[name])
        try:
            hooked[name]()
        except (Stop, KeyboardInterrupt, RuntimeError, StopIteration):
            tally["nothing left, same logits"] += 1
        else:
            raise AssertionError(f"{name} went on after an exception in a hook")
        check(lens, fresh)


# A Ctrl-C within open() leaves the file to the garbage collector, which tells.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.fault("Ctrl-C at a random moment of a call")
def test_an_interrupt_at_any_moment_leaves_nothing(lens, times, tally: Tally) -> None:
    fresh, chance = logits(lens), random.Random(1)
    every = calls(lens, [])
    durations = {}
    for name, call in every.items():
        begun = time.perf_counter()
        call()
        durations[name] = time.perf_counter() - begun
    for _ in range(times(60, 400)):
        name = chance.choice([*every])
        try:
            with interrupted_after(max(1e-4, chance.uniform(0, durations[name]))):
                every[name]()
            tally["over before"] += 1
        except KeyboardInterrupt:
            tally["nothing left, same logits"] += 1
        check(lens, fresh)
