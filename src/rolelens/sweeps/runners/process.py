"""A worker in a process of its own: ``python -m rolelens.sweeps.runners.process DESCRIPTOR``."""

import os
import sys
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from rolelens.sweeps.runners.work import Worker


def main(descriptor: int) -> None:
    """Answer what comes through a pipe until its other end is closed."""
    pipe: Connection[Any, Any] = Connection(descriptor)
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    worker = Worker(inbox.get())
    pipe.send((-1, worker.load()))
    while True:
        number, parcel, call = inbox.get()
        pipe.send((number, worker.answer(parcel, call)))


def _listen(pipe: Any, inbox: SimpleQueue[Any]) -> None:
    """Take what comes at once, so that the other end never waits; end with it, even in a piece."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
