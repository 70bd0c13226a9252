"""Features of role prompts against base prompts: which differ, and a direction made of them."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import stats
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.features.content import Filter, mean_features
from rolelens.lens import Lens, Prompts
from rolelens.vectors import Directions, Null, Source
from rolelens.vectors.nulls import derived, shuffled_labels

FIRES = 0.2
"""Above this a feature, averaged over a prompt, counts as active (2506.07335)."""
WEIGHT = 3.0
"""Of the difference of shares of prompts in the score of a feature."""
TOP = 15
"""Features that a direction is made of."""
GAIN = 8.0
"""Factor on each."""


@dataclass(frozen=True, eq=False, repr=False)
class FeatureContrast(Shown):
    """Features of positive and of negative prompts, averaged over content tokens and prompts.

    Attributes:
        sae: the autoencoder.
        name: what the positive prompts are of.
        positive: mean of each feature over the positive prompts.
        negative: over the negative ones.
        fires: for both, the share of prompts in which each feature is above ``FIRES``.
        shuffled: the difference of means under shuffled labels, a row a relabelling.
        place: layer and site.
        resid_norm: mean norm of the activations of the negative prompts' content tokens.
        source: the model.
    """

    sae: SparseAutoencoder
    name: str
    positive: Float[Tensor, " feature"]
    negative: Float[Tensor, " feature"]
    fires: Float[Tensor, "2 feature"]
    shuffled: Float[Tensor, "null feature"]
    place: tuple[int, str]
    resid_norm: float
    source: Source

    @property
    def difference(self) -> Float[Tensor, " feature"]:
        """Mean of the positive minus mean of the negative prompts."""
        return self.positive - self.negative

    @property
    def scores(self) -> Float[Tensor, " feature"]:
        """mean(a+ - a-) + 3 [P(a+ > 0.2) - P(a- > 0.2)] (2506.07335)."""
        return self.difference + WEIGHT * (self.fires[0] - self.fires[1])

    def chosen(self, n: int = TOP) -> list[int]:
        """The features of the highest score.

        Raises:
            InputError: there are not so many.
        """
        if not 1 <= n <= self.sae.n_features:
            raise InputError(f"n is {n}; it has to be 1 to {self.sae.n_features} features.")
        chosen: list[int] = self.scores.topk(n).indices.tolist()
        return chosen

    def table(self, n: int = TOP) -> pd.DataFrame:
        """The features of the highest score, a row each.

        ``positive`` and ``negative`` means, ``fires`` and ``fires_negative`` shares of prompts, the
        ``score``, and where labels were shuffled, ``p``: the rank of the size of its difference
        among the largest difference of all features under each relabelling.
        """
        rows = []
        largest = self.shuffled.abs().amax(dim=1).tolist() if len(self.shuffled) else []
        for feature in self.chosen(n):
            row = {
                "feature": feature,
                "score": float(self.scores[feature]),
                "positive": float(self.positive[feature]),
                "negative": float(self.negative[feature]),
                "fires": float(self.fires[0, feature]),
                "fires_negative": float(self.fires[1, feature]),
            }
            if largest:
                row["p"] = stats.null_rank(abs(float(self.difference[feature])), largest)
            rows.append(row)
        return pd.DataFrame(rows)

    def directions(
        self,
        n: int = TOP,
        *,
        gain: float = GAIN,
        by: Literal["positive", "difference"] = "positive",
    ) -> Directions:
        """The direction of SRPS (2506.07335): Σ gain · mean(a+_i) · W_dec[i] over the top features.

        The paper adds it to the last token of the prompt and keeps the norm.

        Args:
            n: how many features.
            gain: factor on each.
            by: weigh features by their ``positive`` mean, as the paper does, or by the
                ``difference`` of means, which is 0 where both prompts have a feature.
        """
        if by not in ("positive", "difference"):
            raise InputError(f"by is {by!r}; it has to be 'positive' or 'difference'.")
        weights = self.positive if by == "positive" else self.difference
        vector = self._sum(self.chosen(n), weights, gain)
        return self._directions([vector], (self.name,), f"{n} features by their {by} mean")

    def nulls(self, n: int = 4, *, top: int = TOP, gain: float = GAIN, seed: int = 0) -> Directions:
        """Directions of as many random features that are active as often as the chosen ones.

        For each chosen feature one is drawn among the 20 others whose share of positive prompts is
        nearest to its own; each null has the norm of the direction.

        Args:
            n: how many nulls.
            top: features of each.
            gain: as for :meth:`directions`.
            seed: of the drawing.

        Raises:
            InputError: ``n`` is below 1, or there are too few features.
        """
        chosen = self.chosen(top)
        rest = [f for f in range(self.sae.n_features) if f not in set(chosen)]
        if n < 1 or len(rest) < top:
            raise InputError(
                f"n is {n} and {len(rest)} features are left to draw {top} from; it needs 1 null "
                "and as many features as are chosen."
            )
        like = self._sum(chosen, self.positive, gain)
        vectors = []
        for number in range(n):
            rng = np.random.default_rng(derived(seed, "features", self.name, number))
            free, drawn = set(rest), []
            for feature in chosen:
                away = {f: abs(float(self.fires[0, f] - self.fires[0, feature])) for f in free}
                near = sorted(away, key=lambda f: (away[f], f))[:20]
                drawn.append(int(rng.choice(near)))
                free.remove(drawn[-1])
            # A feature that is never active would add nothing: all weigh as the chosen ones do.
            weights = torch.zeros_like(self.positive)
            weights[drawn] = self.positive[chosen]
            vector = self._sum(drawn, weights, gain)
            vectors.append(vector * (like.norm() / vector.norm().clamp(min=1e-300)))
        made = {f"features {k} ~ {self.name}": Null(self.name, "features", k) for k in range(n)}
        random = self._directions(vectors, tuple(made), f"nulls: {top} random features")
        return dataclasses.replace(random, nulls=made)

    def card(self) -> Card:
        """The features of the highest score."""
        first = ", ".join(map(str, self.chosen(min(5, self.sae.n_features))))
        facts = {"name": self.name, "features": str(self.sae.n_features), "highest score": first}
        return Card("FeatureContrast", facts, "contrast.table(), contrast.directions()")

    def _sum(self, features: list[int], weights: Tensor, gain: float) -> Float[Tensor, " d"]:
        index = torch.tensor(features)
        rows = self.sae.w_dec.cpu().double()[index]
        summed: Tensor = gain * weights.double()[index] @ rows
        return summed

    def _directions(self, vectors: list[Tensor], names: tuple[str, ...], how: str) -> Directions:
        layer, site = self.place
        return Directions(
            directions=torch.stack(vectors).float()[:, None, None],
            names=names,
            layers=(layer,),
            positions=(None,),
            resid_norm=torch.tensor([[self.resid_norm]]),
            source=self.source,
            site=site,
            contrast=f"SRPS, {how}, of {self.sae.hook}",
        )


def feature_contrast(
    lens: Lens,
    sae: SparseAutoencoder,
    positive: Prompts,
    negative: Prompts,
    *,
    name: str = "role",
    tokens: Filter = "mended",
    shuffles: int = 0,
    seed: int = 0,
    raw: bool = False,
) -> FeatureContrast:
    """Compare the features of two sets of prompts, such as a role's and base prompts.

    Args:
        lens: the model.
        sae: the autoencoder.
        positive: prompts with what is looked for. 2506.07335 puts a role prompt before a question,
            and takes the bare question as the negative one, on base models and ``raw``.
        negative: prompts without.
        name: what the positive prompts are of.
        tokens: which count: content words, all, or as the released code has it
            (:func:`rolelens.features.content_tokens`).
        shuffles: how many times labels are shuffled, for the null of the differences.
        seed: of the shuffling.
        raw: take the prompts as texts that stand alone, without the chat format.

    Raises:
        InputError: the autoencoder does not fit the model, or ``shuffles`` is below 0.
    """
    if shuffles < 0:
        raise InputError(f"shuffles is {shuffles}; it has to be 0 or more.")
    place = sae.check(lens)
    sides = [lens.encode(prompts, raw=raw) for prompts in (positive, negative)]
    counts = [len(side) for side in sides]
    weights = torch.zeros(0, sum(counts), dtype=torch.float64)
    if shuffles:
        weights = shuffled_labels(counts[0], counts[1], shuffles, derived(seed, "features", name))
    n = sae.n_features
    means, fires = (torch.zeros(2, n, dtype=torch.float64) for _ in range(2))
    shuffled = torch.zeros(shuffles, n, dtype=torch.float64)
    norm = 0.0
    for side, prompts in enumerate(sides):
        for row, features, size in mean_features(lens, sae, prompts, tokens):
            features = features.double()
            means[side] += features / counts[side]
            fires[side] += (features > FIRES) / counts[side]
            shuffled += weights[:, side * counts[0] + row, None] * features
            norm += side * size / counts[1]
    return FeatureContrast(
        sae, name, means[0].float(), means[1].float(), fires.float(), shuffled.float(), place, norm,
        lens.source,
    )  # fmt: skip


def srps(
    lens: Lens,
    sae: SparseAutoencoder,
    positive: Prompts,
    negative: Prompts,
    *,
    name: str = "role",
    tokens: Filter = "mended",
    top: int = TOP,
    gain: float = GAIN,
    raw: bool = False,
) -> Directions:
    """The direction of SRPS (2506.07335): a weighted sum of the features that a role turns on.

    Args:
        lens: the model.
        sae: the autoencoder; the direction lives where it reads.
        positive: role prompts, as for :func:`feature_contrast`.
        negative: the same without the role.
        name: of the direction.
        tokens: which tokens count: ``mended``, or ``released`` as the authors' code has it.
        top: how many features.
        gain: factor on each.
        raw: take the prompts as texts that stand alone, without the chat format.

    Raises:
        InputError: as for :func:`feature_contrast`; more features than there are.
    """
    found = feature_contrast(lens, sae, positive, negative, name=name, tokens=tokens, raw=raw)
    return found.directions(top, gain=gain)
