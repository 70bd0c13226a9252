"""Vectors read as text, and whether the text says more than chance."""

from rolelens.patchscope.inspect import LogitLens, NearestPrompts
from rolelens.patchscope.judges import (
    QUESTION,
    Asked,
    Embedding,
    Judge,
    Overlap,
    YesNo,
    judged,
    vocabulary,
)
from rolelens.patchscope.rates import (
    Answers,
    Calibration,
    agreement,
    answers,
    calibrate,
    confusion,
    rates,
    tally,
    verdicts,
)
from rolelens.patchscope.readers import (
    IDENTITY,
    PROMPT,
    Addition,
    Reader,
    Reading,
    SelfIE,
    TokenIdentity,
    patchscope,
)

__all__ = [
    "IDENTITY",
    "PROMPT",
    "QUESTION",
    "Addition",
    "Answers",
    "Asked",
    "Calibration",
    "Embedding",
    "Judge",
    "LogitLens",
    "NearestPrompts",
    "Overlap",
    "Reader",
    "Reading",
    "SelfIE",
    "TokenIdentity",
    "YesNo",
    "agreement",
    "answers",
    "calibrate",
    "confusion",
    "judged",
    "patchscope",
    "rates",
    "tally",
    "verdicts",
    "vocabulary",
]
