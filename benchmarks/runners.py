"""Workers beside this process: speed, what killing them costs, and how fast one process writes.

``python benchmarks/runners.py speed kills store messages``, or some of these; ``--kind ray`` takes
actors of a Ray cluster of this machine in place of processes.
"""

import argparse
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import table, timed

import rolelens as rl
from rolelens.sweeps import Store
from rolelens.sweeps.database import Content
from rolelens.sweeps.runners import Processes, Ray, Runner

KILLS = 10
TABLES = {"cells": "cell", "items": "item", "directions": "sha", "scores": "cell, item"}


def runner(kind: str, workers: int = 2) -> Runner:
    """Workers of one thread."""
    return Ray(workers, threads=1) if kind == "ray" else Processes(workers, threads=1)


def asked(n: int) -> dict[str, Any]:
    """A sweep of the embedded model on some questions of each domain."""
    torch.set_num_threads(1)
    lens, base = rl.load("smollm2"), rl.load_base()
    vectors = rl.role_vectors(lens, {"lawyer": rl.load_roles()["lawyer"][:16]}, base[:16])
    task = rl.load_task("mini")
    items = [k * len(task) // n for k in range(n)]
    return {"lens": lens, "what": vectors, "task": task.take(items), "method": "cloze"}


def speed(kind: str, n: int) -> None:
    """Two workers of one thread beside this process with one."""
    given = asked(n)
    layers = {"layers": range(1, 24, 2), "positions": [-1, -3]}
    alone, here = timed(lambda: rl.sweep(**given, **layers))
    with runner(kind) as workers:
        loading, _ = timed(lambda: rl.sweep(**given, layers=[23], positions=[-1], runner=workers))
        kept, there = timed(lambda: rl.sweep(**given, **layers, runner=workers))
    whole, again = timed(lambda: rl.sweep(**given, **layers, runner=runner(kind)))
    same = all(np.array_equal(here.records, other.records) for other in (there, again))
    print(f"Scores {'the same to the bit' if same else 'NOT THE SAME'}; {len(here.cells)} cells on")
    print(f"{n} questions; a first small sweep with loading {loading:.1f} s.\n")
    rows = [("this process, one thread", alone), (f"2 workers ({kind}), one thread each", kept)]
    rows.append(("the same, with their start and loading", whole))
    table(pd.DataFrame([(*row, alone / row[1]) for row in rows], columns=["who", "s", "ratio"]))


def sweep(store: Path, kind: str, n: int = 24) -> rl.Sweep:
    """What is killed."""
    return rl.sweep(**asked(n), tokens="post-instruction", store=store, runner=runner(kind))


def tables(store: Path) -> list[Any]:
    """Everything that was scored."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        return [
            connection.execute(f"SELECT * FROM {name} ORDER BY {by}").fetchall()
            for name, by in TABLES.items()
        ]


def pieces(store: Path) -> int:
    """How many are finished."""
    if not store.exists():
        return 0
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT count(*) FROM pieces").fetchone()[0])


def kills(kind: str) -> None:
    """Workers, and then the driver, killed ten times each during a sweep."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, workers, driver = (Path(folder) / name for name in ("whole.db", "w.db", "d.db"))
        rl.sweep(**asked(24), tokens="post-instruction", store=whole)
        total = pieces(whole)
        count = _workers_killed(workers, kind, rng)
        same = "the same" if tables(whole) == tables(workers) else "NOT THE SAME"
        print(f"{total} pieces; workers killed {count} times: {pieces(workers)} told, {same}.")
        command = [sys.executable, __file__, "one", "--store", str(driver), "--kind", kind]
        killed = 0
        while killed < KILLS:
            begun = pieces(driver)
            child = subprocess.Popen(command)
            while child.poll() is None and pieces(driver) == begun:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 2))
            child.kill()
            if child.wait() == 0:
                break
            killed += 1
        subprocess.run(command, check=True)
        same = "the same" if tables(whole) == tables(driver) else "NOT THE SAME"
        print(f"driver killed {killed} times: {pieces(driver)} told, tables {same}.\n")


def _workers_killed(store: Path, kind: str, rng: random.Random) -> int:
    given, done, count = asked(24), threading.Event(), 0
    with runner(kind) as workers:

        def kill() -> None:
            nonlocal count
            while count < KILLS and not done.wait(rng.uniform(0.5, 2.0)):
                ready = sorted(workers._ready)
                if ready:
                    with suppress(ProcessLookupError):  # it is one that was killed before
                        os.kill(workers.pids[rng.choice(ready)], signal.SIGKILL)  # type: ignore[attr-defined]
                        count += 1

        thread = threading.Thread(target=kill)
        thread.start()
        rl.sweep(**given, tokens="post-instruction", store=store, runner=workers)
        done.set()
        thread.join()
    return count


def store() -> None:
    """Rows a second that one process writes, by the size of pieces; each is synced."""
    rows, items = [], 512
    for cells, scored in ((1, 8), (1, 64), (8, 64), (64, 64), (64, 512)):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            n = max(16, min(200, 200_000 // (cells * scored)))
            kept = [(f"c{k}", 1, -1, 1.0, "{}") for k in range(n * cells)]
            asked_items = [(f"i{k}", "d", 1, "{}") for k in range(items)]
            columns = tuple(f"logprob_{k}" for k in range(4))
            content = Content({"kind": "bench"}, kept, asked_items, columns)
            block = np.random.default_rng(0).normal(size=(cells, scored, 4)).astype(np.float32)
            with Store.open(Path(folder) / "s.db", content) as opened:
                begun = time.perf_counter()
                for k in range(n):
                    which = range(k * cells, (k + 1) * cells)
                    opened.commit(k, which, range(scored), block, 0.1)
                seconds = time.perf_counter() - begun
            rows.append((cells, scored, 1e3 * seconds / n, n * cells * scored / seconds))
    table(pd.DataFrame(rows, columns=["cells", "items", "ms a piece", "rows a second"]), 1)


def messages(kind: str) -> None:
    """What a piece costs beside being scored: asking for it, having the answer, keeping it."""
    given = asked(8)
    given["lens"].token_budget = 64
    grid = {
        "layers": [28, 29],
        "positions": [-1],
        "alphas": tuple(np.linspace(0.1, 3, 60).tolist()),
    }
    given["method"] = "letter"
    with runner(kind, 1) as workers, tempfile.TemporaryDirectory(dir=".") as folder:
        rl.sweep(**given, layers=[29], positions=[-1], runner=workers)
        file = Path(folder) / "s.db"
        wall, _ = timed(lambda: rl.sweep(**given, **grid, runner=workers, store=file))
        with sqlite3.connect(file) as connection:
            n, seconds = connection.execute("SELECT count(*), sum(seconds) FROM pieces").fetchone()
    print(f"{n} pieces of {1e3 * seconds / n:.1f} ms: {1e3 * (wall - seconds) / n:.2f} ms beside.")
    begun = time.perf_counter()
    for _ in range(20):
        pickle.loads(pickle.dumps(np.zeros((64, 512, 4), dtype=np.float32)))
    print(f"64 cells x 512 items pickled and back: {50 * (time.perf_counter() - begun):.2f} ms\n")


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["speed", "kills", "store", "messages"])
    parser.add_argument("--kind", default="processes")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--questions", type=int, default=60)
    given = parser.parse_args()
    if given.what == ["one"]:
        sweep(given.store, given.kind)
    for what in given.what:
        if what == "speed":
            speed(given.kind, given.questions)
        elif what == "kills":
            kills(given.kind)
        elif what == "store":
            store()
        elif what == "messages":
            messages(given.kind)


if __name__ == "__main__":
    main()
