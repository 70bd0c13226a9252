"""Effects on held-out answers: a row a role, corrected for the family. It runs no model.

Everything here takes *answers*, a table with a row for each role and held-out question: ``role``,
``question``, ``domain``, the ``correct`` letter and those ``given_before`` and ``given_after``,
whether it was right ``before`` and ``after``, and the change of its ``margin`` (nats).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from rolelens import stats
from rolelens.benchmarks import LETTERS
from rolelens.errors import InputError
from rolelens.evidence.compare import check_questions
from rolelens.scoring import Scores


def answered(role: str, before: Scores, after: Scores) -> pd.DataFrame:
    """The answers of one role."""
    check_questions(before, after)
    return pd.DataFrame(
        {
            "role": role,
            "question": before.questions,
            "domain": before.domains,
            "correct": _letters(before.answers),
            "given_before": _letters(before.predictions),
            "given_after": _letters(after.predictions),
            "before": before.correct.tolist(),
            "after": after.correct.tolist(),
            "margin": (after.margins.double() - before.margins.double()).tolist(),
        }
    )


def changes(answers: pd.DataFrame) -> pd.Series:
    """Of every answer: 1 where it became right, -1 where it became wrong."""
    return answers["after"].astype(float) - answers["before"].astype(float)


def effects(answers: pd.DataFrame, domains: Mapping[str, str]) -> pd.DataFrame:
    """What every role does in its domain, and whether it does more there than elsewhere.

    Args:
        answers: of every role, on its domain and on others.
        domains: the domain of each role.

    Returns:
        A row a role: ``questions`` of its domain, accuracy ``before`` and ``after`` and of the best
        ``constant`` letter, ``gain`` with its 95 % interval (``low``, ``high``), exact McNemar
        ``p`` with ``p_holm`` and ``p_bh`` over all roles, ``margin`` change (nats) with its
        interval, gain ``outside`` of the domain, and the ``interaction`` (gain inside minus
        outside) with interval and p-values likewise. ``detectable`` is the smallest gain that would
        have survived the correction, see :func:`rolelens.stats.detectable`.
    """
    rows, family = [], answers["role"].nunique()
    for role, own in _by_role(answers, domains):
        inside, outside = _split(own, domains[role])
        change = changes(inside).tolist()
        margin = stats.paired(inside["margin"].tolist())
        row: dict[str, Any] = {
            "role": role,
            "domain": domains[role],
            "questions": len(inside),
            "before": inside["before"].mean(),
            "after": inside["after"].mean(),
            "constant": inside["correct"].value_counts(normalize=True).iloc[0],
            **_gain(inside),
            "margin": margin.value,
            "margin_low": margin.low,
            "margin_high": margin.high,
            "detectable": stats.detectable(
                len(change), sum(map(abs, change)) / len(change), family=family
            ),
        }
        if min(len(inside), len(outside)) > 1:
            more = stats.interaction(change, changes(outside).tolist())
            row |= {
                "outside": float(outside["after"].mean() - outside["before"].mean()),
                "interaction": more.value,
                "interaction_low": more.low,
                "interaction_high": more.high,
                "interaction_p": more.p,
            }
        rows.append(row)
    return _corrected(pd.DataFrame(rows), "p", "interaction_p")


def given(answers: pd.DataFrame, domains: Mapping[str, str]) -> pd.DataFrame:
    """How often each letter is correct, and given before and after, by role in its domain.

    Steering that only moves a model to another letter shows here.

    Returns:
        A row for each role and letter: shares ``correct``, ``before`` and ``after``.
    """
    rows = []
    for role, own in _by_role(answers, domains):
        inside, _ = _split(own, domains[role])
        columns = {"correct": "correct", "before": "given_before", "after": "given_after"}
        shares = {name: inside[old].value_counts(normalize=True) for name, old in columns.items()}
        for letter in sorted(set().union(*(own.index for own in shares.values()))):
            row: dict[str, Any] = {"role": role, "letter": letter}
            rows.append(row | {name: own.get(letter, 0.0) for name, own in shares.items()})
    return pd.DataFrame(rows)


def transfer(answers: pd.DataFrame) -> pd.DataFrame:
    """What every role does in every domain, corrected over all of them.

    Returns:
        A row for each role and domain: ``gain`` with its interval, ``p``, ``p_holm``, ``p_bh``.
    """
    rows = [
        {"role": role, "domain": domain, "questions": len(own), **_gain(own)}
        for (role, domain), own in answers.groupby(["role", "domain"], sort=False)
    ]
    return _corrected(pd.DataFrame(rows), "p")


def beside_nulls(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """What nulls do in the very cells of the roles: disturbance alone may do as much.

    Args:
        table: from :func:`effects`.
        answers: of nulls, with the role whose cell they were tried in as ``beside``.

    Returns:
        The table, with the lowest and highest gain of nulls (``null_low``, ``null_high``), and as
        ``null_rank`` the share of them that gained as much as the role, or lost as much where it
        loses (itself counted).
    """
    change = changes(answers).groupby([answers["beside"], answers["role"]]).mean()
    rows = []
    for role, gain in zip(table["role"], table["gain"], strict=True):
        own = change[role].tolist() if role in change else []
        sign = 1 if gain >= 0 else -1
        rows.append(
            {
                "null_low": min(own, default=None),
                "null_high": max(own, default=None),
                "null_rank": stats.null_rank(sign * gain, [sign * x for x in own]) if own else None,
            }
        )
    return table.assign(**pd.DataFrame(rows, index=table.index, dtype=float))


def verdict(row: Mapping[str, Any]) -> str:
    """One row of :func:`effects` in a sentence."""
    role, domain, nulls = row["role"], row["domain"], _nulls(row)
    found = (
        f"{100 * row['gain']:+.1f} points on {row['questions']:.0f} held-out questions of {domain} "
        f"(95 % interval {stats.points_between(row['low'], row['high'])}, "
        f"p = {row['p_holm']:.2g} over all roles{nulls})"
    )
    if row["p_holm"] >= stats.LEVEL:
        shown = stats.in_points(None if pd.isna(row["detectable"]) else row["detectable"])
        return f"{role}: nothing beyond chance, {found}; {shown} would have shown."
    word = "helps" if row["gain"] > 0 else "hurts"
    if nulls and stats.reached(row["gain"], row["null_low"], row["null_high"]):
        word += ", but so does a null in the same cell"
    if pd.notna(row.get("permuted")):  # letters
        if row["permuted"] * row["gain"] <= 0:
            word += ", but not with the options in another order"
        elif row["gain"] > 0 and row["after"] <= row["constant"]:
            word += ", but no more than always giving one letter"
    if "interaction" not in row or pd.isna(row["interaction"]):
        return f"{role}: {word}, {found}; other domains were not asked."
    elsewhere = (
        f"{100 * row['interaction']:+.1f} points beside other domains "
        f"({stats.points_between(row['interaction_low'], row['interaction_high'])}, "
        f"p = {row['interaction_p_holm']:.2g})"
    )
    own = row["interaction_p_holm"] < stats.LEVEL and row["interaction"] * row["gain"] > 0
    what = "more than elsewhere" if own else "not more than elsewhere"
    return f"{role}: {word}, {found}, and {what}: {elsewhere}."


def _nulls(row: Mapping[str, Any]) -> str:
    """What nulls did in the same cell, where they were tried."""
    if pd.isna(row.get("null_high")):
        return ""
    return f", nulls in the same cell {stats.points_between(row['null_low'], row['null_high'])}"


def _by_role(
    answers: pd.DataFrame, domains: Mapping[str, str]
) -> Iterable[tuple[str, pd.DataFrame]]:
    for role, own in answers.groupby("role", sort=False):
        if role not in domains:
            raise InputError(f"the role {role!r} has no domain; name one for it.")
        if not (own["domain"] == domains[str(role)]).any():
            raise InputError(
                f"the role {role!r} was not asked a question of its domain {domains[str(role)]!r}."
            )
        yield str(role), own


def _split(own: pd.DataFrame, domain: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    inside = own["domain"] == domain
    return own[inside], own[~inside]


def _letters(options: Int[Tensor, " question"]) -> list[str]:
    return [LETTERS[index] for index in options.tolist()]


def _gain(own: pd.DataFrame) -> dict[str, Any]:
    """Gain on some questions, with its interval and p."""
    change = changes(own).tolist()
    low, high = stats.paired_bootstrap(change)
    return {
        "gain": sum(change) / len(change),
        "low": low,
        "high": high,
        "p": stats.mcnemar(own["before"].tolist(), own["after"].tolist()),
    }


def _corrected(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Add the corrected p-values of some columns."""
    for column in columns:
        if column in table:
            p = table[column].tolist()
            table[f"{column}_holm"] = stats.adjusted(p, "holm")
            table[f"{column}_bh"] = stats.adjusted(p, "benjamini-hochberg")
    return table
