"""The log-probability a model gives to every option of a question."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.benchmarks import LETTERS, Benchmark, Question, load_benchmark
from rolelens.errors import InputError
from rolelens.forward import Hooks, Tokens
from rolelens.lens import Lens
from rolelens.scoring.prompts import cloze_prompt, letter_prompt
from rolelens.scoring.scores import Scores

Method: TypeAlias = Literal["letter", "cloze", "cloze_norm"]


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
    prefix: str = "",
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
        prefix: what the user says before every question, blank lines included.
    """
    return score(lens, prepare(lens, benchmark, method, system=system, prefix=prefix), hooks)


def prepare(
    lens: Lens,
    benchmark: str | Path | Benchmark | Sequence[Question],
    method: Method,
    *,
    system: str | None = None,
    prefix: str = "",
) -> Prepared:
    """Tokenise a benchmark once, to score it many times."""
    if isinstance(benchmark, str | Path):
        benchmark = load_benchmark(benchmark)
    questions = tuple(benchmark)
    if not questions:
        raise InputError("a benchmark needs at least one question.")
    method = checked_method(method)
    if method == "letter":
        prompts = [prefix + letter_prompt(question) for question in questions]
        most = max(len(question.options) for question in questions)
        tokens = lens.tokenize(prompts, system=system)
        letters = _letters(lens, prompts[0], most, system, tokens.take(range(len(prompts))[:8]))
        return Prepared(questions, method, tokens, letters)
    pairs = [
        (prefix + cloze_prompt(question), option)
        for question in questions
        for option in question.options
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


def _letters(lens: Lens, prompt: str, n: int, system: str | None, asked: Tokens) -> tuple[int, ...]:
    """The token each letter is right after a prompt, with a space before it or without.

    Where both are single tokens, the model's own choice: whichever it finds likelier after some
    prompts.
    """
    forms = []
    for space in ("", " "):
        found = [lens.chat.continuation(prompt, space + letter, system) for letter in LETTERS[:n]]
        if all(len(ids) == 1 for ids in found) and len(set(found)) == n:
            forms.append([ids[0] for ids in found])
    if not forms:
        raise InputError(
            f"the letters A to {LETTERS[n - 1]} are not single tokens for {lens.name}; use "
            "method='cloze'."
        )
    if len(forms) == 1 or forms[0] == forms[1]:
        return tuple(forms[0])
    logits = forward.next_token_logits(lens.model, asked, vocab=[*forms[0], *forms[1]])
    plain, spaced = logits.reshape(-1, 2, n).logsumexp(dim=-1).mean(dim=0).tolist()
    return tuple(forms[1] if spaced > plain else forms[0])
