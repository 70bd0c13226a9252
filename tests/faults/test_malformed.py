"""Malformed rows: one sentence that names the file, or the other rows read right."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rolelens as rl
from faults.conftest import Tally, sentence
from rolelens.prompts import load_personas

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, 1.5, float("nan"), "", " ", "A", "Z", "\x00", "\u202e", "{{x}}",
    [], [None], ["a"], ["a", "a"], {}, {"a": 1}, [[]], "a\nb", "\ud800",
)  # fmt: skip

Rows = list[dict[str, Any]]


def questions() -> Rows:
    return [
        {
            "id": f"q{n}",
            "question": f"What, number {n}?",
            "options": ["x", "y", f"z{n}"],
            "answer": "B",
        }
        for n in range(5)
    ]


def lettered() -> Rows:
    return [
        {"id": f"q{n}", "question": f"Number {n}?", "A": "x", "B": f"y {n}", "answer": "A"}
        for n in range(5)
    ]


def problems() -> Rows:
    return [{"id": f"p{n}", "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(5)]


def texts() -> Rows:
    return [{"id": f"t{n}", "text": f"A text, number {n}."} for n in range(5)]


def role_rows() -> Rows:
    return [{"role": "ab"[n % 2], "prompt": f"Prompt {n}?", "domain": "d"} for n in range(5)]


def persona_rows() -> Rows:
    return [{"persona": f"A nurse of {n} years"} for n in range(5)]


def paper_rows() -> Rows:
    prompt = (
        "Number {}?\n\tA. one\n\tB. two\n\tC. three\n\tD. four\n\tAnswer with the letter of the "
    )
    prompt += "correct answer.\n\tAnswer:"
    return [{"prompt": prompt.format(n), "answer": "C", "subject": "s"} for n in range(5)]


def truthful_rows() -> Rows:
    return [
        {"question": f"Is {n} odd?", "mc1_targets": {f"yes {n}": 1, "no": 0, "maybe": 0}}
        for n in range(5)
    ]


def as_json(rows: Rows) -> str:
    return json.dumps(rows, indent=1)


def as_jsonl(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows: Rows) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else str(v) for k, v in r.items()} for r in rows)
    return out.getvalue()


def as_mmlu(rows: Rows) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([r["question"], r["A"], r["B"], "c", "d", r["answer"]] for r in rows)
    return out.getvalue()


def items(path: Path) -> list[str]:
    return [repr(item) for item in rl.load_task(path).items]


def truthful(path: Path) -> list[str]:
    return [repr(sorted(question.options)) + question.text for question in rl.load_task(path).items]


def roles(path: Path) -> list[str]:
    return [f"{role} {p.domain} {text}" for role, p in rl.load_roles(path).items() for text in p]


LOADERS: dict[
    str, tuple[Callable[[], Rows], Callable[[Rows], str], Callable[[Path], list[str]]]
] = {
    "questions.json": (questions, as_json, items),
    "questions.jsonl": (questions, as_jsonl, items),
    "questions.csv": (lettered, as_csv, items),
    "mmlu.csv": (lettered, as_mmlu, items),
    "problems.json": (problems, as_json, items),
    "problems.jsonl": (problems, as_jsonl, items),
    "problems.csv": (problems, as_csv, items),
    "texts.json": (texts, as_json, items),
    "texts.jsonl": (texts, as_jsonl, items),
    "texts.csv": (texts, as_csv, items),
    "truthful.json": (truthful_rows, as_json, truthful),
    "paper.json": (paper_rows, as_json, items),
    "roles.json": (role_rows, as_json, roles),
    "roles.jsonl": (role_rows, as_jsonl, roles),
    "roles.csv": (role_rows, as_csv, roles),
    "base.json": (role_rows, as_json, rl.load_base),
    "base.jsonl": (role_rows, as_jsonl, rl.load_base),
    "base.csv": (role_rows, as_csv, rl.load_base),
    "personas.json": (persona_rows, as_json, load_personas),
    "personas.jsonl": (persona_rows, as_jsonl, load_personas),
    "personas.csv": (persona_rows, as_csv, load_personas),
}


def spoil_row(rows: Rows, chance: random.Random) -> int:
    """Make one row odd, and say which."""
    n = chance.randrange(len(rows))
    name = chance.choice([*rows[n]])
    match chance.randrange(5):
        case 0:
            del rows[n][name]
        case 1:
            rows[n][name.upper()] = rows[n].pop(name)
        case 2:
            rows[n][chance.choice(["options", "answer", "text", "role", "odd", "A"])] = (
                chance.choice(ODD)
            )
        case _:
            rows[n][name] = chance.choice(ODD)
    return n


def spoil_bytes(content: bytes, chance: random.Random) -> tuple[bytes, int, int]:
    """Change some bytes, and say where it begins and ends."""
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice([0, 1, 1, 4]))
    odd = [b"", b'"', b",", b"{", b"}", b"\\", b"\xff", b"\x00", b"\n", b"\xe2\x80\xae", b"7"]
    put = b"".join(chance.choice(odd) for _ in range(chance.choice([0, 1, 1, 3])))
    return content[:start] + put + content[end:], start, end


def place(name: str, n: int) -> str:
    """How a row is named in a file."""
    if name.endswith(".json"):
        return f"item {n + 1}"
    return f"line {n + 1 + (name.endswith('.csv') and name != 'mmlu.csv')}"


def concerns_all(name: str, rows: Rows, n: int, message: str) -> bool:
    """Whether what is wrong is wrong in all rows, or not to be told of one.

    A column of a CSV file is a column of all its rows, the first row of a file without a header may
    be taken for one, and Python's parser of JSON does not tell which object has a name twice.
    """
    if name == "mmlu.csv":
        return n == 0
    if name.endswith(".csv"):
        return len({tuple(row) for row in rows}) > 1
    return name.endswith(".json") and "twice in one object" in message


@pytest.mark.fault("a file with a malformed row")
@pytest.mark.parametrize("name", LOADERS)
def test_a_malformed_row_is_named(name: str, tmp_path: Path, times, tally: Tally) -> None:
    make, write, load = LOADERS[name]
    path, chance = tmp_path / name, random.Random(name)
    path.write_text(write(make()), encoding="utf-8")
    right = load(path)
    assert len(right) == 5
    owner = [0, 2, 4, 1, 3] if load is roles else [0, 1, 2, 3, 4]
    for _ in range(times(12, 60)):
        rows = make()
        if chance.random() < 0.6:
            touched = {spoil_row(rows, chance)}
            try:
                path.write_text(write(rows), encoding="utf-8")
            except (UnicodeEncodeError, KeyError):
                continue
        else:
            content = write(rows).encode()
            spoilt, *_ = spoil_bytes(content, chance)
            path.write_bytes(spoilt)
            touched = None
        try:
            read = load(path)
        except Exception as error:
            message = sentence(error)
            assert str(path) in message, message
            if touched is None:
                tally["of changed bytes, refused, naming the file"] += 1
                continue
            (n,) = touched
            assert place(name, n) in message or concerns_all(name, rows, n, message), message
            tally["refused, naming the file and the row"] += 1
            continue
        untouched = [right[k] for k in range(5) if touched is None or owner[k] not in touched]
        kept = sum(row in read for row in untouched)
        # Changed bytes may join two rows of a text, which are then other rows and no wrong ones.
        assert kept >= (len(untouched) if touched is not None else 3), (rows, path.read_bytes())
        tally["read, with the other rows right"] += 1
