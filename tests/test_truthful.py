"""TruthfulQA's questions, and MC2."""

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from rolelens.tasks import truthful

ROWS = [
    {
        "question": "What is it like?",
        "mc1_targets": {"Wet.": 1, "Dry.": 0, "Cold, mostly.": 0},
        "mc2_targets": {"Wet.": 1, "Rather wet.": 1, "Dry.": 0, "Cold, mostly.": 0},
    },
    {
        "question": "Who was here?",
        "mc1_targets": {"Nobody.": 1, "A bird.": 0},
        "mc2_targets": {"Nobody.": 1, "A bird.": 0},
    },
]
DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "mc_task.json"
    made.write_text(json.dumps(ROWS))
    return made


@pytest.mark.parametrize("split", ["test", "mc1", "mc2"])
def test_options_and_labels_stay_together(path: Path, split: str) -> None:
    for question, row in zip(rl.load_task(path, split), ROWS, strict=True):
        targets = row["mc2_targets" if split == "mc2" else "mc1_targets"]
        true = {question.options[k] for k in (question.answer, *question.also)}
        assert true == {text for text, label in targets.items() if label}
        assert set(question.options) == set(targets)
        assert (split == "mc2") or not question.also


def test_the_hubs_rows_are_the_same(path: Path) -> None:
    hub = [
        {
            "question": row["question"],
            "mc2_targets": {
                "choices": list(row["mc2_targets"]),
                "labels": list(row["mc2_targets"].values()),
            },
        }
        for row in ROWS
    ]
    assert tuple(truthful.from_rows(hub, "mc2", "hub")) == rl.load_task(path, "mc2").items


def test_all_true_options_count(llama: rl.Lens, path: Path) -> None:
    task = rl.load_task(path, "mc2").permuted(seed=1)
    scores = rl.evaluate(llama, task, method="cloze")
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    for n, row in enumerate(ROWS):
        start = oracles.chat_ids(tokenizer, row["question"])
        shares = {
            text: math.exp(
                float(oracles.option_logprob(model, start, tokenizer(text).input_ids).sum())
            )
            for text in row["mc2_targets"]
        }
        true = sum(shares[text] for text, label in row["mc2_targets"].items() if label)
        assert float(scores.mc2[n]) == pytest.approx(true / sum(shares.values()), rel=1e-3)
        best = {label: max(s for t, s in shares.items() if row["mc2_targets"][t] == label)
                for label in (0, 1)}  # fmt: skip
        assert float(scores.margins[n]) == pytest.approx(math.log(best[1] / best[0]), abs=1e-3)
        assert bool(scores.correct[n]) == (best[1] > best[0])
    assert scores.chance == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert scores.domain("").mc2.tolist() == scores.mc2.tolist()


def test_sweeps_and_stores_know_all_true_options(
    llama: rl.Lens, path: Path, tmp_path: Path
) -> None:
    task = rl.load_task(path, "mc2")
    with pytest.raises(rl.InputError, match="of method 'cloze'"):
        _ = rl.evaluate(llama, task, method="cloze_norm").mc2
    vectors = rl.Directions(torch.randn(1, 1, 1, 32), ("a",), (2,), (-1,), torch.ones(1, 1))
    options = {"layers": [2], "alphas": [1.0], "method": "cloze", "store": tmp_path / "s.db"}
    label = {"name": "a", "layer": 2, "position": -1, "alpha": 1.0}
    swept = rl.sweep(llama, vectors, task, **options).cell(**label)
    hooks = rl.add(vectors.direction("a", 2, -1), 1.0)
    expected = rl.evaluate(llama, task, hooks, "cloze")
    torch.testing.assert_close(swept.mc2, expected.mc2, rtol=1e-3, atol=1e-5)
    assert swept.margin == pytest.approx(expected.margin, abs=1e-3)
    loaded = rl.load_sweep(tmp_path / "s.db").cell(**label)
    assert torch.equal(loaded.mc2, swept.mc2)
    assert torch.equal(loaded.margins, swept.margins)
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        rows = connection.execute("SELECT accuracy, margin FROM summary ORDER BY cell").fetchall()
    assert rows[1] == pytest.approx((swept.accuracy, swept.margin), abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "holds no list"),
        ([{"question": "a", "mc1_targets": None}], "item 1: expected a text under 'question'"),
        ([{"question": "a", "mc2_targets": {"b": 1, "c": 0}}], "labels 0 and 1 under 'mc1_targets"),
        (
            [{"question": "a", "mc1_targets": {"choices": ["b", "b"], "labels": [0, 1]}}],
            "labels 0 and 1",
        ),
        (
            [{"question": "a", "mc1_targets": {"b": 1, "b ": 0}}],
            "item 1: question 'truthfulqa-0000' has 'b ?' as a correct and as a wrong option",
        ),
        ([{"question": "a", "mc1_targets": {"b": 2, "c": 0}}], "labels 0 and 1"),
        ([{"question": "a", "mc1_targets": {"b": [1]}}], "labels 0 and 1"),
        ([{"question": "a", "mc1_targets": {"choices": None, "labels": [1]}}], "labels 0 and 1"),
        ([{"question": "a", "mc1_targets": {"choices": ["b"], "labels": []}}], "labels 0 and 1"),
        ([{"question": "a", "mc1_targets": {"b": 1, "c": 1}}], "has no wrong option"),
        ([{"question": "a", "mc1_targets": {"b": 0, "c": 0}}], "item 1 has no true option"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, rows: object, message: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(rows))
    with pytest.raises(rl.InputError, match=message):
        rl.load_task(bad)


def test_an_option_that_is_true_and_false_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('[{"question": "a", "mc1_targets": {"b": 1, "c": 0, "b": 0}}]')
    with pytest.raises(rl.InputError, match="bad.json has 'b' twice in one object"):
        rl.load_task(bad)


def test_unknown_targets_are_refused(path: Path) -> None:
    with pytest.raises(rl.InputError, match="no targets of TruthfulQA 'mc3'"):
        rl.load_task(path, "mc3")
    with pytest.raises(rl.InputError, match="also names the options"):
        rl.Question("a", "b?", ("c", "d"), 0, also=(0,))


def test_the_real_file_is_read() -> None:
    real = DATA / "truthfulqa" / "mc_task_500.json"
    if not real.exists():
        pytest.skip(f"{real} is not there")
    first = rl.load_task(real)
    assert len(first) == 500
    assert 0.1 < sum(q.answer == 0 for q in first) / 500 < 0.35  # shuffled
    assert any(len(q.also) > 3 for q in rl.load_task(real, "mc2"))
