"""Tasks scored on a model as it is, or steered."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError
from rolelens.forward import Hooks, Tokens
from rolelens.lens import Lens
from rolelens.tasks.asking import (
    PROBLEM_OPTIONS,
    QUESTION_OPTIONS,
    TEXT_OPTIONS,
    Choices,
    Generated,
    Options,
    Passages,
    Plainly,
    Prepared,
    Records,
    Tokenised,
    check_options,
    checked_method,
)
from rolelens.tasks.pairs import SentencePairs, prepared_pairs
from rolelens.tasks.passages import Texts
from rolelens.tasks.problems import Problems
from rolelens.tasks.questions import LETTERS, Questions
from rolelens.tasks.scores import Scored
from rolelens.tasks.sources import load_task
from rolelens.tasks.task import Task
from rolelens.tasks.texts import check_on_text, windows
from rolelens.tasks.wording import cloze_prompt, letter_prompt
from rolelens.vectors.nulls import derived


def evaluate(
    lens: Lens,
    task: str | Path | Task[Any] | Sequence[Any],
    hooks: Hooks = (),
    method: str | None = None,
    **options: Unpack[Options],
) -> Any:
    """Score every item of a task.

    Args:
        lens: the model.
        task: questions, problems, texts or a task of one's own, or what
            :func:`rolelens.load_task` takes.
        hooks: steering; of :func:`rolelens.by_row` one an item.
        method: of questions: ``letter`` shows the options and reads their letters at the last
            position, as 2502.12055 does; ``cloze`` shows the question alone and reads the options'
            texts; ``cloze_norm`` divides that by the option's tokens. Small models are at chance in
            letters and above it in cloze.
        options: see :class:`rolelens.tasks.Options`; ``metric=`` is a measure of one's own.

    Returns:
        :class:`rolelens.tasks.Scores` of questions, :class:`rolelens.tasks.Answers` to problems,
        :class:`rolelens.tasks.Values` of texts and others.

    Raises:
        InputError: an unknown method, an option that has no effect, steering that touches no token
            that is read, or scores that are not numbers.
    """
    prepared = prepare(lens, task, method, **options)
    return scored(prepared, run_records(lens, prepared, hooks))


def prepare(
    lens: Lens,
    task: str | Path | Task[Any] | Sequence[Any] | Prepared,
    method: str | None = None,
    **options: Unpack[Options],
) -> Prepared:
    """Make a task ready to be run, once for many cells; arguments as for :func:`evaluate`."""
    if isinstance(task, Prepared):
        if method is not None or options:
            raise InputError("the task is prepared already; leave method and options out.")
        return task
    chosen = task if isinstance(task, Task) else load_task(task)
    metric = options.get("metric")
    if metric is not None and not callable(metric):
        raise InputError(f"metric is {metric!r}; pass a function of an item and an answer.")
    if isinstance(chosen, Questions):
        check_options(chosen, options, QUESTION_OPTIONS)
        return _choices(lens, chosen, method, options)
    if method is not None:
        raise InputError(
            f"method is {method!r}, which is a way to score questions; leave it out for "
            f"{chosen.name!r}."
        )
    if isinstance(chosen, Problems):
        check_options(chosen, options, PROBLEM_OPTIONS)
        return _generated(chosen, options)
    if isinstance(chosen, SentencePairs):
        check_options(chosen, options, TEXT_OPTIONS)
        return prepared_pairs(lens, chosen, metric)
    if isinstance(chosen, Texts):
        check_options(chosen, options, TEXT_OPTIONS)
        tokens, owners = windows(lens, [text.text for text in chosen])
        return Passages(chosen, metric, tokens, owners, None)
    if not callable(getattr(chosen, "score", None)):
        raise InputError(
            f"a {type(chosen).__name__} cannot be scored; give it a method score(lens, hooks) that "
            "returns a number an item, or pass questions, problems or texts."
        )
    check_options(chosen, options, TEXT_OPTIONS)
    return Plainly(chosen, metric)


def run_records(lens: Lens, prepared: Prepared, hooks: Hooks = ()) -> Records:
    """What a model answers to a task under some steering, ``[item, column]``.

    Raises:
        InputError: as for :func:`evaluate`.
    """
    if isinstance(prepared, Tokenised):
        return checked_records(prepared.values(read(lens, prepared, hooks)).numpy())
    if isinstance(prepared, Generated):
        per_row: Hooks = hooks
        if callable(hooks):
            items = torch.arange(len(prepared.task)).repeat_interleave(prepared.n)
            per_row = forward.Regrouped(hooks, items)
        rows = [
            (item, number) for item in range(len(prepared.task)) for number in range(prepared.n)
        ]
        texts = generate(lens, prepared, rows, per_row)
        return np.array(texts, dtype=object).reshape(-1, prepared.n)
    return score_plainly(lens, prepared, hooks)


def read(lens: Lens, prepared: Tokenised, hooks: Hooks) -> Tensor:
    """What is read off the model: logits of the vocabulary, or log-probabilities of answers."""
    if not prepared.prompted:
        check_on_text(hooks)
    by_row = forward.Regrouped(hooks, prepared.owners) if callable(hooks) else hooks
    if prepared.vocab is not None:
        return forward.next_token_logits(
            lens.model, prepared.tokens, vocab=prepared.vocab, hooks=by_row
        )
    mixed = forward.mixes(lens.model, by_row)
    parts = forward.answer_logprobs(lens.model, prepared.tokens, hooks=by_row, mixed=mixed)
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def generate(
    lens: Lens, prepared: Generated, rows: Sequence[tuple[int, int]], hooks: Hooks
) -> list[str]:
    """Answer problems; hooks by row have a row an answer.

    An answer depends on the problem, its number and the seed, not on what else is answered.

    Args:
        lens: the model.
        prepared: the problems.
        rows: which answers: the index of a problem, and the number of the answer to it.
        hooks: steering.
    """
    ids = [item.id for item in prepared.task]
    return lens.generate(
        [prepared.prompts[item] for item, _ in rows],
        hooks=hooks,
        max_new_tokens=prepared.max_new_tokens,
        temperature=prepared.temperature,
        top_p=prepared.top_p,
        seed=[derived(prepared.seed, ids[item], number) % 2**62 for item, number in rows],
        system=prepared.system,
    )


def score_plainly(lens: Lens, prepared: Prepared, hooks: Hooks) -> Records:
    """What a task of one's own says of a model, ``[item, 1]``."""
    values = np.asarray(cast(Any, prepared.task).score(lens, hooks), dtype=np.float32)
    if values.shape != (len(prepared.task),):
        raise InputError(
            f"{prepared.task.name!r} scores {values.shape} numbers and has {len(prepared.task)} "
            "items; its score(lens, hooks) has to return one number an item."
        )
    return checked_records(values[:, None])


def scored(prepared: Prepared, records: Records) -> Scored[Any]:
    """What all items of a task are worth; a metric that fails fails here."""
    result = prepared.scored(range(len(prepared.task)), records)
    if prepared.metric is not None:
        result.measure()
    return result


def checked_records(records: Records) -> Records:
    """Refuse scores that are not numbers."""
    if np.isnan(records).any():
        raise InputError("scores are NaN; steer less strongly, or load the model in float32.")
    return records


def says_plainly(prepared: Prepared) -> None:
    """Say that nothing can be shared between the cells of a task of one's own."""
    if isinstance(prepared, Plainly):
        warnings.warn(
            f"{prepared.task.name!r} scores itself, so that every cell is one call of its score "
            "and nothing is shared between cells.",
            stacklevel=2,
        )


def _choices(lens: Lens, task: Questions, method: str | None, options: Options) -> Choices:
    way, system, prefix = checked_method(method), options.get("system"), options.get("prefix") or ""
    put = {"system": system, "prefix": prefix}
    metric = options.get("metric")
    if way == "letter":
        prompts = [prefix + letter_prompt(question) for question in task]
        most = max(len(question.options) for question in task)
        tokens = lens.encode(prompts, system=system)
        first = tokens.take(range(len(prompts))[:8])
        letters = _letters(lens, prompts[0], most, system, first)
        return Choices(task, metric, tokens, torch.arange(len(task)), letters, way, put)
    pairs = [
        (prefix + cloze_prompt(question), option)
        for question in task
        for option in question.options
    ]
    tokens = lens.encode(
        [text for text, _ in pairs], [option for _, option in pairs], system=system
    )
    counts = torch.tensor([len(question.options) for question in task])
    owners = torch.arange(len(task)).repeat_interleave(counts)
    return Choices(task, metric, tokens, owners, None, way, put)


def _generated(task: Problems, options: Options) -> Generated:
    given = {name: value for name, value in options.items() if name != "metric"}
    prepared = Generated(
        task,
        options.get("metric"),
        tuple(task.prompt(problem) for problem in task),
        **given,  # type: ignore[arg-type]
    )
    if prepared.n < 1 or (prepared.n > 1 and prepared.temperature == 0):
        raise InputError(
            f"n is {prepared.n} at temperature {prepared.temperature}; it has to be 1 or more, and "
            "1 where every answer would be the same."
        )
    # A verifier that fails fails before the answers.
    prepared.scored(range(len(task)), np.full((len(task), prepared.n), "", dtype=object))
    return prepared


def _letters(lens: Lens, prompt: str, n: int, system: str | None, asked: Tokens) -> tuple[int, ...]:
    """The token each letter is right after a prompt, with a space before it or without.

    Where both are single tokens, the model's own choice: whichever it finds likelier after some
    prompts.
    """
    forms = []
    for space in ("", " "):
        parts = [lens.chat.continuation(prompt, space + letter, system) for letter in LETTERS[:n]]
        if all(len(ids) == 1 for ids in parts) and len(set(parts)) == n:
            forms.append([ids[0] for ids in parts])
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
