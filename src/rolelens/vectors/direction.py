"""One direction in the residual stream, and its algebra."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError

RESID_PRE = "resid_pre"


@dataclass(frozen=True)
class Source:
    """What a direction was measured on: vectors from different sources are never mixed.

    Attributes:
        model: name of the model, as it was loaded.
        origin: where its weights come from, e.g. the dequantised file.
        weights: fingerprint of its embedding, the same whatever the path, class or dtype; models
            that share a frozen embedding are not told apart.
        model_class: the TransformerLens class.
        centred: whether the writing weights were centred (this changes the residual stream).
        dtype: dtype of the forward passes.
        template: hash of the chat template, or of the plain format.
        version: version of rolelens.
    """

    model: str
    origin: str
    weights: str
    model_class: str
    centred: bool
    dtype: str
    template: str
    version: str

    def differs(self, other: "Source") -> list[str]:
        """Say what forbids mixing the two, if anything does."""
        differences = []
        if self.weights != other.weights:
            differences.append(f"their models ({self.model} and {other.model})")
        if self.centred != other.centred:
            which = [("raw", "centred")[source.centred] for source in (self, other)]
            differences.append(f"their writing weights ({which[0]} and {which[1]})")
        if self.template != other.template:
            differences.append(f"their chat templates ({self.template} and {other.template})")
        return differences


@dataclass(frozen=True)
class Null:
    """What a control direction imitates, and how it was made.

    Attributes:
        imitates: the name whose place it takes; None where it stands for none in particular.
        made: ``"gaussian"``, ``"shuffled"``, ``"base"`` or ``"random"``.
        number: which of several that are made alike.
    """

    imitates: str | None
    made: str
    number: int = 0

    @classmethod
    def of_version_01(cls, name: str) -> "Null | None":
        """What the name of a null of version 0.1 says, such as ``"gaussian 0 ~ lawyer"``."""
        how, mark, imitated = name.partition(" ~ ")
        made, _, number = how.rpartition(" ")
        if made not in ("gaussian", "shuffled", "base") or not number.isdigit():
            return None
        if not mark and made != "base":
            return None
        return cls(imitated or None, made, int(number))


@dataclass(frozen=True, eq=False, repr=False)
class Direction(Shown):
    """One direction in the residual stream, measured at one layer and position.

    Attributes:
        vector: raw difference-in-means, not normalised (2502.12055 eq. 2).
        layer: the block whose input it was measured at.
        position: post-instruction position, counted from the end (-1 is the last); None where it
            belongs to none, or to several.
        name: what it stands for, such as a role.
        resid_norm: mean norm of the residual stream of base prompts at this layer and position.
        site: where in the block it lives.
        source: what it was measured on.
        null: what it imitates and how it was made, where it is a null.

    Raises:
        InputError: the vector has numbers that are not finite.
    """

    vector: Float[Tensor, " d_model"]
    layer: int
    position: int | None = None
    name: str = "direction"
    resid_norm: float | None = None
    site: str = RESID_PRE
    source: Source | None = None
    null: Null | None = None

    def __post_init__(self) -> None:
        check_finite(f"the direction of {self.name!r} at layer {self.layer}", self.vector)

    @property
    def norm(self) -> float:
        """Euclidean norm, in units of the residual stream."""
        return float(self.vector.double().norm())

    @property
    def d_model(self) -> int:
        """Width of the vector."""
        return self.vector.shape[0]

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The vector divided by its norm.

        Raises:
            InputError: the direction is zero, so it points nowhere.
        """
        if self.norm == 0:
            raise InputError(
                f"the direction of {self.name!r} at layer {self.layer} is zero, so it has no unit "
                "vector; at layer 0 the post-instruction tokens are the same in every prompt: "
                "take a higher layer."
            )
        return (self.vector.double() / self.norm).to(self.vector.dtype)

    @property
    def sha(self) -> str:
        """Hash of the vector."""
        values = self.vector.detach().float().cpu().contiguous().numpy()
        return hashlib.sha256(values.tobytes()).hexdigest()[:16]

    def cosine(self, other: "Direction") -> float:
        """Cosine similarity with another direction; 0 if either is zero."""
        self._check(other)
        norms = self.norm * other.norm
        return float(self.vector.double() @ other.vector.double()) / norms if norms else 0.0

    def normalise(self) -> "Direction":
        """The same direction with norm 1."""
        return dataclasses.replace(self, vector=self.unit)

    def project_out(self, *others: "Direction") -> "Direction":
        """Remove the components along the span of other directions.

        Raises:
            InputError: there are no others, or they do not combine with this one.
        """
        if not others:
            raise InputError("project_out needs at least one direction to remove; none was passed.")
        for other in others:
            self._check(other)
        rest = without(self.vector.double(), torch.stack([other.vector for other in others]))
        return dataclasses.replace(self, vector=rest.to(self.vector.dtype))

    def random_like(self, seed: int = 0) -> "Direction":
        """A Gaussian direction with the same norm, as a control."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.d_model, generator=generator, dtype=torch.float64)
        vector = (noise * self.norm / noise.norm()).to(self.vector.dtype)
        return dataclasses.replace(self, vector=vector, name=f"random {seed}")

    def __add__(self, other: "Direction") -> "Direction":
        return self._combine(other, self.vector + other.vector, f"{self.name} + {other.name}")

    def __sub__(self, other: "Direction") -> "Direction":
        return self._combine(other, self.vector - other.vector, f"{self.name} - {other.name}")

    def __mul__(self, factor: float) -> "Direction":
        return dataclasses.replace(self, vector=self.vector * factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Direction":
        return self * -1.0

    def card(self) -> Card:
        """Name, cell, norm and its share of the residual stream."""
        facts = {
            "name": self.name,
            "layer": str(self.layer),
            "position": position_text(self.position),
            "d_model": str(self.d_model),
            "norm": f"{self.norm:.3g}",
        }
        if self.resid_norm:
            facts["share of the residual norm"] = f"{self.norm / self.resid_norm:.3f}"
        return Card("Direction", facts, "lens.generate([...], hooks=rl.add(d, alpha=3.0))")

    def _combine(self, other: "Direction", vector: Tensor, name: str) -> "Direction":
        self._check(other)
        position = self.position if self.position == other.position else None
        return dataclasses.replace(self, vector=vector, position=position, name=name, null=None)

    def _check(self, other: "Direction") -> None:
        for what, a, b in (
            ("width", self.d_model, other.d_model),
            ("layer", self.layer, other.layer),
            ("site", self.site, other.site),
        ):
            if a != b:
                raise InputError(
                    f"directions of different {what} ({a} and {b}) do not combine; take both of "
                    "the same."
                )
        check_sources(self.source, other.source)


def without(vector: Float[Tensor, " d"], others: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """A vector without its components along the span of others, which need not be orthogonal."""
    _, values, basis = torch.linalg.svd(others.double(), full_matrices=False)
    # Singular values below the float32 noise of the largest one carry no direction.
    basis = basis[values > 1e-6 * values.max().clamp(min=1e-300)]
    rest: Tensor = vector - basis.T @ (basis @ vector)
    return rest


def check_finite(what: str, values: Tensor) -> None:
    """Refuse numbers that are NaN or infinite."""
    if not torch.isfinite(values).all():
        raise InputError(f"{what} are not all finite numbers; measure them again in float32.")


def position_text(position: int | None) -> str:
    """A position in words."""
    return "none" if position is None else str(position)


def check_sources(a: Source | None, b: Source | None) -> None:
    """Refuse to mix what was measured on different models, centrings or chat templates."""
    if a is not None and b is not None and (differing := a.differs(b)):
        raise InputError(
            "a direction was measured elsewhere than it is used: "
            f"{' and '.join(differing)} differ; measure it again with this lens."
        )


def mean(directions: Sequence[Direction]) -> Direction:
    """Mean of directions of one layer."""
    if not directions:
        raise InputError("there is no mean of no directions; pass at least one.")
    total = directions[0]
    for direction in directions[1:]:
        total = total + direction
    return dataclasses.replace(total * (1 / len(directions)), name="mean")
