"""A user's own questions, in one CSV or JSONL file."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rolelens.benchmarks.questions import LETTERS, Question
from rolelens.errors import InputError
from rolelens.rows import UTF8, csv_rows, jsonl


def from_file(path: Path) -> list[Question]:
    """The questions of a file; a CSV file needs a header.

    Rows have ``question``, ``answer`` (a letter, or the option's index counted from 0) and the
    options: columns ``A``, ``B`` and so on, or a list under ``options``. ``id``, ``domain``,
    ``subject`` and ``prompt`` may be there.
    """
    rows = {".csv": _csv, ".jsonl": _jsonl}.get(path.suffix)
    if rows is None:
        raise InputError(f"{path} is not read; a benchmark of one's own is a CSV or JSONL file.")
    found = enumerate(rows(path))
    return [_question(where, row, f"{path.stem}-{n:04d}") for n, (where, row) in found]


def has_header(path: Path) -> bool:
    """Whether a CSV file names its columns; MMLU's own do not."""
    with path.open(encoding=UTF8, errors="replace", newline="") as file:
        first = next(csv.reader(file), [])
    return "question" in first and "answer" in first


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, row in csv_rows(path):
        filled = {column: value for column, value in row.items() if value}
        letters = "".join(letter for letter in LETTERS if letter in filled)
        if not LETTERS.startswith(letters):
            raise InputError(
                f"{where} has the options {', '.join(letters)}; fill them from A on, without gaps."
            )
        yield where, filled


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, row in jsonl(path):
        if not isinstance(row, dict):
            raise InputError(
                f"{where} holds {json.dumps(row)[:40]!r}; expected an object with 'question'."
            )
        yield where, row


def _question(where: str, row: Mapping[str, Any], name: str) -> Question:
    options = row.get("options", [row[letter] for letter in LETTERS if letter in row])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InputError(
            f"{where} has the options {str(options)[:80]}; expected a list of texts under "
            "'options', or columns 'A', 'B' and so on."
        )
    text = row.get("question")
    if not isinstance(text, str) or not isinstance(row.get("prompt"), str | None):
        raise InputError(
            f"{where}: expected a text under 'question', and under 'prompt' where there is one; "
            f"found {str(dict(row))[:80]}."
        )
    try:
        return Question(
            id=str(row.get("id") or name),
            text=text,
            options=tuple(options),
            answer=_index(row, len(options)),
            domain=str(row.get("domain") or ""),
            subject=str(row.get("subject") or ""),
            prompt=row.get("prompt"),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _index(row: Mapping[str, Any], n: int) -> int:
    """Which option is correct."""
    answer = row.get("answer")
    known = {letter: index for index, letter in enumerate(LETTERS[:n])}
    known |= {str(index): index for index in range(n)}
    key = str(answer).strip()
    if isinstance(answer, bool) or key not in known:
        raise InputError(
            f"the answer is {answer!r}; it has to be a letter A to {LETTERS[max(n, 1) - 1]} or an "
            f"index 0 to {n - 1}."
        )
    return known[key]
