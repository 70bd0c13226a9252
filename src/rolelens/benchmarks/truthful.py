"""TruthfulQA's multiple choice: one true option (MC1), or several (MC2)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rolelens.benchmarks.questions import Question
from rolelens.errors import InputError, unknown
from rolelens.rows import from_hub as hub_rows
from rolelens.rows import parsed

HUB = "truthfulqa/truthful_qa"
TARGETS = ("mc1", "mc2")


def from_hub(targets: str) -> list[Question]:
    """The questions of the hub's copy."""
    _known(targets)
    otherwise = "download it where there is a network, or pass its mc_task.json"
    found = hub_rows(f"TruthfulQA ({HUB})", HUB, "multiple_choice", "validation", otherwise)
    return list(from_rows(found, targets, HUB))


def from_file(path: Path, targets: str) -> list[Question]:
    """The questions of a file as the authors' ``mc_task.json``."""
    _known(targets)
    rows = parsed(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} holds no list; expected TruthfulQA's rows with 'mc1_targets'.")
    return list(from_rows(rows, targets, str(path)))


def from_rows(rows: Iterable[Any], targets: str, where: str) -> Iterator[Question]:
    """Questions of rows, their options shuffled: the true ones stand first in the source."""
    for n, row in enumerate(rows):
        own = row.get(f"{targets}_targets") if isinstance(row, Mapping) else None
        labels = _labels(own)
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
            raise InputError(f"{where}, item {n + 1} has no true option.")
        yield Question(
            id=f"truthfulqa-{n:04d}",
            text=row["question"],
            options=tuple(text for text, _ in shuffled),
            answer=true[0],
            also=tuple(true[1:]),
        )


def _labels(own: Any) -> dict[str, int] | None:
    """Options and whether each is true, of the file's form or the hub's."""
    if isinstance(own, Mapping) and set(own) == {"choices", "labels"}:
        texts, labels = own["choices"], own["labels"]
        if not isinstance(texts, list) or not isinstance(labels, list):
            return None
        if len(texts) != len(labels):
            return None
        own = dict(zip(texts, labels, strict=True))
    if not isinstance(own, Mapping) or not all(label in (0, 1) for label in own.values()):
        return None
    return {str(text): int(label) for text, label in own.items()}


def _known(targets: str) -> None:
    if targets not in TARGETS:
        raise unknown("targets of TruthfulQA", targets, TARGETS)
