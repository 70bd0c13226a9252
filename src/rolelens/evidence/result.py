"""What a study found: typed effects, tables and verdicts, and their files."""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown, write_whole
from rolelens.evidence.controls import Headroom
from rolelens.evidence.families import Effect, effect_table
from rolelens.evidence.wording import Amount
from rolelens.hooks import Steering
from rolelens.rows import parsed
from rolelens.sweeps import Cell
from rolelens.vectors.files import reading, write_tensors

FRAMES = ("chosen", "transfer", "given", "answers", "nulls")


@dataclass(frozen=True, eq=False, repr=False)
class Study(Shown):
    """What every direction does, on items that its cell was not chosen on.

    Attributes:
        task: what was asked.
        measure: what effects are told in.
        headroom: what the unsteered model can do in each domain; directions of domains where it is
            at chance are not tried.
        effects: one a direction.
        ablation: the same for the directions removed; with gains of random ones.
        prompted: the same for roles as prompts, without steering; by ``form``.
        cells: the chosen cells of each name, nulls included, one a fold.
        frames: further tables, see :meth:`table`.
    """

    task: str
    measure: str
    headroom: Mapping[str, Headroom]
    effects: tuple[Effect, ...] = ()
    ablation: tuple[Effect, ...] = ()
    prompted: tuple[Effect, ...] = ()
    cells: Mapping[str, tuple[Cell, ...]] = field(default_factory=dict)
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The study in one sentence: how many directions act, and what would have shown."""
        below = [domain for domain, room in self.headroom.items() if not room.above_chance]
        at_chance = f"at chance in {len(below)} of {len(self.headroom)} domains" if below else ""
        if not self.effects:
            return f"No direction was tried: the model is {at_chance or 'not asked anything'}."
        shown = [effect for effect in self.effects if effect.is_shown]
        told = f"{len(shown)} of {len(self.effects)} directions beyond chance on held-out items"
        if shown:
            told += f": {', '.join(effect.name for effect in shown)}"
        amount = Amount(self.measure)
        least = min((e.detectable for e in self.effects if e.detectable is not None), default=None)
        if least is None:
            told += "; on so few items this run could not have shown any change"
        else:
            told += f"; this run could have shown a change of {amount.shown(least)}"
        return f"{told}. The model is {at_chance}." if at_chance else f"{told}."

    @property
    def verdicts(self) -> list[str]:
        """A sentence for every direction, or for every domain where nothing can be found."""
        told = [
            f"{domain}: {room}." for domain, room in self.headroom.items() if not room.above_chance
        ]
        return told + [effect.verdict for effect in self.effects]

    def table(self, which: str = "effects") -> pd.DataFrame:
        """One of the tables.

        Args:
            which: ``effects``, ``ablation`` or ``prompted``, a row an effect, see
                :class:`Effect`; ``chosen``, a row for each name and fold with its cell,
                ``strength`` (the norm of what is added as a share of the residual norm), its gains
                where it was chosen, and for directions ``rank``, the share of nulls that gained as
                much (itself counted), never below ``floor``, ``shared``, the cosine with the mean
                of all directions, ``split_half``, the cosine of the two halves, and
                ``split_half_rest``, the same without what the directions share; ``transfer``, a row
                for each name and domain; ``given``, how often each letter is given; ``answers``, a
                row for each name and held-out item; ``nulls``, the same of nulls in the chosen
                cells.

        Raises:
            InputError: there is no such table.
        """
        if which in ("effects", "ablation", "prompted"):
            return effect_table(getattr(self, which))
        if which not in FRAMES:
            raise unknown("table", which, ("effects", "ablation", "prompted", *FRAMES))
        return self.frames.get(which, pd.DataFrame()).copy()

    def best(self, name: str, fold: int = 0) -> Cell:
        """The cell that was chosen for a name in a fold: exactly what was tried.

        Raises:
            InputError: no such name or fold.
        """
        if name not in self.cells:
            raise unknown("name", name, self.cells)
        if not 0 <= fold < len(self.cells[name]):
            raise unknown("fold", fold, range(len(self.cells[name])))
        return self.cells[name][fold]

    def save(self, folder: str | Path) -> Path:
        """Write all of it into a folder, which :func:`rolelens.load_study` reads.

        Every table as CSV, the verdicts as text, all of it as ``study.json``, and the chosen
        steerings as ``steerings.safetensors``. What is missing in a table is empty in CSV and null
        in JSON.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        effects = {
            name: [dataclasses.asdict(effect) for effect in getattr(self, name)]
            for name in ("effects", "ablation", "prompted")
        }
        content: dict[str, Any] = {
            "task": self.task,
            "measure": self.measure,
            "verdicts": self.verdicts,
            "headroom": {domain: dataclasses.asdict(r) for domain, r in self.headroom.items()},
            **effects,
            **{
                name: json.loads(table.to_json(orient="table", index=False, double_precision=15))
                for name, table in self.frames.items()
            },
            "cells": {
                name: [{**cell.label, "steering": cell.steering.to_dict()} for cell in cells]
                for name, cells in self.cells.items()
            },
        }
        vectors = {
            step.direction.sha: step.direction.vector
            for cells in self.cells.values()
            for cell in cells
            for step in cell.steering.steps
        }
        for name in (*effects, *self.frames):
            write_whole(folder / f"{name}.csv", self.table(name).to_csv(index=False))
        write_whole(folder / "verdicts.txt", "\n".join(self.verdicts) + "\n")
        write_tensors(folder / "steerings.safetensors", vectors, {"study": self.task})
        write_whole(folder / "study.json", json.dumps(content, indent=1) + "\n")
        return folder

    def card(self) -> Card:
        """How many directions were tried, and how many do something."""
        shown = [effect.name for effect in self.effects if effect.is_shown]
        above = [domain for domain, room in self.headroom.items() if room.above_chance]
        facts = {
            "directions": str(len(self.effects)),
            "above chance": ", ".join(above) or "none",
            "effects beyond chance": ", ".join(shown) or "none",
        }
        return Card("Study", facts, "study.verdicts, study.table(), study.best(name)")


def load_study(folder: str | Path) -> Study:
    """Read what :meth:`Study.save` wrote, without the model.

    Raises:
        InputError: there is no such study, or its files are damaged.
    """
    folder = Path(folder)
    path = folder / "study.json"
    if not path.is_file():
        raise InputError(f"no study in {str(folder)!r}; name a folder that study.save wrote.")
    content = parsed(path)
    with reading(folder / "steerings.safetensors", "the steerings of a study") as (_, vectors):
        cells = {
            name: tuple(
                Cell(
                    Steering.from_dict(cell["steering"], vectors),
                    *(cell[key] for key in ("name", "layer", "position", "alpha")),
                )
                for cell in several
            )
            for name, several in content["cells"].items()
        }
        return Study(
            task=content["task"],
            measure=content["measure"],
            headroom={name: Headroom(**room) for name, room in content["headroom"].items()},
            effects=tuple(Effect(**effect) for effect in content["effects"]),
            ablation=tuple(Effect(**effect) for effect in content["ablation"]),
            prompted=tuple(Effect(**effect) for effect in content["prompted"]),
            cells=cells,
            frames={
                name: pd.read_json(io.StringIO(json.dumps(content[name])), orient="table")
                for name in FRAMES
                if name in content
            },
        )
