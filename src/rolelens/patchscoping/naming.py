"""How often directions are read as their role, beside how often chance is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rolelens import stats
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.patchscoping.judges import Judge, blind_scores
from rolelens.patchscoping.readers import Reading

OPEN_QUESTIONS = (
    "Tell me about yourself.",
    "What did you do at work today?",
    "What do you know more about than most people?",
    "What should I ask you about?",
    "Describe the last problem that you solved.",
    "What do you read to keep up?",
    "What advice do people come to you for?",
    "What is on your desk?",
)
"""Questions whose answers show a role, if the model takes one on at all."""
TRUSTED = 0.7
"""AUROC below which a judge's verdicts are not counted."""


@dataclass(frozen=True)
class Calibration:
    """Whether a judge tells answers of a prompted role from plain ones.

    Attributes:
        judge: its name.
        auroc: area under the ROC curve; 0.5 is chance.
        low: lower end of its 95 % bootstrap interval.
        high: its upper end.
        threshold: score from which a text counts as that of the role: where sensitivity and
            specificity are highest together.
        answers: how many answers of a role were judged, and as many plain ones.
    """

    judge: str
    auroc: float
    low: float
    high: float
    threshold: float
    answers: int

    @property
    def trusted(self) -> bool:
        """Whether its verdicts may be counted."""
        return self.auroc >= TRUSTED

    def __str__(self) -> str:
        result = (
            f"{self.judge}: AUROC {self.auroc:.2f} ({self.low:.2f} to {self.high:.2f}) on "
            f"{self.answers} answers of prompted roles and as many plain ones"
        )
        if self.trusted:
            return result
        return f"{result}; below {TRUSTED}, so it cannot tell and no rate is given"


@dataclass(frozen=True)
class Answers:
    """Answers whose role is known, which judges are tried on.

    Attributes:
        prompted: answers of the model when it is told to be a role.
        roles: that role, for each of them.
        plain: its answers to the same prompts without a role.

    Raises:
        InputError: there are not as many of each, or none.
    """

    prompted: tuple[str, ...]
    roles: tuple[str, ...]
    plain: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = (len(self.prompted), len(self.roles), len(self.plain))
        if len(set(counts)) > 1 or not counts[0]:
            raise InputError(
                f"{counts[0]} prompted answers, {counts[1]} roles and {counts[2]} plain answers do "
                "not pair up; pass one of each for each prompt and role."
            )


def answers(
    lens: Lens,
    roles: Sequence[str],
    prompts: Sequence[str] = OPEN_QUESTIONS,
    *,
    system: str = "You are a {role}.",
    max_new_tokens: int = 40,
) -> Answers:
    """Answer prompts as each role, with the role as system prompt, and without.

    Args:
        lens: the model that answers.
        roles: the roles; each prompt is answered as each.
        prompts: what the user says; from answers to questions that leave the role no room no judge
            can tell anything.
        system: the system prompt, with ``{role}`` in it.
        max_new_tokens: length of an answer at most, in tokens.

    Raises:
        InputError: no role, no prompt, or a system prompt that does not name the role.
    """
    if not roles or not prompts:
        raise InputError("a judge is tried on at least one role and one prompt; pass both.")
    if "{role}" not in system:
        raise InputError(f"system is {system!r}; it has to contain '{{role}}'.")
    plain = lens.generate(prompts, max_new_tokens=max_new_tokens)
    prompted_roles = [role for role in roles for _ in prompts]
    prompted = lens.generate(
        list(prompts) * len(roles),
        system=[system.replace("{role}", role) for role in prompted_roles],
        max_new_tokens=max_new_tokens,
    )
    return Answers(tuple(prompted), tuple(prompted_roles), tuple(plain * len(roles)))


def calibrate(judge: Judge, known: Answers, *, seed: int = 0) -> Calibration:
    """Try a judge on answers whose role is known.

    Args:
        judge: who is tried.
        known: the answers, from :func:`answers`.
        seed: of the order in which they are judged.

    Raises:
        InputError: the judge gave verdicts on fewer than two answers of either kind.
    """
    texts, roles = [*known.prompted, *known.plain], [*known.roles, *known.roles]
    scores = blind_scores(judge, texts, roles, seed=seed)
    n = len(known.prompted)
    first, second = np.array(scores[:n]), np.array(scores[n:])
    first, second = first[~np.isnan(first)], second[~np.isnan(second)]
    if min(len(first), len(second)) < 2:
        raise InputError(
            f"{judge.name} gave {len(first)} verdicts on prompted and {len(second)} on plain "
            "answers; an AUROC needs 2 of each, so try it on more answers or take another judge."
        )
    groups = [torch.from_numpy(verdicts)[:, None].double() for verdicts in (first, second)]
    result = stats.separation(stats.Projections(judge.name, (0,), groups[0], groups[1]))
    return Calibration(
        judge=judge.name,
        auroc=result.auroc[0],
        low=result.low[0],
        high=result.high[0],
        threshold=_threshold(first, second),
        answers=n,
    )


def rates(
    readings: Sequence[Reading],
    judge: Judge,
    calibration: Calibration,
    *,
    mismatched: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each role's directions are read as that role, beside nulls and other roles.

    The paper's Table 4, with its missing half. Directions of neighbouring layers read alike, so
    the interval of one role is too narrow; the last row, over all roles, resamples roles.

    Args:
        readings: of roles and of nulls, which say in ``direction.null`` which role they imitate.
        judge: who judges.
        calibration: of this judge; it gives the threshold.
        mismatched: other roles that each reading is held against.
        seed: of the other roles, and of the order in which texts are judged.

    Returns:
        A row for each role and one for all: ``n`` directions, ``rate`` with its 95 % Wilson
        interval, the rates of ``nulls`` and of ``mismatched`` roles, ``difference`` to the larger
        of the two, and for all roles its interval.

    Raises:
        InputError: the judge is not to be trusted, another one was calibrated, or there is
            nothing to hold a role against.
    """
    if calibration.judge != judge.name:
        raise InputError(
            f"{calibration.judge} was calibrated, and {judge.name} is to judge; calibrate this one."
        )
    if not calibration.trusted:
        raise InputError(f"{calibration}.")
    return tally(verdicts(readings, judge, calibration.threshold, mismatched=mismatched, seed=seed))


def tally(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Count the verdicts of a judge that is to be trusted: what :func:`rates` returns.

    Args:
        verdicts: from :func:`verdicts`.

    Raises:
        InputError: no role has both a verdict and a null or another role to be held against.
    """
    means = verdicts.pivot_table(index="name", columns="kind", values="verdict", aggfunc="mean")
    shares = means.reindex(columns=KINDS)
    of_roles = verdicts[verdicts["kind"] == "role"]
    rows: list[dict[str, Any]] = []
    for role in dict.fromkeys(verdicts["name"]):
        given = of_roles.loc[of_roles["name"] == role, "verdict"]
        n = len(given)
        low, high = stats.wilson(int(given.sum()), n) if n else (math.nan, math.nan)
        rate, null, mismatched = (float(share) for share in shares.loc[role])
        chance = float(shares.loc[role, ["null", "mismatched"]].max())
        rows.append(
            {
                "name": role,
                "n": n,
                "rate": rate,
                "low": low,
                "high": high,
                "nulls": null,
                "mismatched": mismatched,
                "difference": rate - chance,
            }
        )
    if not any(math.isfinite(row["difference"]) for row in rows):
        raise InputError(
            "no role has both a verdict and something to be held against; pass readings of nulls "
            "or of several roles, and a judge that gives verdicts on them."
        )
    return pd.DataFrame([*rows, _all(rows)])


KINDS = ["role", "null", "mismatched"]
"""What a verdict is on: a direction of the role, a null of it, or a direction of another role."""


def verdicts(
    readings: Sequence[Reading],
    judge: Judge,
    threshold: float,
    *,
    mismatched: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether each reading is that of its role, of the one it imitates, and of some others.

    Args:
        readings: of roles and of nulls.
        judge: who judges.
        threshold: score from which a text counts as that of the role.
        mismatched: other roles that each reading is held against.
        seed: of the other roles, and of the order in which texts are judged.

    Returns:
        A row for each question to the judge: the role's ``name``, ``kind`` (``role``, ``null`` or
        ``mismatched``), ``read`` off which direction, its ``layer`` and ``position``, ``text``,
        ``score`` and ``verdict``; what has no score has no row.

    Raises:
        InputError: there are no readings of roles.
    """
    roles = list(dict.fromkeys(r.direction.name for r in readings if r.direction.null is None))
    if not roles:
        raise InputError("there are no readings of roles, only of nulls; pass both.")
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for reading in readings:
        name = reading.direction.name
        null = reading.direction.null
        questions = [(name, "role")] if null is None else [(null.imitates, "null")]
        others = [role for role in roles if role != name]
        if null is None and others and mismatched:
            drawn = rng.choice(len(others), size=min(mismatched, len(others)), replace=False)
            questions += [(others[n], "mismatched") for n in drawn]
        for role, kind in questions:
            if role in roles:
                rows.append(
                    {
                        "name": role,
                        "kind": kind,
                        "read": name,
                        "layer": reading.direction.layer,
                        "position": reading.direction.position,
                        "text": reading.text,
                    }
                )
    table = pd.DataFrame(rows)
    table["score"] = blind_scores(judge, table["text"].tolist(), table["name"].tolist(), seed=seed)
    table = table[table["score"].notna()].reset_index(drop=True)
    return table.assign(verdict=table["score"] >= threshold)


def confusion(readings: Sequence[Reading], judge: Judge, *, seed: int = 0) -> pd.DataFrame:
    """As which role each role's directions read most: shares, role by reading.

    Args:
        readings: of roles; each is held against all of them. Readings of nulls are left out.
        judge: who judges.
        seed: of the order in which texts are judged.

    Returns:
        A row for each role, a column for each role it is read as; rows sum to 1. Where several
        roles score the same, each gets its part. Readings without a verdict do not count; a
        row is NaN where a role has no other.

    Raises:
        InputError: there are no readings of roles.
    """
    readings = [reading for reading in readings if reading.direction.null is None]
    roles = list(dict.fromkeys(reading.direction.name for reading in readings))
    if not roles:
        raise InputError("there are no readings of roles; pass at least one.")
    pairs = list(itertools.product(readings, roles))
    texts, questions = [reading.text for reading, _ in pairs], [role for _, role in pairs]
    scores = blind_scores(judge, texts, questions, seed=seed)
    grid = np.array(scores).reshape(len(readings), len(roles))
    judged = ~np.isnan(grid).all(axis=1)
    names = pd.Index([reading.direction.name for reading in readings])[judged]
    grid = grid[judged]
    best = (grid == np.nanmax(grid, axis=1, keepdims=True)).astype(float)
    best /= best.sum(axis=1, keepdims=True)
    return (
        pd.DataFrame(best, columns=roles).groupby(names).mean().reindex(roles).rename_axis("name")
    )


def agreement(verdicts: Mapping[str, Sequence[bool]]) -> pd.DataFrame:
    """Cohen's kappa of every two judges' verdicts on the same texts: 1 is all, 0 is by chance.

    Args:
        verdicts: of each judge.

    Raises:
        InputError: fewer than two judges, or not as many verdicts of each, or none.
    """
    from statsmodels.stats.inter_rater import cohens_kappa  # slow to import

    counts = {judge: len(given) for judge, given in verdicts.items()}
    if len(counts) < 2 or len(set(counts.values())) > 1 or not max(counts.values()):
        raise InputError(
            f"the numbers of verdicts are {counts}; pass those of two judges or more on the same "
            "texts."
        )
    rows = []
    for (one, first), (other, second) in itertools.combinations(verdicts.items(), 2):
        both = pd.crosstab(np.array(first, dtype=bool), np.array(second, dtype=bool))
        square = both.reindex(index=[False, True], columns=[False, True], fill_value=0)
        with np.errstate(invalid="ignore"):  # no interval where a judge says one thing only
            result = cohens_kappa(square.to_numpy())
        same = np.trace(square.to_numpy()) / square.to_numpy().sum()
        rows.append(
            {
                "judge": one,
                "other": other,
                "texts": len(first),
                "same": same,
                "kappa": result.kappa,
                "low": result.kappa_low,
                "high": result.kappa_upp,
            }
        )
    return pd.DataFrame(rows)


def _threshold(positive: Any, negative: Any) -> float:
    """The middle between two scores at which sensitivity plus specificity is highest."""
    values = np.unique(np.concatenate([positive, negative]))
    cuts = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2])
    quality = [(positive >= cut).mean() + (negative < cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(quality))])


def _all(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over the roles with a difference, with an interval over roles."""
    table = pd.DataFrame(rows).dropna(subset=["difference"])
    means = {name: float(table[name].mean()) for name in ("rate", "nulls", "mismatched")}
    low, high = stats.paired_bootstrap(table["rate"].tolist())
    differences = table["difference"].tolist()
    between = stats.paired_bootstrap(differences)
    return {
        "name": "all",
        "n": int(table["n"].sum()),
        "low": low,
        "high": high,
        **means,
        "difference": float(np.mean(differences)),
        "difference_low": between[0],
        "difference_high": between[1],
    }
