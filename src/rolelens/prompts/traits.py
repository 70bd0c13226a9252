"""System prompts that bring out a role or a trait, and take it back, with questions to try on.

The files are those of the persona-vectors and assistant-axis papers: one JSON a role or trait, with
``instruction`` (a list of ``pos`` and ``neg``), ``questions`` and ``eval_prompt``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolelens.display import Card, Shown, cut
from rolelens.errors import InputError, writing
from rolelens.rows import jsonl, located, parsed


@dataclass(frozen=True, repr=False)
class Trait(Shown):
    """A role or a trait, by system prompts.

    Attributes:
        name: what it is called.
        positive: system prompts that bring it out; an empty one means none at all.
        negative: system prompts that bring out the opposite; none of a role.
        questions: what is asked under them.
        rubric: how an answer is judged, with ``{question}`` and ``{answer}`` in it; empty where
            nothing says.

    Raises:
        InputError: no system prompt, one that is no text, or a rubric without its two places.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    rubric: str = ""

    def __post_init__(self) -> None:
        if not self.positive:
            raise InputError(f"{self.name!r} has no system prompts; give at least one.")
        for text in (*self.positive, *self.negative, *self.questions, self.rubric):
            if not isinstance(text, str):
                raise InputError(f"{self.name!r} holds {text!r}; pass texts.")
        for place in ("{question}", "{answer}") if self.rubric else ():
            if place not in self.rubric:
                raise InputError(f"the rubric of {self.name!r} has no {place}; put it there.")

    def save(self, path: str | Path) -> Path:
        """Write it as one JSON file; returns the path.

        Raises:
            InputError: the file cannot be written.
        """
        negative = self.negative or (None,) * len(self.positive)
        pairs = zip(self.positive, negative, strict=True)
        content: dict[str, Any] = {
            "instruction": [
                {"pos": pos} if neg is None else {"pos": pos, "neg": neg} for pos, neg in pairs
            ],
            "questions": list(self.questions),
            "eval_prompt": self.rubric,
        }
        path = Path(path)
        with writing(path):
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        return path

    def card(self) -> Card:
        """Name, numbers of system prompts and questions."""
        facts = {
            "name": self.name,
            "system prompts": f"{len(self.positive)} positive, {len(self.negative)} negative",
            "questions": str(len(self.questions)),
            "such as": cut(next(filter(None, self.positive), "none"), 60),
        }
        return Card("Trait", facts, "rl.trait_vectors(lens, [trait], questions)")


def load_traits(path: str | Path) -> dict[str, Trait]:
    """Roles or traits of a folder of JSON files, or of one file, by the names of the files.

    Raises:
        InputError: there are none, or a file does not hold one.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no JSON files; name a folder of roles or traits.")
    return {file.stem: _trait(file) for file in files}


def load_questions(path: str | Path) -> tuple[str, ...]:
    """Questions of a JSONL file with ``question`` in each row.

    Raises:
        InputError: it cannot be read, or a row has no question.
    """
    found = []
    for where, row in jsonl(Path(path)):
        question = row.get("question") if isinstance(row, Mapping) else None
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"{where} has no 'question'; give it one.")
        found.append(question)
    if not found:
        raise InputError(f"{path} has no rows; write a question on each line.")
    return tuple(found)


def _trait(file: Path) -> Trait:
    with located(str(file)):
        content = parsed(file)
        instruction = content.get("instruction") if isinstance(content, Mapping) else None
        if not isinstance(instruction, list) or not all(
            isinstance(one, Mapping) and "pos" in one for one in instruction
        ):
            raise InputError("expected a list under 'instruction' with 'pos' in each.")
        negative = [one["neg"] for one in instruction if "neg" in one]
        if negative and len(negative) < len(instruction):
            raise InputError("some of the instructions have 'neg' and some not; give all or none.")
        return Trait(
            file.stem,
            tuple(one["pos"] for one in instruction),
            tuple(negative),
            tuple(content.get("questions", ())),
            content.get("eval_prompt", ""),
        )
