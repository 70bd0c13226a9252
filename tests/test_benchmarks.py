from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rolelens as rl
from rolelens import stats

MINI = rl.load_benchmark("mini")
CHANCE = stats.wilson(80, 320)


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
        "astronomy-0000", "What, then?", ("None", "NA", "c, c", "d"), 1, "astronomy"
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


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rl.load_benchmark("nothing"), "no benchmark 'nothing'"),
        (lambda: rl.load_benchmark([]), "at least one question"),
        (lambda: rl.Question("q", "?", ("a",), 0), "'q' has 1 options"),
        (lambda: rl.Question("q", "?", ("a", " "), 0), "'q' has an empty text or option"),
        (lambda: rl.Question("q", "?", ("a", "b"), 2), "names option 2 as correct"),
        (lambda: rl.load_benchmark([rl.Question("q", "?", ("a", "b"), 1)] * 2), "share the id 'q'"),
        (lambda: MINI.domain("mathss"), "no domain 'mathss'; did you mean 'math'"),
        (lambda: MINI.split(share=1.0), "share is 1.0"),
    ],
)
def test_bad_benchmarks_are_refused(call, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call()
