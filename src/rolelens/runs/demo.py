"""Whole runs that end in a report: the demo, and the description of a file of vectors."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rolelens import evidence, plots
from rolelens.activations import activations
from rolelens.benchmarks import Benchmark, load_benchmark
from rolelens.evidence import Comparison
from rolelens.extraction import role_vectors
from rolelens.hooks import add, add_rows
from rolelens.lens import Lens
from rolelens.patchscope import patchscope
from rolelens.progress import Say
from rolelens.prompts import digest, load_base, load_roles
from rolelens.report import Report
from rolelens.scoring import Scores, evaluate
from rolelens.stats import in_points, projections, separation
from rolelens.sweep import Cell, Sweep, sweep
from rolelens.vectors import RoleVectors, check_sources

ROLES = ("mathematician", "lawyer", "doctor")
QUESTION = "What should I do this weekend?"
DEPTH = 0.55
"""Where text is steered, as a share of the layers: late enough for the role to be separable."""
SWEEP_DEPTHS = (0.25, 0.4, 0.55, 0.7)
ALPHA = 3.0


def describe(
    lens: Lens,
    vectors: RoleVectors,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    out: str | Path,
    *,
    layer: int | None = None,
    say: Say = print,
) -> Path:
    """Report what a set of role vectors looks like and does.

    Args:
        lens: the model they were measured on.
        vectors: the role vectors.
        roles: role prompts, for separation; shown for those that the vectors were measured with.
        base: base prompts.
        out: the HTML file.
        layer: where text is steered and roles are compared; at 55 % of the depth by default.
        say: takes what is told on the way.

    Returns:
        Path of the report.
    """
    check_sources(vectors.source, lens.source)
    layer = round(DEPTH * lens.n_layers) if layer is None else layer
    report = Report(f"Role vectors in {lens.name}", f"{vectors.contrast}, by layer and position.")
    _texts(lens, vectors, layer, report, say)
    same_base = vectors.prompts.get("base") == (len(base), digest(base))
    known = {
        role: roles[role]
        for role in vectors.roles
        if same_base
        and vectors.prompts.get(role) == (len(roles.get(role, ())), digest(roles.get(role, ())))
    }
    if known:
        _separations(lens, known, base, report, say)
    else:
        report.text(
            "No separation is shown: the prompts at hand are not those that the vectors were "
            "measured with."
        )
    report.heading("How large, and how alike")
    report.figure(plots.norms(vectors, vectors.positions[-1]))
    if len(vectors.roles) > 1:
        report.figure(plots.cosines(vectors, layer, vectors.positions[-1]))
    _reading(lens, vectors[vectors.roles[0]], layer, report, say)
    report.provenance(lens.source)
    return report.save(out).resolve()


def demo(
    lens: Lens, out: str | Path, *, say: Say = print, benchmark: Benchmark | None = None
) -> Path:
    """Extract, steer, sweep, confirm and read one role, in about five minutes on `smollm2`.

    Args:
        lens: the model.
        out: folder for the vectors and the report.
        say: takes what is told on the way, a line at a time.
        benchmark: questions; ``mini`` by default.

    Returns:
        Path of the report.
    """
    start = time.monotonic()
    every_role, base = load_roles(), load_base()
    roles = {name: every_role[name].prompts for name in ROLES}
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
    _effect(lens, vectors[ROLES[0]], benchmark or load_benchmark("mini"), report, say)
    _reading(lens, vectors[ROLES[0]], layer, report, say)
    report.provenance(lens.source)
    path = report.save(Path(out) / "report.html").resolve()
    say(f"Done in {(time.monotonic() - start) / 60:.1f} minutes. The report: {path}")
    return path


def _texts(lens: Lens, vectors: RoleVectors, layer: int, report: Report, say: Say) -> None:
    say(f"Text: '{QUESTION}', unsteered and with each vector added at layer {layer} (10 seconds)")
    position = vectors.positions[-1]
    directions = [vectors[role].at(layer, position) for role in vectors.roles]
    hooks = add_rows([directions[0], *directions], [0.0] + [ALPHA] * len(directions))
    answers = lens.generate([QUESTION] * (1 + len(directions)), hooks=hooks, max_new_tokens=45)
    labels = ["unsteered", *(f"as {role}" for role in vectors.roles)]
    texts = list(zip(labels, answers, strict=True))
    for label, text in texts:
        say(f"    {label}: {' '.join(text.split())}")
    report.heading("Steered text")
    report.text(
        f"'{QUESTION}', answered greedily while {ALPHA:g} times the role vector is added to the "
        f"residual stream entering layer {layer}, at every token."
    )
    report.texts(texts)


def _separations(
    lens: Lens,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    report: Report,
    say: Say,
) -> None:
    say("Separation of held-out role prompts from base prompts, by layer (30 seconds)")
    generic = activations(lens, base, positions=[-1])[:, :, 0]
    projected = [
        projections(activations(lens, own, positions=[-1])[:, :, 0], generic, role=role)
        for role, own in roles.items()
    ]
    results = [separation(own) for own in projected]
    for result in results:
        say(f"    {result.role}: AUROC {max(result.auroc):.2f} at layer {result.best_layer}")
    report.heading("Where the role can be seen")
    report.text(
        "Each prompt is projected on a difference-in-means that was fitted without it, at the last "
        "post-instruction position. Where that token enters layer 0 the same in every prompt, "
        "nothing can be told apart there, and the AUROC is exactly 0.5."
    )
    report.figure(plots.separation(results))
    report.figure(plots.projections(projected[0]))


def _effect(
    lens: Lens, vectors: RoleVectors, benchmark: Benchmark, report: Report, say: Say
) -> None:
    selection, test = benchmark.split()
    layers = sorted({round(depth * lens.n_layers) for depth in SWEEP_DEPTHS})
    say(
        f"Sweep of {vectors.roles[0]} over layers {layers} on {len(selection)} questions, then "
        f"the best cell on {len(test)} others (2 minutes)"
    )
    swept = sweep(
        lens, vectors, selection, layers=layers, positions=[-1], alphas=[1.0], method="cloze"
    )
    cell = swept.best(vectors.roles[0], by="margin")
    control = Cell(cell.direction.random_like(), cell.alpha)
    unsteered = evaluate(lens, test, method="cloze")
    effect, random = (
        evidence.compare(unsteered, evaluate(lens, test, add(c.direction, c.alpha), method="cloze"))
        for c in (cell, control)
    )
    verdict = _verdict(cell, swept, unsteered, effect, random)
    say(f"    {verdict}")
    report.heading("Does steering help to answer questions?")
    report.verdict(verdict)
    report.text(
        f"Every layer was tried on one half of the benchmark {benchmark.name!r} "
        f"({len(selection)} questions; the summed log-probability of each option's text decides), "
        f"and the cell with the best margin was kept. The table shows that cell on the other half."
    )
    report.table(_table({"role vector": effect, "random direction, same norm": random}))
    report.figure(plots.heatmap(swept, value="margin_gain"))


def _verdict(
    cell: Cell, swept: Sweep, unsteered: Scores, effect: Comparison, random: Comparison
) -> str:
    """What was found, in plain words."""
    role, layer = cell.direction.role, cell.direction.layer
    low, high = unsteered.interval
    found = f"Unsteered, the model answers {unsteered.accuracy:.1%} of {effect.questions} "
    found += f"held-out questions (95 % interval {low:.1%} to {high:.1%}; "
    found += f"guessing gives {unsteered.chance:.1%}). "
    if not evidence.headroom(unsteered).above_chance:
        return found + "It is not above chance, so there is nothing here for a role to improve."
    chosen = swept.cell(role, layer, cell.direction.position or -1, cell.alpha)
    gain = chosen.accuracy - swept.baseline.accuracy
    found += (
        f"The {role} vector at layer {layer} gained {100 * gain:+.1f} points where it was chosen "
        f"and {100 * effect.difference:+.1f} on the held-out half (p = {effect.p:.2f}); a random "
        f"direction of the same norm, {100 * random.difference:+.1f}. "
        f"{effect.questions} questions show {in_points(effect.detectable)}. "
    )
    if effect.p < 0.05:
        word = "helps" if effect.difference > 0 else "hurts"
        return found + f"On these questions, adding the vector {word}."
    return found + "Nothing beyond chance was found."


def _table(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    rows = [
        {
            "added": name,
            "unsteered": c.before,
            "steered": c.after,
            "difference": c.difference,
            "95 % low": c.low,
            "95 % high": c.high,
            "McNemar p": c.p,
            "detectable": c.detectable,
        }
        for name, c in comparisons.items()
    ]
    return pd.DataFrame(rows)


def _reading(lens: Lens, vectors: RoleVectors, layer: int, report: Report, say: Say) -> None:
    say("Patchscope: the vector added at a question about nothing (10 seconds)")
    reading = patchscope(lens, vectors.at(layer, vectors.positions[-1]), alpha=ALPHA)
    pairs = [("unsteered", reading.baseline), ("steered", reading.text)]
    for label, text in pairs:
        say(f"    {label}: {' '.join(text.split())}")
    report.heading("Patchscope")
    report.text(
        f"'{reading.prompt}', unsteered and with {ALPHA:g} times the vector of "
        f"'{vectors.roles[0]}' added at layer {layer}."
    )
    report.texts(pairs)
