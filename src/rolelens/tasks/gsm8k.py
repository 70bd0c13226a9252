"""Word problems of GSM8K and SVAMP: their rows, and their copies on the hub."""

import re
from collections.abc import Mapping
from typing import Any

from rolelens.errors import InputError, unknown
from rolelens.rows import from_hub as hub_rows
from rolelens.rows import label, located
from rolelens.tasks.problems import Problem

HUBS = {"gsm8k": ("openai/gsm8k", "main"), "svamp": ("ChilleD/SVAMP", None)}
SPLITS = ("train", "test")


def from_hub(name: str, split: str) -> list[Problem]:
    """The problems of the hub's copy.

    Args:
        name: ``gsm8k`` or ``svamp``.
        split: ``train`` or ``test``.

    Raises:
        InputError: there is no such split, or the hub cannot be reached.
    """
    if split not in SPLITS:
        raise unknown(f"split of {name}", split, SPLITS)
    hub, config = HUBS[name]
    otherwise = "download it where there is a network, or pass its file"
    rows = hub_rows(f"{name} ({hub}, {split})", hub, config, split, otherwise)
    problems = []
    for n, row in enumerate(rows):
        with located(f"{hub}, row {n + 1}"):
            problems.append(from_row(row, f"{split}-{n:05d}"))
    return problems


def from_row(row: Mapping[str, Any], name: str) -> Problem:
    """The problem of a row.

    Args:
        row: with ``question`` and ``answer``, where an answer of several lines ends in ``#### ``
            and the number, as GSM8K's do, or as SVAMP's; ``id``, ``domain`` and ``solution`` may
            be there.
        name: the id of a row that has none.

    Raises:
        InputError: a text or the answer is missing or of another kind.
    """
    if {"Body", "Question", "Answer"} <= set(row):
        row = {
            "id": row.get("ID"),
            "question": f"{row['Body']} {row['Question']}".strip(),
            "answer": row["Answer"],
            "domain": row.get("Type"),
        }
    question, answer, solution = map(row.get, ("question", "answer", "solution"))
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if not isinstance(question, str) or isinstance(answer, bool) or answer in (None, ""):
        raise InputError(
            f"expected a text under 'question' and an answer under 'answer'; found {str(row)[:80]}."
        )
    if not isinstance(answer, str | int | float) or not isinstance(solution, str | None):
        raise InputError(
            f"expected a text or a number under 'answer', and a text under 'solution' where there "
            f"is one; found {str(row)[:80]}."
        )
    worked, mark, last = str(answer).rpartition("####")
    worked = re.sub(r"<<.*?>>", "", worked).strip()
    return Problem(
        id=label(row, "id") or name,
        question=question,
        answer=last.strip(),
        solution=f"{worked}\nThe answer is {last.strip()}." if mark else solution or "",
        domain=label(row, "domain"),
    )
