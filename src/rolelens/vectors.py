"""Role vectors: difference-in-means directions, their algebra and their files.

Pure mathematics and storage: no model is known here.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rolelens.errors import InputError, unknown

RESID_PRE = "resid_pre"


@dataclass(frozen=True)
class Source:
    """What a direction was measured on: vectors from different sources are never mixed.

    Attributes:
        model: name of the model, as it was loaded.
        origin: where its weights come from, e.g. the dequantised file.
        model_class: the TransformerLens class.
        centred: whether the writing weights were centred (this changes the residual stream).
        dtype: dtype of the forward passes.
        template: hash of the chat template, or of the plain format.
        version: version of rolelens.
    """

    model: str
    origin: str
    model_class: str
    centred: bool
    dtype: str
    template: str
    version: str

    def differs(self, other: "Source") -> list[str]:
        """Name the fields that forbid mixing (the package version and class do not)."""
        return [
            f"{name} ({getattr(self, name)!r} and {getattr(other, name)!r})"
            for name in ("model", "origin", "centred", "template")
            if getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction in the residual stream: what a role adds at one layer and position.

    Attributes:
        vector: raw difference-in-means, not normalised (2502.12055 eq. 2).
        layer: the block whose input it was measured at.
        position: post-instruction position, counted from the end (-1 is the last); None for a
            combination of several.
        role: the role it stands for.
        resid_norm: mean norm of the residual stream of base prompts at this layer.
        site: where in the block it lives.
        source: what it was measured on.
    """

    vector: Float[Tensor, "d_model"]
    layer: int
    position: int | None = None
    role: str = "direction"
    resid_norm: float | None = None
    site: str = RESID_PRE
    source: Source | None = None

    @property
    def norm(self) -> float:
        """Euclidean norm, in units of the residual stream."""
        return float(self.vector.double().norm())

    @property
    def d_model(self) -> int:
        """Width of the vector."""
        return self.vector.shape[0]

    @property
    def unit(self) -> Float[Tensor, "d_model"]:
        """The vector divided by its norm.

        Raises:
            InputError: the direction is zero, so it points nowhere.
        """
        if self.norm == 0:
            raise InputError(
                f"the direction of {self.role!r} at layer {self.layer} is zero, so it has no unit "
                "vector; at layer 0 the post-instruction tokens are the same in every prompt: "
                "take a higher layer."
            )
        return (self.vector.double() / self.norm).to(self.vector.dtype)

    def cosine(self, other: "Direction") -> float:
        """Cosine similarity with another direction; 0 if either is zero."""
        self._check(other)
        norms = self.norm * other.norm
        return float(self.vector.double() @ other.vector.double()) / norms if norms else 0.0

    def normalise(self) -> "Direction":
        """The same direction with norm 1."""
        return dataclasses.replace(self, vector=self.unit)

    def project_out(self, *others: "Direction") -> "Direction":
        """Remove the components along the span of other directions."""
        for other in others:
            self._check(other)
        span = torch.stack([other.vector for other in others], dim=1).double()
        # Singular values below the float32 noise of the largest one carry no direction.
        basis, values, _ = torch.linalg.svd(span, full_matrices=False)
        basis = basis[:, values > 1e-6 * values.max().clamp(min=1e-300)]
        vector = self.vector.double()
        return dataclasses.replace(
            self, vector=(vector - basis @ (basis.T @ vector)).to(self.vector.dtype)
        )

    def random_like(self, seed: int = 0) -> "Direction":
        """A Gaussian direction with the same norm, as a control."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.d_model, generator=generator, dtype=torch.float64)
        vector = (noise * self.norm / noise.norm()).to(self.vector.dtype)
        return dataclasses.replace(self, vector=vector, role=f"random {seed}")

    def __add__(self, other: "Direction") -> "Direction":
        return self._combine(other, self.vector + other.vector, f"{self.role} + {other.role}")

    def __sub__(self, other: "Direction") -> "Direction":
        return self._combine(other, self.vector - other.vector, f"{self.role} - {other.role}")

    def __mul__(self, factor: float) -> "Direction":
        return dataclasses.replace(self, vector=self.vector * factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Direction":
        return self * -1.0

    def __repr__(self) -> str:
        position = "several" if self.position is None else self.position
        return (
            f"Direction({self.role!r}, layer {self.layer}, position {position}, "
            f"d_model {self.d_model}, norm {self.norm:.3g})"
        )

    def _combine(self, other: "Direction", vector: Tensor, role: str) -> "Direction":
        self._check(other)
        position = self.position if self.position == other.position else None
        return dataclasses.replace(self, vector=vector, position=position, role=role)

    def _check(self, other: "Direction") -> None:
        mine = (self.d_model, self.layer, self.site)
        theirs = (other.d_model, other.layer, other.site)
        for name, a, b in zip(("width", "layer", "site"), mine, theirs, strict=True):
            if a != b:
                raise InputError(f"directions of different {name} ({a} and {b}) do not combine.")
        check_sources(self.source, other.source)


def check_sources(a: Source | None, b: Source | None) -> None:
    """Refuse to mix what was measured on different models, centrings or chat templates."""
    if a is not None and b is not None and (differing := a.differs(b)):
        raise InputError("directions of different sources do not mix: " + ", ".join(differing))


def mean(directions: Sequence[Direction]) -> Direction:
    """Mean of directions of one layer."""
    if not directions:
        raise InputError("the mean of no directions was asked for; pass at least one.")
    total = directions[0]
    for direction in directions[1:]:
        total = total + direction
    return dataclasses.replace(total * (1 / len(directions)), role="mean")


class RunningMean:
    """Mean over the first axis of tensors that arrive in batches, accumulated in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    def add(self, batch: Tensor) -> None:
        """Take in ``[prompt, ...]``."""
        total = batch.double().sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        self.count += batch.shape[0]

    @property
    def mean(self) -> Tensor:
        """The mean so far, float64."""
        if self._sum is None:
            raise InputError("the mean of no prompts was asked for; pass at least one.")
        return self._sum / self.count


@dataclass(frozen=True, eq=False)
class RoleVectors:
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
    """

    directions: Float[Tensor, "role layer position d_model"]
    roles: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    resid_norm: Float[Tensor, "layer position"]
    source: Source | None = None
    prompts: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    site: str = RESID_PRE

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
        return self._direction(self.roles[0], layer, position)

    def _direction(self, role: str, layer: int, position: int) -> Direction:
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
            resid_norm=float(self.resid_norm[i].mean()),
            site=self.site,
            source=self.source,
        )

    def __iter__(self) -> Iterator[Direction]:
        """Every direction, by role, layer and position."""
        return (
            self._direction(role, layer, position)
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

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, with the whole provenance in its header; returns the path."""
        path = Path(path)
        header = {
            "roles": self.roles,
            "layers": self.layers,
            "positions": self.positions,
            "site": self.site,
            "prompts": dict(self.prompts),
            "source": dataclasses.asdict(self.source) if self.source else None,
        }
        tensors = {
            "directions": self.directions.contiguous(),
            "resid_norm": self.resid_norm.contiguous(),
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"rolelens": json.dumps(header)})
            partial.replace(path)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror or error}); name another path."
            ) from error
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
                directions = file.get_tensor("directions")
                resid_norm = file.get_tensor("resid_norm")
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{str(path)!r} does not hold role vectors ({type(error).__name__}: {error}); it "
                "is truncated or was not written by RoleVectors.save. Extract the vectors again."
            ) from error
        return cls(
            directions=directions,
            roles=tuple(header["roles"]),
            layers=tuple(header["layers"]),
            positions=tuple(header["positions"]),
            resid_norm=resid_norm,
            source=Source(**header["source"]) if header["source"] else None,
            prompts={name: (count, sha) for name, (count, sha) in header["prompts"].items()},
            site=header["site"],
        )

    def __repr__(self) -> str:
        n_roles = f"{len(self.roles)} roles" if len(self.roles) > 1 else repr(self.roles[0])
        return (
            f"RoleVectors({n_roles}, layers {self.layers[0]} to {self.layers[-1]}, "
            f"positions {self.positions[0]} to {self.positions[-1]}, d_model {self.d_model})"
        )

    def _check(self, other: "RoleVectors") -> None:
        if (self.layers, self.positions, self.site, self.d_model) != (
            other.layers,
            other.positions,
            other.site,
            other.d_model,
        ):
            raise InputError(
                f"{self!r} and {other!r} do not combine: layers, positions, site and width "
                "have to be the same."
            )
        check_sources(self.source, other.source)
