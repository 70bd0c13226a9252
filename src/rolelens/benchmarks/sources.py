"""Where benchmarks come from."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from rolelens.benchmarks import mmlu, paper, tables, truthful
from rolelens.benchmarks.questions import LETTERS, Benchmark, Question, checked
from rolelens.errors import InputError, unknown


def load_benchmark(
    source: str | Path | Sequence[Question],
    split: str = "test",
    *,
    subjects: str | Sequence[str] | None = None,
    shots: int = 0,
    domains: Literal["paper"] | Mapping[str, str] | None = None,
) -> Benchmark:
    """Load a benchmark.

    Args:
        source: ``"mini"`` (320 questions shipped with rolelens, 8 domains); ``"mmlu"`` (from the
            hub, ``cais/mmlu``); a folder of MMLU CSV files (headerless: question, A, B, C, D,
            letter); a folder of JSON files with ready-made prompts, one a domain, as the paper's
            (``[{"prompt", "answer", "subject"}]``); one CSV or JSONL file of your own (columns
            ``question``, ``A``, ``B``, ..., ``answer``, ``domain``); ``"truthfulqa"`` (from the
            hub) or a JSON file as its authors' ``mc_task.json``; or a list of questions.
        split: ``dev``, ``val`` or ``test`` of MMLU; in a folder, the subfolder of that name, if
            there is one. Of TruthfulQA ``mc1`` (one true option; the default) or ``mc2`` (several).
        subjects: those to keep; all by default.
        shots: how many questions of MMLU's dev split, of the same subject, are shown with their
            answers before each question.
        domains: a domain for every subject that is to be kept, in place of MMLU's own, where each
            subject is a domain; ``"paper"`` for the eight of 2502.12055
            (``rolelens.benchmarks.PAPER_DOMAINS``).

    Raises:
        InputError: nothing there, or a row that cannot be read (file and line are named).
    """
    if shots < 0:
        raise InputError(f"shots is {shots}; it has to be 0 or more.")
    grouping = paper.PAPER_DOMAINS if domains == "paper" else domains
    if isinstance(grouping, str):
        raise unknown("grouping of subjects", grouping, ["paper"])
    wanted = (subjects,) if isinstance(subjects, str) else subjects
    needed = grouping if wanted is None else wanted
    name, questions = _read(source, split, needed)
    if wanted is not None:
        questions = _kept(questions, wanted)
    if grouping is not None:
        questions = _grouped(questions, grouping, strict=wanted is not None)
    if shots:
        if any(question.prompt is not None for question in questions):
            raise InputError(f"shots is {shots} and the prompts are ready-made; ask for no shots.")
        questions = mmlu.with_shots(questions, _dev(source, split, needed, shots), shots)
        name = f"{name}, {shots} shots"
    return checked(Benchmark(name, tuple(questions)))


def _read(
    source: str | Path | Sequence[Question], split: str, subjects: Iterable[str] | None
) -> tuple[str, Sequence[Question]]:
    """A source's name and questions; of the hub, only those of the subjects."""
    if not isinstance(source, str | Path):
        return "own questions", tuple(source)
    if source == "mini":
        return "mini", _mini()
    if source == "mmlu":
        return "mmlu", mmlu.from_hub(split, subjects)
    if source == "truthfulqa":
        return f"truthfulqa {_targets(split)}", truthful.from_hub(_targets(split))
    if Path(source).is_file():
        file = Path(source)
        if file.suffix == ".json":
            name = f"{file.stem} {_targets(split)}"
            return name, truthful.from_file(file, _targets(split))
        bare = file.suffix == ".csv" and not tables.has_header(file)
        return file.stem, mmlu.from_file(file) if bare else tables.from_file(file)
    folder = _folder(source, split)
    questions = mmlu.from_folder(folder) or paper.from_folder(folder)
    if not questions:
        raise InputError(f"no CSV or JSON file with questions in {str(folder)!r}.")
    return folder.name, questions


def _targets(split: str) -> str:
    return "mc1" if split == "test" else split


def _mini() -> list[Question]:
    text = (resources.files("rolelens") / "data" / "mini.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [
        Question(
            id=row["id"],
            text=row["question"],
            options=tuple(row["options"]),
            answer=LETTERS.index(row["answer"]),
            domain=row["domain"],
        )
        for row in rows
    ]


def _folder(source: str | Path, split: str) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(
            f"no benchmark {str(source)!r}; name 'mini', 'mmlu', 'truthfulqa', a folder of "
            "MMLU CSV files, or a CSV, JSONL or JSON file."
        )
    return folder / split if (folder / split).is_dir() else folder


def _kept(questions: Iterable[Question], subjects: Sequence[str]) -> list[Question]:
    known = sorted({question.subject for question in questions if question.subject})
    for name in subjects:
        if name not in known:
            raise unknown("subject", name, known)
    return [question for question in questions if question.subject in subjects]


def _grouped(
    questions: Iterable[Question], grouping: Mapping[str, str], strict: bool
) -> list[Question]:
    """The questions of the grouped subjects; if strict, none may be of another one."""
    for question in questions:
        if strict and question.subject not in grouping:
            raise unknown("domain given for the subject", question.subject, grouping)
    grouped = [
        dataclasses.replace(question, domain=grouping[question.subject])
        for question in questions
        if question.subject in grouping
    ]
    if not grouped:
        raise InputError(
            f"no question has one of the {len(grouping)} subjects that domains names; load MMLU, "
            "or leave domains out."
        )
    return grouped


def _dev(
    source: str | Path | Sequence[Question], split: str, subjects: Iterable[str] | None, shots: int
) -> Sequence[Question]:
    """The dev split beside a split of MMLU."""
    what = f"shots is {shots}, and shots are questions of MMLU's dev split"
    if not isinstance(source, str | Path) or source == "mini":
        raise InputError(f"{what}; load MMLU, or give questions their own (Question.shots).")
    folder = None if source == "mmlu" else _folder(source, split).resolve()
    if (split if folder is None else folder.name) == "dev":
        raise InputError(f"{what}, which has to stay unasked; load 'val' or 'test'.")
    if folder is None:
        return mmlu.from_hub("dev", subjects)
    if not (folder.parent / "dev").is_dir():
        raise InputError(f"{what}; add the folder {str(folder.parent / 'dev')!r}, or ask for none.")
    return mmlu.from_folder(folder.parent / "dev")
