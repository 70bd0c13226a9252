"""lm-evaluation-harness: rolelens as its model, its tasks here, and files for its steered model."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_lens
from foreign import foreign
from rolelens import interop

MMLU = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
LETTERS = """\
task: {name}
dataset_path: csv
dataset_kwargs:
  data_files: {{test: {file}}}
  column_names: [question, A, B, C, D, answer]
  keep_default_na: false
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. {{{{A}}}}\\nB. {{{{B}}}}\\nC. {{{{C}}}}\\nD. {{{{D}}}}\\n\
Answer with the letter of the correct answer.\\nAnswer:"
doc_to_choice: [A, B, C, D]
target_delimiter: "{delimiter}"
doc_to_target: "{{{{['A', 'B', 'C', 'D'].index(answer)}}}}"
metric_list: [{{metric: acc}}]
"""
WRITTEN = """\
task: {name}
dataset_path: csv
dataset_kwargs:
  data_files: {{test: {file}}}
  column_names: [question, answer]
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def harness() -> Any:
    """The harness, with the model of rolelens registered."""
    foreign("lm_eval")
    foreign("lm_eval.models.huggingface")
    return foreign("rolelens.interop.lm_eval")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model as a folder, which both sides load."""
    folder = tmp_path / "model"
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def direction(layer: int = 2) -> rl.Direction:
    return rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(3)), layer)


def table(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def questions(path: Path) -> Path:
    kinds = ["a stone", "a bird", "a lamp", "a river", "the fog", "rice"]
    rows = [
        [f"Which of these comes {n}?", *(kinds[(n + k) % 6] for k in range(4)), "ABCD"[n % 4]]
        for n in range(12)
    ]
    return table(path, rows)


def manager(folder: Path, text: str, name: str, file: Path, **fields: str) -> Any:
    tasks = foreign("lm_eval.tasks")
    (folder / f"{name}.yaml").write_text(text.format(name=name, file=file, **fields))
    return tasks.TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(model: Any, name: str, tasks: Any, **options: Any) -> list[dict[str, Any]]:
    """The harness' own record of every item."""
    found = foreign("lm_eval").simple_evaluate(
        model=model, tasks=[name], task_manager=tasks, bootstrap_iters=0, **options
    )
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def shares(sample: dict[str, Any]) -> list[float]:
    return [float(answer[0][0]) for answer in sample["resps"]]


def test_it_scores_options_as_the_harness_own_model_under_hooks(
    harness: Any, saved: Path, tmp_path: Path
) -> None:
    """The same tasks by the harness' Hugging Face model, with a plain hook, and by ours."""
    hugging = foreign("lm_eval.models.huggingface")
    tasks = manager(tmp_path, LETTERS, "letters", questions(tmp_path / "q.csv"), delimiter="")
    theirs = hugging.HFLM(str(saved), device="cpu", dtype="float32", batch_size=4)
    d = direction()
    steering = rl.add(d, 3.0).save(tmp_path / "s.safetensors")
    ours = harness.harness_class()(str(saved), steering=str(steering))
    for chat in (True, False):
        with oracles.added(theirs.model, 2, 3.0 * d.vector):
            expected = evaluated(theirs, "letters", tasks, apply_chat_template=chat)
        found = evaluated(ours, "letters", tasks, apply_chat_template=chat)
        assert [one["acc"] for one in found] == [one["acc"] for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert shares(one) == pytest.approx(shares(other), abs=1e-3)
            assert [a[0][1] for a in one["resps"]] == [a[0][1] for a in other["resps"]]
        plain = evaluated(
            harness.harness_class()(str(saved)), "letters", tasks, apply_chat_template=chat
        )
        assert any(
            abs(shares(a)[0] - shares(b)[0]) > 0.01 for a, b in zip(found, plain, strict=True)
        )


def test_what_is_greedy_is_told(harness: Any) -> None:
    lens = tiny_lens("Llama")
    model = harness.harness_class()(lens, rl.add(direction(), 2.0))
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[0])
    reference = tiny.reference("Llama")
    with oracles.added(reference, 2, 2.0 * direction().vector):
        written = oracles.greedy(reference, ids, 7)
        answers = [written, written[:1], [*written[:6], (written[6] + 1) % 300]]
        answers.append([(written[0] + 1) % 300])
        expected = [float(oracles.option_logprob(reference, ids, one).sum()) for one in answers]
    found = model._loglikelihood_tokens([(None, ids, answer) for answer in answers])
    assert [share for share, _ in found] == pytest.approx(expected, abs=1e-3)
    assert [greedy for _, greedy in found] == [True, True, False, False]


def test_whole_texts_and_generated_ones(harness: Any, saved: Path, tmp_path: Path) -> None:
    hugging = foreign("lm_eval.models.huggingface")
    instance = foreign("lm_eval.api.instance").Instance
    theirs = hugging.HFLM(str(saved), device="cpu", dtype="float32", batch_size=2, max_length=127)
    d = direction()
    ours = harness.harness_class()(str(saved), rl.add(d, 2.0))

    def asked(kind: str, *arguments: Any) -> Any:
        return instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    texts = [asked("loglikelihood_rolling", " ".join(tiny.PROMPTS) * n) for n in (1, 4)]
    settings = {"until": ["o"], "max_gen_toks": 12, "do_sample": False}
    prompts = [asked("generate_until", text, settings) for text in tiny.PROMPTS]
    with oracles.added(theirs.model, 2, 2.0 * d.vector):
        rolled = theirs.loglikelihood_rolling(texts)
        written = theirs.generate_until(prompts)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(rolled, rel=1e-4)
    assert ours.generate_until(prompts) == [text.strip() for text in written]


def test_its_tasks_are_tasks_here(harness: Any, saved: Path, tmp_path: Path) -> None:
    tasks = manager(tmp_path, LETTERS, "letters", questions(tmp_path / "q.csv"), delimiter="")
    task = harness.lm_eval_task("letters", manager=tasks)
    assert len(task) == 12
    assert task[1].options == ("A", "B", "C", "D")
    assert task[1].answer == 1
    assert "A. a bird\nB. a lamp" in task[1].text
    lens = rl.load(saved)
    steering = rl.add(direction(), 3.0)
    scores = rl.evaluate(lens, task, steering, method="cloze")
    theirs = evaluated(
        harness.harness_class()(lens, steering), "letters", tasks, apply_chat_template=True
    )
    assert scores.correct.tolist() == [one["acc"] == 1.0 for one in theirs]
    rows = table(tmp_path / "p.csv", [["How much is 2 + 3?", "5"], ["And 2 + 2?", "4"]])
    tasks = manager(tmp_path, WRITTEN, "written", rows)
    problems = harness.lm_eval_task("written", manager=tasks, limit=1)
    assert [(one.question, one.answer) for one in problems] == [("How much is 2 + 3?", "5")]
    assert problems.prompt(problems[0]) == "How much is 2 + 3?"
    with pytest.raises(rl.InputError, match="has no task 'none'"):
        harness.lm_eval_task("none", manager=tasks)


def test_its_own_steered_model_reads_our_file(harness: Any, saved: Path, tmp_path: Path) -> None:
    steered = foreign("lm_eval.models.hf_steered")
    lens = rl.load(saved)
    steering = rl.add(direction(2), 3.0) + rl.add(direction(3), -1.0)
    path = interop.write_steered(steering, tmp_path / "s.pt", lens)
    tasks = manager(tmp_path, LETTERS, "letters", questions(tmp_path / "q.csv"), delimiter="")
    theirs = steered.SteeredModel(str(saved), str(path), device="cpu", dtype="float32")
    expected = evaluated(theirs, "letters", tasks, apply_chat_template=True)
    found = evaluated(
        harness.harness_class()(lens, steering), "letters", tasks, apply_chat_template=True
    )
    for one, other in zip(found, expected, strict=True):
        assert shares(one) == pytest.approx(shares(other), abs=1e-3)


def test_arguments_that_it_has_not_are_refused(harness: Any) -> None:
    with pytest.raises(rl.InputError, match="--model_args names pretrained; rolelens takes model"):
        harness.harness_class()(tiny_lens("Llama"), pretrained="gpt2")


@pytest.mark.model
@pytest.mark.skipif(not MMLU.is_dir(), reason=f"{MMLU} is not there")
def test_mmlu_to_the_question(harness: Any, smollm2: rl.Lens, tmp_path: Path) -> None:
    """Accuracy by the harness equals ours on MMLU's own CSV file, steered and not."""
    subject = "us_foreign_policy"
    task = rl.load_task(MMLU, subjects=[subject])
    prepared = rl.tasks.prepare(smollm2, task, "letter")
    form = smollm2.tokenizer.decode((prepared.vocab or ())[:1])
    delimiter = " " if form.startswith(" ") else ""
    file = MMLU / "test" / f"{subject}_test.csv"
    tasks = manager(tmp_path, LETTERS, "mmlu_csv", file, delimiter=delimiter)
    d = rl.contrast(smollm2, ["Sir, may I ask?"], ["hey you"], name="formal").at(16)
    for steering in (rl.Steering(), rl.add(d, 1.0)):
        ours = rl.evaluate(smollm2, task, steering, "letter").correct.tolist()
        model = harness.harness_class()(smollm2, steering)
        theirs = evaluated(model, "mmlu_csv", tasks, apply_chat_template=True)
        assert ours == [one["acc"] == 1.0 for one in theirs]
