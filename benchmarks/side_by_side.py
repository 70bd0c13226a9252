"""Every estimator on the same questions, what role vectors do besides, a library's oracle, folds.

``python benchmarks/side_by_side.py --data FOLDER``, with ``role_prompts``, ``base_prompts``,
``truthfulqa/mc_task_500.json``, ``bbq``, ``crows_pairs/crows_pairs_750.csv`` and
``wikitext2/test.txt`` in it. Every part is kept in ``--out`` and not made again; ``--only`` names
some, and ``--report`` prints what is there.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import table

import rolelens as rl
from rolelens import rollouts, stats
from rolelens.evidence import random_steering, study_folds
from rolelens.extraction import fold_vectors
from rolelens.features import feature_contrast, load_sae, save_sae, train_sae
from rolelens.routing import oracle_gap, try_router
from rolelens.tasks import LETTERS, Question, Questions, letter_prompt
from rolelens.updates import train_adapter
from rolelens.vectors import Directions, nulls
from rolelens.vectors.estimators import (
    LDA,
    Contrastive,
    DifferenceInMeans,
    GroupedMean,
    Logistic,
    MassMean,
    PairedPCA,
)
from rolelens.vectors.scaling import soft_scaled

LAYER = 18
"""Of all directions, of 30."""
ALPHA = 4.0
"""Times the difference in means of right and wrong answers, whose norm all have."""
TRAIN = 60
"""Questions that directions are made of."""
GRAINS, STEPS = 24, 8
"""Questions and steps of integrated gradients."""
NULLS = 5
ROLE = "mathematician"
LIBRARY = ("mathematician", "lawyer", "doctor")
ANSWERED = {
    "difference in means": DifferenceInMeans(),
    "grouped mean": GroupedMean(),
    "paired PCA": PairedPCA(),
    "logistic": Logistic(),
    "mass mean": MassMean(),
    "LDA": LDA(),
    "contrastive": Contrastive(),
}
GAUSSIANS, SHUFFLED = 6, 8
"""Nulls of all roles; the shuffled ones are of as many roles."""
OPTIONS = 4
"""Of a question of TruthfulQA at most."""


class Kept:
    """What was made, in a folder; a part that is there is not made again."""

    def __init__(self, data: Path, out: Path, n: int) -> None:
        self.data, self.out, self.n = data, out, n
        self.lens: Any = rl.load("smollm2")
        out.mkdir(parents=True, exist_ok=True)

    def frame(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table."""
        path = self.out / f"{name}.csv"
        if not path.is_file():
            start = time.monotonic()
            make().to_csv(path, index=False)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        return pd.read_csv(path)

    def vectors(self, name: str, make: Callable[[], Directions]) -> Directions:
        """Directions."""
        path = self.out / f"{name}.safetensors"
        if not path.is_file():
            start = time.monotonic()
            make().save(path)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        return Directions.load(path)

    @property
    def prompts(self) -> dict[str, list[str]]:
        """The prompts of the 29 roles."""
        roles = rl.load_roles(self.data / "role_prompts")
        return {name: list(role.prompts)[: self.n] for name, role in roles.items()}

    @property
    def base(self) -> list[str]:
        """Base prompts."""
        return list(rl.load_base(self.data / "base_prompts" / "train.json"))[: 2 * self.n]

    @property
    def roles(self) -> Directions:
        """The role vectors."""
        return self.vectors(
            "roles",
            lambda: rl.role_vectors(
                self.lens, self.prompts, self.base, layers=[LAYER], positions=[-1]
            ),
        )

    @property
    def sae(self) -> Any:
        """A small autoencoder of role and base prompts."""
        folder = self.out / "sae"
        if not folder.is_dir():
            start = time.monotonic()
            read = [text for prompts in self.prompts.values() for text in prompts[:8]]
            made = train_sae(
                self.lens, read + self.base, LAYER, n_features=1024, k=16, steps=600, batch=256
            )
            save_sae(made, folder)
            print(f"sae: {time.monotonic() - start:.0f} s", flush=True)
        return load_sae(folder)


def answered(lens: rl.Lens, questions: Sequence[Question]) -> Directions:
    """Directions between right and wrong answers by every estimator, and by GrAInS and CAA."""
    rng = np.random.default_rng(0)
    wrong = [int(rng.choice([k for k in range(len(q.options)) if k != q.answer]))
             for q in questions]  # fmt: skip
    right = [q.options[q.answer] for q in questions]
    false = [q.options[k] for q, k in zip(questions, wrong, strict=True)]
    texts = [q.text for q in questions]
    layers = [LAYER]
    means = rollouts.contrast_pairs(lens, texts, right, false, layers=layers, pooled="mean")
    letters = rollouts.contrast_pairs(
        lens,
        [letter_prompt(q) for q in questions],
        [LETTERS[q.answer] for q in questions],
        [LETTERS[k] for k in wrong],
        layers=layers,
    )
    some = slice(0, GRAINS)
    grains = [
        rollouts.grains_vectors(
            lens, texts[some], right[some], false[some], layers=layers, steps=STEPS, pick=pick,
            k=4, sides="opposed", name=name,
        )
        for pick, name in (("attribution", "GrAInS"), ("random", "GrAInS, random tokens"))
    ]  # fmt: skip
    made = [means.directions(how, name) for name, how in ANSWERED.items()]
    grouped = means.directions(GroupedMean(), "ROAST's scaling")
    return rl.concat(
        *made, soft_scaled(grouped), letters.directions(DifferenceInMeans(), "CAA"), *grains
    )


def with_role(kept: Kept, found: Directions) -> Directions:
    """With a role's direction and its SRPS, all as long as the difference in means."""
    role = kept.roles[ROLE].at(LAYER)
    srps = feature_contrast(
        kept.lens, kept.sae, kept.prompts[ROLE], kept.base[: kept.n], name="SRPS"
    ).directions()
    like = found.direction("difference in means", LAYER)
    rest = {
        f"role: {ROLE}": role.vector,
        f"SRPS: {ROLE}": srps.direction("SRPS", LAYER).vector,
    }
    more = [
        dataclasses.replace(
            found[["difference in means"]],
            names=(name,),
            directions=vector[None, None, None],
        )
        for name, vector in rest.items()
    ]
    every = rl.concat(found, *more)
    lengths = nulls.matched(every.directions, like.vector.expand_as(every.directions))
    every = dataclasses.replace(every, directions=lengths)
    return rl.concat(every, nulls.gaussian(every[["difference in means"]], NULLS))


def side_by_side(kept: Kept, name: str, task: Questions, questions: int) -> pd.DataFrame:
    """Every direction, made of some questions, tried on others at one strength, beside nulls.

    All are as long as each other, so that all share the nulls, and nothing is chosen.
    """
    order = np.random.default_rng(0).permutation(len(task)).tolist()
    train, test = task.take(order[:TRAIN]), task.take(order[TRAIN : TRAIN + questions])
    vectors = kept.vectors(
        f"{name}-vectors", lambda: with_role(kept, answered(kept.lens, list(train)))
    )
    found = rl.sweep(
        kept.lens, vectors, test, alphas=[ALPHA], method="cloze", store=kept.out / f"{name}.db"
    )
    rows = []
    for cell in found.cells:
        change = rl.compare(found.baseline, found.cell(cell))
        margin = change.margin
        assert margin is not None
        row: dict[str, Any] = {"name": cell.name, "null": cell.name in vectors.nulls}
        row |= {key: getattr(change, key) for key in ("before", "after", "low", "high", "p")}
        row |= {"margin": margin.value, "margin_low": margin.low, "margin_high": margin.high}
        rows.append({**row, "margin_p": margin.p, "items": change.items})
    frame = pd.DataFrame(rows)
    tried = ~frame["null"]
    for column in ("p", "margin_p"):
        frame.loc[tried, f"{column}_holm"] = stats.adjusted(frame.loc[tried, column].tolist())
    return frame


def trained(kept: Kept, task: Questions, questions: int) -> pd.DataFrame:
    """A trained adapter, the reference, on the same questions."""
    order = np.random.default_rng(0).permutation(len(task)).tolist()
    train, test = task.take(order[:TRAIN]), task.take(order[TRAIN : TRAIN + questions])
    adapter = train_adapter(kept.lens, train, rank=8, method="cloze", steps=60, batch=4)
    plain, after = (rl.evaluate(kept.lens, test, h, "cloze") for h in ([], adapter.hooks))
    change = rl.compare(plain, after)
    margin = change.margin
    assert margin is not None
    row = {key: getattr(change, key) for key in ("before", "after", "low", "high", "p")}
    row |= {"margin": margin.value, "margin_low": margin.low, "margin_high": margin.high}
    return pd.DataFrame([{"name": "adapter", **row, "items": change.items}])


def strength(roles: Directions) -> float:
    """What three times a role's direction is of the residual norm, the median over roles."""
    shares = [
        3.0 * roles.direction(name, LAYER).norm / roles.direction(name, LAYER).resid_norm
        for name in roles.names
    ]
    return float(f"{np.median(shares):.2g}")


def effects(kept: Kept, name: str, n_roles: int, n_pairs: int) -> pd.DataFrame:
    """What all role vectors do to one task, as strong as each other, beside nulls as strong."""
    roles, data = kept.roles, kept.data
    some = list(roles.names)[:: len(roles.names) // SHUFFLED][:SHUFFLED]
    shuffled = kept.vectors(
        "shuffled",
        lambda: rl.null_vectors(
            kept.lens, {role: kept.prompts[role] for role in some}, kept.base,
            kinds=["shuffled"], n=1, layers=[LAYER], positions=[-1],
        ),
    )  # fmt: skip
    share = strength(roles)

    def steer(d: Any) -> rl.Steering:
        return rl.add(d, share, unit="resid_norm")

    tried = [role for n, role in enumerate(roles.names) if n * n_roles % len(roles.names) < n_roles]
    steerings = {role: steer(roles.direction(role, LAYER)) for role in tried}
    beside = [random_steering(steer(roles.direction(ROLE, LAYER)), n) for n in range(GAUSSIANS)]
    beside += [steer(shuffled.direction(null, LAYER)) for null in shuffled.names]
    text = None
    asked: dict[str, Any] = {}
    if name == "mini":
        task = rl.load_task("mini")
        asked = {name: task.take(range(0, len(task), 8))}
    if name == "bbq":
        asked = {name: some_templates(rl.load_task(data / "bbq"), 1)}
    if name == "pairs":
        pairs = rl.load_task(data / "crows_pairs" / "crows_pairs_750.csv")
        asked = {name: pairs.take(range(0, len(pairs), len(pairs) // n_pairs))}
    if name == "text":
        text = (data / "wikitext2" / "test.txt").read_text()[:1500]
    found = rl.side_effects(
        kept.lens, steerings, asked, text=text, nulls=beside,
        method="cloze_norm" if name == "bbq" else "cloze",
    )  # fmt: skip
    one = found.nulls[found.nulls["steering"] == tried[0]].drop(columns="steering")
    one = one.assign(kind=np.where(one["null"] < GAUSSIANS, "gaussian", "shuffled"))
    one.to_csv(kept.out / f"effects-{name}-nulls.csv", index=False)
    return found.table().assign(strength=share)


def some_templates(task: Any, each: int) -> Any:
    """Whole blocks of four questions (both contexts, both polarities), spread over each domain."""
    places: dict[tuple[str, str], list[int]] = {}
    for n, item in enumerate(task):
        places.setdefault((item.domain, item.subject), []).append(n)
    chosen = []
    for domain in task.domains:
        blocks = [rows for (where, _), rows in places.items() if where == domain]
        for rows in blocks[:: max(len(blocks) // 3, 1)][:3]:
            chosen += rows[: 4 * each]
    return task.take(sorted(chosen))


def oracle(kept: Kept, questions: int) -> pd.DataFrame:
    """The oracle gap of a library of roles, and a router."""
    task = rl.load_task("mini")
    task = task.take(range(0, len(task), max(len(task) // questions, 1)))
    library = {name: rl.add(kept.roles.direction(name, LAYER), 3.0) for name in LIBRARY}
    gap = oracle_gap(kept.lens, library, task, nulls=4, method="cloze")
    told = {
        "plain": gap.plain, "single": gap.single, "single_value": gap.single_value,
        "oracle": gap.oracle, "gap": gap.gap, "beyond": gap.beyond_chance, "rank": gap.rank,
        "items": gap.items, "null_gaps": gap.null_gaps,
    }  # fmt: skip
    (kept.out / "oracle.json").write_text(json.dumps(told))
    return try_router(kept.lens, library, task, method="cloze").table()


def folds(kept: Kept, questions: int) -> pd.DataFrame:
    """The cell that is chosen with vectors of three quarters of a role's prompts."""
    task = rl.load_task("mini")
    task = task.take(range(0, len(task), max(len(task) // questions, 1)))
    made = fold_vectors(
        kept.lens, {ROLE: kept.prompts[ROLE]}, kept.base, k=4, layers=[10, 14, 18, 22],
        positions=[-1],
    )  # fmt: skip
    found = study_folds(
        kept.lens, made, task, alphas=(1.0, 3.0), method="cloze", ablated=0, prompted=False,
        anyway=True, folder=kept.out / "folds-study",
    )  # fmt: skip
    return found.table()


def main() -> None:
    """Make what is not there, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/side-by-side"))
    parser.add_argument(
        "--only", default="pairs,tried-mini,bbq,oracle,folds,text,truthful,mini,adapter"
    )
    parser.add_argument("--questions", type=int, default=200, help="that estimators are tried on")
    parser.add_argument("--prompts", type=int, default=64, help="of each role")
    parser.add_argument("--pairs", type=int, default=75, help="of CrowS-Pairs")
    parser.add_argument("--roles", type=int, default=29, help="whose side effects are measured")
    given = parser.parse_args()
    kept = Kept(given.data, given.out, given.prompts)
    mini, n = rl.load_task("mini"), given.questions
    parts: dict[str, Callable[[], pd.DataFrame]] = {
        "tried-mini": lambda: side_by_side(kept, "mini", mini, n),
        "truthful": lambda: side_by_side(kept, "truthful", truthful(kept.data), n),
        "adapter": lambda: trained(kept, mini, n),
        "oracle": lambda: oracle(kept, n),
        "folds": lambda: folds(kept, n),
    }
    for name in given.only.split(","):
        if name in parts:
            table(kept.frame(name, parts[name]), 3)
        else:
            made = kept.frame(
                f"effects-{name}", lambda name=name: effects(kept, name, given.roles, given.pairs)
            )
            summary(kept, name, made)


def truthful(data: Path) -> Any:
    """The questions of TruthfulQA (MC1) with few options."""
    task = rl.load_task(data / "truthfulqa" / "mc_task_500.json", "mc1")
    return task.take([n for n, q in enumerate(task) if len(q.options) <= OPTIONS])


def summary(kept: Kept, name: str, made: pd.DataFrame) -> None:
    """Roles beside nulls, a row a measure."""
    nulls_of = pd.read_csv(kept.out / f"effects-{name}-nulls.csv")
    rows = []
    for measure, part in made.groupby("measure", sort=False):
        beside = nulls_of[nulls_of["measure"] == measure]
        row: dict[str, Any] = {"measure": measure, "items": int(part["items"].iloc[0])}
        row["before"] = float(part["before"].iloc[0])
        change = part["change"]
        row["roles"] = f"{change.mean():+.3f} ({change.min():+.3f} to {change.max():+.3f})"
        for kind, own in beside.groupby("kind"):
            moved = own["change"]
            row[str(kind)] = f"{moved.mean():+.3f} ({moved.min():+.3f} to {moved.max():+.3f})"
        row["beyond all"] = int((change.abs() > part["null_most"]).sum())
        shown = (part["low"] > 0) | (part["high"] < 0)
        row["interval without 0"] = int(shown.sum())
        rows.append(row)
    table(pd.DataFrame(rows), 3)


if __name__ == "__main__":
    main()
