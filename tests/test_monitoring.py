import dataclasses

import numpy as np
import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens.monitoring import _threshold

ORDINARY = [f"Tell me about the number {n}." for n in range(40)]


def directions(lens: rl.Lens) -> list[rl.Direction]:
    vectors = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    return [vectors.at(1), vectors.at(3)]


def test_what_is_read_while_generating_is_the_stream_of_the_whole_text(
    lens: rl.Lens, variant: Variant
) -> None:
    chosen = directions(lens)
    watch = rl.monitor(lens, chosen, ORDINARY, false_alarms=0.1, max_new_tokens=3)
    seen = watch.generate(tiny.PROMPTS[:3], max_new_tokens=5)
    assert list(seen.answers) == lens.generate(tiny.PROMPTS[:3], max_new_tokens=5)
    model = tiny.reference(variant.architecture)
    for prompt, text in enumerate(tiny.PROMPTS[:3]):
        ids = oracles.chat_ids(tiny.tokenizer(), text)
        rows = seen.tokens[seen.tokens["prompt"] == prompt]
        written = oracles.greedy(model, ids, len(rows[rows["direction"] == 0]) - 1)
        stream = oracles.hidden(model, [*ids, *written])
        for n, d in enumerate(chosen):
            expected = stream[d.layer, len(ids) - 1 :] @ (d.vector / d.vector.norm())
            found = rows[rows["direction"] == n]["projection"].to_numpy()
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)
            row = seen.table[(seen.table["prompt"] == prompt) & (seen.table["direction"] == n)]
            assert row["at_prompt"].item() == pytest.approx(found[0])
            if len(found) > 1:
                running = [found[1 : k + 1].mean() for k in range(1, len(found))]
                assert row["answer_mean"].item() == pytest.approx(running[-1])
                assert row["answer_peak"].item() == pytest.approx(max(running))


def test_a_stream_is_read_as_it_comes_and_can_be_stopped(lens: rl.Lens) -> None:
    chosen = directions(lens)
    watch = rl.monitor(lens, chosen, ORDINARY, false_alarms=0.1, max_new_tokens=3)
    steering = rl.add(chosen[0], 2.0, tokens="generated")
    pieces = list(watch.stream(tiny.PROMPTS[1], hooks=steering, max_new_tokens=5))
    expected = watch.generate([tiny.PROMPTS[1]], hooks=steering, max_new_tokens=5)
    written = "".join(piece for piece, _ in pieces).strip()
    assert expected.answers[0].startswith(written)  # a character may not have been whole
    last = pieces[-1][1]
    for n in range(len(chosen)):
        rows = expected.tokens[expected.tokens["direction"] == n]["projection"].to_numpy()
        assert last["at_prompt"][n] == pytest.approx(rows[0], abs=1e-4)
        assert np.isclose(rows, last["projection"][n], atol=1e-4).any()
    for _ in watch.stream(tiny.PROMPTS[0], max_new_tokens=5):
        break


def test_thresholds_keep_their_false_alarm_rate() -> None:
    rng = np.random.default_rng(0)
    for n, share in ((20, 0.05), (50, 0.1), (41, 0.2)):
        values = rng.normal(size=n)
        limit = _threshold(values, share)
        assert (values > limit).mean() <= share
        below = np.sort(values)[np.sort(values) < limit]
        assert (values > below[-1]).mean() > share  # the least such threshold


def test_false_alarms_are_counted_on_prompts_that_made_no_threshold(llama: rl.Lens) -> None:
    (d, _) = directions(llama)
    answers = [f"It is {n} more than none." for n in range(40)]
    watch = rl.monitor(llama, d, ORDINARY, answers=answers, false_alarms=0.1)
    row = watch.thresholds.iloc[0]
    again = watch.read(ORDINARY, answers).table
    for what, alarm in (("prompt", "prompt_alarm"), ("answer", "answer_alarm")):
        assert again[alarm][::2].mean() <= 0.1
        assert row[f"{what}_rate"] == pytest.approx(again[alarm][1::2].mean())
        assert row[f"{what}_low"] <= row[f"{what}_rate"] <= row[f"{what}_high"]
    pushed = watch.read(ORDINARY, answers, hooks=rl.add(d, 20.0)).table
    assert pushed["prompt_alarm"].all()
    assert pushed["answer_alarm"].all()
    assert (pushed["alarm_index"] == 0).all()


def test_a_conversation_is_projected_turn_by_turn(lens: rl.Lens, variant: Variant) -> None:
    first, second = directions(lens)
    said = ["Hi there.", "It is a river.", "And then?", "It finds the sea.", "Why?"]
    talk = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    table = rl.drift(lens, talk, [first, second])
    assert table["turn"].tolist() == [1, 2, 3] * 2
    assert np.isnan(table["answer_mean"][2])
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    for turn, upto in ((1, 1), (2, 3), (3, 5)):
        ids = tokenizer.apply_chat_template(
            talk[:upto], add_generation_prompt=True, return_dict=False
        )
        expected = oracles.hidden(model, ids)[3, -1] @ (second.vector / second.vector.norm())
        row = table[(table["turn"] == turn) & (table["layer"] == 3)]
        assert row["at_prompt"].item() == pytest.approx(float(expected), abs=1e-4)
    figure = rl.plots.drift(table)
    assert len(figure.data) == 2


def test_what_cannot_be_watched_is_refused(llama: rl.Lens, unchecked: object) -> None:
    (d, _) = directions(llama)
    zero = dataclasses.replace(d, vector=torch.zeros(32))
    for sentence, make in (
        (
            "40 ordinary prompts cannot show a false-alarm rate of 0.01",
            lambda: _watch(llama, d, 0.01),
        ),
        ("false_alarms is 0; it has to lie", lambda: _watch(llama, d, 0)),
        ("is zero", lambda: _watch(llama, zero, 0.1)),
        ("pass a list of messages", lambda: rl.drift(llama, [], d)),
        ("a str cannot be projected onto", lambda: rl.drift(llama, [{"role": "user"}], ["d"])),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            make()


def _watch(lens: rl.Lens, d: rl.Direction, rate: float) -> None:
    rl.monitor(lens, d, ORDINARY, false_alarms=rate, max_new_tokens=1)
