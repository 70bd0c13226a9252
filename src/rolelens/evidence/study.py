"""One study: cells chosen on some questions, and what they do on others, beside nulls."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rolelens import stats
from rolelens.benchmarks import Benchmark
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.evidence.controls import Headroom, headroom
from rolelens.evidence.effects import LEVEL, answered, changes, effects, transfer, verdict
from rolelens.forward import Selection
from rolelens.hooks import add
from rolelens.lens import Lens
from rolelens.progress import Say
from rolelens.scoring import Method, Scores, evaluate, perplexity
from rolelens.sweep import Key, score_cells, search
from rolelens.vectors import RoleVectors, concat

Stores = Callable[[str], Path | None]
PROMPT = "You are a {role}."
READ = 2048
"""Tokens of the text whose perplexity is measured."""


@dataclass(frozen=True, eq=False, repr=False)
class Study(Shown):
    """What every role does, on questions that its cell was not chosen on.

    Attributes:
        headroom: what the unsteered model can do in each domain; roles of domains where it is at
            chance are not tried.
        chosen: a row for each role or null and fold: its cell, ``strength`` (alpha times the norm
            of d, as a share of the residual norm), its gains where it was chosen, and for roles
            ``rank``: the share of nulls of its domain that gained as much (itself counted), never
            below ``floor``.
        table: a row a role, see :func:`rolelens.evidence.effects`; with ``optimism``, the gain
            where the cell was chosen minus the gain on other questions; in letters, the gain where
            the options are ``permuted``; with a text, its ``perplexity`` steered as a multiple of
            the unsteered one.
        transfer: a row for each role and domain, see :func:`rolelens.evidence.transfer`.
        ablation: the same as ``table`` for the directions removed; with gains of random ones.
        prompted: the same for the role as a prompt, without steering.
        answers: a row for each role and held-out question.
    """

    headroom: Mapping[str, Headroom]
    chosen: pd.DataFrame
    table: pd.DataFrame
    transfer: pd.DataFrame
    ablation: pd.DataFrame
    prompted: pd.DataFrame
    answers: pd.DataFrame

    @property
    def verdicts(self) -> list[str]:
        """A sentence for every role, or for every domain where nothing can be found."""
        said = [
            f"{domain}: {own}." for domain, own in self.headroom.items() if not own.above_chance
        ]
        return said + [verdict(row) for row in _records(self.table)]

    def save(self, folder: str | Path) -> Path:
        """Write every table as CSV, and the verdicts as text."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("chosen", "table", "transfer", "ablation", "prompted", "answers"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False)
        (folder / "verdicts.txt").write_text("\n".join(self.verdicts) + "\n", encoding="utf-8")
        return folder

    def card(self) -> Card:
        """How many roles were tried, and how many do something."""
        found = self.table[self.table["p_holm"] < LEVEL] if len(self.table) else self.table
        facts = {
            "roles": str(len(self.table)),
            "domains above chance": ", ".join(
                domain for domain, own in self.headroom.items() if own.above_chance
            )
            or "none",
            "effects beyond chance": ", ".join(found["role"]) if len(found) else "none",
        }
        return Card("Study", facts, "study.verdicts, study.table, study.transfer")


def study(
    lens: Lens,
    vectors: RoleVectors,
    benchmark: Benchmark,
    domains: Mapping[str, str],
    *,
    nulls: RoleVectors | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Selection = "all",
    method: Method = "letter",
    share: float = 0.5,
    folds: int | None = None,
    text: str | None = None,
    ablated: int = 50,
    randoms: int = 4,
    anyway: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    say: Say = lambda line: None,
) -> Study:
    """Run the experiment of 2502.12055 with what its claims need.

    The cell of every role is searched on one part of the questions and tried on the rest, in all
    domains; nulls are searched in the same call. Nothing is searched where the unsteered model is
    at chance.

    Args:
        lens: the model.
        vectors: the role vectors.
        benchmark: the questions.
        domains: the domain of each role.
        nulls: from :func:`rolelens.null_vectors`; a null is searched in the domain of the role it
            imitates.
        layers: as for :func:`rolelens.search`.
        positions: likewise.
        alphas: likewise.
        tokens: likewise.
        method: how options are scored.
        share: of the questions that cells are chosen on.
        folds: choose on all folds but one and test on that one, for each; in place of ``share``.
        text: held-out text whose perplexity is measured under steering (its first 2048 tokens).
        ablated: held-out questions of each domain that ablation is tried on, at most; 0: none.
        randoms: random directions that are ablated beside.
        anyway: search where the model is at chance, too.
        seed: of the split, the search and the random directions.
        folder: keeps every finished piece; the same call goes on there.
        say: takes what is told on the way.

    Raises:
        InputError: a role without a domain, a domain without questions, or a null that imitates
            no role.
    """
    places = _places(vectors, nulls, domains, benchmark)
    store = _stores(folder)
    say(f"Unsteered model on {len(benchmark)} questions")
    plain = evaluate(lens, benchmark, method=method)
    room = {domain: headroom(_of(plain, domain)) for domain in benchmark.domains}
    for domain, found_room in room.items():
        say(f"    {domain}: {found_room}")
    live = [name for name, domain in places.items() if anyway or room[domain].above_chance]
    roles = [name for name in vectors.roles if name in live]
    if not roles:
        empty = pd.DataFrame()
        return Study(room, empty, empty, empty, empty, empty, empty)
    every = (concat(vectors, nulls) if nulls else vectors)[live]
    grid: dict[str, Any] = {"layers": layers, "positions": positions, "alphas": alphas}
    names = ("chosen", "answers", "permuted", "removed", "prompted", "read")
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    pairs = [benchmark.split(share, seed)] if folds is None else benchmark.folds(folds, seed)
    for number, (selection, test) in enumerate(pairs):
        fold = _Fold(lens, every, roles, places, selection, test, tokens, method, seed, number)
        say(f"Search of {len(live)} roles and nulls on {len(selection)} questions")
        chosen, keys = fold.searched(grid, store)
        say(f"The chosen cells on {len(test)} other questions")
        before, answers = fold.tried(keys, store)
        parts["chosen"].append(chosen)
        parts["answers"] += answers
        if method == "letter":
            say("The same with the options in another order")
            parts["permuted"] += fold.permuted(keys, store)
        if text is not None:
            say("Perplexity of the text, steered")
            parts["read"].append(fold.read(keys, text))
        if ablated:
            say("The same directions ablated")
            parts["removed"] += fold.ablated(keys, ablated, randoms, store)
        say("Roles as prompts, without steering")
        parts["prompted"] += fold.prompted(before)
    frames = {name: pd.concat(own, ignore_index=True) for name, own in parts.items() if own}
    where = {role: domains[role] for role in roles}
    cells = _ranked(frames["chosen"], every, roles, places)
    table = effects(frames["answers"], where)
    gained = cells[cells["role"].isin(roles)].groupby("role")["accuracy_gain"].mean()
    table["optimism"] = table["role"].map(gained) - table["gain"]
    if "permuted" in frames:
        again = frames["permuted"]
        table["permuted"] = table["role"].map(changes(again).groupby(again["role"]).mean())
    if "read" in frames:
        ratios = frames["read"].groupby("role")["perplexity"].mean()
        table["perplexity"] = table["role"].map(ratios)
    return Study(
        headroom=room,
        chosen=cells,
        table=table,
        transfer=transfer(frames["answers"]),
        ablation=_removed(frames["removed"], where) if ablated else pd.DataFrame(),
        prompted=effects(frames["prompted"], where),
        answers=frames["answers"],
    )


@dataclass(frozen=True)
class _Fold:
    """Questions that cells are chosen on, questions they are tried on, and what is tried."""

    lens: Lens
    vectors: RoleVectors
    roles: Sequence[str]
    places: Mapping[str, str]
    selection: Benchmark
    test: Benchmark
    tokens: Selection
    method: Method
    seed: int
    number: int

    def searched(
        self, grid: Mapping[str, Any], store: Stores
    ) -> tuple[pd.DataFrame, dict[str, Key]]:
        """The best cell of every role and null."""
        found = search(
            self.lens,
            self.vectors,
            self.selection,
            domains=self.places,
            **grid,
            tokens=self.tokens,
            method=self.method,
            seed=self.seed,
            store=store(f"search-{self.number}"),
        )
        best = found.table[found.table["chosen"]].assign(fold=self.number)
        cells = {role: found.best(role) for role in self.vectors.roles}
        keys = {
            role: Key(role, cell.direction.layer, cell.direction.position or -1, cell.alpha)
            for role, cell in cells.items()
        }
        return best.drop(columns=["chosen", "predicted"]), keys

    def tried(self, keys: Mapping[str, Key], store: Stores) -> tuple[Scores, list[pd.DataFrame]]:
        """The chosen cells of the roles, in all domains."""
        cells = [keys[role] for role in self.roles]
        before, after = score_cells(
            self.lens,
            self.vectors,
            self.test,
            cells,
            tokens=self.tokens,
            method=self.method,
            store=store(f"test-{self.number}"),
        )
        return before, [answered(key.role, before, after[key]) for key in cells]

    def permuted(self, keys: Mapping[str, Key], store: Stores) -> list[pd.DataFrame]:
        """The chosen cells of the roles, in their domains, with the options in another order."""
        frames = []
        for domain in dict.fromkeys(self.places[role] for role in self.roles):
            before, after = score_cells(
                self.lens,
                self.vectors,
                self.test.domain(domain).permuted(self.seed),
                [keys[role] for role in self.roles if self.places[role] == domain],
                tokens=self.tokens,
                method=self.method,
                store=store(f"permuted-{self.number}-{domain}"),
            )
            frames += [answered(key.role, before, own) for key, own in after.items()]
        return frames

    def read(self, keys: Mapping[str, Key], text: str) -> pd.DataFrame:
        """How much less well a text is predicted in the chosen cells."""
        plain = perplexity(self.lens, text, max_tokens=READ).value
        rows = []
        for role in self.roles:
            _, layer, position, alpha = keys[role]
            d = self.vectors.direction(role, layer, position)
            steered = perplexity(self.lens, text, add(d, alpha), max_tokens=READ).value
            rows.append({"role": role, "perplexity": steered / plain})
        return pd.DataFrame(rows)

    def ablated(
        self, keys: Mapping[str, Key], most: int, randoms: int, store: Stores
    ) -> list[pd.DataFrame]:
        """The chosen directions removed, and random ones, on some questions of each domain."""
        kept = [q for d in self.test.domains for q in self.test.domain(d).questions[:most]]
        drawn = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(randoms, *self.vectors.directions.shape[1:], generator=drawn)
        names = tuple(f"random {n}" for n in range(randoms))
        beside = dataclasses.replace(
            self.vectors, directions=noise, roles=names, contrast="random directions"
        )
        own = self.vectors[list(self.roles)]
        cells = [keys[role]._replace(alpha=1.0) for role in self.roles]
        cells += [cells[0]._replace(role=name) for name in names]
        before, after = score_cells(
            self.lens,
            concat(own, beside) if randoms else own,
            Benchmark(f"{self.test.name}, {most} a domain", tuple(kept)),
            cells,
            method=self.method,
            change="ablate",
            store=store(f"ablation-{self.number}"),
        )
        return [answered(key.role, before, after[key]) for key in cells]

    def prompted(self, before: Scores) -> list[pd.DataFrame]:
        """Every role as a system prompt, on the questions of its domain."""
        frames = []
        for role in self.roles:
            own = self.test.domain(self.places[role])
            told = evaluate(self.lens, own, method=self.method, system=PROMPT.format(role=role))
            frames.append(answered(role, _of(before, self.places[role]), told))
        return frames


def _removed(answers: pd.DataFrame, domains: Mapping[str, str]) -> pd.DataFrame:
    """Effects of ablation, with the mean change under random directions in the same domain."""
    ours = answers["role"].isin(list(domains))
    table, randomly = effects(answers[ours], domains), answers[~ours]
    change = changes(randomly).groupby(randomly["domain"]).mean()
    table["random"] = table["domain"].map(change)
    return table


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _places(
    vectors: RoleVectors,
    nulls: RoleVectors | None,
    domains: Mapping[str, str],
    benchmark: Benchmark,
) -> dict[str, str]:
    """The domain of every role and null."""
    places = {}
    for role in vectors.roles:
        if role not in domains:
            raise InputError(f"the role {role!r} has no domain; name one for it.")
        if domains[role] not in benchmark.domains:
            raise InputError(
                f"the role {role!r} has the domain {domains[role]!r}, and {benchmark.name!r} asks "
                f"about {', '.join(benchmark.domains)}; name one of these."
            )
        places[role] = domains[role]
    for null in nulls.roles if nulls else ():
        imitated = null.partition(" ~ ")[2]
        if imitated not in places:
            raise InputError(
                f"the null {null!r} imitates none of the roles; make nulls of them with "
                "rl.null_vectors(lens, roles, base)."
            )
        places[null] = places[imitated]
    return places


def _stores(folder: str | Path | None) -> Stores:
    if folder is None:
        return lambda name: None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return lambda name: Path(folder) / f"{name}.db"


def _of(scores: Scores, domain: str) -> Scores:
    """The scores of one domain's questions."""
    rows = [n for n, own in enumerate(scores.domains) if own == domain]
    return dataclasses.replace(
        scores,
        logprobs=scores.logprobs[rows],
        answers=scores.answers[rows],
        questions=tuple(scores.questions[n] for n in rows),
        domains=(domain,) * len(rows),
    )


def _ranked(
    chosen: pd.DataFrame, vectors: RoleVectors, roles: Sequence[str], places: Mapping[str, str]
) -> pd.DataFrame:
    """Chosen cells with their strength and their rank among the nulls of the domain."""
    rows: list[dict[str, Any]] = []
    for row in _records(chosen):
        name = str(row["role"])
        d = vectors.direction(name, int(row["layer"]), int(row["position"]))
        row["domain"] = places[name]
        row["strength"] = float(row["alpha"]) * d.norm / (d.resid_norm or float("nan"))
        rows.append(row)
    for row in rows:
        if row["role"] in roles:
            same = [
                other["margin_gain"]
                for other in rows
                if other["role"] not in roles
                and (other["domain"], other["fold"]) == (row["domain"], row["fold"])
            ]
            row["rank"] = stats.null_rank(row["margin_gain"], same)
            row["floor"] = 1 / (1 + len(same))
    return pd.DataFrame(rows)
