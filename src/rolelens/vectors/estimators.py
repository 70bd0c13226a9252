"""Estimators of a direction from labelled activations, all with one interface."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.vectors.direction import check_finite, without


@dataclass(frozen=True, eq=False)
class Labelled:
    """Activations of one place in the model, with and without what the direction is to stand for.

    Attributes:
        positive: with it, such as those of role prompts or of correct answers.
        negative: without it.
        positive_groups: the group (question, pair) of each; by default the first positive and the
            first negative are a pair, and so on.
        negative_groups: likewise.
        weights: of groups that do not count 1 where groups are averaged.

    Raises:
        InputError: a class without activations, numbers that are not finite, groups of one class
            alone or not one of each activation, or weights that are below 0 or all 0.
    """

    positive: Float[Tensor, "positive d"]
    negative: Float[Tensor, "negative d"]
    positive_groups: Int[Tensor, " positive"] | None = None
    negative_groups: Int[Tensor, " negative"] | None = None
    weights: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            activations, groups = getattr(self, name), getattr(self, f"{name}_groups")
            if not len(activations):
                raise InputError(f"there are no {name} activations; pass at least one.")
            check_finite(f"the {name} activations", activations)
            if groups is not None and len(groups) != len(activations):
                raise InputError(
                    f"{len(activations)} {name} activations and {len(groups)} groups do not pair "
                    "up; pass one group of each."
                )
        if (self.positive_groups is None) != (self.negative_groups is None):
            raise InputError(
                "only one of positive_groups and negative_groups was passed; pass both or neither."
            )
        if any(not weight >= 0 for weight in self.weights.values()):
            raise InputError(f"weights is {dict(self.weights)}; each has to be 0 or more.")

    @cached_property
    def difference(self) -> Float[Tensor, " d"]:
        """Mean of the positive minus mean of the negative, in float64."""
        return self.positive.double().mean(dim=0) - self.negative.double().mean(dim=0)

    @cached_property
    def differences(self) -> Float[Tensor, "group d"]:
        """The same within each group that has both, in float64.

        Raises:
            InputError: no group has both.
        """
        positive, negative = self._groups
        return torch.stack(
            [
                self.positive[positive == group].double().mean(dim=0)
                - self.negative[negative == group].double().mean(dim=0)
                for group in self.groups
            ]
        )

    @cached_property
    def groups(self) -> list[int]:
        """The groups that have both, which :attr:`differences` are of.

        Raises:
            InputError: no group has both, or there are no groups and not as many positive as
                negative activations.
        """
        if self.positive_groups is None and len(self.positive) != len(self.negative):
            raise InputError(
                f"{len(self.positive)} positive and {len(self.negative)} negative activations are "
                "no pairs; pass the group of each."
            )
        positive, negative = self._groups
        both = sorted(set(positive.tolist()) & set(negative.tolist()))
        if not both:
            raise InputError("no group has positive and negative activations; pass both of some.")
        return both

    def ordered(self, direction: Float[Tensor, " d"]) -> Float[Tensor, " group"]:
        """Share of each group's pairs whose positive one lies further along a direction.

        The AUROC within each of :attr:`groups`: 0.5 is chance, and ties count half.
        """
        check_finite("the numbers of the direction", direction)
        along = direction.double().cpu()
        positive, negative = self._groups
        shares = []
        for group in self.groups:
            ahead = self.positive[positive == group].double() @ along
            behind = self.negative[negative == group].double() @ along
            shares.append(((ahead[:, None] - behind).sign() / 2 + 0.5).mean())
        return torch.stack(shares)

    @property
    def _groups(self) -> tuple[Int[Tensor, " positive"], Int[Tensor, " negative"]]:
        if self.positive_groups is None or self.negative_groups is None:
            return torch.arange(len(self.positive)), torch.arange(len(self.negative))
        return self.positive_groups, self.negative_groups


@runtime_checkable
class Estimator(Protocol):
    """A way to make a direction of labelled activations."""

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction, raw, in float64."""


@dataclass(frozen=True)
class DifferenceInMeans:
    """mu - nu (2502.12055 eq. 2; mass-mean probe of 2310.06824).

    Assumes that the two classes differ by a shift alone. Fails where a few activations are much
    larger than the others, or where directions of high variance that the classes do not share
    drown the shift.
    """

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction; its norm is the distance of the means."""
        return labelled.difference


@dataclass(frozen=True)
class GroupedMean:
    """Mean over groups of the groups' differences, each of norm 1 (grouped mean of 2602.14143).

    Every question counts the same, whatever its magnitude. Assumes that magnitude says nothing of
    how right a difference is; fails, beside the plain mean, where small differences are noise.

    Attributes:
        normalised: whether each difference is divided by its norm; without, it is the mean of the
            groups' differences, in which a question counts as much as it is large.
    """

    normalised: bool = True

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction; its norm is at most 1, and 1 where all groups agree."""
        differences = labelled.differences
        if self.normalised:
            differences = torch.nn.functional.normalize(differences, dim=-1)
        weights = torch.tensor(
            [labelled.weights.get(group, 1.0) for group in labelled.groups], dtype=torch.float64
        )
        if not weights.sum() > 0:
            raise InputError("the weights of all groups are 0; at least one has to be above 0.")
        return weights @ differences / weights.sum()


@dataclass(frozen=True)
class PairedPCA:
    """First principal component of the groups' differences, not centred (2310.01405).

    The sign is that of the mean difference. Assumes that what varies most between the two of a
    pair is what they were paired for; fails where something else varies more.
    """

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction, with the norm of the difference in means."""
        differences = labelled.differences
        component = torch.linalg.svd(differences, full_matrices=False).Vh[0]
        along = float(component @ differences.mean(dim=0))
        return _scaled(component if along >= 0 else -component, labelled)


@dataclass(frozen=True)
class Logistic:
    """Weights of a logistic regression on standardised activations (linear probe).

    Finds what tells the classes apart, which is not what moves one to the other: of two
    dimensions that say the same it may take the one with less noise, and steering along it can do
    nothing. Overfits where there are fewer activations than dimensions, unless ``c`` is small.

    Attributes:
        c: inverse strength of the L2 penalty.
    """

    c: float = 1.0

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction, with the norm of the difference in means."""
        from sklearn.linear_model import LogisticRegression

        if not self.c > 0:
            raise InputError(f"c is {self.c}; it has to be above 0.")
        x, y = _stacked(labelled)
        spread = x.std(dim=0, correction=0).clamp(min=1e-12)
        model = LogisticRegression(C=self.c, max_iter=5000, tol=1e-8)
        model.fit(((x - x.mean(dim=0)) / spread).numpy(), y.numpy())
        return _scaled(torch.from_numpy(model.coef_[0]).double() / spread, labelled)


@dataclass(frozen=True)
class MassMean:
    """Σ⁺ (mu - nu), Σ the covariance within classes (2310.06824, the probe for i.i.d. data).

    The optimal probe of two Gaussians that share a covariance. Where there are fewer activations
    than dimensions Σ has no inverse, the pseudo-inverse looks at what varies only, and noise there
    is amplified: take :class:`LDA`.
    """

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction, with the norm of the difference in means."""
        within = _within(labelled)
        if not within.any():
            return labelled.difference
        covariance = within.T @ within / len(within)
        weights = torch.linalg.pinv(covariance, hermitian=True) @ labelled.difference
        return _scaled(weights, labelled)


@dataclass(frozen=True)
class LDA:
    """Linear discriminant, Σ⁻¹ (mu - nu) with Σ shrunk as Ledoit and Wolf have it.

    As :class:`MassMean`, and usable with few activations; with very few it is the difference in
    means. A probe too: it turns away from dimensions of high variance, which the model may use.
    """

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction, with the norm of the difference in means."""
        from sklearn.covariance import ledoit_wolf

        within = _within(labelled)
        if not within.any():
            return labelled.difference
        covariance, _ = ledoit_wolf(within.numpy(), assume_centered=True)
        weights = torch.linalg.solve(torch.from_numpy(covariance), labelled.difference)
        return _scaled(weights, labelled)


@dataclass(frozen=True)
class Contrastive:
    """Leading direction of a projection trained by InfoNCE (1807.03748; with labels 2004.11362).

    Standardised activations are projected to a few dimensions and scaled to norm 1; each has to be
    nearer to those of its own class than to the others. What the two classes differ by most there
    is the direction, read back into the residual stream. Like a probe it may take what tells the
    classes apart, and with few activations it learns them by heart.

    Attributes:
        rank: width of the projection.
        temperature: cosines are divided by it.
        steps: of Adam, each with all activations.
        seed: of the first projection.
    """

    rank: int = 8
    temperature: float = 0.2
    steps: int = 100
    seed: int = 0

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The direction, with the norm of the difference in means.

        Raises:
            InputError: numbers that make no sense, or a class of one activation.
        """
        if self.rank < 1 or self.steps < 1 or not self.temperature > 0:
            raise InputError(
                f"rank is {self.rank}, steps {self.steps} and temperature {self.temperature}; each "
                "has to be above 0."
            )
        if min(len(labelled.positive), len(labelled.negative)) < 2:
            raise InputError(
                "a class has one activation, which is near to no other of its class; pass two or "
                "more of each."
            )
        x, y = _stacked(labelled)
        spread = x.std(dim=0, correction=0).clamp(min=1e-12)
        z = (x - x.mean(dim=0)) / spread
        drawn = torch.Generator().manual_seed(self.seed)
        weights = torch.randn(self.rank, z.shape[1], generator=drawn, dtype=z.dtype)
        weights = (weights / z.shape[1] ** 0.5).requires_grad_()
        itself = torch.eye(len(z), dtype=torch.bool)
        same = (y[:, None] == y) & ~itself
        adam = torch.optim.Adam([weights], lr=1e-2)
        with torch.enable_grad():
            for _ in range(self.steps):
                unit = torch.nn.functional.normalize(z @ weights.T, dim=-1)
                near = (unit @ unit.T / self.temperature).masked_fill(itself, -torch.inf)
                own = near.masked_fill(~same, -torch.inf)
                adam.zero_grad()
                loss = (near.logsumexp(dim=-1) - own.logsumexp(dim=-1)).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
        learned = weights.detach()
        apart = learned @ (z[y == 1].mean(dim=0) - z[y == 0].mean(dim=0))
        return _scaled(apart @ learned / spread, labelled)


@dataclass(frozen=True)
class WithoutShared:
    """Another estimator's direction without its components along some others.

    Removes what several roles have in common, such as their mean: "specialist rather than
    everyday". Fails where the role itself lies along it.

    Attributes:
        estimator: the other.
        shared: what is removed, such as the mean of all roles; need not be orthogonal.
    """

    estimator: Estimator
    shared: Float[Tensor, "n d"]

    def fit(self, labelled: Labelled) -> Float[Tensor, " d"]:
        """The rest of the direction, not scaled up again."""
        check_finite("the shared directions", self.shared)
        return without(self.estimator.fit(labelled), self.shared)


def _stacked(labelled: Labelled) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    x = torch.cat([labelled.positive, labelled.negative]).double()
    y = torch.zeros(len(x), dtype=torch.float64)
    y[: len(labelled.positive)] = 1.0
    return x, y


def _within(labelled: Labelled) -> Float[Tensor, "n d"]:
    """Activations minus the mean of their class."""
    classes = [x.double() for x in (labelled.positive, labelled.negative)]
    return torch.cat([x - x.mean(dim=0) for x in classes])


def _scaled(direction: Float[Tensor, " d"], labelled: Labelled) -> Float[Tensor, " d"]:
    """With the norm of the difference in means, so that strengths compare."""
    norm = direction.norm().clamp(min=1e-300)
    scaled: Tensor = direction * (labelled.difference.norm() / norm)
    return scaled
