import json
from pathlib import Path

import pytest

import rolelens as rl
from rolelens.prompts import load_personas, matching

PERSONAS = ["A nurse in Bergen.", "A chess player; once a nurse, now retired.", "Ein Bäcker"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", "\n".join(json.dumps({"persona": p, "id": 1}) for p in PERSONAS) + "\n"),
        ("p.jsonl", "\n\n".join(map(json.dumps, PERSONAS))),
        ("p.json", json.dumps(PERSONAS)),
        ("p.json", json.dumps([{"persona": p} for p in PERSONAS])),
        ("p.txt", "\r\n".join(["", *PERSONAS, " "])),
        ("p.csv", "id,persona\n" + "".join(f'{n},"{p}"\n' for n, p in enumerate(PERSONAS))),
    ],
)
def test_files_are_read(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert load_personas(path) == PERSONAS
    assert load_personas(str(path), limit=2) == PERSONAS[:2]


def test_separators_of_lines_inside_json_are_text(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"persona": "one\u2028persona"}\n{"persona": "two"}\n', encoding="utf-8")
    assert load_personas(path) == ["one\u2028persona", "two"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "p.jsonl",
            b'{"persona": "x"}\n{"text": "y"}\n',
            "p.jsonl, line 2 has no text under",
        ),
        ("p.csv", b"text\nx\n", "has no column 'persona'"),
        ("p.json", b"{}", "holds no list of personas"),
        ("p.txt", b"\n \n", "holds no persona"),
        ("p.txt", b"\xff\xfe", "is not UTF-8"),
        ("p.xml", b"x", "JSON, JSONL or CSV is read"),
    ],
)
def test_a_malformed_file_is_named(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(rl.InputError, match=sentence):
        load_personas(tmp_path / name)


def test_missing_sources_are_one_sentence() -> None:
    with pytest.raises(rl.InputError, match="no file 'folder/nothing.txt'"):
        load_personas("folder/nothing.txt")
    with pytest.raises(rl.InputError, match="PersonaHub .proj-persona/PersonaHub. cannot be"):
        load_personas()
    with pytest.raises(rl.InputError, match="limit is 0; it has to be 1 or more"):
        load_personas(limit=0)


def test_personahub_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` resolves its id to a local folder of that name as it does on the hub."""
    folder = tmp_path / "proj-persona" / "PersonaHub"
    folder.mkdir(parents=True)
    config = "configs:\n- config_name: math\n  data_files: math.jsonl\n"
    config += "- config_name: persona\n  data_files: persona.jsonl\n"
    (folder / "README.md").write_text(f"---\n{config}---\n")
    (folder / "math.jsonl").write_text('{"synthesized text": "x"}\n')
    (folder / "persona.jsonl").write_text(
        "".join(json.dumps({"persona": p}) + "\n" for p in PERSONAS)
    )
    monkeypatch.chdir(tmp_path)
    assert load_personas() == PERSONAS
    assert load_personas(limit=2) == PERSONAS[:2]


def test_personas_match_a_role_in_whole_words() -> None:
    known = [*PERSONAS, "A NURSE.", "A nursery teacher", "Two nurses", "A nurse-to-be", PERSONAS[0]]
    assert matching(known, "nurse") == [*PERSONAS[:2], "A NURSE.", "A nurse-to-be"]
    assert matching(
        ["A Data  Scientist", "data-scientist", "a data and rocket scientist"], ("data scientist")
    ) == ["A Data  Scientist", "data-scientist"]
    assert matching(["knows C++", "knows C"], "C++") == ["knows C++"]
    assert matching(iter(PERSONAS), "pilot") == []
    with pytest.raises(rl.InputError, match="the role is ' '; give it a name"):
        matching(PERSONAS, " ")
