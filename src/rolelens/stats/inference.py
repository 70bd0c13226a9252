"""Intervals and tests for paired answers, and corrections for many of them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy

from rolelens.errors import InputError

LEVEL, POWER = 0.05, 0.8
"""Two-sided level of the tests, and the probability with which an effect is to be shown."""
DISCORDANT = 0.2
"""Share of questions that steering is assumed to change from right to wrong or back."""
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


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share.

    Raises:
        InputError: there is nothing to count, or more successes than cases.
    """
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"{successes} of {n} is no share; pass at least one case.")
    interval = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact McNemar p-value of paired right/wrong answers.

    Raises:
        InputError: no answers, or not as many before as after.
    """
    if len(before) != len(after) or not len(before):
        raise InputError(
            f"{len(before)} answers before and {len(after)} after are no pairs; pass the same "
            "questions in the same order, at least one."
        )
    gained = sum(not b and a for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    if gained + lost == 0:
        return 1.0
    return float(scipy.stats.binomtest(gained, gained + lost).pvalue)


def paired_bootstrap(
    differences: Values, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a mean difference, resampling questions.

    NaN for one question alone, which says nothing of how others differ.
    """
    return bootstrap([differences], [1.0], resamples=resamples, seed=seed)


def bootstrap(
    groups: Sequence[Values],
    weights: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a weighted sum of the groups' means, each resampled by itself.

    NaN where a group has one value alone.
    """
    samples = [_values(group) for group in groups]
    if min(map(len, samples)) < 2:
        return float("nan"), float("nan")
    if all(np.ptp(sample) == 0 for sample in samples):
        only = sum(w * sample[0] for w, sample in zip(weights, samples, strict=True))
        return float(only), float(only)

    def combined(*drawn: npt.NDArray[np.float64], axis: int) -> Any:
        return sum(w * x.mean(axis) for w, x in zip(weights, drawn, strict=True))

    interval = scipy.stats.bootstrap(
        samples,
        combined,
        n_resamples=resamples,
        batch=max(1, _BATCH // max(map(len, samples))),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip(differences: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided paired permutation p-value of a mean: every question may swap its two answers.

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
    extreme = np.abs(flipped) >= abs(moved.sum()) - 1e-9 * np.abs(moved).sum()
    return float((counted + extreme.sum()) / (counted + len(flipped)))


def paired(differences: Values) -> Estimate:
    """Mean difference with its bootstrap interval and sign-flip p-value."""
    values = _values(differences)
    low, high = paired_bootstrap(values)
    return Estimate(float(values.mean()), low, high, sign_flip(values))


def correlation(x: Values, y: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Rank correlation of two measures of the same cases, such as a predictor and an effect.

    Args:
        x: one measure.
        y: the other.
        resamples: of the bootstrap over cases, and shuffles of the test.
        seed: of both.

    Returns:
        Spearman's rho, its 95 % bootstrap interval, and p of a permutation test.

    Raises:
        InputError: fewer than four cases, not as many of each, or all the same.
    """
    one, other = _values(x), _values(y)
    if len(one) != len(other) or len(one) < 4:
        raise InputError(
            f"{len(one)} and {len(other)} values do not correlate; pass at least four pairs."
        )
    if len(set(one.tolist())) < 2 or len(set(other.tolist())) < 2:
        raise InputError("a measure that is the same everywhere does not correlate; drop it.")
    rng = np.random.default_rng(seed)

    def rho(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Any:
        ranks = [scipy.stats.rankdata(v, axis=-1) for v in (a, b)]
        u, v = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
        size = np.sqrt((u**2).sum(axis=-1) * (v**2).sum(axis=-1))
        return (u * v).sum(axis=-1) / np.where(size > 0, size, np.nan)

    value = float(rho(one, other))
    index = rng.integers(len(one), size=(resamples, len(one)))
    low, high = np.nanquantile(rho(one[index], other[index]), [LEVEL / 2, 1 - LEVEL / 2])
    shuffled = rng.permuted(np.tile(other, (resamples, 1)), axis=1)
    null = rho(np.broadcast_to(one, shuffled.shape), shuffled)
    p = (1 + int((np.abs(null) >= abs(value) - 1e-12).sum())) / (1 + resamples)
    return Estimate(value, float(low), float(high), p)


def interaction(
    inside: Values,
    outside: Values,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """How much larger the mean difference is inside a domain than outside of it.

    Interval by bootstrap of both sides; p by permuting which question belongs to which side, of
    Welch's t, which does not take unequal variances for unequal means (Janssen 1997).

    Raises:
        InputError: fewer than two questions on a side.
    """
    within, without = _values(inside), _values(outside)
    if min(len(within), len(without)) < 2:
        raise InputError(
            f"an interaction needs two questions on each side; there are {len(within)} inside and "
            f"{len(without)} outside."
        )
    value = float(within.mean() - without.mean())
    if np.ptp(np.concatenate([within, without])) == 0:
        return Estimate(value, value, value, 1.0)
    low, high = bootstrap([within, without], [1.0, -1.0], resamples=resamples, seed=seed)
    p = scipy.stats.permutation_test(
        (within, without),
        _welch,
        permutation_type="independent",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // (len(within) + len(without))),
        rng=np.random.default_rng(seed),
    ).pvalue
    return Estimate(value, low, high, float(p))


def _welch(x: Any, y: Any, axis: int) -> Any:
    """Welch's t; huge where neither side varies and the means differ."""
    difference = x.mean(axis=axis) - y.mean(axis=axis)
    error = x.var(axis=axis, ddof=1) / x.shape[axis] + y.var(axis=axis, ddof=1) / y.shape[axis]
    return difference / np.sqrt(np.maximum(error, 1e-18))


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
    values = np.asarray(p, dtype=np.float64)
    if method == "benjamini-hochberg":
        corrected = scipy.stats.false_discovery_control(values)
    else:  # Holm's step-down: the k-th smallest times the number of those that are not smaller
        order = values.argsort()
        steps = values[order] * np.arange(len(values), 0, -1)
        corrected = np.empty_like(values)
        corrected[order] = np.maximum.accumulate(steps).clip(max=1.0)
    return [float(value) for value in corrected]


def null_rank(value: float, nulls: Sequence[float]) -> float:
    """Share of values at least as large, the value itself counted: never below 1 / (n + 1).

    A description of where a value stands among nulls that were searched in the same way; few nulls
    cannot survive a correction for many roles.

    Raises:
        InputError: a value is NaN, which has no rank.
    """
    if np.isnan([value, *nulls]).any():
        raise InputError(
            f"the rank of {value} among {len(nulls)} nulls is not known where one is NaN; leave "
            "out what has no score."
        )
    return (1 + sum(null >= value for null in nulls)) / (1 + len(nulls))


def reached(value: float, low: float, high: float) -> bool:
    """Whether one of the values from ``low`` to ``high`` is as far on its side of zero; NaN: no."""
    return high >= value if value > 0 else low <= value


def detectable(n: int, discordant: float = DISCORDANT, *, family: int = 1) -> float | None:
    """Smallest change of accuracy that ``n`` paired questions show with 80 % power, as a share.

    Of the exact McNemar test at 0.05, divided by the size of the family (the first step of Holm's
    correction). The power is exact, too: the number of answers that change is binomial, and so is
    the number of those that change for the better.

    Args:
        n: number of questions.
        discordant: share of questions on which the two answers differ in being right; more of them
            where the change itself is larger.
        family: how many tests are corrected together.

    Returns:
        The change, or None where a change of the answer to all questions would not show.

    Raises:
        InputError: no questions, a share that is not between 0 and 1, or an empty family.
    """
    if n < 1 or not 0 <= discordant <= 1 or family < 1:
        raise InputError(
            f"n is {n}, discordant {discordant} and family {family}; n and family have to be at "
            "least 1, and discordant from 0 to 1."
        )
    changed = np.arange(n + 1)
    # The fewest changes for the better that are significant: P(X >= k) <= level / 2.
    needed = scipy.stats.binom.isf(LEVEL / family / 2, changed, 0.5) + 1

    def shows(k: int) -> bool:
        share = max(discordant, k / n)
        how_many = scipy.stats.binom.pmf(changed, n, share)
        better = (share + k / n) / (2 * share)
        significant = scipy.stats.binom.sf(needed - 1, changed, better)
        return bool((how_many * significant).sum() >= POWER)

    if not shows(n):
        return None
    return (1 + bisect_left(range(1, n), True, key=shows)) / n


def in_points(share: float | None) -> str:
    """What :func:`detectable` gives, in words: "4.0 points or more", or "no change"."""
    return "no change" if share is None else f"{100 * share:.1f} points or more"


def points_between(low: float, high: float) -> str:
    """Two shares in points, in words: "-1.0 to +4.5"."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _values(differences: Values) -> npt.NDArray[np.float64]:
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not len(values):
        raise InputError("a comparison needs at least one question.")
    if not np.isfinite(values).all():
        raise InputError("the differences are not all finite numbers; leave out what is missing.")
    return values


def detectable_mean(differences: Values, *, family: int = 1, power: float = 0.8) -> float | None:
    """Smallest mean difference that so many items would show, given how much they vary.

    Of the two-sided test at 0.05 of a mean, by the normal approximation, divided by the size of the
    family.

    Args:
        differences: of the items.
        family: how many tests are corrected together.
        power: chance that a mean of that size is found.

    Returns:
        In the units of the differences; None where fewer than two items are there.
    """
    values = _values(differences)
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    normal = scipy.stats.norm
    return float((normal.isf(LEVEL / family / 2) + normal.isf(1 - power)) * error)
