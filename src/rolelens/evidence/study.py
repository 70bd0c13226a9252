"""One study: cells chosen on some questions, and what they do on others, beside nulls."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens import stats
from rolelens.benchmarks import Benchmark, Question, load_benchmark
from rolelens.display import Card, Shown
from rolelens.errors import InputError, writing
from rolelens.evidence.controls import Headroom, headroom
from rolelens.evidence.effects import beside_nulls, changes, effects, given, transfer, verdict
from rolelens.evidence.fold import Fold, Stores
from rolelens.forward import Selection
from rolelens.lens import Lens
from rolelens.progress import Say
from rolelens.scoring import Method
from rolelens.sweep import score_cells
from rolelens.vectors import RoleVectors, concat, geometry
from rolelens.vectors.nulls import imitated

TABLES = ("chosen", "table", "transfer", "ablation", "prompted", "given", "answers")


@dataclass(frozen=True, eq=False, repr=False)
class Study(Shown):
    """What every role does, on questions that its cell was not chosen on.

    Attributes:
        headroom: what the unsteered model can do in each domain; roles of domains where it is at
            chance are not tried.
        chosen: a row for each role or null and fold: its cell, ``strength`` (alpha times the norm
            of d, as a share of the residual norm), its gains where it was chosen, and for roles
            ``rank``: the share of nulls of its domain that gained as much (itself counted), never
            below ``floor``. With three roles or more ``shared``, the cosine of d with the mean of
            all roles; with halves ``split_half``, the cosine of d from one half of the prompts with
            d from the other, and ``split_half_own``, the same without what the roles share.
        table: a row a role, see :func:`rolelens.evidence.effects`; with ``optimism``, the gain
            where the cell was chosen minus the gain on other questions; in letters, the gain where
            the options are ``permuted``; with nulls, what these do in the same cell, see
            :func:`rolelens.evidence.beside_nulls`; with a text, its ``perplexity`` steered as a
            multiple of the unsteered one.
        transfer: a row for each role and domain, see :func:`rolelens.evidence.transfer`.
        ablation: the same as ``table`` for the directions removed; with gains of random ones.
        prompted: the same for the role as a prompt, without steering; by ``form``: a system prompt,
            or a prefix of the question.
        given: how often each letter is given, see :func:`rolelens.evidence.given`.
        answers: a row for each role and held-out question.
    """

    headroom: Mapping[str, Headroom]
    chosen: pd.DataFrame
    table: pd.DataFrame
    transfer: pd.DataFrame
    ablation: pd.DataFrame
    prompted: pd.DataFrame
    given: pd.DataFrame
    answers: pd.DataFrame

    @property
    def verdicts(self) -> list[str]:
        """A sentence for every role, or for every domain where nothing can be found."""
        said = [
            f"{domain}: {own}." for domain, own in self.headroom.items() if not own.above_chance
        ]
        return said + [verdict(row) for row in _records(self.table)]

    def save(self, folder: str | Path) -> Path:
        """Write every table as CSV, the verdicts as text, and all of it as ``study.json``.

        What is missing in a table is empty in CSV and null in JSON.
        """
        folder = Path(folder)
        content: dict[str, Any] = {
            "verdicts": self.verdicts,
            "headroom": {domain: dataclasses.asdict(own) for domain, own in self.headroom.items()},
        }
        with writing(folder / "study.json"):
            for name in TABLES:
                table: pd.DataFrame = getattr(self, name)
                table.to_csv(folder / f"{name}.csv", index=False)
                content[name] = json.loads(table.to_json(orient="records", double_precision=15))
            text = json.dumps(content, indent=1)
            (folder / "study.json").write_text(text + "\n", encoding="utf-8")
            said = "\n".join(self.verdicts) + "\n"
            (folder / "verdicts.txt").write_text(said, encoding="utf-8")
        return folder

    def card(self) -> Card:
        """How many roles were tried, and how many do something."""
        found = self.table[self.table["p_holm"] < stats.LEVEL] if len(self.table) else self.table
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
    benchmark: str | Path | Benchmark | Sequence[Question],
    domains: Mapping[str, str],
    *,
    nulls: RoleVectors | None = None,
    halves: tuple[RoleVectors, RoleVectors] | None = None,
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
        benchmark: the questions, or what :func:`rolelens.load_benchmark` takes.
        domains: the domain of each role.
        nulls: from :func:`rolelens.null_vectors`; a null is searched in the domain of the role it
            imitates, and tried in the cells of all roles of that domain.
        halves: the same roles measured on two halves of the prompts, from
            :func:`rolelens.half_vectors`; they say how reliable the chosen directions are.
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
        folder: keeps every finished piece of what is scored in cells; the same call goes on there.
        say: takes what is told on the way.

    Raises:
        InputError: a role without a domain, a domain without questions, a null that imitates no
            role, halves of other vectors, or an empty text.
    """
    if not isinstance(benchmark, Benchmark):
        benchmark = load_benchmark(benchmark)
    places = _places(vectors, nulls, domains, benchmark)
    _check(vectors, halves, text, ablated, randoms)
    lettered = method == "letter" and _permutable(benchmark, seed, say)
    store = _stores(folder)
    say(f"Unsteered model on {len(benchmark)} questions")
    plain, _ = score_cells(lens, vectors, benchmark, [], method=method, store=store("unsteered"))
    room = {domain: headroom(plain.domain(domain)) for domain in benchmark.domains}
    for domain, found_room in room.items():
        say(f"    {domain}: {found_room}")
    live = [name for name, domain in places.items() if anyway or room[domain].above_chance]
    roles = [name for name in vectors.roles if name in live]
    if not roles:
        empty = pd.DataFrame()
        return Study(room, *[empty] * len(TABLES))
    every = (concat(vectors, nulls) if nulls else vectors)[live]
    grid: dict[str, Any] = {"layers": layers, "positions": positions, "alphas": alphas}
    names = ("chosen", "answers", "nulls", "permuted", "removed", "prompted", "read")
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    pairs = [benchmark.split(share, seed)] if folds is None else benchmark.folds(folds, seed)
    for number, (selection, test) in enumerate(pairs):
        fold = Fold(
            lens, every, roles, places, selection, test, tokens, method, seed, number, store
        )
        say(f"Search of {len(live)} roles and nulls on {len(selection)} questions")
        chosen, keys = fold.searched(grid)
        say(f"The chosen cells on {len(test)} other questions")
        before, answers = fold.tried(keys)
        parts["chosen"].append(chosen)
        parts["answers"] += answers
        if nulls is not None:
            say("Nulls in the same cells")
            parts["nulls"] += fold.disturbed(keys)
        if lettered:
            say("The same with the options in another order")
            parts["permuted"] += fold.permuted(keys)
        if text is not None:
            say("Perplexity of the text, steered")
            parts["read"].append(fold.read(keys, text))
        if ablated:
            say("The same directions ablated")
            parts["removed"] += fold.ablated(keys, ablated, randoms)
        say("Roles as prompts, without steering")
        parts["prompted"] += fold.prompted(before)
    frames = {name: pd.concat(own, ignore_index=True) for name, own in parts.items() if own}
    where = {role: domains[role] for role in roles}
    cells = _described(frames["chosen"], every, vectors, halves, places)
    table = effects(frames["answers"], where)
    gained = cells[cells["role"].isin(roles)].groupby("role")["accuracy_gain"].mean()
    table["optimism"] = table["role"].map(gained) - table["gain"]
    if "nulls" in frames:
        table = beside_nulls(table, frames["nulls"])
    if "permuted" in frames:
        again = frames["permuted"]
        table["permuted"] = table["role"].map(changes(again).groupby(again["role"]).mean())
    if "read" in frames:
        ratios = frames["read"].groupby("role")["perplexity"].mean()
        table["perplexity"] = table["role"].map(ratios)
    prompted = frames["prompted"].groupby("form", sort=False)
    return Study(
        headroom=room,
        chosen=cells,
        table=table,
        transfer=transfer(frames["answers"]),
        ablation=_removed(frames["removed"], where) if ablated else pd.DataFrame(),
        prompted=pd.concat(
            [effects(own, where).assign(form=form) for form, own in prompted], ignore_index=True
        ),
        given=given(frames["answers"], where),
        answers=frames["answers"],
    )


def _check(
    vectors: RoleVectors,
    halves: tuple[RoleVectors, RoleVectors] | None,
    text: str | None,
    ablated: int,
    randoms: int,
) -> None:
    """Refuse, before hours of work, what would fail after them."""
    for half in halves or ():
        missing = [role for role in vectors.roles if role not in half.roles]
        if missing or (half.layers, half.positions) != (vectors.layers, vectors.positions):
            raise InputError(
                "the halves are not of these vectors: they have other roles, layers or positions; "
                "take both from rl.half_vectors with the same prompts."
            )
    if text is not None and len(text.split()) < 2:
        raise InputError(f"text is {text!r}; perplexity needs a longer text, or pass None.")
    for name, value in (("ablated", ablated), ("randoms", randoms)):
        if value < 0:
            raise InputError(f"{name} is {value}; it has to be 0 or more.")


def _permutable(benchmark: Benchmark, seed: int, say: Say) -> bool:
    """Whether the options can stand in another order."""
    try:
        benchmark.permuted(seed)
    except InputError as error:
        say(f"The options are not permuted: {error}")
        return False
    return True


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
        role = imitated(null)
        if role not in places:
            raise InputError(
                f"the null {null!r} imitates none of the roles; make nulls of them with "
                "rl.null_vectors(lens, roles, base)."
            )
        places[null] = places[role]
    return places


def _stores(folder: str | Path | None) -> Stores:
    if folder is None:
        return lambda name: None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return lambda name: Path(folder) / f"{name}.db"


def _described(
    chosen: pd.DataFrame,
    every: RoleVectors,
    vectors: RoleVectors,
    halves: tuple[RoleVectors, RoleVectors] | None,
    places: Mapping[str, str],
) -> pd.DataFrame:
    """Chosen cells with their strength; those of roles with their rank and how alike they are."""
    several = len(vectors.roles) > 2
    alike: dict[str, tuple[RoleVectors, RoleVectors] | None] = {"split_half": halves}
    if halves and several:
        alike["split_half_own"] = geometry.own(halves[0]), geometry.own(halves[1])
    shared = vectors.mean() if several else None
    chosen = chosen.assign(domain=chosen["role"].map(dict(places)))
    nulls = chosen[~chosen["role"].isin(vectors.roles)]
    rows = _records(chosen)
    for row in rows:
        cell = str(row["role"]), int(row["layer"]), int(row["position"])
        d = every.direction(*cell)
        row["strength"] = float(row["alpha"]) * d.norm / (d.resid_norm or float("nan"))
        if row["role"] not in vectors.roles:
            continue
        same = nulls[(nulls["domain"] == row["domain"]) & (nulls["fold"] == row["fold"])]
        row["rank"] = stats.null_rank(row["margin_gain"], same["margin_gain"].tolist())
        row["floor"] = 1 / (1 + len(same))
        if shared is not None:
            row["shared"] = d.cosine(shared.direction("mean", *cell[1:]))
        for name, pair in alike.items():
            if pair is not None:
                row[name] = pair[0].direction(*cell).cosine(pair[1].direction(*cell))
    return pd.DataFrame(rows)
