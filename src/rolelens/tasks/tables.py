"""Items of one's own, in one CSV, JSONL or JSON file: questions, problems or texts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rolelens.errors import InputError
from rolelens.rows import csv_lines, csv_rows, jsonl, label, located, parsed
from rolelens.tasks import gsm8k
from rolelens.tasks.pairs import SentencePair
from rolelens.tasks.passages import Text
from rolelens.tasks.problems import Problem
from rolelens.tasks.questions import LETTERS, Question

Row: TypeAlias = tuple[str, Mapping[str, Any]]
"""Where a row stands, and what it holds."""
AnyItem: TypeAlias = Question | Problem | Text | SentencePair
_COLUMNS = (
    "questions have 'question', 'answer' and options ('options', 'choices', or columns 'A', 'B' "
    "and so on), problems 'question' and 'answer' only, and texts 'text'"
)
_NAMES = ("question", "answer", "options", "choices", "text", "id", "domain", "subject", "prompt",
          "solution")  # fmt: skip


def rows_of(path: Path) -> list[Row]:
    """The rows of a file; a CSV file needs a header.

    Raises:
        InputError: it cannot be read, or a row is no object.
    """
    if path.suffix == ".csv":
        return [(where, _filled(row)) for where, row in csv_rows(path)]
    if path.suffix == ".jsonl":
        rows = list(jsonl(path))
    elif path.suffix == ".json":
        content = parsed(path)
        if not isinstance(content, list):
            raise InputError(f"{path} holds no list; expected a list of rows.")
        rows = [(f"{path}, item {n}", row) for n, row in enumerate(content, 1)]
    else:
        raise InputError(f"{path} is not read; pass a CSV, JSONL or JSON file.")
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where} holds {json.dumps(row)[:40]}; expected an object.")
    return rows


def has_header(path: Path) -> bool:
    """Whether a CSV file names its columns; MMLU's own do not."""
    _, cells = next(csv_lines(path), ("", []))
    first = [cell.strip() for cell in cells]
    named = {cell.casefold() for cell in first}
    bare = len(first) == 6 and first[5] in tuple("ABCD")
    return {"question", "answer"} <= named or not bare


def items_of(rows: Sequence[Row], path: Path) -> list[AnyItem]:
    """The items of rows, which are of one kind.

    ``id``, ``domain``, ``subject`` and ``prompt`` (of questions) and ``solution`` (of problems) may
    be there. An answer is a letter, an index counted from 0 or the text of an option, if only one
    option fits.

    Args:
        rows: from :func:`rows_of`.
        path: the file, which items without an id are named by.

    Raises:
        InputError: there are no rows, a row cannot be read or is of another kind than the first,
            or two have the same id.
    """
    if not rows:
        raise InputError(f"{path} has no rows; {_COLUMNS}.")
    items: list[AnyItem] = []
    places: dict[str, str] = {}
    for n, (where, row) in enumerate(rows):
        with located(where):
            item = _item(row, path.stem, n)
            if items and type(item) is not type(items[0]):
                raise InputError(
                    f"this is a {type(item).__name__.lower()} and the first row a "
                    f"{type(items[0]).__name__.lower()}; put them into two files."
                )
            if item.id in places:
                raise InputError(
                    f"the id is {item.id!r}, and that of {places[item.id]}, too; give every row "
                    "an id that no other has."
                )
        places[item.id] = where
        items.append(item)
    return items


def _filled(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a CSV file, in which an empty cell is nothing."""
    return {column: cell or None for column, cell in row.items()}


def _item(row: Mapping[str, Any], stem: str, n: int) -> AnyItem:
    columns = set(row)
    for column in row:
        plain = column.strip().casefold()
        if plain in _NAMES and plain != column and not {"Body", "Question", "Answer"} <= columns:
            raise InputError(f"the column {column!r} is not read; name it {plain!r}.")
    lettered = any(letter in columns for letter in LETTERS)
    optional = lettered or "options" in columns or "choices" in columns
    if {"question", "answer"} <= columns and optional:
        return _question(row, f"{stem}-{n:04d}")
    if {"question", "answer"} <= columns or {"Body", "Question", "Answer"} <= columns:
        _check_no_options(row)
        return gsm8k.from_row(row, f"{stem}-{n + 1:05d}")
    if "text" in columns and not optional and not {"question", "answer"} & columns:
        return _text(row, f"{stem}-{n:04d}")
    raise InputError(f"it cannot be told what the columns {sorted(columns)} are; {_COLUMNS}.")


def _check_no_options(row: Mapping[str, Any]) -> None:
    """Refuse a problem that seems to be a question whose options stand under another name."""
    for column, value in row.items():
        unread = column not in _NAMES and isinstance(value, list)
        if unread or column.casefold().startswith(("option", "choice")):
            raise InputError(
                f"the column {column!r} is not read, and seems to hold options; name a list of "
                "them 'options' or 'choices', or write them into columns 'A', 'B' and so on."
            )


def _text(row: Mapping[str, Any], name: str) -> Text:
    if not isinstance(row["text"], str):
        raise InputError(f"expected a text under 'text'; found {str(row)[:80]}.")
    return Text(label(row, "id") or name, row["text"], label(row, "domain"))


def _question(row: Mapping[str, Any], name: str) -> Question:
    text, prompt = row["question"], row.get("prompt")
    if not isinstance(text, str) or not isinstance(prompt, str | None):
        raise InputError(
            "expected a text under 'question', and under 'prompt' where there is one; found "
            f"{str(row)[:80]}."
        )
    options = _options(row)
    return Question(
        id=label(row, "id") or name,
        text=text,
        options=tuple(options),
        answer=_index(row["answer"], options),
        domain=label(row, "domain"),
        subject=label(row, "subject"),
        prompt=prompt,
    )


def _options(row: Mapping[str, Any]) -> list[str]:
    """The options, which stand in one place."""
    letters = [letter for letter in LETTERS if row.get(letter) is not None]
    lists = [column for column in ("options", "choices") if row.get(column) is not None]
    if len(lists) + bool(letters) > 1:
        raise InputError(
            f"the options stand under {', '.join([*lists, *letters])}; write them once."
        )
    if not LETTERS.startswith("".join(letters)):
        raise InputError(
            f"the options are {', '.join(letters)}; fill them from A on, without gaps."
        )
    options = row[lists[0]] if lists else [row[letter] for letter in letters]
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InputError(
            f"the options are {repr(options)[:80]}; expected a list of texts under 'options' or "
            "'choices' (in a JSON or JSONL file), or texts under 'A', 'B' and so on."
        )
    return options


def _index(answer: Any, options: Sequence[str]) -> int:
    """Which option is correct, however it is named."""
    most = len(options)
    if not 2 <= most <= len(LETTERS):
        raise InputError(f"there are {most} options; a question needs 2 to {len(LETTERS)}.")
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        answers: set[int] = set()
    else:
        key = str(answer).strip()
        places = {letter: n for n, letter in enumerate(LETTERS[:most])}
        places |= {str(n): n for n in range(most)}
        answers = {places[key]} if key in places else set()
        if isinstance(answer, str) or answers:
            answers |= {n for n, option in enumerate(options) if option.strip() == key}
    if len(answers) == 1:
        return answers.pop()
    named = f"a letter A to {LETTERS[most - 1]}, an index 0 to {most - 1} or the text of an option"
    if answers:
        fitting = " and ".join(f"{LETTERS[n]}. {options[n][:40]!r}" for n in sorted(answers))
        raise InputError(
            f"the answer {answer!r} may be the options {fitting}; write {named}, so that only one "
            "fits."
        )
    raise InputError(f"the answer is {answer!r}; it has to be {named}.")
