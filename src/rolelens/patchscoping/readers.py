"""Readers: what a model says of a direction that is put into its residual stream."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload, runtime_checkable

from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.hooks import Steering, add, by_row, replace
from rolelens.lens import Lens
from rolelens.vectors import Direction, check_sources

PROMPT = "What does ♦ represent?"
IDENTITY = "cat->cat; 135->135; hello->hello; ?"
PLACEHOLDER = "_"
SELFIE = (
    "Sure, I'll summarize the message:",
    "Sure, this is about the occupation",
    "Sure, the one word for this is",
)
"""How the answers to SelfIE's placeholders begin."""


@dataclass(frozen=True, repr=False)
class Reading(Shown):
    """What a model says of a direction, beside what it says without.

    Attributes:
        text: what it says with the direction.
        baseline: what it says without.
        prompt: the question.
        direction: what was read.
        how: the reader and its settings, in a few words.
    """

    text: str
    baseline: str
    prompt: str
    direction: Direction
    how: str

    def card(self) -> Card:
        """The question and both answers."""
        at = f"{self.direction.name}, layer {self.direction.layer}, {self.how}"
        facts = {
            "prompt": self.prompt,
            "steered": f"{self.text} ({at})",
            "unsteered": self.baseline,
        }
        return Card("Reading", facts, "rl.patchscope(lens, [d, d.random_like()])")


@runtime_checkable
class Reader(Protocol):
    """A way to read directions; all of them in few batches."""

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions of this model, one reading each.

        Raises:
            InputError: there are none, or they were measured on another model.
        """


@dataclass(frozen=True, kw_only=True)
class _Generated:
    """What all readers have that generate text."""

    max_new_tokens: int = 20
    temperature: float = 0.0
    seed: int = 0

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Addition(_Generated):
    """Activation addition at "What does ♦ represent?" (2502.12055).

    Attributes:
        alpha: raw strength; 3 in the paper.
        prompt: the question.
        max_new_tokens: length of the answer at most, in tokens.
        temperature: 0 is greedy.
        seed: of the sampling.
    """

    alpha: float = 3.0
    prompt: str = PROMPT
    max_new_tokens: int = field(default=40, kw_only=True)

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; see :class:`Reader`."""
        several = checked(lens, directions)
        options = self._options
        hooks = by_row([add(direction, self.alpha) for direction in several])
        texts = lens.generate([self.prompt] * len(several), hooks=hooks, **options)
        (baseline,) = lens.generate([self.prompt], **options)
        how = f"alpha {self.alpha:g}"
        return [
            Reading(text, baseline, self.prompt, d, how)
            for text, d in zip(texts, several, strict=True)
        ]


@dataclass(frozen=True)
class TokenIdentity(_Generated):
    """The token-identity Patchscope (2401.06102): the direction in the place of a token.

    The residual stream at the last token of ``cat->cat; 135->135; hello->hello; ?`` is replaced by
    the direction, scaled to the norm of what it replaces; the model goes on with what it takes it
    for. The prompt stands alone, without the chat format.

    Attributes:
        layer: the block whose input is replaced; by default the direction's own layer.
        prompt: what stands before; its last token is replaced.
        max_new_tokens: length of the continuation at most, in tokens.
        temperature: 0 is greedy.
        seed: of the sampling.
    """

    layer: int | None = None
    prompt: str = IDENTITY

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; see :class:`Reader`."""
        several = checked(lens, directions)
        options = self._options | {"raw": True}
        last = len(lens.encode([self.prompt], raw=True).ids[0]) - 1
        layers = _layers(lens, self.layer, several)
        hooks = by_row(_replacements(several, layers, [last]))
        texts = lens.generate([self.prompt] * len(several), hooks=hooks, **options)
        (baseline,) = lens.generate([self.prompt], **options)
        return [
            Reading(text, baseline, self.prompt, d, f"in place of {self.prompt[-1]!r} at {layer}")
            for text, d, layer in zip(texts, several, layers, strict=True)
        ]


@dataclass(frozen=True)
class SelfIE(_Generated):
    """Placeholders replaced at an early layer, in a message that the model describes (2403.10949).

    The user's message is a row of placeholders, whose residual stream is replaced by the
    direction, scaled to the norm of what it replaces; the answer is begun in several ways, and a
    reading has a line for each.

    Attributes:
        layer: the block whose input is replaced.
        begun: how the answer begins.
        placeholders: how many there are.
        max_new_tokens: length of each line at most, in tokens.
        temperature: 0 is greedy.
        seed: of the sampling.
    """

    layer: int = 2
    begun: tuple[str, ...] = SELFIE
    placeholders: int = 5

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; see :class:`Reader`."""
        several = checked(lens, directions)
        if not self.begun or self.placeholders < 1:
            raise InputError(
                "SelfIE needs at least one placeholder and one beginning of an answer."
            )
        prompt = " ".join([PLACEHOLDER] * self.placeholders)
        ids = lens.encode([prompt]).ids[0]
        places = [n for n, i in enumerate(ids) if lens.tokenizer.decode([i]).strip() == PLACEHOLDER]
        if len(places) != self.placeholders:
            raise InputError(
                f"{lens.name} has no single token for the placeholder {PLACEHOLDER!r}; use another "
                "reader."
            )
        layers = _layers(lens, self.layer, several)
        hooks = by_row(_replacements(several, layers, places))
        options = self._options
        lines, plain = [], []
        for begun in self.begun:
            lines.append(
                lens.generate([prompt] * len(several), hooks=hooks, begun=begun, **options)
            )
            plain += lens.generate([prompt], begun=begun, **options)
        how = f"in place of {PLACEHOLDER!r} at {self.layer}"
        return [
            Reading("\n".join(texts), "\n".join(plain), prompt, d, how)
            for texts, d in zip(zip(*lines, strict=True), several, strict=True)
        ]


@overload
def patchscope(
    lens: Lens, directions: Direction, reader: Reader | None = ..., *, alpha: float = ...
) -> Reading: ...


@overload
def patchscope(
    lens: Lens, directions: Sequence[Direction], reader: Reader | None = ..., *, alpha: float = ...
) -> list[Reading]: ...


def patchscope(
    lens: Lens,
    directions: Direction | Sequence[Direction],
    reader: Reader | None = None,
    *,
    alpha: float = 3.0,
) -> Reading | list[Reading]:
    """Read directions as text.

    Args:
        lens: the model.
        directions: one, or several that are read in few batches.
        reader: how; by default the paper's activation addition at "What does ♦ represent?",
            :class:`rolelens.patchscoping.Addition`.
        alpha: raw strength of that addition.

    Raises:
        InputError: there are no directions, or they were measured on another model.
    """
    readings = (reader or Addition(alpha)).read(
        lens, [directions] if isinstance(directions, Direction) else directions
    )
    return readings[0] if isinstance(directions, Direction) else readings


def checked(lens: Lens, directions: Sequence[Direction]) -> list[Direction]:
    """Directions of this model, at least one."""
    several = list(directions)
    if not several:
        raise InputError("there are no directions to read; pass at least one.")
    for direction in several:
        check_sources(direction.source, lens.source)
    return several


def _layers(lens: Lens, layer: int | None, directions: Sequence[Direction]) -> list[int]:
    if layer is not None and not 0 <= layer < lens.n_layers:
        raise InputError(f"layer is {layer}; {lens.name} has layers 0 to {lens.n_layers - 1}.")
    return [direction.layer if layer is None else layer for direction in directions]


def _replacements(
    directions: Sequence[Direction], layers: Sequence[int], tokens: Sequence[int]
) -> list[Steering]:
    """Each direction in place of some tokens; zero directions replace nothing."""
    return [
        replace(d, layers=[layer], tokens=tokens) if d.norm else Steering()
        for d, layer in zip(directions, layers, strict=True)
    ]
