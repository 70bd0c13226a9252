"""Multiple-choice scores: the log-probability a model gives to every option."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rolelens import forward, stats
from rolelens.benchmarks import LETTERS, Benchmark, Question, load_benchmark
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import Hooks, Tokens
from rolelens.lens import Lens

Method: TypeAlias = Literal["letter", "cloze", "cloze_norm"]


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Shown):
    """What a model answers to every question.

    Attributes:
        logprobs: in nats; options a question does not have are -inf. ``letter``: of the option's
            letter among the question's letters (they sum to 1). ``cloze``: of the option's whole
            text. ``cloze_norm``: the mean over the option's tokens.
        answers: index of the correct option.
        questions: ids.
        domains: domain of each question.
        method: how options were scored.
    """

    logprobs: Float[Tensor, "question option"]
    answers: Int[Tensor, " question"]
    questions: tuple[str, ...]
    domains: tuple[str, ...]
    method: str

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
        )

    @property
    def predictions(self) -> Int[Tensor, " question"]:
        """Index of the best option (eq. 5)."""
        return self.logprobs.argmax(dim=-1)

    @property
    def correct(self) -> Bool[Tensor, " question"]:
        """Whether the best option is the correct one."""
        return self.predictions == self.answers

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
        """Log-probability of the correct option minus that of the best wrong one, in nats."""
        correct = self.answers[:, None]
        wrong = self.logprobs.scatter(1, correct, -torch.inf).amax(dim=-1)
        return self.logprobs.gather(1, correct)[:, 0] - wrong

    @property
    def margin(self) -> float:
        """Mean margin, in nats."""
        return float(self.margins.mean())

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        n_options = torch.isfinite(self.logprobs).sum(dim=-1)
        return float((1 / n_options).mean())

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


@dataclass(frozen=True)
class Prepared:
    """A benchmark, tokenised for one way of scoring; scored many times in a sweep.

    Attributes:
        questions: what is asked.
        method: how options are scored.
        tokens: a row a question (``letter``), or a row an option.
        letters: token ids of the letters.
    """

    questions: tuple[Question, ...]
    method: Method
    tokens: Tokens
    letters: tuple[int, ...] = ()

    @property
    def n_options(self) -> int:
        """Options of the question that has most."""
        return max(len(question.options) for question in self.questions)

    @property
    def owners(self) -> Int[Tensor, " row"]:
        """Which question each row of the tokens belongs to."""
        each = [1 if self.method == "letter" else len(q.options) for q in self.questions]
        return torch.arange(len(each)).repeat_interleave(torch.tensor(each))

    def take(self, questions: Sequence[int]) -> "Prepared":
        """Some of the questions."""
        owners = self.owners
        rows = [int(row) for question in questions for row in (owners == question).nonzero()]
        chosen = tuple(self.questions[question] for question in questions)
        return dataclasses.replace(self, questions=chosen, tokens=self.tokens.take(rows))

    def logprobs(
        self, read: Float[Tensor, "*cell row read"]
    ) -> Float[Tensor, "*cell question option"]:
        """Option log-probabilities, in nats, from what was read off the model.

        Args:
            read: logits of the letters at the end of every prompt, or the log-probability of
                every token of every option (0 past its end).

        Raises:
            InputError: a score is NaN.
        """
        most = self.n_options
        missing = torch.tensor([[k >= len(q.options) for k in range(most)] for q in self.questions])
        if self.method == "letter":
            scores = read[..., :most].masked_fill(missing, -torch.inf).log_softmax(dim=-1)
        else:
            sums = read.double().sum(dim=-1)
            if self.method == "cloze_norm":
                pairs = zip(self.tokens.ids, self.tokens.prompt_lengths, strict=True)
                sums = sums / torch.tensor([len(ids) - length for ids, length in pairs])
            scores = torch.full((*read.shape[:-2], len(self.questions), most), -torch.inf)
            scores[..., ~missing] = sums.float()
        if torch.isnan(scores).any():
            raise InputError("scores are NaN; steer less strongly, or load the model in float32.")
        return scores


def evaluate(
    lens: Lens,
    benchmark: str | Path | Benchmark | Sequence[Question],
    hooks: Hooks = (),
    method: Method = "letter",
    *,
    system: str | None = None,
) -> Scores:
    """Score every option of every question.

    Args:
        lens: the model.
        benchmark: the questions, or what :func:`rolelens.load_benchmark` takes.
        hooks: steering; row-wise hooks have one direction a question.
        method: ``letter`` shows the options and reads their letters at the last position, as the
            paper does; ``cloze`` shows the question alone and reads the options' texts;
            ``cloze_norm`` divides that by the option's tokens. Small models are at chance in
            letters and above it in cloze.
        system: a system prompt.
    """
    return score(lens, prepare(lens, benchmark, method, system=system), hooks)


def prepare(
    lens: Lens,
    benchmark: str | Path | Benchmark | Sequence[Question],
    method: Method,
    *,
    system: str | None = None,
) -> Prepared:
    """Tokenise a benchmark once, to score it many times."""
    if isinstance(benchmark, str | Path):
        benchmark = load_benchmark(benchmark)
    questions = tuple(benchmark)
    if not questions:
        raise InputError("a benchmark needs at least one question.")
    method = checked_method(method)
    if method == "letter":
        prompts = [letter_prompt(question) for question in questions]
        most = max(len(question.options) for question in questions)
        letters = _letter_ids(lens, prompts[0], most, system)
        return Prepared(questions, method, lens.tokenize(prompts, system=system), letters)
    pairs = [
        (cloze_prompt(question), option) for question in questions for option in question.options
    ]
    texts, options = [text for text, _ in pairs], [option for _, option in pairs]
    return Prepared(questions, method, lens.tokenize(texts, options, system=system))


def checked_method(method: str) -> Method:
    """A way of scoring, if it is one."""
    for known in get_args(Method):
        if method == known:
            return cast(Method, method)
    raise InputError(f"method is {method!r}; it has to be one of {', '.join(get_args(Method))}.")


def score(lens: Lens, prepared: Prepared, hooks: Hooks = ()) -> Scores:
    """Score a prepared benchmark."""
    if prepared.method == "letter":
        read = forward.next_token_logits(
            lens.model, prepared.tokens, vocab=prepared.letters, hooks=hooks
        )
    else:
        owners = prepared.owners
        mine = (lambda rows: hooks(owners[rows])) if callable(hooks) else hooks
        parts = forward.answer_logprobs(lens.model, prepared.tokens, hooks=mine)
        read = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return Scores.of(prepared.questions, prepared.logprobs(read), prepared.method)


def letter_prompt(question: Question) -> str:
    """The paper's multiple-choice prompt: question, lettered options, request for the letter.

    Shots stand before it, under MMLU's heading. A question with a prompt has that one.
    """
    if question.prompt is not None:
        return question.prompt
    own = "\n".join([question.text, *_lettered(question), *_REQUEST])
    if not question.shots:
        return own
    return "\n\n".join([_heading(question), *map(_answered, question.shots), own])


def cloze_prompt(question: Question) -> str:
    """The question alone; shots stand before it, each with its correct option."""
    shots = [f"{shot.text}\n{shot.options[shot.answer]}" for shot in question.shots]
    return "\n\n".join([*shots, question.text])


_REQUEST = ("Answer with the letter of the correct answer.", "Answer:")


def _heading(question: Question) -> str:
    about = (question.subject or question.domain).replace("_", " ")
    known = f" about {about}" if about else ""
    return f"The following are multiple choice questions (with answers){known}."


def _answered(shot: Question) -> str:
    return "\n".join([shot.text, *_lettered(shot), f"Answer: {LETTERS[shot.answer]}"])


def _lettered(question: Question) -> Iterator[str]:
    for letter, option in zip(LETTERS, question.options, strict=False):
        yield f"{letter}. {option}"


def _letter_ids(lens: Lens, prompt: str, n: int, system: str | None) -> tuple[int, ...]:
    """The token each letter is, right after the prompt."""
    tokens = lens.tokenize([prompt] * n, LETTERS[:n], system=system)
    found = [ids[length:] for ids, length in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
    if any(len(ids) != 1 for ids in found) or len(set(found)) != n:
        raise InputError(
            f"the letters A to {LETTERS[n - 1]} are not single tokens for {lens.name}; use "
            "method='cloze'."
        )
    return tuple(ids[0] for ids in found)
