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
from rolelens import rollouts, stats
from rolelens.benchmarks import LETTERS, Question
from rolelens.forward import Hook
from rolelens.rollouts import FLOOR, Problem, Problems
from rolelens.scoring import Scores, letter_prompt
from rolelens.vectors import Direction, RoleVectors, nulls
from rolelens.vectors.estimators import DifferenceInMeans, GroupedMean
from rolelens.vectors.scaling import soft_scaled, top_k

LAYERS = (9, 14, 19)
ALPHAS = (1.0, 4.0)
FRESH = 300
"""Problems that the best direction is tried on once more."""


def compared(contrasts: dict[str, rollouts.Contrast]) -> RoleVectors:
    """Every estimator's directions with the norms of the difference in means, and nulls."""
    own = contrasts["rollouts"]
    plain = own.directions(DifferenceInMeans(), "difference in means")
    grouped = own.directions(GroupedMean(), "ROAST without scaling")
    found = [
        plain,
        grouped,
        dataclasses.replace(soft_scaled(grouped), roles=("ROAST",)),
        dataclasses.replace(soft_scaled(grouped, form="alone"), roles=("ROAST, beta alone",)),
        dataclasses.replace(top_k(grouped, grouped.d_model // 10), roles=("hard mask, 10 %",)),
        own.directions(GroupedMean(normalised=False), "grouped, not normalised"),
        *(
            other.directions(DifferenceInMeans(), name)
            for name, other in contrasts.items()
            if name != "rollouts"
        ),
    ]
    same = [
        dataclasses.replace(one, directions=nulls.matched(one.directions, plain.directions))
        for one in found
    ]
    return rl.concat(*same, nulls.gaussian(plain, 3))


def on_problems(lens: rl.Lens, problems: Problems, out: Path, new: int, n: int) -> None:
    """Estimate on some problems; choose and try on others."""
    train, rest = problems.take(range(min(3 * n, len(problems)))).split(1 / 3, seed=0)
    kept = out / problems.name
    base = rl.roll_out(
        lens, train, 1, temperature=0.0, max_new_tokens=new, store=kept / "greedy.jsonl"
    )
    low, high = base.interval
    print(f"{problems.name}: pass@1 {base.pass_at_1:.3f} ({low:.3f} to {high:.3f}), greedy\n")
    if low < FLOOR:
        print("Near the floor: nothing is estimated or tried.\n", flush=True)
        return
    rolled = rl.roll_out(lens, train, max_new_tokens=new, store=kept / "train.jsonl")
    print(f"{rolled}\n", flush=True)
    pairs = rollouts.ab_choices(train)
    contrasts = {
        "rollouts": rollouts.contrast(lens, rolled, layers=LAYERS),
        "CAA": rollouts.contrast_pairs(lens, *pairs, layers=LAYERS),
        "response means": rollouts.contrast(lens, rolled, layers=LAYERS, pooled="mean"),
    }
    vectors = compared(contrasts)
    others = rl.roll_out(lens, rest.take(range(n)), max_new_tokens=new, store=kept / "rest.jsonl")
    read = rollouts.contrast(lens, others, layers=LAYERS).reads(vectors)
    table(read[read["layer"] == LAYERS[1]], 3)
    found = rollouts.trial(lens, vectors, rest, ALPHAS, max_new_tokens=new, folder=kept / "trial")
    table(found.table.drop(columns=["before", "null"]), 3)
    print("\n".join(f"- {line}" for line in found.verdicts) + "\n", flush=True)
    if problems.name == "arithmetic":
        once_more(lens, vectors, found, new, kept)


def once_more(lens: rl.Lens, vectors: RoleVectors, found: Any, new: int, kept: Path) -> None:
    """The direction and the null that gained most, on problems that nothing else has seen."""
    fresh = Problems("more arithmetic", rollouts.arithmetic(400 + FRESH)[400:], rollouts.BRIEFLY)
    options: dict[str, Any] = {"n": 1, "temperature": 0.0, "max_new_tokens": new}
    before = rl.roll_out(lens, fresh, store=kept / "fresh.jsonl", **options)
    rows = []
    for _, own in found.table.groupby("null"):
        best = own.loc[own["gain"].idxmax()]
        name, layer, alpha = str(best["role"]), int(best["layer"]), float(best["alpha"])
        after = rl.roll_out(
            lens,
            fresh,
            hooks=rl.add(vectors.direction(name, layer, -1), alpha),
            store=kept / f"fresh, {name}.jsonl",
            steering=f"{alpha} x {name} at layer {layer}",
            **options,
        )
        change = rollouts.compare(before, after)
        rows.append(
            {
                "role": name,
                "layer": layer,
                "alpha": alpha,
                "before": before.pass_at_1,
                "after": after.pass_at_1,
                "low": change.low,
                "high": change.high,
                "p": change.p,
            }
        )
    table(pd.DataFrame(rows), 3)


def letters(bench: Sequence[Question]) -> Problems:
    """Questions in letters, as problems whose answer is a letter."""
    made = [Problem(q.id, letter_prompt(q), LETTERS[q.answer]) for q in bench]
    return Problems("truthfulqa letters", tuple(made), "{question}")


def on_truthfulqa(lens: rl.Lens, path: Path, out: Path, n: int) -> None:
    """The same for MC1 and MC2, scored by the options' log-probabilities."""
    ones, several = rl.load_benchmark(path, "mc1"), rl.load_benchmark(path, "mc2")
    order = np.random.default_rng(0).permutation(len(ones)).tolist()
    train, choose, test = order[:n], order[n : 2 * n], order[2 * n : 4 * n]
    asked = [ones[k] for k in train]
    rolled = rl.roll_out(
        lens,
        letters(asked),
        max_new_tokens=1,
        verifier=lambda problem, text: text.strip() == problem.answer,
        store=out / "truthfulqa.jsonl",
    )
    print(f"{rolled}\n", flush=True)
    wrong = [next(o for k, o in enumerate(q.options) if k != q.answer) for q in asked]
    right = [q.options[q.answer] for q in asked]
    texts = [q.text for q in asked]
    given = [letter_prompt(q) for q in asked]
    named = [[LETTERS[k] for k in ks] for ks in (
        [q.answer for q in asked], [0 if q.answer else 1 for q in asked]
    )]  # fmt: skip
    contrasts = {
        "rollouts": rollouts.contrast(lens, rolled, layers=LAYERS),
        "CAA": rollouts.contrast_pairs(lens, given, *named, layers=LAYERS),
        "response means": rollouts.contrast_pairs(
            lens, texts, right, wrong, layers=LAYERS, pooled="mean"
        ),
    }
    vectors = compared(contrasts)
    found = rl.sweep(
        lens,
        vectors,
        [ones[k] for k in choose],
        layers=LAYERS,
        positions=[-1],
        alphas=ALPHAS,
        method="cloze",
        store=out / "truthfulqa.db",
    ).table()
    benches = [[b[k] for k in test] for b in (ones, several)]
    before = [rl.evaluate(lens, bench, method="cloze") for bench in benches]
    print(
        f"TruthfulQA, {len(test)} questions: MC1 {before[0].accuracy:.3f}, "
        f"MC2 {float(before[1].mc2.mean()):.3f} unsteered\n\n"
        "| direction | cell | MC1 gain (points) | MC2 gain (points) |\n|---|---|---|---|",
        flush=True,
    )
    tried: dict[str, tuple[Direction, float, list[stats.Estimate]]] = {}
    for role, own in found.groupby("role", sort=False):
        best = own.loc[own["margin"].idxmax()]
        d = vectors.direction(str(role), int(best["layer"]), -1)
        alpha = float(best["alpha"])
        gains = mc_gains(lens, before, benches, rl.add(d, alpha))
        shown = " | ".join(map(in_points, gains))
        print(f"| {role} | layer {d.layer}, alpha {alpha:g} | {shown} |", flush=True)
        if not nulls.imitated(str(role)):
            tried[str(role)] = d, alpha, gains
    p = zip(*([g.p for g in gains] for _, _, gains in tried.values()), strict=True)
    rows = zip(tried, *map(stats.adjusted, p), strict=True)
    print("\nHolm over the directions:\n")
    table(pd.DataFrame(rows, columns=["direction", "p of MC1", "p of MC2"]), 3)
    top = max(tried, key=lambda role: tried[role][2][1].value)
    d, alpha, _ = tried[top]
    unseen = [[b[k] for k in order[4 * n :]] for b in (ones, several)]
    truthful_once_more(lens, vectors, top, d.layer, alpha, unseen)


def truthful_once_more(
    lens: rl.Lens,
    vectors: RoleVectors,
    role: str,
    layer: int,
    alpha: float,
    unseen: Sequence[Sequence[Question]],
) -> None:
    """A direction on questions that nothing has seen, beside the nulls in the same cell.

    Then the same options under other questions: what is gained there as well is gained by how
    answers sound, not by whether they are true of what was asked.
    """
    swapped = [
        [dataclasses.replace(q, text=bench[n - 1].text) for n, q in enumerate(bench)]
        for bench in unseen
    ]
    print(
        f"{role} and the nulls at layer {layer}, alpha {alpha:g}, {len(unseen[0])} unseen "
        "questions\n\n| direction | questions | MC1 | gain (points) | MC2 | gain (points) |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    tried = [role, *(name for name in vectors.roles if nulls.imitated(name))]
    for kind, benches in (("their own", unseen), ("others'", swapped)):
        before = [rl.evaluate(lens, bench, method="cloze") for bench in benches]
        for name in tried if kind == "their own" else [role]:
            hooks = rl.add(vectors.direction(name, layer, -1), alpha)
            one, more = mc_gains(lens, before, benches, hooks)
            print(
                f"| {name} | {kind} | {before[0].accuracy:.3f} "
                f"| {in_points(one)}, p = {one.p:.4f} "
                f"| {float(before[1].mc2.mean()):.3f} | {in_points(more)}, p = {more.p:.4f} |",
                flush=True,
            )


def mc_gains(
    lens: rl.Lens,
    before: Sequence[Scores],
    benches: Sequence[Sequence[Question]],
    hooks: Sequence[Hook],
) -> list[stats.Estimate]:
    """What steering adds to MC1 and to MC2."""
    one, more = (rl.evaluate(lens, bench, hooks, "cloze") for bench in benches)
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
        on_problems(lens, rl.load_problems("arithmetic"), given.out, 40, given.number)
    if "problems" in only and given.problems:
        on_problems(lens, rl.load_problems(given.problems), given.out, 256, given.number)
    if "truthful" in only and given.truthful:
        on_truthfulqa(lens, given.truthful, given.out, given.number)


if __name__ == "__main__":
    main()
