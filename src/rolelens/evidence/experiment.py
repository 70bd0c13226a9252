"""One experiment: cells chosen on some items, and what they do on others, beside nulls."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import pandas as pd

from rolelens import stats, tasks
from rolelens.errors import InputError
from rolelens.evidence.comparison import changes
from rolelens.evidence.controls import headroom
from rolelens.evidence.families import beside_nulls, effects, given, transfer
from rolelens.evidence.fold import Fold, Setting, Stores, on_text
from rolelens.evidence.result import Study
from rolelens.forward import Named
from rolelens.hooks import add
from rolelens.lens import Lens
from rolelens.progress import Say
from rolelens.sweeps import Cell, score_cells
from rolelens.sweeps.runners import Runner, running
from rolelens.tasks import (
    Choices,
    NumberedOptions,
    Options,
    Passages,
    Prepared,
    Problems,
    Questions,
    Task,
)
from rolelens.vectors import Direction, Directions, concat, geometry


def study(
    lens: Lens,
    vectors: Directions,
    task: str | Path | Task[Any] | Sequence[Any],
    domains: Mapping[str, str] | None = None,
    *,
    nulls: Directions | None = None,
    halves: tuple[Directions, Directions] | None = None,
    choose: Literal["search", "sweep"] | None = None,
    by: str | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int | None] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Named | None = None,
    method: str | None = None,
    share: float = 0.5,
    folds: int | None = None,
    text: str | None = None,
    ablated: int | None = None,
    randoms: int = 4,
    prompted: bool | None = None,
    anyway: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    runner: str | Runner | None = None,
    say: Say = lambda line: None,
    **options: Unpack[NumberedOptions],
) -> Study:
    """Find out whether directions do anything, with what such a claim needs (2502.12055).

    The cell of every direction is chosen on one part of the items and tried on the rest, in all
    domains; nulls are chosen in the same call, and tried in the directions' own cells, as strong.
    Nothing is chosen where the unsteered model is at chance.

    Args:
        lens: the model.
        vectors: the directions; nulls may be among them.
        task: questions, problems, texts or a task of one's own, or what
            :func:`rolelens.load_task` takes.
        domains: the domain of each direction, whose items it is chosen on; all items by default.
        nulls: further nulls, such as from :func:`rolelens.null_vectors`; a null is chosen in the
            domain of the direction it imitates, and tried in that direction's cell (in all cells of
            its domain that no null imitates).
        halves: the same directions measured on two halves of the prompts, from
            :func:`rolelens.half_vectors`; they say how reliable the chosen directions are.
        choose: by :func:`rolelens.search`, the default where answers can be predicted, or by
            :func:`rolelens.sweep` over the whole grid.
        by: the measure that cells are chosen by: a metric of one's own where one is given, else the
            margin of questions and the accuracy of answers.
        layers: as for :func:`rolelens.sweep`.
        positions: likewise.
        alphas: likewise.
        tokens: likewise.
        method: how the options of questions are scored.
        share: of the items that cells are chosen on.
        folds: choose on all folds but one and test on that one, for each; in place of ``share``.
        text: held-out text whose perplexity is measured under steering (its first 2048 tokens).
        ablated: held-out items of each domain that ablation is tried on, at most; 50 by default of
            questions and none of others; 0: none.
        randoms: random directions that are ablated beside.
        prompted: try every role as a prompt, too; by default of roles and questions.
        anyway: choose where the model is at chance, too.
        seed: of the split, the choice and the random directions.
        folder: keeps each finished piece of what is scored in cells; the same call goes on there.
        runner: who scores cells, as for :func:`rolelens.sweep`; roles as prompts and texts are read
            here.
        say: takes what is told on the way.
        options: how the task is put, see :class:`rolelens.tasks.Options`; ``metric=`` is a measure
            of one's own, in which effects are then told.

    Raises:
        InputError: a direction without a domain, a domain without items, a null that imitates
            nothing here, halves of other vectors, a text that is not steered, or as for
            :func:`rolelens.sweep`.
    """
    chosen_task = task if isinstance(task, Task) else tasks.load_task(task)
    put = cast(Options, dict(options))
    if isinstance(chosen_task, Problems):
        put["seed"] = seed
    prepared = tasks.prepare(lens, chosen_task, method, **put)
    everything = concat(vectors, nulls) if nulls is not None else vectors
    places = _places(everything, domains, prepared.task)
    _check(vectors, halves, text, tokens, ablated, randoms)
    store = _stores(folder)
    with running(runner) as workers:
        say(f"Unsteered model on {len(prepared.task)} items")
        plain, _ = score_cells(lens, prepared, [], store=store("unsteered"), runner=workers)
        room = _headrooms(plain, places)
        for where, told in room.items():
            say(f"    {where or prepared.task.name}: {told}")
        live = [name for name, place in places.items() if anyway or room[place].above_chance]
        names = tuple(name for name in everything.tried if name in live)
        measure = plain.measures[0]
        if not names:
            return Study(prepared.task.name, measure, _named(room, prepared.task.name))
        setting = Setting(
            lens,
            everything[[name for name in everything.names if name in live]],
            names,
            places,
            {"layers": layers, "positions": positions, "alphas": alphas, "tokens": tokens},
            _choice(choose, prepared),
            _by(by, plain, prepared),
            measure,
            method,
            put,
            seed,
            store,
            prepared.task.name,
            workers,
        )
        pairs = prepared.task.folds(folds, seed) if folds else [prepared.task.split(share, seed)]
        wanted = _Wanted(
            permuted=_permutable(prepared, seed, say),
            text=text,
            ablated=_default(ablated, 50 if isinstance(prepared.task, Questions) else 0),
            randoms=randoms,
            prompted=_default(
                prompted, vectors.kind == "role" and isinstance(prepared.task, Questions)
            ),
        )
        parts: dict[str, list[pd.DataFrame]] = {}
        cells: dict[str, list[Cell]] = {name: [] for name in setting.vectors.names}
        for number, (selection, test) in enumerate(pairs):
            fold = Fold(setting, _part(prepared, selection), _part(prepared, test), number)
            for name, cell in _run(fold, wanted, parts, say).items():
                cells[name].append(cell)
    return _gathered(setting, parts, cells, vectors, halves, _named(room, prepared.task.name))


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is tried beside the chosen cells."""

    permuted: bool
    text: str | None
    ablated: int
    randoms: int
    prompted: bool


def _run(
    fold: Fold, wanted: _Wanted, parts: dict[str, list[pd.DataFrame]], say: Say
) -> dict[str, Cell]:
    """Choose and try in one fold; tables go into ``parts``."""

    def keep(name: str, tables: Sequence[pd.DataFrame]) -> None:
        parts.setdefault(name, []).extend(tables)

    setting = fold.setting
    say(f"Cells of {len(setting.vectors.names)} names, chosen on {len(fold.selection.task)} items")
    table, cells = fold.chosen()
    keep("chosen", [table])
    say(f"The chosen cells on {len(fold.test.task)} other items")
    before, answers = fold.tried(cells)
    keep("answers", answers)
    if setting.vectors.nulls:
        say("Nulls in the same cells")
        keep("nulls", fold.disturbed(cells))
    if wanted.permuted:
        say("The same with the options in another order")
        keep("permuted", fold.permuted(cells))
    if wanted.text is not None:
        say("Perplexity of the text, steered")
        keep("read", [fold.read(cells, wanted.text)])
    if wanted.ablated:
        say("The same directions ablated")
        keep("removed", fold.ablated(cells, wanted.ablated, wanted.randoms))
    if wanted.prompted:
        say("Roles as prompts, without steering")
        keep("prompted", fold.prompted(before))
    return cells


def _gathered(
    setting: Setting,
    parts: Mapping[str, list[pd.DataFrame]],
    cells: Mapping[str, list[Cell]],
    vectors: Directions,
    halves: tuple[Directions, Directions] | None,
    room: Mapping[str, Any],
) -> Study:
    """What all folds found, as one study."""
    frames = {name: pd.concat(t, ignore_index=True) for name, t in parts.items() if t}
    places = {name: setting.places[name] for name in setting.names}
    measure = setting.measure
    chosen = _described(frames["chosen"], setting, cells, vectors, halves)
    made = effects(frames["answers"], places, measure)
    if "nulls" in frames:
        made = beside_nulls(made, frames["nulls"])
    where_chosen = chosen.groupby("name")[f"{measure}_gain"].mean()
    permuted = _mean_changes(frames.get("permuted"))
    read: Mapping[str, float] = {}
    if "read" in frames:
        means = frames["read"].groupby("name")["perplexity"].mean()
        read = {str(name): float(mean) for name, mean in means.items()}
    made = [
        dataclasses.replace(
            effect,
            where_chosen=float(where_chosen[effect.name]),
            optimism=float(where_chosen[effect.name]) - effect.gain,
            permuted=permuted.get(effect.name),
            perplexity=float(read[effect.name]) if effect.name in read else None,
        )
        for effect in made
    ]
    prompted = []
    if "prompted" in frames:
        for form, table in frames["prompted"].groupby("form", sort=False):
            prompted += [
                dataclasses.replace(effect, form=str(form))
                for effect in effects(table, places, measure)
            ]
    removed = []
    if "removed" in frames:
        removed = _removed(frames["removed"], places, measure)
    return Study(
        task=setting.task,
        measure=measure,
        headroom=room,
        effects=tuple(made),
        ablation=tuple(removed),
        prompted=tuple(prompted),
        cells={name: tuple(several) for name, several in cells.items()},
        frames={
            "chosen": chosen,
            "transfer": transfer(frames["answers"]),
            "given": given(frames["answers"], places),
            "answers": frames["answers"],
            "nulls": frames.get("nulls", pd.DataFrame()),
        },
    )


def _removed(answers: pd.DataFrame, places: Mapping[str, str | None], measure: str) -> list[Any]:
    """Effects of ablation, with the mean change under random directions in the same domain."""
    ours = answers["name"].isin(list(places))
    made, randomly = effects(answers[ours], places, measure), answers[~ours]
    if randomly.empty:
        return made
    change = changes(randomly)
    by_domain = change.groupby(randomly["domain"]).mean()
    return [
        dataclasses.replace(
            effect,
            random=float(change.mean() if effect.domain is None else by_domain[effect.domain]),
        )
        for effect in made
    ]


def _mean_changes(answers: pd.DataFrame | None) -> dict[str, float]:
    """The mean change of each name."""
    if answers is None:
        return {}
    means = changes(answers).groupby(answers["name"]).mean()
    return {str(name): float(mean) for name, mean in means.items()}


def _described(
    chosen: pd.DataFrame,
    setting: Setting,
    cells: Mapping[str, list[Cell]],
    vectors: Directions,
    halves: tuple[Directions, Directions] | None,
) -> pd.DataFrame:
    """Chosen cells with their strength; those of directions with their rank and reliability."""
    several = len(vectors.tried) > 2
    alike: dict[str, tuple[Directions, Directions] | None] = {"split_half": halves}
    if halves and several:
        alike["split_half_rest"] = (
            geometry.without_shared(halves[0]),
            geometry.without_shared(halves[1]),
        )
    shared = vectors[list(vectors.tried)].mean() if several else None
    by_domain = None not in setting.places.values()
    if by_domain:
        chosen = chosen.assign(domain=chosen["name"].map(dict(setting.places)))
    nulls = chosen[chosen["name"].isin(list(setting.vectors.nulls))]
    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()} for row in chosen.to_dict("records")
    ]
    for row in rows:
        cell = cells[str(row["name"])][int(row["fold"])]
        row["strength"] = _strength(cell)
        if row["name"] not in setting.names:
            continue
        direction = cell.steering.steps[0].direction
        same = nulls["fold"] == row["fold"]
        if by_domain:
            same &= nulls["domain"] == row["domain"]
        gains = nulls.loc[same, f"{setting.by}_gain"].tolist()
        row["rank"] = stats.null_rank(row[f"{setting.by}_gain"], gains)
        row["floor"] = 1 / (1 + len(gains))
        place = direction.layer, direction.position
        if shared is not None:
            row["shared"] = direction.cosine(shared.direction("mean", *place))
        for column, pair in alike.items():
            if pair is not None:
                first, second = (half.direction(str(row["name"]), *place) for half in pair)
                row[column] = first.cosine(second)
    return pd.DataFrame(rows)


def _strength(cell: Cell) -> float:
    """The norm of what is added, as a share of the norm of the residual stream."""
    direction: Direction = cell.steering.steps[0].direction
    return float(cell.alpha or 0.0) * direction.norm / (direction.resid_norm or float("nan"))


def _places(
    vectors: Directions, domains: Mapping[str, str] | None, task: Task[Any]
) -> dict[str, str | None]:
    """The domain of every name; None where all items are its domain."""
    places: dict[str, str | None] = {}
    for name in vectors.tried:
        if domains is None:
            places[name] = None
            continue
        if name not in domains:
            raise InputError(f"{name!r} has no domain; name one for it.")
        if domains[name] not in task.domains:
            raise InputError(
                f"{name!r} has the domain {domains[name]!r}, and {task.name!r} asks about "
                f"{', '.join(task.domains)}; name one of these."
            )
        places[name] = domains[name]
    if not places:
        raise InputError("there are nulls and nothing else; pass directions beside them.")
    for name, null in vectors.nulls.items():
        if null.imitates is None and domains is None:
            places[name] = None
        elif null.imitates not in places:
            raise InputError(
                f"the null {name!r} imitates none of the directions; make nulls of them with "
                "rl.null_vectors(lens, roles, base)."
            )
        else:
            places[name] = places[null.imitates]
    return places


def _check(
    vectors: Directions,
    halves: tuple[Directions, Directions] | None,
    text: str | None,
    tokens: Named | None,
    ablated: int | None,
    randoms: int,
) -> None:
    """Refuse, before hours of work, what would fail after them."""
    for half in halves or ():
        missing = [name for name in vectors.tried if name not in half.names]
        if missing or (half.layers, half.positions) != (vectors.layers, vectors.positions):
            raise InputError(
                "the halves are not of these vectors: they have other names, layers or positions; "
                "take both from rl.half_vectors with the same prompts."
            )
    if text is not None:
        if len(text.split()) < 2:
            raise InputError(f"text is {text!r}; perplexity needs a longer text, or pass None.")
        first = next(iter(vectors))
        steering = on_text(add(first, tokens="all" if tokens is None else tokens))
        tasks.check_on_text(steering)
    for name, value in (("ablated", ablated), ("randoms", randoms)):
        if value is not None and value < 0:
            raise InputError(f"{name} is {value}; it has to be 0 or more.")


def _headrooms(plain: Any, places: Mapping[str, str | None]) -> dict[str | None, Any]:
    """What the unsteered model can do, by domain; of all items under None."""
    if None in places.values():
        return {None: headroom(plain)}
    return {domain: headroom(plain.domain(domain)) for domain in sorted(set(plain.domains))}


def _named(room: Mapping[str | None, Any], task: str) -> dict[str, Any]:
    return {task if domain is None else domain: told for domain, told in room.items()}


def _choice(choose: str | None, prepared: Prepared) -> str:
    if choose is None:
        return "search" if isinstance(prepared, Choices | Passages) else "sweep"
    if choose not in ("search", "sweep"):
        raise InputError(f"choose is {choose!r}; it has to be 'search' or 'sweep'.")
    return choose


def _by(by: str | None, plain: Any, prepared: Prepared) -> str:
    """The measure that cells are chosen by."""
    if by is None:
        margins = isinstance(prepared, Choices) and prepared.metric is None
        return "margin" if margins else str(plain.measures[0])
    if by not in plain.measures:
        raise InputError(f"by is {by!r}; it has to be one of {', '.join(plain.measures)}.")
    return by


def _permutable(prepared: Prepared, seed: int, say: Say) -> bool:
    """Whether letters are scored and the options can stand in another order."""
    if not isinstance(prepared, Choices) or prepared.method != "letter":
        return False
    assert isinstance(prepared.task, Questions)
    try:
        prepared.task.permuted(seed)
    except InputError as error:
        say(f"The options are not permuted: {error}")
        return False
    return True


def _part(prepared: Prepared, task: Task[Any]) -> Prepared:
    """The items of a part of the task, prepared; under the part's name."""
    place = {item.id: n for n, item in enumerate(prepared.task)}
    part = prepared.take([place[item.id] for item in task])
    return dataclasses.replace(part, task=task)


def _default(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _stores(folder: str | Path | None) -> Stores:
    if folder is None:
        return lambda name: None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return lambda name: Path(folder) / f"{name}.db"
