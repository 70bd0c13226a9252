"""Answers that a model generates to problems, several each, and whether they are right."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from jaxtyping import Bool, Float
from torch import Tensor

from rolelens import forward, stats
from rolelens.display import Card, Shown
from rolelens.errors import InputError, writing
from rolelens.forward import Hook
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.rollouts.problems import Problem, Problems, Verifier, right_number
from rolelens.vectors import Source
from rolelens.vectors.nulls import derived

PIECE = 128
"""Rollouts that are generated, and kept in the file, together."""


@dataclass(frozen=True, eq=False, repr=False)
class Rollouts(Shown):
    """What a model answered to problems.

    Attributes:
        problems: what was asked.
        texts: its answers to each, without the prompts.
        correct: which of them are right.
        system: the system prompt they were answered under.
        source: the model that answered.
    """

    problems: Problems
    texts: tuple[tuple[str, ...], ...]
    correct: Bool[Tensor, "problem rollout"]
    system: str | None = None
    source: Source | None = None

    @property
    def shares(self) -> Float[Tensor, " problem"]:
        """Share of right answers to each problem."""
        return self.correct.double().mean(dim=1)

    @property
    def pass_at_1(self) -> float:
        """Mean share of right answers: the chance that one answer is right."""
        return float(self.shares.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of ``pass_at_1``: Wilson's of one answer each, else by bootstrap."""
        if self.correct.shape[1] == 1:
            return stats.wilson(int(self.correct.sum()), len(self.problems))
        return stats.paired_bootstrap(self.shares.numpy())

    @property
    def mixed(self) -> list[int]:
        """Problems with right and with wrong answers."""
        shares = self.shares
        return [int(n) for n in ((shares > 0) & (shares < 1)).nonzero()]

    def table(self) -> pd.DataFrame:
        """A row a rollout: ``id``, ``domain``, ``rollout``, ``correct``, ``text``."""
        return pd.DataFrame(
            [
                {
                    "id": problem.id,
                    "domain": problem.domain,
                    "rollout": n,
                    "correct": bool(self.correct[k, n]),
                    "text": text,
                }
                for k, problem in enumerate(self.problems)
                for n, text in enumerate(self.texts[k])
            ]
        )

    def card(self) -> Card:
        """How many, and how many are right."""
        low, high = self.interval
        facts = {
            "problems": f"{len(self.problems)} of {self.problems.name}",
            "rollouts of each": str(self.correct.shape[1]),
            "pass@1": f"{self.pass_at_1:.3f} ({low:.3f} to {high:.3f})",
            "with right and wrong ones": str(len(self.mixed)),
        }
        return Card("Rollouts", facts, "rl.roast(lens, rollouts)")


def roll_out(
    lens: Lens,
    problems: Problems,
    n: int = 8,
    *,
    hooks: Sequence[Hook] = (),
    temperature: float = 0.8,
    top_p: float = 0.9,
    max_new_tokens: int = 256,
    verifier: Verifier = right_number,
    system: str | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    steering: str = "",
) -> Rollouts:
    """Let the model answer problems, and check its answers.

    Args:
        lens: the model.
        problems: from :func:`load_problems`.
        n: answers to each (2602.14143 takes 8).
        hooks: steering; the same for all answers.
        temperature: 0 is greedy, which takes ``n=1``.
        top_p: nucleus.
        max_new_tokens: length of an answer at most, in tokens.
        verifier: whether a text answers a problem rightly.
        system: a system prompt.
        seed: of the sampling.
        store: a JSONL file that finished answers are appended to; the same call goes on there.
        steering: what ``hooks`` do, in words; another is refused by the store. Without, it tells
            ways of steering apart by some logits, and not those that hardly differ in them.

    Raises:
        InputError: ``n`` is below 1 or useless, row-wise hooks, a store of another call, or as for
            :meth:`rolelens.Lens.generate`.
    """
    if n < 1 or (n > 1 and temperature == 0):
        raise InputError(
            f"n is {n} at temperature {temperature}; it has to be 1 or more, and 1 where every "
            "answer would be the same."
        )
    if callable(hooks):
        raise InputError("rollouts are all steered alike; pass a hook list, not row-wise hooks.")
    _judged(problems, [("",)] * len(problems), verifier)  # what fails fails before the answers
    settings = {
        "model": lens.source.model,
        "weights": lens.source.weights,
        "content": lens.content,
        "dtype": lens.source.dtype,
        "problems": problems.name,
        "prompts": _digest([problems.prompt(problem) for problem in problems]),
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "system": system,
        "seed": seed,
        "steering": steering,
        "logits": _logits(lens, problems.prompt(problems[0]), hooks, system),
    }
    each = max(1, PIECE // n)

    def answered(piece: range) -> list[list[str]]:
        texts = lens.generate(
            [problems.prompt(problems[k]) for k in piece for _ in range(n)],
            hooks=hooks,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=derived(seed, "rollouts", piece.start) % 2**31,
            system=system,
        )
        return [texts[k : k + n] for k in range(0, len(texts), n)]

    def rest(start: int) -> list[range]:
        return [range(k, min(k + each, len(problems))) for k in range(start, len(problems), each)]

    kept = track(_kept(store, settings, rest, answered), "Rollouts", total=len(rest(0)))
    texts = tuple(tuple(own) for piece in kept for own in piece)
    judged = _judged(problems, texts, verifier)
    return Rollouts(problems, texts, judged, system, lens.source)


def compare(before: Rollouts, after: Rollouts) -> stats.Estimate:
    """Change of pass@1, with its interval and p-value over problems.

    Raises:
        InputError: they are of different problems.
    """
    if before.problems.problems != after.problems.problems:
        raise InputError("the two are of different problems; roll out both on the same.")
    return stats.paired((after.shares - before.shares).numpy())


def _judged(
    problems: Problems, texts: Sequence[Sequence[str]], verifier: Verifier
) -> Bool[Tensor, "problem rollout"]:
    def right(problem: Problem, text: str) -> bool:
        found = verifier(problem, text)
        if not isinstance(found, bool):
            raise InputError(
                f"the verifier says {found!r} of an answer to {problem.id!r}; it has to be True or "
                "False."
            )
        return found

    return torch.tensor(
        [
            [right(problem, text) for text in own]
            for problem, own in zip(problems, texts, strict=True)
        ]
    )


def _kept(
    store: str | Path | None,
    settings: Mapping[str, Any],
    rest: Callable[[int], list[range]],
    make: Callable[[range], list[list[str]]],
) -> Iterator[list[list[str]]]:
    """The pieces, from the file as far as it has them."""
    if store is None:
        yield from map(make, rest(0))
        return
    path = Path(store)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it.")
    with writing(path):
        lock = FileLock(f"{path.resolve()}.lock")
    try:
        with lock.acquire(timeout=0):
            held = _held(path, settings)
            yield from held
            for piece in rest(sum(map(len, held))):
                made = make(piece)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(made) + "\n")
                yield made
    except Timeout as error:
        raise InputError(f"{path} is being written by another process; wait for it.") from error


def _digest(prompts: Sequence[str]) -> str:
    """Hash of prompts in their order, which is that of the answers."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


def _logits(lens: Lens, prompt: str, hooks: Sequence[Hook], system: str | None) -> list[float]:
    """What tells one way of steering from another: some logits after the beginning of an answer."""
    tokens = lens.tokenize([prompt], ["The answer"], system=system)
    vocab = range(0, lens.model.cfg.d_vocab, max(1, lens.model.cfg.d_vocab // 256))
    read = forward.next_token_logits(lens.model, tokens, vocab=vocab, hooks=hooks)
    return [float(value) for value in read[0]]


def _held(path: Path, settings: Mapping[str, Any]) -> list[list[list[str]]]:
    """The finished pieces of a file that this very call made; it is begun where there is none."""
    content = path.read_bytes() if path.exists() else b""
    if b"\n" not in content:
        if content and not content.startswith(b'{"model"'):
            raise InputError(f"{path} is not a store of rollouts; name another file.")
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    head, *lines = content.split(b"\n")
    try:
        known = json.loads(head)
        held = [json.loads(line) for line in lines[:-1]]
        names = known.keys()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a store of rollouts; name another file.") from error
    for name, value in settings.items():
        same = known.get(name) == json.loads(json.dumps(value))
        if name == "logits" and name in names:
            near = 1e-3 if settings["dtype"] == "float32" else 3e-2
            same = np.allclose(known[name], value, rtol=near, atol=near)
            value = "others: it is steered otherwise"
        if not same:
            raise InputError(
                f"{path} was made with {name} {known.get(name)!r} and this call has {value!r}; "
                "pass the same, or name another file."
            )
    if lines[-1]:  # a write that was cut off; the piece is made again
        with path.open("r+b") as file:
            file.truncate(len(content) - len(lines[-1]))
    return held
