"""Where to begin: a layer, a position and a strength that are worth trying first."""

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
import torch

from rolelens import tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError, checked_seed
from rolelens.forward import Named
from rolelens.hooks import Steering, add
from rolelens.lens import Lens
from rolelens.prompts import load_base
from rolelens.sweeps import UNSTEERED, Cell, Grid, Run, cell_of_steering, scored_run
from rolelens.sweeps.screening import screen
from rolelens.tasks import BareOptions, Choices, Passages, Task
from rolelens.vectors import Directions

SHARES = (0.05, 0.1, 0.2, 0.4)
"""Strengths that are tried, as shares of the norm of the residual stream."""
TRIED = 3
"""Layers that are tried exactly."""
PROMPTS, WRITTEN = 8, 24
"""Base prompts whose own answers tell whether the model stays coherent, and their tokens."""


@dataclass(frozen=True, eq=False, repr=False)
class Suggestion(Shown):
    """What to try first; from :func:`suggest`.

    Attributes:
        steering: what is suggested; does nothing where nothing is.
        reason: why, in a sentence or two.
        table: a row a cell that was tried exactly: ``layer``, ``position``, ``share`` (the strength
            in residual norms), ``alpha`` (the same as a factor on the raw direction),
            ``perplexity`` (of the model's own unsteered answers, as a multiple of the unsteered
            one), ``coherent``, and ``gain`` in the measure over the unsteered model, which is
            scored where the model stays coherent and NaN elsewhere.
        screened: a row a layer and position: ``predicted``, the change of the measure to first
            order for a strength of a tenth of the residual norm.
    """

    steering: Steering
    reason: str
    table: pd.DataFrame
    screened: pd.DataFrame

    def card(self) -> Card:
        """The steering and why."""
        facts = {"steering": str(self.steering), "why": self.reason}
        return Card("Suggestion", facts, "rl.study(...) to see whether it holds on other items")


def suggest(
    lens: Lens,
    directions: Directions,
    task: str | Path | Task[Any] | Sequence[Any],
    *,
    items: int = 24,
    coherence: float = 1.5,
    tokens: Named = "all",
    method: str | None = None,
    seed: int = 0,
    **options: Unpack[BareOptions],
) -> Suggestion:
    """Suggest a layer, a position and a strength for directions of one name.

    One backward pass an item predicts what adding each direction does to the task's measure.
    The best position of the most promising layers is then tried at a few strengths, in shares
    of the norm of the residual stream. Those that leave the model coherent (it predicts its own
    unsteered answers to ordinary prompts nearly as well as before) are scored exactly on some
    of the items, and the one with the largest gain is suggested. It was chosen on these very
    items: whether it holds on others is for :func:`rolelens.study` to say.

    Args:
        lens: the model.
        directions: of one name; layers above 80 % of the model's are left out.
        task: questions or texts.
        items: how many of its items, drawn at random.
        coherence: the perplexity of the model's own answers that is still coherent, as a multiple
            of the unsteered one.
        tokens: which tokens are steered.
        method: of questions, as for :func:`rolelens.evaluate`.
        seed: of the items drawn.
        options: see :class:`rolelens.tasks.Options`; ``metric=`` is a measure of one's own, which
            has to be differentiable.

    Raises:
        InputError: directions of several names, of another model or all zero, answers that are
            generated, or as for :func:`rolelens.search`.
    """
    if len(directions.names) != 1:
        raise InputError(
            f"these are the directions of {len(directions.names)} names; take one first, as in "
            f"vectors[{directions.names[0]!r}]."
        )
    if items < 1 or not coherence > 1:
        raise InputError(
            f"items is {items} and coherence {coherence:g}; items has to be 1 or more, and "
            "coherence above 1."
        )
    checked_seed(seed)
    whole = task if isinstance(task, Task) else tasks.load_task(task)
    drawn = random.Random(seed).sample(range(len(whole)), min(items, len(whole)))
    prepared = tasks.prepare(lens, whole.take(sorted(drawn)), method, **options)
    if not isinstance(prepared, Choices | Passages) or directions.site != "resid_pre":
        raise InputError(
            f"what directions at {directions.site!r} do to {whole.name!r} cannot be predicted from "
            "gradients; pass questions or texts and directions of the residual stream, or sweep "
            "with rl.sweep."
        )
    top = int(0.8 * lens.n_layers)
    live = [d for d in directions if d.norm > 0 and d.layer < top]
    if not live:
        raise InputError(
            f"all directions of {directions.names[0]!r} below layer {top} are zero; measure others."
        )
    cells = [cell_of_steering(add(d, 0.1, unit="resid_norm", tokens=tokens)) for d in live]
    for cell in cells:
        cell.steering.check(lens.source, lens.n_layers)
    with Run(lens, prepared, Grid(tuple(cells)), settings={"kind": "suggest"}, store=None) as run:
        run.score([UNSTEERED], range(len(prepared.task)), "unsteered")
        baseline = run.scores(UNSTEERED)
        ranked = [name for name in baseline.measures if name != "accuracy"]
        by = str((ranked or baseline.measures)[0])
        predicted = screen(lens, prepared, run.records[0], cells, by).mean(dim=1)
    screened = pd.DataFrame(
        {
            "layer": [d.layer for d in live],
            "position": [d.position for d in live],
            "predicted": predicted.tolist(),
        }
    ).sort_values("predicted", ascending=False, ignore_index=True)
    order = predicted.argsort(descending=True).tolist()
    best_of = {live[n].layer: live[n] for n in reversed(order)}  # the best position of each layer
    layers = list(dict.fromkeys(live[n].layer for n in order))[:TRIED]
    tried = [
        cell_of_steering(add(best_of[layer], share, unit="resid_norm", tokens=tokens))
        for layer in layers
        for share in SHARES
    ]
    table = _table(lens, prepared, tried, by, coherence)
    return _chosen(table, screened, tried, by, len(prepared.task), coherence)


def _table(
    lens: Lens, prepared: Choices | Passages, tried: Sequence[Cell], by: str, coherence: float
) -> pd.DataFrame:
    """Whether the model stays coherent in each cell, and what those in which it does gain."""
    plain, steered = _scored(lens, _own_answers(lens), tried)
    ratios = {
        cell: math.exp(min(plain.mean() - scores.mean(), 700.0)) for cell, scores in steered.items()
    }
    good = [cell for cell, ratio in ratios.items() if ratio <= coherence]
    gains: dict[Cell, float] = {}
    if good:
        before, after = _scored(lens, prepared, good)
        gains = {
            cell: float((scores.measure(by) - before.measure(by)).mean())
            for cell, scores in after.items()
        }
    rows = []
    for cell in tried:
        (step,) = cell.steering.steps
        d = step.direction
        rows.append(
            {
                "layer": d.layer,
                "position": d.position,
                "share": step.alpha,
                "alpha": step.alpha * (d.resid_norm or math.nan) / d.norm,
                "gain": gains.get(cell, math.nan),
                "perplexity": ratios.get(cell, math.inf),
                "coherent": cell in gains,
            }
        )
    return pd.DataFrame(rows)


def _scored(
    lens: Lens, prepared: Choices | Passages, cells: Sequence[Cell]
) -> tuple[Any, dict[Cell, Any]]:
    """What the unsteered model is worth, and each cell that stays within the range of the dtype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\d+ of \d+ cells failed")  # the table tells
        run = scored_run(lens, prepared, Grid(tuple(cells)), "suggest", None)
    kept = [cell for cell in cells if cell not in run.failed]
    return run.scores(UNSTEERED), {cell: run.scores(cell) for cell in kept}


class _OwnAnswers(Passages):
    """Texts that answer prompts."""

    prompted = True


def _own_answers(lens: Lens) -> Passages:
    """What the unsteered model answers to some base prompts, as one text."""
    prompts = list(load_base())[:PROMPTS]
    written = lens.generate(prompts, max_new_tokens=WRITTEN)
    pairs = [(prompt, text) for prompt, text in zip(prompts, written, strict=True) if text]
    if not pairs:
        raise InputError(
            "the model answers no base prompt, so nothing tells whether it stays coherent; sweep "
            "with rl.sweep."
        )
    tokens = lens.encode([prompt for prompt, _ in pairs], [text for _, text in pairs])
    one = tasks.load_task([tasks.Text("own answers", " ".join(text for _, text in pairs))])
    return _OwnAnswers(one, None, tokens, torch.zeros(len(pairs), dtype=torch.long), None)


def _chosen(
    table: pd.DataFrame,
    screened: pd.DataFrame,
    tried: Sequence[Cell],
    by: str,
    n_items: int,
    coherence: float,
) -> Suggestion:
    """The best coherent cell, and why it is."""
    rows = table.to_dict("records")
    good = [n for n, row in enumerate(rows) if row["coherent"] and row["gain"] > 0]
    kept = f"the perplexity of the model's own answers within {coherence:g} times"
    if not good:
        told = (
            f"of the {int(table['coherent'].sum())} of {len(rows)} cells that leave {kept} none "
            f"raises the {by} on {n_items} items"
            if table["coherent"].any()
            else f"none of {len(rows)} cells leaves {kept} (least {table['perplexity'].min():.3g})"
        )
        reason = f"nothing is suggested: {told}."
        return Suggestion(Steering(), reason, table, screened)
    best = max(good, key=lambda n: rows[n]["gain"])
    chosen = rows[best]
    where = f"layer {chosen['layer']}"
    (step,) = tried[best].steering.steps
    if step.direction.position is not None:
        where += f", position {step.direction.position}"
    reason = (
        f"{where} at {chosen['share']:g} residual norms (alpha {chosen['alpha']:.3g}): the {by} on "
        f"{n_items} items rises by {chosen['gain']:.3g}, the most of the "
        f"{int(table['coherent'].sum())} of {len(rows)} cells that leave {kept} "
        f"({chosen['perplexity']:.2f}); chosen on these items, so confirm it on others."
    )
    return Suggestion(tried[best].steering, reason, table, screened)
