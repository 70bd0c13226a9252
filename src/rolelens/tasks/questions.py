"""Questions with options, and lists of them under a name."""

import dataclasses
import hashlib
import operator
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rolelens.errors import InputError
from rolelens.tasks.task import Task, checked_texts

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """One question with one correct option, or several.

    Two wrong options may be equal. A wrong option that equals a correct one, blanks around it
    aside, is refused, as no answer could tell them apart; :func:`equal_options` names those that
    may be passed as ``also``.

    Attributes:
        id: stable name.
        text: the question itself.
        options: what may be answered, 2 to 26 of them.
        answer: index of the correct option.
        also: indices of others that are correct, too (TruthfulQA's MC2).
        domain: what it is about.
        subject: the subject inside the domain, as MMLU names them.
        shots: questions that are shown before it, with their answers.
        prompt: the whole prompt for method ``letter``, word for word, in place of rolelens' own.

    Raises:
        InputError: a field is of the wrong kind or empty, no option is wrong, or a wrong option
            equals a correct one.
    """

    id: str
    text: str
    options: tuple[str, ...]
    answer: int
    domain: str = ""
    subject: str = ""
    shots: tuple["Question", ...] = ()
    prompt: str | None = None
    also: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checked_texts("question", self, ("id", "text"), ("domain", "subject"))
        self._check_options()
        self._check_answers()
        self._check_prompt()

    def _check_options(self) -> None:
        options: Any = self.options
        if isinstance(options, str) or not isinstance(options, Sequence):
            raise InputError(
                f"question {self.id!r} has the options {options!r}; pass a tuple of texts."
            )
        object.__setattr__(self, "options", tuple(options))
        if not 2 <= len(self.options) <= len(LETTERS):
            raise InputError(
                f"question {self.id!r} has {len(self.options)} options; it needs 2 to "
                f"{len(LETTERS)}."
            )
        for option in self.options:
            if not isinstance(option, str):
                raise InputError(f"question {self.id!r} has the option {option!r}; pass a text.")
            if not option.strip():
                raise InputError(f"question {self.id!r} has an empty option; fill it in.")

    def _check_answers(self) -> None:
        object.__setattr__(self, "answer", self._index(self.answer))
        object.__setattr__(self, "also", tuple(map(self._index, self.also)))
        if not 0 <= self.answer < len(self.options):
            raise InputError(
                f"question {self.id!r} names option {self.answer} as correct; it has options 0 to "
                f"{len(self.options) - 1}."
            )
        others = {*range(len(self.options))} - {self.answer}
        if not {*self.also} <= others or len({*self.also}) < len(self.also):
            raise InputError(
                f"question {self.id!r} also names the options {list(self.also)} as correct; each "
                f"has to be one of 0 to {len(self.options) - 1}, and not {self.answer}, once."
            )
        if len(self.also) == len(others):
            raise InputError(f"question {self.id!r} has no wrong option; it needs at least one.")
        correct = {self.options[n].strip() for n in (self.answer, *self.also)}
        for wrong in others - {*self.also}:
            if self.options[wrong].strip() in correct:
                raise InputError(
                    f"question {self.id!r} has {self.options[wrong][:60]!r} as a correct and as a "
                    "wrong option; change one of them, or name both as correct (Question.also)."
                )

    def _index(self, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise InputError(
                f"question {self.id!r} names {value!r} as correct; give the option's index, "
                "counted from 0."
            )
        return operator.index(value)

    def _check_prompt(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots))
        for shot in self.shots:
            if not isinstance(shot, Question) or shot.shots:
                raise InputError(
                    f"a shot of question {self.id!r} is no question or has shots itself; give it "
                    "questions without."
                )
        if self.prompt is None:
            return
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError(f"question {self.id!r} has an empty prompt; fill it in, or pass None.")
        if self.shots:
            raise InputError(
                f"question {self.id!r} has a prompt and {len(self.shots)} shots; write the shots "
                "into the prompt, or leave one of the two out."
            )


@dataclass(frozen=True, repr=False)
class Questions(Task[Question]):
    """Questions under a name.

    Those with the same text, or with a set of options that at most eight questions share, are
    tied. A set of options that more share (yes or no, say) is a format and ties nothing.
    """

    kind: ClassVar[type] = Question

    def ties(self) -> list[list[object]]:
        """The text and, where few share them, the options of each."""
        sets = [frozenset(question.options) for question in self]
        shared = Counter(sets)
        return [
            [question.text, options] if shared[options] <= 8 else [question.text]
            for question, options in zip(self, sets, strict=True)
        ]

    def asked(self, item: Question) -> dict[str, Any]:
        """What a question's prompts are made of; the subject is only in the heading of shots."""
        fields = dataclasses.asdict(item)
        if not item.shots:
            del fields["subject"], fields["shots"]
        if item.prompt is None:
            del fields["prompt"]
        if not item.also:
            del fields["also"]
        return fields

    def permuted(self, seed: int = 0) -> "Questions":
        """The same questions with their options in another order, each drawn by itself.

        Args:
            seed: with a question's id it decides the order.

        Raises:
            InputError: a ready-made prompt in which the lettered options cannot be found.
        """
        return Questions(f"{self.name}, permuted", tuple(_permuted(q, seed) for q in self))


def equal_options(options: Sequence[str], answer: int) -> tuple[int, ...]:
    """The other options that say the same as the correct one, blanks around them aside."""
    same = [n for n, option in enumerate(options) if option.strip() == options[answer].strip()]
    return tuple(n for n in same if n != answer)


def _permuted(question: Question, seed: int) -> Question:
    digest = hashlib.sha256(f"{seed} {question.id}".encode()).digest()
    order = np.random.default_rng(list(digest)).permutation(len(question.options)).tolist()
    options = tuple(question.options[index] for index in order)
    prompt = question.prompt
    if prompt is not None:
        for start, end, option in reversed(_spans(question, options)):
            prompt = prompt[:start] + option + prompt[end:]
    return dataclasses.replace(
        question,
        options=options,
        answer=order.index(question.answer),
        also=tuple(order.index(index) for index in question.also),
        prompt=prompt,
    )


def _spans(question: Question, options: Sequence[str]) -> list[tuple[int, int, str]]:
    """Where the options stand in a ready-made prompt, and what is to stand there."""
    spans, end = [], 0
    for letter, old, new in zip(LETTERS, question.options, options, strict=False):
        label = re.compile(rf"^[ \t]*\(?{letter}[.):][ \t]*({re.escape(old)})$", re.MULTILINE)
        match = label.search(question.prompt or "", end)
        if match is None:
            raise InputError(
                f"the prompt of question {question.id!r} has no line '{letter}. {old[:40]}', so "
                "its options cannot change their order; pass the question without a prompt."
            )
        end = match.end()
        spans.append((*match.span(1), new))
    return spans
