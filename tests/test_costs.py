"""Estimates against operations that are counted while the run goes on, and against its table."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens import forward

QUESTIONS = [
    rl.Question(f"q{n}", f"Which of these is red, number {n}?", ("blood", "grass", "sky"), n % 3)
    for n in range(40)
]
PROBLEMS = rl.load_task([rl.Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(4)])
GRID: dict[str, Any] = {"layers": [1, 2, 3], "positions": [-1, -2], "alphas": [1.0, 3.0]}


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def lens() -> rl.Lens:
    return tiny_lens("Llama")


@pytest.fixture
def vectors(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS, "b": tiny.OTHERS * 2}, base=tiny.OTHERS)


@pytest.mark.parametrize("tokens", ["all", "post-instruction"])
@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_operations_of_a_sweep_are_those_that_run(lens, vectors, tokens, method) -> None:
    options = {**GRID, "tokens": tokens, "method": method}
    expected = counted(lambda: rl.sweep(lens, vectors, QUESTIONS, **options))
    estimate = rl.estimate(lens, vectors, QUESTIONS, **options, seconds=0)
    assert estimate.cells == 24
    assert estimate.items == 40
    assert estimate.seconds is None
    assert 0.7 < estimate.operations / expected < 1.4
    assert "24 on 40 items" in str(estimate)


def test_operations_of_a_search_lie_between_the_estimates(lens, vectors) -> None:
    expected = counted(lambda: rl.search(lens, vectors, QUESTIONS, **GRID))
    estimate = rl.estimate(lens, vectors, QUESTIONS, **GRID, searching=True, seconds=0)
    assert 0.7 * estimate.operations < expected < 1.4 * estimate.most_operations


def test_operations_of_generated_answers_are_at_most_those_estimated(lens, vectors) -> None:
    options = {**GRID, "max_new_tokens": 6}
    expected = counted(lambda: rl.sweep(lens, vectors, PROBLEMS, **options))
    estimate = rl.estimate(lens, vectors, PROBLEMS, **options, seconds=0)
    assert 0.2 < expected / estimate.operations < 1.2
    with pytest.raises(rl.InputError, match="no search to estimate; estimate a sweep"):
        rl.estimate(lens, vectors, PROBLEMS, **options, searching=True)


def test_the_speed_is_that_of_a_sample(lens, vectors) -> None:
    estimate = rl.estimate(lens, vectors, QUESTIONS, **GRID, seconds=0.2)
    assert estimate.speed is not None
    assert estimate.seconds == pytest.approx(estimate.operations / estimate.speed)
    twice = estimate + estimate
    assert twice.operations == 2 * estimate.operations
    assert twice.cells == 48
    assert "GFLOP/s" in repr(twice)
    poor = dataclasses.replace(estimate, most_operations=3 * estimate.operations)
    assert "if the screen is poor" in str(poor)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_operations_of_a_token_are_twice_its_weights(architecture: str) -> None:
    lens = tiny_lens(architecture)
    ops = forward.count_operations(lens.model)
    blocks = lens.model.original_model.get_decoder() if architecture != "GPT2" else None
    blocks = lens.model.original_model.transformer.h if blocks is None else blocks.layers
    names = ("weight",)
    weights = sum(
        w.numel() for n, w in blocks.named_parameters() if n.endswith(names) and w.ndim == 2
    )
    assert ops.each == pytest.approx(2 * weights, rel=0.05)
    assert ops.unembedded == 2 * lens.d_model * lens.model.cfg.d_vocab
    # Scores and values: two products with all heads for each pair of tokens.
    cfg = lens.model.cfg
    assert ops.pair == pytest.approx(4 * cfg.n_layers * cfg.n_heads * cfg.d_head, rel=0.05)
    assert ops.blocks(10, 0, lens.n_layers / 2) == pytest.approx(5 * ops.each)


def test_memory_at_the_peak_is_above_the_weights(lens, vectors) -> None:
    weights = sum(w.nbytes for w in lens.model.parameters())
    estimate = rl.estimate(lens, vectors, QUESTIONS, **GRID, seconds=0)
    assert estimate.peak_bytes > weights
    with forward.memory.live_bytes() as live, torch.no_grad():
        rl.sweep(lens, vectors, QUESTIONS, **GRID)
    assert live.peak < 2 * (estimate.peak_bytes - weights)
