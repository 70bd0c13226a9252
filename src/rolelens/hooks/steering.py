"""Steering: what is done to a model, as a value that is a list of hooks."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Int
from torch import Tensor

from rolelens import forward
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.forward import Condition, Hook, Operation, Selection
from rolelens.hooks.steps import Step
from rolelens.lens import Lens
from rolelens.vectors import Direction, Source, check_sources
from rolelens.vectors.files import reading, write_tensors


class Steering(Sequence[Hook], Shown):
    """What is done to a model: an immutable list of ``(hook_name, function)`` that knows its steps.

    Made by :func:`rolelens.add`, :func:`rolelens.ablate`, :func:`rolelens.clamp` and others, joined
    with ``+`` (steps act in that order where they meet), compared and hashed by what it does. An
    empty one does nothing.

    Attributes:
        steps: what is done.
    """

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self.steps = tuple(steps)
        for direction in self.directions:
            check_sources(self.steps[0].direction.source, direction.source)

    @cached_property
    def _hooks(self) -> tuple[Hook, ...]:
        return tuple(forward.Edit([self.operations]).hooks(torch.tensor([0])))

    @overload
    def __getitem__(self, index: int) -> Hook: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Hook, ...]: ...

    def __getitem__(self, index: int | slice) -> Hook | tuple[Hook, ...]:
        return self._hooks[index]

    def __len__(self) -> int:
        return len(self._hooks)

    def __add__(self, other: Sequence[Hook]) -> Any:
        if isinstance(other, Steering):
            return Steering((*self.steps, *other.steps))
        return [*self, *other] if isinstance(other, Sequence) else NotImplemented

    def __radd__(self, other: Sequence[Hook]) -> list[Hook]:
        return [*other, *self]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steering) and self.sha == other.sha

    def __hash__(self) -> int:
        return hash(self.sha)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The steps that change anything, as batches run them."""
        return tuple(step.operation for step in self.steps if not step.is_zero)

    @property
    def is_zero(self) -> bool:
        """Whether nothing is done: no steps, zero directions or zero strengths."""
        return all(step.is_zero for step in self.steps)

    @property
    def name(self) -> str:
        """The names of its directions."""
        return " + ".join(dict.fromkeys(step.direction.name for step in self.steps)) or "nothing"

    @property
    def layer(self) -> int:
        """The lowest layer it acts in; 0 where nothing is done."""
        return min((layer for op in self.operations for layer, _ in op.points), default=0)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions of its steps, those of planes and conditions included."""
        return tuple(direction for step in self.steps for direction in step.directions)

    @property
    def selections(self) -> tuple[Selection, ...]:
        """The selections of tokens it acts on."""
        return tuple(dict.fromkeys(op.tokens for op in self.operations))

    @cached_property
    def sha(self) -> str:
        """Hash of everything that is done."""
        content = json.dumps([step.to_dict() for step in self.steps], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def check(self, source: Source, n_layers: int) -> None:
        """Refuse what was measured on another model, or acts in a layer that there is not.

        Raises:
            InputError: it does.
        """
        for direction in self.directions:
            check_sources(direction.source, source)
        for step in self.steps:
            read = (step.condition.direction.layer,) if step.condition else ()
            for layer in (*step.layers, *read):
                if layer not in range(n_layers):
                    raise unknown("layer", layer, range(n_layers))

    def when(
        self, direction: Direction, *, above: float | None = None, below: float | None = None
    ) -> "Steering":
        """The same, done to some prompts only (conditional steering, 2409.05907).

        A prompt is steered where the projection x · d̂ at its last token, at the layer and site of
        d and as the model reads it unsteered, lies within the bounds. Each prompt of a batch is
        decided for itself, and stays decided while its answer is generated, with a KV cache and
        without. Calls of a Lens decide it, in one pass over the prompts; raw TransformerLens, which
        does not know where prompts end, is refused.

        Args:
            direction: d, such as one that tells harmful requests from others.
            above: the projection has to be greater, in units of the residual stream, such as a
                percentile of ordinary prompts from :func:`rolelens.thresholds` with
                ``tokens="last"``.
            below: the projection has to be less.

        Raises:
            InputError: there is no bound, or no number between the two; a step has a condition
                already; the direction is zero or was measured on another model.
        """
        if not isinstance(direction, Direction):
            raise InputError(
                f"a {type(direction).__name__} cannot be a condition; take one direction of it, as "
                "in vectors['lawyer'].at(layer=12, position=-1)."
            )
        bounds = [bound for bound in (above, below) if bound is not None]
        if not bounds or not all(map(math.isfinite, bounds)):
            raise InputError(
                f"above is {above!r} and below is {below!r}; pass one of them or both, as finite "
                "projections such as above=2.5."
            )
        if above is not None and below is not None and above >= below:
            raise InputError(
                f"above is {above:g} and below is {below:g}, and nothing lies between; leave one of"
                " them out."
            )
        if any(step.condition for step in self.steps):
            raise InputError(
                "this steering has a condition already; set each condition on a part, and join "
                "them with +."
            )
        _ = direction.unit  # a zero direction is refused
        condition = Condition(direction, above, below)
        return Steering(dataclasses.replace(step, condition=condition) for step in self.steps)

    def with_directions(self, change: Callable[[Step], Step]) -> "Steering":
        """The same with every step changed, such as for nulls in its place."""
        return Steering(change(step) for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The steps, JSON-able; directions by their names, norms and hashes."""
        return {"steps": [step.to_dict() for step in self.steps]}

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with the directions and all that is done; returns the path.

        Raises:
            InputError: the file cannot be written.
        """
        vectors = {direction.sha: direction.vector for direction in self.directions}
        return write_tensors(Path(path), vectors, {"steering": self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> "Steering":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, it does not hold a steering, or its numbers are not
                those that were saved.
        """
        with reading(Path(path), "a steering") as (header, tensors):
            return cls.from_dict(header["steering"], tensors)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> "Steering":
        """What :meth:`to_dict` told, with the vectors of its directions by their hashes."""
        return cls(Step.from_dict(step, vectors) for step in content["steps"])

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps)) or "nothing"

    def card(self) -> Card:
        """The steps."""
        facts = {f"step {n}": str(step) for n, step in enumerate(self.steps, 1)}
        return Card("Steering", facts or {"steps": "none"}, "lens.generate([...], hooks=steering)")


class ByRow:
    """Another steering for every prompt; what :func:`by_row` gives.

    Attributes:
        steerings: one a prompt.
        selections: the selections of tokens that they act on.
        n: how many there are.
        layer: the lowest layer that any of them edits.
    """

    def __init__(self, steerings: Sequence[Steering]) -> None:
        self.steerings = tuple(steerings)
        self.n = len(self.steerings)
        distinct = {steering.sha: steering for steering in self.steerings}
        place = {sha: n for n, sha in enumerate(distinct)}
        self._edit = forward.Edit([steering.operations for steering in distinct.values()])
        self._cells = torch.tensor([place[steering.sha] for steering in self.steerings])
        self.selections, self.layer = self._edit.selections, self._edit.layer

    def labels(self, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Rows of the same label are steered alike."""
        return self._cells[rows]

    def __call__(self, rows: Int[Tensor, " row"]) -> list[Hook]:
        """The hook list of some rows."""
        return self._edit.hooks(self._cells[rows])


def by_row(steerings: Sequence[Steering]) -> ByRow:
    """Steer every prompt in its own way, in one batch.

    Args:
        steerings: one for each prompt; ``rl.Steering()`` leaves a prompt alone.

    Returns:
        What the ``hooks=`` of a Lens takes.

    Raises:
        InputError: there are none, or something else is among them.
    """
    if not len(steerings):
        raise InputError("there are no steerings; pass one for each prompt.")
    for steering in steerings:
        if not isinstance(steering, Steering):
            raise InputError(
                f"a {type(steering).__name__} is among the steerings; pass what rl.add, rl.ablate "
                "or their sum gives."
            )
        check_sources(_source(steerings[0]), _source(steering))
    return ByRow(steerings)


def installed(lens: Lens) -> list[str]:
    """What is installed on the model of a lens, in words; numbers depend on it.

    Raises:
        InputError: hooks that rolelens did not install, which it cannot describe.
    """
    known = forward.installed(lens.model)
    for hooks in known:
        if not isinstance(hooks, Steering):
            raise InputError(
                "lens.steered holds plain hooks, of which nothing is known that a file could "
                "record; steer with rl.add and rl.ablate, or keep no store."
            )
    if forward.foreign_hooks(lens.model, known):
        raise InputError(
            "the model has hooks that rolelens did not install, of which nothing is known that a "
            "file could record; remove them (model.reset_hooks()), or keep no store."
        )
    return [f"{hooks} ({hooks.sha})" for hooks in known if isinstance(hooks, Steering)]


def _source(steering: Steering) -> Source | None:
    return next((step.direction.source for step in steering.steps), None)
