"""MMLU: the original CSV files, the hub's rows, and the shots of its dev split."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rolelens.benchmarks.questions import LETTERS, Question
from rolelens.errors import InputError, unknown
from rolelens.rows import csv_lines
from rolelens.rows import from_hub as hub_rows

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
        name = f"{subject}-{seen[subject]:04d}"
        yield Question(name, text, tuple(options), answer, subject, subject)
        seen[subject] += 1


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


def _first(known: dict[str, list[Question]], subject: str, shots: int) -> tuple[Question, ...]:
    own: Sequence[Question] = known.get(subject, ())
    if len(own) < shots:
        raise InputError(
            f"shots is {shots} and the dev split of {subject!r} has {len(own)} questions; ask for "
            "no more than there are."
        )
    return tuple(own[:shots])


def _subject(path: Path) -> str:
    return path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")


def _csv(path: Path) -> Iterator[Question]:
    subject = _subject(path)
    for n, (where, row) in enumerate(csv_lines(path)):
        if len(row) != 6 or row[5].strip() not in tuple("ABCD"):
            raise InputError(
                f"{where}: expected question, four options and a letter "
                f"A to D, found {len(row)} columns ending in {row[-1][:20] if row else ''!r}."
            )
        answer = LETTERS.index(row[5].strip())
        yield Question(f"{subject}-{n:04d}", row[0], tuple(row[1:5]), answer, subject, subject)
