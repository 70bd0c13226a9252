"""What a model answers when it is let go on, whether that is right, and directions made of it."""

from rolelens.rollouts.contrast import Contrast, contrast, contrast_pairs, roast
from rolelens.rollouts.problems import (
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
from rolelens.rollouts.trial import Trial, trial

__all__ = [
    "STEPWISE",
    "Contrast",
    "Problem",
    "Problems",
    "Rollouts",
    "Trial",
    "Verifier",
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
