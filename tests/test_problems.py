"""Problems: their prompts and files, and whether an answer is right."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rolelens as rl
from rolelens.tasks import STEPWISE, Problem, Problems, arithmetic, final_number, right_number

DATA = Path(__file__).parents[2] / "shared" / "data"


def test_arithmetic_is_right_and_does_not_depend_on_how_many() -> None:
    few, many = arithmetic(20), arithmetic(200)
    assert many[:20] == few
    assert len({p.question for p in many}) == 200
    for p in many:
        numbers = [int(word.strip(",.")) for word in p.question.split() if word[0].isdigit()]
        candidates = {
            "gets": lambda a, b: a + b,
            "gave": lambda a, b: a - b,
            "boxes": lambda a, b: a * b,
            "finds": lambda a, b, c: a + b - c,
            "bags": lambda a, b, c: a * b - c,
        }
        (value,) = [value for word, value in candidates.items() if f" {word} " in p.question]
        assert value(*numbers) == int(p.answer) >= 0


def test_gsm8k_files_are_read(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "2+2=<<2+2=4>>4 of them.\n#### 4"}
    for name, question in (("train", "What?"), ("test", "How many?"), ("test_socratic", "a")):
        text = json.dumps(row | {"question": question, "note": "\u2028"}, ensure_ascii=False)
        (tmp_path / f"{name}.jsonl").write_text(text + "\n\n", encoding="utf-8")
    task = rl.load_task(tmp_path, shots=1)
    assert (task[0].question, task[0].answer) == ("How many?", "4")
    assert task[0].solution == "2+2=4 of them.\nThe answer is 4."
    prompt = task.prompt(task[0])
    assert prompt.count("How many?") == 1
    assert prompt.count("What?") == 1
    assert prompt.count("The answer is 4.") == 1
    with pytest.raises(rl.InputError, match="shots is 2; the training split has 1 solutions"):
        rl.load_task(tmp_path, shots=2)
    with pytest.raises(rl.InputError, match="has no items"):
        rl.load_task(tmp_path, "train", shots=1)  # what is shown is not asked


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 holds .* expected an object"),
        ('{"question": "a?"}', "it cannot be told what the columns"),
        (
            '{"question": "a?", "answer": null}',
            "line 1: expected a text .* an answer under 'answer'",
        ),
        ('{"question": "a?", "answer": true}', "an answer under 'answer'"),
        ('{"question": "a?", "answer": [1]}', "expected a text or a number under 'answer'"),
        ('{"question": "a?", "answer": 1, "solution": [2]}', "a text under 'solution'"),
        ('{"question": 3, "answer": 1}', "expected a text under 'question'"),
        (
            '{"question": "a?", "answer": "So. ####"}',
            "line 1: problem 'own-00001' has an empty ans",
        ),
        (
            '{"question": "a?", "answer": 1, "domain": 0.5}',
            "whole number under 'domain'; found 0.5",
        ),
        ('{"question": " ", "answer": "1"}', "line 1: problem 'own-00001' has an empty question"),
        ("", "has no rows"),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(rl.InputError, match=message):
        rl.load_task(path)


def test_folders_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(rl.InputError, match="is not UTF-8"):
        rl.load_task(tmp_path / "latin.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(rl.InputError, match="has no CSV, JSONL or JSON file"):
        rl.load_task(tmp_path / "empty")
    (tmp_path / "one.jsonl").write_text('{"question": "1+1?", "answer": 2}')
    with pytest.raises(rl.InputError, match="pass a folder with a training file"):
        rl.load_task(tmp_path / "one.jsonl", shots=1)


def test_numbers_are_answers(tmp_path: Path) -> None:
    file = tmp_path / "sums.json"
    rows = [{"question": f"{n}?", "answer": answer} for n, answer in enumerate([2, 2.0, 0, 1e-5])]
    file.write_text(json.dumps(rows))
    task = rl.load_task(file, template="Say {question}")
    assert [p.answer for p in task] == ["2", "2", "0", "1e-05"]
    assert task.prompt(task[0]) == "Say 0?"


@given(st.integers(0, 99), st.floats(0.2, 0.8))
def test_a_split_keeps_problems_with_one_question_together(seed: int, share: float) -> None:
    made = [Problem(f"{n}", f"What is {n % 12}?", "1", domain="ab"[n % 2]) for n in range(30)]
    whole = Problems("own", tuple(made), "Well: {question}")
    first, second = whole.split(share, seed)
    assert sorted(p.id for p in [*first, *second]) == sorted(p.id for p in whole)
    assert {p.question for p in first}.isdisjoint(p.question for p in second)
    assert first.template == second.template == whole.template
    assert whole.split(share, seed)[0] == first


def test_a_split_has_the_share_that_is_asked() -> None:
    whole = Problems("own", arithmetic(30))
    first, second = whole.split(0.4, seed=3)
    assert abs(len(first) - 12) <= 1
    assert whole.split(0.4, seed=4)[0] != first
    assert first.domains == second.domains == ("one step", "two steps")
    with pytest.raises(rl.InputError, match="share is 1.0"):
        whole.split(1.0)


def test_the_sha_covers_the_prompt() -> None:
    plain = Problems("own", (Problem("a", "x", "1"),))
    shot = Problem("s", "y", "2", "It is 2.")
    shas = {
        plain.sha,
        Problems("own", plain.items, "{question}").sha,
        Problems("own", plain.items, STEPWISE, (shot,)).sha,
        Problems("own", (Problem("a", "x", "2"),)).sha,
    }
    assert len(shas) == 4
    assert plain.sha == Problems("other", plain.items).sha


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Problem("a", "x", 18), "problem 'a' has the answer 18; pass a text"),
        (lambda: Problem("a", None, "1"), "problem 'a' has the question None; pass a text"),
        (lambda: Problem("a", "x", " "), "problem 'a' has an empty answer"),
        (lambda: Problem("", "x", "1"), "has an empty id"),
        (lambda: Problem("a", "x", "1", domain=None), "has the domain None"),
        (lambda: Problems("own", ()), "'own' has no items"),
        (
            lambda: Problems("own", (Problem("a", "x", "1"), Problem("a", "y", "2"))),
            "two items of 'own' share the id 'a'",
        ),
        (
            lambda: Problems("own", (Problem("a", "x", "1"),), "Well?"),
            "has to contain '{question}'",
        ),
        (
            lambda: Problems("own", (Problem("a", "x", "1"),), STEPWISE, (Problem("b", "y", "2"),)),
            "has no solution to show",
        ),
    ],
)
def test_bad_problems_are_one_sentence(call, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("1/2", "The answer is 1/2.", True),
        ("1/2", "The answer is 0.5.", True),
        ("1/2", "The answer is \\frac{1}{2}.", True),
        ("1/2", "The answer is 2.", False),
        ("2", "The answer is 1/2.", False),
        ("1e-05", "It is 0.00001.", True),
        ("1e-05", "It is 5.", False),
        ("1e-05", "It is 1.05e-05.", False),
        ("5", "It is 1,5.", False),
        ("15", "It is 1,5.", False),
        ("1.5", "It is 1,5.", True),
        ("1500", "It is 1,500.", True),
        ("$1,234.50", "That makes 1234.5 dollars.", True),
        ("-4", "It is −4 degrees.", True),
        ("4", "It is −4 degrees.", False),
        ("25%", "It is 25 percent.", True),
        ("25%", "It is 0.25.", True),
        ("25", "It is 25%.", True),
        ("0.25", "It is 25%.", True),
        ("25", "It is 0.25.", False),
        ("0.3333333", "It is 1/3.", True),
        ("0.33", "It is 1/3.", False),
        ("1000000", "It is 1000001.", False),
        ("10000000000", "It is 10000000001.", False),
        ("3000000000000000.1", "It is 3000000000000000.", True),
        ("1000000.5", "It is 1000000.6.", False),
        ("0", "It is 0.0000001.", False),
        ("0", "It is -0.", True),
        ("18 dollars", "\\boxed{18\\text{ dollars}}", True),
        ("2 million", "It is 2,000,000.", True),
        ("**18**", "#### 18", True),
        ("7", "I do not know.", False),
        ("7", "", False),
        ("7", "It is 7^99999.", False),
    ],
)
def test_an_answer_is_right_if_its_number_is(answer: str, text: str, right: bool) -> None:
    assert right_number(Problem("a", "x", answer), text) is right


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("nobody", "has no number"),
        ("1/0", "has no number"),
        ("1e999", "has no number"),
        ("\\sqrt{2}", "has no number"),
        ("2\\pi", "has no number"),
        ("1,5", "may be a decimal or a list"),
        ("0,500", "may be a decimal or a list"),
        ("1,2,3", "has several numbers"),
        ("3:30", "has several numbers"),
        ("10-3", "has several numbers"),
        ("3 or 4", "has several numbers"),
        ("2x^3 + x", "is more than a number"),
        ("x > 5", "is more than a number"),
    ],
)
def test_a_key_that_is_not_one_number_is_refused(answer: str, why: str) -> None:
    with pytest.raises(rl.InputError, match=f"problem 'a': the answer .* {why}; write one number"):
        right_number(Problem("a", "x", answer), "It is 2.")


@pytest.mark.parametrize(("path", "split"), [("gsm8k", "test"), ("gsm8k", "train")])
def test_real_solutions_are_right(path: str, split: str) -> None:
    if not DATA.is_dir():
        pytest.skip("GSM8K is not on this machine (../shared/data)")
    task = rl.load_task(DATA / path, split)
    assert len(task) == {"test": 1319, "train": 600}[split]
    for problem in task:
        assert right_number(problem, problem.solution)
        assert right_number(problem, f"Therefore \\boxed{{{problem.answer}}}. 17 times I checked.")
        assert not right_number(problem, f"The answer is {final_number(problem.answer) + 1}.")


def test_the_real_svamp_is_read() -> None:
    if not DATA.is_dir():
        pytest.skip("SVAMP is not on this machine (../shared/data)")
    task = rl.load_task(DATA / "svamp" / "SVAMP.json")
    assert len(task) == 1000
    assert task[0].answer == "51"
    assert "Subtraction" in task.domains
    for problem in task:
        assert right_number(problem, f"The answer is {float(problem.answer):,.2f}.")
