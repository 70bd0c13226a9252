"""How much an answer shows a trait, from 0 to 100."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from rolelens import forward
from rolelens.endpoints import EmptyAnswerError, Endpoint
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.prompts import Trait

RUBRIC = """\
A question was asked, and this is the answer.

Question: {question}

Answer: {answer}

Does the answer show the trait "{trait}"? Answer with Yes or No.
Answer:"""
"""What the loaded model is asked."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@runtime_checkable
class Judge(Protocol):
    """Anything that says how much answers show their traits."""

    def score(
        self, traits: Sequence[Trait], questions: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """From 0 to 100, for each answer; NaN is no verdict."""


@dataclass(frozen=True)
class RubricJudge:
    """A language model behind an endpoint, which is asked the rubric of each trait.

    Attributes:
        endpoint: from :func:`rolelens.endpoints.connect`.
        highest: what the rubric gives at most: 100 for traits, 3 for the roles of 2601.10387.
        max_tokens: of its answer at most.
    """

    endpoint: Endpoint
    highest: float = 100.0
    max_tokens: int = 16

    def score(
        self, traits: Sequence[Trait], questions: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """See :class:`Judge`; an answer without a number, such as REFUSAL, is no verdict.

        Raises:
            InputError: a trait has no rubric.
        """
        out = []
        for trait, question, answer in zip(traits, questions, answers, strict=True):
            if not trait.rubric:
                raise InputError(f"{trait.name!r} has no rubric to judge by; give it one.")
            prompt = _filled(trait.rubric, {"{question}": question, "{answer}": answer})
            out.append(self._verdict(prompt))
        return out

    def _verdict(self, prompt: str) -> float:
        try:
            said = self.endpoint.answer(prompt, max_tokens=self.max_tokens, temperature=0.0, seed=0)
        except EmptyAnswerError:
            return math.nan
        number = _NUMBER.search(said)
        value = float(number.group()) if number else math.nan
        return 100.0 * value / self.highest if value <= self.highest else math.nan


@dataclass(frozen=True)
class SelfJudge:
    """The loaded model itself: 100 times the probability of Yes against No.

    A small model says Yes to almost everything, so its numbers mean something only against one
    another: compare both sides of a trait first.

    Attributes:
        lens: the model.
        rubric: with ``{question}``, ``{answer}`` and ``{trait}`` in it.
    """

    lens: Lens
    rubric: str = RUBRIC

    def score(
        self, traits: Sequence[Trait], questions: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """See :class:`Judge`."""
        prompts = []
        for trait, question, answer in zip(traits, questions, answers, strict=True):
            places = {"{question}": question, "{answer}": answer, "{trait}": trait.name}
            prompts.append(_filled(self.rubric, places))
        words = [self.lens.chat.continuation(prompts[0], word)[0] for word in ("Yes", "No")]
        if words[0] == words[1]:
            raise InputError(
                f"Yes and No begin with the same token for {self.lens.name}; use another judge."
            )
        logits = forward.next_token_logits(self.lens.model, self.lens.encode(prompts), vocab=words)
        scores: list[float] = (100 * torch.sigmoid(logits[:, 0] - logits[:, 1])).tolist()
        return scores


def _filled(rubric: str, places: Mapping[str, str]) -> str:
    """A rubric with its places filled in one go: an answer may hold the mark of one."""
    return re.sub("|".join(map(re.escape, places)), lambda m: places[m.group()], rubric)
