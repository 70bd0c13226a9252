"""Pairs of letters that answer the same question with and against a stereotype (2503.05371)."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.rollouts.contrasts import Contrast, contrast_pairs
from rolelens.tasks import LETTERS, BiasQuestion, BiasQuestions, letter_prompt


@dataclass(frozen=True)
class LetterPairs:
    """Prompts with lettered options, and two letters for each.

    Attributes:
        prompts: what the user says.
        positive: the letter of the option against the stereotype.
        negative: that of the option with it.
    """

    prompts: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def contrast(self, lens: Lens, layers: Sequence[int] | None = None) -> Contrast:
        """Activations at the letters, as contrastive activation addition has it (2312.06681)."""
        return contrast_pairs(lens, self.prompts, self.positive, self.negative, layers=layers)


def bias_letters(questions: BiasQuestions, seed: int = 0) -> LetterPairs:
    """Pairs of letters of BBQ's questions, in which no letter means anything by itself.

    Every question is put twice, with the two options exchanged, so that each letter stands as often
    against the stereotype as with it; otherwise a direction would hold the letter. Directions of
    several axes (:meth:`rolelens.Directions.mean`, of raw or of normalised ones) are the ensemble
    of 2503.05371, which needs a check of capability beside it: :func:`rolelens.side_effects`.

    Args:
        questions: of one axis.
        seed: of the order of the options.

    Raises:
        InputError: these are no questions of BBQ.
    """
    return _pairs(questions, seed, exchanged_letters=True)


def letters_only(questions: BiasQuestions, seed: int = 0) -> LetterPairs:
    """The null of :func:`bias_letters`: the same prompts, where letters stand for no option.

    Both prompts of a question have the same letter as the positive one, once against the stereotype
    and once with it, so that a direction holds the letters and nothing of what they stand for.

    Args:
        questions: of one axis.
        seed: as for :func:`bias_letters`.

    Raises:
        InputError: as for :func:`bias_letters`.
    """
    return _pairs(questions, seed, exchanged_letters=False)


def _pairs(questions: BiasQuestions, seed: int, exchanged_letters: bool) -> LetterPairs:
    if not isinstance(questions, BiasQuestions):
        raise InputError(
            f"{str(questions)[:60]!r} is no task of BBQ; load its files with rl.load_task."
        )
    prompts, positive, negative = [], [], []
    for item in questions.permuted(seed):
        assert isinstance(item, BiasQuestion)
        first, second = item.other, item.biased
        if random.Random(f"{seed} {item.id}").random() < 0.5 and not exchanged_letters:
            first, second = second, first
        for number, question in enumerate((item, _exchanged(item))):
            prompts.append(letter_prompt(question))
            turned = exchanged_letters and number == 1
            letters = (second, first) if turned else (first, second)
            positive.append(LETTERS[letters[0]])
            negative.append(LETTERS[letters[1]])
    return LetterPairs(tuple(prompts), tuple(positive), tuple(negative))


def _exchanged(item: BiasQuestion) -> BiasQuestion:
    """A question with the biased and the other option in each other's place."""
    options = list(item.options)
    options[item.biased], options[item.other] = options[item.other], options[item.biased]
    answer = {item.biased: item.other, item.other: item.biased}.get(item.answer, item.answer)
    return dataclasses.replace(item, options=tuple(options), answer=answer, biased=item.other)
