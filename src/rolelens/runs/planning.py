"""What the whole experiment of the paper will take, told before it starts."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import torch

from rolelens import forward, sweeps, tasks
from rolelens.hooks import Steering, Step
from rolelens.lens import Lens
from rolelens.runs.replication import one_each, paper_data
from rolelens.sweeps import UNSTEERED, Cell, Estimate
from rolelens.tasks import Method, Prepared
from rolelens.vectors import Directions, Null
from rolelens.vectors.controls import Kind


def estimate_paper(
    lens: Lens,
    *,
    data: str | Path | None = None,
    vectors: Directions | None = None,
    roles: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    questions: int | None = None,
    method: Method = "letter",
    n_nulls: int = 1,
    seed: int = 0,
    share: float = 0.5,
    folds: int | None = None,
    ablated: int | None = None,
    randoms: int = 4,
    seconds: int | float = 10.0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int | None] | None = None,
    alphas: Sequence[float] | None = None,
    **unused: Any,
) -> Estimate:
    """Say what :func:`rolelens.runs.paper` will take, where no domain is at chance.

    Counted are the extraction, the search of each role and null on the questions of its domain, the
    chosen cells and the nulls on held-out questions, permuted options, ablation and the roles as
    prompts; not the perplexity of a text and the readings, which take minutes at most.

    Args:
        lens: the model.
        data: as for the run, like all that follows.
        vectors: likewise.
        roles: likewise.
        domains: likewise.
        questions: likewise.
        method: likewise.
        n_nulls: likewise.
        seed: likewise.
        share: likewise.
        folds: likewise.
        ablated: likewise.
        randoms: likewise.
        seconds: how long the speed is measured, about; 0: not at all.
        layers: likewise.
        positions: likewise.
        alphas: likewise.
        unused: options of the run that cost nothing.
    """
    sets, base, task = paper_data(data, roles, domains, questions, seed)
    of_role = {name: str(prompts.domain) for name, prompts in sets.items()}
    names = [name for name in (vectors.tried if vectors is not None else sets) if name in sets]
    some = one_each(names, of_role)
    kinds = ("gaussian",) if vectors is not None else get_args(Kind)
    imitates = {
        f"{kind} {n} ~ {role}": role for role in some for kind in kinds for n in range(n_nulls)
    }
    stand_in = _stand_in(lens, names, imitates)
    places = of_role | {null: of_role[role] for null, role in imitates.items()}
    first, second = task.folds(folds, seed)[0] if folds else task.split(share, seed)
    chosen_on, held_out = (tasks.prepare(lens, part, method) for part in (first, second))
    total = sweeps.estimate(
        lens,
        stand_in,
        chosen_on,
        searching=True,
        domains={name: places[name] for name in stand_in.names},
        layers=layers,
        positions=positions,
        alphas=alphas,
        seconds=seconds,
    )
    middle = _cell(stand_in, (lens.n_layers * 2) // 5)
    costs = [_cost(lens, held_out, middle, len(names))]
    for domain in dict.fromkeys(of_role[name] for name in names):
        of_domain = [name for name in names if of_role[name] == domain]
        nulls = sum(places[null] == domain for null in imitates)
        part = _take(held_out, domain)
        costs.append(_cost(lens, part, middle, len(of_domain) + max(nulls, len(of_domain))))
        costs.append(2 * _cost(lens, part, UNSTEERED, len(of_domain)))
        everywhere = _cell(stand_in, 0)
        few = part.take(range(min(50 if ablated is None else ablated, len(part.task))))
        if len(few.task):
            costs.append(_cost(lens, few, everywhere, len(names) + randoms))
    more = max(folds or 1, 1) * sum(costs)
    if vectors is None:
        tokens = lens.encode([prompt for prompts in [base, *sets.values()] for prompt in prompts])
        lengths = [len(ids) for ids in tokens.ids]
        more += forward.count_operations(lens.model).blocks(sum(lengths), mean(lengths))
    each = forward.count_operations(lens.model).each
    times = max(folds or 1, 1)
    return dataclasses.replace(
        total,
        tokens=times * total.tokens + more / each,
        operations=times * total.operations + more,
        most_operations=times * total.most_operations + more,
    )


def _stand_in(lens: Lens, names: Sequence[str], imitates: Mapping[str, str]) -> Directions:
    """Directions of the names and nulls that will be: what they cost does not depend on them."""
    shape = (len(names) + len(imitates), lens.n_layers, len(lens.positions), 1)
    vectors = torch.ones(shape).expand(-1, -1, -1, lens.d_model).clone()
    vectors[:, 0] = 0.0
    return Directions(
        vectors,
        (*names, *imitates),
        tuple(range(lens.n_layers)),
        lens.positions,
        torch.ones(lens.n_layers, len(lens.positions)),
        source=lens.source,
        nulls={null: Null(role, "gaussian", 0) for null, role in imitates.items()},
    )


def _cell(vectors: Directions, layer: int) -> Cell:
    """A cell at a layer; at layer 0 a direction that is removed everywhere."""
    direction = vectors.direction(vectors.names[0], max(layer, 1), vectors.last_position)
    if layer:
        return sweeps.cell_of_steering(Steering([Step("add", direction, 1.0, (layer,))]))
    return sweeps.cell_of_steering(Steering([Step("ablate", direction, 1.0, vectors.layers)]))


def _take(prepared: Prepared, domain: str) -> Prepared:
    return prepared.take([n for n, item in enumerate(prepared.task) if item.domain == domain])


def _cost(lens: Lens, prepared: Prepared, cell: Cell, n: int) -> float:
    """Operations of some cells on some items."""
    return sweeps.cost_of(lens, prepared, [cell] * n)
