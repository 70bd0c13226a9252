"""Activations of right and of wrong answers, and directions between them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward, stats
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.forward import Pooled
from rolelens.lens import Lens
from rolelens.residuals import known_layers
from rolelens.tasks import Answers, Problems, final_number
from rolelens.vectors import Directions, Source, check_sources
from rolelens.vectors.estimators import Estimator, GroupedMean, Labelled

AGAIN = "{prompt}\n\nRead the question again: {prompt}"
"""How a problem is put before its gold answer (re-reading, 2309.06275)."""


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Shown):
    """Activations of answers that have what a direction is to stand for, and of others.

    Attributes:
        labelled: those of each layer, grouped by question.
        site: where they were read.
        source: the model they were read off.
        what: what is contrasted.
        counts: how many questions came in, and why others did not.
    """

    labelled: Mapping[int, Labelled]
    site: str
    source: Source
    what: str
    counts: Mapping[str, int]

    def directions(self, estimator: Estimator, name: str = "correct") -> Directions:
        """The direction of every layer by some estimator.

        Args:
            estimator: see :mod:`rolelens.vectors.estimators`.
            name: of the direction, in place of a role.
        """
        found = [estimator.fit(own) for own in self.labelled.values()]
        norms = [own.negative.double().norm(dim=-1).mean() for own in self.labelled.values()]
        return Directions(
            directions=torch.stack(found).float()[None, :, None],
            names=(name,),
            layers=tuple(self.labelled),
            positions=(None,),
            resid_norm=torch.stack(norms).float()[:, None],
            source=self.source,
            site=self.site,
            contrast=f"{self.what}, {type(estimator).__name__}",
            kind="answer",
        )

    def card(self) -> Card:
        """What is contrasted, where, and how many questions came in."""
        layers = [*self.labelled]
        facts = {
            "what": self.what,
            "site": self.site,
            "layers": f"{layers[0]} to {layers[-1]}",
            "questions": ", ".join(f"{n} {why}" for why, n in self.counts.items()),
        }
        return Card("Contrast", facts, "contrast.directions(estimator), contrast.reads(vectors)")

    def reads(self, vectors: Directions) -> pd.DataFrame:
        """How well directions tell the two kinds of answers to a question apart.

        Of other questions than those that the directions were made of it says whether they stand
        for more than these.

        Args:
            vectors: the directions, by their last position, where they have any.

        Returns:
            A row a direction and layer: ``auroc`` within a question (0.5 is chance), its mean over
            ``questions`` with the 95 % interval ``low`` to ``high``, and ``p`` of a sign-flip test.

        Raises:
            InputError: directions of another model, site or layer, or no question has both kinds.
        """
        check_sources(vectors.source, self.source)
        if vectors.site != self.site:
            raise InputError(
                f"the directions are of {vectors.site!r} and the answers were read at "
                f"{self.site!r}; contrast the answers at the same site."
            )
        rows = []
        for role in vectors.names:
            for layer in vectors.layers:
                if layer not in self.labelled:
                    raise unknown("layer", layer, self.labelled)
                d = vectors.direction(role, layer)
                shares = self.labelled[layer].ordered(d.vector)
                found = stats.paired((shares - 0.5).numpy())
                rows.append(
                    {
                        "name": role,
                        "layer": layer,
                        "auroc": 0.5 + found.value,
                        "low": 0.5 + found.low,
                        "high": 0.5 + found.high,
                        "p": found.p,
                        "questions": len(shares),
                    }
                )
        return pd.DataFrame(rows)


def contrast_answers(
    lens: Lens,
    rollouts: Answers,
    *,
    layers: Sequence[int] | None = None,
    site: str = "resid_pre",
    pooled: Pooled = "last",
    gold: float = 0.0,
) -> Contrast:
    """Contrast a model's own right answers with its wrong ones (ROC of 2602.14143).

    Questions answered all right or all wrong have nothing to contrast and are left out, and so are
    empty answers, which have no last token.

    Args:
        lens: the model that answered.
        rollouts: from :func:`roll_out`.
        layers: all of them by default.
        site: ``resid_pre``, ``attn_out`` or ``mlp_post``, see :data:`rolelens.forward.SITES`.
        pooled: the ``last`` token of each answer, as in the paper, or the ``mean`` over its tokens
            (response means, as for persona vectors, 2507.21509).
        gold: weight of questions that were answered all wrong, whose worked solution then stands
            for a right answer, after the question was read again; 0 leaves them out. Of the
            estimators only :class:`GroupedMean` weighs.

    Raises:
        InputError: no question has both, an unknown layer or site, or another model answered.
    """
    check_sources(rollouts.source, lens.source)
    if not 0 <= gold <= 1:
        raise InputError(f"gold is {gold}; it has to be a weight from 0 to 1.")
    prompts: tuple[list[str], list[str]] = ([], [])
    answers: tuple[list[str], list[str]] = ([], [])
    groups: tuple[list[int], list[int]] = ([], [])
    weights: dict[int, float] = {}
    kinds = dict.fromkeys(("mixed", "all right", "all wrong"), 0)
    empty = 0
    for k, problem in enumerate(rollouts.items):
        prompt = rollouts.task.prompt(problem)
        texts = [(n, text) for n, text in enumerate(rollouts.texts[k]) if text.strip()]
        right = {bool(rollouts.correct[k, n]) for n, _ in texts}
        empty += len(rollouts.texts[k]) - len(texts)
        kinds["mixed" if len(right) == 2 else "all right" if True in right else "all wrong"] += 1
        inserted = bool(gold and problem.solution and right == {False})
        if len(right) < 2 and not inserted:
            continue
        weights[k] = gold if inserted else 1.0
        if inserted:
            prompts[0].append(AGAIN.replace("{prompt}", prompt))
            answers[0].append(problem.solution)
            groups[0].append(k)
        for n, text in texts:
            side = 0 if rollouts.correct[k, n] else 1
            prompts[side].append(prompt)
            answers[side].append(text)
            groups[side].append(k)
    counts = {**kinds, "gold answers": len(weights) - kinds["mixed"], "empty answers": empty}
    if not weights:
        raise InputError(
            f"none of {len(rollouts.items)} problems was answered both rightly and wrongly ("
            f"{counts['all right']} all right, {counts['all wrong']} all wrong); take easier or "
            "harder problems, or more rollouts of each."
        )
    read = [
        _read(lens, prompts[side], answers[side], layers, site, pooled, rollouts.system)
        for side in (0, 1)
    ]
    labelled = {
        layer: Labelled(
            own, read[1][layer], torch.tensor(groups[0]), torch.tensor(groups[1]), weights
        )
        for layer, own in read[0].items()
    }
    return Contrast(labelled, site, lens.source, "right answers - wrong answers", counts)


def contrast_pairs(
    lens: Lens,
    prompts: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    site: str = "resid_pre",
    pooled: Pooled = "last",
    system: str | None = None,
) -> Contrast:
    """Contrast two given answers to each prompt.

    With the letters of a right and a wrong option as answers it is contrastive activation addition
    (CAA, 2312.06681): the activations are those of the letter.

    Args:
        lens: the model.
        prompts: what the user says.
        positive: an answer to each.
        negative: another answer to each.
        layers: all of them by default.
        site: as for :func:`contrast_answers`.
        pooled: as for :func:`contrast_answers`.
        system: a system prompt.
    """
    if not len(prompts) == len(positive) == len(negative):
        raise InputError(
            f"{len(prompts)} prompts, {len(positive)} positive and {len(negative)} negative "
            "answers do not pair up."
        )
    for answer in (*positive, *negative):
        if not answer.strip():
            raise InputError(f"{answer!r} is no answer; every answer has to have a token.")
    read = [_read(lens, prompts, own, layers, site, pooled, system) for own in (positive, negative)]
    groups = torch.arange(len(prompts))
    labelled = {
        layer: Labelled(own, read[1][layer], groups, groups) for layer, own in read[0].items()
    }
    counts = {"pairs": len(prompts)}
    return Contrast(labelled, site, lens.source, "positive answers - negative answers", counts)


def ab_choices(problems: Problems, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Problems with the right number and a wrong one near it as options A and B.

    Args:
        problems: whose answers are numbers.
        seed: of the wrong numbers and of the options' order.

    Returns:
        The prompts, the letter of the right option of each, and that of the wrong one, for
        :func:`contrast_pairs`.
    """
    prompts, right, wrong = [], [], []
    for problem in problems:
        value = final_number(problem.answer)
        if value is None:
            raise InputError(
                f"the answer of problem {problem.id!r} is {problem.answer!r}, which has no number; "
                "write the pairs yourself."
            )
        rng = random.Random(f"{seed}/{problem.id}")
        other = value + rng.choice((-1, 1)) * rng.randint(1, max(2, round(abs(value) / 4)))
        first = rng.random() < 0.5
        options = (value, other) if first else (other, value)
        lettered = "\n".join(
            f"({letter}) {n:.15g}" for letter, n in zip("AB", options, strict=True)
        )
        prompts.append(f"{problem.question}\n{lettered}\nAnswer with A or B.")
        right.append("A" if first else "B")
        wrong.append("B" if first else "A")
    return prompts, right, wrong


def roast(lens: Lens, rollouts: Answers, **options: Any) -> Directions:
    """The direction of ROAST (2602.14143): grouped mean of right minus wrong rollouts.

    Every question's difference counts the same, whatever its norm. The paper then scales its
    elements: :func:`rolelens.vectors.scaling.soft_scaled`.

    Args:
        lens: the model that answered.
        rollouts: from :func:`roll_out`.
        options: as for :func:`contrast_answers`.
    """
    return contrast_answers(lens, rollouts, **options).directions(GroupedMean(), "roast")


def _read(
    lens: Lens,
    prompts: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int] | None,
    site: str,
    pooled: Pooled,
    system: str | None,
) -> dict[int, Float[Tensor, "answer d"]]:
    """Activations of answers, by layer."""
    if pooled not in get_args(Pooled):
        raise unknown("way of pooling", pooled, get_args(Pooled))
    if site not in forward.SITES:
        raise unknown("site", site, forward.SITES)
    chosen = known_layers(lens, layers)
    tokens = lens.encode(prompts, answers, system=system)
    parts: dict[int, Tensor] = {}
    for rows, x in forward.answer_states(lens.model, tokens, chosen, site, pooled):
        for n, row in enumerate(rows.tolist()):
            parts[row] = x[n].float().cpu()
    stacked = torch.stack([parts[row] for row in range(len(tokens))])
    return {layer: stacked[:, n] for n, layer in enumerate(chosen)}
