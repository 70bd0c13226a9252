"""The directions of several roles over layers and positions, and their files."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown, writing
from rolelens.vectors.direction import RESID_PRE, Direction, Source, check_sources


@dataclass(frozen=True, eq=False, repr=False)
class RoleVectors(Shown):
    """Difference-in-means directions of several roles, over layers and positions.

    ``vectors["mathematician"].at(layer=12, position=-1)`` is one :class:`Direction`.

    Attributes:
        directions: mu - nu, float32, raw (2502.12055 eq. 1-2).
        roles: names along the first axis.
        layers: layers along the second axis.
        positions: post-instruction positions along the third axis, counted from the end.
        resid_norm: mean norm of the residual stream of the base prompts.
        source: what they were measured on.
        prompts: for each role, and for ``"base"``, how many prompts and their hash.
        site: where in the block they live.
        contrast: what was subtracted from what.
    """

    directions: Float[Tensor, "role layer position d_model"]
    roles: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    resid_norm: Float[Tensor, "layer position"]
    source: Source | None = None
    prompts: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    site: str = RESID_PRE
    contrast: str = "role prompts - base prompts"

    def __post_init__(self) -> None:
        axes = (len(self.roles), len(self.layers), len(self.positions))
        if tuple(self.directions.shape[:3]) != axes:
            raise InputError(
                f"directions of shape {tuple(self.directions.shape)} do not fit {axes[0]} roles, "
                f"{axes[1]} layers and {axes[2]} positions."
            )

    @property
    def d_model(self) -> int:
        """Width of the vectors."""
        return self.directions.shape[-1]

    def __getitem__(self, roles: str | Sequence[str]) -> "RoleVectors":
        """The vectors of one role, or of several."""
        names = (roles,) if isinstance(roles, str) else tuple(roles)
        for name in names:
            if name not in self.roles:
                raise unknown("role", name, self.roles)
        index = [self.roles.index(name) for name in names]
        return dataclasses.replace(self, directions=self.directions[index], roles=names)

    def at(self, layer: int, position: int = -1) -> Direction:
        """One direction of the only role.

        Raises:
            InputError: there are several roles, or no such layer or position.
        """
        if len(self.roles) != 1:
            raise InputError(
                f"these are the vectors of {len(self.roles)} roles; take one first, as in "
                f"vectors[{self.roles[0]!r}].at(...)."
            )
        return self.direction(self.roles[0], layer, position)

    def direction(self, role: str, layer: int, position: int = -1) -> Direction:
        """One direction of one of the roles."""
        if role not in self.roles:
            raise unknown("role", role, self.roles)
        if layer not in self.layers:
            raise unknown("layer", layer, self.layers)
        if position not in self.positions:
            raise unknown("position", position, self.positions)
        r, i, j = self.roles.index(role), self.layers.index(layer), self.positions.index(position)
        return Direction(
            vector=self.directions[r, i, j],
            layer=layer,
            position=position,
            role=role,
            resid_norm=float(self.resid_norm[i, j]),
            site=self.site,
            source=self.source,
        )

    def __iter__(self) -> Iterator[Direction]:
        """Every direction, by role, layer and position."""
        return (
            self.direction(role, layer, position)
            for role in self.roles
            for layer in self.layers
            for position in self.positions
        )

    def __add__(self, other: "RoleVectors") -> "RoleVectors":
        self._check(other)
        return dataclasses.replace(self, directions=self.directions + other.directions)

    def __sub__(self, other: "RoleVectors") -> "RoleVectors":
        self._check(other)
        return dataclasses.replace(self, directions=self.directions - other.directions)

    @property
    def sha(self) -> str:
        """Hash of the directions and of what they are called."""
        names = repr((self.roles, self.layers, self.positions, self.site))
        directions = self.directions.contiguous().numpy().tobytes()
        return hashlib.sha256(names.encode() + directions).hexdigest()[:16]

    def mean(self) -> "RoleVectors":
        """What all roles share: their mean, as one role named ``"mean"``."""
        shared = self.directions.double().mean(dim=0, keepdim=True).float()
        return dataclasses.replace(self, directions=shared, roles=("mean",))

    def normalise(self) -> "RoleVectors":
        """Every direction with norm 1; zero directions stay zero."""
        norm = self.directions.double().norm(dim=-1, keepdim=True)
        unit = torch.where(norm > 0, self.directions / norm.clamp(min=1e-300), 0.0)
        return dataclasses.replace(self, directions=unit.float())

    def project_out(self, other: "RoleVectors") -> "RoleVectors":
        """Remove from every direction its component along ``other`` (one role) in the same cell."""
        if len(other.roles) != 1:
            raise InputError(f"project_out takes vectors of one role, not of {len(other.roles)}.")
        self._check(other)
        unit = other.normalise().directions.double()
        d = self.directions.double()
        along = (d * unit).sum(dim=-1, keepdim=True)
        return dataclasses.replace(self, directions=(d - along * unit).float())

    def cosines(self, layer: int, position: int = -1) -> Float[Tensor, "role role"]:
        """Cosine similarity of every two roles in one cell; 0 where a direction is zero."""
        rows = [self.direction(role, layer, position).vector for role in self.roles]
        unit = torch.nn.functional.normalize(torch.stack(rows).double(), dim=-1)
        return (unit @ unit.T).float()

    def relative_norms(self) -> Float[Tensor, "role layer position"]:
        """Norm of each direction as a share of the mean norm of the residual stream there."""
        shares: Tensor = self.directions.norm(dim=-1) / self.resid_norm
        return shares

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, with the whole provenance in its header; returns the path."""
        path = Path(path)
        header = {
            "roles": self.roles,
            "layers": self.layers,
            "positions": self.positions,
            "site": self.site,
            "contrast": self.contrast,
            "prompts": dict(self.prompts),
            "source": dataclasses.asdict(self.source) if self.source else None,
        }
        tensors = {
            "directions": self.directions.contiguous(),
            "resid_norm": self.resid_norm.contiguous(),
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with writing(path):
                save_file(tensors, partial, metadata={"rolelens": json.dumps(header)})
                partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "RoleVectors":
        """Read vectors written by :meth:`save`, bit for bit.

        Raises:
            InputError: there is no such file, or it does not hold role vectors.
        """
        if not Path(path).is_file():
            raise InputError(f"no file {str(path)!r} with role vectors; check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["rolelens"])
                return cls._from_file(
                    header, file.get_tensor("directions"), file.get_tensor("resid_norm")
                )
        except InputError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{str(path)!r} does not hold role vectors ({type(error).__name__}: {error}); it "
                "is truncated or was not written by RoleVectors.save. Extract the vectors again."
            ) from error

    @classmethod
    def _from_file(
        cls, header: dict[str, Any], directions: Tensor, resid_norm: Tensor
    ) -> "RoleVectors":
        return cls(
            directions=directions,
            roles=tuple(header["roles"]),
            layers=tuple(header["layers"]),
            positions=tuple(header["positions"]),
            resid_norm=resid_norm,
            source=Source(**header["source"]) if header["source"] else None,
            prompts={name: (count, sha) for name, (count, sha) in header["prompts"].items()},
            site=header["site"],
            contrast=header["contrast"],
        )

    def card(self) -> Card:
        """Roles, grid, and how large the directions are."""
        shares = self.relative_norms()
        facts = {
            "roles": ", ".join(self.roles[:4]) + (", ..." if len(self.roles) > 4 else ""),
            "directions": " x ".join(map(str, self.directions.shape))
            + " (role, layer, position, d_model)",
            "layers": f"{self.layers[0]} to {self.layers[-1]}",
            "positions": f"{self.positions[0]} to {self.positions[-1]}",
            "median norm": f"{float(shares.median()):.3f} of the residual stream",
        }
        return Card("RoleVectors", facts, f"vectors[{self.roles[0]!r}].at(layer, position)")

    def _check(self, other: "RoleVectors") -> None:
        if (self.layers, self.positions, self.site, self.d_model) != (
            other.layers,
            other.positions,
            other.site,
            other.d_model,
        ):
            raise InputError(
                "these role vectors do not combine: layers, positions, site and width have to be "
                "the same."
            )
        check_sources(self.source, other.source)


def concat(*vectors: RoleVectors) -> RoleVectors:
    """Put the roles of several together, e.g. those of roles and of nulls.

    The residual norm is that of the first; what is known of the prompts is merged.

    Raises:
        InputError: nothing was passed, layers, positions, site, width or source differ, a role
            comes twice, or one name stands for different prompts.
    """
    if not vectors:
        raise InputError("no role vectors to put together; pass at least one.")
    for one, other in itertools.combinations(vectors, 2):
        one._check(other)
    roles = [role for one in vectors for role in one.roles]
    for role in roles:
        if roles.count(role) > 1:
            raise InputError(
                f"the role {role!r} comes {roles.count(role)} times; take each role once, or rename"
                " one with dataclasses.replace(vectors, roles=...)."
            )
    prompts: dict[str, tuple[int, str]] = {}
    for name, found in (item for one in vectors for item in one.prompts.items()):
        if prompts.setdefault(name, found) != found:
            raise InputError(
                f"{name!r} stands for different prompts ({prompts[name]} and {found}, as number and"
                " hash) in vectors that are put together; measure them on the same prompts."
            )
    return dataclasses.replace(
        vectors[0],
        directions=torch.cat([one.directions for one in vectors]),
        roles=tuple(roles),
        prompts=prompts,
        contrast="; ".join(dict.fromkeys(one.contrast for one in vectors)),
    )
