import csv
import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rolelens as rl
from rolelens import stats
from rolelens.benchmarks import PAPER_DOMAINS, mmlu, paper

MINI = rl.load_benchmark("mini")
CHANCE = stats.wilson(80, 320)
DATA = Path(__file__).parents[2] / "shared" / "data"
ABOUT = {"anatomy": "Where is the {}?", "botany": "What is a {}?", "zoology": "Who eats a {}?"}
FEATURES = datasets.Features(
    question=datasets.Value("string"),
    subject=datasets.Value("string"),
    choices=datasets.Sequence(datasets.Value("string")),
    answer=datasets.ClassLabel(names=list("ABCD")),
)


def made(subject: str, split: str, n: int, **given) -> rl.Question:
    """Question ``n`` of a small MMLU: every text says where it is from."""
    thing = f'"{split}" {n}'
    options = tuple(f"{thing}, {word}" for word in ("None", "NA", "all", "one\nor two"))
    text = ABOUT[subject].format(thing)
    return rl.Question(f"{subject}-{n:04d}", text, options, n % 4, subject, subject, **given)


SIZES = {"dev": 2, "val": 1, "test": 3}
SMALL = {
    split: [made(subject, split, n) for subject in ABOUT for n in range(size)]
    for split, size in SIZES.items()
}


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


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=8, max_size=40))
def test_twins_are_never_parted(content: list[tuple[int, int]]) -> None:
    questions = [
        rl.Question(str(n), f"text {t}", (f"x{o}", f"y{o}"), 0) for n, (t, o) in enumerate(content)
    ]
    bench = rl.load_benchmark(questions)
    try:
        first, second = bench.split()
    except rl.InputError:  # all questions hang together
        return
    assert {q.text for q in first}.isdisjoint(q.text for q in second)
    shared = {q.options for q in first} & {q.options for q in second}
    assert all(sum(q.options == options for q in questions) > 8 for options in shared)


def test_a_common_format_ties_nothing() -> None:
    questions = [rl.Question(str(n), f"Is {n} even?", ("yes", "no"), n % 2) for n in range(40)]
    first, second = rl.load_benchmark(questions).split()
    assert len(first) == len(second) == 20
    twins = [
        rl.Question(f"{n}{d}", f"Is {n} odd?", ("yes", "no"), 0, d) for n in range(20) for d in "ab"
    ]
    first, second = rl.load_benchmark(twins).split()
    assert {q.text for q in first}.isdisjoint(q.text for q in second)


def test_mmlu_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    file = tmp_path / "test" / "astronomy_test.csv"
    file.write_text('"What, then?",None,NA,"c, c",d,B\nNext?,1,2,3,4,D\n')
    bench = rl.load_benchmark(tmp_path)
    assert bench[0] == rl.Question(
        "astronomy-0000", "What, then?", ("None", "NA", "c, c", "d"), 1, "astronomy", "astronomy"
    )
    assert len(bench) == 2
    file.write_text("Next?,1,2,3,4,D\nNext?,1,2,3,4,E\n")
    with pytest.raises(rl.InputError, match=r"astronomy_test.csv, line 2: expected question"):
        rl.load_benchmark(tmp_path)


def test_the_real_mmlu_is_read() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
    if not folder.is_dir():
        pytest.skip("MMLU is not on this machine (../shared/data)")
    bench = rl.load_benchmark(folder)
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
    assert list(rl.load_benchmark(small, split)) == SMALL[split]


def test_subjects_are_selected(small: str | Path) -> None:
    two = rl.load_benchmark(small, subjects=["zoology", "anatomy"])
    assert list(two) == [q for q in SMALL["test"] if q.subject != "botany"]
    assert rl.load_benchmark(small, subjects="botany").domains == ("botany",)


def test_shots_are_the_first_of_the_dev_split(small: str | Path) -> None:
    for shots in (1, 2):
        bench = rl.load_benchmark(small, "val", shots=shots)
        assert list(bench) == [
            made(subject, "val", 0, shots=tuple(SMALL["dev"][2 * n : 2 * n + shots]))
            for n, subject in enumerate(ABOUT)
        ]
        assert bench.name.endswith(f", {shots} shots")
    with pytest.raises(rl.InputError, match="shots is 3 and the dev split of 'anatomy' has 2"):
        rl.load_benchmark(small, shots=3)
    with pytest.raises(rl.InputError, match="shots is 1, .* has to stay unasked"):
        rl.load_benchmark(small, "dev", shots=1)


def test_subjects_are_grouped_into_domains(small: str | Path) -> None:
    bench = rl.load_benchmark(small, domains={"anatomy": "life", "zoology": "life"}, shots=1)
    assert bench.domains == ("life",)
    assert Counter(q.subject for q in bench) == {"anatomy": 3, "zoology": 3}
    assert [q.shots[0].text for q in bench][::3] == [
        q.text for q in SMALL["dev"][::2] if q.subject != "botany"
    ]
    with pytest.raises(rl.InputError, match="no domain given for the subject 'botany'"):
        rl.load_benchmark(small, subjects=["botany", "anatomy"], domains={"anatomy": "life"})


def test_a_split_folder_finds_its_dev_split(small_mmlu: Path) -> None:
    bench = rl.load_benchmark(small_mmlu / "test", shots=2)
    assert bench[8].shots == tuple(SMALL["dev"][4:])
    with pytest.raises(rl.InputError, match="has to stay unasked"):
        rl.load_benchmark(small_mmlu / "dev", shots=1)
    (small_mmlu / "dev").rename(small_mmlu / "elsewhere")
    with pytest.raises(rl.InputError, match=r"shots is 1, .* add the folder '.*mmlu/dev'"):
        rl.load_benchmark(small_mmlu, shots=1)


def test_an_unreachable_hub_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(rl.InputError) as caught:
        rl.load_benchmark("mmlu", subjects=["astronomy"])
    sentence = str(caught.value)
    assert sentence.startswith("MMLU (cais/mmlu, astronomy) cannot be reached (")
    assert sentence.endswith("or pass a folder of MMLU CSV files.")
    assert sentence.count(". ") == sentence.count("\n") == 0
    with pytest.raises(rl.InputError, match="no split 'tets'; did you mean 'test'"):
        rl.load_benchmark("mmlu", "tets")


def test_all_of_mmlu_is_one_download(small_hub: None, tmp_path: Path) -> None:
    for subject in ABOUT:
        (tmp_path / "cais" / "mmlu" / subject).rename(tmp_path / subject)
    assert len(rl.load_benchmark("mmlu", shots=2)) == len(SMALL["test"])


@pytest.mark.parametrize(
    "wrong", [{"answer": -1}, {"answer": 2}, {"choices": None}, {"question": None}, {"subject": 3}]
)
def test_malformed_hub_rows_are_named(wrong: dict) -> None:
    row = {"question": "?", "subject": "anatomy", "choices": ["a", "b"], "answer": 1}
    assert len(list(mmlu.from_rows([row], "here"))) == 1
    with pytest.raises(rl.InputError, match="here, row 2: expected a question, a subject"):
        list(mmlu.from_rows([row, row | wrong], "here"))


def test_the_real_mmlu_is_the_same_from_either_source() -> None:
    if not DATA.is_dir():
        pytest.skip("MMLU is not on this machine (../shared/data)")
    rows = []
    for file in sorted((DATA / "mmlu" / "test").glob("*.csv")):
        frame = pd.read_csv(file, header=None, keep_default_na=False, dtype=str)
        for text, *choices, letter in frame.itertuples(index=False):
            subject = file.name.removesuffix("_test.csv")
            answer = "ABCD".index(letter)
            rows.append(dict(question=text, subject=subject, choices=choices, answer=answer))
    data = datasets.Dataset.from_list(rows, features=FEATURES)
    assert list(mmlu.from_rows(data, "here")) == list(rl.load_benchmark(DATA / "mmlu"))


def test_the_real_mmlu_has_five_shots_a_subject() -> None:
    if not DATA.is_dir():
        pytest.skip("MMLU is not on this machine (../shared/data)")
    bench = rl.load_benchmark(DATA / "mmlu", shots=5, domains="paper")
    assert set(bench.domains) == set(MINI.domains)
    assert len(bench) == len(rl.load_benchmark(DATA / "mmlu"))
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
    bench = rl.load_benchmark(tmp_path)
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
    assert len(rl.load_benchmark(tmp_path, subjects="management")) == 1
    with pytest.raises(rl.InputError, match="shots is 2 and the prompts are ready-made"):
        rl.load_benchmark(tmp_path, shots=2)
    (tmp_path / "astronomy_test.csv").write_text("Next?,1,2,3,4,D\n")
    assert rl.load_benchmark(tmp_path).domains == ("astronomy",)


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
        ([GOOD | {"prompt": ready_made("Who?", ("he", ""))}], r"item 1: .* empty text or option"),
        ([GOOD | {"prompt": GOOD["prompt"] + " B"}], r"item 1: expected a question, options on"),
    ],
)
def test_malformed_prompts_are_named(tmp_path: Path, content, sentence: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(rl.InputError, match=sentence):
        rl.load_benchmark(tmp_path)


def test_the_papers_split_is_a_part_of_mmlu() -> None:
    """Its options lost a full stop at the end, and "None" became "nan" seven times."""
    if not DATA.is_dir():
        pytest.skip("the paper's split is not on this machine (../shared/data)")
    bench = rl.load_benchmark(DATA / "mmlu_paper_split")
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
    for q in rl.load_benchmark(DATA / "mmlu"):
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


def test_the_sha_covers_all_that_is_asked() -> None:
    plain = rl.Question("q", "Who?", ("he", "she"), 1, "people")
    fields = {"id": "q", "text": "Who?", "options": ["he", "she"], "answer": 1, "domain": "people"}
    known = hashlib.sha256(json.dumps([fields]).encode()).hexdigest()[:16]
    shot = rl.Question("s", "What?", ("this", "that"), 0)

    def sha(**changed) -> str:
        return rl.load_benchmark([dataclasses.replace(plain, **changed)]).sha

    assert sha() == sha(subject="art") == known
    shas = {
        known,
        sha(prompt="Who? A. he B. she"),
        sha(shots=(shot,)),
        sha(shots=(shot, shot)),
        sha(shots=(dataclasses.replace(shot, answer=1),)),
        sha(shots=(shot,), subject="art"),
    }
    assert len(shas) == 6


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rl.load_benchmark("nothing"), "no benchmark 'nothing'"),
        (lambda: rl.load_benchmark([]), "at least one question"),
        (lambda: rl.Question("q", "?", ("a",), 0), "'q' has 1 options"),
        (lambda: rl.Question("q", "?", ("a", " "), 0), "'q' has an empty text or option"),
        (lambda: rl.Question("q", "?", ("a", "b"), 2), "names option 2 as correct"),
        (lambda: rl.load_benchmark([rl.Question("q", "?", ("a", "b"), 1)] * 2), "share the id 'q'"),
        (
            lambda: rl.Question(
                "q",
                "?",
                ("a", "b"),
                1,
                shots=(rl.Question("s", "?", ("a", "b"), 1, shots=(MINI[0],)),),
            ),
            "a shot of question 'q' has shots itself",
        ),
        (lambda: rl.Question("q", "?", ("a", "b"), 1, prompt=" "), "'q' has an empty prompt"),
        (
            lambda: rl.Question("q", "?", ("a", "b"), 1, prompt="?", shots=(MINI[0], MINI[1])),
            "'q' has a prompt and 2 shots",
        ),
        (lambda: rl.load_benchmark("mini", shots=-1), "shots is -1; it has to be 0 or more"),
        (lambda: rl.load_benchmark("mini", shots=1), "shots is 1, .* load MMLU, or give"),
        (lambda: rl.load_benchmark(list(MINI), shots=1), "shots is 1, .* load MMLU, or give"),
        (lambda: rl.load_benchmark("mini", subjects="law"), "no subject 'law'; there are: none"),
        (lambda: rl.load_benchmark("mini", subjects=""), "no subject ''; there are: none"),
        (lambda: rl.load_benchmark("mini", domains="paper"), "no question has one of the 26"),
        (lambda: rl.load_benchmark("mini", domains="papers"), "did you mean 'paper'"),
        (lambda: MINI.domain("mathss"), "no domain 'mathss'; did you mean 'math'"),
        (lambda: MINI.split(share=1.0), "share is 1.0"),
    ],
)
def test_bad_benchmarks_are_refused(call, sentence: str, unchecked) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call()


def rows_of(questions: list[rl.Question]) -> list[dict]:
    return [
        {"question": q.text, "answer": q.answer, "domain": q.domain, "id": q.id} for q in questions
    ]


OWN = [
    rl.Question("sea", 'Is the sea "wet", or dry?', ("wet,\nand deep", "dry"), 0, "water"),
    rl.Question("sky", "Which is blue?", ("None", "sky", "grass", "NA"), 1, "air"),
]


@pytest.mark.parametrize("lettered", [True, False])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_own_files_are_read(tmp_path: Path, suffix: str, lettered: bool) -> None:
    file = tmp_path / f"own{suffix}"
    rows = rows_of(OWN)
    for row, question in zip(rows, OWN, strict=True):
        if lettered:
            row["answer"] = "ABCD"[question.answer]
        if suffix == ".csv" or lettered:
            row |= dict(zip("ABCD", question.options, strict=False))
        else:
            row["options"] = list(question.options)
    if suffix == ".csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    else:
        file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    assert list(rl.load_benchmark(file)) == OWN


def test_ids_are_made_where_there_are_none_and_mmlus_own_files_still_read(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"question": f"{n}?", "options": ["a", "b"], "answer": "B"} for n in range(2)]
    file.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [q.id for q in rl.load_benchmark(file)] == ["quiz-0000", "quiz-0001"]
    bare = tmp_path / "anatomy_test.csv"
    bare.write_text("question?,a,b,c,answer,D\n", encoding="utf-8")
    assert rl.load_benchmark(bare)[0].options == ("a", "b", "c", "answer")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "question,A,B,answer\nx?,1,2,C", "line 2: the answer is 'C'; it has to be a let"),
        ("a.csv", "question,A,B,answer\nx?,1,2,yes", "'yes'; it has to be a letter A to B or an "),
        ("a.csv", "question,A,B,answer\nx?,1,2,", "line 2: the answer is None"),
        ("a.csv", "question,A,answer\nx?,1,A", "has 1 options; it needs 2 to 26"),
        ("a.csv", "question,A,B,C,D,answer\nx?,1,,3,4,C", "line 2 has the options A, C, D; fill"),
        ("a.csv", 'question,A,B,answer\n"x?,1,2,A', "is not CSV"),
        ("a.csv", b"question,A,B,answer\n\xff,1,2,A", "is not UTF-8"),
        ("a.jsonl", '{"question": "x?", "options": ["1", 2], "answer": 0}', "a list of texts"),
        ("a.jsonl", '{"question": "x?", "options": ["1", "2"], "answer": true}', "is True; it has"),
        ("a.jsonl", '{"question": "x?", "options": ["1", "2"], "answer": 2}', "or an index 0 to 1"),
        ("a.jsonl", '{"options": ["1", "2"], "answer": 1}', "expected a text under 'question'"),
        ("a.jsonl", '["x?"]', "expected an object with 'question'"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.txt", "x", "is a CSV or JSONL file"),
    ],
)
def test_bad_own_files_are_named(tmp_path: Path, name: str, content, sentence: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(rl.InputError) as caught:
        rl.load_benchmark(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_excel_writes_is_read(tmp_path: Path) -> None:
    """It puts a mark before UTF-8."""
    own, bare = tmp_path / "quiz.csv", tmp_path / "anatomy_test.csv"
    own.write_text("question,A,B,answer\nx?,1,2,B\n", encoding="utf-8-sig")
    bare.write_text("question?,a,b,c,d,D\n", encoding="utf-8-sig")
    assert (rl.load_benchmark(own)[0].text, rl.load_benchmark(bare)[0].text) == ("x?", "question?")


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_question_is_refused() -> None:
    with pytest.raises(rl.InputError, match="is no question; pass rl.Question objects"):
        rl.load_benchmark([{"question": "x?"}])
    with pytest.raises(rl.InputError, match="seed is -1; it has to be 0 or more"):
        MINI.split(seed=-1)


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


@given(PLAIN, st.lists(PLAIN, min_size=2, max_size=5))
def test_permuted_prompts_show_the_permuted_options(text: str, options: list[str]) -> None:
    shown = "".join(f"\n\t\t{letter}. {o}" for letter, o in zip("ABCDE", options, strict=False))
    ending = "\n\t\tAnswer with the letter of the correct answer.\n\t\tAnswer:"
    question = rl.Question("q", text, tuple(options), 0, prompt=text + shown + ending)
    after = rl.load_benchmark([question]).permuted(3)[0]
    assert paper._parsed(after.prompt) == (text, after.options)


def test_a_prompt_without_its_options_cannot_be_permuted() -> None:
    question = rl.Question("q7", "x?", ("one", "two"), 0, prompt="x? one or two")
    with pytest.raises(rl.InputError, match="prompt of question 'q7' has no line 'A. one'"):
        rl.load_benchmark([question]).permuted()


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
    with pytest.raises(rl.InputError, match="n is 1; 320 questions make 2 to 320 folds"):
        MINI.folds(1)
