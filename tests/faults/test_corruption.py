"""Files that a disk or a copy has spoilt are refused in one sentence, or read right."""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import rolelens as rl
import tiny
from conftest import Variant, shared
from faults.conftest import Tally, sentence
from faults.damage import damaged
from rolelens.sweeps import Store, status
from rolelens.sweeps.store import read_store

QUESTIONS = [
    rl.Question(
        f"q{n}", f"Which of these is number {n}?", ("one", "two", "three")[: 2 + n % 2], n % 2
    )
    for n in range(6)
]
PROBLEMS = [rl.Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(3)]


@pytest.fixture(scope="module")
def vectors() -> rl.Directions:
    roles = {"a": tiny.PROMPTS, "b": tiny.OTHERS + tiny.PROMPTS[:3]}
    return rl.role_vectors(shared(Variant("Llama")), roles, base=tiny.OTHERS)


def outcome(read: Callable[[], Any], right: Callable[[Any], bool]) -> str:
    """What became of it: the right content, or one sentence."""
    try:
        content = read()
    except Exception as error:
        sentence(error)
        return "refused"
    assert right(content), "wrong numbers"
    return "read right"


@pytest.fixture(scope="module", params=["sweep", "texts", "search"])
def store(request, vectors, tmp_path_factory) -> Path:
    lens = shared(Variant("Llama"))
    path = tmp_path_factory.mktemp("store") / f"{request.param}.db"
    options = {"layers": [1, 2, 3], "positions": [-2, -1], "store": path}
    if request.param == "sweep":
        rl.sweep(lens, vectors, QUESTIONS, **options)
    elif request.param == "texts":
        rl.sweep(lens, vectors, PROBLEMS, **options, max_new_tokens=3)
    else:
        rl.search(lens, vectors, QUESTIONS, **options)
    return path


def same(one: Any, other: Any) -> bool:
    """Whether two records are the same bits."""
    if one.dtype == object:
        return one.tolist() == other.tolist()
    return one.astype(np.float32).tobytes() == other.astype(np.float32).tobytes()


def same_sweep(one: rl.Sweep, other: rl.Sweep) -> bool:
    def told(sweep: rl.Sweep) -> list[Any]:
        cells = [(cell.label, cell.steering.to_dict()) for cell in sweep.cells]
        return json.loads(json.dumps([cells, repr(sweep.prepared.task.items)]))

    def tensors(sweep: rl.Sweep) -> list[bytes]:
        return [s.direction.vector.numpy().tobytes() for c in sweep.cells for s in c.steering.steps]

    pd.testing.assert_frame_equal(one.table(), other.table())
    return (
        same(one.records, other.records)
        and told(one) == told(other)
        and tensors(one) == tensors(other)
    )


@pytest.mark.fault("a store that is spoilt, then read")
def test_a_spoilt_store_is_never_read_wrong(store, tmp_path, times, tally: Tally) -> None:
    content = store.read_bytes()
    path = tmp_path / "spoilt.db"
    _, records, _ = read_store(store)
    facts = {**status(store).facts(), "path": str(path)}
    loaded = rl.load_sweep(store) if store.stem != "search" else None
    chance = random.Random(store.stem)
    for _ in range(times(60, 350)):
        kind, spoilt = damaged(content, chance)
        path.write_bytes(spoilt)
        try:
            tally[outcome(lambda: read_store(path), lambda read: same(read[1], records))] += 1
            outcome(lambda: status(path), lambda state: state.facts() == facts)
            if loaded is not None:
                outcome(lambda: rl.load_sweep(path), lambda read: same_sweep(read, loaded))
        except BaseException as error:
            tally[f"WRONG {kind}: {type(error).__name__} {str(error)[:150]}"] += 1
    assert not [name for name in tally if name.startswith("WRONG")]


@pytest.mark.fault("a store that is spoilt, then gone on in")
def test_a_spoilt_store_is_scored_again_or_refused(store, tmp_path, times, tally: Tally) -> None:
    content = store.read_bytes()
    path = tmp_path / "spoilt.db"
    original, records, _ = read_store(store)
    chance = random.Random(store.stem)
    for _ in range(times(60, 350)):
        kind, spoilt = damaged(content, chance)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        path.write_bytes(spoilt)

        def read() -> Any:
            with Store.open(path, original) as opened:
                return opened.load()

        def right(read: Any) -> bool:
            known = read != None if read.dtype == object else ~np.isnan(read)  # noqa: E711
            return same(read[known], records[known])

        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                became = outcome(read, right)
            again = [str(warning.message) for warning in told]
            assert all(
                text.endswith("is not what was saved, so it is computed again.") for text in again
            )
            tally["scored again in part, by name" if again else became] += 1
        except BaseException as error:
            tally[f"WRONG {kind}: {type(error).__name__} {str(error)[:150]}"] += 1
    assert not [name for name in tally if name.startswith("WRONG")]


@pytest.mark.fault("a file of vectors or of a steering that is spoilt")
@pytest.mark.parametrize("kind", ["directions", "steering"])
def test_a_spoilt_file_of_vectors(kind, vectors, llama, tmp_path, times, tally: Tally) -> None:
    steering = rl.add(vectors["a"].at(2, -1), 3.0) + rl.ablate(vectors["b"].at(1, -1), llama)
    path = tmp_path / "spoilt.safetensors"
    whole = (vectors if kind == "directions" else steering).save(tmp_path / "whole.safetensors")
    load = rl.Directions.load if kind == "directions" else rl.Steering.load

    def right(read: Any) -> bool:
        if kind == "steering":
            pairs = zip(read.steps, steering.steps, strict=True)
            bits = all(torch.equal(a.direction.vector, b.direction.vector) for a, b in pairs)
            return bits and read.to_dict() == steering.to_dict()
        return torch.equal(read.directions, vectors.directions) and read.sha == vectors.sha

    content = whole.read_bytes()
    chance = random.Random(kind)
    for _ in range(times(150, 1000)):
        how, spoilt = damaged(content, chance)
        path.write_bytes(spoilt)
        try:
            tally[outcome(lambda: load(path), right)] += 1
        except BaseException as error:
            tally[f"WRONG {how}: {type(error).__name__} {str(error)[:150]}"] += 1
    assert not [name for name in tally if name.startswith("WRONG")]
