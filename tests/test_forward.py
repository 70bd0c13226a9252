import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
import rolelens as rl
import tiny
from conftest import Variant, tiny_bridge
from rolelens import forward
from rolelens.forward import Tokens


def pairs() -> tuple[list[str], list[str]]:
    """Two answers of different length to each prompt."""
    prompts = [p for p in tiny.PROMPTS for _ in range(2)]
    answers = [a for n in range(len(tiny.PROMPTS)) for a in ("yes", f"number {n} of the list")]
    return prompts, answers


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), min_size=1, max_size=25),
    budget=st.integers(1, 120),
    same=st.booleans(),
)
def test_batches_hold_every_prompt_once_within_the_budget(lengths, budget: int, same: bool) -> None:
    ids = tuple(tuple(range(1, p + a + 1)) for p, a in lengths)
    tokens = Tokens(ids, tuple(p for p, _ in lengths), 1)
    found = forward.batches(tokens, budget, same_prompt_length=same)
    assert sorted(i for b in found for i in b.rows.tolist()) == list(range(len(lengths)))
    for b in found:
        assert b.ids.numel() <= budget or len(b.rows) == 1
        assert not same or len(set(b.prompt_lengths.tolist())) == 1
        for row, i in enumerate(b.rows.tolist()):
            assert b.ids[row, : b.lengths[row]].tolist() == list(ids[i])


@pytest.mark.parametrize("budget", [1, 60, 2048])
def test_next_token_logits_equal_plain_ones(lens: rl.Lens, variant: Variant, budget: int) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    vocab = [7, 3, 250]
    found = forward.next_token_logits(
        lens.model, lens.encode(tiny.PROMPTS), vocab=vocab, budget=budget
    )
    for i, prompt in enumerate(tiny.PROMPTS):
        expected = oracles.logits(model, oracles.chat_ids(tokenizer, prompt))[-1, vocab]
        torch.testing.assert_close(found[i], expected, atol=variant.logit_tolerance, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 100, 2048])
def test_answer_logprobs_equal_plain_ones(lens: rl.Lens, variant: Variant, budget: int) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    d = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)
    prompts, answers = pairs()
    tokens = lens.encode(prompts, answers)
    found = forward.answer_logprobs(lens.model, tokens, hooks=rl.add(d, 2.0), budget=budget)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = oracles.chat_ids(tokenizer, prompt)
        target = tokenizer(answer, add_special_tokens=False).input_ids
        with oracles.added(model, 2, 2 * d.vector):
            expected = oracles.option_logprob(model, ids, target)
        torch.testing.assert_close(found[i], expected, atol=variant.logit_tolerance, rtol=1e-4)


def test_a_selection_holds_across_the_shared_prompt(llama: rl.Lens) -> None:
    d = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    prompts, answers = pairs()
    tokens = llama.encode(prompts, answers)
    hooks = rl.add(d, 2.0, tokens="generated")
    found = forward.answer_logprobs(llama.model, tokens, hooks=hooks)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = oracles.chat_ids(tokenizer, prompt)
        target = tokenizer(answer, add_special_tokens=False).input_ids
        with oracles.added(model, 2, 2 * d.vector, where=slice(len(ids), None)):
            expected = oracles.option_logprob(model, ids, target)
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=1e-4)


def test_rows_steered_differently_share_no_prompt(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    directions = [vectors.at(1), vectors.at(3)]
    tokens = llama.encode(["Who sings?"] * 2, ["a bird"] * 2)
    together = forward.answer_logprobs(
        llama.model,
        tokens,
        hooks=rl.by_row([rl.add(directions[0], 2.0), rl.add(directions[1], 3.0)]),
    )
    for found, d, alpha in zip(together, directions, (2.0, 3.0), strict=True):
        alone = forward.answer_logprobs(llama.model, tokens, hooks=rl.add(d, alpha))[0]
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_nothing_is_published_outside_a_forward_pass(llama: rl.Lens) -> None:
    seen = []
    hook = ("blocks.0.hook_resid_pre", lambda x, hook: seen.append(forward.running.get()))
    rl.activations(llama, tiny.PROMPTS[:1], hooks=[hook])
    assert seen[0] is not None
    assert seen[0].positions.tolist() == list(range(len(llama.encode(tiny.PROMPTS[:1]).ids[0])))
    assert forward.running.get() is None


def test_an_unembedding_that_is_not_understood_is_refused() -> None:
    bridge = tiny_bridge("Gemma2")
    bridge.cfg.output_logits_soft_cap = 0.5
    lens = rl.Lens(bridge)
    with pytest.raises(rl.InputError, match="unembedding of 'tiny-Gemma2' is not a final norm"):
        forward.next_token_logits(lens.model, lens.encode(["Hi."]), vocab=[1])


@pytest.mark.parametrize("pooled", ["last", "mean"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_post"])
def test_states_of_answers_equal_plain_ones(
    lens: rl.Lens, variant: Variant, site: str, pooled: str
) -> None:
    model = tiny.reference(variant.architecture)
    tokens = lens.encode(*pairs())
    layers = [3, 1]
    seen = []
    for rows, found in forward.answer_states(lens.model, tokens, layers, site, pooled, budget=60):
        for row, states in zip(rows.tolist(), found, strict=True):
            ids, start = tokens.ids[row], tokens.prompt_lengths[row]
            if site == "resid_pre":
                plain = oracles.hidden(model, ids)[layers]
            else:
                plain = oracles.site_states(model, ids, site)[layers]
            expected = plain[:, -1] if pooled == "last" else plain[:, start:].mean(dim=1)
            torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-3)
            seen.append(row)
    assert sorted(seen) == list(range(len(tokens)))


@pytest.mark.parametrize("prompts", ["one length", "several lengths"])
def test_rows_that_have_ended_do_not_run_on(lens: rl.Lens, variant: Variant, prompts: str) -> None:
    model, stop = tiny.reference(variant.architecture), torch.arange(0, 300, 5)
    several = prompts == "several lengths"
    if several and not forward.mixes(lens.model, ()):
        pytest.skip("this class answers prompts of one length at a time")
    ids = [tuple(range(5 + n, 17 + n + (n % 3 if several else 0))) for n in range(12)]
    tokens = Tokens(tuple(ids), tuple(map(len, ids)), 1)
    (batch,) = forward.batches(tokens)
    widths: list[int] = []
    count = [("blocks.2.hook_resid_pre", lambda x, hook: widths.append(len(x)))]
    steps = forward.decode(
        lens.model,
        batch,
        lambda logits, going: logits.argmax(dim=-1),
        max_new_tokens=20,
        stop=stop,
        hooks=count,
    )
    done = torch.stack(list(steps), dim=1).tolist()
    ends = []
    for row, found in zip(batch.rows.tolist(), done, strict=True):
        expected = oracles.greedy(model, ids[row], 20)
        end = next((n for n, i in enumerate(expected) if i in stop), 19) + 1
        assert found[:end] == expected[:end]
        ends.append(end)
    assert len(done[0]) == max(ends)
    assert widths[0] == 12
    for step, width in enumerate(widths):
        going = sum(end > step for end in ends)
        assert going <= width < 2 * going or width == going
