"""Questions, and what every task has: parts that share nothing, folds, a hash."""

import dataclasses
import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rolelens as rl
from rolelens import stats
from rolelens.tasks import Question, Questions, equal_options, paper

MINI = rl.load_task("mini")
CHANCE = stats.wilson(80, 320)
PLAIN = st.text(st.sampled_from("ab .:\nAB"), min_size=1, max_size=12).filter(str.strip)


def distinct(options: list[str]) -> bool:
    return len({option.strip() for option in options}) == len(options)


OPTIONS = st.lists(PLAIN, min_size=2, max_size=5).filter(distinct)


def test_mini_has_its_shape() -> None:
    assert Counter(q.domain for q in MINI) == dict.fromkeys(MINI.domains, 40)
    assert len(MINI.domains) == 8
    assert len({q.id for q in MINI}) == len({q.text for q in MINI}) == 320
    for domain in MINI.domains:
        letters = Counter(q.answer for q in MINI.domain(domain))
        assert letters == {0: 10, 1: 10, 2: 10, 3: 10}
    assert {role.domain for role in rl.load_roles().values()} <= set(MINI.domains)


def test_the_longest_option_scores_as_chance() -> None:
    hits = sum(max(range(4), key=lambda k: len(q.options[k])) == q.answer for q in MINI)
    assert CHANCE[0] <= hits / 320 <= CHANCE[1]


def test_options_without_the_question_say_nothing() -> None:
    """Four questions share each set of options, and each option is correct once."""
    groups: dict[frozenset[str], list[str]] = {}
    for q in MINI:
        groups.setdefault(frozenset(q.options), []).append(q.options[q.answer])
    assert len(groups) == 80
    for options, correct in groups.items():
        assert sorted(correct) == sorted(options)


def test_no_question_contains_an_option() -> None:
    for q in MINI:
        for option in q.options:
            assert f" {option.lower()} " not in f" {q.text.lower()} ", q.id


def test_split_keeps_groups_and_domains() -> None:
    first, second = MINI.split()
    assert len(first) == len(second) == 160
    assert {q.id for q in first}.isdisjoint(q.id for q in second)
    options = [{frozenset(q.options) for q in half} for half in (first, second)]
    assert options[0].isdisjoint(options[1])
    assert Counter(q.domain for q in first) == Counter(q.domain for q in second)
    assert [q.id for q in MINI.split()[0]] == [q.id for q in first]
    assert [q.id for q in MINI.split(seed=1)[0]] != [q.id for q in first]


def test_a_common_format_ties_nothing() -> None:
    questions = [rl.Question(str(n), f"Is {n} even?", ("yes", "no"), n % 2) for n in range(40)]
    first, second = rl.load_task(questions).split()
    assert len(first) == len(second) == 20
    twins = [
        rl.Question(f"{n}{d}", f"Is {n} odd?", ("yes", "no"), 0, d) for n in range(20) for d in "ab"
    ]
    first, second = rl.load_task(twins).split()
    assert {q.text for q in first}.isdisjoint(q.text for q in second)


def test_the_sha_covers_all_that_is_asked() -> None:
    plain = rl.Question("q", "Who?", ("he", "she"), 1, "people")
    fields = {"id": "q", "text": "Who?", "options": ["he", "she"], "answer": 1, "domain": "people"}
    known = hashlib.sha256(json.dumps([fields]).encode()).hexdigest()[:16]
    shot = rl.Question("s", "What?", ("this", "that"), 0)

    def sha(**changed) -> str:
        return rl.load_task([dataclasses.replace(plain, **changed)]).sha

    assert sha() == sha(subject="art") == sha(shots=(), prompt=None, also=()) == known
    shas = {
        known,
        sha(prompt="Who? A. he B. she"),
        sha(shots=(shot,)),
        sha(shots=(shot, shot)),
        sha(shots=(dataclasses.replace(shot, answer=1),)),
        sha(shots=(shot,), subject="art"),
    }
    assert len(shas) == 6


def test_permuted_options_are_the_same_options() -> None:
    permuted = MINI.permuted(seed=1)
    moved = 0
    for before, after in zip(MINI, permuted, strict=True):
        assert sorted(before.options) == sorted(after.options)
        assert before.options[before.answer] == after.options[after.answer]
        assert (before.id, before.text) == (after.id, after.text)
        moved += before.options != after.options
    assert 0.9 < moved / len(MINI) < 1
    assert MINI.permuted(seed=1) == permuted != MINI.permuted(seed=2)
    # A question's order is its own, whatever else is asked.
    assert MINI.domain("law").permuted(1)[0] in list(permuted)


@given(PLAIN, OPTIONS)
def test_permuted_prompts_show_the_permuted_options(text: str, options: list[str]) -> None:
    shown = "".join(f"\n\t\t{letter}. {o}" for letter, o in zip("ABCDE", options, strict=False))
    ending = "\n\t\tAnswer with the letter of the correct answer.\n\t\tAnswer:"
    question = rl.Question("q", text, tuple(options), 0, prompt=text + shown + ending)
    after = rl.load_task([question]).permuted(3)[0]
    assert paper._parsed(after.prompt) == (text, after.options)


def test_a_prompt_without_its_options_cannot_be_permuted() -> None:
    question = rl.Question("q7", "x?", ("one", "two"), 0, prompt="x? one or two")
    with pytest.raises(rl.InputError, match="prompt of question 'q7' has no line 'A. one'"):
        rl.load_task([question]).permuted()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_folds_ask_every_question_once(n: int) -> None:
    folds = MINI.folds(n, seed=4)
    assert sorted(q.id for _, test in folds for q in test) == sorted(q.id for q in MINI)
    for selection, test in folds:
        assert {q.id for q in selection}.isdisjoint(q.id for q in test)
        assert len(selection) + len(test) == len(MINI)
        assert (
            abs(len(test) - len(MINI) / n) <= 24
        )  # groups of four stay together in each of eight domains
        assert set(test.domains) == set(MINI.domains)
    with pytest.raises(rl.InputError, match="n is 1; 320 items make 2 to 320 folds"):
        MINI.folds(1)


CONTENT = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from("ab")), min_size=8, max_size=40
)


def tied(content: list[tuple[int, int, str]]) -> Questions:
    """Questions of which some share a text or their options."""
    return Questions(
        "tied",
        tuple(
            Question(str(n), f"text {text}", (f"x{option}", f"y{option}"), 0, domain)
            for n, (text, option, domain) in enumerate(content)
        ),
    )


@settings(max_examples=50)
@given(CONTENT, st.floats(0.2, 0.8), st.integers(0, 9))
def test_a_split_has_every_item_on_one_side(content, share: float, seed: int) -> None:
    task = tied(content)
    try:
        first, second = task.split(share, seed)
    except rl.InputError:  # all hang together, say
        return
    assert sorted(q.id for q in [*first, *second]) == sorted(q.id for q in task)
    assert list(first) == [q for q in task if q in first.items]
    assert {q.text for q in first}.isdisjoint(q.text for q in second)
    shared = {q.options for q in first} & {q.options for q in second}
    assert all(sum(q.options == options for q in task) > 8 for options in shared)


@settings(max_examples=50)
@given(CONTENT, st.integers(2, 4), st.integers(0, 9))
def test_folds_are_a_partition(content, n: int, seed: int) -> None:
    task = tied(content)
    try:
        folds = task.folds(n, seed)
    except rl.InputError:
        return
    assert sorted(q.id for _, test in folds for q in test) == sorted(q.id for q in task)
    for selection, test in folds:
        assert sorted(q.id for q in [*selection, *test]) == sorted(q.id for q in task)
        assert {q.text for q in selection}.isdisjoint(q.text for q in test)


@given(OPTIONS, st.integers(0, 4), st.integers(0, 99))
def test_permuting_keeps_the_correct_text(options: list[str], answer: int, seed: int) -> None:
    question = Question("q", "Which?", tuple(options), answer % len(options))
    (after,) = Questions("one", (question,)).permuted(seed)
    assert after.options[after.answer] == options[question.answer]
    assert sorted(after.options) == sorted(options)


@given(OPTIONS)
def test_permuting_keeps_all_correct_texts(options: list[str]) -> None:
    options = [*options, f"{options[0]} "]
    question = Question("q", "Which?", tuple(options), 0, also=equal_options(options, 0))
    (after,) = Questions("one", (question,)).permuted(3)
    correct = {after.options[n] for n in (after.answer, *after.also)}
    assert correct == {options[0], options[-1]}


def test_equal_options_are_told_apart_or_refused() -> None:
    assert Question("q", "?", ("a", "b", "b "), 0).answer == 0  # equal wrong ones do no harm
    with pytest.raises(rl.InputError, match="'q' has ' a' as a correct and as a wrong option"):
        Question("q", "?", ("a", "b", " a"), 0)
    with pytest.raises(rl.InputError, match="'c' as a correct and as a wrong option"):
        Question("q", "?", ("a", "c", "b", "c"), 0, also=(1,))
    assert equal_options(("a", "b", " a"), 0) == (2,)
    assert Question("q", "?", ("a", "b", " a"), 0, also=(2,)).also == (2,)


def test_lists_and_numpys_numbers_are_taken(unchecked) -> None:
    question = Question("q", "?", ["a", "b", "c"], np.int64(1), also=[np.int64(2)], shots=[])
    assert question == Question("q", "?", ("a", "b", "c"), 1, also=(2,))
    assert hash(question) == hash(Question("q", "?", ("a", "b", "c"), 1, also=(2,)))
    task = Questions("task", [question])
    assert task == Questions("task", (question,))
    assert task.sha == Questions("other", (question,)).sha


def test_the_same_seed_draws_the_same_questions_in_every_version() -> None:
    """Stores of another version, and numbers that were published, name these."""
    assert MINI.sha == "4c46d9fb707cbd16"
    assert MINI.split(0.3, seed=1)[0].sha == "4a4eac994e862efa"
    assert MINI.folds(3, 2)[1][1].sha == "7eff3e15e7a25ca2"
    assert MINI.permuted(5).sha == "47bf8edbdea4dd3b"


def test_a_task_shows_itself_in_a_line() -> None:
    assert repr(MINI) == "Questions('mini', 320 items)"
    assert MINI.take([3, 1], "two").items == (MINI[3], MINI[1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Question("q", "?", ("a",), 0), "'q' has 1 options"),
        (lambda: Question("q", "?", "yes", 0), "'q' has the options 'yes'; pass a tuple of texts"),
        (lambda: Question("q", "?", {"a", "b"}, 0), "pass a tuple of texts"),
        (lambda: Question("q", "?", ("a", 2), 0), "'q' has the option 2; pass a text"),
        (lambda: Question("q", "?", ("a", " "), 0), "'q' has an empty option"),
        (lambda: Question("q", " ", ("a", "b"), 0), "'q' has an empty text"),
        (lambda: Question("q", 3, ("a", "b"), 0), "'q' has the text 3; pass a text"),
        (lambda: Question(7, "?", ("a", "b"), 0), "7 has the id 7; pass a text"),
        (lambda: Question(" ", "?", ("a", "b"), 0), "has an empty id"),
        (lambda: Question("q", "?", ("a", "b"), 0, None), "'q' has the domain None; pass a text"),
        (lambda: Question("q", "?", ("a", "b"), 0, subject=1), "'q' has the subject 1"),
        (lambda: Question("q", "?", ("a", "b"), 2), "names option 2 as correct"),
        (lambda: Question("q", "?", ("a", "b"), -1), "names option -1 as correct"),
        (lambda: Question("q", "?", ("a", "b"), "B"), "names 'B' as correct; give the option's"),
        (lambda: Question("q", "?", ("a", "b"), True), "names True as correct"),
        (lambda: Question("q", "?", ("a", "b"), 1.0), "names 1.0 as correct"),
        (lambda: Question("q", "?", ("a", "b", "c"), 0, also=("1",)), "names '1' as correct"),
        (lambda: Question("q", "?", ("a", "b", "c"), 0, also=(0,)), "also names the options"),
        (lambda: Question("q", "?", ("a", "b", "c"), 0, also=(1, 1)), "also names the options"),
        (lambda: Question("q", "?", ("a", "b"), 0, also=(1,)), "'q' has no wrong option"),
        (
            lambda: Question(
                "q", "?", ("a", "b"), 1, shots=(Question("s", "?", ("a", "b"), 1, shots=MINI[:1]),)
            ),
            "a shot of question 'q' is no question or has shots itself",
        ),
        (lambda: Question("q", "?", ("a", "b"), 1, shots=("x",)), "is no question or has shots"),
        (lambda: Question("q", "?", ("a", "b"), 1, prompt=" "), "'q' has an empty prompt"),
        (
            lambda: Question("q", "?", ("a", "b"), 1, prompt="?", shots=MINI[:2]),
            "'q' has a prompt and 2 shots",
        ),
        (lambda: Questions("none", ()), "'none' has no items"),
        (lambda: Questions("twice", MINI[:1] * 2), "items of 'twice' share the id"),
        (lambda: Questions("mixed", ("x",)), "'x' in 'mixed' is no Question"),
        (lambda: MINI.domain("mathss"), "no domain 'mathss'; did you mean 'math'"),
        (lambda: MINI.split(share=1.0), "share is 1.0"),
        (lambda: MINI.split(share="half"), "share is 'half'; it has to be a number between"),
        (lambda: MINI.folds(2.5), "n is 2.5; 320 items make 2 to 320 folds"),
        (lambda: MINI.split(seed=-1), "seed is -1; it has to be 0 or more"),
        (lambda: MINI.take([320]), "'mini' has no item 320; it has items 0 to 319"),
        (lambda: MINI.take([-1]), "'mini' has no item -1"),
        (lambda: MINI.take([0, 0]), "share the id"),
        (lambda: MINI.take([]), "'mini' has no items"),
        (lambda: MINI.take([0]).split(), "1 items in 1 groups .* are too few to split"),
    ],
)
def test_bad_questions_are_one_sentence(call, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call()
