"""The experiment of 2502.12055 on any model, with what its claims need."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rolelens import evidence, plots, stats
from rolelens.errors import InputError, unknown, write_whole
from rolelens.evidence import Study
from rolelens.extraction import controlled_vectors
from rolelens.lens import Lens
from rolelens.patchscoping import PROMPT, patchscope
from rolelens.progress import Say
from rolelens.prompts import RolePrompts, digest, load_base, load_roles
from rolelens.report import Report
from rolelens.rows import parsed
from rolelens.sweeps import duration
from rolelens.sweeps.runners import Runner
from rolelens.tasks import AnyTask, Method, load_task
from rolelens.vectors import Direction, Directions
from rolelens.vectors.nulls import gaussian

TABLE_3 = {
    "name": "role",
    "domain": "domain",
    "items": "held-out questions",
    "before": "unsteered",
    "after": "steered",
    "constant": "constant letter",
    "gain": "gain",
    "low": "95 % low",
    "high": "95 % high",
    "null_low": "lowest null there",
    "null_high": "highest null there",
    "optimism": "optimism",
    "permuted": "gain, options permuted",
    "perplexity": "perplexity ratio",
    "p": "McNemar p",
    "p_holm": "p (Holm)",
    "p_bh": "p (BH)",
    "outside": "gain elsewhere",
    "interaction": "interaction",
    "interaction_low": "its 95 % low",
    "interaction_high": "its 95 % high",
    "interaction_p_holm": "its p (Holm)",
}
TABLE_5 = {
    "name": "role",
    "domain": "domain",
    "before": "unsteered",
    "after": "ablated",
    "gain": "change",
    "low": "95 % low",
    "high": "95 % high",
    "random": "random direction",
    "outside": "change elsewhere",
    "interaction": "interaction",
    "interaction_low": "its 95 % low",
    "interaction_high": "its 95 % high",
    "interaction_p_holm": "its p (Holm)",
}
PROMPTED = {
    "name": "role",
    "form": "put as",
    "domain": "domain",
    "before": "unsteered",
    "after": "prompted",
    "gain": "gain",
    "low": "95 % low",
    "high": "95 % high",
    "p_holm": "p (Holm)",
}
CHOSEN = {
    "name": "role",
    "domain": "domain",
    "layer": "layer",
    "position": "position",
    "alpha": "alpha",
    "strength": "strength",
    "split_half": "split-half cosine",
    "shared": "cosine with all roles' mean",
    "split_half_rest": "split-half cosine without it",
    "accuracy_gain": "gain where chosen",
    "margin_gain": "margin gain (nats)",
    "rank": "rank",
    "floor": "floor",
}


def paper(
    lens: Lens,
    out: str | Path,
    *,
    data: str | Path | None = None,
    vectors: Directions | None = None,
    roles: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    questions: int | None = None,
    method: Method = "letter",
    n_nulls: int = 1,
    seed: int = 0,
    runner: str | Runner | None = None,
    expected: float | None = None,
    say: Say = print,
    **options: Any,
) -> Path:
    """Run the whole experiment, and report what survives.

    Args:
        lens: the model.
        out: folder for the vectors, the stores, the tables and the report. The same call goes on
            there; any other is refused.
        data: a folder with ``role_prompts``, ``base_prompts/train.json`` and
            ``mmlu_paper_split`` as in the authors' repository; the shipped prompts and questions
            by default.
        vectors: taken in place of those that the prompts give; they may be of another model of the
            same shape, such as the instruct version of a base model. Their nulls are Gaussian.
        roles: which roles; those of the domains by default.
        domains: which domains; those of the roles by default.
        questions: so many questions of each domain, drawn at random; all by default.
        method: how options are scored.
        n_nulls: nulls of each kind for one role of each domain.
        seed: of the halves, the nulls, the split and the search.
        runner: who scores cells, as for :func:`rolelens.study`; a run may go on with another.
        expected: seconds that the run was estimated to take, which the report puts beside what it
            took.
        say: takes what is told on the way.
        options: for :func:`rolelens.study`.

    Returns:
        Path of the report.

    Raises:
        InputError: as for :func:`rolelens.study`, or the folder holds another run.
    """
    clock, out = _Clock(Path(out) / "seconds.json"), Path(out)
    sets, base, task = paper_data(data, roles, domains, questions, seed)
    of_role = {name: str(prompts.domain) for name, prompts in sets.items()}
    digests = {name: digest(prompts) for name, prompts in {"base": base, **sets}.items()}
    _claim(
        out,
        {
            "model": [lens.name, lens.content, lens.source.model_class, lens.source.template],
            "prompts": digests if vectors is None else vectors.sha,
            "questions": task.sha,
            "method": method,
            "nulls": n_nulls,
            "seed": seed,
            "options": repr(sorted(options.items())),
        },
    )
    with clock:
        if vectors is not None:
            vectors = lens.adopt(vectors)
            if roles or domains:
                vectors = vectors[[name for name in vectors.names if name in sets]]
            say(f"{len(vectors.names)} roles: {vectors.contrast}")
            some = one_each(vectors.tried, of_role)
            halves, nulls = None, gaussian(vectors[some], n=n_nulls, seed=seed)
            vectors.save(out / "vectors.safetensors")
        else:
            say(f"Vectors of {len(sets)} roles and their nulls")
            controls = {"null_roles": one_each(list(sets), of_role), "n": n_nulls, "seed": seed}
            vectors, halves, nulls = _measured(lens, sets, base, out, controls)
        study = evidence.study(
            lens,
            vectors,
            task,
            of_role,
            nulls=nulls,
            halves=halves,
            method=method,
            seed=seed,
            folder=out / "stores",
            runner=runner,
            say=say,
            **options,
        )
        study.save(out / "tables")
        readings = _readings(lens, study)
        if len(readings):
            write_whole(out / "tables" / "readings.csv", readings.to_csv(index=False))
    for effect in study.effects:
        say(f"    {effect.verdict}")
    say(study.headline)
    report = _report(lens, study, readings, task, method, vectors.contrast)
    before = "" if expected is None else f"; {duration(expected)} were expected"
    report.note(f"The run took {clock}{before}.")
    path = report.save(out / "report.html").resolve()
    say(f"Done in {clock}. The report: {path}")
    return path


class _Clock:
    """How long a run took, what was interrupted before included."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._parts: list[float] = []

    def __enter__(self) -> None:
        self._parts = parsed(self._file) if self._file.exists() else []
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._parts = [*self._parts, round(time.monotonic() - self._start, 1)]
        write_whole(self._file, json.dumps(self._parts) + "\n")

    def __str__(self) -> str:
        last, total = self._parts[-1] / 60, sum(self._parts) / 60
        if len(self._parts) == 1:
            return f"{last:.1f} minutes"
        return f"{last:.1f} minutes ({total:.1f} in all, in {len(self._parts)} parts)"


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what a folder is for, or refuse one that is for something else."""
    path = out / "run.json"
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=1) + "\n")
        return
    known = parsed(path)
    other = [name for name, value in settings.items() if known.get(name) != value]
    if other:
        raise InputError(
            f"{out} holds another run (of another {', '.join(other)}); name another folder, or "
            "repeat the original settings."
        )


def _measured(
    lens: Lens,
    roles: Mapping[str, RolePrompts],
    base: list[str],
    out: Path,
    controls: Mapping[str, Any],
) -> tuple[Directions, tuple[Directions, Directions], Directions]:
    """Role vectors, their halves and nulls; from the folder, where it has them."""
    files = [out / f"{name}.safetensors" for name in ("vectors", "half-1", "half-2", "nulls")]
    if not all(file.exists() for file in files):
        vectors, halves, nulls = controlled_vectors(lens, roles, base, **controls)
        for file, made in zip(files, (vectors, *halves, nulls), strict=True):
            made.save(file)
    vectors, first, second, nulls = map(Directions.load, files)
    return vectors, (first, second), nulls


def one_each(roles: Sequence[str], domains: Mapping[str, str]) -> list[str]:
    """The first role of each domain; a role without one is refused later, in the study."""
    return list({domains.get(name, ""): name for name in reversed(roles)}.values())


def _readings(lens: Lens, study: Study) -> pd.DataFrame:
    """What the model says of "♦" under every chosen direction, of roles and of nulls."""
    chosen: dict[tuple[str, int, int | None], Direction] = {}
    for cells in study.cells.values():
        for cell in cells:
            chosen[cell.name, cell.layer, cell.position] = cell.steering.steps[0].direction
    rows = []
    for reading in patchscope(lens, list(chosen.values())) if chosen else []:
        d = reading.direction
        imitated = d.null.imitates if d.null is not None else None
        rows.append(
            {
                "name": d.name,
                "layer": d.layer,
                "position": d.position,
                "imitates": imitated or "",
                "named": _names(imitated or d.name, reading.text),
                "text": reading.text,
                "unsteered": reading.baseline,
            }
        )
    return pd.DataFrame(rows)


def _names(role: str, text: str) -> bool:
    """Whether a text has the role's name in it, in any inflection that keeps its stem."""
    return all(word.lower().rstrip("s") in text.lower() for word in role.split())


def paper_data(
    folder: str | Path | None,
    roles: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    questions: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, RolePrompts], list[str], AnyTask]:
    """Role prompts, base prompts and questions, as many as :func:`paper` is asked for."""
    return _some(*_data(folder), roles, domains, questions, seed)


def _data(folder: str | Path | None) -> tuple[dict[str, RolePrompts], list[str], AnyTask]:
    """The shipped prompts and questions, or those of a folder."""
    if folder is None:
        return load_roles(), load_base(), load_task("mini")
    root = Path(folder)
    for part in ("role_prompts", "base_prompts/train.json", "mmlu_paper_split"):
        if not (root / part).exists():
            raise InputError(
                f"no {str(root / part)!r}; data is a folder with role_prompts, "
                "base_prompts/train.json and mmlu_paper_split as in the authors' repository."
            )
    roles = load_roles(root / "role_prompts")
    most = max(map(len, roles.values()))
    base = load_base(root / "base_prompts" / "train.json")[:most]
    return roles, base, load_task(root / "mmlu_paper_split")


def _some(
    sets: Mapping[str, RolePrompts],
    base: list[str],
    task: AnyTask,
    roles: Sequence[str] | None,
    domains: Sequence[str] | None,
    questions: int | None,
    seed: int,
) -> tuple[dict[str, RolePrompts], list[str], AnyTask]:
    """The part of the experiment that is asked for.

    Raises:
        InputError: an unknown role or domain, a role of another domain, or too few questions.
    """
    for role in roles or ():
        if role not in sets:
            raise unknown("role", role, sets)
    chosen = {name: sets[name] for name in roles or sets}
    if domains:
        for domain in domains:
            if domain not in task.domains:
                raise unknown("domain", domain, task.domains)
        for role in roles or ():
            if chosen[role].domain not in domains:
                raise InputError(
                    f"the role {role!r} is of the domain {chosen[role].domain!r}, and domains is "
                    f"{list(domains)}; name its domain as well, or leave the role out."
                )
        chosen = {name: role for name, role in chosen.items() if role.domain in domains}
        task = task.domain(*domains)
    elif roles:
        task = task.domain(*sorted({str(role.domain) for role in chosen.values()}))
    if questions is None:
        return chosen, base, task
    if questions < 4:
        raise InputError(f"questions is {questions}; a domain needs 4 at least, 2 of each half.")
    rng = np.random.default_rng(seed)
    items: Sequence[Any] = task.items
    kept: list[int] = []
    for domain in task.domains:
        here = [n for n, item in enumerate(items) if item.domain == domain]
        kept += sorted(rng.permutation(here)[:questions].tolist())
    return chosen, base, task.take(kept)


def _report(
    lens: Lens,
    study: Study,
    readings: pd.DataFrame,
    task: AnyTask,
    method: Method,
    contrast: str,
) -> Report:
    report = Report(
        f"Role vectors in {lens.name}",
        f"Directions: {contrast}. Cells chosen on one part of {len(task)} questions and tried on "
        f"the rest; {method} tasks.",
    )
    report.headline(study.headline)
    report.heading("What was found")
    for effect in study.effects:
        if effect.is_shown:
            report.verdict(effect.verdict)
    others = [effect.verdict for effect in study.effects if not effect.is_shown]
    at_chance = study.verdicts[: len(study.verdicts) - len(study.effects)]
    if study.effects:
        report.figure(plots.transfer(study.table("transfer")))
    if at_chance:
        report.verdicts(at_chance, f"{len(at_chance)} domains in which the model is at chance")
    if others:
        report.verdicts(others, f"{len(others)} directions with nothing beyond chance, one by one")
    report.heading("What the unsteered model can do")
    report.table(
        pd.DataFrame(
            [
                {
                    "domain": domain,
                    "questions": room.items,
                    "accuracy": room.value,
                    "95 % low": room.low,
                    "95 % high": room.high,
                    "guessing": room.chance,
                    "best constant letter": f"{room.letter} {room.constant:.3f}",
                    "detectable change": room.detectable,
                }
                for domain, room in study.headroom.items()
            ]
        )
    )
    if study.effects:
        _findings(study, readings, report)
    report.provenance(lens.source)
    return report


def _findings(study: Study, readings: pd.DataFrame, report: Report) -> None:
    report.heading("Role vectors on questions of their domain (the paper's Table 3)")
    report.text(
        "Optimism is the gain where the cell was chosen minus the gain on other questions. "
        "p-values are corrected over all roles. The interaction is the gain in the domain minus "
        "the gain in the others. The constant letter is the accuracy of always giving the option "
        "that is correct most often. The lowest and highest null are the gains of nulls in that "
        "very cell, as strong: what disturbance alone does."
    )
    report.table(_columns(study.table(), TABLE_3))
    report.heading("Chosen cells, and nulls that were searched in the same way")
    report.text(
        "Strength is the norm of what is added, as a share of the norm of the residual stream. "
        "Rank is the share of the domain's nulls that gained as much margin where cells were "
        "chosen, the role itself counted: a description, which few nulls cannot make significant."
    )
    chosen = study.table("chosen")
    tried = [effect.name for effect in study.effects]
    report.table(_columns(chosen[chosen["name"].isin(tried)], CHOSEN))
    report.heading("How often each letter is given")
    report.text("Shares of the held-out questions of the role's domain.")
    wide = study.table("given").pivot(
        index="name", columns="letter", values=["correct", "before", "after"]
    )
    wide.columns = [f"{column[1]} {column[0]}" for column in wide.columns]
    report.table(wide.fillna(0.0).reset_index())
    report.heading("What the chosen directions read as (the paper's Table 4)")
    null = ~readings["name"].isin(tried)
    report.text(
        f"Answers to {PROMPT!r} while a direction is added with alpha 3. "
        f"{_rate(readings[~null])} roles are named by their direction's answer; of the nulls, "
        f"{_rate(readings[null])} name the role that they imitate. Beside each stands the answer "
        "under a null that imitates it, where there is one."
    )
    report.texts([("unsteered", str(readings["unsteered"].iloc[0]))])
    report.table(_beside(readings[~null], readings[null]))
    if study.ablation:
        report.heading("Directions removed (the paper's Table 5)")
        report.table(_columns(study.table("ablation"), TABLE_5))
    if study.prompted:
        report.heading("The role as a prompt, without steering")
        report.table(_columns(study.table("prompted"), PROMPTED))


def _beside(roles: pd.DataFrame, nulls: pd.DataFrame) -> pd.DataFrame:
    """What each direction reads as, beside a null that imitates it."""
    first = nulls.drop_duplicates("imitates").set_index("imitates")["text"]
    columns = ["name", "layer", "position", "named", "text"]
    return (
        roles[columns]
        .assign(null=roles["name"].map(first).fillna(""))
        .rename(columns={"name": "role", "text": "steered", "null": "under a null"})
    )


def _rate(readings: pd.DataFrame) -> str:
    named, n = int(readings["named"].sum()), len(readings)
    low, high = stats.wilson(named, n) if n else (0.0, 1.0)
    return f"{named} of {n} (95 % interval {low:.2f} to {high:.2f})"


def _columns(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    known = {old: new for old, new in names.items() if old in table}
    return table[list(known)].rename(columns=known)
