"""Is a linear direction losing anything? Linear beside nonlinear probes, on held-out prompts."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.stats.inference import LEVEL

Array = npt.NDArray[Any]


def probes(
    positive: Float[Tensor, "positive_prompt layer d_model"],
    base: Float[Tensor, "base_prompt layer d_model"],
    *,
    layers: Sequence[int] | None = None,
    folds: int = 5,
    resamples: int = 1000,
    shuffles: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """How well probes tell two sets of prompts apart that they were not fitted on.

    Beside the difference in means: a logistic regression, a perceptron with one hidden layer of 64
    and a support vector machine with an RBF kernel, all on standardised activations. Where the last
    two are no better, a linear direction loses nothing that they could find in so few prompts.

    Args:
        positive: activations at one position, such as of a role's prompts.
        base: of base prompts.
        layers: names of the layers; counted from 0 by default.
        folds: parts, of which one at a time is held out.
        resamples: bootstrap resamples of the prompts.
        shuffles: the same with shuffled labels, so many times: what overfitting gives.
        seed: of the folds, the probes, the bootstrap and the shuffling.

    Returns:
        A row a layer and probe: held-out ``auroc`` (0.5 is chance), its ``gain`` over the better of
        the two linear ones with the 95 % paired bootstrap interval ``low`` to ``high`` (0 for
        that one), and with ``shuffles`` the largest AUROC under shuffled labels, ``null``.

    Raises:
        InputError: fewer than 2 folds, fewer prompts of either set than folds, or activations that
            do not fit or are not finite.
    """
    names = list(range(positive.shape[1])) if layers is None else list(layers)
    counts = len(positive), len(base)
    if positive.shape[1:] != base.shape[1:] or len(names) != positive.shape[1]:
        raise InputError(
            f"activations of shapes {tuple(positive.shape)} and {tuple(base.shape)} and "
            f"{len(names)} layers do not fit; measure both in the same way, and name each layer."
        )
    if folds < 2 or min(counts) < folds:
        raise InputError(
            f"folds is {folds}, for {counts[0]} and {counts[1]} prompts; at least 2 folds, and as "
            "many prompts of each set, are needed."
        )
    x = torch.cat([positive, base]).double().cpu().numpy()
    if not np.isfinite(x).all():
        raise InputError("activations are not all finite; measure them again in float32.")
    y = np.repeat([1, 0], counts)
    rng = np.random.default_rng(seed)
    part = np.concatenate([rng.permutation(n) % folds for n in counts])
    relabelled = [rng.permutation(y) for _ in range(shuffles)]
    drawn = [_resampled(rng, counts) for _ in range(resamples)]
    rows = []
    for n, layer in enumerate(names):
        scores = {name: _held_out(fit, x[:, n], y, part, seed) for name, fit in PROBES.items()}
        areas = {name: _area(score, y) for name, score in scores.items()}
        linear = max(("means", "logistic"), key=lambda name: areas[name])
        for name, score in scores.items():
            gains = [_area(score[d], y[d]) - _area(scores[linear][d], y[d]) for d in drawn]
            low, high = np.percentile(gains, [50 * LEVEL, 100 - 50 * LEVEL])
            row = {
                "layer": layer,
                "probe": name,
                "auroc": areas[name],
                "gain": areas[name] - areas[linear],
                "low": float(low),
                "high": float(high),
            }
            if shuffles:
                row["null"] = max(
                    _area(_held_out(PROBES[name], x[:, n], z, part, seed), z) for z in relabelled
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _means(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    direction = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    return lambda new: new @ direction


def _logistic(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    from sklearn.linear_model import LogisticRegression

    return _scaled(LogisticRegression(C=0.1, max_iter=2000), x, y)


def _perceptron(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    from sklearn.neural_network import MLPClassifier

    probe = MLPClassifier((64,), alpha=1e-2, max_iter=500, random_state=seed)
    return _scaled(probe, x, y)


def _kernel(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    from sklearn.svm import SVC

    return _scaled(SVC(), x, y)


PROBES: dict[str, Callable[[Array, Array, int], Callable[[Array], Array]]] = {
    "means": _means,
    "logistic": _logistic,
    "perceptron": _perceptron,
    "kernel": _kernel,
}


def _scaled(model: Any, x: Array, y: Array) -> Callable[[Array], Array]:
    from sklearn.exceptions import ConvergenceWarning

    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the held-out score is what counts
        model.fit((x - mean) / spread, y)
    if hasattr(model, "decision_function"):
        return lambda new: np.asarray(model.decision_function((new - mean) / spread))
    return lambda new: np.asarray(model.predict_proba((new - mean) / spread)[:, 1])


def _held_out(
    fit: Callable[[Array, Array, int], Callable[[Array], Array]],
    x: Array,
    y: Array,
    part: Array,
    seed: int,
) -> Array:
    """The rank of every prompt in its fold by a probe that was fitted without it, 0 to 1.

    Ranks, as the scores of probes of several folds are not on one scale.
    """
    from scipy.stats import rankdata

    out = np.zeros(len(y))
    for fold in np.unique(part):
        held = part == fold
        score = fit(x[~held], y[~held], seed)(x[held])
        out[held] = rankdata(score) / (held.sum() + 1)
    return out


def _area(score: Array, y: Array) -> float:
    """AUROC; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    ones = int(y.sum())
    zeros = len(y) - ones
    return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _resampled(rng: np.random.Generator, counts: tuple[int, int]) -> Array:
    """Prompts of both sets, drawn with replacement."""
    return np.concatenate(
        [
            rng.integers(counts[0], size=counts[0]),
            counts[0] + rng.integers(counts[1], size=counts[1]),
        ]
    )
