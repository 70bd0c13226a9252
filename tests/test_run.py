"""A run with a store: stopped, killed, resumed, refused, and read back."""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st

import rolelens as rl
import tiny
from conftest import Variant, shared, tiny_lens
from rolelens import forward, tasks
from rolelens.sweeps import Store, engine, halving, status
from rolelens.sweeps.store import read_store
from test_search import WORDS, random_vectors

QUESTIONS = [
    rl.Question(f"q{n}", f"What is {letter}?", (*WORDS[n : n + 2], WORDS[n + 7]), n % 3)
    for n, letter in enumerate("abc")
]
QUESTIONS.append(rl.Question("q3", "What is d?", ("ice", "snow", "fire", "it"), 0, also=(1,)))
OPTIONS: dict[str, Any] = {"layers": [0, 1, 2], "positions": [-1], "method": "cloze"}
OPTIONS["alphas"] = (0.5, -1.0)
PROBLEMS = tasks.Problems(
    "sums", tuple(rl.Problem(f"p{n}", text, str(n)) for n, text in enumerate(tiny.PROMPTS))
)
TEXTS = tasks.Texts("texts", tuple(rl.Text(f"t{n}", p) for n, p in enumerate(tiny.PROMPTS)))


def gap(item: rl.Question, answer: torch.Tensor) -> torch.Tensor:
    """A metric of one's own."""
    return answer[0] - answer[-1]


def odd(problem: rl.Problem, text: str) -> bool:
    """A verifier that a random model meets now and then."""
    return len(text) % 2 == 1


@pytest.fixture(scope="module")
def llama() -> rl.Lens:
    return shared(Variant("Llama"))


@pytest.fixture(scope="module")
def vectors() -> rl.Directions:
    return random_vectors(tiny.reference("Llama"), 2, (0, 1, 2, 3), 0.1)


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "PIECE_BATCHES", 0.3)
        patched.setattr(forward.memory, "GENERATED_SHARE", 0.03)
        yield


@pytest.fixture(scope="module")
def unbroken(llama: rl.Lens, vectors: rl.Directions) -> rl.Sweep:
    return rl.sweep(llama, vectors, QUESTIONS, **OPTIONS)


@pytest.fixture(scope="module")
def finished(llama: rl.Lens, vectors: rl.Directions, tmp_path_factory) -> Path:
    """The store of the same sweep; never to be written."""
    file = tmp_path_factory.mktemp("finished") / "s.db"
    rl.sweep(llama, vectors, QUESTIONS, store=file, **OPTIONS)
    return file


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copy(finished, tmp_path / "s.db")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[engine.Piece]:
    """The pieces that are scored from now on."""
    pieces: list[engine.Piece] = []
    plain = engine.Engine.run
    monkeypatch.setattr(
        engine.Engine, "run", lambda self, piece: pieces.append(piece) or plain(self, piece)
    )
    return pieces


def stopped_after(pieces: int, monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Interrupt a call once so many pieces were scored."""
    left = iter(range(pieces))
    plain = engine.Engine.run

    def run(self, piece):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return plain(self, piece)

    with monkeypatch.context() as patched:
        patched.setattr(engine.Engine, "run", run)
        with pytest.raises(KeyboardInterrupt):
            call()


def read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{file}?mode=ro", uri=True)


def test_a_stored_sweep_is_the_sweep(unbroken: rl.Sweep, finished: Path) -> None:
    state = status(finished)
    assert state.done == state.pieces > 5
    assert state.writer is None
    assert state.provenance["model"] == "tiny-Llama"
    assert state.provenance["items"] == rl.load_task(QUESTIONS).sha
    _, records, _ = read_store(finished)
    assert np.array_equal(records[1:], unbroken.records)
    with closing(read_only(finished)) as connection:
        summary = pd.read_sql("SELECT * FROM summary", connection).set_index(
            ["name", "layer", "position", "alpha"]
        )
        steerings = connection.execute("SELECT steering FROM cells").fetchall()
    for row in unbroken.table().itertuples():
        cell = summary.loc[(row.name, row.layer, row.position, row.alpha)]
        assert cell["accuracy"] == pytest.approx(row.accuracy)
        assert cell["margin"] == pytest.approx(row.margin, abs=1e-5)
    plain = summary[summary.index.get_level_values("name") == "(unsteered)"]
    assert plain["accuracy"].tolist() == [unbroken.baseline.accuracy]
    known = [json.loads(steering) for (steering,) in steerings]
    assert known == [{"steps": []}, *(cell.steering.to_dict() for cell in unbroken.cells)]


def test_an_interrupted_sweep_says_how_to_go_on_and_does(
    llama: rl.Lens, vectors, unbroken: rl.Sweep, tmp_path, monkeypatch, capfd, scored
) -> None:
    def call() -> rl.Sweep:
        return rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "s.db", **OPTIONS)

    stopped_after(4, monkeypatch, call)
    message = f"4 finished pieces are kept in {tmp_path}/s.db; repeat the same call to go on."
    assert message in capfd.readouterr().err
    assert status(tmp_path / "s.db").done == 4
    with pytest.raises(rl.InputError, match=r"s.db' is \d+% done; repeat the call that made it"):
        rl.load_sweep(tmp_path / "s.db")
    scored.clear()
    assert np.array_equal(call().records, unbroken.records)
    assert len(scored) == status(tmp_path / "s.db").done - 4
    scored.clear()
    assert np.array_equal(call().records, unbroken.records)
    assert not scored


EIGHT = [
    rl.Question(f"{q.id}{k}", f"{q.text}{k}", q.options, q.answer) for k in "ab" for q in QUESTIONS
]
"""Of a search, whose cells are halved twice."""


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FEWEST_ITEMS": 2, "AT_LEAST": 4, "ALWAYS": 6}.items():
        monkeypatch.setattr(halving, name, value)


@pytest.mark.usefixtures("halved")
def test_an_interrupted_search_goes_on_and_predicts_nothing_again(
    llama: rl.Lens, vectors: rl.Directions, tmp_path, monkeypatch, capfd, scored
) -> None:
    def call(store: Path | None = tmp_path / "s.db") -> rl.Search:
        return rl.search(llama, vectors, EIGHT, store=store, **OPTIONS)

    unbroken, pieces = call(None), len(scored)
    scored.clear()
    stopped_after(pieces - 3, monkeypatch, call)
    assert f"{pieces - 3} finished pieces are kept in" in capfd.readouterr().err
    monkeypatch.setattr(forward, "gradients", None)
    scored.clear()
    resumed = call()
    assert len(scored) == status(tmp_path / "s.db").done - (pieces - 3) == 3
    pd.testing.assert_frame_equal(resumed.table(), unbroken.table())
    pd.testing.assert_frame_equal(resumed.quality, unbroken.quality)
    scored.clear()
    pd.testing.assert_frame_equal(call().table(), unbroken.table())
    assert not scored
    with pytest.raises(rl.InputError, match="is a store of 'search' and no sweep"):
        rl.load_sweep(tmp_path / "s.db")


@pytest.mark.usefixtures("halved")
def test_a_search_goes_on_though_the_screen_came_out_otherwise(
    llama: rl.Lens, vectors: rl.Directions, tmp_path, monkeypatch
) -> None:
    """As by another version: other cells enter, and all are scored."""
    file, many = tmp_path / "s.db", {**OPTIONS, "layers": [1, 2, 3], "positions": [-2, -1]}
    stopped_after(7, monkeypatch, lambda: rl.search(llama, vectors, EIGHT, store=file, **many))
    with closing(read_only(file)) as connection:
        ((key, *_),) = connection.execute("SELECT * FROM predictions").fetchall()
    with Store.open(file, read_store(file)[0]) as opened:
        opened.predict(key, -opened.predictions(key))
    resumed = rl.search(llama, vectors, EIGHT, store=file, **many)
    plain = halving.Screening.predicted
    monkeypatch.setattr(halving.Screening, "predicted", lambda self: -plain(self))
    fresh = rl.search(llama, vectors, EIGHT, **many)
    assert not resumed.table().query("items > 0")["margin"].isna().any()
    assert resumed.table()["items"].sum() > fresh.table()["items"].sum()
    both = resumed.table().merge(fresh.table(), on=["name", "layer", "position", "alpha"])
    assert both["chosen_x"].equals(both["chosen_y"])
    both = both[(both["items_x"] == both["items_y"]) & (both["items_x"] > 0)]
    assert len(both) >= 12
    assert both["margin_x"].tolist() == pytest.approx(both["margin_y"].tolist(), abs=1e-4)


def test_another_model_in_the_same_place_is_refused(vectors, store: Path) -> None:
    lens = tiny_lens("Llama")
    assert lens.content == status(store).provenance["content"]
    weight = next(w for name, w in lens.model.named_parameters() if "down_proj" in name)
    weight.data *= 1.001
    with pytest.raises(rl.InputError, match='holds another run .*content "'):
        rl.sweep(lens, vectors, QUESTIONS, store=store, **OPTIONS)


def test_a_changed_run_is_refused_with_what_differs(
    llama: rl.Lens, vectors: rl.Directions, store: Path
) -> None:
    def refused(message: str, lens=llama, what=vectors, asked=QUESTIONS, call=rl.sweep, **options):
        with pytest.raises(rl.InputError, match=f"holds another run .*{message}"):
            call(lens, what, asked, store=store, **OPTIONS | options)

    other = rl.Question("q0", "Which is it?", QUESTIONS[0].options, 0)
    refused("items .* -> .*; item 0 .*What is a.* -> .*Which is it", asked=[other, *QUESTIONS[1:]])
    key = rl.Question("q3", "What is d?", QUESTIONS[3].options, 0)
    refused(r"item 3 \('q3', '', 3, .* -> \('q3', '', 1, ", asked=[*QUESTIONS[:3], key])
    moved = random_vectors(tiny.reference("Llama"), 2, (0, 1, 2, 3), 0.2)
    refused('cells "', what=moved)
    refused("cell 1 .*all.* -> .*prompt.* and 11 more", tokens="prompt")
    refused("cell 1 .*add.* -> .*ablate", change="ablate")
    refused("cells 13 -> 7", alphas=[1.0])
    refused('method "cloze" -> "cloze_norm"', method="cloze_norm")
    refused('prefix "" -> "Well: "', prefix="Well: ")
    refused('kind "sweep" -> "search"', call=rl.search)
    refused('model "tiny-Llama" -> "tiny-Qwen2"', lens=shared(Variant("Qwen2")))


def test_a_store_that_is_written_elsewhere_is_refused(
    llama: rl.Lens, vectors: rl.Directions, store: Path
) -> None:
    content, *_ = read_store(store)
    held = Store.open(store, content)
    with held, pytest.raises(rl.InputError, match=f"being written by process {os.getpid()}; wait"):
        rl.sweep(llama, vectors, QUESTIONS, store=store, **OPTIONS)


@pytest.mark.filterwarnings("ignore:.*cannot be resumed")
def test_a_store_does_not_mix_what_is_steered_with_what_is_not(
    llama: rl.Lens, vectors: rl.Directions, store: Path, tmp_path
) -> None:
    steering = rl.add(vectors.direction("r0", 3, -1), 1.0)
    options = OPTIONS | {"layers": [2], "alphas": [1.0]}
    told = r"steps?|add 1 x \(r0 of layer 3, position -1\) in layer 3, tokens all"
    with llama.steered(steering):
        with pytest.raises(rl.InputError, match=rf'installed \[\] -> \["{told}'):
            rl.sweep(llama, vectors, QUESTIONS, store=store, **OPTIONS)
        first = rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "other.db", **options)
        again = rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "other.db", **options)
        assert np.array_equal(first.records, again.records)
    with pytest.raises(rl.InputError, match=r"installed .* -> \[\]"):
        rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "other.db", **options)
    with (
        llama.steered(rl.add(vectors.direction("r0", 3, -1), 2.0)),
        pytest.raises(rl.InputError, match=r"installed .*add 1 x.* -> .*add 2 x"),
    ):
        rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "other.db", **options)


@pytest.mark.filterwarnings("ignore:.*cannot be resumed")
def test_what_cannot_be_recorded_keeps_no_store(
    llama: rl.Lens, vectors: rl.Directions, tmp_path
) -> None:
    options: dict[str, Any] = OPTIONS | {"layers": [2], "alphas": [1.0]}
    name = "blocks.1.hook_resid_pre"

    def double(x, hook):
        return 2 * x

    with llama.steered([(name, double)]):
        rl.sweep(llama, vectors, QUESTIONS, **options)
        with pytest.raises(rl.InputError, match="lens.steered holds plain hooks, of which nothing"):
            rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "s", **options)
    try:
        llama.model.add_hook(name, double)
        rl.sweep(llama, vectors, QUESTIONS, **options)
        with pytest.raises(rl.InputError, match="has hooks that rolelens did not install"):
            rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "s", **options)
    finally:
        llama.model.reset_hooks()
    with llama.model.hooks(fwd_hooks=[(name, double)]), pytest.raises(rl.InputError, match="hooks"):
        rl.search(llama, vectors, QUESTIONS, store=tmp_path / "s", **options)
    assert not list(tmp_path.iterdir())


def test_out_of_memory_halves_the_batches_and_goes_on(
    llama: rl.Lens, vectors: rl.Directions, unbroken: rl.Sweep, tmp_path, monkeypatch
) -> None:
    """A machine on which a pass of more than so many tokens does not fit."""
    limit = 45
    shared_module = sys.modules["rolelens.forward.shared"]
    plain = shared_module.resume

    def resume(model, start, *arguments, **options):
        if start.shape[0] * start.shape[1] > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(model, start, *arguments, **options)

    monkeypatch.setattr(shared_module, "resume", resume)
    halved = rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "s.db", **OPTIONS)
    np.testing.assert_allclose(halved.records, unbroken.records, atol=1e-3, rtol=0)
    assert status(tmp_path / "s.db").notes["budget"] <= 64
    limit = 0
    with pytest.raises(rl.InputError, match="one prompt does not fit into memory alone"):
        rl.sweep(llama, vectors, QUESTIONS, **OPTIONS)
    llama.token_budget = None  # what did not fit is forgotten


def test_out_of_memory_while_answers_are_generated(
    llama: rl.Lens, vectors: rl.Directions, tmp_path, monkeypatch
) -> None:
    options: dict[str, Any] = {"layers": [2], "positions": [-1], "alphas": [1.0], "verifier": odd}
    call = lambda: rl.sweep(  # noqa: E731
        llama, vectors, PROBLEMS, store=tmp_path / "s.db", max_new_tokens=3, **options
    )
    monkeypatch.setattr(forward.memory, "GENERATED_SHARE", 4)
    plain, most = tasks.generate, []

    def generate(lens, prepared, rows, hooks):
        most.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(lens, prepared, rows, hooks)

    monkeypatch.setattr(tasks, "generate", generate)
    texts = call().records
    assert most[0] > 3
    steered = rl.add(vectors.direction("r1", 2, -1), 1.0)
    assert texts[1, :, 0].tolist() == llama.generate(
        [PROBLEMS.prompt(p) for p in PROBLEMS], hooks=steered, max_new_tokens=3
    )
    llama.token_budget = None


def ends_as_unbroken(run: Callable[[Path], Any], folder: Path, kills: int, seed: int = 0) -> None:
    """Kill a run at random moments, and compare its store with that of an unbroken one."""
    plain, log = engine.Engine.run, folder / "log"

    def logged(self, piece):
        with log.open("a") as file:
            file.write(".")
        return plain(self, piece)

    rng, killed = random.Random(seed), 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine.Engine, "run", logged)
        started = time.perf_counter()
        run(folder / "unbroken.db")
        whole = time.perf_counter() - started
        log.unlink()
        for _ in range(kills):
            if pid := os.fork():
                time.sleep(rng.uniform(0, 0.25 * whole))
                os.kill(pid, signal.SIGKILL)
                killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            else:
                try:
                    run(folder / "killed.db")
                finally:
                    os._exit(0)
        run(folder / "killed.db")
    contents = []
    for name in ("unbroken.db", "killed.db"):
        with closing(read_only(folder / name)) as connection:
            tables = ("cells", "items", "directions", "scores")
            contents.append(
                [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
            )
            ((pieces,),) = connection.execute("SELECT count(*) FROM pieces").fetchall()
    assert contents[0] == contents[1]
    # Every piece was scored once, but for those that a kill cut short.
    assert pieces <= len(log.read_text()) <= pieces + killed
    assert killed >= 5


@pytest.mark.usefixtures("unchecked")
def test_a_run_killed_at_20_random_moments_ends_bit_identical(
    llama: rl.Lens, vectors: rl.Directions, unbroken: rl.Sweep, tmp_path: Path
) -> None:
    ends_as_unbroken(
        lambda file: rl.sweep(llama, vectors, QUESTIONS, store=file, **OPTIONS), tmp_path, 20
    )
    _, records, _ = read_store(tmp_path / "killed.db")
    assert np.array_equal(records[1:], unbroken.records)


@pytest.mark.usefixtures("unchecked")
def test_rollouts_that_are_killed_give_the_same_texts(
    llama: rl.Lens, vectors: rl.Directions, tmp_path: Path, scored
) -> None:
    steering = rl.add(vectors.direction("r0", 2, -1), 1.0)

    def call(file: Path | None) -> rl.Answers:
        return rl.roll_out(
            llama, PROBLEMS, 2, hooks=steering, store=file, max_new_tokens=5, verifier=odd
        )

    plain = call(None)
    assert len({text for texts in plain.texts for text in texts}) > 8
    ends_as_unbroken(call, tmp_path, 8)
    scored.clear()
    assert call(tmp_path / "killed.db").texts == plain.texts
    assert not scored


@dataclass(frozen=True, repr=False)
class Lengths(rl.Task[rl.Text]):
    """A task of one's own: it scores itself."""

    kind: ClassVar[type] = rl.Text

    def ties(self) -> list[list[object]]:
        return [[item.id] for item in self]

    def score(self, lens: rl.Lens, hooks: Any) -> list[float]:
        texts = lens.generate([item.text for item in self], hooks=hooks, max_new_tokens=2)
        return [float(len(text)) for text in texts]


def same(loaded: rl.Sweep, swept: rl.Sweep) -> None:
    """All that a sweep tells is told by what was loaded."""
    if swept.records.dtype == object:
        assert loaded.records.tolist() == swept.records.tolist()
    else:
        assert np.array_equal(loaded.records, swept.records)
    pd.testing.assert_frame_equal(loaded.table(), swept.table())
    pd.testing.assert_frame_equal(loaded.baseline.table(), swept.baseline.table())
    assert loaded.grid.axes == swept.grid.axes
    assert repr(loaded) == repr(swept)
    assert loaded.prepared.task == swept.prepared.task
    assert loaded.prepared.settings == swept.prepared.settings
    for name in dict.fromkeys(cell.name for cell in swept.grid.live):
        best, known = loaded.best(name), swept.best(name)
        assert best.label == known.label
        assert best.steering == known.steering
        assert str(best.steering) == str(known.steering)
    for cell, known in zip(loaded.cells, swept.cells, strict=True):
        assert cell.steering == known.steering
        assert loaded.find(known.steering) is cell
        if isinstance(swept.baseline, rl.Scores):
            assert torch.equal(loaded.logprobs(cell), swept.logprobs(known))


def test_what_a_store_holds_is_the_sweep(unbroken: rl.Sweep, finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.parent.iterdir()}
    same(rl.load_sweep(finished), unbroken)
    assert {file.name: file.read_bytes() for file in finished.parent.iterdir()} == before
    label = {"name": "r1", "layer": 2, "position": -1, "alpha": 0.5}
    loaded = rl.load_sweep(finished)
    assert torch.equal(loaded.logprobs(**label), unbroken.logprobs(**label))


def test_a_metric_given_afterwards_is_that_of_the_sweep(
    llama: rl.Lens, vectors: rl.Directions, store: Path, scored
) -> None:
    swept = rl.sweep(llama, vectors, QUESTIONS, store=store, metric=gap, **OPTIONS)
    assert not scored  # nor is anything scored again for another metric
    assert swept.table().columns[4] == "gap"
    same(rl.load_sweep(store, metric=gap), swept)


@pytest.mark.parametrize("change", ["add", "ablate"])
def test_letters_of_some_tokens_come_back(
    llama: rl.Lens, vectors: rl.Directions, change: str, tmp_path
) -> None:
    file, options = tmp_path / "s.db", {"alphas": [0.5], "tokens": "post-instruction"}
    options |= {"layers": [2], "method": "letter", "change": change, "system": "Be kind."}
    swept = rl.sweep(llama, vectors, QUESTIONS, store=file, **options)
    same(rl.load_sweep(file), swept)


def test_a_list_of_steerings_comes_back(llama: rl.Lens, vectors: rl.Directions, tmp_path) -> None:
    d, e = vectors.direction("r0", 1, -1), vectors.direction("r1", 2, -2)
    several = rl.add(d, 0.5, layers=[1, 2, 3], tokens="prompt") + rl.ablate(e, llama, share=0.5)
    what = [rl.add(d, 1.0), several, rl.Steering(), rl.replace(e, tokens="last")]
    shown = rl.Question("shown", "So?", ("yes", "no"), 1, "d", shots=(QUESTIONS[0],))
    asked = [shown, *QUESTIONS[2:]]
    for number, steerings in enumerate(
        (what, dict(zip("abcd", what, strict=True)), [rl.add(d, 1.0), rl.add(d, 2.0)])
    ):
        file = tmp_path / f"{number}.db"
        swept = rl.sweep(llama, steerings, asked, method="cloze", store=file)
        same(rl.load_sweep(file), swept)
    mixed = rl.load_sweep(tmp_path / "1.db").cells[1].steering
    assert mixed == several
    # What comes back does what was done.
    scores = rl.evaluate(llama, asked, mixed, "cloze")
    logprobs = rl.load_sweep(tmp_path / "1.db").logprobs(mixed)
    torch.testing.assert_close(scores.logprobs, logprobs, atol=1e-3, rtol=0)


def test_problems_come_back(llama: rl.Lens, vectors: rl.Directions, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(forward.memory, "GENERATED_SHARE", 2)  # the unsteered model beside cells
    shown = rl.Problem("s", "Two?", "2", "It is 2.")
    task = tasks.Problems("own", PROBLEMS.items[:3], "Say: {question}", (shown,))
    options = {"layers": [0, 2], "positions": [-1], "alphas": [1.0], "max_new_tokens": 2}
    dead = torch.zeros_like(vectors.directions)
    dead[:, 1:] = vectors.directions[:, 1:]  # as at layer 0 of most models
    zeroed = rl.Directions(dead, vectors.names, vectors.layers, vectors.positions, torch.ones(4, 2))
    for number, more in enumerate(({}, {"n": 2, "temperature": 1.0, "seed": 3, "system": "Hm."})):
        file = tmp_path / f"{number}.db"
        swept = rl.sweep(llama, zeroed, task, store=file, **options, **more)
        assert (swept.table()["zero"] == (swept.table()["layer"] == 0)).all()
        for cell in swept.cells:
            if cell.is_zero:
                assert swept.cell(cell).texts == swept.baseline.texts
        same(rl.load_sweep(file), swept)
    length = rl.sweep(llama, zeroed, task, store=tmp_path / "0.db", metric=len_of, **options)
    same(rl.load_sweep(tmp_path / "0.db", metric=len_of), length)


def len_of(problem: rl.Problem, text: str) -> float:
    return float(len(text))


def test_answers_are_checked_as_they_were(llama: rl.Lens, vectors, tmp_path) -> None:
    file, options = tmp_path / "s.db", {"layers": [2], "positions": [-1], "max_new_tokens": 2}
    options["alphas"] = [1.0]
    swept = rl.sweep(llama, vectors, PROBLEMS, store=file, verifier=odd, **options)
    with pytest.raises(rl.InputError, match="answers were checked by 'odd'; pass verifier="):
        rl.load_sweep(file)
    same(rl.load_sweep(file, verifier=odd), swept)


def test_texts_come_back(llama: rl.Lens, vectors: rl.Directions, tmp_path) -> None:
    swept = rl.sweep(llama, vectors, TEXTS, layers=[2], store=tmp_path / "s.db")
    same(rl.load_sweep(tmp_path / "s.db"), swept)


def test_a_text_of_many_windows_is_scored_once(llama: rl.Lens, vectors, monkeypatch) -> None:
    done: list[tuple[str, int]] = []
    plain = engine.Engine.run

    def run(self, piece):
        done.extend((str(cell), n) for cell in piece.cells for n in self.groups[piece.group])
        return plain(self, piece)

    monkeypatch.setattr(engine.Engine, "run", run)
    words = " ".join(tiny.PROMPTS * 40)
    task = tasks.Texts("texts", tuple(rl.Text(f"t{n}", f"{n} {words}") for n in range(3)))
    swept = rl.sweep(llama, vectors, task, layers=[2], positions=[-1], alphas=[3.0])
    assert len(swept.prepared.tokens.ids) > 3 * len(task)
    assert len(done) == len(set(done)) == len(task) * (1 + len(swept.cells))


@hypothesis.given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), limit=st.integers(1, 100)
)
def test_texts_are_packed_in_their_order_within_the_limit(lengths: list[int], limit: int) -> None:
    owners = [n // 2 for n in range(len(lengths))]
    packed = engine._packed(owners, lengths, limit)
    assert [item for items in packed for item in items] == sorted(set(owners))
    for items in packed:
        whole = sum(size for n, size in zip(owners, lengths, strict=True) if n in items)
        assert whole <= limit or len(items) == 1


def test_a_run_that_is_cut_otherwise_is_finished_all_the_same(
    llama: rl.Lens, vectors, unbroken: rl.Sweep, tmp_path, monkeypatch
) -> None:
    def call() -> rl.Sweep:
        return rl.sweep(llama, vectors, QUESTIONS, store=tmp_path / "s.db", **OPTIONS)

    stopped_after(4, monkeypatch, call)
    begun = status(tmp_path / "s.db")
    assert begun.done < begun.pieces
    monkeypatch.setattr(engine, "PIECE_BATCHES", 30)
    assert np.allclose(call().records, unbroken.records, atol=1e-4)
    state = status(tmp_path / "s.db")
    assert 4 < state.done == state.pieces < begun.pieces


def test_a_task_of_ones_own_goes_on_and_is_not_made_again(
    llama: rl.Lens, vectors: rl.Directions, tmp_path, monkeypatch, scored
) -> None:
    task = Lengths("lengths", TEXTS.items[:2])

    def call() -> rl.Sweep:
        return rl.sweep(llama, vectors, task, layers=[2], alphas=[1.0], store=tmp_path / "s.db")

    with pytest.warns(UserWarning, match="'lengths' scores itself"):
        stopped_after(2, monkeypatch, call)
    scored.clear()
    with pytest.warns(UserWarning, match="'lengths' scores itself"):
        swept = call()
    assert len(scored) == 3
    assert math.isfinite(swept.table()["score"].sum())
    with pytest.raises(rl.InputError, match="is of a task 'Lengths', which rolelens cannot make"):
        rl.load_sweep(tmp_path / "s.db")


STRONG = OPTIONS | {"alphas": (1e3, -1e3)}


def too_strong(vectors: rl.Directions) -> rl.Directions:
    """One name's direction of layer 2 is so long that these alphas lead out of float32."""
    directions = vectors.directions.clone()
    directions[1, list(vectors.layers).index(2)] *= 1e37
    return dataclasses.replace(vectors, directions=directions)


def test_a_cell_that_is_nan_fails_alone(
    llama: rl.Lens, vectors: rl.Directions, tmp_path, scored
) -> None:
    """The others are scored, all is kept, and a run that goes on does not try it again."""
    strong, file = too_strong(vectors), tmp_path / "s.db"
    known = rl.sweep(llama, vectors, QUESTIONS, **STRONG).table()
    call = lambda **more: rl.sweep(llama, strong, QUESTIONS, **STRONG, **more)  # noqa: E731
    with pytest.warns(UserWarning, match=r"2 of 12 cells failed, such as .*: its scores are NaN; "):
        swept = call(store=file)
    scored.clear()
    with pytest.warns(UserWarning, match="2 of 12 cells failed"):
        again = call(store=file)
    assert not scored
    for sweep in (swept, again, rl.load_sweep(file)):
        assert {(c.name, c.layer) for c in sweep.failed} == {(vectors.names[1], 2)}
        table = sweep.table()
        lost = table["failed"].str.startswith("its scores are NaN; leave out this strength")
        assert lost.sum() == 2
        assert table["margin"].isna().tolist() == lost.tolist()
        np.testing.assert_allclose(table["margin"][~lost], known["margin"][~lost], atol=1e-3)
        assert sweep.best(vectors.names[1], "margin").layer != 2
        with pytest.raises(rl.InputError, match="could not be scored: its scores are NaN; leave"):
            sweep.cell(next(iter(sweep.failed)))
    rl.plots.heatmap(swept, vectors.names[1])


def test_a_search_goes_on_without_cells_that_are_nan(
    llama: rl.Lens, vectors: rl.Directions, tmp_path, monkeypatch
) -> None:
    strong, file = too_strong(vectors), tmp_path / "s.db"
    many = STRONG | {"layers": [1, 2, 3]}
    with pytest.warns(UserWarning, match="cells failed"):
        whole = rl.search(llama, strong, QUESTIONS, **many)
    assert (whole.table()["failed"] != "").sum() >= 1
    assert whole.best(vectors.names[1]).layer != 2
    stopped_after(3, monkeypatch, lambda: rl.search(llama, strong, QUESTIONS, store=file, **many))
    with pytest.warns(UserWarning, match="cells failed"):
        resumed = rl.search(llama, strong, QUESTIONS, store=file, **many)
    pd.testing.assert_frame_equal(resumed.table(), whole.table())


@pytest.mark.filterwarnings("ignore:.*cannot be resumed")
def test_an_unsteered_model_that_is_nan_is_refused(vectors: rl.Directions) -> None:
    lens = tiny_lens("Llama")
    next(w for name, w in lens.model.named_parameters() if "down_proj" in name).data *= np.nan
    with pytest.raises(rl.InputError, match="scores of the unsteered model are NaN; load the mo"):
        rl.sweep(lens, vectors, QUESTIONS, **OPTIONS)


def test_a_piece_that_the_disk_spoilt_is_scored_again_by_name(
    llama: rl.Lens, vectors: rl.Directions, unbroken: rl.Sweep, store: Path, scored
) -> None:
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("UPDATE scores SET logprob_0 = -0.5 WHERE cell = 9 AND item = 1")
        connection.execute("UPDATE pieces SET seconds = 9e9 WHERE piece = 1")
    with pytest.raises(rl.InputError, match=r"damaged: what it holds of piece 1, piece \d+ is not"):
        rl.load_sweep(store)
    with pytest.raises(rl.InputError, match=r"is damaged \(piece 1 is not what was saved\); rest"):
        status(store)
    scored.clear()
    with pytest.warns(UserWarning, match=r"stored of piece 1, piece \d+ is not what was saved, so"):
        again = rl.sweep(llama, vectors, QUESTIONS, store=store, **OPTIONS)
    assert len(scored) == 2
    assert np.array_equal(again.records, unbroken.records)
    assert np.array_equal(rl.load_sweep(store).records, unbroken.records)
    assert status(store).done == status(store).pieces


def test_what_never_changes_is_compared_with_its_hash(store: Path, llama, vectors) -> None:
    with closing(sqlite3.connect(store)) as connection, connection:
        ((sha, blob),) = connection.execute("SELECT * FROM directions LIMIT 1").fetchall()
        spoilt = bytes([blob[0] ^ 1]) + blob[1:]
        connection.execute("UPDATE directions SET vector = ? WHERE sha = ?", (spoilt, sha))
    message = r"is damaged \(its cells, items or directions are not those that were saved\)"
    for use in (rl.load_sweep, status):
        with pytest.raises(rl.InputError, match=message):
            use(store)
    with pytest.raises(rl.InputError, match=message):
        rl.sweep(llama, vectors, QUESTIONS, store=store, **OPTIONS)


def test_predictions_that_the_disk_spoilt_are_made_again(
    llama: rl.Lens, vectors: rl.Directions, tmp_path
) -> None:
    file, many = tmp_path / "s.db", {**OPTIONS, "layers": [1, 2, 3], "positions": [-2, -1]}
    fresh = rl.search(llama, vectors, EIGHT, store=file, **many)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE predictions SET predicted = zeroblob(length(predicted))")
    with pytest.warns(UserWarning, match="stored of the predictions of a screen is not what was"):
        again = rl.search(llama, vectors, EIGHT, store=file, **many)
    pd.testing.assert_frame_equal(again.table(), fresh.table())
