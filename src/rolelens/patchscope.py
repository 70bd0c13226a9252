"""Patch-scoping: steer a question about nothing, and read what the model says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.hooks import add_rows
from rolelens.lens import Lens
from rolelens.vectors import Direction, check_sources

PROMPT = "What does ♦ represent?"


@dataclass(frozen=True, repr=False)
class Reading(Shown):
    """What a model says while a direction is added, beside what it says without.

    Attributes:
        text: the steered answer.
        baseline: the unsteered one.
        prompt: the question.
        direction: what was added.
        alpha: how strongly.
    """

    text: str
    baseline: str
    prompt: str
    direction: Direction
    alpha: float

    def card(self) -> Card:
        """What was asked, and both answers."""
        facts = {
            "prompt": self.prompt,
            "steered": f"{self.text} ({self.direction.role}, layer {self.direction.layer}, "
            f"alpha {self.alpha:g})",
            "unsteered": self.baseline,
        }
        return Card("Reading", facts, "rl.patchscope(lens, [d, d.random_like()])")


@overload
def patchscope(
    lens: Lens,
    directions: Direction,
    *,
    alpha: float = ...,
    prompt: str = ...,
    max_new_tokens: int = ...,
) -> Reading: ...


@overload
def patchscope(
    lens: Lens,
    directions: Sequence[Direction],
    *,
    alpha: float = ...,
    prompt: str = ...,
    max_new_tokens: int = ...,
) -> list[Reading]: ...


def patchscope(
    lens: Lens,
    directions: Direction | Sequence[Direction],
    *,
    alpha: float = 3.0,
    prompt: str = PROMPT,
    max_new_tokens: int = 40,
) -> Reading | list[Reading]:
    """Read directions as text: activation addition at "What does ♦ represent?" (2502.12055).

    Args:
        lens: the model.
        directions: one, or several that are read in one batch.
        alpha: raw strength; 3 in the paper.
        prompt: the question.
        max_new_tokens: length of the answer, in tokens.
    """
    several = [directions] if isinstance(directions, Direction) else list(directions)
    if not several:
        raise InputError("there are no directions to read; pass at least one.")
    for direction in several:
        check_sources(direction.source, lens.source)
    hooks = add_rows(several, [alpha] * len(several))
    texts = lens.generate([prompt] * len(several), hooks=hooks, max_new_tokens=max_new_tokens)
    baseline = lens.generate([prompt], max_new_tokens=max_new_tokens)[0]
    readings = [
        Reading(text, baseline, prompt, direction, alpha)
        for text, direction in zip(texts, several, strict=True)
    ]
    return readings[0] if isinstance(directions, Direction) else readings
