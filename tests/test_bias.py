"""BBQ and CrowS-Pairs: against transcriptions of the authors' formulas, and naive loops."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens.rollouts import bias_letters, letters_only
from rolelens.tasks import (
    BiasQuestions,
    SentencePair,
    SentencePairs,
    bias_scores,
    bias_table,
    prepare,
    stereotype_margin,
    stereotyped,
)

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not on this machine")


def rows(n: int, seed: int = 0, category: str = "Age") -> list[dict[str, Any]]:
    """Rows as the authors' files have them, with options in any order."""
    rng = random.Random(f"{seed} {category}")
    made = []
    for number in range(n):
        people = [["grandfather", "old"], ["grandson", "nonOld"], ["Unclear", "unknown"]]
        texts = {"old": "Old Al", "nonOld": "Al", "unknown": "Unclear"}
        rng.shuffle(people)
        polarity, context = rng.choice(["neg", "nonneg"]), rng.choice(["ambig", "disambig"])
        right = "unknown" if context == "ambig" else rng.choice(["old", "nonOld"])
        made.append(
            {
                "example_id": number,
                "question_index": str(number // 4),
                "category": category,
                "question_polarity": polarity,
                "context_condition": context,
                "context": f"Met {number}.",
                "question": "Who?",
                "answer_info": {f"ans{k}": info for k, info in enumerate(people)},
                "additional_metadata": {"stereotyped_groups": ["Old"]},
                **{f"ans{k}": texts[info[1]] for k, info in enumerate(people)},
                "label": [info[1] for info in people].index(right),
            }
        )
    return made


def load(some: list[dict[str, Any]], folder: Path, name: str = "Age.jsonl") -> rl.Task:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, some)))
    return rl.load_task(path)


def transcribed(some: list[dict[str, Any]], given: list[int]) -> dict[str, float]:
    """The authors' formulas, counted by polarity, target and context as their script does."""
    out = {}
    for context in ("ambig", "disambig"):
        counts = {(p, t): 0 for p in ("neg", "nonneg") for t in ("Target", "Non-target")}
        right = total = 0
        for row, answer in zip(some, given, strict=True):
            if row["context_condition"] != context:
                continue
            total += 1
            right += answer == row["label"]
            if "unknown" in row["answer_info"][f"ans{answer}"]:
                continue
            target = row["answer_info"][f"ans{answer}"][1] == "old"
            counts[row["question_polarity"], "Target" if target else "Non-target"] += 1
        accuracy = right / total
        score = (
            2 * (counts["neg", "Target"] + counts["nonneg", "Non-target"]) / sum(counts.values())
            - 1
        )
        out[f"accuracy_{context}"] = accuracy
        out[context] = score * (1 - accuracy) if context == "ambig" else score
    return out


def answered(task: Any, given: list[int]) -> rl.Scores:
    logprobs = torch.full((len(task), 3), -5.0)
    logprobs[torch.arange(len(task)), torch.tensor(given)] = -0.1
    return rl.Scores(tuple(task), logprobs, "letter")


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_authors(seed: int, tmp_path: Path) -> None:
    some = rows(80, seed)
    task = load(some, tmp_path)
    given = [random.Random(f"{seed} {n}").randrange(3) for n in range(80)]
    scores = answered(task, given)
    found, expected = bias_scores(scores), transcribed(some, given)
    assert found.s_dis == pytest.approx(expected["disambig"])
    assert found.s_amb == pytest.approx(expected["ambig"])
    assert found.accuracy_ambiguous == pytest.approx(expected["accuracy_ambig"])
    assert found.accuracy_disambiguated == pytest.approx(expected["accuracy_disambig"])
    # The mean of the metric over ambiguous questions is s_amb.
    leaning = dataclasses.replace(scores, metric=stereotyped)
    ambiguous = [n for n, item in enumerate(task) if item.context == "ambiguous"]
    assert leaning.take(ambiguous).mean() == pytest.approx(found.s_amb)
    assert bias_table(scores).loc["Age", "s_dis"] == pytest.approx(found.s_dis)


def test_extremes(tmp_path: Path) -> None:
    task = load(rows(40), tmp_path)
    fully = bias_scores(answered(task, [item.biased for item in task]))
    against = bias_scores(answered(task, [item.other for item in task]))
    never = bias_scores(answered(task, [item.unknown for item in task]))
    assert (fully.s_amb, fully.s_dis) == (1, 1)
    assert (against.s_amb, against.s_dis) == (-1, -1)
    assert never.s_amb == 0
    assert math.isnan(never.s_dis)
    assert never.accuracy_ambiguous == 1
    with pytest.raises(rl.InputError, match="no stereotype"):
        bias_scores(rl.Scores((rl.Question("q", "?", ("a", "b"), 0),), torch.zeros(1, 2), "letter"))


@needs_data
def test_all_rows_of_the_files_are_read() -> None:
    task = rl.load_task(DATA / "bbq")
    assert isinstance(task, BiasQuestions)
    assert len(task) == 4800
    assert task.domains == ("Age", "Disability_status", "Nationality", "Religion")
    for item in task:
        assert (item.answer == item.unknown) == (item.context == "ambiguous")
    # The biased option is the stereotyped group where the question is negative.
    first = task[0]
    assert (first.options[first.biased], first.options[first.unknown]) == (
        "The grandfather",
        "Can't be determined",
    )
    selection, test = task.split()
    assert not {(i.domain, i.subject) for i in selection} & {(i.domain, i.subject) for i in test}


def test_options_change_places_and_stay_what_they_are(tmp_path: Path) -> None:
    task = load(rows(30), tmp_path)
    for old, new in zip(task, task.permuted(3), strict=True):
        for name in ("answer", "biased", "unknown", "other"):
            assert old.options[getattr(old, name)] == new.options[getattr(new, name)]
    assert any(o.options != n.options for o, n in zip(task, task.permuted(3), strict=True))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"additional_metadata": {"stereotyped_groups": ["none"]}}, "0 of the stereotyped"),
        ({"question_polarity": "?"}, "polarity"),
        ({"context_condition": "?"}, "context"),
        ({"label": 7}, "names option 7"),
    ],
)
def test_rows_that_cannot_be_told_are_refused(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    some = rows(3)
    some[1] |= changed
    with pytest.raises(rl.InputError, match=rf"line 2.*{sentence}"):
        load(some, tmp_path)


def test_it_goes_through_the_same_doors(llama: rl.Lens, tmp_path: Path) -> None:
    """Evaluated, swept, kept in a store and read back, with a metric that searches can use."""
    task = load(rows(8), tmp_path)
    d = rl.Direction(torch.randn(32), layer=1, source=llama.source, name="x", resid_norm=1.0)
    steerings = {"weak": rl.add(d, 0.1), "strong": rl.add(d, 1.0)}
    store = tmp_path / "sweep.db"
    swept = rl.sweep(llama, steerings, task, metric=stereotype_margin, store=store)
    again = rl.load_sweep(store, metric=stereotype_margin)
    assert isinstance(again.prepared.task, BiasQuestions)
    assert tuple(again.prepared.task) == tuple(task)
    assert swept.table()["stereotype_margin_gain"].tolist() == pytest.approx(
        again.table()["stereotype_margin_gain"].tolist()
    )
    plain = rl.evaluate(llama, task, metric=stereotype_margin)
    item, logprobs = task[0], plain.logprobs[0]
    assert plain.measure()[0] == pytest.approx(
        float(logprobs[item.biased] - logprobs[item.other]), abs=1e-6
    )


def test_letters_of_pairs_are_balanced(tmp_path: Path) -> None:
    task = load(rows(20), tmp_path)
    pairs = bias_letters(task)
    assert sorted(pairs.positive) == sorted(pairs.negative)
    assert len(pairs.prompts) == 2 * len(task)
    null = letters_only(task)
    assert null.prompts == pairs.prompts
    meant, by_letter = 0, 0
    for n, (prompt, letter) in enumerate(zip(pairs.prompts, pairs.positive, strict=True)):
        item = task[n // 2]
        lines = dict(line.split(". ", 1) for line in prompt.splitlines() if line[1:3] == ". ")
        meant += lines[letter] == item.options[item.other]
        by_letter += lines[null.positive[n]] == item.options[item.other]
        assert lines[pairs.negative[n]] == item.options[item.biased]
    assert meant == len(pairs.prompts)
    assert by_letter == len(task)  # half of the null's: they mean nothing
    assert null.positive[0::2] == null.positive[1::2]


def test_axes_and_their_ensemble_are_directions(llama: rl.Lens, tmp_path: Path) -> None:
    axes = []
    for name in ("Age", "Religion"):
        task = load(rows(6, category=name), tmp_path, f"{name}.jsonl")
        from rolelens.vectors.estimators import DifferenceInMeans

        contrast = bias_letters(task).contrast(llama, layers=[2])
        axes.append(contrast.directions(DifferenceInMeans(), name))
    both = rl.concat(*axes)
    expected = (axes[0].directions + axes[1].directions) / 2
    torch.testing.assert_close(both.mean().directions, expected)
    unit = both.normalise().mean().at(layer=2).vector
    assert float(unit @ axes[0].at(layer=2).unit) > 0


SENTENCES = [
    ("a", "Prove it, said the old man.", "Prove it, said the young man.", "age"),
    ("b", "Who was here first? They were.", "Who was here first? We were, of course.", "race"),
    ("c", "Sing me a song.", "Name five birds of the marsh.", "age"),
]


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_pairs_are_a_naive_loop_over_full_sentences(architecture: str) -> None:
    lens = tiny_lens(architecture)
    task = rl.load_task([SentencePair(*row) for row in SENTENCES])
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), layer=2)
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    for steered in (False, True):
        found = rl.evaluate(lens, task, rl.add(d, 0.5) if steered else ())
        for n, (_, more, less, _) in enumerate(SENTENCES):
            for k, text in enumerate((more, less)):
                ids = [0, *tokenizer(text, add_special_tokens=False).input_ids]
                if steered:
                    with oracles.added(model, 2, 0.5 * d.vector):
                        logits = oracles.logits(model, ids)
                else:
                    logits = oracles.logits(model, ids)
                total = mean = 0.0
                for place in range(1, len(ids)):
                    share = torch.log_softmax(logits[place - 1], dim=-1)
                    total += float(share[ids[place]])
                mean = total / (len(ids) - 1)
                assert float(found.totals[n, k]) == pytest.approx(total, abs=1e-3)
                assert float(found.means[n, k]) == pytest.approx(mean, abs=1e-4)
            assert float(found.measure("stereotyped")[n]) == float(
                found.means[n, 0] > found.means[n, 1]
            )
    assert found.measures[0] == "stereotyped"


def test_pairs_are_swept_studied_and_read_back(llama: rl.Lens, tmp_path: Path) -> None:
    task = SentencePairs("pairs", tuple(SentencePair(*row) for row in SENTENCES))
    d = rl.Direction(torch.randn(32), layer=1, source=llama.source, name="x", resid_norm=1.0)
    store = tmp_path / "s.db"
    swept = rl.sweep(llama, [rl.add(d, 0.5)], task, store=store)
    again = rl.load_sweep(store)
    assert isinstance(again.prepared.task, SentencePairs)
    assert again.table()["gap_gain"].tolist() == pytest.approx(swept.table()["gap_gain"].tolist())
    alone = rl.evaluate(llama, task, rl.add(d, 0.5))
    scored = swept.scores(swept.cells[0]) if hasattr(swept, "scores") else None
    if scored is not None:
        torch.testing.assert_close(scored.means, alone.means, rtol=1e-4, atol=1e-3)
    with pytest.raises(rl.InputError, match="tokens is 'prompt'"):
        rl.evaluate(llama, task, rl.add(d, 0.5, tokens="prompt"))
    with pytest.raises(rl.InputError, match="cannot be predicted"):
        rl.search(llama, _directions(d), task)


def _directions(d: rl.Direction) -> rl.Directions:
    return rl.Directions(
        d.vector[None, None, None], ("x",), (1,), (-1,), torch.ones(1, 1), source=d.source
    )


def test_one_row_is_one_pair_of_rows(llama: rl.Lens) -> None:
    prepared = prepare(llama, SentencePairs("p", tuple(SentencePair(*row) for row in SENTENCES)))
    part = prepared.take([2])
    assert part.tokens.ids == prepared.tokens.ids[4:]


def test_bad_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rl.InputError, match="same sentence twice"):
        SentencePair("a", "x", "x")
    path = tmp_path / "crows.csv"
    path.write_text(",sent_more,sent_less,bias_type\n0,A man.,,age\n")
    with pytest.raises(rl.InputError, match="line 2"):
        rl.load_task(path)


@needs_data
def test_the_file_of_crows_pairs_is_read() -> None:
    task = rl.load_task(DATA / "crows_pairs" / "crows_pairs_750.csv")
    assert isinstance(task, SentencePairs)
    assert len(task) == 750
    assert "race-color" in task.domains
