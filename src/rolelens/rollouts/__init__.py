"""What a model answers when it is let go on, whether that is right, and directions made of it."""

from rolelens.rollouts.contrast import Contrast, ab_choices, contrast, contrast_pairs, roast
from rolelens.rollouts.problems import (
    BRIEFLY,
    STEPWISE,
    Problem,
    Problems,
    Verifier,
    arithmetic,
    final_number,
    load_problems,
    right_number,
)
from rolelens.rollouts.sampling import Rollouts, compare, roll_out
from rolelens.rollouts.trial import FLOOR, Trial, trial

__all__ = [
    "BRIEFLY",
    "FLOOR",
    "STEPWISE",
    "Contrast",
    "Problem",
    "Problems",
    "Rollouts",
    "Trial",
    "Verifier",
    "ab_choices",
    "arithmetic",
    "compare",
    "contrast",
    "contrast_pairs",
    "final_number",
    "load_problems",
    "right_number",
    "roast",
    "roll_out",
    "trial",
]
