"""Who scores the pieces of a run: this process, others on this machine, or a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from rolelens.errors import InputError
from rolelens.sweeps.runners.on_ray import Ray
from rolelens.sweeps.runners.pool import Runner
from rolelens.sweeps.runners.processes import Processes
from rolelens.sweeps.runners.shards import sharded
from rolelens.sweeps.runners.work import Finished, Gradient, Known, Round, Score, bare, gradient

RUNNERS = ("local", "processes", "ray")

__all__ = [
    "RUNNERS",
    "Finished",
    "Gradient",
    "Known",
    "Processes",
    "Ray",
    "Round",
    "Runner",
    "Score",
    "bare",
    "gradient",
    "runner_of",
    "running",
    "sharded",
]


def runner_of(
    name: str,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
) -> Runner | None:
    """The runner of a name; None is this process.

    Args:
        name: ``local``, ``processes`` or ``ray``.
        workers: of those that have them.
        threads: of torch in each worker.
        address: of a Ray cluster.
        gpus: of each worker on a Ray cluster.

    Raises:
        InputError: there is no such runner, or something has no effect on it.
    """
    if name not in RUNNERS:
        raise InputError(f"runner is {name!r}; it has to be one of {', '.join(RUNNERS)}.")
    settings = {"workers": workers, "threads": threads, "address": address, "gpus": gpus}
    known = {"local": (), "processes": ("workers", "threads"), "ray": tuple(settings)}[name]
    for setting, value in settings.items():
        if value is not None and setting not in known:
            raise InputError(
                f"{setting} is {value!r}, which has no effect on runner={name!r}; leave it out."
            )
    if name == "processes":
        return Processes(workers, threads=threads)
    if name == "ray":
        return Ray(workers, address=address, gpus=gpus, threads=threads or 1)
    return None


@contextmanager
def running(runner: str | Runner | None) -> Iterator[Runner | None]:
    """A runner for some calls, after which its workers end unless somebody keeps them.

    Args:
        runner: its name, or one that was made; None is this process.

    Raises:
        InputError: there is no such runner.
    """
    if isinstance(runner, str):
        runner = runner_of(runner)
    if runner is None or runner.kept:
        yield runner
        return
    with runner:
        yield runner
