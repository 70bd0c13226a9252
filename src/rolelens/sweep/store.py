"""What a sweep has computed so far, in one SQLite file that survives being killed."""

import json
import os
import shlex
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, writing

APPLICATION_ID = b"rlsw"
SCHEMA_VERSION = 1
PLANNED = "planned"
"""The note that says how many pieces there will be."""
INFORMATIVE = ("rolelens", "started")
"""Entries of the provenance that say something about a run and may differ in the next one."""

CELL_COLUMNS = {"role": str, "layer": int, "position": int, "alpha": float}
QUESTION_COLUMNS = {"id": str, "domain": str, "answer": int}


class Store:
    """The scores of a sweep, written piece by piece by one process, by one thread.

    A piece that :meth:`commit` returned from survives the process being killed and, as every
    commit is synced (``synchronous=FULL``), the power going out. A piece is there whole or not at
    all. The file belongs on a local disk: SQLite's write-ahead log needs shared memory.

    Anyone may read the file meanwhile, with ``sqlite3.connect("file:PATH?mode=ro", uri=True)``:
    tables ``meta``, ``cells``, ``questions``, ``pieces`` and ``scores`` (nats; NULL where the
    option does not exist), and the view ``summary``, with a row a cell. Beside it lies an empty
    ``PATH.lock``, which stays.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        shape: tuple[int, int, int],
        resources: ExitStack,
    ) -> None:
        self.path = path
        self._connection = connection
        self._shape = shape
        self._resources = resources

    @classmethod
    def open(
        cls,
        path: str | Path,
        provenance: Mapping[str, Any],
        cells: pd.DataFrame,
        questions: pd.DataFrame,
        n_options: int,
        *,
        informative: Collection[str] = INFORMATIVE,
    ) -> "Store":
        """Create the file and its folder, or open the file of the same sweep to go on.

        Args:
            path: the file.
            provenance: all that the scores depend on, JSON-able, at most one dict inside another.
            cells: role, layer, position and alpha; the row number is the cell's id.
            questions: id, domain and answer; the row number is the question's id.
            n_options: options of the question with most of them.
            informative: entries of the provenance that are kept, and not compared.

        Raises:
            InputError: the file belongs to another sweep, is written by another process, is
                damaged, is something else, or cannot be written.
        """
        path = Path(path)
        rows = _rows(cells, CELL_COLUMNS), _rows(questions, QUESTION_COLUMNS)
        meta = {"provenance": dict(provenance), "n_options": n_options}
        with ExitStack() as resources:
            with writing(path):
                if path.exists():
                    _check_kind(path)  # before a lock is left beside a foreign file
                # SQLite writes files beside it too, and would find out half-way that it may not.
                TemporaryFile(dir=path.resolve().parent).close()
                resources.enter_context(_locked(path))
                if not path.exists():
                    _create(path, meta, *rows)
            connection = resources.enter_context(closing(_connect(path, "rw")))
            with _explained(path):
                changes = _changes(connection, meta, *rows, informative)
                if changes:
                    raise InputError(
                        f"{path} holds another sweep ({'; '.join(changes)}); name another file, or "
                        "repeat the original settings."
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
                    _set_meta(connection, "writer", os.getpid())
            shape = (len(cells), len(questions), n_options)
            return cls(path, connection, shape, resources.pop_all())

    @property
    def done(self) -> set[int]:
        """The pieces that are finished."""
        with _explained(self.path):
            return {piece for (piece,) in self._connection.execute("SELECT piece FROM pieces")}

    @property
    def notes(self) -> dict[str, Any]:
        """What :meth:`note` has kept."""
        with _explained(self.path):
            return _notes(_meta(self._connection))

    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON-able value that may change during a run, in place of the last one."""
        with _explained(self.path), self._connection:
            _set_meta(self._connection, f"note.{key}", value)

    def commit(
        self,
        piece: int,
        cells: Sequence[int],
        questions: Sequence[int],
        logprobs: Float[Tensor, "cell question option"],
        seconds: float,
        info: Mapping[str, Any] = {},
    ) -> None:
        """Write a finished piece and all its scores, in one transaction.

        Args:
            piece: its number.
            cells: ids of the cells along the first axis.
            questions: ids of the questions along the second axis.
            logprobs: float32, in nats; -inf where the option does not exist.
            seconds: how long it took.
            info: small JSON-able facts about the piece.

        Raises:
            InputError: a score is NaN, or the file cannot be written.
            RuntimeError: the piece or a score of it is stored already, or there is no such piece,
                cell or question.
        """
        if logprobs.isnan().any():
            raise InputError(
                f"scores of piece {piece} are NaN; steer less strongly, or load the model in "
                "float32."
            )
        rows = (
            (int(cell), int(question), *(None if x == -torch.inf else x for x in options))
            for cell, block in zip(cells, logprobs.tolist(), strict=True)
            for question, options in zip(questions, block, strict=True)
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        places = ", ".join("?" * (2 + self._shape[2]))
        try:
            with _explained(self.path), self._connection:
                self._connection.execute(
                    "INSERT INTO pieces VALUES (?, ?, ?, ?)",
                    (piece, now, seconds, json.dumps(dict(info))),
                )
                self._connection.executemany(f"INSERT INTO scores VALUES ({places})", rows)
        except sqlite3.IntegrityError as error:
            raise RuntimeError(f"piece {piece} does not go into {self.path}: {error}.") from error

    def load(self) -> Float[Tensor, "cell question option"]:
        """All scores, in nats: NaN where not computed yet, -inf where there is no such option."""
        scores = torch.full(self._shape, torch.nan)
        with _explained(self.path):
            found = self._connection.execute("SELECT * FROM scores")
            while chunk := found.fetchmany(2**16):
                table = np.array(chunk, dtype=np.float64)  # NULL becomes NaN
                cell, question = table[:, :2].astype(np.int64).T
                values = np.where(np.isnan(table[:, 2:]), -np.inf, table[:, 2:])
                scores[cell, question] = torch.from_numpy(values).float()
        return scores

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
        questions: questions of the sweep.
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
    questions: int
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
            "cells": f"{self.cells} on {self.questions} questions",
            "model": str(self.provenance.get("model")),
            "benchmark": str(self.provenance.get("benchmark")),
            "written by": f"process {self.writer} now" if self.writer else "nobody now",
        }
        return Card("Store of a sweep", facts, "the same call, to go on or to load it")


def status(path: str | Path) -> Status:
    """How far a sweep is; changes nothing, and works while another process writes.

    Raises:
        InputError: there is no such file, or it is not a store.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"no file {str(path)!r} with a sweep; check the path.")
    with _explained(path):
        _check_kind(path)
    with closing(_connect(path, "ro")) as connection, _explained(path):
        meta = _meta(connection)
        done, first, last, seconds = connection.execute(
            "SELECT count(*), min(finished_at), max(finished_at), total(seconds) FROM pieces"
        ).fetchone()
        cells, questions = connection.execute(
            "SELECT (SELECT count(*) FROM cells), (SELECT count(*) FROM questions)"
        ).fetchone()
    notes = _notes(meta)
    planned = notes.get(PLANNED, done)
    return Status(
        path=path,
        done=done,
        pieces=max(planned, done),
        cells=cells,
        questions=questions,
        first=datetime.fromisoformat(first) if done else None,
        last=datetime.fromisoformat(last) if done else None,
        seconds=seconds,
        seconds_left=seconds / done * max(planned - done, 0) if done else None,
        writer=_running(path, meta["writer"]),
        provenance=meta["provenance"],
        notes=notes,
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with the file."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise InputError(
            f"{path} cannot be used ({getattr(error, 'strerror', error)}); check that it may be "
            "read and written, that no other program holds it and that the disk has room."
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a subclass: wrong use, not a wrong file
            raise
        raise InputError(f"{path} is damaged ({error}); name another file.") from error


def _check_kind(path: Path) -> None:
    """Look into the header alone: SQLite leaves files beside some that it opens."""
    with path.open("rb") as file:
        header = file.read(100)
    magic, version, kind = header[:16], header[60:64], header[68:72]
    if magic != b"SQLite format 3\0" or kind != APPLICATION_ID:
        raise InputError(f"{path} is not the store of a sweep; name another file.")
    if int.from_bytes(version) != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a store of version {int.from_bytes(version)}, and this rolelens works "
            f"with version {SCHEMA_VERSION}; use the rolelens that wrote it, or name another file."
        )


def _connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    with _explained(path):
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def _rest(connection: sqlite3.Connection) -> None:
    """Leave WAL mode: in it readers make files of their own, and cannot read where they may not.

    It is done as far as it goes, as somebody may be reading.
    """
    connection.execute("PRAGMA busy_timeout=0")
    with suppress(sqlite3.Error), connection:
        _set_meta(connection, "writer", None)
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


def _create(path: Path, meta: Mapping[str, Any], cells: list[Any], questions: list[Any]) -> None:
    """Write the store of a sweep that has not begun; it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with _explained(path), closing(_connect(partial, "rwc")) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.executescript(_schema(meta["n_options"]))
        connection.executemany(
            "INSERT INTO cells VALUES (?, ?, ?, ?, ?)",
            ((n, *row) for n, row in enumerate(cells)),
        )
        connection.executemany(
            "INSERT INTO questions VALUES (?, ?, ?, ?)",
            ((n, *row) for n, row in enumerate(questions)),
        )
        for key, value in {**meta, "writer": None}.items():
            _set_meta(connection, key, value)
        connection.commit()
    partial.replace(path)


def _schema(n_options: int) -> str:
    """The tables; log-probabilities have no type, as REAL would make -0.0 into 0.0."""
    numbers = range(n_options)
    best = " ".join(f"WHEN o{k} THEN {k}" for k in numbers)
    margins = " ".join(
        f"WHEN {k} THEN o{k} - max({', '.join(['-9e999', *(f'o{j}' for j in numbers if j != k)])})"
        for k in numbers
    )
    return f"""
    BEGIN;
    PRAGMA application_id = {int.from_bytes(APPLICATION_ID)};
    PRAGMA user_version = {SCHEMA_VERSION};
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE cells (
        cell INTEGER PRIMARY KEY, role TEXT, layer INTEGER, position INTEGER, alpha REAL
    );
    CREATE TABLE questions (question INTEGER PRIMARY KEY, id TEXT, domain TEXT, answer INTEGER);
    CREATE TABLE pieces (
        piece INTEGER PRIMARY KEY CHECK (piece >= 0),
        finished_at TEXT NOT NULL, seconds REAL NOT NULL, info TEXT NOT NULL
    );
    CREATE TABLE scores (
        cell INTEGER NOT NULL REFERENCES cells,
        question INTEGER NOT NULL REFERENCES questions,
        {", ".join(f"logprob_{k}" for k in numbers)},
        PRIMARY KEY (cell, question)
    ) WITHOUT ROWID;
    CREATE VIEW summary AS
    WITH filled AS (
        SELECT cell, answer,
            {", ".join(f"coalesce(logprob_{k}, -9e999) AS o{k}" for k in numbers)}
        FROM scores JOIN questions USING (question)
    ), judged AS (
        SELECT cell,
            CASE max(-9e999, {", ".join(f"o{k}" for k in numbers)}) {best} END = answer AS correct,
            CASE answer {margins} END AS margin
        FROM filled
    )
    SELECT cells.*, count(*) AS questions, avg(correct) AS accuracy, avg(margin) AS margin
    FROM judged JOIN cells USING (cell) GROUP BY cell;
    """


def _changes(
    connection: sqlite3.Connection,
    meta: Mapping[str, Any],
    cells: list[Any],
    questions: list[Any],
    informative: Collection[str],
) -> list[str]:
    """Everything that is not as it was: ``name old -> new``."""
    old, new = _flat(_meta(connection)), _flat(json.loads(json.dumps(meta)))
    changes = [
        f"{key} {_change(_text(old, key), _text(new, key))}"
        for key in {**old, **new}
        if (key in old, old.get(key)) != (key in new, new.get(key))
        and not {key, key.split(".")[0]} & set(informative)
    ]
    for kind, columns, rows in (
        ("cell", CELL_COLUMNS, cells),
        ("question", QUESTION_COLUMNS, questions),
    ):
        select = f"SELECT {', '.join(columns)} FROM {kind}s ORDER BY {kind}"
        were = connection.execute(select).fetchall()
        if len(were) != len(rows):
            changes.append(f"{kind}s {len(were)} -> {len(rows)}")
            continue
        moved = [n for n in range(len(rows)) if were[n] != rows[n]]
        if moved:
            first = moved[0]
            more = f" and {len(moved) - 1} more" if moved[1:] else ""
            changes.append(f"{kind} {first} {_change(str(were[first]), str(rows[first]))}{more}")
    return changes


def _flat(meta: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"n_options": meta["n_options"]}
    for key, value in meta["provenance"].items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": one for name, one in inner.items()} or {key: value}
    return flat


def _text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not given"


def _change(old: str, new: str) -> str:
    """``old -> new``; of long ones, some of where they part."""
    parted = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    start = max(0, parted - 20) if max(len(old), len(new)) > 80 else 0
    shown = [
        ("..." if start else "") + text[start : start + 80] + ("..." if text[start + 80 :] else "")
        for text in (old, new)
    ]
    return " -> ".join(shown)


def _rows(frame: pd.DataFrame, columns: Mapping[str, type]) -> list[Any]:
    """Rows of plain Python values: SQLite would store NumPy's as bytes."""
    return list(zip(*(map(kind, frame[name]) for name, kind in columns.items()), strict=True))


def _meta(connection: sqlite3.Connection) -> dict[str, Any]:
    rows = connection.execute("SELECT key, value FROM meta").fetchall()
    return {key: json.loads(value) for key, value in rows}


def _set_meta(connection: sqlite3.Connection, key: str, value: object) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))


def _notes(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {key[5:]: value for key, value in meta.items() if key.startswith("note.")}
