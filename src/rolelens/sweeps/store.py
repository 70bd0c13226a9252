"""What a run has computed so far, in one SQLite file that survives being killed."""

import json
import math
import os
import shlex
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from rolelens.display import Card, Shown
from rolelens.errors import InputError, writing
from rolelens.sweeps.checksums import (
    Checked,
    check_content,
    checked,
    drop,
    records_hash,
    row_hash,
)
from rolelens.sweeps.database import (
    Content,
    changes,
    check_kind,
    connect,
    create,
    explained,
    notes_of,
    read_content,
    read_failures,
    read_meta,
    read_records,
    set_meta,
)

PLANNED = "planned"
"""The note that says how many pieces there will be."""
INFORMATIVE = ("rolelens", "threads", "torch", "verifier")
"""Entries of the provenance that say something about a run and may differ in the next one."""


class Store:
    """The scores of a run, written piece by piece by one process, by one thread.

    A piece that :meth:`commit` returned from survives the process being killed and, as every
    commit is synced (``synchronous=FULL``), the power going out. A piece is there whole or not at
    all, and with a checksum: what the disk spoils afterwards is not read as another number. The
    file belongs on a local disk: SQLite's write-ahead log needs shared memory.

    Anyone may read the file meanwhile, with ``sqlite3.connect("file:PATH?mode=ro", uri=True)``:
    tables ``meta``, ``cells``, ``items``, ``directions``, ``pieces``, ``scores`` (log-probabilities
    in nats, NULL where the option does not exist; or texts), ``failures`` and ``predictions``, and
    the view ``summary``, with a row a cell. Beside it lies an empty ``PATH.lock``, which stays.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        content: Content,
        resources: ExitStack,
    ) -> None:
        self.path = path
        self._connection = connection
        self._content = content
        self._resources = resources

    @classmethod
    def open(cls, path: str | Path, content: Content) -> "Store":
        """Create the file and its folder, or open the file of the same run to go on.

        Args:
            path: the file.
            content: what the run is of.

        Raises:
            InputError: the file belongs to another run, is written by another process, is
                damaged, is something else, or cannot be written.
        """
        path = Path(path)
        with ExitStack() as resources:
            with writing(path):
                if path.exists():
                    check_kind(path)  # before a lock is left beside a foreign file
                # SQLite writes files beside it too, and would find out half-way that it may not.
                TemporaryFile(dir=path.resolve().parent).close()
                resources.enter_context(_locked(path))
                if not path.exists():
                    create(path, content)
            connection = resources.enter_context(closing(connect(path, "rw")))
            with explained(path):
                check_content(connection, read_meta(connection)["content"])
                differing = changes(connection, content, INFORMATIVE)
                if differing:
                    raise InputError(
                        f"{path} holds another run ({'; '.join(differing)}); name another file, "
                        "or repeat the original settings."
                    )
                damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if damage != "ok":
                    raise sqlite3.DatabaseError(damage.splitlines()[-1])
                resources.callback(_rest, connection)
                if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                    # From MEMORY, as a kill in this one-page write would else leave a journal that
                    # nobody can roll back who only reads.
                    connection.execute("PRAGMA journal_mode=MEMORY")
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                with connection:
                    set_meta(connection, "writer", os.getpid())
            return cls(path, connection, content, resources.pop_all())

    @property
    def done(self) -> set[int]:
        """The pieces that are finished."""
        with explained(self.path):
            return {piece for (piece,) in self._connection.execute("SELECT piece FROM pieces")}

    @property
    def notes(self) -> dict[str, Any]:
        """What :meth:`note` has kept."""
        with explained(self.path):
            return notes_of(read_meta(self._connection))

    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON-able value that may change during a run, in place of the last one."""
        with explained(self.path), self._connection:
            set_meta(self._connection, f"note.{key}", value)

    def commit(
        self,
        piece: int,
        cells: Sequence[int],
        items: Sequence[int],
        records: npt.NDArray[Any],
        seconds: float,
        info: Mapping[str, Any] = {},
    ) -> None:
        """Write a finished piece and all that was scored in it, in one transaction.

        Args:
            piece: its number.
            cells: ids of the cells along the first axis.
            items: ids of the items along the second axis.
            records: what was scored, ``[cell, item, column]``; log-probabilities in float32, -inf
                where there is no such option, or texts.
            seconds: how long it took.
            info: small JSON-able facts about the piece.

        Raises:
            InputError: a score is NaN, or the file cannot be written.
            RuntimeError: the piece or a score of it is stored already, or there is no such piece,
                cell or item.
        """
        if records.dtype != object and np.isnan(records).any():
            raise InputError(
                f"scores of piece {piece} are NaN; steer less strongly, or load the model in "
                "float32."
            )
        rows = (
            (int(cell), int(item), *(None if x == -np.inf else x for x in values))
            for cell, block in zip(cells, records.tolist(), strict=True)
            for item, values in zip(items, block, strict=True)
        )
        scored = records_hash(records if records.dtype == object else records.astype(np.float32))
        piece_row = (
            piece,
            datetime.now(UTC).isoformat(timespec="seconds"),
            float(seconds),
            json.dumps(dict(info)),
            json.dumps([int(cell) for cell in cells]),
            json.dumps([int(item) for item in items]),
            scored,
        )
        places = ", ".join("?" * (2 + len(self._content.columns)))
        try:
            with explained(self.path), self._connection:
                self._connection.execute(
                    "INSERT INTO pieces VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*piece_row, row_hash(*piece_row)),
                )
                self._connection.executemany(f"INSERT INTO scores VALUES ({places})", rows)
        except sqlite3.IntegrityError as error:
            raise RuntimeError(f"piece {piece} does not go into {self.path}: {error}.") from error

    def fail(self, cell: int, reason: str) -> None:
        """Keep that a cell cannot be scored, and why, so that it is not tried again."""
        with explained(self.path), self._connection:
            row = (int(cell), reason, row_hash(int(cell), reason))
            self._connection.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", row)

    @property
    def failures(self) -> dict[int, str]:
        """What :meth:`fail` has kept."""
        with explained(self.path):
            return read_failures(self._connection)

    def predictions(self, key: str) -> npt.NDArray[np.float32] | None:
        """What :meth:`predict` has kept, flat; None where nothing was, or not as it was kept."""
        with explained(self.path):
            select = "SELECT predicted, hash FROM predictions WHERE key = ?"
            row = self._connection.execute(select, (key,)).fetchone()
        if row is None:
            return None
        if row[1] != row_hash(key, row[0]):
            self._tell("the predictions of a screen")
            return None
        return np.frombuffer(row[0], dtype=np.float32)

    def predict(self, key: str, predicted: npt.NDArray[np.float32]) -> None:
        """Keep what was predicted, so that a search that goes on need not predict again."""
        with explained(self.path), self._connection:
            content = predicted.astype(np.float32).tobytes()
            self._connection.execute(
                "INSERT OR REPLACE INTO predictions VALUES (?, ?, ?)",
                (key, content, row_hash(key, content)),
            )

    def load(self) -> npt.NDArray[Any]:
        """All that was scored, see :func:`rolelens.sweeps.database.read_records`.

        Pieces that are not as they were written are deleted, so that they are scored again, and
        named in a warning.

        Raises:
            InputError: they cannot be deleted.
        """
        with explained(self.path):
            found = _checked(self._connection, self._content)
            if found.damage:
                damage = _named(found.damage)
                drop(self._connection, found.sound)
                found = _checked(self._connection, self._content)
                if found.damage:
                    raise sqlite3.DatabaseError(f"{damage} cannot be deleted")
                self._tell(damage)
        return found.records

    def _tell(self, damage: str) -> None:
        warnings.warn(
            f"{self.path}: what was stored of {damage} is not what was saved, so it is computed "
            "again.",
            stacklevel=2,
        )

    def close(self) -> None:
        """Let others write; unless somebody is reading, the store is then one plain file."""
        self._resources.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, repr=False)
class Status(Shown):
    """How far a sweep is.

    Attributes:
        path: the file.
        done: pieces that are finished.
        pieces: pieces that are planned so far; a search plans more after every round.
        cells: cells of the sweep.
        items: items of the task.
        first: when the first piece was finished.
        last: when the latest piece was finished.
        seconds: what the finished pieces took together.
        seconds_left: what the others will take if they take as long on average; None before the
            first is finished.
        writer: the process that has the store open for writing now, None if there is none.
        provenance: what the scores depend on.
        notes: what was kept by :meth:`Store.note`.
    """

    path: Path
    done: int
    pieces: int
    cells: int
    items: int
    first: datetime | None
    last: datetime | None
    seconds: float
    seconds_left: float | None
    writer: int | None
    provenance: dict[str, Any]
    notes: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        times = {
            name: at.isoformat() if (at := plain[name]) else None for name in ("first", "last")
        }
        return {**plain, **times, "path": str(self.path)}

    def card(self) -> Card:
        """How far it is, and whether anybody works on it."""
        left = "" if self.seconds_left is None else f", about {self.seconds_left / 60:.1f} min left"
        facts = {
            "file": str(self.path),
            "pieces": f"{self.done} of {self.pieces}{left if self.done < self.pieces else ''}",
            "cells": f"{self.cells} on {self.items} items",
            "model": str(self.provenance.get("model")),
            "task": str(self.provenance.get("task")),
            "written by": f"process {self.writer} now" if self.writer else "nobody now",
        }
        return Card("Status", facts, "the same call, to go on; rl.load_sweep(path), to read it")


def read_store(path: str | Path) -> tuple[Content, npt.NDArray[Any], dict[int, str]]:
    """What a store is of, all that was scored, and why cells failed; changes nothing.

    Raises:
        InputError: there is no such file, it is not a store, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {str(path)!r} with a run; check the path.")
    with explained(path):
        check_kind(path)
    with closing(connect(path, "ro")) as connection, explained(path):
        connection.execute("BEGIN")  # one moment of a store that is being written
        content = read_content(connection)
        found = _checked(connection, content)
        if found.damage:
            raise InputError(
                f"{path} is damaged: what it holds of {_named(found.damage)} is not what was "
                "saved; repeat the call that made it, which computes that again."
            )
        return content, found.records, read_failures(connection)


def _checked(connection: sqlite3.Connection, content: Content) -> Checked:
    return checked(connection, read_records(connection, content))


def _named(damage: Sequence[str]) -> str:
    more = f" and {len(damage) - 6} more" if damage[6:] else ""
    return ", ".join(damage[:6]) + more


def status(path: str | Path) -> Status:
    """How far a sweep is; changes nothing, and works while another process writes.

    Raises:
        InputError: there is no such file, it is not a store, or it is damaged; scores are not
            looked at.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"no file {str(path)!r} with a sweep; check the path.")
    with explained(path):
        check_kind(path)
    with closing(connect(path, "ro")) as connection, explained(path):
        connection.execute("BEGIN")
        for table in ("meta", "cells", "items", "pieces"):
            (damage,) = connection.execute(f"PRAGMA quick_check({table})").fetchone()
            if damage != "ok":
                raise sqlite3.DatabaseError(damage.splitlines()[-1])
        meta = read_meta(connection)
        check_content(connection, meta["content"])
        pieces = connection.execute("SELECT * FROM pieces").fetchall()
        damage = [f"piece {row[0]}" for row in pieces if row_hash(*row[:-1]) != row[-1]]
        if damage:
            raise sqlite3.DatabaseError(f"{_named(damage)} is not what was saved")
        times = sorted(datetime.fromisoformat(row[1]) for row in pieces)
        seconds, done = math.fsum(row[2] for row in pieces), len(pieces)
        cells, items = connection.execute(
            "SELECT (SELECT count(*) FROM cells), (SELECT count(*) FROM items)"
        ).fetchone()
    notes = notes_of(meta)
    planned = notes.get(PLANNED, done)
    return Status(
        path=path,
        done=done,
        pieces=max(planned, done),
        cells=cells,
        items=items,
        first=times[0] if done else None,
        last=times[-1] if done else None,
        seconds=seconds,
        seconds_left=seconds / done * max(planned - done, 0) if done else None,
        writer=_running(path, meta["writer"]),
        provenance=meta["provenance"],
        notes=notes,
    )


def _rest(connection: sqlite3.Connection) -> None:
    """Leave WAL mode: in it readers make files of their own, and cannot read where they may not.

    It is done as far as it goes, as somebody may be reading.
    """
    connection.execute("PRAGMA busy_timeout=0")
    with suppress(sqlite3.Error), connection:
        set_meta(connection, "writer", None)
    for pragma in ("wal_checkpoint", "journal_mode=MEMORY"):
        with suppress(sqlite3.Error):
            connection.execute(f"PRAGMA {pragma}")


def _lock(path: Path) -> FileLock:
    return FileLock(f"{path.resolve()}.lock", thread_local=False)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the one process that writes; the system frees the lock of a process that is killed."""
    lock = _lock(path)
    try:
        lock.acquire(timeout=0.2)  # longer than `status` holds it to see whether it is held
    except Timeout:
        pid = status(path).writer if path.exists() else None
        raise InputError(
            f"{path} is being written by {f'process {pid}' if pid else 'another process'}; wait "
            f"for it, or look with `rolelens sweep --status {shlex.quote(str(path))}`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _running(path: Path, writer: int | None) -> int | None:
    """The process noted as the writer, unless it was killed: then its lock is free."""
    lock = _lock(path)
    if writer is None or not os.path.exists(lock.lock_file):
        return None
    with suppress(OSError), lock.acquire(blocking=False):  # Timeout is an OSError too
        return None
    return writer
