"""Whole runs that end in a report: the demo, and the description of a file of vectors."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens import evidence, plots
from rolelens.evidence import Comparison, compare
from rolelens.extraction import role_vectors
from rolelens.hooks import Steering, Step, add, by_row
from rolelens.lens import Lens
from rolelens.patchscoping import patchscope
from rolelens.progress import Say
from rolelens.prompts import digest, load_base, load_roles
from rolelens.report import Report
from rolelens.residuals import activations
from rolelens.stats import Separation, in_points, projections, separation
from rolelens.sweeps import Cell, sweep
from rolelens.tasks import Scores, Task, evaluate, load_task
from rolelens.vectors import Directions, check_sources

ROLES = ("mathematician", "lawyer", "doctor")
QUESTION = "What should I do this weekend?"
DEPTH = 0.55
"""Where text is steered, as a share of the layers: late enough for the role to be separable."""
SWEEP_DEPTHS = (0.25, 0.4, 0.55, 0.7)
ALPHA = 3.0
RANDOM = "random direction, same norm"
SHOWN = 8
"""Names whose histograms and readings a report shows at most."""


def describe(
    lens: Lens,
    vectors: Directions,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    out: str | Path,
    *,
    layer: int | None = None,
    say: Say = print,
) -> Path:
    """Report what a set of directions looks like and does.

    Args:
        lens: the model they were measured on.
        vectors: the directions.
        roles: role prompts, for separation; shown for those that the vectors were measured with.
        base: base prompts.
        out: the HTML file.
        layer: where text is steered and names are compared; at 55 % of the depth by default, or the
            nearest layer that the directions have.
        say: takes what is told on the way.

    Returns:
        Path of the report.
    """
    check_sources(vectors.source, lens.source)
    middle = round(DEPTH * lens.n_layers)
    if layer is None:
        layer = min(vectors.layers, key=lambda known: abs(known - middle))
    report = Report(f"Directions in {lens.name}", f"{vectors.contrast}, by layer and position.")
    _texts(lens, vectors, layer, report, say)
    measured = _measured_with(vectors, roles, base)
    if measured:
        results = _separations(lens, measured, base, report, say)
        best = ", ".join(f"{r.name} {max(r.auroc):.2f} (layer {r.best_layer})" for r in results)
        report.headline(f"Held-out prompts against base prompts, highest AUROC: {best}.")
    else:
        report.text(
            "No separation is shown: the prompts at hand are not those that the vectors were "
            "measured with."
        )
    report.heading("How large, and how alike")
    report.figure(plots.norms(vectors, vectors.last_position))
    if len(vectors.names) > 1:
        report.figure(plots.cosines(vectors, layer, vectors.last_position))
    _readings(lens, vectors, layer, report, say)
    report.provenance(lens.source)
    return report.save(out).resolve()


def demo(lens: Lens, out: str | Path, *, say: Say = print, task: Task[Any] | None = None) -> Path:
    """Extract, steer, sweep, confirm and read one role, in about five minutes on `smollm2`.

    Args:
        lens: the model.
        out: folder for the vectors and the report.
        say: takes what is told on the way, a line at a time.
        task: questions; ``mini`` by default.

    Returns:
        Path of the report.
    """
    start = time.monotonic()
    shipped, base = load_roles(), load_base()
    roles = {name: shipped[name].prompts for name in ROLES}
    layer = round(DEPTH * lens.n_layers)
    report = Report(
        f"What does the role '{ROLES[0]}' do in {lens.name}?",
        "Role vectors, steered text, a sweep with a held-out test, and a patchscope reading.",
    )
    say(f"Role vectors of {', '.join(roles)} against {len(base)} base prompts (30 seconds)")
    vectors = role_vectors(lens, roles, base)
    say(f"    saved in {vectors.save(Path(out) / 'vectors.safetensors')}")
    _texts(lens, vectors, layer, report, say)
    _separations(lens, roles, base, report, say)
    _effect(lens, vectors[ROLES[0]], load_task("mini") if task is None else task, report, say)
    _readings(lens, vectors[ROLES[0]], layer, report, say)
    report.provenance(lens.source)
    path = report.save(Path(out) / "report.html").resolve()
    say(f"Done in {(time.monotonic() - start) / 60:.1f} minutes. The report: {path}")
    return path


def _measured_with(
    vectors: Directions, roles: Mapping[str, Sequence[str]], base: Sequence[str]
) -> dict[str, Sequence[str]]:
    """The roles whose prompts, and base prompts, are those that the vectors were measured with."""
    if vectors.prompts.get("base") != (len(base), digest(base)):
        return {}
    return {
        name: roles[name]
        for name in vectors.names
        if name in roles and vectors.prompts.get(name) == (len(roles[name]), digest(roles[name]))
    }


def _texts(lens: Lens, vectors: Directions, layer: int, report: Report, say: Say) -> None:
    say(f"Text: '{QUESTION}', unsteered and with each vector added at layer {layer} (10 seconds)")
    directions = [vectors.direction(name, layer) for name in vectors.names]
    directions.append(directions[0].random_like())
    steerings = [Steering(), *(add(d, ALPHA) for d in directions)]
    answers = lens.generate([QUESTION] * len(steerings), hooks=by_row(steerings), max_new_tokens=45)
    labels = ["unsteered", *(f"as {name}" for name in vectors.names), RANDOM]
    texts = list(zip(labels, answers, strict=True))
    for label, text in texts:
        say(f"    {label}: {' '.join(text.split())}")
    report.heading("Steered text")
    report.text(
        f"'{QUESTION}', answered greedily while {ALPHA:g} times the vector is added to the "
        f"residual stream entering layer {layer}, at every token. The random direction is as long "
        f"as that of {vectors.names[0]}: what disturbance alone does."
    )
    report.texts(texts)


def _separations(
    lens: Lens,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    report: Report,
    say: Say,
) -> list[Separation]:
    say("Separation of held-out role prompts from base prompts, by layer (30 seconds)")
    generic = activations(lens, base, positions=[-1])[:, :, 0]
    projected = [
        projections(activations(lens, prompts, positions=[-1])[:, :, 0], generic, name=role)
        for role, prompts in roles.items()
    ]
    results = [separation(values) for values in projected]
    for result in results:
        say(f"    {result.name}: AUROC {max(result.auroc):.2f} at layer {result.best_layer}")
    report.heading("Where the role can be seen")
    report.text(
        "Each prompt is projected on a difference-in-means that was fitted without it, at the last "
        "post-instruction position. Where that token enters layer 0 the same in every prompt, "
        "nothing can be told apart there, and the AUROC is exactly 0.5."
    )
    report.figure(plots.separation(results))
    for values in projected[:SHOWN]:
        report.figure(plots.projections(values))
    return results


def _effect(lens: Lens, vectors: Directions, task: Task[Any], report: Report, say: Say) -> None:
    selection, test = task.split()
    layers = sorted({round(depth * lens.n_layers) for depth in SWEEP_DEPTHS})
    (name,) = vectors.names
    say(
        f"Sweep of {name} over layers {layers} on {len(selection)} questions, then the best cell "
        f"on {len(test)} others (2 minutes)"
    )
    result = sweep(
        lens, vectors, selection, layers=layers, positions=[-1], alphas=[1.0], method="cloze"
    )
    cell = result.best(name, by="margin")
    control = cell.steering.with_directions(_random)
    unsteered = evaluate(lens, test, method="cloze")
    effect, random = (
        compare(unsteered, evaluate(lens, test, steering, "cloze"))
        for steering in (cell.steering, control)
    )
    where_chosen = result.cell(cell).accuracy - result.baseline.accuracy
    verdict = _verdict(cell, where_chosen, unsteered, effect, random)
    say(f"    {verdict}")
    report.headline(verdict)
    report.heading("Does steering help to answer questions?")
    report.verdict(verdict)
    report.text(
        f"Every layer was tried on one half of the benchmark {task.name!r} "
        f"({len(selection)} questions; the summed log-probability of each option's text decides), "
        "and the cell with the best margin was kept. The table shows that cell on the other half: "
        f"{cell.steering}."
    )
    report.table(_table({"role vector": effect, RANDOM: random}))
    report.figure(plots.heatmap(result, value="margin_gain"))


def _random(step: Step) -> Step:
    """The same with a random direction of the same norm."""
    return dataclasses.replace(step, direction=step.direction.random_like())


def _verdict(
    cell: Cell, where_chosen: float, unsteered: Scores, effect: Comparison, random: Comparison
) -> str:
    """What was found, in plain words."""
    low, high = unsteered.interval
    told = f"Unsteered, the model answers {unsteered.accuracy:.1%} of {effect.items} "
    told += f"held-out questions (95 % interval {low:.1%} to {high:.1%}; "
    told += f"guessing gives {unsteered.chance:.1%}). "
    if not evidence.headroom(unsteered).above_chance:
        return told + "It is not above chance, so there is nothing here for a role to improve."
    told += (
        f"The {cell.name} vector at layer {cell.layer} gained {100 * where_chosen:+.1f} points "
        f"where it was chosen and {100 * effect.difference:+.1f} on the held-out half "
        f"(p = {effect.p:.2f}); a random direction of the same norm, "
        f"{100 * random.difference:+.1f}. "
        f"{effect.items} questions show {in_points(effect.detectable)}. "
    )
    if effect.p < 0.05:
        word = "helps" if effect.difference > 0 else "hurts"
        return told + f"On these questions, adding the vector {word}."
    return told + "Nothing beyond chance was found."


def _table(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    rows = [
        {
            "added": name,
            "unsteered": comparison.before,
            "steered": comparison.after,
            "difference": comparison.difference,
            "95 % low": comparison.low,
            "95 % high": comparison.high,
            "McNemar p": comparison.p,
            "detectable": comparison.detectable,
        }
        for name, comparison in comparisons.items()
    ]
    return pd.DataFrame(rows)


def _readings(lens: Lens, vectors: Directions, layer: int, report: Report, say: Say) -> None:
    say("Patchscope: every vector added at a question about nothing (10 seconds)")
    names = vectors.names[:SHOWN]
    directions = [vectors.direction(name, layer) for name in names]
    readings = patchscope(lens, [*directions, directions[0].random_like()], alpha=ALPHA)
    pairs = [("unsteered", readings[0].baseline)]
    pairs += [
        (label, reading.text) for label, reading in zip([*names, RANDOM], readings, strict=True)
    ]
    for label, text in pairs:
        say(f"    {label}: {' '.join(text.split())}")
    report.heading("Patchscope")
    report.text(
        f"'{readings[0].prompt}', unsteered and with {ALPHA:g} times a vector of layer {layer} "
        "added."
    )
    report.texts(pairs)
