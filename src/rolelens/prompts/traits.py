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
from rolelens.endpoints import EmptyAnswerError, Endpoint
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


_WRITE = """\
A language model is to show the trait "{name}"{description}, or the opposite of it, by its system \
prompt. Write {pairs} pairs of system prompts, each of which makes it show the trait ("pos") and \
makes it do the opposite ("neg"), in two sentences at most, and {questions} questions that a user \
might ask, whose answers may show the trait or not. The questions do not name the trait. Answer \
with JSON and nothing else, in this form:
{{"instruction": [{{"pos": "...", "neg": "..."}}], "questions": ["..."]}}"""
_RUBRIC = """\
How strongly does this answer show the trait "{name}"{description}?

Question: {{question}}

Answer: {{answer}}

Reply with a number from 0 (not at all, or the opposite) to 100 (very strongly) and nothing else; \
reply REFUSAL if the question is not answered at all."""


def write_trait(
    name: str,
    endpoint: Endpoint,
    *,
    description: str = "",
    pairs: int = 5,
    questions: int = 40,
    seed: int = 0,
    attempts: int = 3,
) -> Trait:
    """Have a language model write the system prompts and questions of a trait (2507.21509).

    Args:
        name: of the trait.
        endpoint: who writes, from :func:`rolelens.endpoints.connect`.
        description: what the trait is, in a few words.
        pairs: of system prompts.
        questions: how many.
        seed: of the sampling, where the endpoint has one.
        attempts: how often it is asked at most, until what it writes fits.

    Raises:
        InputError: nothing that it wrote fits; the last reason is told.
    """
    if not name.strip() or min(pairs, questions, attempts) < 1:
        raise InputError(
            f"name is {name!r}, pairs {pairs}, questions {questions} and attempts {attempts}; give "
            "a name, and 1 or more of each."
        )
    about = f" ({description})" if description else ""
    prompt = _WRITE.format(name=name, description=about, pairs=pairs, questions=questions)
    rubric = _RUBRIC.format(name=name, description=about.replace("{", "(").replace("}", ")"))
    why = ""
    for attempt in range(attempts):
        try:
            text = endpoint.answer(prompt, max_tokens=8192, temperature=1.0, seed=seed + attempt)
        except EmptyAnswerError:
            why = "it answered without a text"
            continue
        try:
            return _written(name, text, pairs, questions, rubric)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error).rstrip(".") or "it wrote no such JSON"
    raise InputError(
        f"{endpoint.name} wrote no trait {name!r} in {attempts} attempts (at last: {why}); try "
        "again, or another language model."
    )


def _written(name: str, text: str, pairs: int, questions: int, rubric: str) -> Trait:
    """What was written, if it is what was asked for; a language model may put a fence around it."""
    content = json.loads(text[text.index("{") : text.rindex("}") + 1])
    told = [(one["pos"].strip(), one["neg"].strip()) for one in content["instruction"]]
    asked = list(dict.fromkeys(question.strip() for question in content["questions"]))
    asked = [one for one in asked if one and name.lower() not in one.lower()]
    if len(told) < pairs or not all(pos and neg and pos != neg for pos, neg in told):
        raise ValueError(f"{len(told)} pairs of system prompts, or some of them blank or the same")
    if len(asked) < questions:
        raise ValueError(f"{len(asked)} different questions that do not name the trait")
    positive, negative = zip(*told[:pairs], strict=True)
    return Trait(name, positive, negative, tuple(asked[:questions]), rubric)
