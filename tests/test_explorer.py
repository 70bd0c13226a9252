"""The explorer without a browser: what a choice means, and what comes of what the browser sends."""

import asyncio
import contextlib
import dataclasses
import io
from typing import Any

import pytest
import torch

import rolelens as rl
import tiny
from rolelens.explorer import Choice, Explored

anywidget = pytest.importorskip("anywidget")

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "snow"), 0),
    rl.Question("q2", "Who sings?", ("a stone", "a bird", "a lamp"), 1),
]
LENGTH = 6


@pytest.fixture
def vectors(llama: rl.Lens) -> rl.Directions:
    return rl.role_vectors(
        llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=[*tiny.OTHERS, "Count to ten."]
    )


@pytest.fixture
def explorer(llama: rl.Lens, vectors: rl.Directions) -> Any:
    return rl.explore(llama, vectors, prompt="Who is it?", max_new_tokens=LENGTH)


def choose(explorer: Any, **changes: Any) -> None:
    explorer.choice = {**explorer.choice, **changes}


def ask(explorer: Any, what: str, **more: Any) -> None:
    explorer.command = {**more, "do": what, "id": str(id(object())) + what + str(more)}


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 2.5},
        {"alpha": -1.0, "tokens": "generated", "layer": 3, "position": -2},
        {"change": "ablate", "name": "b"},
        {"prompt": 'Say "no"\\ and ü'},
    ],
)
def test_the_copied_code_writes_the_text_that_is_shown(
    llama: rl.Lens, vectors: rl.Directions, explorer: Any, changes: dict[str, Any]
) -> None:
    choose(explorer, **changes)
    ask(explorer, "compare")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(explorer.code, {"rl": rl, "lens": llama, "vectors": vectors})
    assert printed.getvalue().rstrip("\n") == explorer.texts["steered"]
    plain = llama.generate([explorer.choice["prompt"]], max_new_tokens=LENGTH)[0]
    assert explorer.texts["unsteered"] == plain
    assert explorer.state == "done"
    expected = llama.generate(
        [explorer.choice["prompt"]], hooks=explorer.steering, max_new_tokens=LENGTH
    )[0]
    assert explorer.texts["steered"] == expected


def test_the_strength_is_a_share_of_the_residual_norm(
    vectors: rl.Directions, explorer: Any
) -> None:
    d = vectors["a"].at(2, -1)
    choose(explorer, name="a", layer=2, position=-1, alpha=0.5 * d.resid_norm / d.norm)
    assert explorer.strength["share"] == pytest.approx(0.5)
    assert explorer.strength["text"].startswith("Adds 50% of the residual norm")
    assert not explorer.strength["warned"]
    choose(explorer, alpha=2 * d.resid_norm / d.norm)
    assert explorer.strength["warned"]
    assert "breaks" in explorer.strength["text"]
    choose(explorer, layer=0)
    assert "zero" in explorer.strength["text"]


def test_a_choice_that_there_is_not_is_told(explorer: Any) -> None:
    for changes, told in (
        ({"layer": 99}, "no layer 99"),
        ({"name": "c"}, "no name 'c'"),
        ({"alpha": "3"}, "alpha is '3'"),
    ):
        before = explorer.code
        explorer.choice = {**dataclasses.asdict(Choice("a", 2, -1)), **changes}
        assert told in explorer.error
        assert explorer.code == before


def test_unsteered_text_is_written_once(explorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    stream = rl.Lens.stream

    def counted(lens: rl.Lens, prompt: Any, **options: Any) -> Any:
        asked.append(bool(options["hooks"].steps))
        return stream(lens, prompt, **options)

    monkeypatch.setattr(rl.Lens, "stream", counted)
    ask(explorer, "compare")
    choose(explorer, alpha=1.5)
    ask(explorer, "compare", again=1)
    assert asked == [True, False, True]


def test_what_runs_leaves_the_loop_free_and_can_be_stopped(explorer: Any) -> None:
    async def used() -> tuple[int, str, str]:
        ticks = 0
        ask(explorer, "compare")
        while explorer.state == "running" and ticks < 3:
            await asyncio.sleep(0)
            ticks += bool(explorer.texts["steered"])
        ask(explorer, "stop")
        kept = explorer.texts["steered"]
        for _ in range(50):
            await asyncio.sleep(0.002)
        return ticks, kept, explorer.texts["steered"]

    explorer._length = 40
    ticks, kept, later = asyncio.run(used())
    assert ticks == 3
    assert kept == later
    assert explorer.state == "stopped"


def test_a_new_choice_takes_the_place_of_what_runs(llama: rl.Lens, explorer: Any) -> None:
    async def used() -> None:
        ask(explorer, "compare")
        await asyncio.sleep(0.003)
        choose(explorer, alpha=-2.0)
        ask(explorer, "compare", again=1)
        while explorer.state == "running":
            await asyncio.sleep(0.002)

    asyncio.run(used())
    expected = llama.generate(["Who is it?"], hooks=explorer.steering, max_new_tokens=LENGTH)[0]
    assert explorer.texts["steered"] == expected
    assert explorer.state == "done"


def test_a_cell_that_runs_meanwhile_is_not_steered(llama: rl.Lens, explorer: Any) -> None:
    plain = llama.generate(["Who sings?"], max_new_tokens=LENGTH)

    async def used() -> list[str]:
        choose(explorer, alpha=8.0)
        ask(explorer, "compare")
        await asyncio.sleep(0.003)
        return llama.generate(["Who sings?"], max_new_tokens=LENGTH)

    assert asyncio.run(used()) == plain


def test_a_conversation_and_what_its_turns_project_to(
    llama: rl.Lens, vectors: rl.Directions, explorer: Any
) -> None:
    ask(explorer, "say", text="Who is it?")
    ask(explorer, "say", text="And now?")
    turns = [{"role": t["role"], "content": t["content"]} for t in explorer.turns]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
    answer = llama.generate([turns[:3]], hooks=explorer.steering, max_new_tokens=LENGTH)[0]
    assert turns[3]["content"] == answer
    # By hand: every token's residual stream, cut where turns begin.
    d = vectors[explorer.choice["name"]].at(explorer.choice["layer"], explorer.choice["position"])
    x = rl.activations(llama, [turns], layers=[d.layer], positions="all")[0][0].double()
    projected = x @ (d.vector.double() / d.vector.double().norm())
    first, second = (llama.encode([part]) for part in (turns[:2], turns))
    ends = [
        first.prompt_lengths[0], len(first.ids[0]), second.prompt_lengths[0], len(second.ids[0]),
    ]  # fmt: skip
    start = 0
    for turn, end in zip(explorer.turns, ends, strict=True):
        assert turn["projection"] == pytest.approx(float(projected[start:end].mean()), abs=1e-4)
        start = end
    assert explorer.drawn["chart"].startswith("<svg")
    assert "rl-tokens" in explorer.drawn["view"]
    ask(explorer, "forget")
    assert explorer.turns == []
    assert explorer.drawn["chart"] == ""


def test_the_direction_is_read(llama: rl.Lens, vectors: rl.Directions, explorer: Any) -> None:
    choose(explorer, name="a", layer=2, position=-1)
    d = vectors["a"].at(2, -1)
    from rolelens.patchscoping import LogitLens

    assert explorer.drawn["writes"] == f"Writes: {rl.patchscope(llama, d, LogitLens(n=8)).text}"
    ask(explorer, "read")
    assert explorer.drawn["reading"].endswith(rl.patchscope(llama, d).text)


def test_the_sweep_is_shown_and_its_cells_are_what_it_scored(
    llama: rl.Lens, vectors: rl.Directions
) -> None:
    sweep = rl.sweep(llama, vectors, QUESTIONS, layers=[1, 2], positions=[-2, -1], tokens="prompt")
    explorer = rl.explore(llama, vectors, sweep=sweep, prompt="Who is it?")
    best = sweep.best()
    assert explorer.steering == best.steering
    assert explorer.swept == {"tokens": "prompt", "change": "add"}
    assert list(explorer.panels.values()) == [1.0, 3.0]
    assert explorer.drawn["heat"].count('class="rl-cell"') == 8
    listed = rl.sweep(llama, [rl.add(vectors["a"].at(2))], QUESTIONS)
    with pytest.raises(rl.InputError, match="list of steerings, which has no heatmap"):
        rl.explore(llama, vectors, sweep=listed)
    with pytest.raises(rl.InputError, match="no role 'b'"):
        rl.explore(llama, vectors["a"], sweep=sweep)


def test_directions_without_a_position(llama: rl.Lens) -> None:
    vectors = rl.Directions(
        torch.randn(1, 2, 1, llama.d_model), ("c",), (1, 2), (None,), torch.ones(2, 1)
    )
    explored = Explored(llama, vectors)
    choice = explored.first("Hi")
    assert explored.code(choice, 5).startswith("d = vectors['c'].at(layer=2)\n")


def test_without_anywidget_one_sentence_says_what_to_install(
    llama: rl.Lens, vectors: rl.Directions, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "rolelens.explorer.widget", raising=False)
    with pytest.raises(rl.InputError, match=r"pip install 'rolelens\[widget\]'"):
        rl.explore(llama, vectors)


def test_a_choice_that_arrives_with_what_is_asked_for_counts(llama: rl.Lens, explorer: Any) -> None:
    with explorer.hold_trait_notifications():
        explorer.command = {"do": "compare", "id": "1"}
        explorer.choice = {**explorer.choice, "alpha": -3.0}
    d = explorer.steering.steps[0]
    assert d.alpha == -3.0
    expected = llama.generate(["Who is it?"], hooks=explorer.steering, max_new_tokens=LENGTH)[0]
    assert explorer.texts["steered"] == expected
