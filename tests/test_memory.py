"""How many tokens run together, against memory that is counted here and memory that runs out."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rolelens as rl
import tiny
from conftest import tiny_bridge, tiny_lens
from rolelens import forward
from rolelens.forward import memory

LONG = ["Explain at length why the sky is blue."] * 24
QUESTIONS = [
    rl.Question(f"q{n}", f"Which is red, {n}?", ("blood", "grass", "the sky", "snow"), n % 4)
    for n in range(12)
]


class Limited(memory.live_bytes):  # type: ignore[misc]
    """A machine with so many bytes beside the weights."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.failed = limit, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self._now > self.limit:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return out


def llama() -> rl.Lens:
    """A lens that nothing was decided about."""
    return rl.Lens(tiny_bridge("Llama"))


def grid(lens: rl.Lens) -> dict[str, Any]:
    return {"layers": [1, 2], "positions": [-1], "alphas": [1.0]}


def vectors(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)


CALLS: dict[str, Callable[[rl.Lens, Any], Any]] = {
    "extraction": lambda lens, v: rl.activations(lens, LONG),
    "all positions": lambda lens, v: torch.stack(rl.activations(lens, LONG, positions="all")),
    "letters": lambda lens, v: rl.evaluate(lens, QUESTIONS).logprobs,
    "cloze": lambda lens, v: rl.evaluate(lens, QUESTIONS, method="cloze").logprobs,
    "sweep": lambda lens, v: torch.from_numpy(rl.sweep(lens, v, QUESTIONS, **grid(lens)).records),
    "screen": lambda lens, v: torch.tensor(
        rl.search(lens, v, QUESTIONS, **grid(lens)).table()["predicted"].to_numpy()
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_halved_until_it_does(name: str) -> None:
    lens = llama()
    v = vectors(lens)
    with memory.live_bytes() as roomy:
        expected = CALLS[name](lens, v)
    with Limited(int(0.6 * roomy.peak)) as limited:
        halved = CALLS[name](lens, v)
    assert limited.failed
    torch.testing.assert_close(halved, expected, rtol=1e-4, atol=1e-4)


def test_answers_are_generated_in_halves() -> None:
    lens = llama()
    prompts = [f"Say {n}. " * (n % 3 + 1) for n in range(16)]
    with memory.live_bytes() as roomy:
        expected = lens.generate(prompts, max_new_tokens=6)
    with Limited(int(0.6 * roomy.peak)) as limited:
        assert lens.generate(prompts, max_new_tokens=6) == expected
    assert limited.failed


def test_one_prompt_that_does_not_fit_is_one_sentence() -> None:
    lens = llama()
    message = "a prompt of .* tokens does not fit into memory alone"
    with pytest.raises(rl.InputError, match=message), Limited(1000):
        rl.activations(lens, LONG)


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory.running_out():
        raise RuntimeError("shapes do not fit")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with memory.running_out() as ended:
            raise error
        assert ended


@given(sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=20), kept=st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_live_bytes_are_those_of_tensors_that_live(sizes: list[int], kept: int) -> None:
    alive: list[torch.Tensor] = []
    bytes_now = peak = 0
    with memory.live_bytes() as live:
        for size in sizes:
            alive.append(torch.ones(size))
            bytes_now += 4 * size
            peak = max(peak, bytes_now)
            if len(alive) > kept:
                bytes_now -= 4 * len(alive.pop(0))
    assert live.peak == peak


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2"])
def test_the_memory_of_a_batch_is_as_predicted(architecture: str) -> None:
    lens = tiny_lens(architecture)
    needs = memory._footprints[lens.model]["forward"]
    tokens = lens.encode(LONG[:1] * 16)
    width = max(map(len, tokens.ids))
    with memory.live_bytes() as live:
        list(forward.residual_stream(lens.model, tokens, [lens.n_layers - 1], [-1], hooks=NOTHING))
    predicted = needs.bytes(16 * width, width)
    assert 0.5 * predicted < live.peak < 1.25 * predicted


NOTHING = [("blocks.0.hook_resid_pre", lambda x, hook: None)]


@contextmanager
def free(monkeypatch, bytes_: int):
    with monkeypatch.context() as patched:
        patched.setattr(memory, "free_bytes", lambda device: bytes_)
        yield


@pytest.mark.parametrize("name", ["letters", "extraction", "screen"])
def test_batches_are_cut_to_the_free_memory(name: str, monkeypatch) -> None:
    lens = llama()
    v = vectors(lens)
    with memory.live_bytes() as roomy:
        expected = CALLS[name](lens, v)
    with free(monkeypatch, roomy.peak), Limited(roomy.peak) as cut:
        found = CALLS[name](lens, v)
    assert not cut.failed
    assert cut.peak < 0.8 * roomy.peak
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_budget_can_be_chosen(monkeypatch, unchecked) -> None:
    lens = llama()
    widths: list[int] = []
    plain = forward.passes.models.run

    def run(model, ids, *args, **kwargs):
        widths.append(ids.numel())
        return plain(model, ids, *args, **kwargs)

    monkeypatch.setattr(forward.passes.models, "run", run)
    assert lens.token_budget is None
    expected = rl.evaluate(lens, QUESTIONS).logprobs
    most = max(widths)
    lens.token_budget = most // 4
    widths.clear()
    found = rl.evaluate(lens, QUESTIONS).logprobs
    assert max(widths) <= most // 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert rl.Lens(lens.model).token_budget == most // 4
    lens.token_budget = None
    for wrong in (0, -1, 2.5, True, "many"):
        with pytest.raises(rl.InputError, match="token_budget is .*; it has to be a whole number"):
            lens.token_budget = wrong


def test_accelerators_take_larger_batches(monkeypatch) -> None:
    lens = llama()
    assert memory.token_budget(lens.model, 100) == 2048
    monkeypatch.setattr(memory, "devices", lambda model: {torch.device("cuda:0")})
    with free(monkeypatch, 80 << 30):
        assert memory.token_budget(lens.model, 100) == 16384
    needs = memory._footprints[lens.model]["forward"]
    with free(monkeypatch, 400 * needs.bytes(1, 100)):
        assert 190 <= memory.token_budget(lens.model, 100) <= 200
    with free(monkeypatch, 1):
        assert memory.token_budget(lens.model, 100) == 1
