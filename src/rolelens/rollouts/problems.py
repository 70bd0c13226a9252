"""Problems with an answer that can be checked, and the checking."""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rolelens.errors import InputError, checked_seed
from rolelens.rows import from_hub, jsonl

STEPWISE = "{question}\n\nThink step by step, and end with 'The answer is' and the number."
"""How a problem is put to the model."""
BRIEFLY = "{question}\n\nAnswer in one sentence that ends with the number."
"""How the arithmetic made by rolelens is put: small models lose their way in many steps."""
HUB = "openai/gsm8k"


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: stable name.
        question: what is asked.
        answer: what a right answer says, such as ``"18"``.
        solution: a worked solution, where there is one.
        domain: what it is about.
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    domain: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.answer.strip():
            raise InputError(f"problem {self.id!r} has an empty question or answer; fill it in.")


Verifier: TypeAlias = Callable[[Problem, str], bool]
"""Whether a text answers a problem rightly."""


@dataclass(frozen=True)
class Problems(Sequence[Problem]):
    """A list of problems under a name.

    Attributes:
        name: of the list.
        problems: what is asked.
        template: how each is put to the model; ``{question}`` stands in it.
        shots: problems that are shown before each, with their solutions.
    """

    name: str
    problems: tuple[Problem, ...]
    template: str = STEPWISE
    shots: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if not self.problems:
            raise InputError(f"{self.name} has no problems; at least one is needed.")
        if "{question}" not in self.template:
            raise InputError(f"template is {self.template!r}; it has to contain '{{question}}'.")
        ids = [problem.id for problem in self.problems]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise InputError(f"problems share the id {twice!r}; every id has to be unique.")

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self.problems[index]

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def take(self, indices: Sequence[int]) -> "Problems":
        """Some of the problems."""
        chosen = tuple(self.problems[index] for index in indices)
        return Problems(self.name, chosen, self.template, self.shots)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple["Problems", "Problems"]:
        """Cut into a part that directions are estimated on and one that they are tried on.

        Args:
            share: of the problems that goes into the first part.
            seed: of the shuffling.
        """
        if not 0 < round(share * len(self)) < len(self):
            raise InputError(f"share is {share}; of {len(self)} problems both parts need some.")
        order = np.random.default_rng(checked_seed(seed)).permutation(len(self)).tolist()
        cut = round(share * len(self))
        return self.take(sorted(order[:cut])), self.take(sorted(order[cut:]))

    def prompt(self, problem: Problem) -> str:
        """What the user says."""
        shown = [
            f"{self.template.replace('{question}', shot.question)}\n\n{shot.solution}\n\n"
            for shot in self.shots
        ]
        return "".join(shown) + self.template.replace("{question}", problem.question)


def load_problems(
    source: str | Path, split: str = "test", *, shots: int = 0, template: str | None = None
) -> Problems:
    """Load problems.

    Args:
        source: ``"arithmetic"`` (word problems of one or two steps, made by rolelens);
            ``"gsm8k"`` (from the hub, ``openai/gsm8k``); a JSONL file whose rows have ``question``
            and ``answer``, where an answer of several lines ends in ``#### `` and the number, as
            GSM8K's do; or a folder with ``{split}.jsonl`` in it.
        split: of the hub's, or the file of a folder.
        shots: how many problems of the training split are shown with their solutions before each.
        template: how a problem is put to the model; by default :data:`STEPWISE`, and
            :data:`BRIEFLY` for the arithmetic.

    Raises:
        InputError: nothing there, or a row that cannot be read (file and line are named).
    """
    if shots < 0:
        raise InputError(f"shots is {shots}; it has to be 0 or more.")
    shown: tuple[Problem, ...] = ()
    if source == "arithmetic":
        if shots:
            raise InputError(f"shots is {shots}; arithmetic has no worked solutions to show.")
        return Problems("arithmetic", arithmetic(), BRIEFLY if template is None else template)
    template = STEPWISE if template is None else template
    if source == "gsm8k":
        problems = _hub(split)
        shown = _shown(_hub("train"), shots) if shots else ()
        return _others("gsm8k", problems, template, shown)
    path = Path(source)
    if path.is_dir():
        if shots:
            shown = _shown(_file(_one(path, "train")), shots)
        path = _one(path, split)
    elif shots:
        raise InputError(f"shots is {shots}; pass a folder with a training file to take them from.")
    return _others(path.stem, _file(path), template, shown)


def arithmetic(n: int = 400, seed: int = 0) -> tuple[Problem, ...]:
    """Word problems of one or two steps with numbers up to twenty, for small models.

    Args:
        n: how many; the first ones do not depend on it.
        seed: of the numbers.
    """
    made: dict[str, Problem] = {}
    for k in range(50 * n):
        if len(made) == n:
            break
        rng = random.Random(f"{seed}/{k}")
        name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
        text, value, steps = rng.choice(_STORIES)
        a, b, c = rng.randint(2, 20), rng.randint(2, 10), rng.randint(2, 5)
        if min(found := value(a, b, c)) < 0:
            continue
        question = text.format(name=name, thing=thing, a=a, b=b, c=c)
        made.setdefault(
            question,
            Problem(f"arithmetic-{k:05d}", question, str(found[-1]), domain=steps),
        )
    return tuple(made.values())


def final_number(text: str) -> float | None:
    """The number that a text ends up with; None where there is none.

    What follows the last ``####``, ``answer is`` or ``boxed{`` on its line, and there the last
    ``=`` of a calculation; else the last number.
    """
    marked = list(re.finditer(r"####|answer(?: is|:)|\\boxed\{", text, re.IGNORECASE))
    # In 10-3 the sign is not of the 3.
    number = r"(?:(?<![\d)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
    after = None
    if marked:
        said, *_ = text[marked[-1].end() :].strip().partition("\n")
        after = re.search(number, said.rpartition("=")[2]) or re.search(number, said)
    found = after.group() if after else next(iter(re.findall(number, text)[::-1]), None)
    return None if found is None else float(re.sub(r"[$,]", "", found))


def right_number(problem: Problem, text: str) -> bool:
    """Whether a text ends up with the number of a problem's answer (exact match, as GSM8K's)."""
    wanted = final_number(problem.answer)
    if wanted is None:
        raise InputError(
            f"the answer of problem {problem.id!r} is {problem.answer!r}, which has no number; "
            "pass a verifier of your own."
        )
    found = final_number(text)
    return found is not None and abs(found - wanted) < 1e-6


_Value: TypeAlias = Callable[[int, int, int], tuple[int, ...]]
_NAMES = ("Ada", "Ben", "Chidi", "Dora", "Emre", "Farah", "Goran", "Hana", "Ines", "Jonas")
_THINGS = ("apples", "books", "coins", "stamps", "marbles", "pencils", "shells", "tickets")
_STORIES: tuple[tuple[str, _Value, str], ...] = (
    (
        "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
        lambda a, b, c: (a + b,),
        "one step",
    ),
    (
        "{name} had {a} {thing} and gave {b} of them away. How many {thing} are left?",
        lambda a, b, c: (a - b,),
        "one step",
    ),
    (
        "{name} fills {c} boxes with {b} {thing} each. How many {thing} is that in all?",
        lambda a, b, c: (b * c,),
        "one step",
    ),
    (
        "{name} has {a} {thing}, finds {b} more and loses {c}. How many {thing} does {name} have?",
        lambda a, b, c: (a + b, a + b - c),
        "two steps",
    ),
    (
        "{name} buys {c} bags of {b} {thing} and gives {a} {thing} to a friend. How many {thing} "
        "does {name} keep?",
        lambda a, b, c: (b * c, b * c - a),
        "two steps",
    ),
)


def _shown(problems: Sequence[Problem], shots: int) -> tuple[Problem, ...]:
    """The first problems that have a solution to show."""
    solved = tuple(problem for problem in problems if problem.solution)
    if len(solved) < shots:
        raise InputError(f"shots is {shots}; the training split has {len(solved)} solutions.")
    return solved[:shots]


def _others(
    name: str, problems: Sequence[Problem], template: str, shown: tuple[Problem, ...]
) -> Problems:
    """Problems without those that are shown before each."""
    seen = {shot.question for shot in shown}
    rest = tuple(problem for problem in problems if problem.question not in seen)
    return Problems(name, rest, template, shown)


def _one(folder: Path, split: str) -> Path:
    named = folder / f"{split}.jsonl"
    found = [named] if named.is_file() else sorted(folder.glob(f"{split}*.jsonl"))
    if len(found) != 1:
        raise InputError(
            f"{folder} has {len(found)} files {split}*.jsonl; name the file that is meant."
        )
    return found[0]


def _file(path: Path) -> tuple[Problem, ...]:
    if not path.is_file():
        raise InputError(
            f"no problems {str(path)!r}; name 'arithmetic', 'gsm8k', a JSONL file or a folder."
        )
    problems = []
    for n, (where, row) in enumerate(jsonl(path), 1):
        if not isinstance(row, dict):
            raise InputError(f"{where} holds {json.dumps(row)[:40]!r}; expected an object.")
        problems.append(_problem(where, row, f"{path.stem}-{n:05d}"))
    return tuple(problems)


def _hub(split: str) -> tuple[Problem, ...]:
    otherwise = "download it where there is a network, or pass a JSONL file"
    rows = from_hub(f"GSM8K ({HUB}, {split})", HUB, "main", split, otherwise)
    return tuple(_problem(f"row {n}", row, f"{split}-{n:05d}") for n, row in enumerate(rows))


def _problem(where: str, row: Mapping[str, Any], name: str) -> Problem:
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str | int | float):
        raise InputError(
            f"{where}: expected a text under 'question' and an answer under 'answer'; found "
            f"{str(dict(row))[:80]}."
        )
    solution, mark, last = str(answer).rpartition("####")
    solution = re.sub(r"<<.*?>>", "", solution).strip()
    worked = (
        f"{solution}\nThe answer is {last.strip()}." if mark else str(row.get("solution") or "")
    )
    try:
        return Problem(
            str(row.get("id") or name), question, last.strip(), worked, str(row.get("domain") or "")
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
