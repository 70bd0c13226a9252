"""Workers as actors of a Ray cluster: on this machine, or on all of its nodes."""

import os
import pickle
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolelens import forward
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.sweeps.runners.pool import ATTEMPTS, Event, Runner
from rolelens.sweeps.runners.work import Call, Known, Model, Outcome, Parcel, Worker

PATIENCE = 60.0
"""Seconds without any worker after which it is said what the cluster has."""


@dataclass(frozen=True)
class _Stored(Parcel):
    """Something in Ray's object store, which has it once a node.

    Attributes:
        ref: the reference to it.
    """

    ref: Any = None

    def unpacked(self) -> Known:
        """What is in it; the numbers stay in the memory of the node."""
        import ray

        known: Known = ray.get(self.ref)
        return known


class _Actor:
    """A worker; Ray starts it again where it ends, and asks it again for what it had not told."""

    def __init__(self, model: Model) -> None:
        self._worker = Worker(model)

    def load(self) -> Outcome:
        return self._worker.load()

    def answer(self, parcel: Parcel, call: Call) -> Outcome:
        return self._worker.answer(parcel, call)

    def pid(self) -> int:
        return os.getpid()


class Ray(Runner):
    """Actors of a Ray cluster (``pip install 'rolelens[ray]'``)."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        gpus: float | None = None,
        threads: int = 1,
    ) -> None:
        """Say how many, and where.

        Workers begin as the cluster has room for them, and work as soon as they have loaded the
        model: a cluster may grow while they wait.

        Args:
            workers: by default as many as the cluster has room for now.
            address: of a cluster that runs, ``"auto"`` for the one this machine is a node of; by
                default that of ``RAY_ADDRESS``, or a cluster of this machine alone.
            gpus: of each worker, which may share one (0.5); 1 by default where the model is on
                one. With any, workers run on GPUs even where this process has none.
            threads: of torch in each, and CPUs that are taken for it.

        Raises:
            InputError: Ray is not installed, or a number that is too small.
        """
        super().__init__()
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise InputError(
                "Ray is not installed; run pip install 'rolelens[ray]', or take runner='processes'."
            ) from error
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it has to be 1 or more.")
        if gpus is not None and gpus < 0:
            raise InputError(f"gpus is {gpus}; it has to be 0 or more.")
        self.threads = threads
        self._asked, self._address, self._gpus = workers, address, gpus
        self._actors: list[Any] = []
        self._flying: dict[Any, tuple[int, int]] = {}
        self._parcel: Parcel = Parcel("")
        self._events: deque[Event] = deque()
        self._began = False
        self._told = False
        self._wanted, self._each = 0, 0.0

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return len(self._actors) or self._asked or 1

    @property
    def pids(self) -> list[int]:
        """The processes of the workers, on whatever machines."""
        import ray

        pids: list[int] = ray.get([actor.pid.remote() for actor in self._actors])
        return pids

    def device(self, lens: Lens) -> str:
        """A GPU where workers are given any."""
        return "cuda" if self._gpus else super().device(lens)

    def open(self, lens: Lens) -> None:
        """Have workers with a model, on as many GPUs as it is on here."""
        self._wanted = sum(device.type == "cuda" for device in forward.devices(lens.model))
        super().open(lens)

    def start(self, model: Model) -> None:
        """Connect to the cluster and ask it for the workers."""
        import ray

        if not ray.is_initialized():
            try:
                ray.init(
                    address=self._address,
                    log_to_driver=False,
                    configure_logging=False,
                    **({} if self._address else {"include_dashboard": False}),
                )
            except Exception as error:  # where a node does not start in time it is a bare one
                ray.shutdown()
                told = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
                where = (
                    f"at {self._address!r} ({told}); start one with 'ray start --head', or name "
                    "another address."
                    if self._address
                    else f"could be started on this machine ({told}); start one with 'ray start "
                    "--head' and pass address='auto', or take runner='processes'."
                )
                raise InputError(f"no Ray cluster {where}") from error
            self._began = True
        gpus = self._each = float(self._wanted if self._gpus is None else self._gpus)
        if self._wanted and not gpus:
            raise InputError("the model is on a GPU and gpus is 0; leave gpus out.")
        asked = ray.remote(_Actor).options(
            num_cpus=self.threads, num_gpus=gpus, max_restarts=-1, max_task_retries=ATTEMPTS
        )
        workers = self._asked or self._room(gpus)
        self._actors = [asked.remote(model) for _ in range(workers)]
        self._flying = {actor.load.remote(): (n, -1) for n, actor in enumerate(self._actors)}

    def stop(self) -> None:
        """End the actors, in the middle of a piece if need be, and a cluster begun for them."""
        if not self._actors and not self._began:
            return
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._flying = [], {}
        self._events.clear()
        self._parcel = Parcel("")
        if self._began and not self.kept:
            ray.shutdown()
            self._began = False

    def share(self, known: Known) -> None:
        """Put it into the object store."""
        import ray

        try:
            self._parcel = _Stored(os.urandom(8).hex(), ref=ray.put(known))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"what is asked cannot be sent to workers ({str(error).splitlines()[0]}); define "
                "the task in a module that workers can import, or take runner='local'."
            ) from error

    def send(self, worker: int, number: int, call: Call) -> None:
        """Ask the actor."""
        ref = self._actors[worker].answer.remote(self._parcel, call)
        self._flying[ref] = worker, number

    def next(self) -> Event:
        """Wait for whatever is finished first."""
        import ray

        while not self._events:
            done, _ = ray.wait(list(self._flying), num_returns=1, timeout=PATIENCE)
            if not done and not self._ready and not self._told:
                self._told = True
                print(
                    f"rolelens: no worker of {self.threads} CPU(s) and {self._each:g} GPU(s) has "
                    f"loaded the model yet; the cluster has {_held(ray.cluster_resources())}.",
                    file=sys.stderr,
                )
            for ref in done:
                worker, number = self._flying.pop(ref)
                try:
                    outcome = ray.get(ref)
                except ray.exceptions.RayActorError as error:
                    raise InputError(
                        f"worker {worker} ended {ATTEMPTS} times without finishing what it was "
                        f"asked ({str(error).splitlines()[0]}); if memory ran out, take fewer "
                        "workers, else see the logs of the cluster."
                    ) from error
                kind: Any = "ready" if number < 0 else "answered"
                self._events.append(Event(kind, worker, number, outcome))
        return self._events.popleft()

    def _room(self, gpus: float) -> int:
        """Workers that the cluster has room for now; one at least."""
        import ray

        here = ray.cluster_resources()
        fitting = here.get("CPU", 0.0) // self.threads
        if gpus:
            fitting = min(fitting, here.get("GPU", 0.0) // gpus)
        return max(1, int(fitting))


def _held(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs in words."""
    return " and ".join(f"{resources.get(kind, 0.0):g} {kind}s" for kind in ("CPU", "GPU"))
