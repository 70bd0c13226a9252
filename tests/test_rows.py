import json
from pathlib import Path

import pytest

from rolelens.errors import InputError
from rolelens.rows import from_hub, jsonl


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


def test_a_set_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^Sums cannot be reached \(.*\); pass a file\.$"):
        list(from_hub("Sums", "nobody/has-this-set", "main", "train", "pass a file"))
