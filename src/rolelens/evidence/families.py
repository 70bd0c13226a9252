"""Effects on held-out items: a row a name, corrected for the family. It runs no model.

Everything here takes *answers*, a table with a row for each name and held-out item: ``name``,
``item``, ``domain``, what it was worth ``before`` and ``after``; of questions also the ``correct``
letter, those ``given_before`` and ``given_after``, and the change of its ``margin`` (nats); see
:func:`rolelens.evidence.answer_table`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rolelens import stats
from rolelens.errors import InputError
from rolelens.evidence.comparison import changes, detectable_of, gain_of
from rolelens.evidence.wording import Amount


@dataclass(frozen=True)
class Effect:
    """What one name does to held-out items, beside all that its claim needs.

    Attributes:
        name: of the directions.
        domain: its domain; None where all items are asked.
        measure: what was measured.
        items: held-out items of its domain.
        before: mean of the unsteered model.
        after: mean of the steered model.
        gain: their difference.
        low: lower end of its 95 % paired bootstrap interval.
        high: its upper end.
        p: exact McNemar test of right and wrong answers, else paired permutation test.
        p_holm: p with Holm's correction over all names.
        p_bh: p with Benjamini and Hochberg's.
        detectable: smallest gain that would have survived the correction.
        where_chosen: gain on the items that the cell was chosen on.
        optimism: that minus ``gain``.
        constant: of letters, accuracy of always giving the one that is correct most often.
        margin: change of the mean margin of questions, in nats, with its interval.
        margin_low: lower end.
        margin_high: upper end.
        permuted: of letters, gain with the options in another order.
        null_low: lowest gain of nulls in the same cell.
        null_high: highest gain of nulls in the same cell.
        null_rank: share of these that gained as much, or lost as much where it loses (itself
            counted).
        outside: gain on items of other domains.
        interaction: gain in the domain minus gain outside, with interval and p-values.
        interaction_low: lower end.
        interaction_high: upper end.
        interaction_p: p by permutation of Welch's t.
        interaction_p_holm: with Holm's correction.
        interaction_p_bh: with Benjamini and Hochberg's.
        perplexity: of a text, steered as a multiple of unsteered.
        random: mean change under random directions in the same domain, where there are any.
        form: how the name was put, where it was a prompt.
    """

    name: str
    domain: str | None
    measure: str
    items: int
    before: float
    after: float
    gain: float
    low: float
    high: float
    p: float
    p_holm: float = float("nan")
    p_bh: float = float("nan")
    detectable: float | None = None
    where_chosen: float | None = None
    optimism: float | None = None
    constant: float | None = None
    margin: float | None = None
    margin_low: float | None = None
    margin_high: float | None = None
    permuted: float | None = None
    null_low: float | None = None
    null_high: float | None = None
    null_rank: float | None = None
    outside: float | None = None
    interaction: float | None = None
    interaction_low: float | None = None
    interaction_high: float | None = None
    interaction_p: float | None = None
    interaction_p_holm: float | None = None
    interaction_p_bh: float | None = None
    perplexity: float | None = None
    random: float | None = None
    form: str | None = None

    @property
    def is_shown(self) -> bool:
        """Whether it is beyond chance after correction."""
        return self.p_holm < stats.LEVEL

    @property
    def verdict(self) -> str:
        """All of it in a sentence."""
        amount = Amount(self.measure)
        where = f" of {self.domain}" if self.domain is not None else ""
        beside = ""
        if self.null_low is not None and self.null_high is not None:
            between = amount.between(self.null_low, self.null_high)
            beside = f", nulls in the same cell {between}"
        chosen = ""
        if self.where_chosen is not None:
            chosen = f", {amount.number(self.where_chosen)} where the cell was chosen"
        told = (
            f"{amount.text(self.gain)} on {self.items} held-out items{where} ({self.before:.3f} -> "
            f"{self.after:.3f}, 95 % interval {amount.between(self.low, self.high)}, "
            f"p = {self.p_holm:.2g} over all names{beside}{chosen})"
        )
        if not self.is_shown:
            shown = amount.shown(self.detectable)
            return f"{self.name}: nothing beyond chance, {told}; {shown} would have shown."
        return f"{self.name}: {self._word}, {told}{self._elsewhere(amount)}."

    @property
    def _word(self) -> str:
        """What it does, and what speaks against that it means anything."""
        word = "raises it" if self.gain > 0 else "lowers it"
        if self.measure == "accuracy":
            word = "helps" if self.gain > 0 else "hurts"
        low, high = self.null_low, self.null_high
        if low is not None and high is not None and stats.reached(self.gain, low, high):
            word += ", but so does a null in the same cell"
        if self.permuted is not None:
            if self.permuted * self.gain <= 0:
                word += ", but not with the options in another order"
            elif self.gain > 0 and self.constant is not None and self.after <= self.constant:
                word += ", but no more than always giving one letter"
        return word

    def _elsewhere(self, amount: Amount) -> str:
        if self.domain is None:
            return ""
        if self.interaction is None or self.interaction_p_holm is None:
            return "; other domains were not asked"
        more = self.interaction_p_holm < stats.LEVEL and self.interaction * self.gain > 0
        what = "more than elsewhere" if more else "not more than elsewhere"
        low, high = self.interaction_low or 0.0, self.interaction_high or 0.0
        return (
            f", and {what}: {amount.text(self.interaction)} beside other domains "
            f"({amount.between(low, high)}, p = {self.interaction_p_holm:.2g})"
        )


def effects(
    answers: pd.DataFrame, domains: Mapping[str, str | None], measure: str = "accuracy"
) -> list[Effect]:
    """What every name does in its domain, and whether it does more there than elsewhere.

    Args:
        answers: of every name, on its domain and on others.
        domains: the domain of each name; None: all items are its domain.
        measure: what was measured.

    Returns:
        One a name, corrected over all of them.

    Raises:
        InputError: a name without a domain, or without an item of it.
    """
    family = int(answers["name"].nunique())
    made = []
    for name, rows in _by_name(answers, domains):
        inside, outside = _split(rows, domains[name])
        columns: dict[str, Any] = {}
        tested: Any = gain_of(inside)
        if "correct" in inside:
            shares = inside["correct"].value_counts(normalize=True)
            columns["constant"] = float(shares.iloc[0])
            margin = stats.paired(inside["margin"].tolist())
            columns |= {
                "margin": margin.value,
                "margin_low": margin.low,
                "margin_high": margin.high,
            }
        if min(len(inside), len(outside)) > 1:
            more = stats.interaction(changes(inside).tolist(), changes(outside).tolist())
            columns |= {
                "outside": float(changes(outside).mean()),
                "interaction": more.value,
                "interaction_low": more.low,
                "interaction_high": more.high,
                "interaction_p": more.p,
            }
        made.append(
            Effect(
                name=name,
                domain=domains[name],
                measure=measure,
                items=len(inside),
                before=float(inside["before"].mean()),
                after=float(inside["after"].mean()),
                **tested,
                detectable=detectable_of(inside, family),
                **columns,
            )
        )
    return _corrected(made)


def effect_table(made: Iterable[Effect]) -> pd.DataFrame:
    """Effects as a table: a row each, without the columns that none of them has."""
    table = pd.DataFrame([dataclasses.asdict(effect) for effect in made])
    return table.dropna(axis="columns", how="all") if len(table) else table


def given(answers: pd.DataFrame, domains: Mapping[str, str | None]) -> pd.DataFrame:
    """How often each letter is correct, and given before and after, by name in its domain.

    Steering that only moves a model to another letter shows here.

    Returns:
        A row for each name and letter: shares ``correct``, ``before`` and ``after``; empty where
        the answers are no letters.
    """
    if "correct" not in answers:
        return pd.DataFrame()
    rows = []
    columns = {"correct": "correct", "before": "given_before", "after": "given_after"}
    for name, table in _by_name(answers, domains):
        inside, _ = _split(table, domains[name])
        shares = {new: inside[old].value_counts(normalize=True) for new, old in columns.items()}
        for letter in sorted(set().union(*(share.index for share in shares.values()))):
            row: dict[str, Any] = {"name": name, "letter": letter}
            rows.append(row | {new: share.get(letter, 0.0) for new, share in shares.items()})
    return pd.DataFrame(rows)


def transfer(answers: pd.DataFrame) -> pd.DataFrame:
    """What every name does in every domain, corrected over all of them.

    Returns:
        A row for each name and domain: ``gain`` with its interval, ``p``, ``p_holm``, ``p_bh``.
    """
    rows = [
        {"name": name, "domain": domain, "items": len(table), **gain_of(table)}
        for (name, domain), table in answers.groupby(["name", "domain"], sort=False)
    ]
    table = pd.DataFrame(rows)
    p = table["p"].tolist()
    return table.assign(
        p_holm=stats.adjusted(p, "holm"), p_bh=stats.adjusted(p, "benjamini-hochberg")
    )


def beside_nulls(made: Iterable[Effect], answers: pd.DataFrame) -> list[Effect]:
    """Effects with what nulls do in the very same cells: disturbance alone may do as much.

    Args:
        made: from :func:`effects`.
        answers: of nulls, with the name whose cell they were tried in as ``beside``.
    """
    gains = changes(answers).groupby([answers["beside"], answers["name"]]).mean()
    out = []
    for effect in made:
        if effect.name not in gains:
            out.append(effect)
            continue
        nulls = gains[effect.name].tolist()
        sign = 1 if effect.gain >= 0 else -1
        out.append(
            dataclasses.replace(
                effect,
                null_low=min(nulls),
                null_high=max(nulls),
                null_rank=stats.null_rank(sign * effect.gain, [sign * gain for gain in nulls]),
            )
        )
    return out


def _by_name(
    answers: pd.DataFrame, domains: Mapping[str, str | None]
) -> Iterable[tuple[str, pd.DataFrame]]:
    for name, table in answers.groupby("name", sort=False):
        if name not in domains:
            raise InputError(f"{name!r} has no domain; name one for it.")
        domain = domains[str(name)]
        if domain is not None and not (table["domain"] == domain).any():
            raise InputError(f"{name!r} was not asked an item of its domain {domain!r}.")
        yield str(name), table


def _split(table: pd.DataFrame, domain: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    inside = pd.Series(True, index=table.index) if domain is None else table["domain"] == domain
    return table[inside], table[~inside]


def _corrected(made: list[Effect]) -> list[Effect]:
    """With p-values corrected over all of them."""
    for column in ("p", "interaction_p"):
        known = [n for n, effect in enumerate(made) if getattr(effect, column) is not None]
        p = [getattr(made[n], column) for n in known]
        holm, bh = stats.adjusted(p, "holm"), stats.adjusted(p, "benjamini-hochberg")
        for n, first, second in zip(known, holm, bh, strict=True):
            changed = {f"{column}_holm": first, f"{column}_bh": second}
            made[n] = dataclasses.replace(made[n], **changed)  # type: ignore[arg-type]
    return made
