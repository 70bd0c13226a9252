"""Processes that are killed, several that write at once, and clocks that jump."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import rolelens as rl
import tiny
from chat_server import HANG, Reply, Request, Server, chat, serving
from conftest import Variant, shared
from faults.conftest import Tally
from rolelens import prompts
from rolelens.endpoints import connect
from rolelens.errors import InputError
from rolelens.sweeps import engine, status
from rolelens.sweeps import store as stores

pytestmark = pytest.mark.usefixtures("unchecked")

OPTIONS = ("one", "two", "three")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
QUESTIONS = [
    rl.Question(f"q{n}", f"Which of these is {number}?", OPTIONS, n % 3)
    for n, number in enumerate(NUMBERS)
]
PROBLEMS = rl.load_task([rl.Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(4)])
GRID = {"layers": [1, 2, 3], "positions": [-2, -1]}


class Parrot:
    """A language model whose answers depend on its seed alone."""

    name = "parrot"

    def answer(self, prompt: str, *, seed: int | None, **_: Any) -> str:
        time.sleep(0.002)
        what = random.Random(seed).sample(["rivers", "bridges", "taxes", "birds", "maps"], 2)
        task = prompt.split('begins with "')[1].split('"')[0]
        return f"{task} how {what[0]} and {what[1]} matter in the {seed}th year?"


def written(path: Path) -> list[str]:
    """The prompts of a role, kept in a file."""
    personas = [f"A nurse who likes {what}" for what in ("tea", "trains", "chess")]
    made = prompts.generate("nurse", 3, Parrot(), personas, out=path, max_attempts=60)
    return [*made.prompts, str(made.refused)]


@pytest.fixture(scope="module")
def vectors() -> rl.Directions:
    roles = {"a": tiny.PROMPTS, "b": tiny.OTHERS + tiny.PROMPTS[:3]}
    return rl.role_vectors(shared(Variant("Llama")), roles, base=tiny.OTHERS)


@pytest.fixture
def call(request: pytest.FixtureRequest, vectors: rl.Directions) -> Callable[[Path], Any]:
    lens = shared(Variant("Llama"))
    d = vectors["a"].at(2, -1)

    def study(folder: Path) -> Any:
        made = rl.study(
            lens, vectors, QUESTIONS, **GRID, anyway=True, ablated=0, prompted=False, folder=folder
        )
        return made.table().to_csv(), made.table("chosen").to_csv()

    kinds: dict[str, Callable[[Path], Any]] = {
        "sweep": lambda path: rl.sweep(
            lens, vectors, QUESTIONS, store=path, **GRID
        ).records.tobytes(),
        "search": lambda path: (
            rl.search(lens, vectors, QUESTIONS, store=path, **GRID).table().to_csv()
        ),
        "study": study,
        "rollouts": lambda path: (
            rl.roll_out(lens, PROBLEMS, 3, hooks=rl.add(d, 1.0), store=path, max_new_tokens=4)
            .rollouts()
            .to_csv()
        ),
        "prompts": written,
    }
    return kinds[request.param]


@pytest.mark.fault("SIGKILL at a random moment")
@pytest.mark.parametrize("call", ["sweep", "search", "study", "rollouts", "prompts"], indirect=True)
def test_a_kill_loses_and_repeats_nothing(call, tmp_path, times, tally: Tally, monkeypatch) -> None:
    """Ends as an unbroken run does, and no finished piece is scored twice."""
    log, chance, plain = tmp_path / "log", random.Random(0), engine.Engine.run

    def logged(self: Any, piece: Any) -> Any:
        with log.open("a") as file:
            file.write(".")
        return plain(self, piece)

    monkeypatch.setattr(engine.Engine, "run", logged)
    log.touch()
    begun = time.perf_counter()
    unbroken = call(tmp_path / "unbroken")
    duration = time.perf_counter() - begun
    pieces = len(log.read_text())
    kills, left = 0, times(4, 20)
    for attempt in itertools.count():
        if kills >= left:
            break
        path = tmp_path / f"run-{attempt}"
        log.write_text("")
        here = 0
        while here < 4 and kills < left:
            pid = os.fork()
            if pid == 0:
                try:
                    call(path)
                finally:
                    os._exit(0)
            time.sleep(chance.uniform(0, duration / 2))
            os.kill(pid, signal.SIGKILL)
            if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
                break
            here, kills = here + 1, kills + 1
        assert call(path) == unbroken
        assert len(log.read_text()) <= pieces + here
        tally["ended as an unbroken run"] += here


@pytest.mark.fault("two writers on one store")
@pytest.mark.parametrize("call", ["sweep"], indirect=True)
def test_of_two_writers_one_is_refused(call, vectors, tmp_path, times, tally: Tally) -> None:
    """At whatever moment the second comes: refused by name, or after the first has ended."""
    unbroken, chance = call(tmp_path / "unbroken"), random.Random(0)
    for n in range(times(6, 30)):
        path, report = tmp_path / f"{n}", tmp_path / "report"
        pid = os.fork()
        if pid == 0:
            try:
                report.write_text("right" if call(path) == unbroken else "wrong")
            except rl.InputError as error:
                report.write_text(str(error))
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, 0.1))
        try:
            mine = "right" if call(path) == unbroken else "wrong"
        except rl.InputError as error:
            mine = str(error)
        os.waitpid(pid, 0)
        ends = [mine, report.read_text()]
        refused = [end for end in ends if "is being written by" in end]
        assert ends.count("right") + len(refused) == 2, ends
        assert "right" in ends
        assert call(path) == unbroken
        tally["one refused by name" if refused else "one after the other"] += 1


@pytest.mark.fault("a clock that jumps")
@pytest.mark.parametrize("call", ["sweep"], indirect=True)
def test_a_clock_that_jumps_changes_no_score(
    call, tmp_path, times, tally: Tally, monkeypatch
) -> None:
    unbroken, chance = call(tmp_path / "unbroken"), random.Random(0)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromtimestamp(chance.uniform(0, 4e9), UTC)

    monkeypatch.setattr(stores, "datetime", Jumping)
    for n in range(times(4, 20)):
        assert call(tmp_path / f"{n}") == unbroken
        state = status(tmp_path / f"{n}")
        assert state.first <= state.last
        assert state.seconds >= 0
        tally["same scores, and a status"] += 1


@pytest.mark.fault("an endpoint that does not answer in time")
def test_an_endpoint_that_hangs_loses_no_prompt(tmp_path, times, tally: Tally) -> None:
    """Each call goes on where the last one stopped, and ends with the prompts of a patient one."""
    personas, chance = [f"A nurse who likes {what}" for what in ("tea", "trains")], random.Random(0)
    patient = False

    def reply(request: Request) -> Reply:
        if not patient and chance.random() < 0.5:
            return HANG
        return chat(Parrot().answer(request.prompt, seed=request.body["seed"]))

    def made(server: Server, name: str) -> list[str]:
        endpoint = connect("m", server.url, timeout=0.15, retries=0)
        out = tmp_path / name
        return list(prompts.generate("nurse", 4, endpoint, personas, out=out).prompts)

    with serving(reply) as server:
        patient = True
        whole = made(server, "whole.jsonl")
        patient, hung = False, 0
        for n in itertools.count():
            try:
                assert made(server, f"{n}.jsonl") == whole
                continue
            except InputError as error:
                if "did not answer within 0.15 s" not in str(error):
                    raise
                hung += 1
                tally["in one sentence, then gone on"] += 1
            patient = True
            assert made(server, f"{n}.jsonl") == whole
            patient = False
            if hung >= times(5, 20):
                break
