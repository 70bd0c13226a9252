"""How often directions are read as their role, beside how often chance is."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from statsmodels.stats.inter_rater import cohens_kappa

from rolelens import stats
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.patchscope.judges import Judge, judged
from rolelens.patchscope.readers import Reading
from rolelens.vectors.nulls import imitated

TELLING = (
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
        found = (
            f"{self.judge}: AUROC {self.auroc:.2f} ({self.low:.2f} to {self.high:.2f}) on "
            f"{self.answers} answers of prompted roles and as many plain ones"
        )
        if self.trusted:
            return found
        return f"{found}; below {TRUSTED}, so it cannot tell and no rate is given"


@dataclass(frozen=True)
class Answers:
    """Answers whose role is known, which judges are tried on.

    Attributes:
        prompted: answers of the model when it is told to be a role.
        roles: that role, for each of them.
        plain: its answers to the same prompts without a role.
    """

    prompted: tuple[str, ...]
    roles: tuple[str, ...]
    plain: tuple[str, ...]


def answers(
    lens: Lens,
    roles: Sequence[str],
    prompts: Sequence[str] = TELLING,
    *,
    system: str = "You are a {role}.",
    max_new_tokens: int = 40,
) -> Answers:
    """Answer prompts as each role, with the role as system prompt, and without.

    Args:
        lens: the model that answers.
        roles: the roles; each prompt is answered as each.
        prompts: what is asked; answers to questions that leave the role no room tell no judge
            anything.
        system: the system prompt.
        max_new_tokens: length of an answer at most, in tokens.
    """
    if not roles or not prompts:
        raise InputError("a judge is tried on at least one role and one prompt.")
    plain = lens.generate(prompts, max_new_tokens=max_new_tokens)
    of = [role for role in roles for _ in prompts]
    said = [system.replace("{role}", role) for role in of]
    asked = list(prompts) * len(roles)
    prompted = lens.generate(asked, system=said, max_new_tokens=max_new_tokens)
    return Answers(tuple(prompted), tuple(of), tuple(plain * len(roles)))


def calibrate(judge: Judge, tried: Answers, *, seed: int = 0) -> Calibration:
    """Try a judge on answers whose role is known.

    Args:
        judge: who is tried.
        tried: the answers, from :func:`answers`.
        seed: of the order in which they are judged.

    Raises:
        InputError: the judge gave no verdict on any of them.
    """
    texts, asked = [*tried.prompted, *tried.plain], [*tried.roles, *tried.roles]
    scores = judged(judge, texts, asked, seed=seed)
    n = len(tried.prompted)
    first, second = np.array(scores[:n]), np.array(scores[n:])
    first, second = first[~np.isnan(first)], second[~np.isnan(second)]
    if not len(first) or not len(second):
        raise InputError(f"{judge.name} gave no verdict on the answers it was tried on.")
    groups = [torch.from_numpy(own)[:, None].double() for own in (first, second)]
    found = stats.separation(stats.Projections(judge.name, (0,), groups[0], groups[1]))
    return Calibration(
        judge=judge.name,
        auroc=found.auroc[0],
        low=found.low[0],
        high=found.high[0],
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
        readings: of roles and of nulls, whose names end in ``" ~ "`` and the role they imitate.
        judge: who judges.
        calibration: of this judge; it gives the threshold.
        mismatched: other roles that each reading is held against.
        seed: of the other roles, and of the order in which texts are judged.

    Returns:
        A row a role and one for all: ``n`` directions, ``rate`` with its 95 % Wilson interval,
        the rates of ``nulls`` and of ``mismatched`` roles, ``difference`` to the larger of the two,
        and for all roles its interval.

    Raises:
        InputError: the judge is not to be trusted, or another one was calibrated.
    """
    if calibration.judge != judge.name:
        raise InputError(f"{calibration.judge} was calibrated, and {judge.name} is to judge.")
    if not calibration.trusted:
        raise InputError(f"{calibration}.")
    return tally(verdicts(readings, judge, calibration.threshold, mismatched=mismatched, seed=seed))


def tally(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Count the verdicts of a judge that is to be trusted: what :func:`rates` returns.

    Args:
        verdicts: from :func:`verdicts`.
    """
    table = verdicts
    means = table.pivot_table(index="role", columns="kind", values="verdict", aggfunc="mean")
    shares: dict[Any, Any] = means.to_dict("index")
    own_verdicts = table[table["kind"] == "own"].groupby("role", sort=False)["verdict"]
    counts: dict[Any, Any] = own_verdicts.agg(["sum", "count"]).to_dict("index")
    rows: list[dict[str, Any]] = []
    for role in counts:
        own = {kind: float(shares[role].get(kind, np.nan)) for kind in KINDS}
        k, n = int(counts[role]["sum"]), int(counts[role]["count"])
        low, high = stats.wilson(k, n)
        chance = np.nanmax([own["null"], own["mismatched"]])
        rows.append(
            {
                "role": role,
                "n": n,
                "rate": own["own"],
                "low": low,
                "high": high,
                "nulls": own["null"],
                "mismatched": own["mismatched"],
                "difference": own["own"] - float(chance),
            }
        )
    return pd.DataFrame([*rows, _all(rows)])


KINDS = ("own", "null", "mismatched")


def verdicts(
    readings: Sequence[Reading],
    judge: Judge,
    threshold: float,
    *,
    mismatched: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether each reading is that of its role, of the one it imitates, and of some others.

    Returns:
        A row a question to the judge: ``role`` asked about, ``kind`` (``own``, ``null`` or
        ``mismatched``), ``read`` off which direction, its ``layer`` and ``position``, ``text``,
        ``score`` and ``verdict``; what has no score has no row.
    """
    roles = list(
        dict.fromkeys(r.direction.role for r in readings if not imitated(r.direction.role))
    )
    if not roles:
        raise InputError("there are no readings of roles, only of nulls; pass both.")
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for reading in readings:
        name = reading.direction.role
        of = imitated(name)
        asked = [(of or name, "null" if of else "own")]
        others = [role for role in roles if role != name]
        if not of and others and mismatched:
            drawn = rng.choice(len(others), size=min(mismatched, len(others)), replace=False)
            asked += [(others[n], "mismatched") for n in drawn]
        for role, kind in asked:
            if role in roles:
                rows.append(
                    {
                        "role": role,
                        "kind": kind,
                        "read": name,
                        "layer": reading.direction.layer,
                        "position": reading.direction.position,
                        "text": reading.text,
                    }
                )
    table = pd.DataFrame(rows)
    table["score"] = judged(judge, table["text"].tolist(), table["role"].tolist(), seed=seed)
    table = table[table["score"].notna()].reset_index(drop=True)
    return table.assign(verdict=table["score"] >= threshold)


def confusion(readings: Sequence[Reading], judge: Judge, *, seed: int = 0) -> pd.DataFrame:
    """As which role each role's directions read most: shares, role by reading.

    Args:
        readings: of roles; every one is held against all of them.
        judge: who judges.
        seed: of the order in which texts are judged.

    Returns:
        A row a role, a column a role it is read as; rows sum to 1. Where several roles score the
        same, each gets its part.
    """
    roles = list(dict.fromkeys(reading.direction.role for reading in readings))
    pairs = list(itertools.product(readings, roles))
    scores = judged(judge, [r.text for r, _ in pairs], [role for _, role in pairs], seed=seed)
    grid = np.array(scores).reshape(len(readings), len(roles))
    best = (grid == np.nanmax(grid, axis=1, keepdims=True)).astype(float)
    best /= best.sum(axis=1, keepdims=True)
    table = pd.DataFrame(best, columns=roles)
    table["role"] = [reading.direction.role for reading in readings]
    return table.groupby("role").mean().loc[roles]


def agreement(verdicts: Mapping[str, Sequence[bool]]) -> pd.DataFrame:
    """Cohen's kappa of every two judges' verdicts on the same texts: 1 is all, 0 is by chance.

    Args:
        verdicts: of each judge.
    """
    rows = []
    for (one, first), (other, second) in itertools.combinations(verdicts.items(), 2):
        both = pd.crosstab(np.array(first, dtype=bool), np.array(second, dtype=bool))
        square = both.reindex(index=[False, True], columns=[False, True], fill_value=0)
        with np.errstate(invalid="ignore"):  # no interval where a judge says one thing only
            found = cohens_kappa(square.to_numpy())
        same = np.trace(square.to_numpy()) / square.to_numpy().sum()
        rows.append(
            {
                "judge": one,
                "other": other,
                "texts": len(first),
                "same": same,
                "kappa": found.kappa,
                "low": found.kappa_low,
                "high": found.kappa_upp,
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
    """The mean over roles, with an interval over roles."""
    table = pd.DataFrame(rows)
    means = {name: float(table[name].mean()) for name in ("rate", "nulls", "mismatched")}
    low, high = stats.paired_bootstrap(table["rate"].tolist())
    differences = table["difference"].tolist()
    between = stats.paired_bootstrap(differences)
    return {
        "role": "all",
        "n": int(table["n"].sum()),
        "low": low,
        "high": high,
        **means,
        "difference": float(np.mean(differences)),
        "difference_low": between[0],
        "difference_high": between[1],
    }
