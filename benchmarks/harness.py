"""The unsteered model's answers, beside two other scoring loops: question by question.

``python benchmarks/harness.py --mmlu FOLDER --paper FOLDER`` scores the paper's split with a plain
loop over Hugging Face's model, and MMLU's own CSV files with lm-evaluation-harness (letters, and
the options' texts). Both get the questions as files, and nothing of rolelens' prompts or tasks.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import rolelens as rl
from rolelens import embedded, tasks

SUBJECTS = ("us_foreign_policy", "college_mathematics")
BATCH = 16
TASK = """\
task: {name}
dataset_path: csv
dataset_kwargs:
  data_files: {{test: {file}}}
  column_names: [question, A, B, C, D, answer]
  keep_default_na: false
test_split: test
output_type: multiple_choice
target_delimiter: "{delimiter}"
doc_to_target: "{{{{['A', 'B', 'C', 'D'].index(answer)}}}}"
metric_list: [{{metric: acc}}]
"""
ASKED = {
    "letter": 'doc_to_text: "{{question}}\\nA. {{A}}\\nB. {{B}}\\nC. {{C}}\\nD. {{D}}\\n'
    'Answer with the letter of the correct answer.\\nAnswer:"\n'
    "doc_to_choice: [A, B, C, D]\n",
    "cloze": 'doc_to_text: "{{question}}"\ndoc_to_choice: "{{[A, B, C, D]}}"\n',
}


def plain_loop(folder: Path, letters: str) -> dict[str, list[bool]]:
    """Whether the likeliest letter is the answer, for every row of the paper's JSON files."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded.folder())
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.folder()).eval()
    options = [tokenizer(c, add_special_tokens=False).input_ids[0] for c in letters.split("|")]
    right: dict[str, list[bool]] = {}
    for file in sorted(folder.glob("*.json")):
        rows = json.loads(file.read_text())
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for row in rows
        ]
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        verdicts = [False] * len(ids)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            # On the right, so that no position moves; what is padded is never read.
            longest = max(len(ids[n]) for n in some)
            padded = torch.tensor([ids[n] + [0] * (longest - len(ids[n])) for n in some])
            with torch.inference_mode():
                logits = model(padded).logits
            for row, n in enumerate(some):
                best = int(logits[row, len(ids[n]) - 1, options].argmax())
                verdicts[n] = "ABCD"[best] == rows[n]["answer"].strip()
        right[file.stem] = verdicts
    return right


def harness(file: Path, method: str, delimiter: str) -> list[bool]:
    """Whether lm-evaluation-harness finds every row of a CSV file answered rightly."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    name = f"local_{method}_{file.stem}"
    with tempfile.TemporaryDirectory() as folder:
        text = TASK.format(name=name, file=file.resolve(), delimiter=delimiter) + ASKED[method]
        (Path(folder) / f"{name}.yaml").write_text(text)
        evaluated: dict[str, Any] = lm_eval.simple_evaluate(
            model=HFLM(
                str(embedded.folder()),
                device="cpu",
                dtype="float32",
                batch_size=BATCH,
                max_length=2048,
            ),
            tasks=[name],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,
        )
    samples = sorted(evaluated["samples"][name], key=lambda sample: sample["doc_id"])
    return [sample["acc"] == 1.0 for sample in samples]


def line(what: str, ours: list[bool], theirs: list[bool]) -> None:
    """A row of the table."""
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    accuracies = f"{sum(ours) / len(ours):.4f} | {sum(theirs) / len(theirs):.4f}"
    print(f"| {what} | {len(ours)} | {accuracies} | {same} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mmlu", type=Path, help="a folder of MMLU CSV files (dev and test)")
    parser.add_argument("--paper", type=Path, help="a folder with the paper's split")
    given = parser.parse_args()
    lens = rl.load("smollm2", dtype=torch.float32)
    print("| questions | number | rolelens | the other loop | same verdict |\n" + "|---" * 5 + "|")
    if given.mmlu:
        for subject in SUBJECTS:
            task = rl.load_task(given.mmlu, subjects=[subject])
            file = given.mmlu / "test" / f"{subject}_test.csv"
            for method in ("letter", "cloze"):
                prepared = tasks.prepare(lens, task, method)
                form = lens.tokenizer.decode((prepared.vocab or ())[:1])
                delimiter = " " if form.startswith(" ") else ""
                ours = rl.evaluate(lens, prepared).correct.tolist()
                theirs = harness(file, method, delimiter)
                line(f"lm-evaluation-harness, {method}, {subject}", ours, theirs)
    if given.paper:
        task = rl.load_task(given.paper / "mmlu_paper_split")
        prepared = tasks.prepare(lens, task, "letter")
        letters = "|".join(lens.tokenizer.decode([token]) for token in prepared.vocab)
        scores = rl.evaluate(lens, prepared)
        theirs = plain_loop(given.paper / "mmlu_paper_split", letters)
        for domain in task.domains:
            line(
                f"plain loop, letter, {domain}",
                scores.domain(domain).correct.tolist(),
                theirs[domain],
            )


if __name__ == "__main__":
    main()
