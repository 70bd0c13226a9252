"""HookedTransformer as TransformerLens 3.9 still has it, with its weights processed."""

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import HAS_HOOKED, hooked_transformer, tiny_lens
from rolelens import forward
from test_evaluation import QUESTIONS

pytestmark = pytest.mark.skipif(
    not HAS_HOOKED,
    reason="TransformerLens 4 has no HookedTransformer; nox runs these tests on 3.9",
)
N = 11  # post-instruction tokens of the tiny template


def measured(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]


def expected(architecture: str) -> torch.Tensor:
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    return oracles.mean_difference(model, tokenizer, tiny.PROMPTS, tiny.OTHERS, N)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPT2"])
def test_folding_the_norms_leaves_directions_and_scores(architecture: str) -> None:
    lens = rl.Lens(hooked_transformer(architecture, fold_ln=True))
    assert not lens.source.centred
    found, oracle = measured(lens).directions[0].double(), expected(architecture)
    assert (found - oracle).norm() < 1e-4 * oracle.norm()
    _same_steered_logprobs(lens, architecture, oracle)


def test_centring_takes_the_mean_off_directions_and_leaves_scores() -> None:
    lens = rl.Lens(hooked_transformer("GPT2", fold_ln=True, center_writing_weights=True))
    assert lens.source.centred
    oracle = expected("GPT2")
    centred = oracle - oracle.mean(dim=-1, keepdim=True)
    found = measured(lens).directions[0].double()
    assert (found - centred).norm() < 1e-4 * oracle.norm()
    assert (found - oracle).norm() > 1e-2 * oracle.norm()
    _same_steered_logprobs(lens, "GPT2", oracle)


def test_sweeps_run_whole_passes_and_say_so_once() -> None:
    lens = rl.Lens(hooked_transformer("Llama"))
    vectors = measured(lens)
    options = {"layers": [2], "positions": [-1], "alphas": [1.0, 3.0], "method": "cloze"}
    with pytest.warns(UserWarning, match="cannot be resumed in the middle of a forward pass"):
        found = rl.sweep(lens, vectors, QUESTIONS, **options)
    again = rl.sweep(lens, vectors, QUESTIONS, **options)
    assert (found.records == again.records).all()
    bridge = tiny_lens("Llama")
    expected = rl.sweep(bridge, measured(bridge), QUESTIONS, **options)
    for cell in found.cells:
        logprobs, others = found.logprobs(cell), expected.logprobs(**cell.label)
        torch.testing.assert_close(logprobs, others, atol=5e-3, rtol=1e-3)


def _same_steered_logprobs(lens: rl.Lens, architecture: str, oracle: torch.Tensor) -> None:
    """Steered by its own direction, a model answers as the plain one steered by the plain one."""
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    answers = ["yes, it is"] * len(tiny.PROMPTS)
    hooks = rl.add(measured(lens).at(2, -1), 2.0)
    found = forward.answer_logprobs(lens.model, lens.encode(tiny.PROMPTS, answers), hooks=hooks)
    target = tokenizer(answers[0], add_special_tokens=False).input_ids
    for i, prompt in enumerate(tiny.PROMPTS):
        with oracles.added(model, 2, 2 * oracle[2, -1].float()):
            logprobs = oracles.option_logprob(model, oracles.chat_ids(tokenizer, prompt), target)
        torch.testing.assert_close(found[i], logprobs, atol=1e-3, rtol=1e-3)


def test_centred_and_raw_vectors_are_refused_on_each_other() -> None:
    centred = rl.Lens(hooked_transformer("GPT2", center_writing_weights=True))
    raw = rl.Lens(hooked_transformer("GPT2"))
    for vectors, lens in ((measured(centred), raw), (measured(raw), centred)):
        for use in (
            lambda v=vectors, lens=lens: lens.generate(["Hi."], hooks=rl.add(v.at(2), 1.0)),
            lambda v=vectors, lens=lens: rl.ablate(v.at(2), lens),
            lambda v=vectors, lens=lens: rl.patchscope(lens, v.at(2)),
        ):
            with pytest.raises(rl.InputError, match="their writing weights .* differ"):
                use()


def test_a_bridge_and_a_hooked_transformer_of_one_model_share_vectors() -> None:
    bridge, hooked = tiny_lens("GPT2"), rl.Lens(hooked_transformer("GPT2"))
    assert bridge.source.weights == hooked.source.weights
    found = hooked.generate(tiny.PROMPTS, hooks=rl.add(measured(bridge).at(2), 2.0))
    assert found == bridge.generate(tiny.PROMPTS, hooks=rl.add(measured(hooked).at(2), 2.0))
