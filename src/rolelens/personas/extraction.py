"""Directions of roles and traits over the model's own answers, not over what it is asked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.personas.answering import Asked, answered, prompt_of
from rolelens.personas.judging import Judge
from rolelens.predictors import singles_of, with_foretold
from rolelens.progress import track
from rolelens.prompts import Trait, digest
from rolelens.residuals import known_layers
from rolelens.vectors import Directions

Side: TypeAlias = Literal["positive", "negative"]
DEFAULT = "default"
"""The name of the role that is none: what the model answers as itself."""
CUT = 50.0
"""What a judge has to give an answer of the positive side at least, and of the negative less."""


@dataclass(frozen=True, eq=False, repr=False)
class AnswerVectors(Shown):
    """Directions over answers, with the answers: of :func:`role_answers` or :func:`trait_vectors`.

    Attributes:
        vectors: a direction for each name and layer, of no position.
        halves: the same from the answers to every other question, and from those to the others.
        answers: a row an answer: ``name``, ``side``, ``system``, ``question``, ``answer``,
            ``score`` of the judge (NaN without one, or without a verdict) and ``kept``.
    """

    vectors: Directions
    halves: tuple[Directions, Directions]
    answers: pd.DataFrame

    def reliability(self) -> pd.DataFrame:
        """Split-half cosine: a row a name and layer, ``name``, ``layer`` and ``cosine``."""
        one, other = (
            torch.nn.functional.normalize(half.directions[:, :, 0].double(), dim=-1)
            for half in self.halves
        )
        cosines = (one * other).sum(dim=-1)
        return pd.DataFrame(
            [
                {"name": name, "layer": layer, "cosine": float(cosines[n, k])}
                for n, name in enumerate(self.vectors.names)
                for k, layer in enumerate(self.vectors.layers)
            ]
        )

    def card(self) -> Card:
        """Names, and how many answers they are of."""
        facts = {
            f"{self.vectors.kind}s": str(len(self.vectors.names)),
            "answers": f"{int(self.answers['kept'].sum())} kept of {len(self.answers)}",
            "layers": f"{self.vectors.layers[0]} to {self.vectors.layers[-1]}",
        }
        return Card("AnswerVectors", facts, "result.vectors, result.answers, result.reliability()")


def trait_vectors(
    lens: Lens,
    traits: Trait | Mapping[str, Trait],
    questions: Sequence[str] | None = None,
    *,
    judge: Judge | None = None,
    cut: float = CUT,
    systems: int = 1,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 64,
    store: str | Path | None = None,
) -> AnswerVectors:
    """Directions of traits over answers (persona vectors, 2507.21509).

    The model answers each question under system prompts that bring the trait out and under those
    that bring out its opposite. A judge keeps what shows the trait on the one side and does not on
    the other. The direction is the mean over the tokens of the answers of the positive side minus
    that of the negative side. (Layer l here is what enters block l; the paper's code calls the same
    l + 1 minus the embeddings, l.)

    Args:
        lens: the model.
        traits: one, or several by name, such as from :func:`rolelens.load_traits`.
        questions: asked of all traits; each trait's own by default.
        judge: see :mod:`rolelens.personas.judging`; without one every answer is kept.
        cut: what the judge gives the positive side at least, and the negative side less.
        systems: under how many of its system prompts each question is asked; they take turns.
        layers: all of them by default.
        max_new_tokens: of an answer at most, greedily.
        store: a JSONL file that keeps each answer; the same call goes on there.

    Raises:
        InputError: a trait without negative system prompts or questions, a store of another call,
            or a trait of which fewer than two answers are kept on a side and half.
    """
    several = {traits.name: traits} if isinstance(traits, Trait) else dict(traits)
    asked: list[Asked] = []
    rubrics: dict[str, Trait] = {}
    for name, trait in several.items():
        if not trait.negative:
            raise InputError(
                f"{name!r} has no negative system prompts; give it some, or use rl.role_answers."
            )
        own = trait.questions if questions is None else questions
        if not own:
            raise InputError(f"{name!r} has no questions; pass questions.")
        rubrics[name] = trait
        asked += _asked(name, "positive", trait.positive, own, systems)
        asked += _asked(name, "negative", trait.negative, own, systems)
    table = _answers(lens, asked, rubrics, judge, max_new_tokens, store)
    if judge is not None:
        above = table["score"] >= cut
        kept = np.where(table["side"] == "positive", above, table["score"] < cut)
        table["kept"] &= kept & table["score"].notna()
    sums, singles, norms, found = _means(lens, asked, table, layers)
    signs = {"positive": 1.0, "negative": -1.0}
    made = _vectors(lens, several, table, sums, norms, found, signs, "trait")
    sides = {
        name: (torch.stack(singles[name, "positive"]), torch.stack(singles[name, "negative"]))
        for name in several
    }
    return dataclasses.replace(made, vectors=with_foretold(made.vectors, sides))


def role_answers(
    lens: Lens,
    roles: Mapping[str, Trait | str],
    questions: Sequence[str],
    *,
    default: Trait | str = "",
    judge: Judge | None = None,
    cut: float = CUT,
    systems: int = 1,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 64,
    store: str | Path | None = None,
) -> AnswerVectors:
    """Directions of roles over the model's answers in them (2601.10387).

    The mean over the tokens of answers under a role's system prompts, minus that of the model's
    answers as itself.

    Args:
        lens: the model.
        roles: system prompts by role, such as from :func:`rolelens.load_traits`, or one as a text.
            A role called ``"default"`` is the model as itself.
        questions: asked of all roles.
        default: system prompts of the model as itself, where no role is called so; none by default.
        judge: keeps only answers that it gives ``cut`` or more, of roles; see
            :mod:`rolelens.personas.judging`.
        cut: what the judge gives a kept answer at least.
        systems: under how many of its system prompts each question is asked; they take turns.
        layers: all of them by default.
        max_new_tokens: of an answer at most, greedily.
        store: a JSONL file that keeps each answer; the same call goes on there.

    Raises:
        InputError: no roles, fewer than two questions, a store of another call, or a role of which
            no answer is kept in a half.
    """
    everyone = {DEFAULT: default, **roles}
    traits = {
        name: Trait(name, (one,)) if isinstance(one, str) else one for name, one in everyone.items()
    }
    if len(traits) < 2:
        raise InputError("there are no roles beside the default; pass at least one.")
    if isinstance(questions, str) or len(questions) < 2:
        raise InputError(f"questions is {questions!r}; pass a list of at least two.")
    asked: list[Asked] = []
    for name, trait in traits.items():
        texts = [text.replace("{model_name}", lens.name) for text in trait.positive]
        asked += _asked(name, "positive", texts, questions, systems)
    table = _answers(lens, asked, traits, judge, max_new_tokens, store)
    if judge is not None:
        table["kept"] &= (table["score"] >= cut) | (table["name"] == DEFAULT)
    sums, singles, norms, found = _means(lens, asked, table, layers)
    named = {name: trait for name, trait in traits.items() if name != DEFAULT}
    made = _vectors(lens, named, table, sums, norms, found, {"positive": 1.0}, "role")
    plain = torch.stack(singles[DEFAULT, "positive"])
    sides = {name: (torch.stack(singles[name, "positive"]), plain) for name in named}
    return dataclasses.replace(made, vectors=with_foretold(made.vectors, sides))


Means: TypeAlias = Mapping[tuple[str, str, int], tuple[int, Float[Tensor, "layer d_model"]]]
"""Count and sum of what was read, by name, side and half."""
Singles: TypeAlias = Mapping[tuple[str, str], list[Float[Tensor, "layer d_model"]]]
"""Some of what was read, answer by answer, by name and side."""


def _asked(
    name: str, side: Side, texts: Sequence[str], questions: Sequence[str], systems: int
) -> list[Asked]:
    """Each question under some of the system prompts, which take turns."""
    if not 1 <= systems <= len(texts):
        raise InputError(
            f"systems is {systems}, and {name!r} has {len(texts)} system prompts; take 1 to "
            f"{len(texts)}."
        )
    return [
        Asked(name, side, texts[(number + turn) % len(texts)], question)
        for number, question in enumerate(questions)
        for turn in range(systems)
    ]


def _answers(
    lens: Lens,
    asked: Sequence[Asked],
    traits: Mapping[str, Trait],
    judge: Judge | None,
    max_new_tokens: int,
    store: str | Path | None,
) -> pd.DataFrame:
    """The answers, with what a judge gives them; empty ones are not kept."""
    texts = answered(lens, asked, max_new_tokens=max_new_tokens, store=store)
    table = pd.DataFrame([vars(one) for one in asked]).assign(answer=texts, score=np.nan)
    table["kept"] = table["answer"] != ""
    if judge is not None:
        rows = table.index[table["kept"]]
        table.loc[rows, "score"] = judge.score(
            [traits[name] for name in table["name"][rows]],
            table["question"][rows].tolist(),
            table["answer"][rows].tolist(),
        )
    return table


def _means(
    lens: Lens, asked: Sequence[Asked], table: pd.DataFrame, layers: Sequence[int] | None
) -> tuple[Means, Singles, list[float], list[int]]:
    """Sums over kept answers of each name, side and half, some of them; mean norms; layers."""
    found = known_layers(lens, layers)
    questions = {question: n for n, question in enumerate(dict.fromkeys(table["question"]))}
    rows = table.index[table["kept"]].tolist()
    if not rows:
        raise InputError("no answer is kept; lower cut, or leave the judge out.")
    tokens = lens.encode(
        [prompt_of(lens, asked[row]) for row in rows], [table["answer"][row] for row in rows]
    )
    sums: dict[tuple[str, str, int], tuple[int, Tensor]] = {}
    sides = table.loc[rows].groupby(["name", "side"])
    few = sides.cumcount() < singles_of(sides.ngroups, len(found), lens.d_model)
    singles: dict[tuple[str, str], list[Tensor]] = {}
    norm, n = torch.zeros(len(found), dtype=torch.float64), 0
    stream = forward.answer_states(lens.model, tokens, found, "resid_pre", "mean")
    for batch, x in track(stream, "reading", total=len(forward.batches(tokens))):
        states = x.double().cpu()
        if not torch.isfinite(states).all():
            raise InputError(
                "activations of answers are NaN or infinite; load the model in float32."
            )
        for place, state in zip(batch.tolist(), states, strict=True):
            one = asked[rows[place]]
            key = (one.name, one.side, questions[one.question] % 2)
            count, total = sums.get(key, (0, torch.zeros_like(state)))
            sums[key] = count + 1, total + state
            if few[rows[place]]:
                singles.setdefault((one.name, one.side), []).append(state.float())
        norm, n = norm + states.norm(dim=-1).sum(dim=0), n + len(states)
        forward.release_memory()
    return sums, singles, (norm / n).tolist(), found


def _vectors(
    lens: Lens,
    traits: Mapping[str, Trait],
    table: pd.DataFrame,
    sums: Means,
    norms: list[float],
    layers: list[int],
    signs: Mapping[str, float],
    kind: str,
) -> AnswerVectors:
    """Differences of means, of all answers and of each half."""

    def mean(name: str, side: str, halves: Sequence[int]) -> Tensor:
        parts = [sums[(name, side, half)] for half in halves if (name, side, half) in sums]
        if not parts:
            raise InputError(
                f"no answer of {name!r} ({side}) is kept in one half of the questions; ask more "
                "questions, or lower cut."
            )
        total = torch.stack([part for _, part in parts]).sum(dim=0)
        return total / sum(count for count, _ in parts)

    def difference(name: str, halves: Sequence[int]) -> Tensor:
        total = torch.stack([sign * mean(name, s, halves) for s, sign in signs.items()]).sum(dim=0)
        return total if "negative" in signs else total - mean(DEFAULT, "positive", halves)

    contrast = "positive - negative" if "negative" in signs else "in role - default"
    kept = table[table["kept"]].groupby("name")["answer"]
    whole = Directions(
        directions=torch.stack([difference(name, (0, 1)) for name in traits]).float()[:, :, None],
        names=tuple(traits),
        layers=tuple(layers),
        positions=(None,),
        resid_norm=torch.tensor(norms)[:, None],
        source=lens.source,
        prompts={str(name): (len(texts), digest(list(texts))) for name, texts in kept},
        contrast=f"answers {contrast}",
        kind=kind,
    )
    halves = tuple(
        dataclasses.replace(
            whole,
            directions=torch.stack([difference(name, (half,)) for name in traits]).float()[
                :, :, None
            ],
        )
        for half in (0, 1)
    )
    return AnswerVectors(whole, (halves[0], halves[1]), table)
