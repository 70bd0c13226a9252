"""Directions of right answers by several estimators, tried on problems they were not made of.

``python benchmarks/roast.py --problems FILE`` (a JSONL file of problems; arithmetic otherwise) and
``--truthful FILE`` (TruthfulQA's ``mc_task.json``). Answers are kept under ``--out``.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import table

import rolelens as rl
from rolelens import rollouts, stats, tasks
from rolelens.evidence import FLOOR
from rolelens.sweeps import Cell
from rolelens.tasks import LETTERS, Problem, Problems, Question, Scores, letter_prompt
from rolelens.vectors import Directions, nulls
from rolelens.vectors.estimators import DifferenceInMeans, GroupedMean
from rolelens.vectors.scaling import soft_scaled, top_k

LAYERS = (9, 14, 19)
ALPHAS = (1.0, 4.0)
FRESH = 300
"""Problems that the best direction is tried on once more."""


def compared(contrasts: dict[str, rollouts.Contrast]) -> Directions:
    """Every estimator's directions with the norms of the difference in means, and nulls."""
    rolled = contrasts["rollouts"]
    plain = rolled.directions(DifferenceInMeans(), "difference in means")
    grouped = rolled.directions(GroupedMean(), "ROAST without scaling")
    estimated = [
        plain,
        grouped,
        dataclasses.replace(soft_scaled(grouped), names=("ROAST",)),
        dataclasses.replace(soft_scaled(grouped, form="alone"), names=("ROAST, beta alone",)),
        dataclasses.replace(top_k(grouped, grouped.d_model // 10), names=("hard mask, 10 %",)),
        rolled.directions(GroupedMean(normalised=False), "grouped, not normalised"),
        *(
            other.directions(DifferenceInMeans(), name)
            for name, other in contrasts.items()
            if name != "rollouts"
        ),
    ]
    same = [
        dataclasses.replace(one, directions=nulls.matched(one.directions, plain.directions))
        for one in estimated
    ]
    return rl.concat(*same, nulls.gaussian(plain, 3))


def on_problems(lens: rl.Lens, problems: Problems, out: Path, new: int, n: int) -> None:
    """Estimate on some problems; choose and try on others."""
    train, rest = problems.take(range(min(3 * n, len(problems)))).split(1 / 3, seed=0)
    kept = out / problems.name
    base = rl.roll_out(
        lens, train, 1, temperature=0.0, max_new_tokens=new, store=kept / "greedy.db"
    )
    low, high = base.interval
    print(f"{problems.name}: pass@1 {base.accuracy:.3f} ({low:.3f} to {high:.3f}), greedy\n")
    if low < FLOOR:
        print("Near the floor: nothing is estimated or tried.\n", flush=True)
        return
    rolled = rl.roll_out(lens, train, max_new_tokens=new, store=kept / "train.db")
    print(f"{rolled}\n", flush=True)
    pairs = rollouts.ab_choices(train)
    contrasts = {
        "rollouts": rollouts.contrast_answers(lens, rolled, layers=LAYERS),
        "CAA": rollouts.contrast_pairs(lens, *pairs, layers=LAYERS),
        "response means": rollouts.contrast_answers(lens, rolled, layers=LAYERS, pooled="mean"),
    }
    vectors = compared(contrasts)
    others = rl.roll_out(lens, rest.take(range(n)), max_new_tokens=new, store=kept / "rest.db")
    read = rollouts.contrast_answers(lens, others, layers=LAYERS).reads(vectors)
    table(read[read["layer"] == LAYERS[1]], 3)
    study = rl.study(
        lens,
        vectors,
        rest,
        layers=LAYERS,
        alphas=ALPHAS,
        max_new_tokens=new,
        folder=kept / "study",
    )
    columns = ["name", "before", "after", "gain", "low", "high", "p", "p_holm"]
    table(study.table()[[*columns, "null_low", "null_high", "null_rank"]], 3)
    print("\n".join(f"- {line}" for line in study.verdicts) + "\n", flush=True)
    if problems.name == "arithmetic":
        once_more(lens, vectors, study, new, kept)


def once_more(lens: rl.Lens, vectors: Directions, study: rl.Study, new: int, kept: Path) -> None:
    """The direction that gained most and the nulls in its cell, on problems that are new."""
    fresh = Problems("more arithmetic", tasks.arithmetic(400 + FRESH)[400:], tasks.BRIEFLY)
    effects = study.table()
    best = study.best(str(effects.loc[effects["gain"].idxmax(), "name"]))
    tried = {
        name: rl.add(vectors.direction(name, best.layer, best.position), best.alpha)
        for name in (best.name, *vectors.nulls)
    }
    swept = rl.sweep(lens, tried, fresh, max_new_tokens=new, store=kept / "fresh.db")
    rows = []
    for cell in swept.cells:
        change = rl.compare(swept.baseline, swept.cell(cell))
        numbers = ("before", "after", "low", "high", "p")
        rows.append({**cell.label, **{name: getattr(change, name) for name in numbers}})
    table(pd.DataFrame(rows).drop(columns="position"), 3)


def letters(questions: Sequence[Question]) -> Problems:
    """Questions in letters, as problems whose answer is a letter."""
    made = [Problem(q.id, letter_prompt(q), LETTERS[q.answer]) for q in questions]
    return Problems("truthfulqa letters", tuple(made), "{question}")


def on_truthfulqa(lens: rl.Lens, path: Path, out: Path, n: int) -> None:
    """The same for MC1 and MC2, scored by the options' log-probabilities."""
    ones, several = rl.load_task(path, "mc1"), rl.load_task(path, "mc2")
    order = np.random.default_rng(0).permutation(len(ones)).tolist()
    train, choose, test = order[:n], order[n : 2 * n], order[2 * n : 4 * n]
    questions = [ones[k] for k in train]
    rolled = rl.roll_out(
        lens,
        letters(questions),
        max_new_tokens=1,
        verifier=lambda problem, text: text.strip() == problem.answer,
        store=out / "truthfulqa.db",
    )
    print(f"{rolled}\n", flush=True)
    wrong = [next(o for k, o in enumerate(q.options) if k != q.answer) for q in questions]
    right = [q.options[q.answer] for q in questions]
    texts = [q.text for q in questions]
    given = [letter_prompt(q) for q in questions]
    named = [[LETTERS[k] for k in ks] for ks in (
        [q.answer for q in questions], [0 if q.answer else 1 for q in questions]
    )]  # fmt: skip
    contrasts = {
        "rollouts": rollouts.contrast_answers(lens, rolled, layers=LAYERS),
        "CAA": rollouts.contrast_pairs(lens, given, *named, layers=LAYERS),
        "response means": rollouts.contrast_pairs(
            lens, texts, right, wrong, layers=LAYERS, pooled="mean"
        ),
    }
    vectors = compared(contrasts)
    swept = rl.sweep(
        lens,
        vectors,
        [ones[k] for k in choose],
        layers=LAYERS,
        alphas=ALPHAS,
        method="cloze",
        store=out / "truthfulqa.db",
    )
    parts = [[b[k] for k in test] for b in (ones, several)]
    before = [rl.evaluate(lens, part, method="cloze") for part in parts]
    print(
        f"TruthfulQA, {len(test)} questions: MC1 {before[0].accuracy:.3f}, "
        f"MC2 {float(before[1].mc2.mean()):.3f} unsteered\n\n"
        "| direction | cell | MC1 gain (points) | MC2 gain (points) |\n|---|---|---|---|",
        flush=True,
    )
    tried: dict[str, tuple[Cell, list[stats.Estimate]]] = {}
    for name in vectors.names:
        best = swept.best(name, by="margin")
        gains = mc_gains(lens, before, parts, best.steering)
        shown = " | ".join(map(in_points, gains))
        print(f"| {name} | layer {best.layer}, alpha {best.alpha:g} | {shown} |", flush=True)
        if name in vectors.tried:
            tried[name] = best, gains
    p = zip(*([g.p for g in gains] for _, gains in tried.values()), strict=True)
    rows = zip(tried, *map(stats.adjusted, p), strict=True)
    print("\nHolm over the directions:\n")
    table(pd.DataFrame(rows, columns=["direction", "p of MC1", "p of MC2"]), 3)
    top = max(tried, key=lambda name: tried[name][1][1].value)
    unseen = [[b[k] for k in order[4 * n :]] for b in (ones, several)]
    truthful_once_more(lens, vectors, tried[top][0], unseen)


def truthful_once_more(
    lens: rl.Lens, vectors: Directions, best: Cell, unseen: Sequence[Sequence[Question]]
) -> None:
    """A direction on questions that nothing has seen, beside the nulls in the same cell.

    Then the same options under other questions: what is gained there as well is gained by how
    answers sound, not by whether they are true of what was asked.
    """
    swapped = [
        [dataclasses.replace(q, text=part[n - 1].text) for n, q in enumerate(part)]
        for part in unseen
    ]
    print(
        f"{best} and the nulls in the same cell, {len(unseen[0])} unseen "
        "questions\n\n| direction | questions | MC1 | gain (points) | MC2 | gain (points) |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    tried = [best.name, *vectors.nulls]
    for kind, parts in (("their own", unseen), ("others'", swapped)):
        before = [rl.evaluate(lens, part, method="cloze") for part in parts]
        for name in tried if kind == "their own" else [best.name]:
            steering = rl.add(vectors.direction(name, best.layer, best.position), best.alpha)
            one, more = mc_gains(lens, before, parts, steering)
            print(
                f"| {name} | {kind} | {before[0].accuracy:.3f} "
                f"| {in_points(one)}, p = {one.p:.4f} "
                f"| {float(before[1].mc2.mean()):.3f} | {in_points(more)}, p = {more.p:.4f} |",
                flush=True,
            )


def mc_gains(
    lens: rl.Lens,
    before: Sequence[Scores],
    parts: Sequence[Sequence[Question]],
    steering: rl.Steering,
) -> list[stats.Estimate]:
    """What steering adds to MC1 and to MC2."""
    one, more = (rl.evaluate(lens, part, steering, "cloze") for part in parts)
    return [
        stats.paired((one.correct.double() - before[0].correct.double()).tolist()),
        stats.paired((more.mc2 - before[1].mc2).tolist()),
    ]


def in_points(gain: stats.Estimate) -> str:
    """Points with their interval."""
    return f"{100 * gain.value:+.1f} ({stats.points_between(gain.low, gain.high)})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=Path, help="a JSONL file of problems")
    parser.add_argument("--truthful", type=Path, help="TruthfulQA's mc_task.json")
    parser.add_argument("--only", default="arithmetic,problems,truthful")
    parser.add_argument("--out", type=Path, default=Path("runs/roast"))
    parser.add_argument("--number", type=int, default=100, help="problems of each of three parts")
    given = parser.parse_args()
    torch.manual_seed(0)
    lens: Any = rl.load("smollm2", dtype="auto")
    only = given.only.split(",")
    if "arithmetic" in only:
        on_problems(lens, rl.load_task("arithmetic"), given.out, 40, given.number)
    if "problems" in only and given.problems:
        on_problems(lens, rl.load_task(given.problems), given.out, 256, given.number)
    if "truthful" in only and given.truthful:
        on_truthfulqa(lens, given.truthful, given.out, given.number)


if __name__ == "__main__":
    main()
