"""A sweep with a store: stopped, killed, resumed, refused."""

import importlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import rolelens as rl
import tiny
from rolelens.sweep import Store, engine, status
from test_search import QUESTIONS, random_vectors

OPTIONS = {"layers": [0, 1, 2], "positions": [-1], "alphas": (0.5, 1.0, -1.0), "method": "cloze"}


@pytest.fixture
def vectors() -> rl.RoleVectors:
    return random_vectors(tiny.reference("Llama"), 3, (0, 1, 2, 3), 0.1)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PIECE_TOKENS", 600)


def stopping_after(pieces: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let a sweep end with an error once so many pieces were scored."""
    left = iter(range(pieces))
    plain = engine.Engine.run

    def run(self, piece):
        if next(left, None) is None:
            raise error
        return plain(self, piece)

    monkeypatch.setattr(engine.Engine, "run", run)


def test_a_stored_sweep_is_the_sweep(llama: rl.Lens, vectors: rl.RoleVectors, tmp_path) -> None:
    file = tmp_path / "s.db"
    plain = rl.sweep(llama, vectors, QUESTIONS, **OPTIONS)
    stored = rl.sweep(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    assert torch.equal(plain.scores, stored.scores)
    found = status(file)
    assert found.done == found.pieces > 5
    assert found.writer is None
    assert found.provenance["model"] == "tiny-Llama"
    assert found.provenance["questions"] == rl.load_benchmark(QUESTIONS).sha
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        summary = pd.read_sql("SELECT * FROM summary", connection).set_index(
            ["role", "layer", "position", "alpha"]
        )
    for row in plain.table().itertuples():
        own = summary.loc[(row.role, row.layer, row.position, row.alpha)]
        assert own["accuracy"] == pytest.approx(row.accuracy)
        assert own["margin"] == pytest.approx(row.margin, abs=1e-5)
    assert summary.loc[("(unsteered)", -1, 0, 0.0)]["accuracy"] == plain.baseline.accuracy


@pytest.mark.parametrize("kind", ["sweep", "search"])
def test_an_interrupted_run_says_how_to_go_on_and_does(
    kind: str, llama: rl.Lens, vectors: rl.RoleVectors, tmp_path, monkeypatch, capfd
) -> None:
    call = getattr(rl, kind)
    unbroken = call(llama, vectors, QUESTIONS, **OPTIONS)
    file = tmp_path / "s.db"
    with monkeypatch.context() as patched:
        stopping_after(4, patched, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            call(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    told = capfd.readouterr().err
    assert f"4 finished pieces are kept in {file}; repeat the same call to go on." in told
    assert status(file).done == 4
    scored = []
    plain = engine.Engine.run
    monkeypatch.setattr(
        engine.Engine, "run", lambda self, piece: scored.append(piece) or plain(self, piece)
    )
    resumed = call(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    assert len(scored) == status(file).done - 4
    if kind == "sweep":
        assert torch.equal(resumed.scores, unbroken.scores)
    else:
        pd.testing.assert_frame_equal(resumed.table, unbroken.table)
    scored.clear()
    call(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    assert not scored


def test_a_search_goes_on_though_the_screen_came_out_otherwise(
    llama: rl.Lens, vectors: rl.RoleVectors, tmp_path, monkeypatch
) -> None:
    """As on a GPU, or with another number of threads: other cells enter, and all are scored."""
    search = importlib.import_module("rolelens.sweep.search")
    file, many = tmp_path / "s.db", {**OPTIONS, "layers": [1, 2, 3], "positions": [-2, -1]}
    questions = [
        rl.Question(f"{q.id}-{k}", f"{q.text} {k}", q.options, q.answer)
        for k in range(4)
        for q in QUESTIONS
    ]
    monkeypatch.setattr(search, "ALWAYS", 6)
    monkeypatch.setattr(search, "AT_LEAST", 6)
    with monkeypatch.context() as patched:
        stopping_after(7, patched, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            rl.search(llama, vectors, questions, store=file, **many)
    plain = search.screen
    monkeypatch.setattr(search, "screen", lambda *arguments: -plain(*arguments))
    found = rl.search(llama, vectors, questions, store=file, **many)
    fresh = rl.search(llama, vectors, questions, **many)
    run = found.table.merge(fresh.table, on=["role", "layer", "position", "alpha"])
    assert not found.table[found.table["questions"] > 0]["margin"].isna().any()
    assert run["chosen_x"].equals(run["chosen_y"])
    both = run[(run["questions_x"] == run["questions_y"]) & (run["questions_x"] > 0)]
    assert len(both) >= 18
    assert both["margin_x"].tolist() == pytest.approx(both["margin_y"].tolist(), abs=1e-4)


def test_another_model_in_the_same_place_is_refused(vectors: rl.RoleVectors, tmp_path) -> None:
    from conftest import tiny_lens

    file, lens = tmp_path / "s.db", tiny_lens("Llama")
    content = lens.content
    assert content == tiny_lens("Llama").content
    rl.sweep(lens, vectors, QUESTIONS, store=file, **OPTIONS)
    weight = next(w for name, w in lens.model.named_parameters() if "down_proj" in name)
    weight.data *= 1.001
    assert lens.content != content
    with pytest.raises(rl.InputError, match='holds another sweep .*content "'):
        rl.sweep(lens, vectors, QUESTIONS, store=file, **OPTIONS)
    weight.data /= 1.001


def test_a_changed_run_is_refused_with_what_differs(
    llama: rl.Lens, vectors: rl.RoleVectors, tmp_path
) -> None:
    file = tmp_path / "s.db"
    rl.sweep(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    other = rl.Question("q0", "Which is it?", QUESTIONS[0].options, 0)
    with pytest.raises(rl.InputError, match="holds another sweep .*questions .* -> "):
        rl.sweep(llama, vectors, [other, *QUESTIONS[1:]], store=file, **OPTIONS)
    moved = random_vectors(tiny.reference("Llama"), 3, (0, 1, 2, 3), 0.2)
    with pytest.raises(rl.InputError, match='holds another sweep .*vectors "'):
        rl.sweep(llama, moved, QUESTIONS, store=file, **OPTIONS)
    with pytest.raises(rl.InputError, match=r'tokens "all" -> "prompt"'):
        rl.sweep(llama, vectors, QUESTIONS, store=file, tokens="prompt", **OPTIONS)
    with pytest.raises(rl.InputError, match="kind"):
        rl.search(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    from conftest import tiny_lens

    with pytest.raises(rl.InputError, match='model "tiny-Llama" -> "tiny-Qwen2"'):
        rl.sweep(tiny_lens("Qwen2"), vectors, QUESTIONS, store=file, **OPTIONS)


def test_a_store_that_is_written_elsewhere_is_refused(
    llama: rl.Lens, vectors: rl.RoleVectors, tmp_path
) -> None:
    file = tmp_path / "s.db"
    rl.sweep(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    with sqlite3.connect(file) as connection:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        cells = pd.read_sql("SELECT role, layer, position, alpha FROM cells", connection)
        asked = pd.read_sql("SELECT id, domain, answer FROM questions", connection)
    held = Store.open(file, json.loads(meta["provenance"]), cells, asked, 3)
    with held, pytest.raises(rl.InputError, match=f"being written by process {os.getpid()}; wait"):
        rl.sweep(llama, vectors, QUESTIONS, store=file, **OPTIONS)


def test_out_of_memory_halves_the_batches_and_goes_on(
    llama: rl.Lens, vectors: rl.RoleVectors, tmp_path, monkeypatch
) -> None:
    """A machine on which a pass of more than so many tokens does not fit."""
    limit = 45
    expected = rl.sweep(llama, vectors, QUESTIONS, **OPTIONS)
    shared = sys.modules["rolelens.forward.shared"]
    plain = shared.resume

    def resume(model, start, *arguments, **options):
        if start.shape[0] * start.shape[1] > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(model, start, *arguments, **options)

    monkeypatch.setattr(shared, "resume", resume)
    found = rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "s.db", **OPTIONS)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-3, rtol=0)
    assert status(tmp_path / "s.db").notes["budget"] <= 64
    limit = 0
    with pytest.raises(rl.InputError, match="one prompt alone does not fit into memory"):
        rl.sweep(llama, vectors, QUESTIONS, **OPTIONS)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)  # threads do not survive a fork
import rolelens as rl, tiny
from conftest import tiny_lens
from rolelens.sweep import engine
from test_run import OPTIONS, QUESTIONS, random_vectors

engine.PIECE_TOKENS = 600
folder, lens = Path(sys.argv[2]), tiny_lens("Llama")
vectors = random_vectors(tiny.reference("Llama"), 3, (0, 1, 2, 3), 0.1)
plain = engine.Engine.run

def run(self, piece):
    with open(folder / "log", "a") as log:
        log.write(f"{os.getpid()}\\n")
    return plain(self, piece)

engine.Engine.run = run

def sweep(file):
    return rl.sweep(lens, vectors, QUESTIONS, store=file, **OPTIONS)

begun = time.perf_counter()
sweep(folder / "unbroken.db")
whole = time.perf_counter() - begun
(folder / "log").unlink()
random.seed(int(sys.argv[3]))
kills = 0
while kills < 20:
    if pid := os.fork():
        time.sleep(random.uniform(0, 0.25 * whole))
        os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        if (folder / "finished").exists():
            break
    else:
        sweep(folder / "killed.db")
        (folder / "finished").touch()
        os._exit(0)
sweep(folder / "killed.db")
print(kills, len((folder / "log").read_text().split()))
"""


def test_a_run_killed_at_20_random_moments_ends_bit_identical(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, here, str(tmp_path), "0"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    kills, scored = map(int, finished.stdout.split()[-2:])
    contents = []
    for name in ("unbroken.db", "killed.db"):
        with sqlite3.connect(f"file:{tmp_path / name}?mode=ro", uri=True) as connection:
            contents.append(
                [
                    connection.execute(f"SELECT * FROM {table}").fetchall()
                    for table in ("cells", "questions", "scores")
                ]
            )
            pieces = connection.execute("SELECT piece FROM pieces").fetchall()
    assert contents[0] == contents[1]
    assert len(contents[0][2]) == 28 * len(QUESTIONS)
    # Every piece was scored once, but for those that a kill cut short.
    assert len(pieces) <= scored <= len(pieces) + kills
    assert kills >= 5
