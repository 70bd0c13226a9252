import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import planted
import rolelens as rl
from rolelens import runs
from rolelens.evidence import Comparison
from rolelens.runs.demo import _verdict
from rolelens.sweep import Cell, Grid
from test_scoring import QUESTIONS
from test_study import planted_lens

MARGIN = rl.stats.Estimate(0.0, -0.1, 0.1, 1.0)
NONE = Comparison(0.5, 0.5, -0.1, 0.1, 1.0, 0.2, 40, MARGIN)


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
        (25, Comparison(0.5, 0.9, 0.2, 0.5, 0.001, 0.2, 40, MARGIN), "adding the vector helps."),
        (25, Comparison(0.5, 0.1, -0.5, -0.2, 0.001, 0.2, 40, MARGIN), "adding the vector hurts."),
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
    verdict = _verdict(Cell(d, 1.0), swept, scores(right, 40), effect, NONE)
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


def test_the_papers_experiment_ends_in_a_report(tmp_path: Path) -> None:
    lens = planted_lens()
    data = tmp_path / "data"
    for folder in ("role_prompts", "base_prompts", "mmlu_paper_split"):
        (data / folder).mkdir(parents=True)
    (data / "base_prompts" / "train.json").write_text(json.dumps(planted.prompts(None, 40)))
    for domain in planted.MARKS:
        role = {"role": f"{domain} expert", "domain": domain}
        content = json.dumps(role | {"prompts": planted.prompts(domain, 16)})
        (data / "role_prompts" / f"{domain}.json").write_text(content)
        rows = [
            {
                "prompt": row["text"]
                + "".join(f"\n\t\t{k}. {o}" for k, o in zip("ABCD", row["options"], strict=True))
                + "\n\t\tAnswer with the letter of the correct answer.\n\t\tAnswer:",
                "answer": "ABCD"[row["answer"]],
                "subject": domain,
            }
            for row in planted.questions(80)
            if row["domain"] == domain
        ]
        (data / "mmlu_paper_split" / f"{domain}.json").write_text(json.dumps(rows))
    said: list[str] = []
    options = {"layers": [1, 2], "positions": [-1], "alphas": [1.0], "ablated": 10}
    path = runs.paper(lens, tmp_path / "out", data=data, say=said.append, **options)
    page = path.read_text()
    assert "math expert: helps" in page
    headings = ("Table 3", "Every role in every domain", "Table 4", "Table 5", "role as a prompt")
    for heading in (*headings, "How often each letter is given", "split-half cosine"):
        assert heading in page
    assert page.count("Plotly.newPlot(") == 1
    for name in ("table", "transfer", "chosen", "ablation", "prompted", "answers"):
        assert (tmp_path / "out" / "tables" / f"{name}.csv").exists()
    assert rl.RoleVectors.load(tmp_path / "out" / "vectors.safetensors").roles == (
        "art expert",
        "law expert",
        "math expert",
    )
    assert said[-1].endswith(str(path))
    readings = pd.read_csv(tmp_path / "out" / "tables" / "readings.csv")
    assert len(readings) == 3 + 9  # roles, and three nulls of each
    # The same call goes on from what it has; another is refused, before anything is written.
    file = tmp_path / "out" / "vectors.safetensors"
    tables = {path: path.read_bytes() for path in (tmp_path / "out" / "tables").iterdir()}
    before = file.stat().st_mtime_ns
    runs.paper(lens, tmp_path / "out", data=data, say=said.append, **options)
    assert file.stat().st_mtime_ns == before
    assert {path: path.read_bytes() for path in tables} == tables
    other = r"out holds another run \(of another seed\); name another folder"
    with pytest.raises(rl.InputError, match=other):
        runs.paper(lens, tmp_path / "out", data=data, seed=1, **options)
    assert file.stat().st_mtime_ns == before
    # The vectors of one model, on another of its shape.
    moved = rl.RoleVectors.load(tmp_path / "out" / "vectors.safetensors")
    path = runs.paper(
        lens, tmp_path / "moved", data=data, vectors=moved, say=said.append, **options
    )
    assert f"role prompts - base prompts, in {lens.name}" in path.read_text()
