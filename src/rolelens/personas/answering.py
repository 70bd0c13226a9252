"""Answers under system prompts, kept in a file as they are made."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolelens.errors import InputError, writing
from rolelens.lens import Lens
from rolelens.progress import track

TOGETHER = 64
"""Answers that are generated together, and lost at most where a run is killed."""


@dataclass(frozen=True)
class Asked:
    """A question under a system prompt.

    Attributes:
        name: of the role or trait.
        side: ``"positive"`` or ``"negative"``.
        system: the system prompt; empty for the template's default.
        question: what the user says.
    """

    name: str
    side: str
    system: str
    question: str


def prompt_of(lens: Lens, asked: Asked) -> list[dict[str, str]]:
    """The messages of a question under its system prompt.

    Where the chat template refuses system prompts, it stands before the question.
    """
    if not asked.system:
        return [{"role": "user", "content": asked.question}]
    if lens.chat.takes_system:
        system = {"role": "system", "content": asked.system}
        return [system, {"role": "user", "content": asked.question}]
    return [{"role": "user", "content": f"{asked.system}\n\n{asked.question}"}]


def answered(
    lens: Lens,
    asked: Sequence[Asked],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    store: str | Path | None = None,
) -> list[str]:
    """The model's answer to each question under its system prompt.

    Args:
        lens: the model.
        asked: what is asked; the same twice is answered once.
        max_new_tokens: of an answer at most.
        temperature: 0 is greedy.
        seed: of the sampling; an answer depends on it and on what is asked alone.
        store: a JSONL file that every answer is appended to. The same call, or one that asks for
            more, goes on there.

    Raises:
        InputError: the file holds answers of another model or of other settings.
    """
    settings = {
        "rolelens": "answers",
        "model": lens.name,
        "content": lens.content,
        "template": lens.source.template,
        "dtype": lens.source.dtype,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    known = _kept(Path(store), settings) if store is not None else {}
    missing = [one for one in dict.fromkeys(asked) if one not in known]
    # Of one length together: the longest first, so that what is slowest is known early.
    missing.sort(key=lambda one: (-len(one.system) - len(one.question), one.name, one.question))
    parts = [missing[n : n + TOGETHER] for n in range(0, len(missing), TOGETHER)]
    with _appending(store) as append:
        for part in track(parts, "answers", total=len(parts)):
            texts = lens.generate(
                [prompt_of(lens, one) for one in part],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=[_seed(seed, one) for one in part],
            )
            known.update(zip(part, texts, strict=True))
            append([vars(one) | {"answer": known[one]} for one in part])
    return [known[one] for one in asked]


def _seed(seed: int, one: Asked) -> int:
    """A seed that depends on what is asked, and not on its place."""
    text = json.dumps([seed, *vars(one).values()])
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _kept(path: Path, settings: Mapping[str, Any]) -> dict[Asked, str]:
    """The answers in a file; a last line that was cut off by a crash is taken off."""
    if not path.exists():
        with writing(path):
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        head, *lines = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        answers = {Asked(*(row[k] for k in Asked.__annotations__)): row["answer"] for row in lines}
        theirs = {key: head[key] for key in settings}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not hold answers; name a new file.") from error
    for key, value in settings.items():
        if theirs[key] != value:
            raise InputError(
                f"{path} holds answers with {key} {theirs[key]!r}, and this call has {value!r}; "
                "name another file."
            )
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return answers


@contextmanager
def _appending(store: str | Path | None) -> Iterator[Any]:
    if store is None:
        yield lambda rows: None
        return
    with Path(store).open("a", encoding="utf-8") as file:

        def append(rows: Sequence[Mapping[str, Any]]) -> None:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

        yield append
