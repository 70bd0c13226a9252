"""Whether an effect is more than chance: paired comparisons on questions kept apart."""

from rolelens.evidence.compare import Comparison, compare
from rolelens.evidence.controls import Headroom, headroom, letters
from rolelens.evidence.effects import (
    answered,
    beside_nulls,
    changes,
    effects,
    given,
    transfer,
    verdict,
)
from rolelens.evidence.study import Study, study

__all__ = [
    "Comparison",
    "Headroom",
    "Study",
    "answered",
    "beside_nulls",
    "changes",
    "compare",
    "effects",
    "given",
    "headroom",
    "letters",
    "study",
    "transfer",
    "verdict",
]
