"""Directions read as text, and whether the text says more than chance."""

from rolelens.patchscoping.inspection import LogitLens, NearestPrompts
from rolelens.patchscoping.judges import (
    QUESTION,
    Embedding,
    EndpointYesNo,
    Judge,
    Overlap,
    YesNo,
    blind_scores,
    vocabulary,
)
from rolelens.patchscoping.naming import (
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
from rolelens.patchscoping.readers import (
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
    "Calibration",
    "Embedding",
    "EndpointYesNo",
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
    "blind_scores",
    "calibrate",
    "confusion",
    "patchscope",
    "rates",
    "tally",
    "verdicts",
    "vocabulary",
]
