import dataclasses
import html
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import planted
import rolelens as rl
import tiny
from rolelens import evidence, runs
from rolelens.evidence import Comparison
from rolelens.runs.demonstration import _random, _verdict
from rolelens.runs.replication import _Clock, _some
from rolelens.sweeps import cell_of_steering

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0, "colour"),
    rl.Question("q2", "Which of these is cold to the touch?", ("fire", "ice"), 1, "heat"),
    rl.Question("q3", "Who sings?", ("a stone", "a bird", "a lamp"), 1, "sound"),
]
NONE = Comparison("accuracy", 0.5, 0.5, -0.1, 0.1, 1.0, 0.2, 40)


def test_the_demo_leaves_vectors_and_a_report(llama: rl.Lens, tmp_path) -> None:
    said: list[str] = []
    twice = [
        rl.Question(q.id + "b", q.text + "!", q.options, q.answer, q.domain) for q in QUESTIONS
    ]
    different = [
        rl.Question(q.id, q.text, tuple(o + "s" for o in q.options), q.answer, q.domain)
        for q in QUESTIONS
    ]
    task = rl.load_task([*twice, *different])
    path = runs.demo(llama, tmp_path, say=said.append, task=task)
    page = path.read_text()
    vectors = rl.Directions.load(tmp_path / "vectors.safetensors")
    assert vectors.names == runs.ROLES
    assert said[-1].endswith(str(path))
    for heading in ("Steered text", "Where the role can be seen", "Patchscope"):
        assert heading in page
    assert "It is not above chance" in page or "held-out half" in page
    assert page.count("rl-figure") >= 2


def scores(right: int, n: int) -> rl.Scores:
    logprobs = torch.tensor(
        [[0.0, -1.0, -1.0, -1.0]] * right + [[-1.0, 0.0, -1.0, -1.0]] * (n - right)
    )
    items = tuple(rl.Question(f"q{k}", f"Which {k}?", ("a", "b", "c", "d"), 0) for k in range(n))
    return rl.Scores(items, logprobs, "cloze")


@pytest.mark.parametrize(
    ("right", "effect", "sentence"),
    [
        (10, NONE, "It is not above chance, so there is nothing here for a role to improve."),
        (25, NONE, "Nothing beyond chance was found."),
        (
            25,
            dataclasses.replace(NONE, after=0.9, low=0.2, high=0.5, p=0.001),
            "adding the vector helps.",
        ),
        (
            25,
            dataclasses.replace(NONE, after=0.1, low=-0.5, high=-0.2, p=0.001),
            "adding the vector hurts.",
        ),
    ],
)
def test_the_verdict_says_what_was_found(right: int, effect: Comparison, sentence: str) -> None:
    cell = cell_of_steering(rl.add(rl.Direction(torch.ones(4), layer=1, position=-1, name="a")))
    verdict = _verdict(cell, 0.05, scores(right, 40), effect, NONE)
    assert verdict.endswith(sentence)
    assert f"{right / 40:.1%} of 40 held-out questions" in verdict
    if right > 10:
        assert "The a vector at layer 1 gained +5.0 points where it was chosen" in verdict


def test_the_random_control_is_steered_like_the_best_cell() -> None:
    d = rl.Direction(torch.ones(4), layer=1, position=-1, name="a")
    steering = rl.add(d, 3.0, layers=[1, 2], tokens="prompt")
    control = steering.with_directions(_random)
    (step,), (before,) = control.steps, steering.steps
    assert (step.kind, step.alpha, step.layers, step.tokens) == ("add", 3.0, (1, 2), "prompt")
    assert step.direction.norm == pytest.approx(before.direction.norm)
    assert abs(step.direction.cosine(d)) < 0.999


def test_vectors_are_described(llama: rl.Lens, tmp_path) -> None:
    base = [*tiny.OTHERS, "Count to ten.", "Which way is north?"]
    roles = {"lawyer": tiny.PROMPTS, "nurse": [prompt + " Now." for prompt in tiny.PROMPTS]}
    vectors = rl.role_vectors(llama, roles, base)
    path = runs.describe(llama, vectors, roles, base, tmp_path / "r.html", say=lambda line: None)
    page = path.read_text()
    assert len(page) < 1_500_000
    assert page.index("highest AUROC: lawyer") < page.index("<h2")
    assert page.count("rl-figure") >= 5
    assert page.count("random direction, same norm") == 2
    for name in roles:
        assert f"projected on &#x27;{name}&#x27;" in page
    for text in ("Steered text", "Where the role can be seen", "How large, and how alike"):
        assert text in page
    system = rl.system_vectors(llama, ["nurse"], base)
    page = runs.describe(llama, system, roles, base, tmp_path / "s.html", say=lambda line: None)
    assert "No separation is shown" in page.read_text()


def test_the_papers_experiment_ends_in_a_report(tmp_path: Path) -> None:
    lens = rl.load(planted.model(), tokenizer=tiny.tokenizer())
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
            for row in planted.questions(50)
            if row["domain"] == domain
        ]
        (data / "mmlu_paper_split" / f"{domain}.json").write_text(json.dumps(rows))
    said: list[str] = []
    options = {"layers": [1, 2], "positions": [-1], "alphas": [1.0], "ablated": 5}
    path = runs.paper(lens, tmp_path / "out", data=data, say=said.append, **options)
    page = path.read_text()
    assert html.escape(rl.load_study(tmp_path / "out" / "tables").headline) in page
    assert page.index('class="headline"') < page.index("<h2")
    assert page.index("math expert: helps") < page.rindex("What the unsteered model can do")
    headings = ("Table 3", "Table 4", "Table 5", "role as a prompt")
    for heading in (*headings, "How often each letter is given", "split-half cosine"):
        assert heading in page
    assert page.count("<svg") == 1
    for name in ("effects", "transfer", "chosen", "ablation", "prompted", "answers", "nulls"):
        assert (tmp_path / "out" / "tables" / f"{name}.csv").exists()
    assert rl.Directions.load(tmp_path / "out" / "vectors.safetensors").names == (
        "art expert",
        "law expert",
        "math expert",
    )
    assert said[-1].endswith(str(path))
    readings = pd.read_csv(tmp_path / "out" / "tables" / "readings.csv")
    assert len(readings) == 3 + 9  # roles, and three nulls of each
    assert readings["imitates"].dropna().value_counts().to_dict() == dict.fromkeys(
        ("art expert", "law expert", "math expert"), 3
    )
    study = rl.load_study(tmp_path / "out" / "tables")
    assert study.verdicts[-1] in html.unescape(page)
    assert study.best("math expert").steering.steps[0].direction.name == "math expert"
    # The same call goes on from what it has; another is refused, before anything is written.
    file = tmp_path / "out" / "vectors.safetensors"
    tables = {path: path.read_bytes() for path in (tmp_path / "out" / "tables").iterdir()}
    before = file.stat().st_mtime_ns
    runs.paper(lens, tmp_path / "out", data=data, expected=600.0, say=said.append, **options)
    assert "in 2 parts); 10 minutes were expected." in path.read_text()
    assert file.stat().st_mtime_ns == before
    assert {path: path.read_bytes() for path in tables} == tables
    other = r"out holds another run \(of another seed\); name another folder"
    with pytest.raises(rl.InputError, match=other):
        runs.paper(lens, tmp_path / "out", data=data, seed=1, **options)
    assert file.stat().st_mtime_ns == before
    # The vectors of one model, on another of its shape.
    moved = rl.Directions.load(tmp_path / "out" / "vectors.safetensors")
    few = {"layers": [1], "positions": [-1], "alphas": [1.0], "ablated": 0, "prompted": False}
    path = runs.paper(lens, tmp_path / "moved", data=data, vectors=moved, say=said.append, **few)
    assert f"role prompts - base prompts, in {lens.name}" in path.read_text()


def test_the_papers_experiment_can_be_made_small() -> None:
    def some(**wanted: object) -> tuple:
        asked = {"roles": None, "domains": None, "questions": None, "seed": 0} | wanted
        return _some(rl.load_roles(), rl.load_base(), rl.load_task("mini"), **asked)

    roles, _, task = some(roles=["lawyer", "nurse"], questions=8)
    assert (list(roles), task.domains, len(task)) == (["lawyer", "nurse"], ("law", "medicine"), 16)
    assert (
        some(roles=["lawyer"], questions=8)[2].items
        != some(roles=["lawyer"], questions=8, seed=1)[2].items
    )
    roles, _, task = some(domains=["law"])
    assert (set(roles), len(task)) == ({"lawyer", "bailiff"}, 40)
    assert [len(part) for part in (some()[0], some()[2])] == [29, 320]
    for wanted, sentence in (
        ({"roles": ["lawyr"]}, "no role 'lawyr'; did you mean 'lawyer'"),
        ({"domains": ["laws"]}, "no domain 'laws'; did you mean 'law'"),
        ({"roles": ["nurse"], "domains": ["law"]}, "'nurse' is of the domain 'medicine'"),
        ({"questions": 2}, "questions is 2; a domain needs 4 at least"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            some(**wanted)


def test_the_time_of_interrupted_parts_counts(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    first = _Clock(file)
    with pytest.raises(KeyboardInterrupt), first:
        raise KeyboardInterrupt
    file.write_text("[120.0]")
    second = _Clock(file)
    with second:
        pass
    assert str(second) == "0.0 minutes (2.0 in all, in 2 parts)"
    assert json.loads(file.read_text()) == [120.0, 0.0]


def test_the_headline_says_how_many_and_what_would_have_shown() -> None:
    effect = evidence.Effect("a", "law", "accuracy", 20, 0.5, 0.55, 0.05, -0.1, 0.2, 0.6,
                             p_holm=1.0, detectable=0.6)  # fmt: skip
    helps = dataclasses.replace(effect, name="b", p_holm=0.01, detectable=0.4)
    able = evidence.Headroom("accuracy", 0.5, 0.4, 0.6, 20, chance=0.25, constant=0.3)
    unable = evidence.Headroom("accuracy", 0.25, 0.1, 0.4, 20, chance=0.25, constant=0.3)
    study = rl.Study("mini", "accuracy", {"law": able, "math": unable}, (effect, helps))
    assert study.headline == (
        "1 of 2 directions beyond chance on held-out items: b; this run could have shown a change "
        "of 40.0 points or more. The model is at chance in 1 of 2 domains."
    )
    blind = dataclasses.replace(effect, detectable=None)
    study = rl.Study("mini", "accuracy", {"law": able}, (blind,))
    assert study.headline.endswith("on so few items this run could not have shown any change.")
    study = rl.Study("mini", "accuracy", {"math": unable})
    assert study.headline == "No direction was tried: the model is at chance in 1 of 1 domains."
