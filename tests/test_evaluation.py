import dataclasses
import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens import tasks

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
        expected = oracles.logits(model, oracles.chat_ids(tokenizer, prompt))[-1, ids]
        expected = expected.log_softmax(dim=-1)
        torch.testing.assert_close(
            scores.logprobs[i, : len(ids)], expected, atol=variant.logit_tolerance, rtol=1e-4
        )
        assert (scores.logprobs[i, len(ids) :] == -torch.inf).all()
        assert scores.predictions[i] == expected.argmax()


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
                each = oracles.option_logprob(model, ids, answer)
            expected = each.sum() if method == "cloze" else each.mean()
            torch.testing.assert_close(scores.logprobs[i, k], expected, atol=1e-3, rtol=1e-4)


def test_a_system_prompt_changes_scores(llama: rl.Lens) -> None:
    with_role = rl.evaluate(llama, QUESTIONS, system="You are a lawyer.")
    assert not torch.allclose(with_role.logprobs, rl.evaluate(llama, QUESTIONS).logprobs)


@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_a_prefix_is_part_of_the_question(llama: rl.Lens, method: str) -> None:
    asked = [
        rl.Question(q.id, f"You are a cook.\n\n{q.text}", q.options, q.answer) for q in QUESTIONS
    ]
    prefixed = rl.evaluate(llama, QUESTIONS, method=method, prefix="You are a cook.\n\n")
    assert torch.equal(prefixed.logprobs, rl.evaluate(llama, asked, method=method).logprobs)


def test_unusable_input_is_refused(llama: rl.Lens, unchecked) -> None:
    with pytest.raises(rl.InputError, match="method is 'guess'; it has to be one of letter"):
        rl.evaluate(llama, QUESTIONS, method="guess")
    with pytest.raises(rl.InputError, match="at least one"):
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
    near, expected = (rl.evaluate(lens, QUESTIONS, method="cloze") for lens in (half, full))
    scale = expected.logprobs[torch.isfinite(expected.logprobs)].abs().mean()
    finite = torch.isfinite(expected.logprobs)
    assert (near.logprobs - expected.logprobs)[finite].abs().mean() < 0.1 * scale
    letters = rl.evaluate(half, QUESTIONS).logprobs[0]
    assert len(set(letters.tolist())) == 4


def test_rows_of_cloze_are_questions(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    steerings = [
        rl.add(vectors.at(1), 1.0) + rl.add(vectors.at(3), 0.5),
        rl.Steering(),
        rl.ablate(vectors.at(3), llama),
    ]
    for method in ("letter", "cloze"):
        together = rl.evaluate(llama, QUESTIONS, rl.by_row(steerings), method)
        for n, steering in enumerate(steerings):
            alone = rl.evaluate(llama, QUESTIONS[n : n + 1], steering, method).logprobs[0]
            torch.testing.assert_close(
                together.logprobs[n, : len(alone)], alone, atol=1e-4, rtol=1e-4
            )
    with pytest.raises(rl.InputError, match="2 steerings and 3 prompts do not pair up"):
        rl.evaluate(llama, QUESTIONS, rl.by_row(steerings[:2]))


def test_hooks_that_scoring_would_not_reach_are_refused(llama: rl.Lens) -> None:
    for name in ("unembed.hook_in", "ln_final.hook_normalized"):
        with pytest.raises(rl.InputError, match="behind the last block"):
            rl.evaluate(llama, QUESTIONS, [(name, lambda x, hook: x)])
    far = rl.Direction(torch.ones(32), layer=99)
    with pytest.raises(rl.InputError, match="no hook 'blocks.99.hook_resid_pre'; it has 4 layers"):
        rl.evaluate(llama, QUESTIONS, rl.add(far))


def test_a_task_may_be_named(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="no task 'nothing'"):
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
    assert tasks.letter_prompt(question) == ASKED
    assert tasks.cloze_prompt(question) == "Which is red?"
    question = dataclasses.replace(question, shots=SHOTS)
    assert tasks.letter_prompt(question) == SHOWN + ASKED
    assert tasks.cloze_prompt(question) == (
        "Which is green?\ngrass\n\nWhich is blue?\nthe clear sky\n\nWhich is red?"
    )
    for subject, domain, about in (("", "heat", " about heat."), ("", "", ".")):
        bare = dataclasses.replace(question, subject=subject, domain=domain)
        heading = f"The following are multiple choice questions (with answers){about}\n\nWhich is"
        assert tasks.letter_prompt(bare).startswith(heading)


def test_shots_are_read_by_the_model(tmp_path) -> None:
    torch.manual_seed(0)
    size = {"max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(**(tiny._SHARED | size))).eval()
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lens, tokenizer = rl.load(tmp_path), tiny.tokenizer()
    question = dataclasses.replace(QUESTIONS[0], subject="all_colours", shots=SHOTS)
    other = dataclasses.replace(QUESTIONS[2], subject="all_colours", shots=SHOTS)
    logprobs = rl.evaluate(lens, [question, other]).logprobs[0]
    ids = tokenizer.convert_tokens_to_ids(list("ABCD"))
    expected = oracles.logits(model, oracles.chat_ids(tokenizer, SHOWN + ASKED))[-1, ids]
    torch.testing.assert_close(logprobs, expected.log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
    first, second = tasks.prepare(lens, [question, other], "letter").tokens.ids
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    assert SHOWN.strip() in tokenizer.decode([i for i, _ in same])


def test_a_ready_made_prompt_is_put_word_for_word(llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    prompt = "Red?\n\t\tA. blood\n\t\tB. grass\n\t\tPick:"
    question = rl.Question("q", "Which is red?", ("blood", "grass"), 0, prompt=prompt)
    ids = tokenizer.convert_tokens_to_ids(list("AB"))
    expected = oracles.logits(model, oracles.chat_ids(tokenizer, prompt))[-1, ids]
    logprobs = rl.evaluate(llama, [question]).logprobs[0]
    torch.testing.assert_close(logprobs, expected.log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
    plain = dataclasses.replace(question, prompt=None)
    cloze = [rl.evaluate(llama, [q], method="cloze").logprobs for q in (question, plain)]
    assert torch.equal(*cloze)


def test_cloze_with_shots_equals_plain_sums(llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    question = dataclasses.replace(QUESTIONS[2], id="shown", shots=SHOTS)
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
    task = rl.load_task("mini")
    blank = [
        rl.Question(q.id, "Answer this question.", q.options, q.answer, q.domain) for q in task
    ]
    for method in ("cloze", "cloze_norm"):
        alone = rl.evaluate(smollm2, blank, method=method)
        assert rl.stats.wilson(80, 320)[0] <= alone.accuracy <= rl.stats.wilson(80, 320)[1]
    assert tasks.prepare(smollm2, task, "letter").vocab == tuple(
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
    letters = tasks.prepare(lens, QUESTIONS, "letter").vocab
    mass = []
    for form in single:
        each = []
        for question in QUESTIONS:
            ids = oracles.chat_ids(tokenizer, tasks.letter_prompt(question))
            each.append(oracles.logits(model, ids)[-1, form].logsumexp(dim=-1))
        mass.append(float(torch.stack(each).mean()))
    assert list(letters) == single[mass.index(max(mass))]


def gap(item: rl.Question, answer: torch.Tensor) -> float:
    return float(answer[item.answer] - answer.mean())


def test_a_metric_of_ones_own_reads_what_was_answered(llama: rl.Lens) -> None:
    plain = rl.evaluate(llama, QUESTIONS, method="cloze")
    scores = rl.evaluate(llama, QUESTIONS, method="cloze", metric=gap)
    expected = [gap(q, plain.logprobs[n, : len(q.options)]) for n, q in enumerate(QUESTIONS)]
    assert scores.measure("gap").tolist() == expected
    made = tuple(rl.Problem(p, p, "1") for p in tiny.PROMPTS[:3])
    problems = tasks.Problems("own", made, "{question}")
    texts = llama.generate(tiny.PROMPTS[:3], max_new_tokens=4)
    answers = rl.evaluate(
        llama, problems, metric=lambda item, text: len(text + item.question), max_new_tokens=4
    )
    assert [text for (text,) in answers.texts] == texts
    assert answers.measure().tolist() == [
        len(text + prompt) for text, prompt in zip(texts, tiny.PROMPTS, strict=False)
    ]


def test_texts_are_scored_by_their_log_probability(lens: rl.Lens, variant: Variant) -> None:
    model = tiny.reference(variant.architecture)
    task = tasks.Texts("own", tuple(rl.Text(p, p) for p in tiny.PROMPTS[:2]))
    d = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)
    values = rl.evaluate(lens, task, rl.add(d, 2.0))
    for n, text in enumerate(tiny.PROMPTS[:2]):
        ids = lens.tokenizer(text).input_ids
        with oracles.added(model, 2, 2 * d.vector):
            logprobs = oracles.logits(model, ids)[:-1].log_softmax(dim=-1)
        expected = logprobs[range(len(ids) - 1), ids[1:]].mean()
        torch.testing.assert_close(values.values[n], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_effect_on_a_task_is_refused(llama: rl.Lens) -> None:
    problems = tasks.Problems("sums", (rl.Problem("a", "One and one?", "2"),))
    texts = tasks.Texts("texts", (rl.Text("a", "One and one."),))
    with pytest.raises(rl.InputError, match="temperature is 1.0, which has no effect on"):
        rl.evaluate(llama, QUESTIONS, temperature=1.0)
    with pytest.raises(rl.InputError, match="prefix is 'So: ', which has no effect on 'sums'"):
        rl.evaluate(llama, problems, prefix="So: ")
    with pytest.raises(rl.InputError, match="method is 'cloze', which is a way to score questions"):
        rl.evaluate(llama, texts, method="cloze")
    with pytest.raises(rl.InputError, match="metric is 3; pass a function"):
        rl.evaluate(llama, QUESTIONS, metric=3)
    prepared = tasks.prepare(llama, QUESTIONS)
    with pytest.raises(rl.InputError, match="is prepared already"):
        tasks.prepare(llama, prepared, "cloze")
    d = rl.Direction(torch.ones(32), layer=2)
    with pytest.raises(rl.InputError, match="which is none of the tokens"):
        rl.evaluate(llama, QUESTIONS, rl.add(d, tokens="generated"))
    with pytest.raises(rl.InputError, match="which a text without a prompt does not have"):
        rl.evaluate(llama, texts, rl.add(d, tokens="prompt"))
