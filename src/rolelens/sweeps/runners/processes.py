"""Workers on this machine, each in a process of its own: one a GPU, or some on the CPU."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from rolelens import forward
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.sweeps.runners.pool import ATTEMPTS, Event, Runner
from rolelens.sweeps.runners.work import Call, Known, Model, Parcel

CPU = torch.device("cpu")
CORES = 4
"""Workers on a CPU at most, unless so many are asked for: each holds a model."""


@dataclass
class _Process:
    """A worker.

    Attributes:
        process: its process.
        pipe: to it.
        has: the key of what it was given to know.
        ends: how often in a row it ended without having finished anything.
    """

    process: "subprocess.Popen[bytes]"
    pipe: "Connection[Any, Any]"
    has: str = ""
    ends: int = 0


class Processes(Runner):
    """Workers on this machine."""

    def __init__(self, workers: int | None = None, *, threads: int | None = None) -> None:
        """Say how many.

        Args:
            workers: one for each GPU by default, which it then sees alone; on a CPU one for each
                core, and 4 at most.
            threads: of torch in each; by default workers share this process's.

        Raises:
            InputError: a number below 1, or the system is Windows.
        """
        super().__init__()
        if os.name == "nt":
            raise InputError("runner='processes' needs a POSIX system; take runner='ray'.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._workers = workers or torch.cuda.device_count() or min(CORES, cores or 1)
        self.threads = threads or max(1, torch.get_num_threads() // self._workers)
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it has to be 1 or more.")
        self._processes: list[_Process] = []
        self._parcel = Parcel("")
        self._events: deque[Event] = deque()

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self._workers

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [worker.process.pid for worker in self._processes]

    def arguments(self, lens: Lens) -> Mapping[str, Any]:
        """How workers load the model.

        Raises:
            InputError: they cannot, it is steered, or it is laid over several GPUs.
        """
        arguments = super().arguments(lens)
        if arguments["device_map"] is not None and forward.devices(lens.model) != {CPU}:
            raise InputError(
                f"{lens.name} was loaded with a device_map, and these workers see one GPU each; "
                "take runner='ray', which gives a worker as many, or load it with device='cuda'."
            )
        return arguments

    def start(self, model: Model) -> None:
        """Start them; each loads the model."""
        for n in range(self._workers):
            self._processes.append(self._started(n, model))

    def stop(self) -> None:
        """End them, in the middle of a piece if need be."""
        for worker in self._processes:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._processes:
            worker.process.wait()
        self._processes = []
        self._events.clear()

    def share(self, known: Known) -> None:
        """Pickle it once; each worker gets it with its first call."""
        try:
            content = pickle.dumps(known, protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"what is asked cannot be sent to workers ({error}); define the task in a module "
                "that workers can import, or take runner='local'."
            ) from error
        self._parcel = Parcel(os.urandom(8).hex(), content)

    def send(self, worker: int, number: int, call: Call) -> None:
        """Write to its pipe."""
        to = self._processes[worker]
        parcel = Parcel(self._parcel.key) if to.has == self._parcel.key else self._parcel
        to.has = self._parcel.key
        with suppress(OSError):  # it ended, which is seen when it is waited for
            to.pipe.send((number, parcel, call))

    def next(self) -> Event:
        """Wait for what any of them writes, or for its end."""
        if not self._events:
            pipes = {worker.pipe: n for n, worker in enumerate(self._processes)}
            for pipe in wait(list(pipes)):
                self._events.append(self._heard(pipes[pipe]))  # type: ignore[index]
        return self._events.popleft()

    def _heard(self, n: int) -> Event:
        worker = self._processes[n]
        try:
            number, outcome = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._restarted(n)
        if number < 0:
            return Event("ready", n, outcome=outcome)
        worker.ends = 0
        return Event("answered", n, number, outcome)

    def _restarted(self, n: int) -> Event:
        """Start another in the place of one that ended."""
        worker, model = self._processes[n], self._model
        assert model is not None
        worker.pipe.close()
        worker.process.kill()
        code = worker.process.wait()
        if worker.ends + 1 >= ATTEMPTS:
            by = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise InputError(
                f"worker {n} ended {ATTEMPTS} times in a row without finishing anything ({by}); if "
                "memory ran out, take fewer workers, else see what they wrote to standard error."
            )
        self._processes[n] = self._started(n, model)
        self._processes[n].ends = worker.ends + 1
        return Event("ended", n)

    def _started(self, n: int, model: Model) -> _Process:
        """A process that sees its GPU alone, from before torch is imported in it."""
        ours, theirs = multiprocessing.Pipe()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        if model.arguments["device"] == "cuda":
            visible = _visible()
            environment["CUDA_VISIBLE_DEVICES"] = visible[n % len(visible)]
        process = self._spawned(theirs.fileno(), environment)
        theirs.close()
        with suppress(OSError):
            ours.send(model)
        return _Process(process, ours)

    def _spawned(
        self, descriptor: int, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.process", str(descriptor)],
            env=environment,
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the driver, which ends its workers
        )


def _visible() -> list[str]:
    """The GPUs of this process, as it was told them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told:
        return told.split(",")
    return [str(n) for n in range(torch.cuda.device_count())]
