"""Fusion steering: what is added is what it says, and the oracle is labelled and controlled."""

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from rolelens.tasks import Problem, Problems
from rolelens.updates import fusion_bound, overlap
from rolelens.updates.fusion import _SEARCHES, _shifts, _steering


def problems(n: int = 4) -> Problems:
    items = tuple(Problem(f"p{k}", f"How much is {k} and {k}?", str(2 * k)) for k in range(n))
    return Problems("sums", items, "{question}")


def test_shifts_are_means_over_plain_states(llama: rl.Lens) -> None:
    prompts, golds = ["Prove it.", "Who was here first?"], ["I cannot.", "They were, all of them."]
    found = _shifts(llama, prompts, golds)
    tokens = llama.encode(prompts, golds)
    for n, ids in enumerate(tokens.ids):
        states = oracles.hidden(tiny.reference("Llama"), ids)[1:]
        cut = tokens.prompt_lengths[n]
        expected = states[:, cut:].mean(dim=1) - states[:, :cut].mean(dim=1)
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-4)


def test_segments_have_their_own_strengths(llama: rl.Lens) -> None:
    shifts = torch.randn(3, 32)
    full = _steering(llama, shifts, [0.5])
    assert [(step.layers, step.alpha) for step in full.steps] == [((n,), 0.5) for n in (1, 2, 3)]
    cut = _steering(llama, shifts, [0.1, 0.2, 0.3])
    assert [step.alpha for step in cut.steps] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(("segments", "search"), [(1, "random"), (3, "random"), (3, "tpe")])
def test_the_bound_has_its_control_beside(llama: rl.Lens, segments: int, search: str) -> None:
    if search == "tpe":
        pytest.importorskip("optuna", reason="Optuna is an extra")
    options = {"segments": segments, "search": search, "trials": 2, "max_new_tokens": 5}
    found = fusion_bound(llama, problems(), **options)
    frame = found.frame
    assert frame.groupby("gold").size().to_dict() == {"none": 4, "shuffled": 4, "true": 4}
    assert sorted(set(frame["id"])) == ["p0", "p1", "p2", "p3"]
    for _, row in frame[frame["gold"] != "none"].iterrows():
        assert len(row["strengths"]) == segments
    assert list(found.table().index) == ["none", "true", "shuffled"]
    again = fusion_bound(llama, problems(), **options)
    assert again.frame["text"].tolist() == frame["text"].tolist()
    assert "upper bound" in str(found.card())


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_searches_find_planted_strengths(search: str) -> None:
    """Two problems with a peak each; TPE comes nearer than as many random draws."""
    if search == "tpe":
        pytest.importorskip("optuna", reason="Optuna is an extra")
    peaks, away = (0.2, 0.8), {}
    for how in ("random", search):
        find = _SEARCHES[how](2, 1, 1.0, 0)
        best = [1.0, 1.0]
        for _ in range(40):
            far = [abs(x - peak) for (x,), peak in zip(find.ask(), peaks, strict=True)]
            find.tell([-one for one in far])
            best = [min(pair) for pair in zip(best, far, strict=True)]
        away[how] = sum(best)
    assert away[search] < 0.1
    assert away[search] <= away["random"]


def test_words_overlap() -> None:
    assert overlap("The answer is 4.", "4") == pytest.approx(2 / 5)
    assert overlap("a b", "a b") == 1
    assert overlap("", "4") == 0


def test_bad_numbers(llama: rl.Lens, unchecked: object) -> None:
    for options in ({"trials": 0}, {"segments": 4}, {"most": 0.0}):
        with pytest.raises(rl.InputError, match="are needed"):
            fusion_bound(llama, problems(), **options)
    with pytest.raises(rl.InputError, match="'grid'"):
        fusion_bound(llama, problems(), search="grid")
