"""The space that roles span: components, the assistant axis, neighbours, and what is chance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.personas.extraction import AnswerVectors
from rolelens.stats import null_rank
from rolelens.vectors import Direction, Directions, Source
from rolelens.vectors.files import reading, write_tensors

DRAWS = 20
"""Shuffles of each coordinate over the roles, for what components of noise explain."""
AXIS = "assistant axis"


@dataclass(frozen=True, eq=False, repr=False)
class PersonaSpace(Shown):
    """Roles as points around the model as itself; from :func:`persona_space`.

    Attributes:
        vectors: of each role, its mean minus that of the default.
        halves: the same from one half of the questions, and from the other.
    """

    vectors: Directions
    halves: tuple[Directions, Directions]

    def axis(self, layer: int) -> Direction:
        """The assistant axis: the default's mean minus the mean of the roles (2601.10387).

        Raises:
            InputError: an unknown layer.
        """
        d = self._points(layer).mean(dim=0)
        known = self.vectors.direction(self.vectors.names[0], layer)
        return Direction(
            -d.float(), layer, None, AXIS, known.resid_norm, self.vectors.site, self.vectors.source
        )

    def axis_table(self, layers: list[int] | None = None) -> pd.DataFrame:
        """The assistant axis beside its nulls, in which another role stands in for the default.

        Returns:
            A row a layer: ``norm`` as a share of the residual norm, and ``norm_p``, the share of
            all stand-ins, the default included, whose axis is as long; ``split_half``, the cosine
            of the axes of the two halves of the questions, beside ``split_half_null``, its median
            over the stand-ins; ``component_cosine``, that of the axis with the first component of
            the roles, in size, beside ``component_null`` and ``component_p`` in the same way.

        Raises:
            InputError: an unknown layer.
        """
        rows = []
        for layer in layers if layers is not None else self.vectors.layers:
            whole, *halves = (torch.cat([torch.zeros_like(x[:1]), x]) for x in self._all(layer))
            axes = _stand_in_axes(whole)
            one, other = (_stand_in_axes(half) for half in halves)
            split = torch.nn.functional.cosine_similarity(one, other, dim=-1)
            others = [torch.cat([whole[:n], whole[n + 1 :]]) for n in range(len(whole))]
            along = torch.stack(
                [_first_cosine(x, axis) for x, axis in zip(others, axes, strict=True)]
            )
            norms = axes.norm(dim=-1)
            column = self.vectors.layers.index(layer)
            rows.append(
                {
                    "layer": layer,
                    "norm": float(norms[0] / self.vectors.resid_norm[column, 0]),
                    "norm_p": null_rank(float(norms[0]), norms[1:].tolist()),
                    "split_half": float(split[0]),
                    "split_half_null": float(split[1:].median()),
                    "component_cosine": float(along[0]),
                    "component_null": float(along[1:].median()),
                    "component_p": null_rank(float(along[0]), along[1:].tolist()),
                }
            )
        return pd.DataFrame(rows)

    def components(self, layer: int, n: int = 10, *, seed: int = 0) -> pd.DataFrame:
        """Principal components of the roles at one layer, beside chance.

        Args:
            layer: which layer.
            n: how many components.
            seed: of the shuffles.

        Returns:
            A row a component: ``explained``, its share of the variance of the roles; ``held_out``,
            the share of the variance of the roles of one half of the questions that the component
            of the other half has; ``chance``, what the component of roles whose coordinates are
            shuffled explains (95 % quantile of 20 draws); and ``axis_cosine`` with the assistant
            axis.

        Raises:
            InputError: an unknown layer, or fewer than three roles.
        """
        whole, one, other = (_centred(x) for x in self._all(layer))
        n = min(n, len(whole) - 1)
        basis, shares = _basis(whole)
        halves = [_basis(half)[0][:n] for half in (one, other)]
        held = [
            (x @ half.T).square().sum(dim=0) / x.square().sum()
            for x, half in zip((other, one), halves, strict=True)
        ]
        rng = np.random.default_rng(seed)
        drawn = [
            _basis(_centred(torch.from_numpy(rng.permuted(whole.numpy(), axis=0))))[1][:n]
            for _ in range(DRAWS)
        ]
        chance = torch.quantile(torch.stack(drawn), 0.95, dim=0)
        unit = self.axis(layer).unit.double()
        return pd.DataFrame(
            {
                "component": range(1, n + 1),
                "explained": shares[:n].tolist(),
                "held_out": torch.stack(held).mean(dim=0).tolist(),
                "chance": chance.tolist(),
                "axis_cosine": (basis[:n] @ unit).tolist(),
            }
        )

    def map(self, layer: int, clusters: int = 6) -> pd.DataFrame:
        """Every role on the first two components, with what is near it.

        Args:
            layer: which layer.
            clusters: how many groups, by average linkage of cosine distances.

        Returns:
            A row a role, and one for the default: ``name``, ``x`` and ``y``, ``axis`` (the
            projection on the assistant axis, of which the default has 0), ``cluster`` and
            ``nearest``, the three roles of the highest cosine. Units of the residual stream.

        Raises:
            InputError: an unknown layer, or fewer than three roles.
        """
        x = self._points(layer)
        centred = _centred(x)
        basis, _ = _basis(centred)
        flat = (x - x.mean(dim=0)) @ basis[:2].T
        default = -x.mean(dim=0) @ basis[:2].T
        cosines = _cosines(centred)
        groups = _groups(cosines, clusters)
        names = self.vectors.names
        unit = self.axis(layer).unit.double()
        rows = [
            {
                "name": "default",
                "x": float(default[0]),
                "y": float(default[1]),
                "axis": 0.0,
                "cluster": 0,
                "nearest": "",
            }
        ]
        for n, name in enumerate(names):
            order = [k for k in cosines[n].argsort(descending=True).tolist() if k != n][:3]
            rows.append(
                {
                    "name": name,
                    "x": float(flat[n, 0]),
                    "y": float(flat[n, 1]),
                    "axis": float(x[n] @ unit),
                    "cluster": int(groups[n]),
                    "nearest": ", ".join(names[k] for k in order),
                }
            )
        return pd.DataFrame(rows)

    def place(self, others: Directions, layer: int) -> pd.DataFrame:
        """Where other directions of the same model lie: vectors of prompts, traits, other roles.

        Args:
            others: by their last position, where they have any.
            layer: which layer.

        Returns:
            A row a name: ``axis_cosine``, ``first`` and ``second``, its cosines with the assistant
            axis and the first two components; ``inside``, the share of its square that lies in the
            span of the roles, beside ``chance``, that of a random direction; and ``nearest``, the
            role with the highest cosine, with ``cosine``.

        Raises:
            InputError: an unknown layer, or directions that do not combine with these.
        """
        x = self._points(layer)
        basis, shares = _basis(_centred(x))
        basis = basis[shares > 1e-9]
        unit = self.axis(layer).unit.double()
        probe = self.vectors.direction(self.vectors.names[0], layer)
        rows = []
        for name in others.names:
            other = others.direction(name, layer)
            probe._check(other)
            v = other.unit.double()
            cosines = torch.nn.functional.normalize(x, dim=-1) @ v
            best = int(cosines.argmax())
            rows.append(
                {
                    "name": name,
                    "axis_cosine": float(v @ unit),
                    "first": float(v @ basis[0]),
                    "second": float(v @ basis[1]),
                    "inside": float((basis @ v).square().sum()),
                    "chance": len(basis) / len(v),
                    "nearest": self.vectors.names[best],
                    "cosine": float(cosines[best]),
                }
            )
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; returns the path.

        Raises:
            InputError: the file cannot be written.
        """
        path = Path(path)
        whole = self.vectors
        header = {
            "persona_space": list(whole.names),
            "layers": list(whole.layers),
            "source": vars(whole.source) if whole.source else None,
            "contrast": whole.contrast,
            "prompts": {name: list(counted) for name, counted in whole.prompts.items()},
        }
        tensors = {"whole": whole.directions, "resid_norm": whole.resid_norm}
        tensors |= {f"half {n}": half.directions for n, half in enumerate(self.halves)}
        return write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "PersonaSpace":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it does not hold a persona space.
        """
        with reading(Path(path), "a persona space") as (header, tensors):
            known: dict[str, Any] = {
                "names": tuple(header["persona_space"]),
                "layers": tuple(header["layers"]),
                "positions": (None,),
                "resid_norm": tensors["resid_norm"],
                "source": Source(**header["source"]) if header["source"] else None,
                "prompts": {name: (n, sha) for name, (n, sha) in header["prompts"].items()},
                "contrast": header["contrast"],
            }
            parts = [Directions(tensors[key], **known) for key in ("whole", "half 0", "half 1")]
        return cls(parts[0], (parts[1], parts[2]))

    def card(self) -> Card:
        """Roles and layers."""
        facts = {
            "roles": str(len(self.vectors.names)),
            "layers": f"{self.vectors.layers[0]} to {self.vectors.layers[-1]}",
        }
        return Card("PersonaSpace", facts, "space.axis_table(), rl.plots.persona_map(space, layer)")

    def _all(self, layer: int) -> list[Float[Tensor, "role d_model"]]:
        """The roles, and those of each half."""
        if layer not in self.vectors.layers:
            raise unknown("layer", layer, self.vectors.layers)
        column = self.vectors.layers.index(layer)
        every = (self.vectors, *self.halves)
        return [part.directions[:, column, 0].double() for part in every]

    def _points(self, layer: int) -> Float[Tensor, "role d_model"]:
        return self._all(layer)[0]


def persona_space(answers: AnswerVectors) -> PersonaSpace:
    """The space of some roles.

    Args:
        answers: from :func:`rolelens.role_answers`.

    Raises:
        InputError: directions of traits, or fewer than three roles.
    """
    if answers.vectors.kind != "role":
        raise InputError(
            f"these are directions of {answers.vectors.kind}s, which have no default; pass what "
            "rl.role_answers gives."
        )
    if len(answers.vectors.names) < 3:
        raise InputError(f"{len(answers.vectors.names)} roles span no plane; pass at least 3.")
    return PersonaSpace(answers.vectors, answers.halves)


def _stand_in_axes(points: Float[Tensor, "one d_model"]) -> Float[Tensor, "one d_model"]:
    """Of each point, what leads from the mean of the others to it."""
    n = len(points)
    return (points - points.mean(dim=0)) * (n / (n - 1))


def _centred(x: Float[Tensor, "role d_model"]) -> Float[Tensor, "role d_model"]:
    return x - x.mean(dim=0)


def _basis(
    centred: Float[Tensor, "role d_model"],
) -> tuple[Float[Tensor, "component d_model"], Float[Tensor, " component"]]:
    """Principal components, and their shares of the variance; as many as there may be."""
    _, s, basis = torch.linalg.svd(centred, full_matrices=False)
    total = s.square().sum()
    if not total > 0:
        raise InputError(
            "all roles are the same at this layer, so they have no components; take a higher layer."
        )
    return basis, s.square() / total


def _first_cosine(points: Float[Tensor, "role d_model"], axis: Tensor) -> Tensor:
    """Cosine, in size, of an axis with the first component of some points."""
    x = _centred(points)
    first = x.T @ torch.linalg.eigh(x @ x.T).eigenvectors[:, -1]
    return torch.nn.functional.cosine_similarity(first, axis, dim=0).abs()


def _cosines(x: Float[Tensor, "role d_model"]) -> Float[Tensor, "role role"]:
    unit = torch.nn.functional.normalize(x, dim=-1)
    return unit @ unit.T


def _groups(cosines: Float[Tensor, "role role"], n: int) -> Any:
    """Groups by average linkage of cosine distances, numbered from 1."""
    distance = (1 - cosines).clamp(min=0).numpy()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return fcluster(tree, t=max(1, min(n, len(distance))), criterion="maxclust")
