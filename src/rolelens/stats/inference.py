"""Intervals and tests for paired answers, and corrections for many of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from rolelens.errors import InputError

RESAMPLES = 10_000
_BATCH = 1 << 22
"""Numbers that are resampled at a time."""

Correction: TypeAlias = Literal["holm", "benjamini-hochberg"]
Values: TypeAlias = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval and a p-value.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: its upper end.
        p: two-sided, of the hypothesis that the true value is 0.
    """

    value: float
    low: float
    high: float
    p: float


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a share."""
    interval = scipy_stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact McNemar p-value of paired right/wrong answers."""
    gained = sum(not b and a for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    if gained + lost == 0:
        return 1.0
    return float(scipy_stats.binomtest(gained, gained + lost).pvalue)


def paired_bootstrap(
    differences: Values,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a mean difference, resampling questions."""
    return bootstrap([differences], [1.0], resamples=resamples, seed=seed, level=level)


def bootstrap(
    groups: Sequence[Values],
    weights: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a weighted sum of the groups' means, each resampled by itself."""
    samples = [_values(group) for group in groups]
    if all(np.ptp(sample) == 0 for sample in samples):
        only = sum(w * sample[0] for w, sample in zip(weights, samples, strict=True))
        return float(only), float(only)

    def combined(*drawn: npt.NDArray[np.float64], axis: int) -> Any:
        return sum(w * x.mean(axis) for w, x in zip(weights, drawn, strict=True))

    interval = scipy_stats.bootstrap(
        samples,
        combined,
        n_resamples=resamples,
        batch=max(1, _BATCH // max(map(len, samples))),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip(
    differences: Values,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> float:
    """Paired permutation p-value of a mean difference: every question may swap its two answers.

    Exact where there are few questions. Of right/wrong answers it is the exact McNemar test.
    """
    values = _values(differences)
    moved = values[values != 0]  # flipping the sign of 0 changes nothing
    if 2 ** len(moved) <= resamples:
        bits = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        flipped, counted = (2 * bits - 1) @ moved, 0
    else:
        rng = np.random.default_rng(seed)
        rows = max(1, _BATCH // len(moved))
        parts = [
            (2 * rng.integers(2, size=(min(rows, resamples - n), len(moved))) - 1) @ moved
            for n in range(0, resamples, rows)
        ]
        flipped, counted = np.concatenate(parts), 1  # the observed one is one of them
    observed, close = moved.sum(), 1e-9 * np.abs(moved).sum()
    tails = {
        "two-sided": np.abs(flipped) >= abs(observed) - close,
        "greater": flipped >= observed - close,
        "less": flipped <= observed + close,
    }
    return float((counted + tails[alternative].sum()) / (counted + len(flipped)))


def paired(differences: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean difference with its bootstrap interval and sign-flip p-value."""
    values = _values(differences)
    low, high = paired_bootstrap(values, resamples=resamples, seed=seed)
    p = sign_flip(values, resamples=resamples, seed=seed)
    return Estimate(float(values.mean()), low, high, p)


def interaction(
    inside: Values,
    outside: Values,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """How much larger the mean difference is inside a domain than outside of it.

    Interval by bootstrap of both sides; p by permuting which question belongs to which side.
    """
    within, without = _values(inside), _values(outside)
    value = float(within.mean() - without.mean())
    if np.ptp(np.concatenate([within, without])) == 0:
        return Estimate(value, value, value, 1.0)
    low, high = bootstrap([within, without], [1.0, -1.0], resamples=resamples, seed=seed)
    p = scipy_stats.permutation_test(
        (within, without),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // (len(within) + len(without))),
        rng=np.random.default_rng(seed),
    ).pvalue
    return Estimate(value, low, high, float(p))


def adjusted(p: Sequence[float], method: Correction = "holm") -> list[float]:
    """p-values corrected for being a family.

    Args:
        p: those of the whole family.
        method: ``holm`` bounds the chance of a single false claim, ``benjamini-hochberg`` the
            share of false claims among all.
    """
    if method not in ("holm", "benjamini-hochberg"):
        raise InputError(f"method is {method!r}; it has to be 'holm' or 'benjamini-hochberg'.")
    if not len(p):
        return []
    if any(not 0 <= value <= 1 for value in p):
        raise InputError(f"the p-values are {list(p)}; each has to be between 0 and 1.")
    name = "holm" if method == "holm" else "fdr_bh"
    return [float(value) for value in multipletests(list(p), method=name)[1]]


def null_rank(value: float, nulls: Sequence[float]) -> float:
    """Share of values at least as large, the value itself counted: never below 1 / (n + 1).

    A description of where a value stands among nulls that were searched in the same way; few nulls
    cannot survive a correction for many roles.
    """
    return (1 + sum(null >= value for null in nulls)) / (1 + len(nulls))


def detectable(n: int, discordant: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest change of accuracy that ``n`` paired questions would show, as a share.

    Normal approximation to McNemar's test.

    Args:
        n: number of questions.
        discordant: share of questions on which the two answers differ in being right.
        power: probability of showing it.
        alpha: two-sided level of the test.
    """
    z = scipy_stats.norm.ppf(1 - alpha / 2) + scipy_stats.norm.ppf(power)
    return float(min(1.0, z * math.sqrt(max(discordant, 1 / n) / n)))


def _values(differences: Values) -> npt.NDArray[np.float64]:
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not len(values):
        raise InputError("a comparison needs at least one question.")
    if not np.isfinite(values).all():
        raise InputError("the differences are not all finite numbers; leave out what is missing.")
    return values
