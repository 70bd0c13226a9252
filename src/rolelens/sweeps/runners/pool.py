"""Workers that each load the model once, and the loop that keeps them busy."""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

from rolelens import hooks
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.sweeps.runners.work import Call, Known, Model, Outcome, facts

R = TypeVar("R", bound="Runner")
AHEAD = 2
"""Calls that a worker has at once, so that it need not wait for the next."""
ATTEMPTS = 5
"""How often in a row a worker may end without having finished anything."""


@dataclass(frozen=True)
class Event:
    """What happened to a worker.

    Attributes:
        kind: it has loaded the model; it has answered; it ended, and is started again.
        worker: which.
        number: of the call that was answered.
        outcome: of loading, or of the call.
    """

    kind: Literal["ready", "answered", "ended"]
    worker: int
    number: int = -1
    outcome: Outcome | None = None


class Runner(ABC):
    """Workers in other processes, on this machine or on others.

    As a context, ``with runner:``, the workers are kept from call to call and end with it; else
    they end with the call.

    Attributes:
        threads: of torch, in each worker.
    """

    threads: int

    def __init__(self) -> None:
        self._kept = False
        self._model: Model | None = None
        self._known: Known | None = None
        self._ready: set[int] = set()
        self._numbers = itertools.count()

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many workers there are."""

    @abstractmethod
    def start(self, model: Model) -> None:
        """Let all workers load the model."""

    @abstractmethod
    def stop(self) -> None:
        """End all workers."""

    @abstractmethod
    def share(self, known: Known) -> None:
        """Let calls from now on be about something else; no call is under way."""

    @abstractmethod
    def send(self, worker: int, number: int, call: Call) -> None:
        """Ask a worker that is ready for something, by a number that no other call has."""

    @abstractmethod
    def next(self) -> Event:
        """Wait for a worker.

        Raises:
            InputError: one ended too often.
        """

    def device(self, lens: Lens) -> str:
        """Where workers run the model."""
        return str(lens.model.cfg.device)

    def arguments(self, lens: Lens) -> Mapping[str, Any]:
        """How workers load the model.

        Raises:
            InputError: they cannot, or it is steered, which they would not be.
        """
        if lens.loaded is None:
            raise InputError(
                f"{lens.name} was given in memory, and workers load the model themselves; save it "
                "to a folder and load that with rl.load(folder), or take runner='local'."
            )
        installed = hooks.installed(lens)
        if installed:
            raise InputError(
                f"the model is steered ({'; '.join(installed)}), and those of workers are not; "
                "leave lens.steered, or take runner='local'."
            )
        if lens.loaded["device_map"] is not None:
            return lens.loaded
        return {**lens.loaded, "device": self.device(lens).split(":")[0]}

    def open(self, lens: Lens) -> None:
        """Have workers with a model, those that are there if they have it.

        Raises:
            InputError: as for :meth:`arguments`.
        """
        model = Model(self.arguments(lens), facts(lens), self.threads)
        if self._model == model:
            return
        self.close()
        self._model = model
        try:
            self.start(model)
        except BaseException:
            self.close()  # what did not begin is not waited for by the next call
            raise

    def close(self) -> None:
        """End all workers; the next call starts others."""
        self._model = self._known = None
        self._ready.clear()
        self.stop()

    def map(
        self, lens: Lens, known: Known, shards: Sequence[Sequence[Call]]
    ) -> Generator[tuple[Call, Any], None, None]:
        """Have calls done, those of a shard by one worker until others have nothing left to do.

        Args:
            lens: the model.
            known: what the calls are about.
            shards: the calls.

        Yields:
            A call and what it gave, as they are finished. Each is finished once: what a worker had
            not told when it ended is done by another.

        Raises:
            InputError: a worker refuses a call, cannot load the model, or ended too often.
        """
        if not any(shards):
            return
        self.open(lens)
        queue = _Queue(shards)
        try:
            if self._known is not known:
                self.share(known)
                self._known = known
            left = sum(map(len, shards))
            for worker in self._ready:
                self._feed(worker, queue)
            while left:
                event = self.next()
                worker = event.worker
                if event.kind == "ended":
                    self._ready.discard(worker)
                    queue.give_back(worker)
                    for other in self._ready:
                        self._feed(other, queue)
                    continue
                assert event.outcome is not None
                value = event.outcome.checked()
                if event.kind == "ready":
                    self._ready.add(worker)
                    self._feed(worker, queue)
                    continue
                call = queue.sent.get(worker, {}).pop(event.number, None)
                if call is None:  # it was given back when the process before it ended
                    continue
                left -= 1
                self._feed(worker, queue)
                yield call, value
        except BaseException:
            self.close()  # nobody waits for what is under way
            raise

    def _feed(self, worker: int, queue: "_Queue") -> None:
        """Send a worker what it is to do next."""
        while (call := queue.take(worker)) is not None:
            number = next(self._numbers)
            queue.sent[worker][number] = call
            self.send(worker, number, call)

    def __enter__(self: R) -> R:
        self._kept = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kept = False
        self.close()

    @property
    def kept(self) -> bool:
        """Whether the workers outlive a call."""
        return self._kept


class _Queue:
    """Calls that wait, by shard and by worker.

    Attributes:
        sent: what each worker was sent and has not answered, by number.
    """

    def __init__(self, shards: Sequence[Sequence[Call]]) -> None:
        self.sent: dict[int, dict[int, Call]] = {}
        self._waiting = [deque(shard) for shard in shards if shard]
        self._mine: dict[int, deque[Call]] = {}
        self._shared: dict[int, Any] = {}

    def take(self, worker: int) -> Call | None:
        """The next call of a worker's shard, of another shard, or at last of another worker's."""
        under_way = self.sent.setdefault(worker, {})
        if len(under_way) >= AHEAD:
            return None
        if not self._mine.get(worker):
            if self._waiting:
                self._mine[worker] = self._waiting.pop(self._best(worker))
            elif not under_way and any(self._mine.values()):
                self._mine[worker] = _half(max(self._mine.values(), key=len))
            else:
                return None
        call = self._mine[worker].popleft()
        self._shared[worker] = call.shared
        return call

    def give_back(self, worker: int) -> None:
        """Let what a worker that ended has not answered wait, before other shards."""
        undone = deque([*self.sent.pop(worker, {}).values(), *self._mine.pop(worker, ())])
        self._shared.pop(worker, None)
        if undone:
            self._waiting.insert(0, undone)

    def _best(self, worker: int) -> int:
        """The first shard that shares what the worker has run, else one that no other has run."""
        shared = [shard[0].shared for shard in self._waiting]
        mine = self._shared.get(worker)
        if mine is not None and mine in shared:
            return shared.index(mine)
        others = set(self._shared.values())
        return next((n for n, of in enumerate(shared) if of is None or of not in others), 0)


def _half(shard: deque[Call]) -> deque[Call]:
    """Take the last half of what another worker has not been sent, in its order."""
    taken = [shard.pop() for _ in range((len(shard) + 1) // 2)]
    return deque(reversed(taken))
