"""The split of 2502.12055: ready-made prompts in eight domains, cut from 26 subjects of MMLU."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rolelens.errors import InputError
from rolelens.rows import located, parsed
from rolelens.tasks.questions import LETTERS, Question, equal_options

PAPER_DOMAINS: dict[str, str] = {
    "econometrics": "econ",
    "high_school_macroeconomics": "econ",
    "high_school_microeconomics": "econ",
    "management": "econ",
    "professional_accounting": "econ",
    "college_computer_science": "eecs",
    "electrical_engineering": "eecs",
    "high_school_computer_science": "eecs",
    "international_law": "law",
    "professional_law": "law",
    "college_mathematics": "math",
    "high_school_mathematics": "math",
    "high_school_statistics": "math",
    "clinical_knowledge": "medicine",
    "college_medicine": "medicine",
    "professional_medicine": "medicine",
    "college_biology": "natural_science",
    "college_chemistry": "natural_science",
    "college_physics": "natural_science",
    "high_school_biology": "natural_science",
    "high_school_chemistry": "natural_science",
    "high_school_physics": "natural_science",
    "high_school_government_and_politics": "politics",
    "us_foreign_policy": "politics",
    "high_school_psychology": "psychology",
    "professional_psychology": "psychology",
}
"""The paper's domain of each of its subjects of MMLU."""

_REQUEST = re.compile(r"\n\t+Answer with the letter of the correct answer\.(\n\t+Answer:)?\s*\Z")
_OPTION = re.compile(r"\n\t+([A-Z])\. ")


def from_folder(folder: Path) -> list[Question]:
    """The questions of a folder of JSON files, one a domain."""
    return [question for file in sorted(folder.glob("*.json")) for question in _json(file)]


def from_rows(rows: Iterable[Any], path: Path) -> Iterator[Question]:
    """The questions of the rows of one domain's file."""
    for n, row in enumerate(rows):
        with located(f"{path}, item {n + 1}"):
            question = _question(f"{path.stem}-{n:04d}", row, path.stem)
        yield question


def _json(path: Path) -> Iterator[Question]:
    rows = parsed(path)
    if not isinstance(rows, list):
        raise InputError(
            f"{path} holds no list of questions; expected rows with 'prompt', 'answer' and "
            "'subject'."
        )
    yield from from_rows(rows, path)


def _question(name: str, row: Any, domain: str) -> Question:
    keys = ("prompt", "answer", "subject")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise InputError(
            f"expected texts under 'prompt', 'answer' and 'subject', found {str(row)[:80]!r}."
        )
    text, options = _parsed(row["prompt"])
    if row["answer"] not in tuple(LETTERS[: len(options)]):
        raise InputError(
            f"expected a letter A to {LETTERS[len(options) - 1]} under 'answer', found "
            f"{row['answer']!r}."
        )
    answer = LETTERS.index(row["answer"])
    return Question(
        id=name,
        text=text,
        options=options,
        answer=answer,
        domain=domain,
        subject=row["subject"],
        prompt=row["prompt"],
        also=equal_options(options, answer),
    )


def _parsed(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The question and the options of a prompt."""
    body, *request = _REQUEST.split(prompt)
    text, *parts = _OPTION.split(body)
    letters, options = "".join(parts[::2]), tuple(parts[1::2])
    if not request or len(options) < 2 or letters != LETTERS[: len(options)]:
        raise InputError(
            "expected a question, options on lines of tabs and 'A. ', 'B. ' and so on, and the "
            f"request for the letter; found {prompt[-80:]!r}."
        )
    return text, options
