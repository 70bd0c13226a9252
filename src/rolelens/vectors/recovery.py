"""How well estimators find a known direction, where data are few, stretched or uneven."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from rolelens.errors import InputError
from rolelens.vectors.estimators import (
    LDA,
    DifferenceInMeans,
    Estimator,
    GroupedMean,
    Labelled,
    Logistic,
    MassMean,
    PairedPCA,
)

ESTIMATORS: Mapping[str, Estimator] = {
    "difference in means": DifferenceInMeans(),
    "grouped mean (ROAST)": GroupedMean(),
    "grouped mean, not normalised": GroupedMean(normalised=False),
    "PCA of differences": PairedPCA(),
    "logistic": Logistic(c=0.1),
    "mass mean": MassMean(),
    "LDA": LDA(),
}
CONDITIONS: Mapping[str, tuple[int | float, ...]] = {
    "questions": (10, 20, 40, 80, 160),
    "anisotropy": (0.0, 0.5, 1.0, 1.5, 2.0),
    "spread": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""What is varied, and the values it takes; the others then have their defaults."""


def planted(
    questions: int = 40,
    anisotropy: float = 0.0,
    spread: float = 0.0,
    *,
    d: int = 64,
    rollouts: int = 8,
    shift: float = 1.5,
    offset: float = 1.0,
    seed: int = 0,
) -> tuple[Labelled, torch.Tensor]:
    """Gaussian activations of right and wrong answers whose true direction is known.

    An answer to question q is o_q + m_q (± shift/2 w + noise), the sign by whether it is right.

    Args:
        questions: how many; of the answers to each at least one is right and one is wrong, and how
            many are is drawn.
        anisotropy: how fast the variance of the noise falls off: that of the k-th of its (random)
            axes goes as k^-anisotropy; the total stays the same.
        spread: standard deviation of log m_q: how uneven the questions' magnitudes are.
        d: dimensions.
        rollouts: answers to a question.
        shift: distance of the two means, in standard deviations of isotropic noise.
        offset: standard deviation of o_q, where a question lies.
        seed: of everything.

    Returns:
        The activations, and w, of norm 1.
    """
    if questions < 1 or rollouts < 2:
        raise InputError(
            f"questions is {questions} and rollouts is {rollouts}; at least 1 and 2 are needed."
        )
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(d)
    w /= np.linalg.norm(w)
    variances = np.arange(1, d + 1) ** -float(anisotropy)
    variances *= d / variances.sum()
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    groups = np.arange(questions).repeat(rollouts)
    n_right = rng.integers(1, rollouts, size=questions)
    right = np.tile(np.arange(rollouts), questions) < n_right[groups]
    magnitude = np.exp(spread * rng.standard_normal(questions))[groups, None]
    where = offset * rng.standard_normal((questions, d))[groups]
    noise = rng.standard_normal((len(groups), d)) * np.sqrt(variances) @ axes.T
    x = where + magnitude * (np.where(right, 0.5, -0.5)[:, None] * shift * w + noise)
    activations, owners = torch.from_numpy(x), torch.from_numpy(groups)
    labelled = Labelled(activations[right], activations[~right], owners[right], owners[~right])
    return labelled, torch.from_numpy(w)


def recovery(
    estimators: Mapping[str, Estimator] = ESTIMATORS,
    conditions: Mapping[str, Sequence[int | float]] = CONDITIONS,
    *,
    repeats: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of every estimator's direction with the true one, under several conditions.

    Args:
        estimators: by name.
        conditions: values of ``questions``, ``anisotropy`` or ``spread`` of :func:`planted`.
        repeats: data sets for each value; the same ones for all estimators.
        seed: of the data.

    Returns:
        A row for each estimator and value: mean ``cosine`` over the repeats, and its 5 % and 95 %
        quantiles ``low`` and ``high``.
    """
    rows = []
    for varied, values in conditions.items():
        if varied not in CONDITIONS:
            raise InputError(f"{varied!r} cannot be varied; there are: {', '.join(CONDITIONS)}.")
        for value in values:
            given = {varied: int(value) if varied == "questions" else float(value)}
            drawn = [planted(**given, seed=seed + n) for n in range(repeats)]  # type: ignore[arg-type]
            for name, estimator in estimators.items():
                found = [
                    float(torch.cosine_similarity(estimator.fit(own), truth, dim=0))
                    for own, truth in drawn
                ]
                low, high = np.quantile(found, [0.05, 0.95])
                mean = float(np.mean(found))
                row = {"estimator": name, "varied": varied, "value": value}
                rows.append(row | {"cosine": mean, "low": low, "high": high})
    return pd.DataFrame(rows)
