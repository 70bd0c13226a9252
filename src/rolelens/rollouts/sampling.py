"""Answers that a model generates to problems, several each, and whether they are right."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack, cast

from rolelens import tasks
from rolelens.errors import InputError
from rolelens.forward import Hook
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.sweeps import UNSTEERED, Grid, Run, cell_of_steering
from rolelens.sweeps.runners import Runner, running
from rolelens.tasks import Answers, Problems, SeededOptions


def roll_out(
    lens: Lens,
    problems: Problems,
    n: int = 8,
    *,
    hooks: Sequence[Hook] = (),
    store: str | Path | None = None,
    runner: str | Runner | None = None,
    **options: Unpack[SeededOptions],
) -> Answers:
    """Let the model answer problems, and check its answers.

    Args:
        lens: the model.
        problems: from :func:`rolelens.load_task`.
        n: answers to each (2602.14143 takes 8).
        hooks: a steering; the same for all answers.
        store: a SQLite file that keeps finished answers; the same call goes on there.
        runner: who answers, as for :func:`rolelens.sweep`.
        options: see :class:`rolelens.tasks.Options`; ``temperature`` is 0.8 and ``top_p`` 0.9
            unless told otherwise.

    Raises:
        InputError: ``n`` is below 1 or useless, hooks that are no :class:`rolelens.Steering`, a
            store of another call, or as for :meth:`rolelens.Lens.generate`.
    """
    if not isinstance(problems, Problems):
        raise InputError(
            f"a {type(problems).__name__} cannot be rolled out; pass problems, such as "
            "rl.load_task('arithmetic')."
        )
    steering = hooks if isinstance(hooks, Steering) else Steering()
    if not isinstance(hooks, Steering) and (callable(hooks) or len(hooks)):
        raise InputError(
            "rollouts are all steered alike, by something that can be recorded; pass a steering "
            "such as rl.add(direction, 3.0)."
        )
    settings: Any = {"temperature": 0.8, "top_p": 0.9, **options, "n": n}
    prepared = tasks.prepare(lens, problems, **settings)
    steering.check(lens.source, lens.n_layers)
    cell = cell_of_steering(steering)
    grid = Grid(() if cell.is_zero else (cell,))
    settings = {"kind": "rollouts"}
    with (
        running(runner) as workers,
        Run(lens, prepared, grid, settings=settings, store=store, runner=workers) as run,
    ):
        which = UNSTEERED if cell.is_zero else cell
        run.score([which], range(len(problems)), "rollouts")
        return dataclasses.replace(cast(Answers, run.scores(which)), source=lens.source)
