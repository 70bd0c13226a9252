"""A router reaches the oracle where directions are planted a domain, and wins nothing elsewhere."""

from typing import Any

import pytest
import torch

import planted
import rolelens as rl
from rolelens.routing import fit_router, oracle_gap, try_router
from rolelens.tasks import prepare
from test_features import bridge


def two_marks(seed: int = 0) -> Any:
    """A model in which each of two directions unlocks the answers of one domain, and spoils others.

    Questions of "math" have the token ``=`` in them and those of "art" ``+``. The direction of the
    first mark gives what a token hides if it is of the digits of "math", and so on.
    """
    made = planted.model(seed)
    mlp = made.model.layers[2].mlp
    with torch.no_grad():
        config = made.config
        width = 16
        for name in ("gate_proj", "up_proj"):
            module = torch.nn.Linear(planted.D, width, bias=False)
            module.weight.zero_()
            setattr(mlp, name, module)
        mlp.down_proj = torch.nn.Linear(width, planted.D, bias=False)
        mlp.down_proj.weight.zero_()
        config.intermediate_size = width
        for k in range(4):
            for n, shift in ((0, 0), (1, 1)):
                unit = 4 * n + k
                mlp.gate_proj.weight[unit, planted.HOLDS_MARK[n]] = 4.0
                mlp.up_proj.weight[unit, planted.HOLDS_HIDDEN[k]] = 4.0
                mlp.down_proj.weight[planted.GIVES[(k + shift) % 4], unit] = 4.0
        # A token tells the domain at the last position of the prompt, outside of what acts.
        attention = made.model.layers[0].self_attn
        for n, sign in enumerate("=+"):
            made.model.embed_tokens.weight[planted.token(sign), planted.SAYS_OPEN[-1] + 1 + n] = 3.0
            attention.o_proj.weight[planted.REST[n], planted.SAYS_OPEN[-1] + 1 + n] = 8.0
    return made


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return rl.Lens(bridge(two_marks()))


def library() -> dict[str, rl.Steering]:
    eye = torch.eye(planted.D)
    return {
        name: rl.add(rl.Direction(eye[planted.HOLDS_MARK[n]], layer=1, name=name), 1.0)
        for n, name in enumerate(("first", "second"))
    }


def task(n: int = 60, told: bool = True) -> rl.Task:
    """Half of the questions need one direction, half the other; a token tells which, if told."""
    rows = [row for row in planted.questions(n) if row["domain"] == "math"]
    questions = []
    for k, row in enumerate(row for m, row in enumerate(rows) if m % 5 >= 2):
        second = k % 2
        answer = (row["answer"] + second) % 4
        sign = "=+"[second] if told else "="
        text = f"{row['text']} {sign}{sign}{sign}"
        questions.append(rl.Question(row["id"], text, tuple("qrst"), answer, "math"))
    return rl.load_task(questions)


def test_where_directions_are_planted_the_router_reaches_the_oracle(lens: rl.Lens) -> None:
    result = try_router(lens, library(), task(), by="accuracy")
    value = result.table().set_index("policy")["value"]
    assert value["oracle"] > 0.9
    assert value["single"] < 0.75
    assert value["router"] == pytest.approx(value["oracle"], abs=0.1)
    assert value["random"] < value["router"] - 0.2
    gain = result.table().set_index("policy").loc["router"]
    assert gain["low"] > 0


def test_where_nothing_tells_the_router_wins_nothing(lens: rl.Lens) -> None:
    value = try_router(lens, library(), task(told=False), by="accuracy").table()
    value = value.set_index("policy")
    assert value.loc["router", "low"] <= 0
    assert value.loc["oracle", "value"] > value.loc["router", "value"] + 0.1


def test_the_oracle_has_chance_priced_in(lens: rl.Lens) -> None:
    found = oracle_gap(lens, library(), task(120), nulls=9, by="accuracy")
    assert found.oracle > 0.9
    assert found.rank <= 0.2
    assert found.beyond_chance > 0.2
    # Directions that do nothing here: what the oracle gains by luck, nulls gain as well.
    eye = torch.eye(planted.D)
    idle = {
        f"idle {n}": rl.add(rl.Direction(eye[planted.REST[10 + n]], layer=1, name=f"idle {n}"), 1.0)
        for n in range(2)
    }
    nothing = oracle_gap(lens, idle, task(), nulls=9)
    assert nothing.rank > 0.2


def test_steering_by_row_is_what_was_scored(lens: rl.Lens) -> None:
    asked = task()
    prepared = prepare(lens, asked)
    plain = rl.evaluate(lens, asked)
    each = [rl.evaluate(lens, asked, steering) for steering in library().values()]
    gains = torch.stack([one.margins - plain.margins for one in each])
    router = fit_router(lens, library(), prepared, gains)
    hooks = router.steer(lens, prepared.tokens)
    together = rl.evaluate(lens, asked, hooks)
    known = [plain, *each]
    names = [rl.Steering(), *library().values()]
    for n, steering in enumerate(hooks.steerings):
        expected = known[names.index(steering)].logprobs[n]
        torch.testing.assert_close(together.logprobs[n], expected, rtol=1e-3, atol=1e-3)
    assert len(set(hooks.steerings)) > 1


def test_the_linear_router_is_the_regression_it_says(lens: rl.Lens) -> None:
    asked = task()
    prepared = prepare(lens, asked)
    gains = torch.randn(2, len(asked), generator=torch.Generator().manual_seed(0)).double()
    router = fit_router(lens, library(), prepared, gains, layer=2)
    x = rl.activations(lens, prepared.tokens, layers=[2], positions=[-1])[:, 0, 0].double()
    # Ridge on standardised inputs leaves the mean prediction at the mean gain.
    torch.testing.assert_close(router.gains(x).mean(dim=0), gains.mean(dim=1))
    assert router.layer == 2
    picks = router.picks(x)
    best = router.gains(x).max(dim=1)
    for n, pick in enumerate(picks):
        assert pick == (int(best.indices[n]) + 1 if best.values[n] > 0 else 0)


def test_bad_libraries_are_refused(lens: rl.Lens) -> None:
    for sentence, given in (
        ("at least one steering", {}),
        ("'nothing'", {"nothing": rl.Steering()}),
        ("no steering that does", {"a": rl.Steering()}),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            try_router(lens, given, task())
    with pytest.raises(rl.InputError, match="at least 1 library"):
        oracle_gap(lens, library(), task(), nulls=0)
