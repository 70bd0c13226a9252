"""TruthfulQA's multiple choice: one true option (MC1), or several (MC2)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rolelens.errors import InputError, unknown
from rolelens.rows import from_hub as hub_rows
from rolelens.rows import located
from rolelens.tasks.questions import Question

HUB = "truthfulqa/truthful_qa"
TARGETS = ("mc1", "mc2")


def from_hub(targets: str) -> list[Question]:
    """The questions of the hub's copy."""
    known_targets(targets)
    otherwise = "download it where there is a network, or pass its mc_task.json"
    rows = hub_rows(f"TruthfulQA ({HUB})", HUB, "multiple_choice", "validation", otherwise)
    return list(from_rows(rows, targets, HUB))


def from_rows(rows: Iterable[Any], targets: str, where: str) -> Iterator[Question]:
    """Questions of rows, their options shuffled: the true ones stand first in the source.

    Args:
        rows: each with ``question`` and ``mc1_targets`` or ``mc2_targets``.
        targets: ``mc1`` (one true option) or ``mc2`` (several).
        where: what they are called in an error.

    Raises:
        InputError: a row that cannot be read, or without a true or a false option.
    """
    known_targets(targets)
    for n, row in enumerate(rows):
        labels = _labels(row.get(f"{targets}_targets")) if isinstance(row, Mapping) else None
        if labels is None or not isinstance(row.get("question"), str):
            raise InputError(
                f"{where}, item {n + 1}: expected a text under 'question' and options with labels "
                f"0 and 1 under '{targets}_targets', found {str(row)[:80]!r}."
            )
        options = list(labels.items())
        order = np.random.default_rng(n).permutation(len(options)).tolist()
        shuffled = [options[k] for k in order]
        true = [k for k, (_, label) in enumerate(shuffled) if label]
        if not true:
            raise InputError(f"{where}, item {n + 1} has no true option; mark one with 1.")
        with located(f"{where}, item {n + 1}"):
            question = Question(
                id=f"truthfulqa-{n:04d}",
                text=row["question"],
                options=tuple(text for text, _ in shuffled),
                answer=true[0],
                also=tuple(true[1:]),
            )
        yield question


def known_targets(targets: str) -> str:
    """The name of a set of targets, if it is one.

    Raises:
        InputError: it is none.
    """
    if targets not in TARGETS:
        raise unknown("targets of TruthfulQA", targets, TARGETS)
    return targets


def _labels(targets: Any) -> dict[str, int] | None:
    """Options and whether each is true, of the file's form or the hub's."""
    if not isinstance(targets, Mapping):
        return None
    pairs = list(targets.items())
    if set(targets) == {"choices", "labels"}:
        texts, marks = targets["choices"], targets["labels"]
        if not isinstance(texts, list) or not isinstance(marks, list) or len(texts) != len(marks):
            return None
        pairs = list(zip(texts, marks, strict=True))
    labels: dict[str, int] = {}
    for text, label in pairs:
        if not isinstance(text, str) or label not in (0, 1):
            return None
        if labels.setdefault(text, int(label)) != label:
            return None  # both true and false
    return labels
