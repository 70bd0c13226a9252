"""What a model answers when it is let go on, and directions made of it."""

from rolelens.rollouts.contrasts import (
    Contrast,
    ab_choices,
    contrast_answers,
    contrast_pairs,
    roast,
)
from rolelens.rollouts.grains import (
    grains_contrast,
    grains_vectors,
    released_hooks,
    token_scores,
)
from rolelens.rollouts.letters import LetterPairs, bias_letters, letters_only
from rolelens.rollouts.sampling import roll_out

__all__ = [
    "Contrast",
    "LetterPairs",
    "ab_choices",
    "bias_letters",
    "contrast_answers",
    "contrast_pairs",
    "grains_contrast",
    "grains_vectors",
    "letters_only",
    "released_hooks",
    "roast",
    "roll_out",
    "token_scores",
]
