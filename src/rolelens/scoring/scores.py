"""What a model answers to every question."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rolelens import stats
from rolelens.benchmarks import Question
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Shown):
    """What a model answers to every question.

    Attributes:
        logprobs: in nats; options a question does not have are -inf. ``letter``: of the option's
            letter among the question's letters (they sum to 1). ``cloze``: of the option's whole
            text. ``cloze_norm``: the mean over the option's tokens.
        answers: index of the correct option.
        also: indices of others that are correct, too, of each question; empty where none has any.
        questions: ids.
        domains: domain of each question.
        method: how options were scored.
    """

    logprobs: Float[Tensor, "question option"]
    answers: Int[Tensor, " question"]
    questions: tuple[str, ...]
    domains: tuple[str, ...]
    method: str
    also: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        logprobs: Float[Tensor, "question option"],
        method: str,
    ) -> "Scores":
        """Scores of some questions."""
        return cls(
            logprobs=logprobs,
            answers=torch.tensor([question.answer for question in questions]),
            questions=tuple(question.id for question in questions),
            domains=tuple(question.domain for question in questions),
            method=method,
            also=also_correct(questions),
        )

    def domain(self, name: str) -> "Scores":
        """Those of one domain's questions.

        Raises:
            InputError: no question is of it.
        """
        rows = [n for n, own in enumerate(self.domains) if own == name]
        if not rows:
            raise unknown("domain", name, sorted(set(self.domains)))
        return dataclasses.replace(
            self,
            logprobs=self.logprobs[rows],
            answers=self.answers[rows],
            questions=tuple(self.questions[n] for n in rows),
            domains=(name,) * len(rows),
            also=tuple(self.also[n] for n in rows) if self.also else (),
        )

    @property
    def predictions(self) -> Int[Tensor, " question"]:
        """Index of the best option (eq. 5)."""
        return self.logprobs.argmax(dim=-1)

    @property
    def true(self) -> Bool[Tensor, "question option"]:
        """Which options are correct."""
        return true_options(self.answers, self.also, self.logprobs.shape[1])

    @property
    def correct(self) -> Bool[Tensor, " question"]:
        """Whether the best option is a correct one."""
        return self.true.gather(1, self.predictions[:, None])[:, 0]

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return float(self.correct.float().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return stats.wilson(int(self.correct.sum()), len(self.questions))

    @property
    def margins(self) -> Float[Tensor, " question"]:
        """Log-probability of the best correct option minus that of the best wrong one, in nats."""
        true = self.true
        wrong = self.logprobs.masked_fill(true, -torch.inf).amax(dim=-1)
        return self.logprobs.masked_fill(~true, -torch.inf).amax(dim=-1) - wrong

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

    def table(self) -> pd.DataFrame:
        """A row a domain: questions, accuracy with its 95 % interval, mean margin (nats)."""
        frame = pd.DataFrame(
            {"domain": self.domains, "correct": self.correct, "margin": self.margins}
        )
        rows = []
        for domain, own in frame.groupby("domain"):
            low, high = stats.wilson(int(own["correct"].sum()), len(own))
            rows.append(
                {
                    "domain": domain,
                    "questions": len(own),
                    "accuracy": own["correct"].mean(),
                    "low": low,
                    "high": high,
                    "margin": own["margin"].mean(),
                }
            )
        return pd.DataFrame(rows).set_index("domain")

    def card(self) -> Card:
        """Accuracy and margin."""
        low, high = self.interval
        facts = {
            "questions": f"{len(self.questions)} ({self.method})",
            "accuracy": f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}], chance {self.chance:.3f}",
            "margin": f"{self.margin:+.3f} nats",
        }
        return Card("Scores", facts, "scores.table()")


def also_correct(questions: Sequence[Question]) -> tuple[tuple[int, ...], ...]:
    """Further correct options of each question; empty where no question has any."""
    also = tuple(question.also for question in questions)
    return also if any(also) else ()


def true_options(
    answers: Int[Tensor, " question"], also: Sequence[Sequence[int]], n_options: int
) -> Bool[Tensor, "question option"]:
    """Which options are correct."""
    true = torch.zeros(len(answers), n_options, dtype=torch.bool)
    true[torch.arange(len(answers)), answers] = True
    for n, others in enumerate(also):
        true[n, list(others)] = True
    return true
