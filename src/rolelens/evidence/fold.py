"""Items that cells are chosen on, others that they are tried on, and all that is tried."""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rolelens import tasks
from rolelens.evidence.comparison import answer_table
from rolelens.hooks import Steering, Step
from rolelens.hooks.steps import ADDITIONS
from rolelens.lens import Lens
from rolelens.sweeps import Cell, cell_of_steering, score_cells, search, sweep
from rolelens.sweeps.runners import Runner
from rolelens.tasks import Options, Prepared, Questions
from rolelens.vectors import Direction, Directions, Null
from rolelens.vectors.nulls import matched_strength

Stores = Callable[[str], Path | None]
PROMPT = "You are a {role}."
READ = 2048
"""Tokens of the text whose perplexity is measured."""


@dataclass(frozen=True)
class Setting:
    """What is the same in every fold.

    Attributes:
        lens: the model.
        vectors: the directions and their nulls.
        names: the directions that are tried.
        places: the domain of every name; None: all items.
        grid: layers, positions, alphas and tokens.
        choose: ``search`` or ``sweep``.
        by: the measure that cells are chosen by.
        measure: the measure that effects are told in.
        method: how questions are scored.
        options: how the task is put.
        seed: of everything that is drawn.
        store: where finished pieces of something are kept.
        task: what is asked.
        runner: who scores cells; None is this process.
    """

    lens: Lens
    vectors: Directions
    names: tuple[str, ...]
    places: Mapping[str, str | None]
    grid: Mapping[str, Any]
    choose: str
    by: str
    measure: str
    method: str | None
    options: Options
    seed: int
    store: Stores
    task: str
    runner: Runner | None = None


@dataclass(frozen=True)
class Fold:
    """Items that cells are chosen on, items they are tried on, and what is tried.

    Attributes:
        setting: what is the same in every fold.
        selection: the items that cells are chosen on.
        test: the others.
        number: of the fold.
    """

    setting: Setting
    selection: Prepared
    test: Prepared
    number: int

    def chosen(self) -> tuple[pd.DataFrame, dict[str, Cell]]:
        """The best cell of every name, nulls included, and what it gained where it was chosen."""
        setting, store = self.setting, self.setting.store
        if setting.choose == "search":
            domains = {name: place for name, place in setting.places.items() if place is not None}
            result = search(
                setting.lens,
                setting.vectors,
                self.selection,
                domains=domains or None,
                **setting.grid,
                by=setting.by,
                seed=setting.seed,
                store=store(f"search-{self.number}"),
                runner=setting.runner,
            )
            table = result.table()
            best = table[table["chosen"]].drop(
                columns=["chosen", "predicted", "failed"], errors="ignore"
            )
            return best.assign(fold=self.number), dict(result.chosen)
        tables, cells = [], {}
        for domain, names in self._by_domain(setting.vectors.names).items():
            swept = sweep(
                setting.lens,
                setting.vectors[names],
                _domain(self.selection, domain),
                **setting.grid,
                store=store(f"sweep-{_slug(domain)}{self.number}"),
                runner=setting.runner,
            )
            table = swept.table().assign(items=len(swept.prepared.task), fold=self.number)
            for name in names:
                cells[name] = swept.best(name, setting.by)
            rows = [swept.cells.index(cells[name]) for name in names]
            dropped = ["zero", "control", "failed"]
            tables.append(table.iloc[rows].drop(columns=dropped, errors="ignore"))
        return pd.concat(tables, ignore_index=True), cells

    def tried(self, cells: Mapping[str, Cell]) -> tuple[Any, list[pd.DataFrame]]:
        """The chosen cells of the names, on items of all domains."""
        return self._scored("test", self.test, [cells[name] for name in self.setting.names])

    def permuted(self, cells: Mapping[str, Cell]) -> list[pd.DataFrame]:
        """The chosen cells of the names, in their domains, with the options in another order."""
        setting, frames = self.setting, []
        for domain, names in self._by_domain(setting.names).items():
            part = _domain(self.test, domain)
            assert isinstance(part.task, Questions)
            shuffled = part.task.permuted(setting.seed)
            prepared = tasks.prepare(setting.lens, shuffled, setting.method, **setting.options)
            chosen = [cells[name] for name in names]
            frames += self._scored(f"permuted-{_slug(domain)}", prepared, chosen)[1]
        return frames

    def disturbed(self, cells: Mapping[str, Cell]) -> list[pd.DataFrame]:
        """Nulls in the chosen cells of the names (``beside``), as strong, in the names' domains.

        Those that imitate a name are tried in its cell; all of the domain where none does.
        """
        setting, frames = self.setting, []
        nulls = self._by_domain(list(setting.vectors.nulls))
        for domain, names in self._by_domain(setting.names).items():
            pairs = [
                (name, _instead(setting.vectors, null, cells[name]))
                for name in names
                for null in _of_name(setting.vectors, nulls.get(domain, ()), name)
            ]
            if not pairs:
                continue
            part = _domain(self.test, domain)
            chosen = [cell for _, cell in pairs]
            tables = self._scored(f"nulls-{_slug(domain)}", part, chosen)[1]
            frames += [
                table.assign(beside=name) for (name, _), table in zip(pairs, tables, strict=True)
            ]
        return frames

    def read(self, cells: Mapping[str, Cell], text: str) -> pd.DataFrame:
        """How much less well a text is predicted in the chosen cells."""
        lens = self.setting.lens
        plain = tasks.perplexity(lens, text, max_tokens=READ).value
        rows = []
        for name in self.setting.names:
            hooks = on_text(cells[name].steering)
            steered = tasks.perplexity(lens, text, hooks, max_tokens=READ).value
            rows.append({"name": name, "perplexity": steered / plain})
        return pd.DataFrame(rows)

    def ablated(self, cells: Mapping[str, Cell], most: int, randoms: int) -> list[pd.DataFrame]:
        """The chosen directions removed, and random ones, on some items of each domain."""
        setting = self.setting
        items = [n for domain in self.test.task.domains for n in self._some(domain, most)]
        directions = [cells[name].steering.steps[0].direction for name in setting.names]
        drawn = torch.Generator().manual_seed(setting.seed)
        for number in range(randoms):
            noise = torch.randn(len(directions[0].vector), generator=drawn)
            null = Null(None, "random", number)
            like = directions[0]
            directions.append(
                Direction(
                    noise, like.layer, None, f"random {number}", source=like.source, null=null
                )
            )
        everywhere = tuple(range(setting.lens.n_layers))
        removed = [
            cell_of_steering(Steering([Step("ablate", direction, 1.0, everywhere)]))
            for direction in directions
        ]
        return self._scored("ablation", self.test.take(sorted(items)), removed)[1]

    def prompted(self, before: Any) -> list[pd.DataFrame]:
        """Every role as a prompt, on the items of its domain: as system prompt and as prefix.

        Where the chat template refuses system prompts, the two are one.
        """
        setting, frames = self.setting, []
        for role in setting.names:
            domain, text = setting.places[role], PROMPT.format(role=role)
            part = _domain(self.test, domain)
            forms: dict[str, dict[str, Any]] = {}
            if isinstance(part.task, Questions):
                forms["prefix"] = {"prefix": f"{text}\n\n"}
            if setting.lens.chat.takes_system:
                forms["system"] = {"system": text}
            unsteered = before if domain is None else before.domain(domain)
            for form, put in forms.items():
                options: Any = {**setting.options, **put}
                prompted = tasks.evaluate(setting.lens, part.task, (), setting.method, **options)
                table = answer_table(role, unsteered, prompted, setting.measure)
                frames.append(table.assign(form=form))
        return frames

    def _scored(
        self, name: str, prepared: Prepared, cells: Sequence[Cell]
    ) -> tuple[Any, list[pd.DataFrame]]:
        """The scores of the unsteered model, and the answers in every cell."""
        setting = self.setting
        store, measure = setting.store(f"{name}-{self.number}"), setting.measure
        before, after = score_cells(
            setting.lens, prepared, cells, store=store, runner=setting.runner
        )
        return before, [answer_table(cell.name, before, after[cell], measure) for cell in cells]

    def _by_domain(self, names: Sequence[str]) -> dict[str | None, list[str]]:
        """Names by their domain."""
        by_domain: dict[str | None, list[str]] = {}
        for name in names:
            by_domain.setdefault(self.setting.places[name], []).append(name)
        return by_domain

    def _some(self, domain: str, most: int) -> list[int]:
        """Items of a domain, drawn from all of it."""
        items = [n for n, item in enumerate(self.test.task) if item.domain == domain]
        rng = random.Random(f"{self.setting.seed} {domain}")
        return rng.sample(items, min(most, len(items)))


def on_text(steering: Steering) -> Steering:
    """A steering as it acts on a text: generated tokens are all of its tokens."""

    def everywhere(step: Step) -> Step:
        if step.tokens in ("generated", "last"):
            return dataclasses.replace(step, tokens="all")
        return step

    return steering.with_directions(everywhere)


def _instead(vectors: Directions, null: str, cell: Cell) -> Cell:
    """A cell with a null in place of its direction that is as strong."""

    def change(step: Step) -> Step:
        direction = vectors.direction(null, step.direction.layer, step.direction.position)
        alpha = step.alpha
        if step.kind in ADDITIONS and step.unit == "raw":
            alpha = matched_strength(direction, step.direction, alpha)
        return dataclasses.replace(step, direction=direction, alpha=alpha)

    steering = cell.steering.with_directions(change)
    return dataclasses.replace(cell, steering=steering, name=null, alpha=steering.steps[0].alpha)


def _of_name(vectors: Directions, nulls: Sequence[str], name: str) -> list[str]:
    """The nulls that imitate a name; all where none does."""
    imitating = [null for null in nulls if vectors.nulls[null].imitates == name]
    return imitating or list(nulls)


def _domain(prepared: Prepared, domain: str | None) -> Prepared:
    """The items of a domain."""
    if domain is None:
        return prepared
    return prepared.take([n for n, item in enumerate(prepared.task) if item.domain == domain])


def _slug(domain: str | None) -> str:
    """A domain in the name of a file, which stays in its folder; other domains, other names."""
    if domain is None:
        return ""
    plain = "".join(letter if letter.isalnum() else "_" for letter in domain)[:40]
    if plain != domain or not domain:
        plain += "-" + hashlib.sha256(domain.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain}-"
