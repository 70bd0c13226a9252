"""Workers and drivers that are killed: nothing is lost, nothing scored twice."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import rolelens as rl
import tiny
from faults.conftest import Tally
from rolelens.sweeps.engine import Engine
from test_runners import Fork, Forked, content, killed_while, many, pieces
from test_search import random_vectors


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> rl.Lens:
    folder = tmp_path_factory.mktemp("model")
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    lens = rl.load(folder, device="cpu")
    lens.token_budget = 32
    return lens


@pytest.fixture(scope="module")
def vectors() -> rl.Directions:
    return random_vectors(tiny.reference("Llama"), 2, (0, 1, 2, 3), 0.1)


@pytest.fixture(scope="module")
def whole(lens, vectors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store when nothing is killed."""
    store = tmp_path_factory.mktemp("whole") / "whole.db"
    many(lens, vectors, store, "local")
    return store


@pytest.mark.fault("SIGKILL of a worker at a random moment")
def test_killed_workers_lose_nothing(lens, vectors, whole, tmp_path, times, tally: Tally):
    broken, kills = tmp_path / "broken.db", times(3, 10)
    with Forked(2, threads=1) as workers:
        done = killed_while(workers, kills, lambda: many(lens, vectors, broken, workers))
    assert done == kills
    assert content(whole) == content(broken)
    with closing(sqlite3.connect(broken)) as connection:
        told, most = connection.execute("SELECT count(*), max(piece) FROM pieces").fetchone()
    assert told == most + 1  # every piece was told once
    tally["nothing lost, nothing scored twice"] += done


@pytest.mark.fault("SIGKILL of a driver with two workers")
def test_a_killed_driver_goes_on_and_takes_its_workers_with_it(
    lens, vectors, whole, tmp_path, times, tally: Tally, monkeypatch
):
    broken, kills = tmp_path / "broken.db", times(3, 10)
    for kill in range(kills):
        done = pieces(broken)
        driver = Fork(lambda: many(lens, vectors, broken, Forked(2, threads=1)))
        while pieces(broken) < done + 2:
            assert os.waitpid(driver.pid, os.WNOHANG)[0] == 0, "it ended before it was killed"
            time.sleep(0.01)
        workers = children(driver.pid)
        driver.kill()
        driver.wait()
        assert len(workers) == 2
        for _ in range(200):
            if not any(map(runs, workers)):
                break
            time.sleep(0.05)
        assert not any(map(runs, workers)), f"workers outlived driver {kill}"
        tally["its workers ended, nothing lost, nothing scored twice"] += 1
    done = pieces(broken)
    assert 2 * kills <= done < pieces(whole)
    plain, scored = Engine.run, 0

    def run(self: Any, piece: Any) -> Any:
        nonlocal scored
        scored += 1
        return plain(self, piece)

    monkeypatch.setattr(Engine, "run", run)
    many(lens, vectors, broken, "local")
    assert scored == pieces(broken) - done
    assert content(whole) == content(broken)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("children of a process are listed on Linux alone")
    return [int(child) for child in listed.read_text().split()]


def runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
