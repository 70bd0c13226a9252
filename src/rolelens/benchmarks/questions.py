"""Questions with options, and lists of them under a name."""

import dataclasses
import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rolelens.errors import InputError, checked_seed, unknown

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """One question with one correct option.

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
        if not 2 <= len(self.options) <= len(LETTERS):
            raise InputError(
                f"question {self.id!r} has {len(self.options)} options; it needs 2 to "
                f"{len(LETTERS)}."
            )
        if not all(option.strip() for option in self.options) or not self.text.strip():
            raise InputError(f"question {self.id!r} has an empty text or option; fill it in.")
        if not isinstance(self.answer, int):
            raise InputError(
                f"question {self.id!r} names {self.answer!r} as correct; give the option's index, "
                "counted from 0."
            )
        if not 0 <= self.answer < len(self.options):
            raise InputError(
                f"question {self.id!r} names option {self.answer} as correct; it has options 0 to "
                f"{len(self.options) - 1}."
            )
        if not {*self.also} <= {*range(len(self.options))} - {self.answer}:
            raise InputError(
                f"question {self.id!r} also names the options {list(self.also)} as correct; each "
                f"has to be one of 0 to {len(self.options) - 1}, and not {self.answer}."
            )
        if len(self.also) + 1 >= len(self.options):
            raise InputError(f"question {self.id!r} has no wrong option; it needs at least one.")
        if any(shot.shots for shot in self.shots):
            raise InputError(
                f"a shot of question {self.id!r} has shots itself; give it questions without."
            )
        if self.prompt is not None and not self.prompt.strip():
            raise InputError(f"question {self.id!r} has an empty prompt; fill it in, or pass None.")
        if self.prompt is not None and self.shots:
            raise InputError(
                f"question {self.id!r} has a prompt and {len(self.shots)} shots; write the shots "
                "into the prompt, or leave one of the two out."
            )


@dataclass(frozen=True)
class Benchmark(Sequence[Question]):
    """A list of questions under a name."""

    name: str
    questions: tuple[Question, ...]

    def __getitem__(self, index: int) -> Question:  # type: ignore[override]
        return self.questions[index]

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, sorted."""
        return tuple(sorted({question.domain for question in self.questions}))

    @property
    def sha(self) -> str:
        """Hash of everything that is asked."""
        plain = [_asked(question) for question in self.questions]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]

    def domain(self, *names: str) -> "Benchmark":
        """The questions of some domains."""
        for name in names:
            if name not in self.domains:
                raise unknown("domain", name, self.domains)
        kept = tuple(question for question in self.questions if question.domain in names)
        return Benchmark(f"{self.name}/{'+'.join(names)}", kept)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple["Benchmark", "Benchmark"]:
        """Cut into a selection part and a test part, the same share of every domain.

        Questions with the same text, or with a set of options that at most eight questions share,
        stay on one side.

        Args:
            share: of the questions that goes into the first part.
            seed: of the shuffling.
        """
        if not 0 < share < 1:
            raise InputError(f"share is {share}; it has to be between 0 and 1.")
        rng = np.random.default_rng(checked_seed(seed))
        groups = _twins(self.questions)
        first: set[str] = set()
        for name in self.domains:
            own = [group for group in groups if group[0].domain == name]
            wanted = round(share * sum(map(len, own)))
            taken = 0
            for index in rng.permutation(len(own)):
                if taken + len(own[index]) <= wanted:
                    first |= {question.id for question in own[index]}
                    taken += len(own[index])
        halves = self._where(first, True), self._where(first, False)
        if not all(halves):
            raise InputError(f"{len(self)} questions are too few to split with share {share}.")
        return (
            Benchmark(f"{self.name}, selection", halves[0]),
            Benchmark(f"{self.name}, test", halves[1]),
        )

    def permuted(self, seed: int = 0) -> "Benchmark":
        """The same questions with their options in another order, each drawn by itself.

        Args:
            seed: with a question's id it decides the order.

        Raises:
            InputError: a ready-made prompt in which the lettered options cannot be found.
        """
        return Benchmark(f"{self.name}, permuted", tuple(_permuted(q, seed) for q in self))

    def folds(self, n: int, seed: int = 0) -> list[tuple["Benchmark", "Benchmark"]]:
        """Cut into ``n`` parts as :meth:`split` does; each is the test part once.

        Returns:
            Pairs of a selection part, the other folds, and a test part.
        """
        if not 2 <= n <= len(self):
            raise InputError(f"n is {n}; {len(self)} questions make 2 to {len(self)} folds.")
        rest, parts = self, []
        for left in range(n, 1, -1):
            part, rest = rest.split(1 / left, seed)
            parts.append({question.id for question in part})
        parts.append({question.id for question in rest})
        return [
            (
                Benchmark(f"{self.name}, all but fold {k}", self._where(part, False)),
                Benchmark(f"{self.name}, fold {k}", self._where(part, True)),
            )
            for k, part in enumerate(parts)
        ]

    def _where(self, ids: set[str], inside: bool) -> tuple[Question, ...]:
        return tuple(q for q in self.questions if (q.id in ids) == inside)


def checked(benchmark: Benchmark) -> Benchmark:
    """A benchmark that has questions, each with an id of its own."""
    if not benchmark.questions:
        raise InputError("a benchmark needs at least one question.")
    for question in benchmark.questions:
        if not isinstance(question, Question):
            raise InputError(
                f"{str(question)[:60]!r} is no question; pass rl.Question objects, or a file."
            )
    ids = [question.id for question in benchmark]
    twice = {name for name in ids if ids.count(name) > 1} if len(set(ids)) < len(ids) else ()
    if twice:
        raise InputError(f"questions share the id {min(twice)!r}; every id has to be unique.")
    return benchmark


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
        found = label.search(question.prompt or "", end)
        if found is None:
            raise InputError(
                f"the prompt of question {question.id!r} has no line '{letter}. {old[:40]}', so "
                "its options cannot change their order; pass the question without a prompt."
            )
        end = found.end()
        spans.append((*found.span(1), new))
    return spans


def _asked(question: Question) -> dict[str, Any]:
    """What a question's prompts are made of; the subject is only in the heading of shots."""
    fields = dataclasses.asdict(question)
    if not question.shots:
        del fields["subject"], fields["shots"]
    if question.prompt is None:
        del fields["prompt"]
    if not question.also:
        del fields["also"]
    return fields


def _twins(questions: Sequence[Question]) -> list[list[Question]]:
    """Group questions that share their text or their set of options (transitively).

    A set of options that many questions share (true or false, say) is a format and ties nothing.
    """
    shared = Counter(frozenset(question.options) for question in questions)
    leader: dict[object, int] = {}
    parent = list(range(len(questions)))

    def root(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    for n, question in enumerate(questions):
        options = frozenset(question.options)
        for key in (question.text, options if shared[options] <= 8 else ("alone", n)):
            parent[root(n)] = root(leader.setdefault(key, n))
    groups: dict[int, list[Question]] = {}
    for n, question in enumerate(questions):
        groups.setdefault(root(n), []).append(question)
    return list(groups.values())
