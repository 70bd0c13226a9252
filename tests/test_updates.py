"""Steering as weights and weights as steering: exact where it is exact, refused where it is not."""

from pathlib import Path

import pytest
import torch

import oracles
import planted
import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens.updates import Adapter, baked_in, first_order_shift, train_adapter
from test_features import bridge

TEXTS = ["Explain how a river finds the sea.", "Who was here first?"]


def direction(layer: int = 2, seed: int = 0) -> rl.Direction:
    return rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(seed)), layer=layer)


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3", "GPT2", "Phi"])
def test_a_bias_is_the_same_as_a_steering(architecture: str) -> None:
    lens = tiny_lens(architecture)
    steering = rl.add(direction(), 0.7) + rl.add(direction(3, 1), -0.4)
    tokens = lens.encode(TEXTS, raw=True)
    model = lens.model.original_model
    plain = [oracles.logits(model, ids) for ids in tokens.ids]
    with lens.steered(steering):
        hooked = [lens.model(torch.tensor([ids]))[0].detach() for ids in tokens.ids]
    with baked_in(lens, steering):
        changed = [oracles.logits(model, ids) for ids in tokens.ids]  # a plain model, no hooks
        texts = lens.generate(TEXTS, max_new_tokens=6)
    for a, b, c in zip(changed, hooked, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert (a - c).abs().max() > 0.1
    assert texts == lens.generate(TEXTS, hooks=steering, max_new_tokens=6)
    again = [oracles.logits(model, ids) for ids in tokens.ids]
    for a, c in zip(again, plain, strict=True):
        assert torch.equal(a, c)  # the weights are put back


@pytest.mark.parametrize("architecture", ["Gemma2", "Gemma3"])
def test_a_norm_before_the_skip_is_refused(architecture: str) -> None:
    lens = tiny_lens(architecture)
    before = {name: weight.clone() for name, weight in lens.model.named_parameters()}
    with (
        pytest.raises(rl.InputError, match="before it reaches the residual stream"),
        baked_in(lens, rl.add(direction())),
    ):
        pass
    after = dict(lens.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_what_no_bias_can_be_is_refused(llama: rl.Lens) -> None:
    for steering in (
        rl.ablate(direction(), llama),
        rl.add(direction(), tokens="generated"),
        rl.add(direction(0)),
    ):
        with pytest.raises(rl.InputError, match="is no bias"), baked_in(llama, steering):
            pass
    with (
        llama.steered(rl.add(direction())),
        pytest.raises(rl.InputError, match="has hooks"),
        baked_in(llama, rl.add(direction())),
    ):
        pass


def test_small_updates_of_an_mlp_are_shifts_to_first_order() -> None:
    """What is left of the difference falls with the square of the change."""
    drawn = torch.Generator().manual_seed(0)
    mlp = tiny.reference("Llama").model.layers[1].mlp
    weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
    weights = [weight.detach().double() for weight in weights]
    changes = [torch.randn(w.shape, generator=drawn, dtype=torch.float64) for w in weights]
    h = torch.randn(5, 32, generator=drawn, dtype=torch.float64)

    def run(parts: list[torch.Tensor]) -> torch.Tensor:
        gate, up, down = parts
        return (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T

    left = []
    for size in (1e-3, 1e-4):
        small = [size * change for change in changes]
        exact = run([w + c for w, c in zip(weights, small, strict=True)]) - run(weights)
        found = first_order_shift(h, tuple(weights), tuple(small))
        left.append(float((exact - found).norm()))
        assert left[-1] < 0.1 * float(exact.norm())
    assert left[1] < left[0] / 50


def test_an_untrained_adapter_changes_nothing(llama: rl.Lens) -> None:
    down = torch.randn(4, 8, 32)
    adapter = Adapter((0, 1, 2, 3), down, torch.zeros(4, 32, 8), llama.source)
    questions = [rl.Question("a", "Who sings?", ("a stone", "a bird"), 1)]
    plain = rl.evaluate(llama, questions, (), "cloze").logprobs
    torch.testing.assert_close(
        rl.evaluate(llama, questions, adapter.hooks, "cloze").logprobs, plain
    )
    assert adapter.n_parameters == 2 * 4 * 8 * 32


def test_an_adapter_is_what_its_formula_says(llama: rl.Lens) -> None:
    """Against a plain model whose blocks' outputs are changed by hand."""
    drawn = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 3, 32, generator=drawn), torch.randn(2, 32, 3, generator=drawn)
    adapter = Adapter((1, 3), down, up, llama.source)
    model = tiny.hf_model("Llama")
    for n, layer in enumerate((1, 3)):

        def change(module, args, out, n=n):
            h = out[0] if isinstance(out, tuple) else out
            new = h + torch.nn.functional.silu(h @ down[n].T) @ up[n].T
            return (new, *out[1:]) if isinstance(out, tuple) else new

        model.model.layers[layer].register_forward_hook(change)
    questions = [rl.Question("a", "Who sings?", ("a stone", "a bird"), 1)]
    found = rl.evaluate(llama, questions, adapter.hooks, "cloze").logprobs[0]
    for option, value in zip(questions[0].options, found, strict=True):
        tokens = llama.encode(["Who sings?"], [option])
        ids, n = tokens.ids[0], tokens.prompt_lengths[0]
        expected = oracles.option_logprob(model, ids[:n], ids[n:]).sum()
        assert float(value) == pytest.approx(float(expected), abs=1e-3)


def test_training_raises_held_out_answers_where_there_is_something_to_learn(
    tmp_path: Path,
) -> None:
    lens = rl.Lens(bridge(planted.model()))
    asked = rl.load_task([rl.Question(**row) for row in planted.questions(40)]).domain("math")
    selection, test = asked.split()
    before = {name: weight.clone() for name, weight in lens.model.named_parameters()}
    adapter = train_adapter(lens, selection, rank=8, steps=60, rate=1e-2, batch=10)
    plain, trained = (rl.evaluate(lens, test, hooks) for hooks in ((), adapter.hooks))
    assert trained.accuracy > plain.accuracy + 0.2
    assert adapter.losses[-1] < adapter.losses[0]
    for name, weight in lens.model.named_parameters():
        assert torch.equal(before[name], weight)
        assert weight.requires_grad == before[name].requires_grad or weight.grad is None
    again = Adapter.load(adapter.save(tmp_path / "a.safetensors"))
    torch.testing.assert_close(rl.evaluate(lens, test, again.hooks).logprobs, trained.logprobs)
    again.check(lens)
    rl.compare(plain, trained)


@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_the_gradient_is_that_of_the_mean(llama: rl.Lens, method: str) -> None:
    """One small step of plain gradient descent raises what is asked for, by what it says."""
    questions = [
        rl.Question("a", "What is the weather?", ("rice", "a river", "fog"), 1),
        rl.Question("b", "Who was here first?", ("birds", "the sea"), 0),
    ]
    adapter = train_adapter(llama, questions, steps=8, rate=3e-3, batch=2, method=method)
    assert adapter.losses[-1] < adapter.losses[0]
    with pytest.raises(rl.InputError, match="each has to be above 0"):
        train_adapter(llama, questions, rank=0)
    with pytest.raises(rl.InputError, match="no gradient"):
        train_adapter(llama, rl.load_task("arithmetic").take([0]))
