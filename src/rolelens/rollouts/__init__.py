"""What a model answers when it is let go on, and directions made of it."""

from rolelens.rollouts.contrasts import (
    Contrast,
    ab_choices,
    contrast_answers,
    contrast_pairs,
    roast,
)
from rolelens.rollouts.sampling import roll_out

__all__ = [
    "Contrast",
    "ab_choices",
    "contrast_answers",
    "contrast_pairs",
    "roast",
    "roll_out",
]
