"""Estimates against operations that are counted while the run goes on, and against its table."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens import forward

QUESTIONS = [
    rl.Question(f"q{n}", f"Which of these is red, number {n}?", ("blood", "grass", "sky"), n % 3)
    for n in range(40)
]
PROBLEMS = rl.load_task([rl.Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(4)])
LAYERS = 12
GRID: dict[str, Any] = {"layers": [1, 5, 9], "positions": [-1, -2], "alphas": [1.0, 3.0]}


class Counter(TorchDispatchMode):
    """Counts matrix products, around gradients as well; attention is made of them here."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def counted(run) -> int:
    with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        run()
    return counter.total


@pytest.fixture
def lens() -> rl.Lens:
    """A model of so many layers that the last one, in part of which few tokens run, is little."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = tiny.reference("Llama").config.to_dict() | {"num_hidden_layers": LAYERS}
    config = LlamaConfig(**sizes)
    config._attn_implementation = "eager"
    config.architectures = ["LlamaForCausalLM"]
    bridge = TransformerBridge.boot_transformers(
        "tiny", hf_model=LlamaForCausalLM(config).eval(), tokenizer=tiny.tokenizer(), device="cpu"
    )
    return rl.Lens(bridge)


@pytest.fixture
def vectors(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS, "b": tiny.PROMPTS[2:]}, base=tiny.OTHERS)


@pytest.mark.parametrize("tokens", ["all", "post-instruction"])
@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_operations_of_a_sweep_are_those_that_run(lens, vectors, tokens, method) -> None:
    options = {**GRID, "tokens": tokens, "method": method}
    expected = counted(lambda: rl.sweep(lens, vectors, QUESTIONS, **options))
    estimate = rl.estimate(lens, vectors, QUESTIONS, **options, seconds=0)
    assert estimate.cells == 24
    assert estimate.items == 40
    assert estimate.seconds is None
    assert 0.85 < estimate.operations / expected < 1.2
    assert "24 on 40 items" in str(estimate)


def test_operations_of_a_search_lie_between_the_estimates(lens, vectors) -> None:
    expected = counted(lambda: rl.search(lens, vectors, QUESTIONS, **GRID))
    estimate = rl.estimate(lens, vectors, QUESTIONS, **GRID, searching=True, seconds=0)
    assert 0.8 * estimate.operations < expected < 1.2 * estimate.most_operations


def test_operations_of_generated_answers_are_at_most_those_estimated(lens, vectors) -> None:
    options = {**GRID, "max_new_tokens": 6}
    expected = counted(lambda: rl.sweep(lens, vectors, PROBLEMS, **options))
    estimate = rl.estimate(lens, vectors, PROBLEMS, **options, seconds=0)
    assert 0.2 < expected / estimate.operations < 1.2
    with pytest.raises(rl.InputError, match="cannot be predicted from gradients; score every cell"):
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
    reference = tiny.reference(architecture)
    blocks = reference.transformer.h if architecture == "GPT2" else reference.model.layers
    weights = sum(w.numel() for w in blocks.parameters() if w.ndim == 2)
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
