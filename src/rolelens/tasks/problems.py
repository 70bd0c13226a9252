"""Problems with an answer that can be checked, and the checking."""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from rolelens.errors import InputError
from rolelens.tasks.numbers import last_number, only_number
from rolelens.tasks.task import Task, checked_texts

STEPWISE = "{question}\n\nThink step by step, and end with 'The answer is' and the number."
"""How a problem is put to the model."""
BRIEFLY = "{question}\n\nAnswer in one sentence that ends with the number."
"""How the arithmetic made by rolelens is put: small models lose their way in many steps."""


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: stable name.
        question: what is asked.
        answer: what a right answer says, such as ``"18"``.
        solution: a worked solution, where there is one.
        domain: what it is about.

    Raises:
        InputError: a field is no text, or the id, the question or the answer is empty.
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    domain: str = ""

    def __post_init__(self) -> None:
        checked_texts("problem", self, ("id", "question", "answer"), ("solution", "domain"))


Verifier: TypeAlias = Callable[[Problem, str], bool]
"""Whether a text answers a problem rightly."""


@dataclass(frozen=True, repr=False)
class Problems(Task[Problem]):
    """Problems under a name; those with the same question are tied.

    Attributes:
        name: of the task.
        items: what is asked.
        template: how each is put to the model; ``{question}`` stands in it.
        shots: problems that are shown before each, with their solutions.

    Raises:
        InputError: as for :class:`Task`, a template without ``{question}``, or a shot without a
            solution.
    """

    kind: ClassVar[type] = Problem
    template: str = STEPWISE
    shots: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.template, str) or "{question}" not in self.template:
            raise InputError(f"template is {self.template!r}; it has to contain '{{question}}'.")
        object.__setattr__(self, "shots", tuple(self.shots))
        for shot in self.shots:
            if not isinstance(shot, Problem) or not shot.solution.strip():
                raise InputError(
                    f"the shot {str(shot)[:60]!r} has no solution to show; give problems that have "
                    "one."
                )

    def ties(self) -> list[list[object]]:
        """The question of each."""
        return [[problem.question] for problem in self]

    def asked(self, item: Problem) -> object:
        """A problem and its prompt."""
        return {**dataclasses.asdict(item), "prompt": self.prompt(item)}

    def prompt(self, problem: Problem) -> str:
        """What the user says."""
        shown = [
            f"{self.template.replace('{question}', shot.question)}\n\n{shot.solution}\n\n"
            for shot in self.shots
        ]
        return "".join(shown) + self.template.replace("{question}", problem.question)


def right_number(problem: Problem, text: str) -> bool:
    """Whether a text ends up with the number of a problem's answer (exact match, as GSM8K's).

    Both are read as :func:`final_number` reads a text. Whole numbers have to be equal; others may
    differ by rounding in the sixth decimal place, or in the ninth digit where they are large. A
    percentage equals its number and its hundredth.

    Raises:
        InputError: the problem's answer is not one number.
    """
    try:
        wanted = only_number(problem.answer)
    except InputError as error:
        raise InputError(f"problem {problem.id!r}: {error}") from error
    number = last_number(text)
    return number is not None and number.equals(wanted)


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
        steps_taken = value(a, b, c)
        if min(steps_taken) < 0:
            continue
        question = text.format(name=name, thing=thing, a=a, b=b, c=c)
        made.setdefault(
            question,
            Problem(f"arithmetic-{k:05d}", question, str(steps_taken[-1]), domain=steps),
        )
    return tuple(made.values())


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
