"""MMLU: the original CSV files, the hub's rows, and the shots of its dev split.

Two of the 6,883 test questions of the 26 subjects of 2502.12055 have a wrong option that equals
the correct one (high_school_macroeconomics 183, international_law 51; none of dev's and val's).
There it counts as correct, too (:attr:`Question.also`).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rolelens.errors import InputError, unknown
from rolelens.rows import csv_lines, located
from rolelens.rows import from_hub as hub_rows
from rolelens.tasks.questions import LETTERS, Question, equal_options

HUB = "cais/mmlu"
SPLITS = ("dev", "val", "test")


def from_folder(folder: Path) -> list[Question]:
    """The questions of a folder of CSV files, one a subject."""
    files = sorted(folder.glob("*.csv"), key=_subject)
    return [question for file in files for question in from_file(file)]


def from_file(path: Path) -> list[Question]:
    """The questions of a CSV file without a header."""
    return list(_csv(path))


def from_hub(split: str, subjects: Iterable[str] | None) -> list[Question]:
    """The questions of the hub's copy."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    split = "validation" if split == "val" else split
    questions: list[Question] = []
    for config in ("all",) if subjects is None else sorted(set(subjects)):
        otherwise = (
            "download it where there is a network, check the subject's name, or pass a folder of "
            "MMLU CSV files"
        )
        rows = hub_rows(f"MMLU ({HUB}, {config})", HUB, config, split, otherwise)
        questions += from_rows(rows, f"{HUB} ({config}, {split})")
    return questions


def from_rows(rows: Iterable[Any], where: str) -> Iterator[Question]:
    """Questions of rows as the hub has them, with the ids they have in the CSV files.

    Args:
        rows: each with ``question``, ``subject``, ``choices`` and ``answer``, an index.
        where: what they are called in an error.
    """
    seen: Counter[str] = Counter()
    for n, row in enumerate(rows):
        text, subject, options, answer = map(row.get, ("question", "subject", "choices", "answer"))
        texts = [text, subject, *(options if isinstance(options, list) else [None])]
        if not all(isinstance(part, str) for part in texts) or answer not in range(len(options)):
            raise InputError(
                f"{where}, row {n + 1}: expected a question, a subject, choices and the index of "
                f"the correct one, found {str(row)[:200]!r}."
            )
        with located(f"{where}, row {n + 1}"):
            question = _question(f"{subject}-{seen[subject]:04d}", text, options, answer, subject)
        seen[subject] += 1
        yield question


def with_shots(
    questions: Iterable[Question], dev: Iterable[Question], shots: int
) -> list[Question]:
    """The questions, each with the first questions of its subject in the dev split."""
    known: dict[str, list[Question]] = {}
    for question in dev:
        known.setdefault(question.subject, []).append(question)
    return [
        dataclasses.replace(question, shots=_first(known, question.subject, shots))
        for question in questions
    ]


def kept(questions: Iterable[Question], subjects: Sequence[str]) -> list[Question]:
    """The questions of some subjects.

    Raises:
        InputError: no question is of one of them.
    """
    known = sorted({question.subject for question in questions if question.subject})
    for name in subjects:
        if name not in known:
            raise unknown("subject", name, known)
    return [question for question in questions if question.subject in subjects]


def grouped(
    questions: Iterable[Question], grouping: Mapping[str, str], strict: bool
) -> list[Question]:
    """The questions of the grouped subjects, under their new domains.

    Args:
        questions: of which those of other subjects are left out.
        grouping: the domain of every subject.
        strict: refuse questions of other subjects.

    Raises:
        InputError: there are none of the grouped subjects, or, if strict, one of another.
    """
    for question in questions:
        if strict and question.subject not in grouping:
            raise unknown("domain given for the subject", question.subject, grouping)
    moved = [
        dataclasses.replace(question, domain=grouping[question.subject])
        for question in questions
        if question.subject in grouping
    ]
    if not moved:
        raise InputError(
            f"no question has one of the {len(grouping)} subjects that domains names; load MMLU, "
            "or leave domains out."
        )
    return moved


def _first(known: dict[str, list[Question]], subject: str, shots: int) -> tuple[Question, ...]:
    shown = known.get(subject, [])[:shots]
    if len(shown) < shots:
        raise InputError(
            f"shots is {shots} and the dev split of {subject!r} has {len(shown)} questions; ask "
            "for no more than there are."
        )
    return tuple(shown)


def _subject(path: Path) -> str:
    return path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")


def _csv(path: Path) -> Iterator[Question]:
    subject = _subject(path)
    for n, (where, row) in enumerate(csv_lines(path)):
        if len(row) != 6 or row[5].strip() not in tuple("ABCD"):
            raise InputError(
                f"{where}: expected a question, four options and a letter A to D, found "
                f"{len(row)} cells ending in {row[-1][:20]!r}; put a text with a comma between "
                "quotation marks, or name the columns in a header ('question', 'A', 'B' and so "
                "on, 'answer')."
            )
        with located(where):
            question = _question(
                f"{subject}-{n:04d}", row[0], row[1:5], LETTERS.index(row[5].strip()), subject
            )
        yield question


def _question(name: str, text: str, options: Sequence[str], answer: int, subject: str) -> Question:
    also = equal_options(options, answer)
    return Question(name, text, tuple(options), answer, subject, subject, also=also)
