"""The one loader: MMLU from folders and the hub, the paper's prompts, lists of items."""

import csv
import json
from collections import Counter
from functools import cache
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rolelens as rl
from rolelens.tasks import (
    BRIEFLY,
    PAPER_DOMAINS,
    Problem,
    Problems,
    Question,
    Questions,
    Text,
    Texts,
    mmlu,
    paper,
)

MINI = rl.load_task("mini")
DATA = Path(__file__).parents[2] / "shared" / "data"
ABOUT = {"anatomy": "Where is the {}?", "botany": "What is a {}?", "zoology": "Who eats a {}?"}
FEATURES = datasets.Features(
    question=datasets.Value("string"),
    subject=datasets.Value("string"),
    choices=datasets.Sequence(datasets.Value("string")),
    answer=datasets.ClassLabel(names=list("ABCD")),
)


def made(subject: str, split: str, n: int, **fields) -> rl.Question:
    """Question ``n`` of a small MMLU: every text says where it is from."""
    thing = f'"{split}" {n}'
    options = tuple(f"{thing}, {word}" for word in ("None", "NA", "all", "one\nor two"))
    text = ABOUT[subject].format(thing)
    return rl.Question(f"{subject}-{n:04d}", text, options, n % 4, subject, subject, **fields)


SIZES = {"dev": 2, "val": 1, "test": 3}
SMALL = {
    split: [made(subject, split, n) for subject in ABOUT for n in range(size)]
    for split, size in SIZES.items()
}


@cache
def real_mmlu() -> Questions:
    """The test split of 26 subjects, where it is at hand."""
    if not DATA.is_dir():
        pytest.skip("MMLU is not on this machine (../shared/data)")
    return rl.load_task(DATA / "mmlu")


@pytest.fixture
def small_mmlu(tmp_path: Path) -> Path:
    """A small MMLU as CSV files."""
    for split, questions in SMALL.items():
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        for subject in ABOUT:
            with (tmp_path / "mmlu" / split / f"{subject}_{split}.csv").open("w") as file:
                rows = [q for q in questions if q.subject == subject]
                csv.writer(file).writerows([q.text, *q.options, "ABCD"[q.answer]] for q in rows)
    return tmp_path / "mmlu"


@pytest.fixture
def small_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as parquet: ``datasets`` takes a local folder 'owner/set' as it does the hub's."""
    home = tmp_path / "cais" / "mmlu"
    configs = []
    for config in ("all", *ABOUT):
        files = []
        for split, questions in SMALL.items():
            name = "validation" if split == "val" else split
            rows = [
                {"question": q.text, "subject": q.subject, "choices": q.options, "answer": q.answer}
                for q in questions
                if config in ("all", q.subject)
            ]
            (home / config).mkdir(parents=True, exist_ok=True)
            path = f"{config}/{name}-00000.parquet"
            datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(home / path)
            files.append({"split": name, "path": path})
        configs.append({"config_name": config, "data_files": files})
    (home / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_mmlu_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    file = tmp_path / "test" / "astronomy_test.csv"
    file.write_text('"What, then?",None,NA,"c, c",d,B\nNext?,1,2,3,4,D\n')
    bench = rl.load_task(tmp_path)
    assert bench[0] == rl.Question(
        "astronomy-0000", "What, then?", ("None", "NA", "c, c", "d"), 1, "astronomy", "astronomy"
    )
    assert len(bench) == 2
    file.write_text("Next?,1,2,3,4,D\nNext?,1,2,3,4,E\n")
    with pytest.raises(rl.InputError, match=r"astronomy_test.csv, line 2: expected a question"):
        rl.load_task(tmp_path)


def test_the_real_mmlu_is_read() -> None:
    bench = real_mmlu()
    assert len(bench.domains) == 26
    assert len(bench) > 5000
    first, second = bench.domain("high_school_mathematics", "econometrics").split()
    assert abs(len(first) - len(second)) <= 12


@pytest.fixture(params=["small_mmlu", "small_hub"])
def small(request: pytest.FixtureRequest) -> str | Path:
    """The small MMLU, from either source."""
    return request.getfixturevalue(request.param) or "mmlu"


@pytest.mark.parametrize("split", list(SMALL))
def test_both_sources_have_the_same_questions(small: str | Path, split: str) -> None:
    assert list(rl.load_task(small, split)) == SMALL[split]


def test_subjects_are_selected(small: str | Path) -> None:
    two = rl.load_task(small, subjects=["zoology", "anatomy"])
    assert list(two) == [q for q in SMALL["test"] if q.subject != "botany"]
    assert rl.load_task(small, subjects="botany").domains == ("botany",)


def test_shots_are_the_first_of_the_dev_split(small: str | Path) -> None:
    for shots in (1, 2):
        bench = rl.load_task(small, "val", shots=shots)
        assert list(bench) == [
            made(subject, "val", 0, shots=tuple(SMALL["dev"][2 * n : 2 * n + shots]))
            for n, subject in enumerate(ABOUT)
        ]
        assert bench.name.endswith(f", {shots} shots")
    with pytest.raises(rl.InputError, match="shots is 3 and the dev split of 'anatomy' has 2"):
        rl.load_task(small, shots=3)
    with pytest.raises(rl.InputError, match="shots is 1, .* has to stay unasked"):
        rl.load_task(small, "dev", shots=1)


def test_subjects_are_grouped_into_domains(small: str | Path) -> None:
    bench = rl.load_task(small, domains={"anatomy": "life", "zoology": "life"}, shots=1)
    assert bench.domains == ("life",)
    assert Counter(q.subject for q in bench) == {"anatomy": 3, "zoology": 3}
    assert [q.shots[0].text for q in bench][::3] == [
        q.text for q in SMALL["dev"][::2] if q.subject != "botany"
    ]
    with pytest.raises(rl.InputError, match="no domain given for the subject 'botany'"):
        rl.load_task(small, subjects=["botany", "anatomy"], domains={"anatomy": "life"})


def test_a_split_folder_finds_its_dev_split(small_mmlu: Path) -> None:
    bench = rl.load_task(small_mmlu / "test", shots=2)
    assert bench[8].shots == tuple(SMALL["dev"][4:])
    with pytest.raises(rl.InputError, match="has to stay unasked"):
        rl.load_task(small_mmlu / "dev", shots=1)
    (small_mmlu / "dev").rename(small_mmlu / "elsewhere")
    with pytest.raises(rl.InputError, match=r"shots is 1, .* add the folder '.*mmlu/dev'"):
        rl.load_task(small_mmlu, shots=1)


def test_an_unreachable_hub_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(rl.InputError) as caught:
        rl.load_task("mmlu", subjects=["astronomy"])
    sentence = str(caught.value)
    assert sentence.startswith("MMLU (cais/mmlu, astronomy) cannot be reached (")
    assert sentence.endswith("or pass a folder of MMLU CSV files.")
    assert sentence.count(". ") == sentence.count("\n") == 0
    with pytest.raises(rl.InputError, match="no split 'tets'; did you mean 'test'"):
        rl.load_task("mmlu", "tets")


def test_all_of_mmlu_is_one_download(small_hub: None, tmp_path: Path) -> None:
    for subject in ABOUT:
        (tmp_path / "cais" / "mmlu" / subject).rename(tmp_path / subject)
    assert len(rl.load_task("mmlu", shots=2)) == len(SMALL["test"])


@pytest.mark.parametrize(
    "wrong", [{"answer": -1}, {"answer": 2}, {"choices": None}, {"question": None}, {"subject": 3}]
)
def test_malformed_hub_rows_are_named(wrong: dict) -> None:
    row = {"question": "?", "subject": "anatomy", "choices": ["a", "b"], "answer": 1}
    assert len(list(mmlu.from_rows([row], "here"))) == 1
    with pytest.raises(rl.InputError, match="here, row 2: expected a question, a subject"):
        list(mmlu.from_rows([row, row | wrong], "here"))


def test_the_real_mmlu_is_the_same_from_either_source() -> None:
    plain = real_mmlu()
    rows = []
    for file in sorted((DATA / "mmlu" / "test").glob("*.csv")):
        frame = pd.read_csv(file, header=None, keep_default_na=False, dtype=str)
        for text, *choices, letter in frame.itertuples(index=False):
            subject = file.name.removesuffix("_test.csv")
            answer = "ABCD".index(letter)
            rows.append(dict(question=text, subject=subject, choices=choices, answer=answer))
    data = datasets.Dataset.from_list(rows, features=FEATURES)
    assert list(mmlu.from_rows(data, "here")) == list(plain)


def test_the_real_mmlu_has_five_shots_a_subject() -> None:
    plain = real_mmlu()
    bench = rl.load_task(DATA / "mmlu", shots=5, domains="paper")
    assert set(bench.domains) == set(MINI.domains)
    assert len(bench) == len(plain)
    assert len({q.shots for q in bench}) == 26
    for q in bench:
        assert {shot.subject for shot in q.shots} == {q.subject}
        assert q.text not in {shot.text for shot in q.shots}


def ready_made(text: str, options: tuple[str, ...], ending: str = "\n\t\t\tAnswer:") -> str:
    """A prompt in the format of the paper's files."""
    lines = [f"\n\t\t\t{letter}. {option}" for letter, option in zip("ABCDE", options)]  # noqa: B905
    request = "\n\t\t\tAnswer with the letter of the correct answer."
    return text + "".join(lines) + request + ending


PLAIN = st.text(st.sampled_from("ab .:\nAB"), min_size=1, max_size=12).filter(str.strip)


@given(PLAIN, st.lists(PLAIN, min_size=2, max_size=5), st.sampled_from(["", "\n\t\t\tAnswer:"]))
def test_prompts_are_taken_apart(text: str, options: list[str], ending: str) -> None:
    prompt = ready_made(text, tuple(options), ending)
    assert paper._parsed(prompt) == (text, tuple(options))


def test_ready_made_prompts_are_read(tmp_path: Path) -> None:
    options = ("up", "a\nb", "nan", "A. d ")
    prompts = [ready_made("Where?\nA. hint", options), ready_made("Who?", ("he", "she"), "")]
    rows = [
        {"prompt": prompts[0], "answer": "C", "subject": "management"},
        {"prompt": prompts[1], "answer": "B", "subject": "professional_law"},
    ]
    (tmp_path / "econ.json").write_text(json.dumps(rows))
    (tmp_path / "law.json").write_text(json.dumps(rows[1:]))
    bench = rl.load_task(tmp_path)
    assert list(bench) == [
        rl.Question(
            "econ-0000", "Where?\nA. hint", options, 2, "econ", "management", prompt=prompts[0]
        ),
        rl.Question(
            "econ-0001", "Who?", ("he", "she"), 1, "econ", "professional_law", prompt=prompts[1]
        ),
        rl.Question(
            "law-0000", "Who?", ("he", "she"), 1, "law", "professional_law", prompt=prompts[1]
        ),
    ]
    assert len(rl.load_task(tmp_path, subjects="management")) == 1
    with pytest.raises(rl.InputError, match="shots is 2 and the prompts are ready-made"):
        rl.load_task(tmp_path, shots=2)
    assert list(rl.load_task(tmp_path / "law.json")) == list(bench)[2:]
    (tmp_path / "astronomy_test.csv").write_text("Next?,1,2,3,4,D\n")
    assert rl.load_task(tmp_path).domains == ("astronomy",)


GOOD = {"prompt": ready_made("Who?", ("he", "she")), "answer": "B", "subject": "s"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[", r"law.json is not JSON"),
        ("{}", r"law.json holds no list of questions"),
        ([GOOD, "text"], r"law.json, item 2: expected texts under 'prompt', 'answer' and"),
        ([GOOD, GOOD | {"answer": 1}], r"law.json, item 2: expected texts under"),
        ([GOOD, GOOD | {"answer": "C"}], r"law.json, item 2: expected a letter A to B .* 'C'"),
        ([GOOD, GOOD | {"answer": ""}], r"law.json, item 2: expected a letter A to B .* ''"),
        ([GOOD | {"prompt": "Who?\nA. he\nB. she"}], r"item 1: expected a question, options on"),
        (
            [GOOD | {"prompt": GOOD["prompt"].replace("B. ", "C. ")}],
            r"law.json, item 1: expected a question, options on",
        ),
        ([GOOD | {"prompt": ready_made("Who?", ("he",))}], r"item 1: expected a question, opt"),
        ([GOOD | {"prompt": ready_made("Who?", ("he", ""))}], r"item 1: .* empty option"),
        ([GOOD | {"prompt": GOOD["prompt"] + " B"}], r"item 1: expected a question, options on"),
    ],
)
def test_malformed_prompts_are_named(tmp_path: Path, content, sentence: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(rl.InputError, match=sentence):
        rl.load_task(tmp_path)


def test_the_papers_split_is_a_part_of_mmlu() -> None:
    """Its options lost a full stop at the end, and "None" became "nan" seven times."""
    if not DATA.is_dir():
        pytest.skip("the paper's split is not on this machine (../shared/data)")
    bench = rl.load_task(DATA / "mmlu_paper_split")
    assert Counter(q.domain for q in bench) == {
        "econ": 492,
        "eecs": 247,
        "law": 200,
        "math": 287,
        "medicine": 241,
        "natural_science": 590,
        "politics": 200,
        "psychology": 200,
    }
    assert {q.subject: q.domain for q in bench} == PAPER_DOMAINS
    originals: dict[tuple[str, str], list[rl.Question]] = {}
    for q in real_mmlu():
        originals.setdefault((q.subject, q.text), []).append(q)

    agreement: Counter[str] = Counter()
    for question in bench:
        known = {}
        for q in originals[question.subject, question.text]:
            named = tuple("nan" if option == "None" else option for option in q.options)
            stopped = tuple(option.removesuffix(".") for option in q.options)
            known |= {(named, q.answer): "nan", (stopped, q.answer): "full stop"}
        for q in originals[question.subject, question.text]:
            known[q.options, q.answer] = "same"
        agreement[known.get((question.options, question.answer), "other")] += 1
    assert agreement == {"same": 1589, "full stop": 861, "nan": 7}


ONE = Question("q", "?", ("a", "b"), 1)
SUM = Problem("p", "1+1?", "2")
LINE = Text("t", "It rains.")


@pytest.mark.parametrize(
    ("items", "kind"), [([ONE], Questions), ([SUM], Problems), ((LINE,), Texts)]
)
def test_lists_become_tasks_of_their_kind(items, kind: type) -> None:
    task = rl.load_task(items)
    assert type(task) is kind
    assert list(task) == list(items)


def test_a_task_is_taken_as_it_is() -> None:
    shot = Problem("s", "2+2?", "4", "It is 4.")
    task = Problems("sums", (SUM,), "{question}!", (shot,))
    assert rl.load_task(task) == task
    assert rl.load_task(task, template="{question}").template == "{question}"
    assert rl.load_task(MINI) == MINI


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rl.load_task("nothing"), "no task 'nothing'; name one of 'mini', 'mmlu', "),
        (lambda: rl.load_task([]), "the list has no items; a task needs at least one"),
        (lambda: rl.load_task(None), "the task is None; pass a name, a path, or a list of"),
        (lambda: rl.load_task({"q": ONE}), "pass a name, a path, or a list of rl.Question"),
        (lambda: rl.load_task(ONE), "pass a name, a path, or a list of rl.Question"),
        (lambda: rl.load_task([{"question": "x?"}]), "is no item of a task; pass rl.Question, rl"),
        (lambda: rl.load_task([ONE, ONE]), "two items of 'own questions' share the id 'q'"),
        (lambda: rl.load_task([ONE, SUM]), "'own questions' has problems and questions; a task"),
        (lambda: rl.load_task([LINE, SUM]), "has problems and texts; .* so load two tasks"),
        (lambda: rl.load_task("mini", shots=-1), "shots is -1; it has to be a whole number, 0 or"),
        (lambda: rl.load_task("mini", shots=True), "shots is True; it has to be a whole number"),
        (lambda: rl.load_task("mini", shots=1.5), "shots is 1.5; it has to be a whole number"),
        (lambda: rl.load_task("mini", shots=1), "shots is 1, .* load MMLU, or give"),
        (lambda: rl.load_task(list(MINI), shots=1), "shots is 1, .* load MMLU, or give"),
        (lambda: rl.load_task([SUM], shots=1), "shots is 1; pass a folder with a training file"),
        (lambda: rl.load_task("mini", subjects="law"), "no subject 'law'; there are: none"),
        (lambda: rl.load_task("mini", subjects=""), "no subject ''; there are: none"),
        (lambda: rl.load_task("mini", domains="paper"), "no question has one of the 26"),
        (lambda: rl.load_task("mini", domains="papers"), "did you mean 'paper'"),
        (lambda: rl.load_task("mini", "val"), "split is 'val', and 'mini' has no splits; leave"),
        (lambda: rl.load_task("arithmetic", "train"), "'arithmetic' has no splits"),
        (lambda: rl.load_task([ONE], "val"), "split is 'val', and a list has no splits"),
        (lambda: rl.load_task(MINI, "val"), "split is 'val', and 'mini' has no splits"),
        (lambda: rl.load_task("mmlu", None), "split is None; name a split"),
        (lambda: rl.load_task("gsm8k", "val"), "no split of gsm8k 'val'; there are: train, test"),
        (
            lambda: rl.load_task("gsm8k", domains="paper"),
            "domains is 'paper', and 'gsm8k' has problems, which take shots and template; leave",
        ),
        (lambda: rl.load_task("svamp", subjects="law"), "subjects is 'law', and 'svamp' has pro"),
        (lambda: rl.load_task([SUM], subjects="a"), "subjects is 'a', and 'own problems' has"),
        (
            lambda: rl.load_task("mini", template="{question}"),
            "template is .* 'mini' has questions",
        ),
        (
            lambda: rl.load_task([LINE], template="x"),
            "'own texts' has texts, which take no such op",
        ),
        (lambda: rl.load_task([LINE], shots=2), "shots is 2, and 'own texts' has texts"),
        (lambda: rl.load_task("arithmetic", shots=2), "arithmetic has no worked solutions"),
        (lambda: rl.load_task("svamp", shots=2), "shots is 2; svamp has no worked solutions"),
        (lambda: rl.load_task("arithmetic", template="x"), "has to contain '{question}'"),
        (lambda: rl.load_task("arithmetic", template=3), "template is 3; it has to contain"),
    ],
)
def test_bad_sources_are_one_sentence(call, sentence: str, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(rl.InputError, match=sentence):
        call()


def test_a_split_that_a_folder_has_not_is_refused(small_mmlu: Path) -> None:
    assert list(rl.load_task(small_mmlu / "val")) == SMALL["val"]
    assert list(rl.load_task(small_mmlu / "val", "val")) == SMALL["val"]
    with pytest.raises(rl.InputError, match="mmlu/val' has no split 'dev'"):
        rl.load_task(small_mmlu / "val", "dev")
    with pytest.raises(rl.InputError, match="mmlu' has no split 'train'"):
        rl.load_task(small_mmlu, "train")
    with pytest.raises(rl.InputError, match="has no splits; leave split out"):
        rl.load_task(small_mmlu / "val" / "botany_val.csv", "val")
    (small_mmlu / "empty").mkdir()
    with pytest.raises(rl.InputError, match="empty' has no CSV, JSONL or JSON file"):
        rl.load_task(small_mmlu / "empty")


def test_options_equal_to_the_correct_one_count_in_mmlu(tmp_path: Path) -> None:
    """As in two questions of its test split."""
    file = tmp_path / "law_test.csv"
    file.write_text("Who?,he,he ,she,it,B\nWho else?,he,he,she,it,C\n")
    first, second = rl.load_task(file)
    assert (first.answer, first.also, second.also) == (1, (0,), ())
    row = {"question": "Who?", "subject": "law", "choices": ["he", "he ", "she"], "answer": 1}
    assert next(mmlu.from_rows([row], "here")).also == (0,)
    prompt = ready_made("Who?", ("he", "she", "he"))
    (tmp_path / "law.json").write_text(
        json.dumps([{"prompt": prompt, "answer": "A", "subject": "law"}])
    )
    assert rl.load_task(tmp_path / "law.json")[0].also == (2,)


def test_a_bad_question_of_mmlu_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "law_test.csv"
    file.write_text("Who?,he,she,it,we,B\n\nWho?,he, ,it,we,B\n")
    with pytest.raises(rl.InputError, match=r"law_test.csv, line 3: question 'law-0001' has an em"):
        rl.load_task(file)
    file.write_text("Question,A,B,C,D,Answer\nWho?,he,she,it,we,B\n")
    with pytest.raises(
        rl.InputError, match="the column 'Question' is not read; name it 'question'"
    ):
        rl.load_task(file)


def test_the_real_equal_options_of_mmlu_are_two() -> None:
    assert {q.id: q.also for q in real_mmlu() if q.also} == {
        "high_school_macroeconomics-0183": (0,),
        "international_law-0051": (1,),
    }
    assert not any(q.also for q in rl.load_task(DATA / "mmlu_paper_split"))


def hub_folder(home: Path, config: str, files: dict[str, list[dict]]) -> None:
    """What ``datasets`` takes for a set on the hub."""
    (home / config).mkdir(parents=True)
    splits = []
    for split, rows in files.items():
        path = f"{config}/{split}-00000.parquet"
        datasets.Dataset.from_list(rows).to_parquet(home / path)
        splits.append({"split": split, "path": path})
    configs = [{"config_name": config, "data_files": splits}]
    (home / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")


def test_problems_of_the_hub_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": [{"question": "1+2?", "answer": "It is <<1+2=3>>3.\n#### 3"}],
            "test": [{"question": "2+2?", "answer": "#### 4"}]}  # fmt: skip
    hub_folder(tmp_path / "openai" / "gsm8k", "main", rows)
    sums = {"ID": "chal-1", "Body": "He has 3.", "Question": "How many?", "Answer": "3.0"}
    hub_folder(tmp_path / "ChilleD" / "SVAMP", "default", {"test": [sums | {"Type": "Counting"}]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    task = rl.load_task("gsm8k", shots=1)
    assert list(task) == [Problem("test-00000", "2+2?", "4", "\nThe answer is 4.")]
    assert [shot.solution for shot in task.shots] == ["It is 3.\nThe answer is 3."]
    assert list(rl.load_task("svamp")) == [
        Problem("chal-1", "He has 3. How many?", "3.0", domain="Counting")
    ]
    assert rl.load_task("arithmetic").template == BRIEFLY
