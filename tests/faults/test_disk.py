"""A disk that is full: a small file system in memory, which only root may mount."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rolelens as rl
import tiny
from conftest import Variant, shared
from faults.conftest import Tally, sentence
from rolelens.report import Report
from rolelens.sweeps.store import read_store

SIZE = 16 << 20
QUESTIONS = [
    rl.Question(f"q{n}", f"Which of these is number {n}?", ("one", "two"), n % 2) for n in range(10)
]
GRID = {"layers": [1, 2, 3], "positions": [-2, -1]}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def vectors() -> rl.Directions:
    roles = {"a": tiny.PROMPTS, "b": tiny.OTHERS + tiny.PROMPTS[:3]}
    return rl.role_vectors(shared(Variant("Llama")), roles, base=tiny.OTHERS)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes of the disk, in whole pages."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    ballast.write_bytes(bytes(max(0, free - left)))
    return ballast


def whole(path: Path, elsewhere: Path, unbroken: np.ndarray) -> None:
    """What was stored up to then is right, read from a copy where there is room."""
    for end in ("", "-wal"):
        (elsewhere / f"copy{end}").unlink(missing_ok=True)
        if Path(f"{path}{end}").exists():
            shutil.copy(f"{path}{end}", elsewhere / f"copy{end}")
    _, records, _ = read_store(elsewhere / "copy")
    known = ~np.isnan(records[1:])
    assert np.array_equal(records[1:][known], unbroken[known])


@pytest.mark.fault("a disk that gets full while a sweep writes")
def test_a_full_disk_stops_a_sweep_with_its_store_intact(
    vectors, disk: Path, tmp_path: Path, times, tally: Tally
) -> None:
    lens, chance = shared(Variant("Llama")), random.Random(0)
    unbroken = rl.sweep(lens, vectors, QUESTIONS, **GRID).records
    path = disk / "s.db"
    rl.sweep(lens, vectors, QUESTIONS, store=path, **GRID)
    needed = 3 * path.stat().st_size  # with its write-ahead log
    path.unlink()
    stopped = 0
    for _ in range(times(8, 60)):
        ballast = fill(disk, chance.randrange(0, needed, 4096))
        try:
            rl.sweep(lens, vectors, QUESTIONS, store=path, **GRID)
            tally["enough room"] += 1
        except Exception as error:
            sentence(error)
            stopped += 1
            tally["stopped in one sentence, then gone on"] += 1
            if path.exists():
                whole(path, tmp_path, unbroken)
        ballast.unlink()
        assert (
            rl.sweep(lens, vectors, QUESTIONS, store=path, **GRID).records.tobytes()
            == unbroken.tobytes()
        )
        assert rl.load_sweep(path).records.tobytes() == unbroken.tobytes()
        for file in disk.iterdir():
            file.unlink()
    assert stopped >= 3


@pytest.mark.fault("a disk that gets full while a file is saved")
def test_a_full_disk_leaves_the_old_file_or_none(vectors, disk: Path, times, tally: Tally) -> None:
    chance = random.Random(0)
    report = Report("A report")
    report.table(pd.DataFrame({"a": range(3)}))
    saved: dict[str, Callable[[Path], Any]] = {
        "v.safetensors": vectors.save,
        "s.safetensors": rl.add(vectors["a"].at(2, -1), 1.0).save,
        "report.html": report.save,
    }
    whole = {}
    for name, save in saved.items():
        save(disk / name)
        whole[name] = (disk / name).read_bytes()
        (disk / name).unlink()
    for n in range(times(12, 60)):
        name = chance.choice([*saved])
        old = b"what was there" if n % 2 else None
        if old:
            (disk / name).write_bytes(old)
        ballast = fill(disk, chance.randrange(0, 2 * len(whole[name]), 4096) // 2)
        try:
            saved[name](disk / name)
            assert len((disk / name).read_bytes()) == len(whole[name])
            tally["enough room"] += 1
        except Exception as error:
            sentence(error)
            now = (disk / name).read_bytes() if (disk / name).exists() else None
            assert now == old, "a part of a file was left"
            tally["refused, the old file kept"] += 1
        ballast.unlink()
        left = {file.name for file in disk.iterdir()}
        assert left <= {name}, left
        for file in disk.iterdir():
            file.unlink()
