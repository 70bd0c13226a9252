import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolelens.errors import InputError
from rolelens.sweeps.database import CELL_COLUMNS, ITEM_COLUMNS, Content
from rolelens.sweeps.store import Store, read_store, status
from rolelens.tasks import Scores

N_CELLS, N_ITEMS, N_OPTIONS = 6, 40, 3
BLOCKS = [(cells, range(q, q + 20)) for cells in ([0, 3], [1, 2, 4], [5]) for q in (0, 20)]
"""A piece each: some cells on some items. Together they are the whole sweep, once."""

PROVENANCE = {"model": {"name": "m", "dtype": "float32"}, "alphas": [1.0, 3.0], "rolelens": "0.1"}
COLUMNS = tuple(f"logprob_{k}" for k in range(N_OPTIONS))
DIRECTIONS = {"d": np.arange(4, dtype=np.float32)}


def cells(n: int = N_CELLS) -> list[tuple]:
    return [("ab"[k % 2], k // 2, -1, 1.0 + k % 3, f'{{"steps": [{k}]}}') for k in range(n)]


def items(n: int = N_ITEMS) -> list[tuple]:
    """Every tenth has two correct options; the bits of both are set."""
    correct = [1 << k % 3 | (1 << (k + 1) % 3 if k % 10 == 5 else 0) for k in range(n)]
    return [(f"q{k}", "maths" if k % 3 else "law", correct[k], f'{{"id": {k}}}') for k in range(n)]


def changed(rows: list[tuple], row: int, column: int, value: object) -> list[tuple]:
    return [(*r[:column], value, *r[column + 1 :]) if n == row else r for n, r in enumerate(rows)]


def opened(path: str | Path, **changes) -> Store:
    fields = {
        "provenance": PROVENANCE,
        "cells": cells(),
        "items": items(),
        "columns": COLUMNS,
        "directions": DIRECTIONS,
    }
    return Store.open(path, Content(**fields | changes))


def scores(piece: int) -> np.ndarray:
    """Made-up scores of a piece; every second item has one option less."""
    its_cells, its_items = BLOCKS[piece]
    generator = torch.Generator().manual_seed(piece)
    logprobs = torch.randn(len(its_cells), len(its_items), N_OPTIONS, generator=generator)
    logprobs = logprobs.log_softmax(-1)
    logprobs[:, ::2, -1] = -torch.inf
    return logprobs.numpy()


def commit(store: Store, piece: int, seconds: float = 2.0) -> None:
    store.commit(piece, *BLOCKS[piece], scores(piece), seconds)


def read_only(path: str | Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)


def bits(records: np.ndarray) -> list[int]:
    return records.view(np.int32).tolist()


def serve(orders: TextIO, reports: TextIO) -> None:
    """For each path that comes in, a process that writes the sweep there and reports every step."""
    for line in orders:
        pid = os.fork()
        if pid == 0:
            write(json.loads(line), reports)
        os.waitpid(pid, 0)
        print("\ngone", file=reports, flush=True)  # who was killed may have left half a line


def write(path: str, reports: TextIO) -> None:
    def report(*words: object) -> None:
        print(*words, file=reports, flush=True)

    report(os.getpid())
    try:
        store = opened(path)
        report("open")
        for piece in sorted(set(range(len(BLOCKS))) - store.done):
            commit(store, piece)
            report(piece)
        signal.alarm(60)
        signal.pause()
    except BaseException as error:
        report("error", error)
    finally:
        os._exit(0)


class Writers:
    """Writing processes, one at a time.

    Each is a fork of a process that has no database open: SQLite's locks do not survive a fork.
    """

    def __init__(self) -> None:
        (orders, to_server), (from_server, reports) = os.pipe(), os.pipe()
        self.server = os.fork()
        if self.server == 0:
            os.close(to_server)
            try:
                serve(os.fdopen(orders), os.fdopen(reports, "w"))
            finally:
                os._exit(0)
        os.close(orders)
        os.close(reports)
        self.orders, self.reports = os.fdopen(to_server, "w"), os.fdopen(from_server)
        self.pid = 0

    def close(self) -> None:
        self.orders.close()
        os.waitpid(self.server, 0)
        self.reports.close()

    def read(self) -> str:
        line = next(text for text in self.reports if text.strip()).strip()
        self.pid = 0 if line == "gone" else self.pid
        return line

    def start(self, path: Path) -> None:
        print(json.dumps(str(path)), file=self.orders, flush=True)
        self.pid = int(self.read())

    def kill(self) -> list[str]:
        """Kill the writer if there is one, and say what it reported since the last read."""
        if not self.pid:
            return []
        os.kill(self.pid, signal.SIGKILL)
        return list(iter(self.read, "gone"))


@pytest.fixture(scope="module")
def server() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.close()


@pytest.fixture
def writers(server: Writers) -> Iterator[Writers]:
    yield server
    server.kill()


@pytest.fixture
def restricted() -> Iterator[Path]:
    """A folder of one's own, permissions counting: root becomes someone else meanwhile."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


float32 = st.floats(width=32, allow_nan=False)


@settings(deadline=None, max_examples=15)
@given(
    values=st.lists(float32, min_size=18, max_size=18),
    its_cells=st.permutations(range(3)),
    its_items=st.permutations(range(4)),
)
def test_scores_come_back_bit_for_bit(tmp_path_factory, values, its_cells, its_items) -> None:
    path = tmp_path_factory.mktemp("store") / "sweep.db"
    records = np.array(values, dtype=np.float32).reshape(3, 3, 2)
    expected = np.full((3, 4, 2), np.nan, dtype=np.float32)
    expected[np.ix_(its_cells, its_items[:3])] = records
    grid = {"cells": cells(3), "items": items(4), "columns": COLUMNS[:2]}
    with opened(path, **grid) as store:
        store.commit(0, its_cells, its_items[:3], records, 1.0)
        assert bits(store.load()) == bits(expected)
    with opened(path, **grid) as store:
        assert bits(store.load()) == bits(expected)


@pytest.mark.parametrize("value", [-0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028234e38, -np.inf])
def test_the_odd_numbers_come_back(tmp_path, value: float) -> None:
    with opened(tmp_path / "s") as store:
        records = np.full((1, 1, N_OPTIONS), value, dtype=np.float32)
        store.commit(0, [0], [0], records, 1.0)
        assert bits(store.load()[0, 0]) == bits(records[0, 0])


def test_texts_come_back_as_they_were(tmp_path) -> None:
    texts = np.array([["", "a\n\u2028\ufffdß"], ["None", "1.0"]], dtype=object)[None]
    with opened(tmp_path / "s", columns=("text_0", "text_1")) as store:
        store.commit(0, [5], [3, 1], texts, 1.0)
        loaded = store.load()
    assert loaded[5, [3, 1]].tolist() == texts[0].tolist()
    assert {type(x) for x in loaded.ravel()} == {type(None), str}
    assert (loaded != None).sum() == 4  # noqa: E711
    with closing(read_only(tmp_path / "s")) as reader:
        (row,) = reader.execute("SELECT * FROM summary").fetchall()
    assert row == (5, "b", 2, -1, 3.0, 2)


def test_predictions_and_content_come_back(tmp_path) -> None:
    predicted = np.array([[0.1, -0.0], [1e-45, 3.0]], dtype=np.float32)
    with opened(tmp_path / "s") as store:
        assert store.predictions("race") is None
        store.predict("race", predicted)
        store.predict("other", predicted[:1])
    with opened(tmp_path / "s") as store:
        assert bits(store.predictions("race")) == bits(predicted.ravel())
        assert bits(store.predictions("other")) == bits(predicted[0])
        assert store.predictions("third") is None
        commit(store, 0)
    before = (tmp_path / "s").read_bytes()
    content, records, failures = read_store(tmp_path / "s")
    assert failures == {}
    assert (content.cells, content.items) == (cells(), items())
    assert (content.provenance, content.columns) == (PROVENANCE, COLUMNS)
    assert bits(content.directions["d"]) == bits(DIRECTIONS["d"])
    assert bits(records[[0, 3]][:, :20]) == bits(scores(0))
    assert np.isnan(records).sum() == records.size - scores(0).size
    assert (tmp_path / "s").read_bytes() == before


def test_a_sweep_goes_on_where_it_stopped(tmp_path) -> None:
    path = tmp_path / "deep" / "er" / "sweep.db"
    with opened(path) as store:
        assert store.done == set()
        assert np.isnan(store.load()).all()
        commit(store, 4)
        commit(store, 1)
        store.note("budget", 4096)
        store.note("budget", {"tokens": 2048})
    with opened(str(path)) as store:
        assert store.done == {1, 4}
        assert store.notes == {"budget": {"tokens": 2048}}
        for piece in {*range(len(BLOCKS))} - store.done:
            commit(store, piece)
        loaded = store.load()
    for piece, block in enumerate(BLOCKS):
        assert bits(loaded[np.ix_(*block)]) == bits(scores(piece))
    assert status(path).done == len(BLOCKS)
    assert sorted(os.listdir(path.parent)) == ["sweep.db", "sweep.db.lock"]


def test_a_closed_store_is_one_file_that_holds_everything(tmp_path) -> None:
    with opened(tmp_path / "sweep.db") as store:
        commit(store, 0)
        reader = read_only(tmp_path / "sweep.db")  # a notebook that stays open
        assert reader.execute("SELECT count(*) FROM pieces").fetchone() == (1,)
        commit(store, 1)
    shutil.copy(tmp_path / "sweep.db", tmp_path / "copy.db")
    with closing(read_only(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT piece FROM pieces").fetchall() == [(0,), (1,)]
    reader.close()


@pytest.mark.parametrize(
    ("changes", "what_differs"),
    [
        (
            {"provenance": PROVENANCE | {"model": {"name": "m", "dtype": "bfloat16"}}},
            'model.dtype "float32" -> "bfloat16"',
        ),
        ({"provenance": PROVENANCE | {"alphas": [1, 2]}}, "alphas [1.0, 3.0] -> [1, 2]"),
        ({"provenance": PROVENANCE | {"seed": None}}, "seed not given -> null"),
        (
            {"provenance": {"model": {"name": "ü"}, "alphas": [1, 3]}},
            'model.name "m" -> "ü"; model.dtype "float32" -> not given',
        ),
        (
            {"columns": COLUMNS[:2]},
            'columns ["logprob_0", "logprob_1", "logprob_2"] -> ["logprob_0", "logprob_1"]',
        ),
        ({"cells": cells(5)}, "cells 6 -> 5"),
        (
            {"cells": changed(changed(cells(), 2, 3, 4.0), 5, 3, 4.0)},
            """cell 2 ('a', 1, -1, 3.0, '{"steps": [2]}') -> """
            """('a', 1, -1, 4.0, '{"steps": [2]}') and 1 more""",
        ),
        (
            {"cells": changed(cells(), 1, 4, "{}")},
            """cell 1 ('b', 0, -1, 2.0, '{"steps": [1]}') -> ('b', 0, -1, 2.0, '{}')""",
        ),
        ({"items": items(39)}, "items 40 -> 39"),
        (
            {"items": changed(items(), 7, 0, "p7")},
            """item 7 ('q7', 'maths', 2, '{"id": 7}') -> ('p7', 'maths', 2, '{"id": 7}')""",
        ),
        (
            {"items": changed(items(), 7, 2, 6)},
            """item 7 ('q7', 'maths', 2, '{"id": 7}') -> ('q7', 'maths', 6, '{"id": 7}')""",
        ),
        (
            {"cells": cells(5), "items": items(39)},
            "cells 6 -> 5; items 40 -> 39",
        ),
    ],
)
def test_another_run_is_refused(tmp_path, changes, what_differs: str) -> None:
    path = tmp_path / "sweep.db"
    with opened(path) as store:
        commit(store, 0)
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        opened(path, **changes)
    assert str(caught.value) == (
        f"{path} holds another run ({what_differs}); name another file, or repeat the original "
        "settings."
    )
    assert path.read_bytes() == before
    opened(path).close()  # the refused one has let go of it


def test_long_values_are_shown_where_they_part(tmp_path) -> None:
    roles = [f"role {k}" for k in range(100)]
    opened(tmp_path / "s", provenance={"roles": roles}).close()
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "s", provenance={"roles": [*roles[:70], "other", *roles[71:]]})
    assert 'role 69", "role 70", "role 71"' in str(caught.value)
    assert 'role 69", "other", "role 71"' in str(caught.value)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 320


def test_what_only_informs_does_not_count(tmp_path) -> None:
    now = {"rolelens": "0.2", "threads": 64}
    opened(tmp_path / "s").close()
    opened(tmp_path / "s", provenance=PROVENANCE | now).close()
    assert status(tmp_path / "s").provenance == PROVENANCE


def test_a_piece_is_written_once_or_not_at_all(tmp_path) -> None:
    def snapshot() -> list[object]:
        with closing(read_only(tmp_path / "s")) as reader:
            tables = ("pieces", "scores")
            return [reader.execute(f"SELECT * FROM {table}").fetchall() for table in tables]

    one = np.zeros((1, 1, N_OPTIONS), dtype=np.float32)
    with opened(tmp_path / "s") as store:
        commit(store, 0)
        before = snapshot()
        with pytest.raises(RuntimeError, match=r"piece 0 .*UNIQUE .*pieces\.piece"):
            store.commit(0, [5], [39], one, 1.0)
        with pytest.raises(RuntimeError, match=r"piece 1 .*UNIQUE .*scores\.cell"):
            store.commit(1, [5, 0], [0], one.repeat(2, axis=0), 1.0)
        with pytest.raises(RuntimeError, match="piece -1 .*CHECK"):
            store.commit(-1, [5], [39], one, 1.0)
        for cell, item in ((6, 0), (0, 40), (-1, 0)):
            with pytest.raises(RuntimeError, match="piece 1 .*FOREIGN KEY"):
                store.commit(1, [cell], [item], one, 1.0)
        with pytest.raises(InputError, match="scores of piece 1 are NaN; steer less"):
            store.commit(1, [5], [39], one * np.nan, 1.0)
        for wrong in ((2, 1, N_OPTIONS), (1, 2, N_OPTIONS), (1, 1, N_OPTIONS + 1)):
            with pytest.raises((ValueError, sqlite3.ProgrammingError)):
                store.commit(1, [5], [39], np.zeros(wrong), 1.0)
        assert snapshot() == before
        store.commit(1, [5], [39], one, 1.0)  # and the store is as usable as before
        assert store.done == {0, 1}


def test_pandas_reads_the_file(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        for piece in range(5):
            commit(store, piece)
        store.commit(5, *BLOCKS[5], scores(5), 0.5, {"tokens": 7})
        logprobs = store.load()
        with closing(read_only(tmp_path / "s")) as reader:
            tables = ("cells", "items", "scores", "pieces")
            read = {t: pd.read_sql(f"SELECT * FROM {t} ORDER BY 1, 2", reader) for t in tables}
            meta = pd.read_sql("SELECT * FROM meta", reader, index_col="key")["value"].map(
                json.loads
            )
    for name, columns, rows in (("cell", CELL_COLUMNS, cells()), ("item", ITEM_COLUMNS, items())):
        table = read[f"{name}s"]
        assert list(table) == [name, *columns]
        assert list(table.itertuples(name=None)) == [(n, n, *row) for n, row in enumerate(rows)]
    assert list(read["scores"]) == ["cell", "item", *COLUMNS]
    options = read["scores"].filter(like="logprob").to_numpy(dtype="float32")
    options = options.reshape(N_CELLS, N_ITEMS, N_OPTIONS)
    assert np.array_equal(np.isnan(options), logprobs == -np.inf)
    assert np.array_equal(np.nan_to_num(options, nan=-np.inf), logprobs)
    columns = ["piece", "finished_at", "seconds", "info", "cells", "items", "scored", "hash"]
    assert list(read["pieces"]) == columns
    assert json.loads(read["pieces"]["cells"][0]) == [*BLOCKS[0][0]]
    assert json.loads(read["pieces"]["items"][0]) == [*BLOCKS[0][1]]
    assert list(read["pieces"]["seconds"]) == [2.0] * 5 + [0.5]
    assert json.loads(read["pieces"]["info"][5]) == {"tokens": 7}
    assert meta["provenance"] == PROVENANCE


def test_the_summary_is_that_of_the_scores(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        for piece in (0, 1, 3):
            commit(store, piece)
        tied = torch.tensor([[-1.0, -1.0, -3.0], [-1.0, -1.0, -2.0], [-1.0, -2.0, -1.0]])
        store.commit(4, [5], [0, 1, 2], tied[None].numpy(), 1.0)
        logprobs = torch.from_numpy(store.load())
        with closing(read_only(tmp_path / "s")) as reader:
            summary = pd.read_sql("SELECT * FROM summary ORDER BY cell", reader)
    assert list(summary["cell"]) == [0, 1, 2, 3, 4, 5]
    true = torch.tensor([[bool(item[2] >> k & 1) for k in range(N_OPTIONS)] for item in items()])
    assert (true.sum(dim=1) == 2).sum() == 4
    for row in summary.to_dict("records"):
        stored = ~logprobs[row["cell"], :, 0].isnan()
        known = Scores((), logprobs[row["cell"], stored], "letter", true[stored])
        assert row["items"] == int(stored.sum())
        assert row["accuracy"] == pytest.approx(known.accuracy)
        assert row["alpha"] == cells()[row["cell"]][3]
        # Every second item lacks its last option, which is the only correct one of some.
        if known.margins.isfinite().all():
            assert row["margin"] == pytest.approx(known.margin, rel=1e-5)
        else:
            assert row["margin"] == known.margin == -torch.inf


def test_one_process_writes(tmp_path, writers: Writers) -> None:
    path = tmp_path / "my sweep.db"
    writers.start(path)
    assert [writers.read() for _ in range(3)] == ["open", "0", "1"]
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        opened(path)
    assert time.monotonic() - started < 2
    assert str(caught.value) == (
        f"{path} is being written by process {writers.pid}; wait for it, or look with "
        f"`rolelens sweep --status '{path}'`."
    )
    assert status(path).writer == writers.pid
    writers.kill()
    assert status(path).writer is None
    with opened(path) as store:
        assert store.done >= {0, 1}
        assert status(path).writer == os.getpid()
        writers.start(path)
        assert f"is being written by process {os.getpid()};" in writers.read()
        assert writers.read() == "gone"
        with pytest.raises(InputError, match=f"process {os.getpid()};"):
            opened(path)
    assert status(path).writer is None


def test_a_writer_whose_store_is_not_there_yet_is_another_process(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="is being written by another process;"):
            opened(tmp_path / "s")
        commit(store, 0)


def test_a_symbolic_link_is_no_way_around_the_lock(tmp_path) -> None:
    with opened(tmp_path / "s"):
        (tmp_path / "link").symlink_to(tmp_path / "s")
        with pytest.raises(InputError, match="is being written by process"):
            opened(tmp_path / "link")


def check_whole(path: Path, reported: set[int]) -> set[int]:
    """Every piece that is there is whole, and what was reported is there; with SQL alone."""
    with closing(read_only(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        done = {piece for (piece,) in connection.execute("SELECT piece FROM pieces")}
        rows = {(row[0], row[1]): row[2:] for row in connection.execute("SELECT * FROM scores")}
    assert reported <= done
    expected = {}
    for piece in done:
        for cell, block in zip(BLOCKS[piece][0], scores(piece).tolist(), strict=True):
            for item, options in zip(BLOCKS[piece][1], block, strict=True):
                values = (None if x == -np.inf else x for x in options)
                expected[cell, item] = tuple(values)
    assert rows == expected
    return done


def test_a_kill_at_any_moment_leaves_whole_pieces(tmp_path, writers: Writers) -> None:
    chance = random.Random(0)
    for sweep in range(20):
        path = tmp_path / f"{sweep}"
        done: set[int] = set()
        while len(done) < len(BLOCKS):
            writers.start(path)
            assert writers.read() == "open"
            reported = {
                int(writers.read()) for _ in range(chance.randint(0, len(BLOCKS) - len(done)))
            }
            time.sleep(chance.uniform(0, 0.02))
            reported |= {int(line) for line in writers.kill()}
            assert not reported & done
            done = check_whole(path, done | reported)
        with opened(path) as store:
            assert not np.isnan(store.load()).any()


def test_a_kill_while_the_store_is_made_leaves_none_or_a_whole_one(
    tmp_path, writers: Writers
) -> None:
    chance = random.Random(0)
    made, window = [], 0.02
    for attempt in range(25):
        path = tmp_path / f"{attempt}"
        writers.start(path)
        time.sleep(chance.uniform(0, window))
        writers.kill()
        made.append(path.exists())
        window *= 0.8 if made[-1] else 1.3  # so that most kills come near the moment it appears
        with opened(path) as store:
            assert store.load().shape == (N_CELLS, N_ITEMS, N_OPTIONS)
        assert {file.name for file in tmp_path.iterdir()} == {
            f"{n}{end}" for n in range(attempt + 1) for end in ("", ".lock")
        }
    assert {*made} == {True, False}


def test_there_is_never_a_journal_that_who_only_reads_cannot_roll_back(tmp_path) -> None:
    def write_twice() -> None:
        for piece in range(2):
            with opened(tmp_path / "s") as store:
                commit(store, piece)

    writer = threading.Thread(target=write_twice)
    names: set[str] = set()
    writer.start()
    while writer.is_alive():
        names |= set(os.listdir(tmp_path))
    assert names <= {"s", "s.lock", ".s.new", "s-wal", "s-shm"}


def test_a_store_is_read_as_of_one_moment_while_it_is_written(tmp_path) -> None:
    """Scores and the checksums of their pieces go together at any time."""

    def write() -> None:
        with opened(tmp_path / "s") as store:
            for piece in range(len(BLOCKS)):
                commit(store, piece)
                time.sleep(0.01)

    opened(tmp_path / "s").close()
    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    while writer.is_alive():
        _, records, _ = read_store(tmp_path / "s")
        counts.append(int((~np.isnan(records[:, :, 0])).sum()))
        assert status(tmp_path / "s").done <= len(BLOCKS)
    writer.join()
    assert counts == sorted(counts)
    assert len({*counts}) > 2


def test_status_while_another_process_writes(tmp_path, writers: Writers) -> None:
    path = tmp_path / "s"
    writers.start(path)
    assert writers.read() == "open"
    counts = []
    for piece in range(len(BLOCKS)):
        assert writers.read() == str(piece)
        state = status(path)
        counts.append(state.done)
        assert state.done > piece
        assert state.writer == writers.pid
        assert state.seconds == 2.0 * state.done
    assert counts[-1] == len(BLOCKS)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir() if "shm" not in file.name}
    assert set(files) == {"s", "s-wal", "s.lock"}
    status(path)
    writers.kill()
    state = status(path)
    assert (state.done, state.writer) == (len(BLOCKS), None)
    assert all((tmp_path / name).read_bytes() == content for name, content in files.items())
    assert {file.name for file in tmp_path.iterdir()} == {*files, "s-shm"}


def test_status_says_how_far_it_is(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        state = status(tmp_path / "s")
        assert (state.done, state.seconds, state.seconds_left) == (0, 0.0, None)
        assert state.first is state.last is None
        before = datetime.now(UTC) - timedelta(seconds=1)
        commit(store, 3, seconds=1.5)
        commit(store, 0, seconds=2.5)
        store.note("planned", 6)
        store.note("budget", 9)
    state = status(str(tmp_path / "s"))
    assert before < state.first <= state.last <= datetime.now(UTC)
    assert state.facts()["first"] == state.first.isoformat()
    assert "2 of 6, about 0.1 min left" in repr(state)
    assert dataclasses.replace(state, first=None, last=None) == dataclasses.replace(
        state,
        done=2,
        pieces=6,
        cells=N_CELLS,
        items=N_ITEMS,
        first=None,
        last=None,
        seconds=4.0,
        seconds_left=8.0,
        writer=None,
        provenance=PROVENANCE,
        notes={"planned": 6, "budget": 9},
    )


def test_status_of_a_killed_sweep_that_was_moved_adds_no_file(tmp_path, writers: Writers) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    writers.start(tmp_path / "a" / "s")
    assert writers.read() == "open"
    writers.kill()
    for name in ("s", "s-wal", "s-shm"):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    assert status(tmp_path / "b" / "s").writer is None
    assert sorted(os.listdir(tmp_path / "b")) == ["s", "s-shm", "s-wal"]


def test_what_is_not_a_store_is_refused(tmp_path) -> None:
    path = tmp_path / "s"
    with pytest.raises(InputError, match="no file '.*/s' with a sweep; check the path"):
        status(path)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE meta (key, value)")
    foreign = tmp_path / "wal.db"  # one that a reader would leave files beside
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    (tmp_path / "notes.txt").write_text("no store at all\n" * 100)
    (tmp_path / "empty").touch()
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file in files:
        for use in (opened, status):
            with pytest.raises(InputError, match=f"^{file} is not a store of rolelens; name"):
                use(file)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files
    for use in (opened, status):
        with pytest.raises(InputError, match=f"^{tmp_path} cannot be .*Is a directory"):
            use(tmp_path)
        with pytest.raises(InputError, match=r"cannot be written|no file"):
            use(other / "below")


def test_a_store_of_another_version_is_refused(tmp_path) -> None:
    opened(tmp_path / "s").close()
    with closing(sqlite3.connect(tmp_path / "s")) as connection:
        connection.execute("PRAGMA user_version = 99")
    for use in (opened, status, read_store):
        with pytest.raises(InputError, match="a store of version 99, and .* version 3; use"):
            use(tmp_path / "s")


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_store_is_refused(tmp_path, damage: str) -> None:
    path = tmp_path / "s"
    with opened(path) as store:
        for piece in range(len(BLOCKS)):
            commit(store, piece)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] if damage == "cut" else content[:half] + b"\xff" * half)
    for use in (opened, read_store):
        with pytest.raises(InputError, match=rf"^{path} is damaged \(.+\); restore it, or name"):
            use(path)


def test_a_folder_or_file_that_cannot_be_written(restricted: Path) -> None:
    path = restricted / "s"
    with opened(path) as store:
        commit(store, 0)
        (restricted / "killed").mkdir()
        for name in ("s", "s-wal", "s-shm"):
            shutil.copy(restricted / name, restricted / "killed" / name)
    path.chmod(0o444)
    with pytest.raises(InputError, match=f"^{path} cannot be used .*readonly.*; check that it"):
        opened(path)
    assert status(path).done == 1
    path.chmod(0)
    with pytest.raises(InputError, match=f"^{path} cannot be written .Permission denied"):
        opened(path)
    with pytest.raises(InputError, match=f"^{path} cannot be used .Permission denied"):
        status(path)
    path.chmod(0o644)
    (restricted / "killed").chmod(0o555)
    restricted.chmod(0o555)
    with pytest.raises(InputError, match="new cannot be written .Permission denied.*; name"):
        opened(restricted / "new")
    with pytest.raises(InputError, match=f"^{path} cannot be written .Permission denied.*; name"):
        opened(path)
    for readable in (path, restricted / "killed" / "s"):
        assert status(readable).done == 1
        with closing(read_only(readable)) as reader:
            assert reader.execute("SELECT piece FROM pieces").fetchall() == [(0,)]
    restricted.chmod(0)
    with pytest.raises(InputError, match="cannot be written .Permission denied"):
        opened(path)
    with pytest.raises(InputError, match="no file"):
        status(path)
    restricted.chmod(0o755)
    (restricted / "killed").chmod(0o755)
    opened(path).close()


def test_status_of_somebody_elses_sweep(restricted: Path) -> None:
    with opened(restricted / "s") as store:
        commit(store, 0)
        (restricted / "s.lock").chmod(0o444)
        assert status(restricted / "s").writer == os.getpid()


def test_a_full_disk_costs_only_the_piece(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        commit(store, 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (tmp_path / "s-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(InputError, match="cannot be used .*disk.*the disk has room"):
                commit(store, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert store.done == {0}
        commit(store, 1)
    check_whole(tmp_path / "s", {0, 1})


@pytest.mark.parametrize(
    "name", ["a b", "ü 漢字", "what?mode=memory", "a#b", "100%41", "'quoted' \"s\"", ":memory:"]
)
def test_any_file_name_will_do(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(name) as store:
        commit(store, 0)
        assert status(name).writer == os.getpid()
    assert status(tmp_path / name).done == 1
    with opened(tmp_path / name) as store:
        assert store.done == {0}
    assert sorted(os.listdir()) == sorted([name, f"{name}.lock"])


def test_a_reader_in_the_middle_of_reading_delays_nobody(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        commit(store, 0)
        with closing(read_only(tmp_path / "s")) as reader:
            rows = reader.execute("SELECT * FROM scores")
            rows.fetchone()
            started = time.monotonic()
            commit(store, 1)
            assert status(tmp_path / "s").done == 2
            store.close()
            assert time.monotonic() - started < 2
    check_whole(tmp_path / "s", {0, 1})


def test_a_reader_that_stays_does_not_keep_a_killed_sweep_from_going_on(
    tmp_path, writers: Writers
) -> None:
    writers.start(tmp_path / "s")
    assert [writers.read(), writers.read()] == ["open", "0"]
    with closing(read_only(tmp_path / "s")) as reader:
        rows = reader.execute("SELECT * FROM scores")
        rows.fetchone()
        writers.kill()
        with opened(tmp_path / "s") as store:
            assert store.done >= {0}


def test_a_close_that_fails_lets_go_all_the_same(tmp_path) -> None:
    store = opened(tmp_path / "s")
    with closing(sqlite3.connect(tmp_path / "s", timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        store.close()
        assert time.monotonic() - started < 2
        assert status(tmp_path / "s").writer is None
    with opened(tmp_path / "s") as store:
        assert store.done == set()
