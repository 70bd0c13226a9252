"""Does a study come out the same with directions from other prompts?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.evidence.experiment import study
from rolelens.evidence.result import Study
from rolelens.lens import Lens
from rolelens.vectors import Directions


@dataclass(frozen=True, eq=False, repr=False)
class PromptFolds(Shown):
    """Studies of the same names, whose directions were made without each fold of the prompts.

    Attributes:
        studies: one a fold.
        frame: a row a fold and name, see :meth:`table`.
    """

    studies: tuple[Study, ...]
    frame: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """A row a fold of the prompts and name.

        ``prompt_fold``, ``name``, the chosen ``layer``, ``position`` and ``alpha``, and the
        ``gain`` on other items with its interval (``low``, ``high``). The items are split alike in
        every fold.
        """
        return self.frame

    def agreement(self) -> pd.DataFrame:
        """A row a name: how much the folds agree.

        The most frequent ``layer``, ``position`` and ``alpha``, the share of folds that chose it
        (``same_layer``, ``same_position``, ``same_alpha``), and the mean, lowest and highest gain.
        """
        rows = []
        for name, part in self.frame.groupby("name", sort=False):
            row: dict[str, Any] = {"name": name, "folds": len(part)}
            for column in ("layer", "position", "alpha"):
                counts = part[column].value_counts(dropna=False)
                row[column] = counts.index[0]
                row[f"same_{column}"] = float(counts.iloc[0]) / len(part)
            gains = part["gain"]
            row |= {
                "gain": float(gains.mean()),
                "lowest": float(gains.min()),
                "highest": float(gains.max()),
            }
            rows.append(row)
        return pd.DataFrame(rows)

    def card(self) -> Card:
        """For each name, where folds agree."""
        facts = {
            str(row["name"]): f"layer {row['layer']} in {row['same_layer']:.0%} of {row['folds']} "
            f"folds, gain {row['gain']:+.3g} ({row['lowest']:+.3g} to {row['highest']:+.3g})"
            for _, row in self.agreement().iterrows()
        }
        return Card("PromptFolds", facts, "folds.table(), folds.agreement()")


def study_folds(
    lens: Lens,
    vectors: Sequence[Directions],
    task: Any,
    domains: Mapping[str, str] | None = None,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> PromptFolds:
    """Repeat a study with directions made without each fold of the prompts.

    An effect that is the role's stays at the same layer and position, and about as large, whichever
    prompts the direction was made of.

    Args:
        lens: the model.
        vectors: from :func:`rolelens.extraction.fold_vectors`.
        task: as for :func:`rolelens.study`.
        domains: likewise.
        folder: keeps each finished piece, in a folder for each fold.
        options: as for :func:`rolelens.study`.

    Raises:
        InputError: fewer than 2 folds, folds of different names, layers or positions, or a study
            that chose nothing because the model is at chance (pass ``anyway=True``).
    """
    several = list(vectors) if isinstance(vectors, Sequence) else []
    if len(several) < 2 or not all(isinstance(one, Directions) for one in several):
        raise InputError(
            "vectors has to be a list of at least 2 folds, as from fold_vectors(lens, roles, base)."
        )
    first = several[0]
    for one in several[1:]:
        if (one.names, one.layers, one.positions) != (first.names, first.layers, first.positions):
            raise InputError(
                "the folds have other names, layers or positions than each other; take all from "
                "one call of fold_vectors."
            )
    studies, rows = [], []
    for number, one in enumerate(several):
        where = None if folder is None else Path(folder) / f"prompts-{number}"
        made = study(lens, one, task, domains, folder=where, **options)
        studies.append(made)
        if not made.effects:
            raise InputError(
                f"the unsteered model is at chance on {made.task!r}, so that nothing was chosen; "
                "pass anyway=True, or another task."
            )
        chosen = made.table("chosen")
        for effect in made.effects:
            cells = chosen[chosen["name"] == effect.name]
            rows += [
                {
                    "prompt_fold": number,
                    "name": effect.name,
                    "layer": cell["layer"],
                    "position": cell["position"],
                    "alpha": cell["alpha"],
                    "gain": effect.gain,
                    "low": effect.low,
                    "high": effect.high,
                }
                for _, cell in cells.iterrows()
            ]
    return PromptFolds(tuple(studies), pd.DataFrame(rows))
