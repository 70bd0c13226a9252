"""Workers in other processes: the same scores, whatever ends on the way."""

import dataclasses
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import rolelens as rl
import tiny
from rolelens import tasks
from rolelens.sweeps import UNSTEERED, grid_of
from rolelens.sweeps.engine import engine_for
from rolelens.sweeps.runners import Processes, Runner, process, runner_of, sharded
from rolelens.sweeps.runners.pool import Event
from rolelens.sweeps.runners.shards import Costs
from rolelens.sweeps.runners.work import Gradient, Known, Model, Outcome, Round, Score
from test_run import PROBLEMS, QUESTIONS, TEXTS
from test_search import random_vectors

GRID: dict[str, Any] = {"layers": [0, 1, 2], "positions": [-1], "alphas": (0.5, -1.0)}
RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


class Fork(subprocess.Popen):
    """A process that has its imports already."""

    _child_created = False  # by Popen itself

    def __init__(self, run: Callable[[], object]) -> None:
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                run()
            finally:
                os._exit(1)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class Forked(Processes):
    """The same workers, begun in a moment."""

    def _spawned(self, descriptor: int, environment: Any) -> Any:
        def run() -> None:
            os.closerange(3, descriptor)
            os.closerange(descriptor + 1, 1024)
            process.main(descriptor)

        return Fork(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder, which workers can load."""
    folder = tmp_path_factory.mktemp("model")
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lens(folder: Path) -> rl.Lens:
    lens = rl.load(folder, device="cpu")  # forks have no GPU
    lens.token_budget = 32  # so that there are many pieces
    return lens


@pytest.fixture(scope="module")
def vectors() -> rl.Directions:
    return random_vectors(tiny.reference("Llama"), 2, (0, 1, 2, 3), 0.1)


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two workers that are kept."""
    with Forked(2, threads=1) as workers:
        yield workers


@pytest.fixture(scope="module")
def anew() -> Iterator[Processes]:
    """Two workers as users have them: they import all anew, which takes seconds."""
    with Processes(2, threads=1) as workers:
        yield workers


def content(store: Path) -> dict[str, list[Any]]:
    """All that a store holds of scores, in plain SQL; numbers as they are in the file."""
    order = {"cells": "cell", "items": "item", "directions": "sha", "predictions": "key"}
    order |= {"scores": "cell, item"}
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        held = {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY {by}").fetchall()
            for table, by in order.items()
        }
        select = "SELECT value FROM meta WHERE key = 'provenance'"
        return held | {"provenance": connection.execute(select).fetchall()}


def test_a_sweep_by_processes_is_that_of_this_process(lens, vectors, anew, tmp_path):
    for name, task, options in (
        ("cloze", QUESTIONS, {"method": "cloze"}),
        ("letter", QUESTIONS, {"method": "letter"}),
        ("texts", TEXTS, {}),
        ("problems", PROBLEMS, {"max_new_tokens": 4, "n": 2, "temperature": 1.0, "seed": 3}),
    ):
        stores = [tmp_path / f"{name}-{who}.db" for who in ("local", "processes")]
        first, second = (
            rl.sweep(lens, vectors, task, **GRID, **options, store=store, runner=who)
            for store, who in zip(stores, ("local", anew), strict=True)
        )
        assert content(stores[0]) == content(stores[1]), name
        assert first.records.tobytes() == second.records.tobytes() or name == "problems"
        pd_equal(first.table(), second.table())


def pd_equal(first: Any, second: Any) -> None:
    assert first.to_csv() == second.to_csv()


def test_a_list_of_steerings_and_a_metric_of_ones_own(lens, vectors, two):
    d, e = vectors.direction("r0", 1, -1), vectors.direction("r1", 2, -1)
    what = {"sum": rl.add(d, 1.0, tokens="last") + rl.ablate(e, lens), "one": rl.add(e, -1.0)}

    def gap(item: Any, answer: Any) -> Any:
        return answer[0] - answer[-1]

    first, second = (
        rl.sweep(lens, what, QUESTIONS, method="cloze", metric=gap, runner=who)
        for who in ("local", two)
    )
    assert np.array_equal(first.records, second.records)
    pd_equal(first.table(), second.table())


def test_workers_decide_which_prompts_are_steered(lens, vectors, two):
    d = vectors["r0"].at(1, -1)
    states = rl.activations(lens, tiny.PROMPTS, layers=[1], positions=[-1])
    bound = float((states[:, 0, 0] @ d.unit).median())
    steerings = [rl.add(d, 3.0).when(d, above=bound), rl.add(d, 3.0)]
    given = {"method": "cloze", "runner": two}
    swept = rl.sweep(lens, steerings, QUESTIONS, **given)
    assert np.array_equal(
        swept.records, rl.sweep(lens, steerings, QUESTIONS, method="cloze").records
    )
    assert not np.array_equal(swept.records[0], swept.records[1])


def test_a_search_by_processes_is_that_of_this_process(lens, vectors, two, tmp_path):
    questions = [
        rl.Question(f"{n}", f"{q.text} {n}?", q.options, q.answer, "even" if n % 2 else "odd")
        for n, q in enumerate(QUESTIONS * 3)
    ]
    domains = {"r0": "even", "r1": "odd"}
    stores = [tmp_path / f"{who}.db" for who in ("local", "processes")]
    grid = {**GRID, "alphas": (-1.0, -0.5, 0.5, 1.0), "layers": None}
    first, second = (
        rl.search(
            lens, vectors, questions, domains=domains, **grid, method="cloze", store=s, runner=who
        )
        for s, who in zip(stores, ("local", two), strict=True)
    )
    assert content(stores[0]) == content(stores[1])
    assert len(content(stores[0])["predictions"]) == 2
    pd_equal(first.table(), second.table())
    pd_equal(first.quality, second.quality)


def test_a_search_where_gradients_are_off_is_the_same(lens, vectors):
    def search() -> Any:
        return rl.search(lens, vectors, QUESTIONS, **GRID, method="cloze").table()

    with torch.no_grad():
        off = search()
    pd_equal(off, search())


def test_a_study_and_rollouts_by_processes(lens, vectors, two, tmp_path):
    asked = [
        rl.Question(f"{n}", f"{q.text} {n}?", q.options, q.answer)
        for n, q in enumerate(QUESTIONS * 3)
    ]
    studies = [
        rl.study(
            lens,
            vectors,
            asked,
            **GRID,
            method="cloze",
            anyway=True,
            folder=tmp_path / name,
            runner=who,
        )
        for name, who in (("local", "local"), ("processes", two))
    ]
    pd_equal(*(study.table() for study in studies))
    names = sorted(path.name for path in (tmp_path / "local").glob("*.db"))
    assert names
    for name in names:
        assert content(tmp_path / "local" / name) == content(tmp_path / "processes" / name), name
    first, second = (
        rl.roll_out(lens, PROBLEMS, n=3, max_new_tokens=4, runner=who) for who in ("local", two)
    )
    assert first.texts == second.texts


def test_what_is_finished_is_not_asked_of_workers_again(lens, vectors, two, tmp_path, monkeypatch):
    store = tmp_path / "s.db"
    rl.sweep(lens, vectors, QUESTIONS, **GRID, method="cloze", store=store)
    before = content(store)

    def send(*_: object) -> None:
        raise AssertionError("a worker was asked")

    monkeypatch.setattr(two, "send", send)
    rl.sweep(lens, vectors, QUESTIONS, **GRID, method="cloze", store=store, runner=two)
    assert content(store) == before


def many(
    lens: rl.Lens, vectors: rl.Directions, store: Path, runner: Any, repeats: int = 4
) -> rl.Sweep:
    """A sweep of many short pieces."""
    questions = [
        rl.Question(f"{n}", f"{prompt} {n}", ("yes", "no, not at all"), n % 2)
        for n, prompt in enumerate(tiny.PROMPTS * repeats)
    ]
    return rl.sweep(lens, vectors, questions, **GRID, method="cloze", store=store, runner=runner)


@pytest.fixture(scope="module")
def long(lens, vectors, tmp_path_factory) -> Path:
    """The store of a long one when nothing was killed."""
    store = tmp_path_factory.mktemp("long") / "long.db"
    many(lens, vectors, store, "local", repeats=40)
    return store


def killed_while(runner: Any, kills: int, run: Any) -> int:
    """Kill workers at random moments while something runs; gives how often."""
    done, count = threading.Event(), 0
    rng = random.Random(0)

    def kill() -> None:
        nonlocal count
        while count < kills and not done.wait(rng.uniform(0.0, 0.05)):
            ready = [runner.pids[n] for n in sorted(runner._ready)]
            if ready:
                with suppress(ProcessLookupError):  # it is one that was killed before
                    os.kill(rng.choice(ready), signal.SIGKILL)
                    count += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        run()
    finally:
        done.set()
        thread.join()
    return count


def test_a_worker_that_always_ends_is_told(lens, vectors, monkeypatch):
    workers = Processes(1, threads=1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(rl.InputError, match="ended 5 times in a row.*exit code 1"):
        rl.sweep(lens, vectors, QUESTIONS, **GRID, method="cloze", runner=workers)
    assert workers.pids == []


def test_workers_that_did_not_begin_are_begun_by_the_next_call(lens, vectors, monkeypatch):
    def refused(*_: object) -> Any:
        raise BlockingIOError("too many processes")

    with Forked(1, threads=1) as workers:
        with monkeypatch.context() as patch:
            patch.setattr(Forked, "_spawned", refused)
            with pytest.raises(BlockingIOError):
                rl.sweep(lens, vectors, QUESTIONS, **GRID, method="cloze", runner=workers)
        assert workers.pids == []
        rl.sweep(lens, vectors, QUESTIONS, **GRID, method="cloze", runner=workers)


def test_a_cell_that_fails_at_a_worker_fails_as_here(lens, vectors, two):
    d = vectors.direction("r0", 1, -1)
    huge = {"big": rl.add(dataclasses.replace(d, vector=1e4 * d.vector), 1e38)}  # infinite
    told = []
    for who in ("local", two):
        with pytest.warns(UserWarning, match="its scores are NaN"):
            swept = rl.sweep(lens, huge, QUESTIONS, method="cloze", runner=who)
        told.append([(cell.name, why) for cell, why in swept.failed.items()])
    assert told[0] == told[1] != []
    rl.sweep(lens, vectors, QUESTIONS, **GRID, method="cloze", runner=two)  # and workers go on


def test_models_that_workers_cannot_have_are_refused(folder, lens, llama, vectors, two, tmp_path):
    d = vectors.direction("r0", 1, -1)
    store = tmp_path / "s.db"
    with pytest.raises(rl.InputError, match="given in memory.*save it"):
        rl.sweep(llama, vectors, QUESTIONS, **GRID, runner="processes", store=store)
    with lens.steered(rl.add(d)), pytest.raises(rl.InputError, match="is steered.*add 1 x .r0"):
        rl.sweep(lens, vectors, QUESTIONS, **GRID, runner=two, store=store)
    assert not store.exists()
    other = rl.load(folder, device="cpu")
    with torch.no_grad():
        other.model.original_model.model.norm.weight.mul_(2.0)
    with pytest.raises(rl.InputError, match="gets another model \\(content"):
        rl.sweep(other, vectors, QUESTIONS, **GRID, method="cloze", runner=two)


class Counted(tasks.Task):
    """A task of one's own that is defined where workers do not find it."""

    kind = rl.Text

    def score(self, lens: rl.Lens, hooks: Any) -> list[float]:
        return [float(len(item.text)) for item in self.items]


def test_tasks_of_ones_own(lens, vectors, two):
    task = Counted("counted", (rl.Text("a", "some"), rl.Text("b", "text")))
    with pytest.warns(UserWarning, match="scores itself"):
        swept = rl.sweep(lens, vectors, task, **GRID, runner=two)
    assert (swept.records == 4.0).all()

    class Local(Counted):
        """No worker can import it."""

    task = Local("local", task.items)
    with (
        pytest.warns(UserWarning, match="scores itself"),
        pytest.raises(rl.InputError, match="define the task in a module that workers can import"),
    ):
        rl.sweep(lens, vectors, task, **GRID, runner=two)


def test_settings_that_have_no_effect_are_refused():
    with pytest.raises(rl.InputError, match="has to be one of local, processes, ray"):
        runner_of("slurm")
    with pytest.raises(rl.InputError, match="workers is 2, which has no effect on runner='local'"):
        runner_of("local", workers=2)
    with pytest.raises(rl.InputError, match="address is 'auto', which has no effect"):
        runner_of("processes", address="auto")
    with pytest.raises(rl.InputError, match="workers is 0"):
        Processes(0)
    with pytest.raises(rl.InputError, match="threads is -1"):
        Processes(1, threads=-1)
    assert runner_of("local") is None


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_how_to_get_it():
    with pytest.raises(rl.InputError, match="pip install 'rolelens\\[ray\\]'"):
        runner_of("ray")


class Scripted(Runner):
    """Workers that load, answer and end as they are told, in no order."""

    threads = 1

    def __init__(self, workers: int, rng: random.Random) -> None:
        super().__init__()
        self.rng, self.n, self.begun = rng, workers, 0
        self.flying: list[deque[int]] = []
        self.loading: set[int] = set()
        self.ends = 0
        self.untold: list[int] = []

    workers = property(lambda self: self.n)  # type: ignore[assignment]

    def start(self, model: Model) -> None:
        self.flying, self.loading = [deque() for _ in range(self.n)], set(range(self.n))

    def stop(self) -> None:
        self.flying = []

    def share(self, known: Known) -> None:
        assert not any(self.flying)

    def send(self, worker: int, number: int, call: Any) -> None:
        assert worker not in self.loading
        self.flying[worker].append(number)

    def next(self) -> Event:
        if self.untold:  # it was begun again at once, and may have been sent something since
            self.loading.add(self.untold[-1])
            return Event("ended", self.untold.pop())
        able = [n for n in range(self.n) if n in self.loading or self.flying[n]]
        n = self.rng.choice(able)
        if n in self.loading:
            self.loading.discard(n)
            return Event("ready", n, outcome=Outcome("done"))
        if self.rng.random() < 0.3 and self.ends < 20:
            for other in set(range(self.n)) - self.loading - {n}:
                if self.rng.random() < 0.3:
                    self.flying[other].clear()
                    self.untold.append(other)
            self.flying[n].clear()
            self.loading.add(n)
            self.ends += 1
            return Event("ended", n)
        return Event("answered", n, self.flying[n].popleft(), Outcome("done", n))


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    workers=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 6), max_size=8),
    seed=st.integers(0, 10_000),
)
def test_each_call_is_finished_once_whatever_ends(lens, workers, sizes, seed):
    runner = Scripted(workers, random.Random(seed))
    cut = [[Gradient((), np.zeros(0, np.float32), (), ()) for _ in range(n)] for n in sizes]
    known = Known(tasks.prepare(lens, TEXTS), (), {})
    done = [call for call, _ in runner.map(lens, known, cut)]
    assert len(done) == len(set(done)) == sum(sizes)


@pytest.mark.parametrize("seed", range(5))
def test_what_one_worker_has_left_is_shared_at_the_end(lens, seed):
    runner = Scripted(2, random.Random(seed))
    runner.ends = 20  # none ends
    shard = [Gradient((), np.zeros(0, np.float32), (), ()) for _ in range(40)]
    known = Known(tasks.prepare(lens, TEXTS), (), {})
    who = [worker for _, worker in runner.map(lens, known, [shard])]
    assert len(who) == 40
    assert min(who.count(0), who.count(1)) >= 10


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_stays_with_the_items_it_has_run(lens, seed):
    runner = Scripted(2, random.Random(seed))
    runner.ends = 20  # none ends
    asked = Round((0, 1), (0,), 2048)
    cut = [[Score(asked, group, (group,), (0,))] * 3 for group in (0, 1) * 4]
    known = Known(tasks.prepare(lens, TEXTS), (), {})
    sent: dict[int, list[int]] = {0: [], 1: []}
    plain = runner.send
    runner.send = lambda worker, number, call: (  # type: ignore[method-assign]
        sent[worker].append(call.group) or plain(worker, number, call)
    )
    assert len(list(runner.map(lens, known, cut))) == 24
    turns = [sum(a != b for a, b in itertools.pairwise(groups)) for groups in sent.values()]
    assert sum(turns) <= 2


@pytest.mark.parametrize("workers", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", ["cloze", "problems"])
def test_shards_are_all_pieces_each_once_and_of_one_group(lens, vectors, workers, kind):
    cells = [UNSTEERED, *grid_of(lens, vectors, **GRID).live]
    options: dict[str, Any] = {"method": "cloze"} if kind == "cloze" else {"max_new_tokens": 4}
    task = QUESTIONS if kind == "cloze" else PROBLEMS
    of = engine_for(lens, tasks.prepare(lens, task, **options), 2048, cells)
    pieces = of.plan(cells)
    cut = sharded(of, pieces, workers)
    assert sorted(id(piece) for shard in cut for piece in shard) == sorted(map(id, pieces))
    assert all(len({piece.group for piece in shard}) == 1 for shard in cut)
    for shard in cut:
        places = [pieces.index(piece) for piece in shard]
        assert places == list(range(places[0], places[0] + len(shard)))
    costs = [sum(map(Costs(of).of, shard)) for shard in cut]
    assert costs == sorted(costs, reverse=True)


def test_what_costs_more_than_it_shares_is_spread(lens, vectors):
    alphas = tuple(np.linspace(0.1, 2, 100).tolist())
    cells = [UNSTEERED, *grid_of(lens, vectors, **{**GRID, "alphas": alphas}).live]
    of = engine_for(lens, tasks.prepare(lens, QUESTIONS[:1], "cloze"), 2048, cells)
    pieces = of.plan(cells)
    few, more = (len(sharded(of, pieces, workers)) for workers in (1, 4))
    assert 1 <= few < more >= 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine; a node gives up where its own helpers need 15 s to begin."""
    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    try:
        ray.init(num_cpus=2, **options)
    except Exception as error:
        ray.shutdown()
        if "timed out during startup" not in str(error):
            raise
        ray.init(num_cpus=2, **options)
    yield
    ray.shutdown()


@RAY
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_and_a_search_by_ray_are_those_of_this_process(
    lens, vectors, workers, cluster, tmp_path
):
    from rolelens.sweeps.runners import Ray

    with Ray(workers) as actors:
        for name, method in (("sweep", rl.sweep), ("search", rl.search)):
            stores = [tmp_path / f"{name}-{who}.db" for who in ("local", "ray")]
            for store, who in zip(stores, ("local", actors), strict=True):
                method(lens, vectors, QUESTIONS, **GRID, method="cloze", store=store, runner=who)
            assert content(stores[0]) == content(stores[1])


@RAY
@pytest.mark.parametrize(("n", "most"), [(1, 10), (2, 2)])
def test_killed_actors_of_ray_lose_nothing(lens, vectors, long, cluster, tmp_path, n, most):
    from rolelens.sweeps.runners import Ray

    broken = tmp_path / "broken.db"
    with Ray(n) as actors:
        kills = killed_while(actors, most, lambda: many(lens, vectors, broken, actors, repeats=40))
    assert kills == most
    assert content(long) == content(broken)


DRIVER = """
import sys
import rolelens as rl
import tiny
from rolelens.sweeps.runners import Ray
from test_runners import many
from test_search import random_vectors

folder, store, address = sys.argv[1:]
lens = rl.load(folder, device="cpu")
lens.token_budget = 32
vectors = random_vectors(tiny.reference("Llama"), 2, (0, 1, 2, 3), 0.1)
many(lens, vectors, store, Ray(2, address=address), repeats=40)
"""


@RAY
def test_killed_drivers_of_ray_go_on(folder, long, cluster, tmp_path):
    import ray

    broken, kills = tmp_path / "broken.db", 0
    command = [sys.executable, "-c", DRIVER, folder, broken]
    command.append(ray.get_runtime_context().gcs_address)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    while kills < 10:
        done = pieces(broken)
        driver = subprocess.Popen(command, env=environment)
        while pieces(broken) < done + 2:
            assert driver.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        driver.kill()
        driver.wait()
        kills += 1
    assert pieces(broken) < pieces(long)
    subprocess.run(command, env=environment, check=True)
    assert content(long) == content(broken)
    with closing(sqlite3.connect(broken)) as connection:
        told, most = connection.execute("SELECT count(*), max(piece) FROM pieces").fetchone()
    assert told == most + 1  # no piece was told twice


def pieces(store: Path) -> int:
    """How many are finished."""
    if not store.exists():
        return 0
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM pieces").fetchone()[0])
