"""Where tasks come from."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rolelens.errors import InputError, unknown
from rolelens.rows import jsonl
from rolelens.tasks import bias, gsm8k, mmlu, pairs, paper, tables, truthful
from rolelens.tasks.bias import BiasQuestion, BiasQuestions
from rolelens.tasks.pairs import SentencePair, SentencePairs
from rolelens.tasks.passages import Text, Texts
from rolelens.tasks.problems import BRIEFLY, STEPWISE, Problem, Problems, arithmetic
from rolelens.tasks.questions import LETTERS, Question, Questions
from rolelens.tasks.tables import AnyItem
from rolelens.tasks.task import Task

AnyTask: TypeAlias = Questions | Problems | Texts | SentencePairs
_KINDS: dict[str, type[AnyItem]] = {
    "mini": Question,
    "mmlu": Question,
    "truthfulqa": Question,
    "arithmetic": Problem,
    "gsm8k": Problem,
    "svamp": Problem,
}
_OPTIONS: dict[type[Any], tuple[str, ...]] = {
    Question: ("subjects", "shots", "domains"),
    Problem: ("shots", "template"),
    BiasQuestion: (),
    Text: (),
    SentencePair: (),
}


def load_task(
    source: str
    | Path
    | Sequence[Question]
    | Sequence[Problem]
    | Sequence[Text]
    | Sequence[SentencePair],
    split: str = "test",
    *,
    subjects: str | Sequence[str] | None = None,
    shots: int = 0,
    domains: Literal["paper"] | Mapping[str, str] | None = None,
    template: str | None = None,
) -> AnyTask:
    """Load questions, problems, texts or pairs of sentences.

    Questions: ``"mini"`` (320 shipped with rolelens, 8 domains); ``"mmlu"`` (from the hub,
    ``cais/mmlu``); ``"truthfulqa"`` (from the hub, or a JSON file as its authors'
    ``mc_task.json``). Problems: ``"arithmetic"`` (word problems of one or two steps, made by
    rolelens); ``"gsm8k"`` and ``"svamp"`` (from the hub, ``openai/gsm8k`` and ``ChilleD/SVAMP``).

    A file of one's own is CSV with a header, JSONL or a JSON list. Rows with ``question``,
    ``answer`` and options (a list under ``options`` or ``choices``, or columns ``A``, ``B``, ...)
    are questions; the answer is a letter, an index counted from 0, or an option's text. Rows with
    ``question`` and ``answer`` only are problems, where an answer of several lines ends in
    ``#### `` and the number, as GSM8K's do. Rows with ``text`` are texts. ``id`` and ``domain`` may
    be there. A JSONL file of BBQ, or a folder of them, is read as its authors write it, and so is
    the CSV file of CrowS-Pairs.

    Args:
        source: one of those names; a file; a folder of MMLU's CSV files (headerless: question, A,
            B, C, D, letter), else of JSONL files named after the splits, else of JSON files with
            ready-made prompts, one a domain, as the paper's
            (``[{"prompt", "answer", "subject"}]``); or a list of :class:`rolelens.Question`,
            ``Problem`` or ``Text`` items.
        split: ``dev``, ``val`` or ``test`` of MMLU, ``train`` or ``test`` of GSM8K and SVAMP, and
            in a folder the subfolder or the file of that name. Of TruthfulQA ``mc1`` (one true
            option; the default) or ``mc2`` (several).
        subjects: of questions, those to keep; all by default.
        shots: how many questions of MMLU's dev split, of the same subject, or problems of the
            training split are shown with their answers before each item.
        domains: a domain for every subject that is to be kept, in place of MMLU's own, where each
            subject is a domain; ``"paper"`` for the eight of 2502.12055
            (``rolelens.tasks.PAPER_DOMAINS``).
        template: how a problem is put to the model; by default
            ``rolelens.tasks.STEPWISE``, and ``BRIEFLY`` for the arithmetic.

    Raises:
        InputError: nothing there, an option that the source does not take, or a row that cannot be
            read (file and line are named).
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
        raise InputError(f"shots is {shots!r}; it has to be a whole number, 0 or more.")
    if not isinstance(split, str):
        raise InputError(f"split is {split!r}; name a split, such as 'test'.")
    given = {"subjects": subjects, "shots": shots or None, "domains": domains, "template": template}
    known = _KINDS.get(source) if isinstance(source, str) else None
    if known is not None:
        _fitting(known, repr(source), given)
    if shots and source in ("arithmetic", "svamp"):
        raise InputError(f"shots is {shots}; {source} has no worked solutions to show.")
    grouping = paper.PAPER_DOMAINS if domains == "paper" else domains
    if isinstance(grouping, str):
        raise unknown("grouping of subjects", grouping, ["paper"])
    wanted = (subjects,) if isinstance(subjects, str) else subjects
    needed = grouping if wanted is None else wanted
    name, items = _read(source, split, needed)
    kind = _kind(name, items)
    _fitting(kind, repr(name), given)
    if kind is Problem:
        problems = [item for item in items if isinstance(item, Problem)]
        shown = _solved(source, split, shots) if shots else _shots(source)
        return _problems(name, problems, _template(source, template), shown)
    if kind is BiasQuestion:
        return BiasQuestions(name, tuple(item for item in items if isinstance(item, BiasQuestion)))
    if kind is SentencePair:
        return SentencePairs(name, tuple(item for item in items if isinstance(item, SentencePair)))
    if kind is Text:
        return Texts(name, tuple(item for item in items if isinstance(item, Text)))
    questions = [item for item in items if isinstance(item, Question)]
    if wanted is not None:
        questions = mmlu.kept(questions, wanted)
    if grouping is not None:
        questions = mmlu.grouped(questions, grouping, strict=wanted is not None)
    if shots:
        if any(question.prompt is not None for question in questions):
            raise InputError(f"shots is {shots} and the prompts are ready-made; ask for no shots.")
        questions = mmlu.with_shots(questions, _dev(source, split, needed, shots), shots)
        name = f"{name}, {shots} shots"
    return Questions(name, tuple(questions))


def _read(source: Any, split: str, subjects: Iterable[str] | None) -> tuple[str, Sequence[AnyItem]]:
    """A source's name and items; of the hub, only those of the subjects."""
    if isinstance(source, Task):
        _whole(split, repr(source.name))
        return source.name, source.items
    if not isinstance(source, str | Path):
        _whole(split, "a list")
        return _listed(source)
    if source in ("mini", "arithmetic"):
        _whole(split, repr(source))
        return str(source), _mini() if source == "mini" else arithmetic()
    if source == "mmlu":
        return "mmlu", mmlu.from_hub(split, subjects)
    if source == "truthfulqa":
        return f"truthfulqa {_targets(split)}", truthful.from_hub(_targets(split))
    if source in gsm8k.HUBS:
        return str(source), gsm8k.from_hub(str(source), split)
    path = Path(source)
    if path.is_file():
        return _file(path, split)
    folder = _folder(path, split)
    if any(folder.glob("*.csv")):
        return folder.name, mmlu.from_folder(folder)
    files = sorted(folder.glob("*.jsonl"))
    if files and all(_has(file, bias.is_bbq) for file in files):
        _whole(split, str(path))
        rows = [row for file in files for row in tables.rows_of(file)]
        return folder.name, bias.from_rows(rows)
    if files:
        return _file(_one(folder, split), "test")
    if any(folder.glob("*.json")):
        return folder.name, paper.from_folder(folder)
    raise InputError(
        f"{str(folder)!r} has no CSV, JSONL or JSON file; name the folder that has them."
    )


def _file(path: Path, split: str) -> tuple[str, Sequence[AnyItem]]:
    if path.suffix == ".csv" and not tables.has_header(path):
        _whole(split, str(path))
        return path.stem, mmlu.from_file(path)
    rows = tables.rows_of(path)
    columns = set(rows[0][1]) if rows else set()
    if path.suffix == ".json" and columns & {"mc1_targets", "mc2_targets"}:
        targets = _targets(split)
        plain = [row for _, row in rows]
        return f"{path.stem} {targets}", list(truthful.from_rows(plain, targets, str(path)))
    _whole(split, str(path))
    if bias.is_bbq(columns):
        return path.stem, bias.from_rows(rows)
    if columns >= set(pairs.NAMES):
        return path.stem, pairs.from_rows(rows, path.stem)
    if path.suffix == ".json" and columns >= {"prompt", "subject"} and "question" not in columns:
        return path.stem, list(paper.from_rows([row for _, row in rows], path))
    return path.stem, tables.items_of(rows, path)


def _has(path: Path, known: Callable[[set[str]], bool]) -> bool:
    """Whether the first row of a file has the columns that are known."""
    first = next(jsonl(path), ("", None))[1]
    return isinstance(first, dict) and known(set(first))


def _listed(source: Any) -> tuple[str, Sequence[AnyItem]]:
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InputError(
            f"the task is {source!r:.60}; pass a name, a path, or a list of rl.Question, "
            "rl.Problem or rl.Text items."
        )
    items = tuple(source)
    if not items:
        raise InputError("the list has no items; a task needs at least one.")
    for item in items:
        if not isinstance(item, Question | Problem | Text | SentencePair):
            raise InputError(
                f"{str(item)[:60]!r} is no item of a task; pass rl.Question, rl.Problem or rl.Text "
                "items, or a file."
            )
    return f"own {_plural(type(items[0]))}", items


def _kind(name: str, items: Sequence[AnyItem]) -> type[AnyItem]:
    """What all items are."""
    kinds = {type(item) for item in items}
    if len(kinds) > 1:
        names = " and ".join(sorted(map(_plural, kinds)))
        raise InputError(f"{name!r} has {names}; a task has items of one kind, so load two tasks.")
    if not kinds:
        raise InputError(f"{name!r} has no items; at least one is needed.")
    return kinds.pop()


def _plural(kind: type[AnyItem]) -> str:
    return f"{kind.__name__.lower()}s"


def _fitting(kind: type[AnyItem], name: str, given: Mapping[str, Any]) -> None:
    """Refuse options that items of a kind do not take."""
    for option, value in given.items():
        if value is not None and option not in _OPTIONS[kind]:
            taken = " and ".join(_OPTIONS[kind]) or "no such options"
            raise InputError(
                f"{option} is {value!r}, and {name} has {_plural(kind)}, which take {taken}; leave "
                f"{option} out."
            )


def _whole(split: str, name: str) -> None:
    if split != "test":
        raise InputError(f"split is {split!r}, and {name} has no splits; leave split out.")


def _targets(split: str) -> str:
    return truthful.known_targets("mc1" if split == "test" else split)


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


def _folder(folder: Path, split: str) -> Path:
    """The folder of a split: the subfolder of that name, or the folder where there is none."""
    if not folder.is_dir():
        names = ", ".join(map(repr, _KINDS))
        raise InputError(
            f"no task {str(folder)!r}; name one of {names}, a folder, or a CSV, JSONL or JSON file."
        )
    if (folder / split).is_dir():
        return folder / split
    if split not in ("test", folder.resolve().name) and not any(folder.glob(f"{split}*.jsonl")):
        raise InputError(f"{str(folder)!r} has no split {split!r}; name one that it has.")
    return folder


def _one(folder: Path, split: str) -> Path:
    """The JSONL file of a split."""
    named = folder / f"{split}.jsonl"
    files = [named] if named.is_file() else sorted(folder.glob(f"{split}*.jsonl"))
    if len(files) != 1:
        raise InputError(
            f"{folder} has {len(files)} files {split}*.jsonl; name the file that is meant."
        )
    return files[0]


def _dev(source: Any, split: str, subjects: Iterable[str] | None, shots: int) -> Sequence[Question]:
    """The dev split beside a split of MMLU."""
    what = f"shots is {shots}, and shots are questions of MMLU's dev split"
    if source != "mmlu" and (not isinstance(source, str | Path) or not Path(source).is_dir()):
        raise InputError(f"{what}; load MMLU, or give questions their own (Question.shots).")
    folder = None if source == "mmlu" else _folder(Path(source), split).resolve()
    if (split if folder is None else folder.name) == "dev":
        raise InputError(f"{what}, which has to stay unasked; load 'val' or 'test'.")
    if folder is None:
        return mmlu.from_hub("dev", subjects)
    if not (folder.parent / "dev").is_dir():
        raise InputError(f"{what}; add the folder {str(folder.parent / 'dev')!r}, or ask for none.")
    return mmlu.from_folder(folder.parent / "dev")


def _solved(source: Any, split: str, shots: int) -> tuple[Problem, ...]:
    """The first problems of the training split that have a solution to show."""
    if source == "gsm8k":
        training: Sequence[AnyItem] = gsm8k.from_hub("gsm8k", "train")
    elif isinstance(source, str | Path) and Path(source).is_dir():
        _, training = _file(_one(_folder(Path(source), split), "train"), "test")
    else:
        raise InputError(f"shots is {shots}; pass a folder with a training file to take them from.")
    solved = [item for item in training if isinstance(item, Problem) and item.solution]
    if len(solved) < shots:
        raise InputError(f"shots is {shots}; the training split has {len(solved)} solutions.")
    return tuple(solved[:shots])


def _problems(
    name: str, problems: Iterable[Problem], template: str, shown: tuple[Problem, ...]
) -> Problems:
    """Problems without those that are shown before each."""
    seen = {shot.question for shot in shown}
    rest = tuple(problem for problem in problems if problem.question not in seen)
    return Problems(name, rest, template, shown)


def _template(source: Any, template: str | None) -> str:
    if template is not None:
        return template
    if isinstance(source, Problems):
        return source.template
    return BRIEFLY if source == "arithmetic" else STEPWISE


def _shots(source: Any) -> tuple[Problem, ...]:
    return source.shots if isinstance(source, Problems) else ()
