"""Judges: is a text that of a role? They never see whether it was read off a role or a null."""

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.endpoints import EmptyAnswerError, Endpoint
from rolelens.errors import InputError, unknown
from rolelens.lens import Lens

QUESTION = """\
This is what a language model answered:

{text}

Is the model being steered toward the {role} role? Answer with Yes or No.
Answer:"""
"""The question of 2502.12055 to its judge, after the text that is judged."""
STEM = 5
"""Letters of a word that count."""
T = TypeVar("T")
_WORD = re.compile(r"[^\W\d_]{3,}")


@runtime_checkable
class Judge(Protocol):
    """Anything that has a name and says how much a text is that of a role."""

    @property
    def name(self) -> str:
        """What its verdicts are recorded with."""

    def score(self, texts: Sequence[str], roles: Sequence[str]) -> list[float]:
        """How much each text is that of the role beside it; higher is more, NaN is no verdict."""


@dataclass(frozen=True)
class YesNo:
    """The loaded model itself: log-probability of Yes minus that of No (nats).

    Attributes:
        lens: the model.
        question: with ``{text}`` and ``{role}`` in it.
    """

    lens: Lens
    question: str = QUESTION

    @property
    def name(self) -> str:
        """``"yes/no by MODEL"``."""
        return f"yes/no by {self.lens.name}"

    def score(self, texts: Sequence[str], roles: Sequence[str]) -> list[float]:
        """See :class:`Judge`."""
        prompts = _questions(self.question, texts, roles)
        words = [self.lens.chat.continuation(prompts[0], word)[0] for word in ("Yes", "No")]
        if words[0] == words[1]:
            raise InputError(
                f"Yes and No begin with the same token for {self.lens.name}; use another judge."
            )
        tokens = self.lens.encode(prompts)
        logits = forward.next_token_logits(self.lens.model, tokens, vocab=words)
        return (logits[:, 0] - logits[:, 1]).tolist()


@dataclass(frozen=True)
class EndpointYesNo:
    """A language model behind an endpoint, at temperature 0: 1 for Yes, 0 for No.

    An answer that begins with neither is no verdict.

    Attributes:
        endpoint: from :func:`rolelens.endpoints.connect`.
        question: with ``{text}`` and ``{role}`` in it.
        max_tokens: of an answer at most.
    """

    endpoint: Endpoint
    question: str = QUESTION
    max_tokens: int = 16

    @property
    def name(self) -> str:
        """``"yes/no by NAME"``."""
        return f"yes/no by {self.endpoint.name}"

    def score(self, texts: Sequence[str], roles: Sequence[str]) -> list[float]:
        """See :class:`Judge`."""
        prompts = _questions(self.question, texts, roles)
        known = {prompt: self._verdict(prompt) for prompt in dict.fromkeys(prompts)}
        return [known[prompt] for prompt in prompts]

    def _verdict(self, prompt: str) -> float:
        try:
            answer = self.endpoint.answer(
                prompt, max_tokens=self.max_tokens, temperature=0.0, seed=0
            )
        except EmptyAnswerError:
            return math.nan
        first = re.search(r"[^\W\d_]+", answer.lower())
        return {"yes": 1.0, "no": 0.0, "not": 0.0}.get(first.group() if first else "", math.nan)


@dataclass(frozen=True)
class Overlap:
    """Words of a text that tell a role apart, by weight, as a mean over the text's words.

    Attributes:
        vocabulary: of each role, from :func:`vocabulary`.
    """

    vocabulary: Mapping[str, Mapping[str, float]]

    @property
    def name(self) -> str:
        """``"word overlap"``."""
        return "word overlap"

    def score(self, texts: Sequence[str], roles: Sequence[str]) -> list[float]:
        """See :class:`Judge`."""
        scores = []
        for text, role in zip(texts, roles, strict=True):
            weighted = _of(self.vocabulary, role).items()
            weights = {stem: weight for word, weight in weighted for stem in _words(word)}
            words = _words(text)
            scores.append(sum(weights.get(word, 0.0) for word in words) / max(1, len(words)))
        return scores


@dataclass(frozen=True)
class Embedding:
    """Cosine of a text's mean token embedding with that of a role's vocabulary.

    The mean embedding of all roles' vocabularies is taken off both.

    Attributes:
        lens: the model whose embedding it is.
        vocabulary: of each role, from :func:`vocabulary`.
    """

    lens: Lens
    vocabulary: Mapping[str, Mapping[str, float]]

    @property
    def name(self) -> str:
        """``"embedding overlap"``."""
        return "embedding overlap"

    def score(self, texts: Sequence[str], roles: Sequence[str]) -> list[float]:
        """See :class:`Judge`."""
        known = {role: self._mean(" ".join(words)) for role, words in self.vocabulary.items()}
        centre = torch.stack(list(known.values())).mean(dim=0)
        means = {text: self._mean(text) - centre for text in dict.fromkeys(texts)}
        return [
            float(torch.cosine_similarity(means[text], _of(known, role) - centre, dim=0))
            for text, role in zip(texts, roles, strict=True)
        ]

    def _mean(self, text: str) -> Float[Tensor, " d_model"]:
        ids = self.lens.tokenizer(text, add_special_tokens=False).input_ids
        table = self.lens.model.embed.W_E
        if not ids:
            return torch.zeros(self.lens.d_model)
        mean: Tensor = table[torch.tensor(ids, device=table.device)].detach().float().mean(dim=0)
        return mean.cpu()


def vocabulary(
    roles: Mapping[str, Sequence[str]], base: Sequence[str], n: int = 100
) -> dict[str, dict[str, float]]:
    """The words that tell each role's prompts from the others' and from base prompts, as stems.

    Ranked by the z-score of the log-odds with an informative Dirichlet prior (Monroe et al. 2008,
    eq. 22), which is also their weight; the words of the role's name stand among them.

    Args:
        roles: prompts of each role.
        base: prompts without a role.
        n: words of a role at most.
    """
    counts = {role: Counter(_words(" ".join(prompts))) for role, prompts in roles.items()}
    prior_counts = sum(counts.values(), Counter(_words(" ".join(base))))
    total = prior_counts.total()
    vocabularies = {}
    for role, role_counts in counts.items():
        rest, z = prior_counts - role_counts, {}
        for word, k in role_counts.items():
            prior, other = prior_counts[word], rest[word]
            sizes = (role_counts.total() + total - k - prior, rest.total() + total - other - prior)
            odds = math.log((k + prior) / sizes[0]) - math.log((other + prior) / sizes[1])
            z[word] = odds / math.sqrt(1 / (k + prior) + 1 / (other + prior))
        best = sorted((word for word in z if z[word] > 0), key=lambda word: (-z[word], word))[:n]
        weights = {word: z[word] for word in best}
        top = max(weights.values(), default=1.0)
        vocabularies[role] = weights | dict.fromkeys(_words(role), top)
    return vocabularies


def blind_scores(
    judge: Judge, texts: Sequence[str], roles: Sequence[str], *, seed: int = 0
) -> list[float]:
    """The judge's scores of texts, put to it in random order and without what they were read off.

    Args:
        judge: who judges.
        texts: what is judged.
        roles: the role that the question is about, for each text.
        seed: of the order.

    Returns:
        A score for each text, in the order of the texts; NaN where there is no verdict.

    Raises:
        InputError: no texts, not as many roles, or the judge did not give one number for each.
    """
    if len(texts) != len(roles) or not texts:
        raise InputError(
            f"{len(texts)} texts and {len(roles)} roles do not pair up; pass a role for each text."
        )
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    scores: Sequence[Any] = judge.score([texts[n] for n in order], [roles[n] for n in order])
    if len(scores) != len(order):
        raise InputError(
            f"{judge.name} gave {len(scores)} scores of {len(order)} texts; it has to give one of "
            "each."
        )
    in_order = [math.nan] * len(texts)
    for n, score in zip(order, scores, strict=True):
        if not isinstance(score, Real) or math.isinf(score):
            raise InputError(
                f"{judge.name} gave the score {score!r}; it has to be a finite number, or NaN for "
                "no verdict."
            )
        in_order[n] = float(score)
    return in_order


def _questions(question: str, texts: Sequence[str], roles: Sequence[str]) -> list[str]:
    for part in ("{text}", "{role}"):
        if part not in question:
            raise InputError(f"question is {question!r}; it has to contain {part!r}.")
    # Not format: a text may have braces in it.
    return [
        question.replace("{role}", role).replace("{text}", text)
        for text, role in zip(texts, roles, strict=True)
    ]


def _words(text: str) -> list[str]:
    """Stems: mathematician, mathematical and mathematics are one word."""
    return [word.lower().removesuffix("s")[:STEM] for word in _WORD.findall(text)]


def _of(known: Mapping[str, T], role: str) -> T:
    if role not in known:
        raise unknown("role", role, known)
    return known[role]
