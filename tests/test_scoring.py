import dataclasses
import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens import scoring

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0, "colour"),
    rl.Question("q2", "Which of these is cold to the touch?", ("fire", "ice"), 1, "heat"),
    rl.Question("q3", "Who sings?", ("a stone", "a bird", "a lamp"), 1, "sound"),
]


def test_letter_scores_equal_plain_logits(lens: rl.Lens, variant: Variant) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    scores = rl.evaluate(lens, QUESTIONS)
    for i, question in enumerate(QUESTIONS):
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", question.options)]  # noqa: B905
        prompt = "\n".join(
            [question.text, *lines, "Answer with the letter of the correct answer.", "Answer:"]
        )
        ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"[: len(lines)]]
        own = oracles.logits(model, oracles.chat_ids(tokenizer, prompt))[-1, ids]
        expected = own.log_softmax(dim=-1)
        torch.testing.assert_close(
            scores.logprobs[i, : len(ids)], expected, atol=variant.logit_tolerance, rtol=1e-4
        )
        assert (scores.logprobs[i, len(ids) :] == -torch.inf).all()
        assert scores.predictions[i] == own.argmax()


@pytest.mark.parametrize("method", ["cloze", "cloze_norm"])
def test_cloze_scores_equal_plain_sums(lens: rl.Lens, variant: Variant, method) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    d = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)
    scores = rl.evaluate(lens, QUESTIONS, hooks=rl.add(d, 2.0), method=method)
    for i, question in enumerate(QUESTIONS):
        ids = oracles.chat_ids(tokenizer, question.text)
        for k, option in enumerate(question.options):
            answer = tokenizer(option, add_special_tokens=False).input_ids
            with oracles.added(model, 2, 2 * d.vector):
                own = oracles.option_logprob(model, ids, answer)
            expected = own.sum() if method == "cloze" else own.mean()
            torch.testing.assert_close(scores.logprobs[i, k], expected, atol=1e-3, rtol=1e-4)


def test_accuracy_and_margin_are_those_of_the_definition() -> None:
    scores = rl.Scores(
        logprobs=torch.tensor([[-1.0, -2.0, -5.0], [-1.0, -3.0, -torch.inf], [-4.0, -2.5, -2.0]]),
        answers=torch.tensor([0, 1, 2]),
        questions=("a", "b", "c"),
        domains=("x", "x", "y"),
        method="cloze",
    )
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.margins.tolist() == pytest.approx([1.0, -2.0, 0.5])
    assert scores.margin == pytest.approx(-0.5 / 3)
    assert scores.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert scores.table()["accuracy"].to_dict() == {"x": 0.5, "y": 1.0}
    assert "accuracy 0.667" in repr(scores)


def test_a_system_prompt_changes_scores(llama: rl.Lens) -> None:
    with_role = rl.evaluate(llama, QUESTIONS, system="You are a lawyer.")
    assert not torch.allclose(with_role.logprobs, rl.evaluate(llama, QUESTIONS).logprobs)


@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_a_prefix_is_part_of_the_question(llama: rl.Lens, method: str) -> None:
    asked = [
        rl.Question(q.id, f"You are a cook.\n\n{q.text}", q.options, q.answer) for q in QUESTIONS
    ]
    found = rl.evaluate(llama, QUESTIONS, method=method, prefix="You are a cook.\n\n")
    assert torch.equal(found.logprobs, rl.evaluate(llama, asked, method=method).logprobs)


def test_scores_of_one_domain(llama: rl.Lens) -> None:
    every = rl.evaluate(llama, QUESTIONS)
    heat = every.domain("heat")
    assert heat.questions == ("q2",)
    assert torch.equal(heat.logprobs, every.logprobs[1:2])
    with pytest.raises(rl.InputError, match="no domain 'haet'; did you mean 'heat'"):
        every.domain("haet")


def test_unusable_input_is_refused(llama: rl.Lens, unchecked) -> None:
    with pytest.raises(rl.InputError, match="method is 'guess'; it has to be one of letter"):
        rl.evaluate(llama, QUESTIONS, method="guess")
    with pytest.raises(rl.InputError, match="at least one question"):
        rl.evaluate(llama, [])
    nan = [("blocks.1.hook_resid_pre", lambda x, hook: x * torch.nan)]
    with pytest.raises(rl.InputError, match="scores are NaN"):
        rl.evaluate(llama, QUESTIONS, hooks=nan)


def test_bfloat16_scores_are_near_and_not_tied(tmp_path) -> None:
    tiny.hf_model("Phi").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    full, half = (rl.load(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert full.source.weights == half.source.weights
    assert full.source.weights == rl.load(tmp_path, dtype=torch.float16).source.weights
    found, expected = (rl.evaluate(lens, QUESTIONS, method="cloze") for lens in (half, full))
    scale = expected.logprobs[torch.isfinite(expected.logprobs)].abs().mean()
    finite = torch.isfinite(expected.logprobs)
    assert (found.logprobs - expected.logprobs)[finite].abs().mean() < 0.1 * scale
    letters = rl.evaluate(half, QUESTIONS).logprobs[0]
    assert len(set(letters.tolist())) == 4


def test_rows_of_cloze_are_questions(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    directions, alphas = [vectors.at(1), vectors.at(2), vectors.at(3)], [1.0, -2.0, 3.0]
    for method in ("letter", "cloze"):
        hooks = rl.add_rows(directions, alphas)
        together = rl.evaluate(llama, QUESTIONS, hooks, method)
        for n, (d, alpha) in enumerate(zip(directions, alphas, strict=True)):
            alone = rl.evaluate(llama, QUESTIONS[n : n + 1], rl.add(d, alpha), method).logprobs[0]
            found = together.logprobs[n, : len(alone)]
            torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(rl.InputError, match="prompt 2 has no direction; there are 2"):
        rl.evaluate(llama, QUESTIONS, rl.add_rows(directions[:2], alphas[:2]))


def test_hooks_that_scoring_would_not_reach_are_refused(llama: rl.Lens) -> None:
    for name in ("unembed.hook_in", "ln_final.hook_normalized"):
        with pytest.raises(rl.InputError, match="behind the last block"):
            rl.evaluate(llama, QUESTIONS, [(name, lambda x, hook: x)])
    far = rl.Direction(torch.ones(32), layer=99)
    with pytest.raises(rl.InputError, match="no hook 'blocks.99.hook_resid_pre'; it has 4 layers"):
        rl.evaluate(llama, QUESTIONS, rl.add(far))


def test_a_benchmark_may_be_named(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="no benchmark 'nothing'"):
        rl.evaluate(llama, "nothing")


SHOTS = (
    rl.Question("s1", "Which is green?", ("blood", "grass"), 1),
    rl.Question("s2", "Which is blue?", ("the clear sky", "snow", "tar"), 0),
)
SHOWN = """The following are multiple choice questions (with answers) about all colours.

Which is green?
A. blood
B. grass
Answer: B

Which is blue?
A. the clear sky
B. snow
C. tar
Answer: A

"""
ASKED = """Which is red?
A. blood
B. grass
C. the clear sky
D. snow
Answer with the letter of the correct answer.
Answer:"""


def test_shots_stand_before_the_question() -> None:
    question = dataclasses.replace(QUESTIONS[0], subject="all_colours")
    assert scoring.letter_prompt(question) == ASKED
    assert scoring.cloze_prompt(question) == "Which is red?"
    question = dataclasses.replace(question, shots=SHOTS)
    assert scoring.letter_prompt(question) == SHOWN + ASKED
    assert scoring.cloze_prompt(question) == (
        "Which is green?\ngrass\n\nWhich is blue?\nthe clear sky\n\nWhich is red?"
    )
    for subject, domain, about in (("", "heat", " about heat."), ("", "", ".")):
        bare = dataclasses.replace(question, subject=subject, domain=domain)
        heading = f"The following are multiple choice questions (with answers){about}\n\nWhich is"
        assert scoring.letter_prompt(bare).startswith(heading)


def test_shots_are_read_by_the_model(tmp_path) -> None:
    torch.manual_seed(0)
    size = {"max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(**(tiny._SHARED | size))).eval()
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lens, tokenizer = rl.load(tmp_path), tiny.tokenizer()
    question = dataclasses.replace(QUESTIONS[0], subject="all_colours", shots=SHOTS)
    other = dataclasses.replace(QUESTIONS[2], subject="all_colours", shots=SHOTS)
    found = rl.evaluate(lens, [question, other]).logprobs[0]
    ids = tokenizer.convert_tokens_to_ids(list("ABCD"))
    own = oracles.logits(model, oracles.chat_ids(tokenizer, SHOWN + ASKED))[-1, ids]
    torch.testing.assert_close(found, own.log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
    first, second = scoring.prepare(lens, [question, other], "letter").tokens.ids
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    assert SHOWN.strip() in tokenizer.decode([i for i, _ in same])


def test_a_ready_made_prompt_is_put_word_for_word(llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    prompt = "Red?\n\t\tA. blood\n\t\tB. grass\n\t\tPick:"
    question = rl.Question("q", "Which is red?", ("blood", "grass"), 0, prompt=prompt)
    ids = tokenizer.convert_tokens_to_ids(list("AB"))
    own = oracles.logits(model, oracles.chat_ids(tokenizer, prompt))[-1, ids]
    found = rl.evaluate(llama, [question]).logprobs[0]
    torch.testing.assert_close(found, own.log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
    plain = dataclasses.replace(question, prompt=None)
    cloze = [rl.evaluate(llama, [q], method="cloze").logprobs for q in (question, plain)]
    assert torch.equal(*cloze)


def test_cloze_with_shots_equals_plain_sums(llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    question = dataclasses.replace(QUESTIONS[2], shots=SHOTS)
    scores = rl.evaluate(llama, [question, *QUESTIONS], method="cloze")
    prompt = "Which is green?\ngrass\n\nWhich is blue?\nthe clear sky\n\nWho sings?"
    for k, option in enumerate(question.options):
        answer = tokenizer(option, add_special_tokens=False).input_ids
        expected = oracles.option_logprob(model, oracles.chat_ids(tokenizer, prompt), answer).sum()
        torch.testing.assert_close(scores.logprobs[0, k], expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(scores.logprobs[0], scores.logprobs[3])


@pytest.mark.model
def test_mini_on_the_embedded_model(smollm2: rl.Lens) -> None:
    """Options alone, without their questions, score within the binomial interval of chance."""
    bench = rl.load_benchmark("mini")
    blank = [
        rl.Question(q.id, "Answer this question.", q.options, q.answer, q.domain) for q in bench
    ]
    for method in ("cloze", "cloze_norm"):
        alone = rl.evaluate(smollm2, blank, method=method)
        assert rl.stats.wilson(80, 320)[0] <= alone.accuracy <= rl.stats.wilson(80, 320)[1]
    assert scoring.prepare(smollm2, bench, "letter").letters == tuple(
        smollm2.tokenizer.convert_tokens_to_ids(list("ABCD"))
    )


def test_the_likelier_form_of_the_letters_is_read(lens: rl.Lens, variant: Variant) -> None:
    """With a vocabulary in which letters stand with and without a space."""
    tokenizer = tiny.tokenizer()
    model = tiny.reference(variant.architecture)
    forms = [
        [tokenizer(space + letter, add_special_tokens=False).input_ids for letter in "ABCD"]
        for space in ("", " ")
    ]
    single = [[ids[0] for ids in form] for form in forms if all(len(ids) == 1 for ids in form)]
    found = scoring.prepare(lens, QUESTIONS, "letter").letters
    mass = []
    for form in single:
        own = []
        for question in QUESTIONS:
            ids = oracles.chat_ids(tokenizer, scoring.letter_prompt(question))
            own.append(oracles.logits(model, ids)[-1, form].logsumexp(dim=-1))
        mass.append(float(torch.stack(own).mean()))
    assert list(found) == single[mass.index(max(mass))]
