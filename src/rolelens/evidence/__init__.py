"""Whether an effect is more than chance: one experiment, with items kept apart."""

from rolelens.evidence.beside import SideEffects, random_steering, side_effects
from rolelens.evidence.comparison import Comparison, answer_table, changes, compare
from rolelens.evidence.controls import FLOOR, Headroom, headroom, letters
from rolelens.evidence.experiment import study
from rolelens.evidence.families import (
    Effect,
    beside_nulls,
    effect_table,
    effects,
    given,
    transfer,
)
from rolelens.evidence.remade import PromptFolds, study_folds
from rolelens.evidence.result import Study, load_study

__all__ = [
    "FLOOR",
    "Comparison",
    "Effect",
    "Headroom",
    "PromptFolds",
    "SideEffects",
    "Study",
    "answer_table",
    "beside_nulls",
    "changes",
    "compare",
    "effect_table",
    "effects",
    "given",
    "headroom",
    "letters",
    "load_study",
    "random_steering",
    "side_effects",
    "study",
    "study_folds",
    "transfer",
]
