"""Steering: what is done to a model, as a value.

A :class:`Steering` knows its steps and is at the same time the list of ``(hook_name, function)``
that does them: it works in ``lens.generate(..., hooks=...)`` and in raw
``model.run_with_hooks(..., fwd_hooks=...)`` alike, and ``+`` joins two of them.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.display import Card, Shown
from rolelens.errors import InputError, listed, unique, unknown
from rolelens.forward import ABLATED, SITES, Hook, Operation, Selection
from rolelens.lens import Lens
from rolelens.vectors import Direction, Null, Source, check_sources
from rolelens.vectors.direction import RESID_PRE
from rolelens.vectors.files import reading, write_tensors

Unit: TypeAlias = Literal["raw", "resid_norm"]


@dataclass(frozen=True, eq=False)
class Step:
    """One change of the residual stream.

    Attributes:
        kind: ``add`` x + alpha d (2502.12055 eq. 3), ``ablate`` x - alpha d̂ (d̂ᵀ x) (eq. 4), or
            ``replace`` ‖x‖ d̂ (Patchscopes, 2401.06102).
        direction: d.
        alpha: strength: a factor on the raw direction, the norm of what is added as a share of the
            residual norm, or the share of the component that is removed.
        layers: the layers it acts in.
        tokens: the tokens it acts on.
        unit: what ``alpha`` of an addition means, ``raw`` or ``resid_norm``.
    """

    kind: forward.Kind
    direction: Direction
    alpha: float
    layers: tuple[int, ...]
    tokens: Selection = "all"
    unit: Unit = "raw"

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing, as at layer 0, where directions may be exactly zero."""
        return self.alpha == 0 or self.direction.norm == 0

    @property
    def points(self) -> tuple[forward.Point, ...]:
        """The hook points it acts at."""
        names = ABLATED if self.kind == "ablate" else (SITES[self.direction.site],)
        return tuple((layer, name) for layer in self.layers for name in names)

    @property
    def vector(self) -> Float[Tensor, " d"]:
        """What is added, or the direction of norm 1 that is removed or put in place."""
        if self.is_zero:
            return torch.zeros_like(self.direction.vector)
        if self.kind != "add":
            return self.direction.unit
        if self.unit == "raw":
            return self.direction.vector * self.alpha
        return self.direction.unit * (self.alpha * (self.direction.resid_norm or math.nan))

    @cached_property
    def operation(self) -> Operation:
        """The step as batches run it."""
        share = self.alpha if self.kind == "ablate" else 1.0
        return Operation(
            self.kind, self.vector, self.points, self.tokens, share, self.direction.source
        )

    def __str__(self) -> str:
        d = self.direction
        where = _ranges(self.layers)
        chosen = self.tokens if isinstance(self.tokens, str) else _ranges(self.tokens)
        measured = f"{d.name} of layer {d.layer}"
        if d.position is not None:
            measured += f", position {d.position}"
        amount = f"{self.alpha:g} x "
        if self.unit == "resid_norm":
            amount = f"{self.alpha:g} residual norms of "
        elif self.kind == "replace" or (self.kind == "ablate" and self.alpha == 1):
            amount = ""
        site = "" if d.site == RESID_PRE else f" at {d.site}"
        word = "layer" if len(self.layers) == 1 else "layers"
        return f"{self.kind} {amount}({measured}){site} in {word} {where}, tokens {chosen}"

    def to_dict(self) -> dict[str, Any]:
        """All of it but the numbers of the direction, JSON-able."""
        d = self.direction
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "unit": self.unit,
            "layers": list(self.layers),
            "tokens": self.tokens if isinstance(self.tokens, str) else list(self.tokens),
            "direction": {
                "name": d.name,
                "layer": d.layer,
                "position": d.position,
                "site": d.site,
                "norm": d.norm,
                "resid_norm": d.resid_norm,
                "sha": d.sha,
                "source": dataclasses.asdict(d.source) if d.source else None,
                "null": dataclasses.asdict(d.null) if d.null else None,
            },
        }


class Steering(Sequence[Hook], Shown):
    """What is done to a model: an immutable list of ``(hook_name, function)`` that knows its steps.

    Made by :func:`rolelens.add`, :func:`rolelens.ablate` and :func:`replace`, joined with ``+``
    (steps act in that order where they meet), compared and hashed by what it does. An empty one
    does nothing.

    Attributes:
        steps: what is done.
    """

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self.steps = tuple(steps)
        for step in self.steps[1:]:
            check_sources(self.steps[0].direction.source, step.direction.source)

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
        for step in self.steps:
            check_sources(step.direction.source, source)
            for layer in step.layers:
                if layer not in range(n_layers):
                    raise unknown("layer", layer, range(n_layers))

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
        vectors = {step.direction.sha: step.direction.vector for step in self.steps}
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
        return cls(_step(step, vectors[step["direction"]["sha"]]) for step in content["steps"])

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps)) or "nothing"

    def card(self) -> Card:
        """The steps."""
        facts = {f"step {n}": str(step) for n, step in enumerate(self.steps, 1)}
        return Card("Steering", facts or {"steps": "none"}, "lens.generate([...], hooks=steering)")


def add(
    direction: Direction,
    alpha: float = 1.0,
    *,
    unit: Unit = "raw",
    layers: Sequence[int] | None = None,
    tokens: Selection = "all",
) -> Steering:
    """Activation addition: x <- x + alpha d (2502.12055 eq. 3).

    Args:
        direction: what is added.
        alpha: strength. With ``unit="raw"`` a factor on the raw direction; with
            ``unit="resid_norm"`` the norm of what is added, as a share of the mean norm of the
            residual stream that the direction was measured against.
        unit: see ``alpha``.
        layers: where it is added; at the layer of d by default.
        tokens: which tokens; anything but ``"all"`` works inside calls of a Lens only, which know
            where each token stands.

    Raises:
        InputError: ``alpha`` is not a finite number, ``unit`` or ``tokens`` is unknown, a layer is
            named twice, or the residual norm is not known there.
    """
    _checked_direction(direction, "added")
    if unit not in ("raw", "resid_norm"):
        raise InputError(f"unit is {unit!r}; it has to be 'raw' or 'resid_norm'.")
    chosen = _layers(layers, (direction.layer,))
    if unit == "resid_norm":
        if direction.resid_norm is None:
            raise InputError(
                f"the direction of {direction.name!r} does not know the norm of the residual "
                "stream; take it from rl.role_vectors, or use unit='raw'."
            )
        if chosen != (direction.layer,):
            raise InputError(
                f"the norm of the residual stream is known at layer {direction.layer} alone, and "
                f"layers is {list(chosen)}; use unit='raw', or add a direction of each layer."
            )
    step = Step("add", direction, _finite(alpha), chosen, forward.checked_selection(tokens), unit)
    return Steering([step])


def ablate(
    direction: Direction,
    lens: Lens,
    *,
    layers: Sequence[int] | None = None,
    tokens: Selection = "all",
    share: float = 1.0,
) -> Steering:
    """Directional ablation: x <- x - share d̂ (d̂ᵀ x) (2502.12055 eq. 4).

    What enters a block and what attention and MLP add to the residual stream lose their component
    along d. At every layer, as by default, the stream so stays orthogonal to it.

    Args:
        direction: what is removed; its layer does not matter.
        lens: the model it is removed from.
        layers: where; everywhere by default.
        tokens: which tokens.
        share: how much of the component is removed.

    Raises:
        InputError: the direction is zero, lives elsewhere than in the residual stream, or was
            measured on another model; an unknown layer.
    """
    _checked_direction(direction, "ablated")
    check_sources(direction.source, lens.source)
    _in_residual_stream(direction, "be ablated from the residual stream")
    _ = direction.unit  # a zero direction is refused
    everywhere = tuple(range(lens.n_layers))
    chosen = _layers(layers, everywhere)
    for layer in chosen:
        if layer not in everywhere:
            raise unknown("layer", layer, everywhere)
    tokens = forward.checked_selection(tokens)
    return Steering([Step("ablate", direction, _finite(share, "share"), chosen, tokens)])


def replace(
    direction: Direction, *, layers: Sequence[int] | None = None, tokens: Selection
) -> Steering:
    """Put a direction in the place of the residual stream: x <- ‖x‖ d̂ (Patchscopes, 2401.06102).

    Args:
        direction: what is put there, with the norm of what it replaces at each token.
        layers: the block whose input is replaced; that of the direction by default.
        tokens: which tokens.

    Raises:
        InputError: the direction is zero, or lives elsewhere than in the residual stream.
    """
    _checked_direction(direction, "put in place of the residual stream")
    _in_residual_stream(direction, "stand in the residual stream's place")
    _ = direction.unit
    chosen = _layers(layers, (direction.layer,))
    return Steering([Step("replace", direction, 1.0, chosen, forward.checked_selection(tokens))])


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


def _step(content: dict[str, Any], vector: Tensor) -> Step:
    known = content["direction"]
    direction = Direction(
        vector,
        known["layer"],
        known["position"],
        known["name"],
        known["resid_norm"],
        known["site"],
        Source(**known["source"]) if known["source"] else None,
        Null(**known["null"]) if known["null"] else None,
    )
    tokens: Any = content["tokens"]
    if not isinstance(tokens, str):
        tokens = tuple(tokens)
    return Step(
        content["kind"],
        direction,
        content["alpha"],
        tuple(content["layers"]),
        tokens,
        content["unit"],
    )


def _checked_direction(direction: Any, done: str) -> None:
    if not isinstance(direction, Direction):
        raise InputError(
            f"a {type(direction).__name__} cannot be {done}; take one direction of it, as in "
            "vectors['lawyer'].at(layer=12, position=-1)."
        )
    if direction.site not in SITES:
        raise unknown("site", direction.site, SITES)


def _in_residual_stream(direction: Direction, what: str) -> None:
    if direction.site != RESID_PRE:
        raise InputError(
            f"a direction at {direction.site!r} cannot {what}; take one of the residual stream."
        )


def _layers(layers: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if layers is None:
        return default
    chosen = listed("layers", layers)
    unique("layer", chosen)
    for layer in chosen:
        if not isinstance(layer, int) or layer < 0:
            raise InputError(f"a layer is {layer!r}; layers count from 0.")
    return tuple(sorted(chosen))


def _finite(value: Any, name: str = "alpha") -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}; it has to be a finite number such as 3.0.")
    return number


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in words: ``3, 5-7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
