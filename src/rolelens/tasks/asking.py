"""How a task is put to a model: what may be chosen, and a task made ready to be run many times."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward import Tokens
from rolelens.tasks.problems import Problem, right_number
from rolelens.tasks.scores import Answers, Scored, Scores, Values, true_options
from rolelens.tasks.task import Metric, Task

Method: TypeAlias = Literal["letter", "cloze", "cloze_norm"]
Verifier: TypeAlias = Any
S = TypeVar("S", bound="Prepared")
T = TypeVar("T", bound="Tokenised")
Records: TypeAlias = npt.NDArray[Any]
"""What is kept of cells and items, ``[cell, item, column]``: numbers, or texts."""


class BareOptions(TypedDict, total=False):
    """How a task is put, where the number of answers and the seed are told elsewhere.

    What each is: see :class:`Options`.
    """

    metric: Metric | None
    system: str | None
    prefix: str
    temperature: float
    top_p: float
    max_new_tokens: int
    verifier: Verifier


class SeededOptions(BareOptions, total=False):
    """How a task is put, where the number of answers is told elsewhere."""

    seed: int


class NumberedOptions(BareOptions, total=False):
    """How a task is put, where the seed is told elsewhere."""

    n: int


class Options(SeededOptions, NumberedOptions, total=False):
    """How a task is put; which of these apply depends on the task.

    Attributes:
        metric: a measure of one's own: ``metric(item, answer) -> float``; the answer being the
            log-probabilities of a question's options (nats, a tensor), the text generated to a
            problem, or the log-probability of a text (nats a token).
        system: a system prompt (questions and problems).
        prefix: what the user says before every question, blank lines included (questions).
        n: answers to each problem (problems).
        temperature: 0 is greedy (problems).
        top_p: nucleus (problems).
        max_new_tokens: length of an answer at most, in tokens; 256 by default (problems).
        verifier: whether a text answers a problem rightly (problems).
        seed: of the sampling (problems).
    """


QUESTION_OPTIONS = ("metric", "system", "prefix")
PROBLEM_OPTIONS = (
    "metric",
    "system",
    "n",
    "temperature",
    "top_p",
    "max_new_tokens",
    "verifier",
    "seed",
)
TEXT_OPTIONS = ("metric",)


def check_options(task: Task[Any], options: Options, known: Sequence[str]) -> None:
    """Refuse what has no effect on a task.

    Raises:
        InputError: an option that the task does not have.
    """
    for name, value in options.items():
        if name not in known and value is not None:
            raise InputError(
                f"{name} is {value!r}, which has no effect on {task.name!r}; leave it out. What "
                f"can be chosen there: {', '.join(known)}."
            )


def checked_method(method: str | None) -> Method:
    """A way of scoring questions, if it is one; ``letter`` by default.

    Raises:
        InputError: it is none.
    """
    for known in get_args(Method):
        if method == known:
            return known  # type: ignore[no-any-return]
    if method is None:
        return "letter"
    raise InputError(f"method is {method!r}; it has to be one of {', '.join(get_args(Method))}.")


@dataclass(frozen=True)
class Prepared(ABC):
    """A task, ready to be run in many cells.

    Attributes:
        task: what is asked.
        metric: a measure of one's own.
    """

    task: Task[Any]
    metric: Metric | None

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """What is kept of an item, such as the log-probability of each option."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that what is kept depends on, beside the task; JSON-able."""

    @abstractmethod
    def scored(self, items: Sequence[int], records: Records) -> Scored[Any]:
        """What some items are worth.

        Args:
            items: which.
            records: what was kept of them, ``[item, column]``.
        """

    def take(self: S, items: Sequence[int]) -> S:
        """Some of the items."""
        return dataclasses.replace(self, task=self.task.take(items))

    @property
    def dtype(self) -> Any:
        """Of the records: numbers by default."""
        return np.float32


@dataclass(frozen=True)
class Tokenised(Prepared):
    """A task whose answers are given: their log-probabilities are read, nothing is generated.

    Attributes:
        tokens: rows that are run.
        owners: which item each row belongs to.
        vocab: the tokens whose logits are read at the end of each row; None: the log-probability of
            each token of each row's answer is read.
        prompted: whether rows have prompts, whose tokens a selection can name.
    """

    prompted: ClassVar[bool] = True
    tokens: Tokens
    owners: Int[Tensor, " row"]
    vocab: tuple[int, ...] | None

    @abstractmethod
    def values(self, read: Float[Tensor, "*cell row read"]) -> Float[Tensor, "*cell item column"]:
        """What is kept of each item, from what was read off the model.

        Args:
            read: logits of ``vocab`` at the end of each row, or the log-probability of each token
                of each row's answer (0 past its end).
        """

    def rows(self, items: Sequence[int]) -> list[int]:
        """The rows of some items."""
        return [int(row) for item in items for row in (self.owners == item).nonzero()]

    def take(self: T, items: Sequence[int]) -> T:
        """Some of the items."""
        rows = self.rows(items)
        place = {item: n for n, item in enumerate(items)}
        owners = torch.tensor([place[int(self.owners[row])] for row in rows])
        return dataclasses.replace(
            self, task=self.task.take(items), tokens=self.tokens.take(rows), owners=owners
        )


@dataclass(frozen=True)
class Choices(Tokenised):
    """Questions whose options are scored.

    Attributes:
        method: how.
        put: system prompt and prefix.
    """

    method: Method
    put: dict[str, Any]

    @property
    def n_options(self) -> int:
        """Options of the question that has most."""
        return max(len(question.options) for question in self.task)

    @property
    def columns(self) -> tuple[str, ...]:
        """The log-probability of each option."""
        return tuple(f"logprob_{k}" for k in range(self.n_options))

    @property
    def settings(self) -> dict[str, Any]:
        """How options are scored."""
        return {"method": self.method, "letters": list(self.vocab or ()), **self.put}

    def values(self, read: Float[Tensor, "*cell row read"]) -> Float[Tensor, "*cell item column"]:
        """Option log-probabilities, in nats."""
        most = self.n_options
        missing = torch.tensor([[k >= len(q.options) for k in range(most)] for q in self.task])
        if self.method == "letter":
            return read[..., :most].masked_fill(missing, -torch.inf).log_softmax(dim=-1)
        sums = read.double().sum(dim=-1)
        if self.method == "cloze_norm":
            lengths = [
                len(ids) - n
                for ids, n in zip(self.tokens.ids, self.tokens.prompt_lengths, strict=True)
            ]
            sums = sums / torch.tensor(lengths)
        scores = torch.full((*read.shape[:-2], len(self.task), most), -torch.inf)
        scores[..., ~missing] = sums.float()
        return scores

    def scored(self, items: Sequence[int], records: Records) -> Scores:
        """Scores of some questions."""
        questions = tuple(self.task[n] for n in items)
        logprobs = torch.from_numpy(records)
        true = self.true[list(items)]
        return Scores(questions, logprobs, self.method, true, metric=self.metric)

    @cached_property
    def true(self) -> Bool[Tensor, "question option"]:
        """Which options are correct."""
        return true_options(tuple(self.task), self.n_options)


@dataclass(frozen=True)
class Passages(Tokenised):
    """Texts, read by their log-probability."""

    prompted: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The mean log-probability of a token, in nats."""
        return ("logprob",)

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing is chosen."""
        return {"method": "text"}

    def values(self, read: Float[Tensor, "*cell row read"]) -> Float[Tensor, "*cell item column"]:
        """Mean log-probability of a token, in nats."""
        lengths = torch.tensor(
            [len(i) - n for i, n in zip(self.tokens.ids, self.tokens.prompt_lengths, strict=True)]
        )
        sums = torch.zeros(*read.shape[:-2], len(self.task), dtype=torch.float64)
        sums.index_add_(-1, self.owners, read.double().sum(dim=-1))
        counts = torch.zeros(len(self.task)).index_add_(0, self.owners, lengths.float())
        return (sums / counts).float()[..., None]

    def scored(self, items: Sequence[int], records: Records) -> Values:
        """The log-probability of some texts."""
        texts = tuple(self.task[n] for n in items)
        return Values(texts, torch.from_numpy(records[:, 0]), metric=self.metric)


@dataclass(frozen=True)
class Generated(Prepared):
    """Problems that are answered with generated texts.

    Attributes:
        prompts: what the user says, a problem.
        system: a system prompt.
        n: answers to each.
        temperature: 0 is greedy.
        top_p: nucleus.
        max_new_tokens: length of an answer at most, in tokens.
        verifier: whether a text answers a problem rightly.
        seed: of the sampling.
    """

    prompts: tuple[str, ...]
    system: str | None = None
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    verifier: Verifier = right_number
    seed: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts."""
        return tuple(f"text_{k}" for k in range(self.n))

    @property
    def dtype(self) -> Any:
        """Texts."""
        return object

    @property
    def settings(self) -> dict[str, Any]:
        """All that an answer depends on; what is right is found out afterwards."""
        names = ("system", "n", "temperature", "top_p", "max_new_tokens", "seed")
        return {name: getattr(self, name) for name in names}

    def take(self, items: Sequence[int]) -> "Generated":
        """Some of the problems."""
        prompts = tuple(self.prompts[n] for n in items)
        return dataclasses.replace(self, task=self.task.take(items), prompts=prompts)

    def scored(self, items: Sequence[int], records: Records) -> Answers:
        """Which answers are right."""
        problems = tuple(self.task[n] for n in items)
        texts = tuple(tuple(map(str, row)) for row in records.tolist())
        right = [
            [self._right(problem, text) for text in row]
            for problem, row in zip(problems, texts, strict=True)
        ]
        return Answers(
            problems,
            texts,
            torch.tensor(right),
            self.task,  # type: ignore[arg-type]
            self.system,
            metric=self.metric,
        )

    def _right(self, problem: Problem, text: str) -> bool:
        verdict = self.verifier(problem, text)
        if not isinstance(verdict, bool):
            raise InputError(
                f"the verifier says {verdict!r} of an answer to {problem.id!r}; it has to be True "
                "or False."
            )
        return verdict


@dataclass(frozen=True)
class Plainly(Prepared):
    """A task of one's own, which scores itself: one call a cell."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Its score."""
        return ("score",)

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing is known of it."""
        return {"method": f"{type(self.task).__name__}.score"}

    def scored(self, items: Sequence[int], records: Records) -> Values:
        """Its score of some items."""
        chosen = tuple(self.task[n] for n in items)
        values = torch.from_numpy(records[:, 0].astype(np.float32))
        return Values(chosen, values, "score", metric=self.metric)
