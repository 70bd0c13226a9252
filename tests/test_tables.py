"""Files of one's own: questions, problems and texts."""

import json
from pathlib import Path

import pandas as pd
import pytest

import rolelens as rl
from rolelens.tasks import Problem, Problems, Questions, Text, Texts


def rows_of(questions: list[rl.Question]) -> list[dict]:
    return [
        {"question": q.text, "answer": q.answer, "domain": q.domain, "id": q.id} for q in questions
    ]


WRITTEN = [
    rl.Question("sea", 'Is the sea "wet", or dry?', ("wet,\nand deep", "dry"), 0, "water"),
    rl.Question("sky", "Which is blue?", ("None", "sky", "grass", "NA"), 1, "air"),
]


@pytest.mark.parametrize("lettered", [True, False])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_own_files_are_read(tmp_path: Path, suffix: str, lettered: bool) -> None:
    file = tmp_path / f"own{suffix}"
    rows = rows_of(WRITTEN)
    for row, question in zip(rows, WRITTEN, strict=True):
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
    assert list(rl.load_task(file)) == WRITTEN


def test_ids_are_made_where_there_are_none_and_mmlus_own_files_still_read(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"question": f"{n}?", "options": ["a", "b"], "answer": "B"} for n in range(2)]
    file.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [q.id for q in rl.load_task(file)] == ["quiz-0000", "quiz-0001"]
    bare = tmp_path / "anatomy_test.csv"
    bare.write_text("question?,a,b,c,answer,D\n", encoding="utf-8")
    assert rl.load_task(bare)[0].options == ("a", "b", "c", "answer")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "question,A,B,answer\nx?,1,2,C", "line 2: the answer is 'C'; it has to be a let"),
        ("a.csv", "question,A,B,answer\nx?,1,2,yes", "'yes'; it has to be a letter A to B, an "),
        ("a.csv", "question,A,B,answer\nx?,1,2,", "line 2: the answer is None"),
        (
            "a.csv",
            "question,A,answer\nx?,1,A",
            "line 2: there are 1 options; a question needs 2 to",
        ),
        ("a.csv", "question,A,B,C,D,answer\nx?,1,,3,4,C", "line 2: the options are A, C, D; fill"),
        ("a.csv", 'question,A,B,answer\n"x?,1,2,A', "is not CSV"),
        ("a.csv", b"question,A,B,answer\n\xff,1,2,A", "is not UTF-8"),
        ("a.jsonl", '{"question": "x?", "options": ["1", 2], "answer": 0}', "a list of texts"),
        ("a.jsonl", '{"question": "x?", "options": ["1", "2"], "answer": true}', "is True; it has"),
        (
            "a.jsonl",
            '{"question": "x?", "options": ["1", "2"], "answer": 2}',
            "an index 0 to 1 or the",
        ),
        ("a.jsonl", '{"options": ["1", "2"], "answer": 1}', "it cannot be told what the columns"),
        ("a.jsonl", '{"question": "x?"}', "columns ['question'] are; questions have 'question', "),
        ("a.jsonl", '{"text": "x", "answer": 1}', "it cannot be told"),
        ("a.jsonl", '{"question": 3, "A": "a", "B": "b", "answer": 1}', "a text under 'question'"),
        ("a.jsonl", '["x?"]', 'line 1 holds ["x?"]; expected an object'),
        ("a.json", '{"question": "x?"}', "holds no list"),
        ("a.json", '[{"text": "a"}, 3]', "item 2 holds 3; expected an object"),
        ("a.csv", "question,A,B,answer\nOne, or two?,1,2,A", "line 2 has 5 cells and the header 4"),
        ("a.csv", "question,A,B,answer\nx?,1,2", "line 2 has 3 cells and the header 4"),
        ("a.csv", "question,A,A,answer\nx?,1,2,A", "has two columns 'A'"),
        ("a.csv", "Question,A,B,answer\nx?,1,2,A", "column 'Question' is not read; name it 'que"),
        ("a.csv", "question,A,B,answer,Domain\nx?,1,2,A,law", "'Domain' is not read"),
        ("a.csv", "question,A,B,answer", "has no rows"),
        ("a.csv", "", "has no rows"),
        (
            "a.csv",
            "question,A,B,answer\nx?,he,she ,A\ny?,he,he ,A",
            "line 3: question 'a-0001' has",
        ),
        ("a.csv", "question,A,B,answer\nx?,B,A,A", "answer 'A' may be the options A. 'B' and B."),
        ("a.csv", "question,A,B,answer\nx?,1,0,0", "the answer '0' may be the options A. '1' and"),
        (
            "a.jsonl",
            '{"question": "x?", "options": ["1", "0"], "answer": 1}',
            "the answer 1 may be",
        ),
        ("a.csv", "id,question,A,B,answer\na,x?,1,2,A\na,y?,1,2,A", "line 3: the id is 'a', and"),
        ("a.csv", "question,A,B,answer,text\n,1,2,A,x", "expected a text under 'question'"),
        (
            "a.jsonl",
            '{"question": "x?", "A": "1", "C": "2", "answer": "A"}',
            "the options are A, C",
        ),
        (
            "a.jsonl",
            '{"question": "x?", "A": "1", "B": "2", "options": ["3", "4"], "answer": "A"}',
            "the options stand under options, A, B; write them once",
        ),
        ("a.jsonl", '{"question": "x?", "options": [], "answer": "A"}', "there are 0 options"),
        ("a.jsonl", '{"question": "x?", "options": "ab", "answer": "A"}', "a list of texts"),
        (
            "a.jsonl",
            '{"question": "x?", "options": ["1", "2"], "answer": 0, "id": ["a"]}',
            "expected a text or a whole number under 'id'; found ['a']",
        ),
        (
            "a.jsonl",
            '{"question": "x?", "answer": 1}\n'
            '{"question": "y?", "options": ["1", "2"], "answer": "A"}',
            "line 2: this is a question and the first row a problem; put them into two files",
        ),
        ("a.jsonl", '{"question": "x?", "answer": 1, "answer": 2}', "has 'answer' twice"),
        (
            "a.jsonl",
            '{"question": "x?", "answer": "1", "alternatives": ["1", "2"]}',
            "line 1: the column 'alternatives' is not read, and seems to hold options",
        ),
        ("a.csv", "question,answer,option1,option2\nx?,1,1,2", "line 2: the column 'option1'"),
        ("a.jsonl", '{"text": " "}', "line 1: text 'a-0000' has an empty text"),
        ("a.csv", 'text\n""', "line 2: expected a text under 'text'"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.txt", "x", "is not read; pass a CSV, JSONL or JSON file"),
    ],
)
def test_bad_own_files_are_named(tmp_path: Path, name: str, content, sentence: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(rl.InputError) as caught:
        rl.load_task(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_excel_writes_is_read(tmp_path: Path) -> None:
    """It puts a mark before UTF-8."""
    named, bare = tmp_path / "quiz.csv", tmp_path / "anatomy_test.csv"
    named.write_text("question,A,B,answer\nx?,1,2,B\n", encoding="utf-8-sig")
    bare.write_text("question?,a,b,c,d,D\n", encoding="utf-8-sig")
    assert (rl.load_task(named)[0].text, rl.load_task(bare)[0].text) == ("x?", "question?")


@pytest.mark.parametrize("column", ["options", "choices"])
@pytest.mark.parametrize(
    ("answer", "index"), [("B", 1), (1, 1), ("1", 1), ("the sky ", 1), ("Grass", 2), (0, 0)]
)
def test_an_answer_is_a_letter_an_index_or_a_text(
    tmp_path: Path, column: str, answer, index: int
) -> None:
    file = tmp_path / "quiz.json"
    row = {"question": "What is blue?", column: ["A stone", "the sky", "Grass"], "answer": answer}
    file.write_text(json.dumps([row]))
    (question,) = rl.load_task(file)
    assert question.answer == index


@pytest.mark.parametrize(
    ("options", "answer", "index"),
    [(["0", "1"], 1, 1), (["A", "B"], "B", 1), (["1", "2"], "2", 1), (["4", "1"], "A", 0)],
)
def test_readings_that_agree_are_no_question(tmp_path: Path, options, answer, index: int) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text(json.dumps({"question": "x?", "options": options, "answer": answer}))
    assert rl.load_task(file)[0].answer == index


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
@pytest.mark.parametrize(
    ("rows", "kind", "first"),
    [
        (
            [{"question": "1+1?", "answer": "2", "domain": "sums"}],
            Problems,
            Problem("own-00001", "1+1?", "2", domain="sums"),
        ),
        ([{"id": 0, "text": "It rains."}], Texts, Text("0", "It rains.")),
        (
            [{"question": "x?", "A": "a", "B": "b", "answer": "B", "domain": " law"}],
            Questions,
            rl.Question("own-0000", "x?", ("a", "b"), 1, "law"),
        ),
    ],
)
def test_columns_decide_what_rows_are(
    tmp_path: Path, suffix: str, rows: list[dict], kind: type, first
) -> None:
    file = tmp_path / f"own{suffix}"
    if suffix == ".csv":
        pd.DataFrame(rows).to_csv(file)  # with a first column that has no name
    else:
        file.write_text(json.dumps(rows[0] if suffix == ".jsonl" else rows))
    task = rl.load_task(file)
    assert type(task) is kind
    assert list(task) == [first]
    assert task.name == "own"


def test_a_folder_of_jsonl_files_has_splits(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "It rains."}')
    (tmp_path / "val_2.jsonl").write_text('{"text": "It snows."}')
    assert rl.load_task(tmp_path)[0].text == "It rains."
    assert rl.load_task(tmp_path, "val")[0].text == "It snows."
    with pytest.raises(rl.InputError, match="has no split 'train'"):
        rl.load_task(tmp_path, "train")


def test_texts_with_the_same_words_stay_together() -> None:
    texts = Texts("twins", tuple(Text(f"{n}{d}", f"Text {n}.") for n in range(9) for d in "ab"))
    first, second = texts.split()
    assert {t.text for t in first}.isdisjoint(t.text for t in second)
    with pytest.raises(rl.InputError, match="text 'a' has an empty text"):
        Text("a", " ")
