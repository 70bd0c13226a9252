"""Named directions over layers and positions: one type for roles, answers and traits."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unique, unknown
from rolelens.vectors.direction import (
    RESID_PRE,
    Direction,
    Null,
    Source,
    check_finite,
    check_sources,
    position_text,
)
from rolelens.vectors.files import reading, write_tensors


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Shown):
    """Named directions over layers, and over positions where there are any.

    ``vectors["mathematician"].at(layer=12, position=-1)`` is one :class:`Direction`, and
    ``"mathematician" in vectors`` says whether there is one of that name. Nulls are names like any
    other; :attr:`nulls` says which they are.

    Attributes:
        directions: raw directions in units of the residual stream, float32 (for roles mu - nu,
            2502.12055 eq. 1-2).
        names: names along the first axis, each once.
        layers: layers along the second axis, each once.
        positions: positions along the third axis, counted from the end of the prompt; ``(None,)``
            where the directions belong to no position of the prompt.
        resid_norm: mean norm of the residual stream that the directions were measured against.
        source: what they were measured on.
        prompts: for each name, and for ``"base"``, how many prompts and their hash.
        site: where in the block they live.
        contrast: what was subtracted from what.
        kind: what the names are, such as ``"role"`` or ``"answer"``.
        nulls: for each name that is a null, what it imitates and how it was made.
        foretold: what predicts that directions will steer, by the hash of a name's directions, so
            that it is lost where they change: rows of :meth:`steerability`.

    Raises:
        InputError: axes that do not fit the tensors, an empty axis, a name, layer or position
            twice, a null that is no name, or numbers that are not finite.
    """

    directions: Float[Tensor, "name layer position d_model"]
    names: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int | None, ...]
    resid_norm: Float[Tensor, "layer position"]
    source: Source | None = None
    prompts: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    site: str = RESID_PRE
    contrast: str = "role prompts - base prompts"
    kind: str = "role"
    nulls: Mapping[str, Null] = field(default_factory=dict)
    foretold: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        axes = (len(self.names), len(self.layers), len(self.positions))
        if tuple(self.directions.shape[:3]) != axes:
            raise InputError(
                f"directions of shape {tuple(self.directions.shape)} do not fit {axes[0]} names, "
                f"{axes[1]} layers and {axes[2]} positions; pass as many of each as the tensor has."
            )
        if tuple(self.resid_norm.shape) != axes[1:]:
            raise InputError(
                f"a resid_norm of shape {tuple(self.resid_norm.shape)} does not fit {axes[1]} "
                f"layers and {axes[2]} positions; pass one number a layer and position."
            )
        for axis, values in (
            ("name", self.names),
            ("layer", self.layers),
            ("position", self.positions),
        ):
            if not values:
                raise InputError(f"these directions have no {axis}; pass at least one.")
            unique(axis, values)
        for name in self.nulls:
            if name not in self.names:
                raise unknown(self.kind, name, self.names)
        check_finite("the norms of the residual stream", self.resid_norm)
        check_finite(f"the directions of {', '.join(self.names[:4])}", self.directions)

    @property
    def d_model(self) -> int:
        """Width of the directions."""
        return self.directions.shape[-1]

    @property
    def last_position(self) -> int | None:
        """The position that is meant where none is named: the one nearest to the prompt's end."""
        return max((p for p in self.positions if p is not None), default=None)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, names: str | Sequence[str]) -> "Directions":
        """The directions of one name, or of several."""
        chosen = (names,) if isinstance(names, str) else tuple(names)
        for name in chosen:
            if name not in self.names:
                raise unknown(self.kind, name, self.names)
        index = [self.names.index(name) for name in chosen]
        nulls = {name: null for name, null in self.nulls.items() if name in chosen}
        return dataclasses.replace(
            self, directions=self.directions[index], names=chosen, nulls=nulls
        )

    def at(self, layer: int, position: int | None = None) -> Direction:
        """One direction of the only name.

        Raises:
            InputError: there are several names, or no such layer or position.
        """
        if len(self.names) != 1:
            raise InputError(
                f"these are the directions of {len(self.names)} names; take one first, as in "
                f"vectors[{self.names[0]!r}].at(...)."
            )
        return self.direction(self.names[0], layer, position)

    def direction(self, name: str, layer: int, position: int | None = None) -> Direction:
        """One direction.

        Args:
            name: whose.
            layer: of which layer.
            position: of which position; :attr:`last_position` by default.

        Raises:
            InputError: an unknown name, layer or position.
        """
        if name not in self.names:
            raise unknown(self.kind, name, self.names)
        if layer not in self.layers:
            raise unknown("layer", layer, self.layers)
        row, i, j = self.names.index(name), self.layers.index(layer), self.column(position)
        return Direction(
            vector=self.directions[row, i, j],
            layer=layer,
            position=self.positions[j],
            name=name,
            resid_norm=float(self.resid_norm[i, j]),
            site=self.site,
            source=self.source,
            null=self.nulls.get(name),
        )

    def column(self, position: int | None = None) -> int:
        """Where a position stands along the third axis; :attr:`last_position` by default.

        Raises:
            InputError: an unknown position.
        """
        position = self.last_position if position is None else position
        if position not in self.positions:
            raise unknown("position", position, self.positions)
        return self.positions.index(position)

    def __iter__(self) -> Iterator[Direction]:
        """Every direction, by name, layer and position."""
        return (
            self.direction(name, layer, position)
            for name in self.names
            for layer in self.layers
            for position in self.positions
        )

    def __add__(self, other: "Directions") -> "Directions":
        aligned = self._aligned(other)
        return dataclasses.replace(self, directions=self.directions + aligned)

    def __sub__(self, other: "Directions") -> "Directions":
        aligned = self._aligned(other)
        return dataclasses.replace(self, directions=self.directions - aligned)

    @property
    def sha(self) -> str:
        """Hash of the directions and of what they are called."""
        names = repr((self.names, self.layers, self.positions, self.site))
        directions = self.directions.contiguous().numpy().tobytes()
        return hashlib.sha256(names.encode() + directions).hexdigest()[:16]

    @property
    def controls(self) -> "Directions | None":
        """The nulls among the names; None where there are none."""
        chosen = [name for name in self.names if name in self.nulls]
        return self[chosen] if chosen else None

    @property
    def tried(self) -> tuple[str, ...]:
        """The names that are no nulls."""
        return tuple(name for name in self.names if name not in self.nulls)

    def mean(self) -> "Directions":
        """What all names share: their mean, as one name ``"mean"``."""
        shared = self.directions.double().mean(dim=0, keepdim=True).float()
        return dataclasses.replace(self, directions=shared, names=("mean",), nulls={})

    def normalise(self) -> "Directions":
        """Every direction with norm 1; zero directions stay zero."""
        norm = self.directions.double().norm(dim=-1, keepdim=True)
        unit = torch.where(norm > 0, self.directions / norm.clamp(min=1e-300), 0.0)
        return dataclasses.replace(self, directions=unit.float())

    def project_out(self, other: "Directions") -> "Directions":
        """Remove from every direction its component along ``other`` (one name) in the same cell."""
        if len(other.names) != 1:
            raise InputError(
                f"project_out takes the directions of one name, not of {len(other.names)}."
            )
        self._check(other)
        unit = other.normalise().directions.double()
        d = self.directions.double()
        along = (d * unit).sum(dim=-1, keepdim=True)
        return dataclasses.replace(self, directions=(d - along * unit).float())

    def cosines(self, layer: int, position: int | None = None) -> Float[Tensor, "name name"]:
        """Cosine similarity of every two names in one cell; 0 where a direction is zero."""
        vectors = [self.direction(name, layer, position).vector for name in self.names]
        unit = torch.nn.functional.normalize(torch.stack(vectors).double(), dim=-1, eps=1e-300)
        return (unit @ unit.T).float()

    def relative_norms(self) -> Float[Tensor, "name layer position"]:
        """Norm of each direction as a share of the mean norm of the residual stream there."""
        shares: Tensor = self.directions.norm(dim=-1) / self.resid_norm
        return shares

    def sha_of(self, name: str) -> str:
        """Hash of the directions of one name."""
        own = self[name].directions
        return hashlib.sha256(own.contiguous().numpy().tobytes()).hexdigest()[:16]

    def steerability(self) -> pd.DataFrame:
        """What predicts that these directions will steer, measured with them.

        Directions whose single differences agree, and along which the two sides lie apart, steer
        more reliably (2505.22637, 2407.12404). At the last position; over 32 prompts or answers of
        a side at most.

        Returns:
            A row a name and layer: ``name``, ``layer``, ``agreement``, the mean cosine of one
            difference from the mean of the other side with the mean of the others; ``auroc`` of
            prompts that the direction was made without; and ``discriminability``, the distance of
            the sides in their pooled standard deviation. Names that were computed and not measured
            have no rows.
        """
        columns = ["name", "layer", "agreement", "auroc", "discriminability"]
        rows = [
            {"name": name, **row}
            for name in self.names
            for row in self.foretold.get(self.sha_of(name), ())
        ]
        return pd.DataFrame(rows, columns=columns).astype({"layer": int})

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, with the whole provenance in its header; returns the path.

        Raises:
            InputError: the file cannot be written.
        """
        header = {
            "names": self.names,
            "layers": self.layers,
            "positions": self.positions,
            "site": self.site,
            "contrast": self.contrast,
            "kind": self.kind,
            "nulls": {name: dataclasses.asdict(null) for name, null in self.nulls.items()},
            "prompts": dict(self.prompts),
            "source": dataclasses.asdict(self.source) if self.source else None,
            "foretold": {
                sha: list(map(dict, self.foretold[sha]))
                for sha in map(self.sha_of, self.names if self.foretold else ())
                if sha in self.foretold
            },
        }
        tensors = {"directions": self.directions, "resid_norm": self.resid_norm}
        return write_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Read what :meth:`save` wrote, bit for bit; files of version 0.1 are read, too.

        Raises:
            InputError: there is no such file, it does not hold directions, or its numbers are not
                those that were saved.
        """
        with reading(Path(path), "directions") as (header, tensors):
            names = tuple(header["names"] if "names" in header else header["roles"])
            if "nulls" in header:
                nulls = {name: Null(**null) for name, null in header["nulls"].items()}
            else:  # version 0.1 told nulls by their names
                known = {name: Null.of_version_01(name) for name in names}
                nulls = {name: null for name, null in known.items() if null is not None}
            return cls(
                directions=tensors["directions"],
                names=names,
                layers=tuple(header["layers"]),
                positions=tuple(header["positions"]),
                resid_norm=tensors["resid_norm"],
                source=Source(**header["source"]) if header["source"] else None,
                prompts={name: (count, sha) for name, (count, sha) in header["prompts"].items()},
                site=header["site"],
                contrast=header["contrast"],
                kind=header.get("kind", "role"),
                nulls=nulls,
                foretold=header.get("foretold", {}),
            )

    def card(self) -> Card:
        """Names, grid, and where the directions come from."""
        facts = {
            f"{self.kind}s": ", ".join(self.tried[:4]) + (", ..." if self.tried[4:] else ""),
            "directions": " x ".join(map(str, self.directions.shape))
            + " (name, layer, position, d_model)",
            "layers": f"{self.layers[0]} to {self.layers[-1]}",
            "positions": " to ".join(
                map(position_text, dict.fromkeys((self.positions[0], self.positions[-1])))
            ),
            "contrast": self.contrast,
        }
        if self.nulls:
            facts["nulls"] = str(len(self.nulls))
        predicted = self.steerability()
        if not predicted.empty:
            medians = predicted.groupby("layer")[["agreement", "auroc"]].median().dropna()
            facts["single differences agree"] = _span(medians["agreement"], "mean cosine")
            facts["sides lie apart"] = _span(medians["auroc"], "held-out AUROC")
        return Card("Directions", facts, f"vectors[{self.names[0]!r}].at(layer, position)")

    def _aligned(self, other: "Directions") -> Float[Tensor, "name layer position d_model"]:
        """The directions of another set in the order of these names; of one name, for all."""
        self._check(other)
        if len(other.names) == 1:
            return other.directions
        if set(other.names) != set(self.names):
            unmatched = sorted(set(self.names) ^ set(other.names))
            raise InputError(
                "these directions do not combine name by name: only one of the two sets has "
                f"{', '.join(map(repr, unmatched[:6]))}; take the same names of both, or one name."
            )
        return other[list(self.names)].directions

    def _check(self, other: "Directions") -> None:
        if (self.layers, self.positions, self.site, self.d_model) != (
            other.layers,
            other.positions,
            other.site,
            other.d_model,
        ):
            raise InputError(
                "these directions do not combine: layers, positions, site and width have to be "
                "the same."
            )
        check_sources(self.source, other.source)


def _span(values: "pd.Series[float]", what: str) -> str:
    """From the lowest to the highest layer's number."""
    return f"{values.min():.2f} to {values.max():.2f} by layer ({what}, median over names)"


def concat(*vectors: Directions) -> Directions:
    """Put the names of several sets together, such as those of roles and of nulls.

    The residual norm and the kind are those of the first; what is known of the prompts is merged.

    Raises:
        InputError: nothing was passed, layers, positions, site, width or source differ, a name
            comes twice, or one name stands for different prompts.
    """
    if not vectors:
        raise InputError("no directions to put together; pass at least one set.")
    for one, other in itertools.combinations(vectors, 2):
        one._check(other)
    names = [name for one in vectors for name in one.names]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"the name {name!r} comes {names.count(name)} times; take each name once, or rename"
                " one with dataclasses.replace(vectors, names=...)."
            )
    prompts: dict[str, tuple[int, str]] = {}
    for name, counted in (item for one in vectors for item in one.prompts.items()):
        if prompts.setdefault(name, counted) != counted:
            raise InputError(
                f"{name!r} stands for different prompts ({prompts[name]} and {counted}, as number "
                "and hash) in vectors that are put together; measure them on the same prompts."
            )
    return dataclasses.replace(
        vectors[0],
        directions=torch.cat([one.directions for one in vectors]),
        names=tuple(names),
        prompts=prompts,
        contrast="; ".join(dict.fromkeys(one.contrast for one in vectors)),
        nulls={name: null for one in vectors for name, null in one.nulls.items()},
        foretold={sha: rows for one in vectors for sha, rows in one.foretold.items()},
    )
