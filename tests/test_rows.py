import json
from pathlib import Path

import pytest

from rolelens.errors import InputError
from rolelens.rows import csv_rows, from_hub, jsonl, label, parsed


def test_a_row_ends_at_a_newline_and_nowhere_else(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three"}, [1, 2], "x"]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text(lines[0] + "\n\n  \n" + "\n".join(lines[1:]) + "\n", encoding="utf-8")
    assert [row for _, row in jsonl(path)] == rows
    assert [where for where, _ in jsonl(path)] == [f"{path}, line {n}" for n in (1, 4, 5)]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": }\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2 is not JSON"):
        list(jsonl(path))


def test_names_that_stand_twice_are_refused_where_they_differ(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1, "b": {"c": 2, "c": 2}}', encoding="utf-8")
    assert parsed(path) == {"a": 1, "b": {"c": 2}}
    path.write_text('{"a": 1, "b": {"c": 2, "c": 3}}', encoding="utf-8")
    with pytest.raises(InputError, match="rows.json has 'c' twice in one object; rename one"):
        parsed(path)
    with pytest.raises(InputError, match="line 1 has 'c' twice in one object"):
        list(jsonl(path))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing cannot be read .* name another file"):
        parsed(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be read"):
        list(csv_rows(tmp_path))


def test_csv_rows_have_the_cells_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a, b ,\n1,"2, or\n3",x\n\n4,5,,,\n', encoding="utf-8-sig")
    assert list(csv_rows(path, ["b"])) == [
        (f"{path}, line 2", {"a": "1", "b": "2, or\n3"}),
        (f"{path}, line 5", {"a": "4", "b": "5"}),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,b\n1,2, or 3\n", "line 2 has 3 cells and the header 2; put a text with a comma betw"),
        ("a,b\n1,2\n1\n", "line 3 has 1 cells and the header 2"),
        ("a,b,a\n1,2,3\n", "has two columns 'a'; rename one of them"),
        ("a\n1\n", "has no column 'b'; its header is"),
        ("", "has no column 'b'"),
        ('a,b\n1,"2\n', "line 2 is not CSV"),
    ],
)
def test_bad_csv_files_are_named(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        list(csv_rows(path, ["b"]))


def test_a_label_is_a_text_or_a_whole_number() -> None:
    row = {"id": 0, "domain": " law ", "subject": None, "other": 0.5}
    assert [label(row, column) for column in ("id", "domain", "subject", "none")] == [
        "0",
        "law",
        "",
        "",
    ]
    with pytest.raises(InputError, match="expected a text or a whole number under 'other'"):
        label(row, "other")


def test_a_set_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^Sums cannot be reached \(.*\); pass a file\.$"):
        list(from_hub("Sums", "nobody/has-this-set", "main", "train", "pass a file"))
