import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolelens.errors import InputError
from rolelens.scoring import Scores
from rolelens.sweep.store import Store, status

N_CELLS, N_QUESTIONS, N_OPTIONS = 6, 40, 3
BLOCKS = [(cells, range(q, q + 20)) for cells in ([0, 3], [1, 2, 4], [5]) for q in (0, 20)]
"""A piece each: some cells on some questions. Together they are the whole sweep, once."""

PROVENANCE = {"model": {"name": "m", "dtype": "float32"}, "alphas": [1.0, 3.0], "rolelens": "0.1"}


def cells(n: int = N_CELLS) -> pd.DataFrame:
    rows = [("ab"[k % 2], k // 2, -1, 1.0 + k % 3) for k in range(n)]
    return pd.DataFrame(rows, columns=["role", "layer", "position", "alpha"])


def questions(n: int = N_QUESTIONS) -> pd.DataFrame:
    rows = [(f"q{k}", "maths" if k % 3 else "law", k % N_OPTIONS) for k in range(n)]
    return pd.DataFrame(rows, columns=["id", "domain", "answer"])


def opened(path: str | Path, **changes) -> Store:
    fields = {
        "provenance": PROVENANCE,
        "cells": cells(),
        "questions": questions(),
        "n_options": N_OPTIONS,
    }
    return Store.open(path, **fields | changes)


def scores(piece: int) -> torch.Tensor:
    """Made-up scores of a piece; every second question has one option less."""
    own, asked = BLOCKS[piece]
    generator = torch.Generator().manual_seed(piece)
    logprobs = torch.randn(len(own), len(asked), N_OPTIONS, generator=generator).log_softmax(-1)
    logprobs[:, ::2, -1] = -torch.inf
    return logprobs


def commit(store: Store, piece: int, seconds: float = 2.0) -> None:
    store.commit(piece, *BLOCKS[piece], scores(piece), seconds)


def read_only(path: str | Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def serve() -> None:
    """For each path on stdin, a process that writes the sweep there, and reports every step."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write(json.loads(line))
        os.waitpid(pid, 0)
        print("\ngone", flush=True)  # whoever was killed may have left half a line


def write(path: str) -> None:
    print(os.getpid(), flush=True)
    try:
        store = opened(path)
        print("open", flush=True)
        for piece in sorted(set(range(len(BLOCKS))) - store.done):
            commit(store, piece)
            print(piece, flush=True)
        signal.alarm(60)
        signal.pause()
    except BaseException as error:
        print("error", error, flush=True)
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve()


class Writers:
    """Writing processes, one at a time, that cost a fork each and not an import."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(command, **pipes)
        self.pid = 0

    def read(self) -> str:
        line = next(text for text in self.server.stdout if text.strip()).strip()
        self.pid = 0 if line == "gone" else self.pid
        return line

    def start(self, path: Path) -> None:
        self.server.stdin.write(json.dumps(str(path)) + "\n")
        self.server.stdin.flush()
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
    writers.server.communicate()


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
    own=st.permutations(range(3)),
    asked=st.permutations(range(4)),
)
def test_scores_come_back_bit_for_bit(tmp_path_factory, values, own, asked) -> None:
    path = tmp_path_factory.mktemp("store") / "sweep.db"
    logprobs = torch.tensor(values).reshape(3, 3, 2)
    expected = torch.full((3, 4, 2), torch.nan)
    for i in range(3):
        for j in range(3):
            expected[own[i], asked[j]] = logprobs[i, j]
    grid = {"cells": cells(3), "questions": questions(4), "n_options": 2}
    with opened(path, **grid) as store:
        store.commit(0, own, asked[:3], logprobs, 1.0)
        assert torch.equal(bits(store.load()), bits(expected))
    with opened(path, **grid) as store:
        assert torch.equal(bits(store.load()), bits(expected))


@pytest.mark.parametrize("value", [-0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028234e38, -torch.inf])
def test_the_odd_numbers_come_back(tmp_path, value: float) -> None:
    with opened(tmp_path / "s") as store:
        store.commit(0, [0], [0], torch.full((1, 1, N_OPTIONS), value), 1.0)
        expected = torch.full((N_OPTIONS,), value)
        assert torch.equal(bits(store.load()[0, 0]), bits(expected))


def test_a_sweep_goes_on_where_it_stopped(tmp_path) -> None:
    path = tmp_path / "deep" / "er" / "sweep.db"
    with opened(path) as store:
        assert store.done == set()
        assert store.load().isnan().all()
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
    for piece, (own, asked) in enumerate(BLOCKS):
        assert torch.equal(loaded[own][:, list(asked)], scores(piece))
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
    ("changes", "said"),
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
        ({"n_options": 4}, "n_options 3 -> 4"),
        ({"cells": cells(5)}, "cells 6 -> 5"),
        (
            {"cells": cells().replace({"alpha": {3.0: 4.0}})},
            "cell 2 ('a', 1, -1, 3.0) -> ('a', 1, -1, 4.0) and 1 more",
        ),
        ({"questions": questions(39)}, "questions 40 -> 39"),
        (
            {"questions": questions().replace({"id": {"q7": "p7"}})},
            "question 7 ('q7', 'maths', 1) -> ('p7', 'maths', 1)",
        ),
        (
            {"n_options": 4, "questions": questions(39)},
            "n_options 3 -> 4; questions 40 -> 39",
        ),
    ],
)
def test_another_sweep_is_refused(tmp_path, changes, said: str) -> None:
    path = tmp_path / "sweep.db"
    with opened(path) as store:
        commit(store, 0)
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        opened(path, **changes)
    assert str(caught.value) == (
        f"{path} holds another sweep ({said}); name another file, or repeat the original settings."
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

    one = torch.zeros(1, 1, N_OPTIONS)
    with opened(tmp_path / "s") as store:
        commit(store, 0)
        before = snapshot()
        with pytest.raises(RuntimeError, match=r"piece 0 .*UNIQUE .*pieces\.piece"):
            store.commit(0, [5], [39], one, 1.0)
        with pytest.raises(RuntimeError, match=r"piece 1 .*UNIQUE .*scores\.cell"):
            store.commit(1, [5, 0], [0], torch.zeros(2, 1, N_OPTIONS), 1.0)
        with pytest.raises(RuntimeError, match="piece -1 .*CHECK"):
            store.commit(-1, [5], [39], one, 1.0)
        for cell, question in ((6, 0), (0, 40), (-1, 0)):
            with pytest.raises(RuntimeError, match="piece 1 .*FOREIGN KEY"):
                store.commit(1, [cell], [question], one, 1.0)
        with pytest.raises(InputError, match="scores of piece 1 are NaN; steer less"):
            store.commit(1, [5], [39], torch.full((1, 1, N_OPTIONS), torch.nan), 1.0)
        for wrong in ((2, 1, N_OPTIONS), (1, 2, N_OPTIONS), (1, 1, N_OPTIONS + 1)):
            with pytest.raises((ValueError, sqlite3.ProgrammingError)):
                store.commit(1, [5], [39], torch.zeros(wrong), 1.0)
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
            tables = ("cells", "questions", "scores", "pieces")
            read = {t: pd.read_sql(f"SELECT * FROM {t} ORDER BY 1, 2", reader) for t in tables}
            meta = pd.read_sql("SELECT * FROM meta", reader, index_col="key")["value"].map(
                json.loads
            )
    assert list(read["cells"]) == ["cell", "role", "layer", "position", "alpha"]
    pd.testing.assert_frame_equal(read["cells"].drop(columns="cell"), cells(), check_dtype=False)
    pd.testing.assert_frame_equal(
        read["questions"].drop(columns="question"), questions(), check_dtype=False
    )
    assert list(read["cells"]["cell"]) == list(range(N_CELLS))
    assert list(read["questions"]["question"]) == list(range(N_QUESTIONS))
    assert list(read["scores"]) == ["cell", "question", "logprob_0", "logprob_1", "logprob_2"]
    options = torch.tensor(read["scores"].filter(like="logprob").to_numpy(dtype="float32"))
    options = options.reshape(N_CELLS, N_QUESTIONS, N_OPTIONS)
    assert torch.equal(options.isnan(), logprobs == -torch.inf)
    assert torch.equal(options.nan_to_num(nan=-torch.inf), logprobs)
    assert list(read["pieces"]) == ["piece", "finished_at", "seconds", "info"]
    assert list(read["pieces"]["seconds"]) == [2.0] * 5 + [0.5]
    assert json.loads(read["pieces"]["info"][5]) == {"tokens": 7}
    assert meta["provenance"] == PROVENANCE


def test_the_summary_is_that_of_the_scores(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        for piece in (0, 1, 3):
            commit(store, piece)
        tied = torch.tensor([[-1.0, -1.0, -3.0], [-1.0, -1.0, -2.0], [-1.0, -2.0, -1.0]])
        store.commit(4, [5], [0, 1, 2], tied[None], 1.0)
        logprobs = store.load()
        with closing(read_only(tmp_path / "s")) as reader:
            summary = pd.read_sql("SELECT * FROM summary ORDER BY cell", reader)
    assert list(summary["cell"]) == [0, 1, 2, 3, 4, 5]
    answers = torch.tensor(questions()["answer"])
    for row in summary.to_dict("records"):
        stored = ~logprobs[row["cell"], :, 0].isnan()
        own = Scores(logprobs[row["cell"], stored], answers[stored], (), (), "letter")
        assert row["questions"] == int(stored.sum())
        assert row["accuracy"] == pytest.approx(own.accuracy)
        assert row["alpha"] == cells()["alpha"][row["cell"]]
        # Every second question lacks its last option, which is the answer of some.
        if own.margins.isfinite().all():
            assert row["margin"] == pytest.approx(own.margin, rel=1e-5)
        else:
            assert row["margin"] == own.margin == -torch.inf


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
            for question, options in zip(BLOCKS[piece][1], block, strict=True):
                values = (None if x == -torch.inf else x for x in options)
                expected[cell, question] = tuple(values)
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
            assert not store.load().isnan().any()


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
            assert store.load().shape == (N_CELLS, N_QUESTIONS, N_OPTIONS)
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


def test_status_while_another_process_writes(tmp_path, writers: Writers) -> None:
    path = tmp_path / "s"
    writers.start(path)
    assert writers.read() == "open"
    counts = []
    for piece in range(len(BLOCKS)):
        assert writers.read() == str(piece)
        found = status(path)
        counts.append(found.done)
        assert found.done > piece
        assert found.writer == writers.pid
        assert found.seconds == 2.0 * found.done
    assert counts[-1] == len(BLOCKS)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir() if "shm" not in file.name}
    assert set(files) == {"s", "s-wal", "s.lock"}
    status(path)
    writers.kill()
    found = status(path)
    assert (found.done, found.writer) == (len(BLOCKS), None)
    assert all((tmp_path / name).read_bytes() == content for name, content in files.items())
    assert {file.name for file in tmp_path.iterdir()} == {*files, "s-shm"}


def test_status_says_how_far_it_is(tmp_path) -> None:
    with opened(tmp_path / "s") as store:
        found = status(tmp_path / "s")
        assert (found.done, found.seconds, found.seconds_left) == (0, 0.0, None)
        assert found.first is found.last is None
        before = datetime.now(UTC) - timedelta(seconds=1)
        commit(store, 3, seconds=1.5)
        commit(store, 0, seconds=2.5)
        store.note("planned", 6)
        store.note("budget", 9)
    found = status(str(tmp_path / "s"))
    assert before < found.first <= found.last <= datetime.now(UTC)
    assert found.facts()["first"] == found.first.isoformat()
    assert "2 of 6, about 0.1 min left" in repr(found)
    assert dataclasses.replace(found, first=None, last=None) == dataclasses.replace(
        found,
        done=2,
        pieces=6,
        cells=N_CELLS,
        questions=N_QUESTIONS,
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
            with pytest.raises(InputError, match=f"^{file} is not the store of a sweep; name"):
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
    for use in (opened, status):
        with pytest.raises(InputError, match="a store of version 99, and .* version 1; use"):
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
    with pytest.raises(InputError, match=rf"^{path} is damaged \(.+\); name another file"):
        opened(path)


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
