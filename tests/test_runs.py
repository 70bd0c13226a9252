import pytest
import torch

import rolelens as rl
from rolelens import runs
from rolelens.evidence import Comparison
from rolelens.sweep import Cell, Grid
from test_scoring import QUESTIONS

NONE = Comparison(0.5, 0.5, -0.1, 0.1, 1.0, 0.2, 40)


def test_the_demo_leaves_vectors_and_a_report(llama: rl.Lens, tmp_path) -> None:
    said: list[str] = []
    twice = [
        rl.Question(q.id + "b", q.text + "!", q.options, q.answer, q.domain) for q in QUESTIONS
    ]
    different = [
        rl.Question(q.id, q.text, tuple(o + "s" for o in q.options), q.answer, q.domain)
        for q in QUESTIONS
    ]
    bench = rl.load_benchmark([*twice, *different])
    path = runs.demo(llama, tmp_path, say=said.append, benchmark=bench)
    page = path.read_text()
    vectors = rl.RoleVectors.load(tmp_path / "vectors.safetensors")
    assert vectors.roles == runs.ROLES
    assert said[-1].endswith(str(path))
    for heading in ("Steered text", "Where the role can be seen", "Patchscope"):
        assert heading in page
    assert "It is not above chance" in page or "held-out half" in page
    assert page.count("Plotly.newPlot(") >= 2


def scores(right: int, n: int) -> rl.Scores:
    logprobs = torch.tensor(
        [[0.0, -1.0, -1.0, -1.0]] * right + [[-1.0, 0.0, -1.0, -1.0]] * (n - right)
    )
    answers = torch.zeros(n, dtype=torch.long)
    return rl.Scores(logprobs, answers, tuple(map(str, range(n))), ("x",) * n, "cloze")


@pytest.mark.parametrize(
    ("right", "effect", "sentence"),
    [
        (10, NONE, "It is not above chance, so there is nothing here for a role to improve."),
        (25, NONE, "Nothing beyond chance was found."),
        (25, Comparison(0.5, 0.9, 0.2, 0.5, 0.001, 0.2, 40), "adding the vector helps."),
        (25, Comparison(0.5, 0.1, -0.5, -0.2, 0.001, 0.2, 40), "adding the vector hurts."),
    ],
)
def test_the_verdict_says_what_was_found(right: int, effect: Comparison, sentence: str) -> None:
    d = rl.Direction(torch.ones(4), layer=1, position=-1, role="a")
    vectors = rl.RoleVectors(torch.ones(1, 1, 1, 4), ("a",), (1,), (-1,), torch.ones(1, 1))
    swept = rl.Sweep(
        scores(20, 40).logprobs[None, None, None, None],
        scores(18, 40),
        Grid(vectors, (1,), (-1,), (1.0,)),
        "all",
    )
    verdict = runs._verdict(Cell(d, 1.0), swept, scores(right, 40), effect, NONE)
    assert verdict.endswith(sentence)
    assert f"{right / 40:.1%} of 40 held-out questions" in verdict


def test_vectors_are_described(llama: rl.Lens, tmp_path) -> None:
    every, base = rl.load_roles(), rl.load_base()
    roles = {name: every[name] for name in ("lawyer", "nurse")}
    vectors = rl.role_vectors(llama, roles, base)
    path = runs.describe(llama, vectors, roles, base, tmp_path / "r.html", say=lambda line: None)
    page = path.read_text()
    assert page.count("Plotly.newPlot(") >= 4
    for text in ("Steered text", "Where the role can be seen", "How large, and how alike"):
        assert text in page
    system = rl.system_vectors(llama, ["nurse"], base)
    page = runs.describe(llama, system, roles, base, tmp_path / "s.html", say=lambda line: None)
    assert "No separation is shown" in page.read_text()
