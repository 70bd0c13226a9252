"""Fusion steering (2505.22572): an upper bound on what additions can do, as it knows the answer."""

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.display import Card, Shown
from rolelens.errors import InputError, checked_seed, unknown
from rolelens.hooks import Steering, add, by_row
from rolelens.lens import Lens
from rolelens.tasks import Problems
from rolelens.vectors import Direction


@dataclass(frozen=True, eq=False, repr=False)
class Fusion(Shown):
    """Answers under the best of some strengths for each problem: an oracle, and no method.

    The gold answer is in what is added and in what strengths are chosen by.

    Attributes:
        frame: a row a problem and ``gold`` (``true``, ``shuffled``, or ``none``: unsteered):
            ``right``, ``overlap`` with the gold answer, ``perplexity`` of the answer, ``strengths``
            and ``text``.
    """

    frame: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """A row a kind of gold: mean of ``right``, ``overlap`` and ``perplexity``."""
        columns = ["right", "overlap", "perplexity"]
        return self.frame.groupby("gold", sort=False)[columns].mean()

    def card(self) -> Card:
        """Share of right answers with the true, another's and no gold answer."""
        shares = self.table()["right"].to_dict()
        told = ", ".join(f"{gold} gold {share:.3f}" for gold, share in shares.items())
        return Card("Fusion", {"right (an upper bound)": told}, "fusion.table()")


def fusion_bound(
    lens: Lens,
    problems: Problems,
    *,
    segments: int = 1,
    trials: int = 5,
    most: float = 1.0,
    search: Literal["random", "tpe"] = "random",
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Fusion:
    """What adding the gold answer's activations to every block can reach: an upper bound.

    h <- h + s_l (ref_l - mean_l) at every token, where ref_l is the mean of block l's output over
    the tokens of the gold answer (with its solution, where there is one) and mean_l that over the
    question. The best strengths of some trials are kept by 0.7 overlap with the gold answer -
    0.3 min(perplexity / 100, 1). As control, the same with another problem's gold
    answer in the place of ref_l. What leaves the last block is not steered.

    Args:
        lens: the model.
        problems: such as those that the model answers wrongly.
        segments: 1: one strength for all blocks (full); 3: one for each third of them (segmented).
        trials: strengths that are tried for each problem.
        most: the largest strength.
        search: strengths are drawn at ``random`` in every trial, or by Optuna's ``tpe``, which
            learns from earlier trials of the problem (``pip install 'rolelens[optuna]'``); its
            first ten trials are random, too.
        max_new_tokens: length of an answer at most, in tokens.
        seed: of the strengths and of the shuffling.

    Raises:
        InputError: fewer than two problems, numbers that make no sense, an unknown search, or
            Optuna is not installed.
    """
    if len(problems) < 2 or trials < 1 or not 1 <= segments < lens.n_layers or not most > 0:
        raise InputError(
            f"{len(problems)} problems, trials {trials}, segments {segments} and most {most}: at "
            f"least 2 problems, 1 trial, 1 to {lens.n_layers - 1} segments and a strength above 0 "
            "are needed."
        )
    if search not in _SEARCHES:
        raise unknown("search", search, _SEARCHES)
    prompts = [problems.prompt(problem) for problem in problems]
    golds = [" ".join(filter(None, (p.solution, p.answer))) for p in problems]
    moved = list(range(len(golds)))
    random.Random(checked_seed(seed)).shuffle(moved)
    # Every problem gets another's: the next in a shuffled ring.
    after = {one: moved[(n + 1) % len(moved)] for n, one in enumerate(moved)}
    others = [golds[after[n]] for n in range(len(golds))]
    searched = _SEARCHES[search]
    rows = _row("none", problems, lens.generate(prompts, max_new_tokens=max_new_tokens), lens)
    for gold, texts in (("true", golds), ("shuffled", others)):
        shifts = _shifts(lens, prompts, texts)
        best: list[dict[str, object]] = []
        find = searched(len(prompts), segments, most, seed)
        for _ in range(trials):
            drawn = find.ask()
            steerings = [_steering(lens, *pair) for pair in zip(shifts, drawn, strict=True)]
            answers = lens.generate(prompts, hooks=by_row(steerings), max_new_tokens=max_new_tokens)
            tried = [
                {**row, "strengths": strengths}
                for row, strengths in zip(_row(gold, problems, answers, lens), drawn, strict=True)
            ]
            find.tell([_worth(row) for row in tried])
            best = [
                old if _worth(old) >= _worth(new) else new
                for old, new in zip(best or tried, tried, strict=True)
            ]
        rows += best
    return Fusion(pd.DataFrame(rows))


def overlap(text: str, gold: str) -> float:
    """F1 of the words of two texts, 0 to 1."""
    said, wanted = (Counter(re.findall(r"\w+", part.casefold())) for part in (text, gold))
    shared = sum((said & wanted).values())
    return 2 * shared / (sum(said.values()) + sum(wanted.values())) if shared else 0.0


def _worth(row: dict[str, object]) -> float:
    return 0.7 * float(str(row["overlap"])) - 0.3 * min(float(str(row["perplexity"])) / 100, 1.0)


class _Search(Protocol):
    """Proposes strengths for every problem, and is told what they were worth."""

    def __init__(self, problems: int, segments: int, most: float, seed: int) -> None: ...

    def ask(self) -> list[list[float]]: ...

    def tell(self, worth: Sequence[float]) -> None: ...


class _Random:
    """Strengths that are drawn anew every time."""

    def __init__(self, problems: int, segments: int, most: float, seed: int) -> None:
        self._drawn, self._most = np.random.default_rng(seed), most
        self._size = problems, segments

    def ask(self) -> list[list[float]]:
        drawn: list[list[float]] = self._drawn.uniform(0, self._most, self._size).tolist()
        return drawn

    def tell(self, worth: Sequence[float]) -> None:
        pass


class _Tpe:
    """Strengths by tree-structured Parzen estimators, each problem for itself."""

    def __init__(self, problems: int, segments: int, most: float, seed: int) -> None:
        try:
            import optuna
        except ModuleNotFoundError:
            raise InputError(
                "Optuna is not installed; run pip install 'rolelens[optuna]', or take "
                "search='random'."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._segments, self._most = segments, most
        self._studies = [
            optuna.create_study(
                direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed + n)
            )
            for n in range(problems)
        ]
        self._asked: list[Any] = []

    def ask(self) -> list[list[float]]:
        self._asked = [study.ask() for study in self._studies]
        return [
            [trial.suggest_float(f"strength {k}", 0.0, self._most) for k in range(self._segments)]
            for trial in self._asked
        ]

    def tell(self, worth: Sequence[float]) -> None:
        for study, trial, value in zip(self._studies, self._asked, worth, strict=True):
            study.tell(trial, value)


_SEARCHES: Mapping[str, type[_Search]] = {"random": _Random, "tpe": _Tpe}


def _row(
    gold: str, problems: Problems, texts: Sequence[str], lens: Lens
) -> list[dict[str, object]]:
    from rolelens.tasks import right_number

    perplexities = _perplexities(lens, [problems.prompt(p) for p in problems], texts)
    return [
        {
            "id": problem.id,
            "gold": gold,
            "right": float(right_number(problem, text)),
            "overlap": overlap(text, problem.answer),
            "perplexity": value,
            "strengths": [],
            "text": text,
        }
        for problem, text, value in zip(problems, texts, perplexities, strict=True)
    ]


def _perplexities(lens: Lens, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Of each answer to the unsteered model; of an empty one infinite."""
    told = [n for n, text in enumerate(texts) if text.strip()]
    out = [math.inf] * len(texts)
    if told:
        tokens = lens.encode([prompts[n] for n in told], [texts[n] for n in told])
        for n, logprobs in zip(told, forward.answer_logprobs(lens.model, tokens), strict=True):
            out[n] = math.exp(min(-float(logprobs.double().mean()), 100.0))
    return out


def _shifts(
    lens: Lens, prompts: Sequence[str], golds: Sequence[str]
) -> Float[Tensor, "prompt layer d_model"]:
    """Mean over the gold answer minus mean over the prompt, of what enters layers 1 and above."""
    tokens = lens.encode(prompts, golds)
    layers = list(range(1, lens.n_layers))
    parts: dict[int, Tensor] = {}
    for row, x in forward.token_states(lens.model, tokens, layers):
        length = tokens.prompt_lengths[row]
        parts[row] = (x[:, length:].mean(dim=1) - x[:, :length].mean(dim=1)).float().cpu()
    return torch.stack([parts[row] for row in range(len(tokens))])


def _steering(
    lens: Lens, shifts: Float[Tensor, "layer d_model"], strengths: Sequence[float]
) -> Steering:
    """One addition a layer; each segment of the layers has its strength."""
    whole = Steering()
    for n, shift in enumerate(shifts):
        strength = float(strengths[n * len(strengths) // len(shifts)])
        d = Direction(shift, n + 1, name="fusion", source=lens.source)
        whole = whole + add(d, strength)
    return whole
