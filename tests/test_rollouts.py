"""Answers that a model generates, and the directions made of them."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import oracles
import rolelens as rl
import tiny
from rolelens import forward, rollouts, tasks
from rolelens.patchscoping import TokenIdentity
from rolelens.rollouts import contrast_answers, contrast_pairs
from rolelens.tasks import Problem, Problems
from rolelens.vectors.estimators import DifferenceInMeans, GroupedMean


def problems(n: int = 5) -> Problems:
    made = tuple(Problem(f"p{k}", f"{text} {k}", str(k)) for k, text in enumerate(tiny.PROMPTS[:n]))
    return Problems("tiny", made, "{question}")


def odd(problem: Problem, text: str) -> bool:
    """A verifier that a random model meets now and then."""
    return len(text) % 2 == 1


def steering(alpha: float = 1.0, **options) -> rl.Steering:
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return rl.add(rl.Direction(drawn, layer=2), alpha, **options)


def test_rollouts_are_what_the_model_generates(llama: rl.Lens) -> None:
    greedy = rl.roll_out(
        llama, problems(), 1, temperature=0.0, max_new_tokens=6, verifier=odd, hooks=steering()
    )
    plain = llama.generate([p.question for p in problems()], max_new_tokens=6, hooks=steering())
    assert [text for (text,) in greedy.texts] == plain
    assert plain != llama.generate([p.question for p in problems()], max_new_tokens=6)
    assert greedy.correct[:, 0].tolist() == [len(text) % 2 == 1 for text in plain]
    options = {"max_new_tokens": 6, "verifier": odd}
    sampled = rl.roll_out(llama, problems(), 4, **options)
    assert sampled.correct.shape == (5, 4)
    assert len({text for texts in sampled.texts for text in texts}) > 8
    assert sampled.texts == rl.roll_out(llama, problems(), 4, **options).texts
    assert sampled.texts != rl.roll_out(llama, problems(), 4, seed=1, **options).texts
    table = sampled.rollouts()
    assert table["correct"].mean() == pytest.approx(sampled.accuracy)
    low, high = sampled.interval
    assert low <= sampled.accuracy <= high
    # An answer depends on its problem, its number and the seed, not on what else is answered.
    fewer = rl.roll_out(llama, problems().take([3, 1]), 2, **options)
    assert fewer.texts == tuple(sampled.texts[n][:2] for n in (3, 1))


def test_finished_answers_are_not_made_again(llama: rl.Lens, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(forward.memory, "GENERATED_SHARE", 0.03)
    path, options = tmp_path / "r.db", {"max_new_tokens": 5, "verifier": odd}
    whole = rl.roll_out(llama, problems(), 2, **options)
    plain, left = tasks.generate, iter(range(2))

    def generate(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return plain(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(tasks, "generate", generate)
        with pytest.raises(KeyboardInterrupt):
            rl.roll_out(llama, problems(), 2, store=path, **options)
    # Goes on by another version, whose pieces are cut otherwise.
    monkeypatch.setattr(forward.memory, "GENERATED_SHARE", 2)
    assert rl.roll_out(llama, problems(), 2, store=path, **options).texts == whole.texts
    monkeypatch.setattr(tasks, "generate", None)
    again = rl.roll_out(llama, problems(), 2, store=path, **options)
    assert again.texts == whole.texts
    # What is right is found out afterwards.
    none = options | {"verifier": lambda problem, text: False}
    assert rl.roll_out(llama, problems(), 2, store=path, **none).accuracy == 0.0


def test_a_store_of_another_call_is_refused(llama: rl.Lens, tmp_path) -> None:
    path, options = tmp_path / "r.db", {"max_new_tokens": 4, "verifier": odd, "n": 2}
    rl.roll_out(llama, problems(), store=path, **options)

    def refused(message: str, asked: Problems | None = None, **changes) -> None:
        with pytest.raises(rl.InputError, match=f"holds another run .*{message}"):
            rl.roll_out(llama, asked or problems(), store=path, **options | changes)

    refused("seed 0 -> 1", seed=1)
    refused("temperature 0.8 -> 0.5", temperature=0.5)
    refused("items 5 -> 4", problems(4))
    refused("item 1 .*p1.* -> .*p2", problems().take([0, 2, 1, 3, 4]))
    refused("template", dataclasses.replace(problems(), template="So: {question}"))
    refused("cells 1 -> 2", hooks=steering())
    refused('columns .* -> .*"text_2"', n=3)
    rl.roll_out(llama, problems(), store=tmp_path / "steered.db", hooks=steering(), **options)
    for other in (steering(tokens="generated"), steering(2.0)):
        with pytest.raises(rl.InputError, match="holds another run .*cell 1 .* -> "):
            rl.roll_out(llama, problems(), store=tmp_path / "steered.db", hooks=other, **options)
    for other in (b"a,b\n1,2\n", b"text", b"[1]\n"):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(rl.InputError, match="is not a store of rolelens"):
            rl.roll_out(llama, problems(), store=tmp_path / "other", **options)
        assert (tmp_path / "other").read_bytes() == other


@pytest.mark.usefixtures("unchecked")
def test_bad_rollouts_are_one_sentence(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="n is 2 at temperature 0"):
        rl.roll_out(llama, problems(), 2, temperature=0)
    with pytest.raises(rl.InputError, match="all steered alike, by something that can be recorded"):
        rl.roll_out(llama, problems(), hooks=lambda rows: [])
    with pytest.raises(rl.InputError, match="all steered alike, by something that can be recorded"):
        rl.roll_out(llama, problems(), hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x)])
    with pytest.raises(rl.InputError, match="has to be True or False"):
        rl.roll_out(llama, problems(), 1, max_new_tokens=2, verifier=lambda p, text: "yes")
    words = Problems("own", (Problem("a", "Who?", "nobody"),))
    with pytest.raises(rl.InputError, match="has no number"):
        rl.roll_out(llama, words, 1, max_new_tokens=2)
    with pytest.raises(rl.InputError, match="cannot be written .*directory"):
        rl.roll_out(llama, problems(), 1, store="tests", verifier=odd)
    with pytest.raises(rl.InputError, match="a str cannot be rolled out; pass problems"):
        rl.roll_out(llama, "arithmetic")


def answered() -> rl.Answers:
    """Three problems with both, one all right, one all wrong with a solution."""
    made = [
        Problem(p.id, p.question, p.answer, "So it goes." if k == 4 else "")
        for k, p in enumerate(problems())
    ]
    texts = tuple(tuple(f"word {'and more ' * n}{k}" for n in range(4)) for k, _ in enumerate(made))
    correct = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    task = Problems("tiny", tuple(made), "{question}")
    return rl.Answers(task.items, texts, correct.bool(), task)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_post"])
def test_roast_is_the_mean_of_unit_differences_of_right_and_wrong(
    llama: rl.Lens, site: str
) -> None:
    given, model = answered(), tiny.reference("Llama")
    vectors = rl.roast(llama, given, layers=[1, 3], site=site)
    total = 0.0
    for k in range(3):
        sides = {}
        for right in (True, False):
            states = []
            for text, correct in zip(given.texts[k], given.correct[k].tolist(), strict=True):
                if correct == right:
                    start = oracles.chat_ids(tiny.tokenizer(), given.items[k].question)
                    ids = start + tiny.tokenizer()(text).input_ids
                    if site == "resid_pre":
                        states.append(oracles.hidden(model, ids)[[1, 3], -1])
                    else:
                        states.append(oracles.site_states(model, ids, site)[[1, 3], -1])
            sides[right] = torch.stack(states).double().mean(dim=0)
        delta = sides[True] - sides[False]
        total = total + delta / delta.norm(dim=-1, keepdim=True)
    expected = (total / 3).float()
    torch.testing.assert_close(vectors.directions[0, :, 0], expected, rtol=1e-3, atol=1e-4)
    assert (vectors.names, vectors.site, vectors.positions) == (("roast",), site, (None,))


def test_directions_read_answers_to_other_questions(llama: rl.Lens) -> None:
    contrast, model = contrast_answers(llama, answered(), layers=[1, 3]), tiny.reference("Llama")
    torch.manual_seed(0)
    drawn = torch.randn(2, 2, 1, llama.d_model)
    vectors = rl.Directions(drawn, ("a", "b"), (1, 3), (-1,), torch.ones(2, 1))
    table = contrast.reads(vectors).set_index(["name", "layer"])
    given = answered()
    for r, role in enumerate(vectors.names):
        for n, layer in enumerate((1, 3)):
            shares = []
            for k in range(3):
                start = oracles.chat_ids(tiny.tokenizer(), given.items[k].question)
                along = [
                    float(oracles.hidden(model, start + tiny.tokenizer()(text).input_ids)[layer, -1]
                          @ drawn[r, n, 0])
                    for text in given.texts[k]
                ]  # fmt: skip
                right = given.correct[k].tolist()
                shares.append(roc_auc_score(right, along))
            row = table.loc[(role, layer)]
            assert row["auroc"] == pytest.approx(np.mean(shares))
            assert row["low"] <= row["auroc"] <= row["high"]
            assert row["questions"] == 3
    with pytest.raises(rl.InputError, match="no layer 2; there are: 1, 3"):
        contrast.reads(rl.Directions(drawn[:, :1], ("a", "b"), (2,), (-1,), torch.ones(1, 1)))
    with pytest.raises(
        rl.InputError, match="are of 'mlp_post' and the answers were read at 'resid"
    ):
        contrast.reads(dataclasses.replace(vectors, site="mlp_post"))


def test_what_was_left_out_is_counted_and_gold_weighs_in(llama: rl.Lens) -> None:
    given = answered()
    plain = contrast_answers(llama, given, layers=[2])
    assert plain.counts == {
        "mixed": 3,
        "all right": 1,
        "all wrong": 1,
        "gold answers": 0,
        "empty answers": 0,
    }
    assert plain.labelled[2].groups == [0, 1, 2]
    half = contrast_answers(llama, given, layers=[2], gold=0.5)
    assert half.counts["gold answers"] == 1
    assert half.labelled[2].groups == [0, 1, 2, 4]
    units = torch.nn.functional.normalize(half.labelled[2].differences, dim=-1)
    expected = (units[:3].sum(dim=0) + 0.5 * units[3]) / 3.5
    vectors = half.directions(GroupedMean())
    torch.testing.assert_close(vectors.directions[0, 0, 0], expected.float())
    question = given.items[4].question
    start = oracles.chat_ids(tiny.tokenizer(), f"{question}\n\nRead the question again: {question}")
    gold = oracles.hidden(
        tiny.reference("Llama"), start + tiny.tokenizer()("So it goes.").input_ids
    )[2, -1]
    positive = half.labelled[2].positive[half.labelled[2].positive_groups == 4]
    torch.testing.assert_close(positive[0], gold, rtol=1e-3, atol=1e-4)


def test_empty_answers_are_left_out_and_counted(llama: rl.Lens) -> None:
    given = answered()
    texts = list(given.texts)
    texts[0] = ("", "  ", *texts[0][2:])  # a right and a wrong one; one of each stays
    texts[1] = ("a", "", "b", "c")  # the only right one
    given = dataclasses.replace(given, texts=tuple(texts))
    contrast = contrast_answers(llama, given, layers=[2])
    assert contrast.counts["empty answers"] == 3
    assert contrast.counts["mixed"] == 2
    assert contrast.labelled[2].groups == [0, 2]
    assert int((contrast.labelled[2].positive_groups == 0).sum()) == 1
    with pytest.raises(rl.InputError, match="is no answer"):
        contrast_pairs(llama, ["a"], [" "], ["b"])


def test_nothing_to_contrast_is_refused(llama: rl.Lens) -> None:
    given = answered()
    same = dataclasses.replace(given, correct=torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(rl.InputError, match="5 all right, 0 all wrong"):
        contrast_answers(llama, same)
    with pytest.raises(rl.InputError, match="no site 'resid_mid'"):
        contrast_answers(llama, given, site="resid_mid")
    with pytest.raises(rl.InputError, match="no layer 9"):
        contrast_answers(llama, given, layers=[9])
    with pytest.raises(rl.InputError, match="layers is empty"):
        contrast_answers(llama, given, layers=[])
    other = dataclasses.replace(llama.source, weights="00", model="other")
    with pytest.raises(rl.InputError, match="their models"):
        contrast_answers(llama, dataclasses.replace(given, source=other))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_pooling_is_refused(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="no way of pooling 'final'"):
        contrast_answers(llama, answered(), pooled="final")


def test_the_system_prompt_of_the_rollouts_is_read_again(llama: rl.Lens) -> None:
    plain = answered()
    told = dataclasses.replace(plain, system="Be kind.")
    positive = [
        contrast_answers(llama, given, layers=[2]).labelled[2].positive for given in (plain, told)
    ]
    assert not torch.allclose(*positive)
    made = rl.roll_out(llama, problems(2), 2, max_new_tokens=2, verifier=odd, system="Be kind.")
    assert (made.system, made.source) == ("Be kind.", llama.source)


def test_directions_at_other_sites_are_added_and_nothing_else(llama: rl.Lens) -> None:
    vectors = rl.roast(llama, answered(), layers=[2], site="attn_out")
    asked = [rl.Question("q", "Who sings?", ("a bird", "fog"), 0)]
    options = {"layers": [2], "alphas": [1.0], "method": "cloze"}
    swept = rl.sweep(llama, vectors, asked, **options)
    scores = rl.evaluate(llama, asked, rl.add(vectors.direction("roast", 2, None)), "cloze")
    torch.testing.assert_close(swept.logprobs(swept.cells[0]), scores.logprobs, rtol=0, atol=1e-3)
    with pytest.raises(rl.InputError, match="live at 'attn_out', and ablation is of the residual"):
        rl.sweep(llama, vectors, asked, change="ablate", **options)
    with pytest.raises(rl.InputError, match="cannot stand in the residual stream's place"):
        rl.patchscope(llama, vectors.at(2), TokenIdentity())


def test_pairs_are_read_at_the_letter(llama: rl.Lens) -> None:
    prompts, model = tiny.PROMPTS[:3], tiny.reference("Llama")
    pairs = contrast_pairs(llama, prompts, ["A", "B", "A"], ["B", "A", "B"], layers=[2])
    deltas = []
    for prompt, right, wrong in zip(prompts, "ABA", "BAB", strict=True):
        start = oracles.chat_ids(tiny.tokenizer(), prompt)
        states = [
            oracles.hidden(model, start + tiny.tokenizer()(letter).input_ids)[2, -1].double()
            for letter in (right, wrong)
        ]
        deltas.append(states[0] - states[1])
    expected = torch.stack(deltas).mean(dim=0).float()
    direction = pairs.directions(DifferenceInMeans()).directions[0, 0, 0]
    torch.testing.assert_close(direction, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_mlp_steering_generates_as_plain_hooks_do(llama: rl.Lens, cache: bool) -> None:
    model, d_mlp = tiny.reference("Llama"), 48
    vector = torch.randn(d_mlp, generator=torch.Generator().manual_seed(0))
    direction = rl.Direction(vector, layer=2, site="mlp_post")
    texts = llama.generate(
        tiny.PROMPTS, hooks=rl.add(direction, 0.5), max_new_tokens=6, cache=cache
    )
    for prompt, text in zip(tiny.PROMPTS, texts, strict=True):
        ids = oracles.chat_ids(tiny.tokenizer(), prompt)
        with oracles.mlp_added(model, 2, 0.5 * vector):
            new = oracles.greedy(model, ids, 6)
        assert text == llama._text(new)


def test_choices_hold_the_right_number_once_under_the_right_letter() -> None:
    asked = Problems("own", tasks.arithmetic(60))
    prompts, right, wrong = rollouts.ab_choices(asked)
    for problem, prompt, good, bad in zip(asked, prompts, right, wrong, strict=True):
        assert {good, bad} == {"A", "B"}
        assert prompt.startswith(problem.question)
        assert f"({good}) {problem.answer}\n" in prompt
        assert f"({bad}) {problem.answer}\n" not in prompt
    assert 20 < right.count("A") < 40
