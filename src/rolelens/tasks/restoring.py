"""Tasks read back from the store of a run, without the model."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rolelens.errors import InputError
from rolelens.forward import Tokens
from rolelens.tasks.asking import Choices, Generated, Passages, Prepared, Verifier
from rolelens.tasks.bias import BiasQuestion, BiasQuestions
from rolelens.tasks.pairs import Pairs, SentencePair, SentencePairs
from rolelens.tasks.passages import Text, Texts
from rolelens.tasks.problems import Problem, Problems, right_number
from rolelens.tasks.questions import Question, Questions
from rolelens.tasks.task import Metric, Task

_NONE = Tokens((), (), 0)


def task_fields(task: Task[Any]) -> dict[str, Any]:
    """What a task has beside its name and items, JSON-able."""
    names = [
        field.name for field in dataclasses.fields(task) if field.name not in ("name", "items")
    ]
    plain = {name: getattr(task, name) for name in names}
    plain = {
        name: [dataclasses.asdict(part) for part in value] if name == "shots" else value
        for name, value in plain.items()
    }
    content: dict[str, Any] = json.loads(json.dumps(plain, default=repr))
    return content


def restored(provenance: Mapping[str, Any], items: Sequence[Sequence[Any]]) -> Task[Any]:
    """A task, from what a store says of it.

    Raises:
        InputError: a task of one's own, which only its class can make.
    """
    name, kind = provenance["task"], provenance["task_kind"]
    contents = [json.loads(content) for *_, content in items]
    if kind == "Questions":
        return Questions(name, tuple(map(_question, contents)))
    if kind == "BiasQuestions":
        return BiasQuestions(name, tuple(map(_question, contents)))
    if kind == "SentencePairs":
        return SentencePairs(name, tuple(SentencePair(**content) for content in contents))
    if kind == "Problems":
        fields = dict(provenance["task_fields"])
        shots = tuple(Problem(**shot) for shot in fields.pop("shots"))
        problems = tuple(Problem(**content) for content in contents)
        return Problems(name, problems, shots=shots, **fields)
    if kind == "Texts":
        return Texts(name, tuple(Text(**content) for content in contents))
    raise InputError(
        f"the store is of a task {kind!r}, which rolelens cannot make again; read its tables with "
        "sqlite3, or repeat the call that made it."
    )


def restored_prepared(
    task: Task[Any],
    provenance: Mapping[str, Any],
    metric: Metric | None,
    verifier: Verifier | None = None,
) -> Prepared:
    """A task that can tell what stored answers are worth, and cannot be run.

    Raises:
        InputError: answers were checked by a verifier, and none is given.
    """
    if isinstance(task, Questions):
        put = {name: provenance[name] for name in ("system", "prefix")}
        letters = tuple(provenance["letters"]) or None
        owners = torch.arange(0)
        return Choices(task, metric, _NONE, owners, letters, provenance["method"], put)
    if isinstance(task, SentencePairs):
        return Pairs(task, metric, _NONE, torch.arange(0), None)
    if isinstance(task, Texts):
        return Passages(task, metric, _NONE, torch.arange(0), None)
    names = ("system", "n", "temperature", "top_p", "max_new_tokens", "seed")
    known = provenance["verifier"]
    if verifier is None and known != right_number.__name__:
        raise InputError(f"the answers were checked by {known!r}; pass verifier= again.")
    prompts = tuple(task.prompt(item) for item in task)  # type: ignore[attr-defined]
    options = {name: provenance[name] for name in names}
    return Generated(task, metric, prompts, **options, verifier=verifier or right_number)


def _question(content: dict[str, Any]) -> Question:
    content["shots"] = tuple(map(_question, content["shots"]))
    content["options"], content["also"] = tuple(content["options"]), tuple(content["also"])
    kind = BiasQuestion if "biased" in content else Question
    return kind(**content)
