"""What a model answers to every item of a task, and what that is worth."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rolelens import stats
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.tasks.problems import Problem, Problems
from rolelens.tasks.questions import Question
from rolelens.tasks.task import Item, Metric
from rolelens.vectors import Source

I = TypeVar("I", bound=Item)  # noqa: E741
S = TypeVar("S", bound="Scored[Any]")


@dataclass(frozen=True, eq=False, repr=False)
class Scored(Shown, ABC, Generic[I]):
    """What a model answers to the items of a task, by one or more measures.

    Attributes:
        items: what was asked.
        metric: a measure of one's own, which then comes first.
    """

    items: tuple[I, ...]
    metric: Metric | None = dataclasses.field(default=None, kw_only=True)

    @property
    @abstractmethod
    def built_in(self) -> dict[str, Callable[[], Float[Tensor, " item"]]]:
        """The measures that every task of this kind has."""

    @abstractmethod
    def answer(self, n: int) -> Any:
        """What a metric is given of the n-th item."""

    @abstractmethod
    def take(self: S, indices: Sequence[int]) -> S:
        """Those of some items."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the items."""
        return tuple(item.id for item in self.items)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domain of each item."""
        return tuple(item.domain for item in self.items)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures; the first is what cells are judged by."""
        return (*([metric_name(self.metric)] if self.metric else []), *self.built_in)

    def measure(self, name: str | None = None) -> Float[Tensor, " item"]:
        """One number an item, in float64.

        Args:
            name: of a measure; the first by default.

        Raises:
            InputError: there is no such measure, or a metric gives no finite number.
        """
        name = self.measures[0] if name is None else name
        if self.metric is not None and name == metric_name(self.metric):
            values = [
                metric_value(self.metric, item, self.answer(n)) for n, item in enumerate(self.items)
            ]
            return torch.tensor(values, dtype=torch.float64)
        if name not in self.built_in:
            raise unknown("measure", name, self.measures)
        return self.built_in[name]().double()

    def mean(self, name: str | None = None) -> float:
        """Mean of a measure over the items."""
        return float(self.measure(name).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean of the first measure: Wilson's of shares, else by bootstrap."""
        return _interval(self.measure())

    def domain(self: S, name: str) -> S:
        """Those of one domain's items.

        Raises:
            InputError: no item is of it.
        """
        rows = [n for n, domain in enumerate(self.domains) if domain == name]
        if not rows:
            raise unknown("domain", name, sorted(set(self.domains)))
        return self.take(rows)

    def table(self) -> pd.DataFrame:
        """A row a domain: ``items``, the mean of each measure, the 95 % interval of the first."""
        values = {name: self.measure(name) for name in self.measures}
        first = next(iter(values))
        rows = []
        for domain in sorted(set(self.domains)):
            index = [n for n, of in enumerate(self.domains) if of == domain]
            low, high = _interval(values[first][index])
            means = {name: float(value[index].mean()) for name, value in values.items()}
            rows.append(
                {
                    "domain": domain,
                    "items": len(index),
                    first: means.pop(first),
                    "low": low,
                    "high": high,
                    **means,
                }
            )
        return pd.DataFrame(rows).set_index("domain")


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Scored[Question]):
    """The log-probability of every option of every question.

    Attributes:
        items: the questions.
        logprobs: in nats; options a question does not have are -inf. ``letter``: of the option's
            letter among the question's letters (they sum to 1). ``cloze``: of the option's whole
            text. ``cloze_norm``: the mean over the option's tokens.
        method: how options were scored.
        known: which options are correct; found out from the questions where it is not given.
    """

    logprobs: Float[Tensor, "question option"]
    method: str
    known: Bool[Tensor, "question option"] | None = None

    @property
    def true(self) -> Bool[Tensor, "question option"]:
        """Which options are correct."""
        if self.known is not None:
            return self.known
        return true_options(self.items, self.logprobs.shape[1])

    @property
    def built_in(self) -> dict[str, Callable[[], Float[Tensor, " item"]]]:
        """Accuracy and margin."""
        return {"accuracy": lambda: self.correct.double(), "margin": lambda: self.margins}

    def answer(self, n: int) -> Float[Tensor, " option"]:
        """The log-probabilities of the options that the question has."""
        return self.logprobs[n, : len(self.items[n].options)]

    def take(self, indices: Sequence[int]) -> "Scores":
        """Those of some questions."""
        rows = list(indices)
        return dataclasses.replace(
            self,
            items=tuple(self.items[n] for n in rows),
            logprobs=self.logprobs[rows],
            known=self.true[rows],
        )

    @property
    def answers(self) -> Int[Tensor, " question"]:
        """Index of the correct option."""
        return torch.tensor([question.answer for question in self.items])

    @property
    def predictions(self) -> Int[Tensor, " question"]:
        """Index of the best option (2502.12055 eq. 5)."""
        return self.logprobs.argmax(dim=-1)

    @property
    def correct(self) -> Bool[Tensor, " question"]:
        """Whether the best option is a correct one."""
        return self.true.gather(1, self.predictions[:, None])[:, 0]

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return float(self.correct.double().mean())

    @property
    def margins(self) -> Float[Tensor, " question"]:
        """Log-probability of the best correct option minus that of the best wrong one, in nats."""
        return option_margins(self.logprobs, self.true)

    @property
    def margin(self) -> float:
        """Mean margin, in nats."""
        return float(self.margins.mean())

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        n_options = torch.isfinite(self.logprobs).sum(dim=-1)
        return float((self.true.sum(dim=-1) / n_options).mean())

    @property
    def mc2(self) -> Float[Tensor, " question"]:
        """Share of the probability of all options that the correct ones have (TruthfulQA's MC2).

        Raises:
            InputError: the method is not ``cloze``.
        """
        if self.method != "cloze":
            raise InputError(f"MC2 is of method 'cloze', and these scores are of {self.method!r}.")
        return (self.logprobs.double().softmax(dim=-1) * self.true).sum(dim=-1)

    def card(self) -> Card:
        """Accuracy and margin, and the metric where there is one."""
        low, high = stats.wilson(int(self.correct.sum()), len(self.items))
        facts = {
            "questions": f"{len(self.items)} ({self.method})",
            "accuracy": f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}], chance {self.chance:.3f}",
            "margin": f"{self.margin:+.3f} nats",
        }
        if self.metric:
            facts[self.measures[0]] = f"{self.mean():.4g}"
        return Card("Scores", facts, "scores.table()")


@dataclass(frozen=True, eq=False, repr=False)
class Answers(Scored[Problem]):
    """What a model generated to problems, and whether it is right.

    Attributes:
        items: the problems.
        texts: its answers to each, without the prompts.
        correct: which of them are right.
        task: how problems are put.
        system: the system prompt they were answered under.
        source: the model that answered.
    """

    texts: tuple[tuple[str, ...], ...]
    correct: Bool[Tensor, "problem rollout"]
    task: Problems
    system: str | None = None
    source: Source | None = None

    @property
    def built_in(self) -> dict[str, Callable[[], Float[Tensor, " item"]]]:
        """Accuracy: the share of right answers to each problem."""
        return {"accuracy": lambda: self.shares}

    def answer(self, n: int) -> str:
        """The text, where there is one an item."""
        if len(self.texts[n]) > 1:
            raise InputError(
                f"a metric reads one text a problem, and there are {len(self.texts[n])}; ask for "
                "n=1, or use the verifier."
            )
        return self.texts[n][0]

    def take(self, indices: Sequence[int]) -> "Answers":
        """Those to some problems."""
        return dataclasses.replace(
            self,
            items=tuple(self.items[n] for n in indices),
            texts=tuple(self.texts[n] for n in indices),
            correct=self.correct[list(indices)],
        )

    @property
    def shares(self) -> Float[Tensor, " problem"]:
        """Share of right answers to each problem."""
        return self.correct.double().mean(dim=1)

    @property
    def accuracy(self) -> float:
        """Mean share of right answers (pass@1): the chance that one answer is right."""
        return float(self.shares.mean())

    @property
    def mixed(self) -> list[int]:
        """Problems with right and with wrong answers."""
        shares = self.shares
        return [int(n) for n in ((shares > 0) & (shares < 1)).nonzero()]

    def rollouts(self) -> pd.DataFrame:
        """A row an answer: ``id``, ``domain``, ``rollout``, ``correct``, ``text``."""
        return pd.DataFrame(
            [
                {
                    "id": problem.id,
                    "domain": problem.domain,
                    "rollout": n,
                    "correct": bool(self.correct[k, n]),
                    "text": text,
                }
                for k, problem in enumerate(self.items)
                for n, text in enumerate(self.texts[k])
            ]
        )

    def card(self) -> Card:
        """How many, and how many are right."""
        low, high = _interval(self.shares)
        facts = {
            "problems": f"{len(self.items)} of {self.task.name}",
            "answers to each": str(self.correct.shape[1]),
            "accuracy (pass@1)": f"{self.accuracy:.3f} ({low:.3f} to {high:.3f})",
            "with right and wrong ones": str(len(self.mixed)),
        }
        if self.metric:
            facts[self.measures[0]] = f"{self.mean():.4g}"
        return Card("Answers", facts, "rl.roast(lens, answers)")


@dataclass(frozen=True, eq=False, repr=False)
class Values(Scored[Any]):
    """One number an item: of texts the mean log-probability of a token, or a task's own score.

    Attributes:
        items: what was asked.
        values: in nats where they are log-probabilities.
        name: what they are.
    """

    values: Float[Tensor, " item"]
    name: str = "logprob"

    @property
    def built_in(self) -> dict[str, Callable[[], Float[Tensor, " item"]]]:
        """The number."""
        return {self.name: lambda: self.values}

    def answer(self, n: int) -> float:
        """The number."""
        return float(self.values[n])

    def take(self, indices: Sequence[int]) -> "Values":
        """Those of some items."""
        items = tuple(self.items[n] for n in indices)
        return dataclasses.replace(self, items=items, values=self.values[list(indices)])

    def card(self) -> Card:
        """The mean."""
        low, high = self.interval
        facts = {
            "items": str(len(self.items)),
            self.measures[0]: f"{self.mean():.4g} ({low:.4g} to {high:.4g})",
        }
        return Card("Values", facts, "values.table()")


def true_options(questions: Sequence[Question], n_options: int) -> Bool[Tensor, "question option"]:
    """Which options are correct."""
    true = torch.zeros(len(questions), n_options, dtype=torch.bool)
    for n, question in enumerate(questions):
        true[n, [question.answer, *question.also]] = True
    return true


def option_margins(
    logprobs: Float[Tensor, "*cell question option"], true: Bool[Tensor, "question option"]
) -> Float[Tensor, "*cell question"]:
    """Log-probability of the best correct option minus that of the best wrong one, in nats."""
    wrong = logprobs.masked_fill(true, -torch.inf).amax(dim=-1)
    return logprobs.masked_fill(~true, -torch.inf).amax(dim=-1) - wrong


def metric_name(metric: Metric) -> str:
    """What a metric is called: the name of its function."""
    name = getattr(metric, "__name__", "metric")
    return "metric" if name == "<lambda>" or name in ("accuracy", "margin") else str(name)


def metric_value(metric: Metric, item: Any, answer: Any) -> float:
    """What a metric says of an answer.

    Raises:
        InputError: no finite number.
    """
    value = metric(item, answer)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"the metric {metric_name(metric)!r} gives {value!r} for item {item.id!r}; it has to "
            "give a finite number."
        )
    return number


def _interval(values: Float[Tensor, " item"]) -> tuple[float, float]:
    if bool(((values == 0) | (values == 1)).all()):
        return stats.wilson(int(values.sum()), len(values))
    return stats.paired_bootstrap(values.double().numpy())
