"""Vectors read as text, and whether the text says more than chance."""

from rolelens.patchscope.inspect import LogitLens, NearestPrompts
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
    "Addition",
    "LogitLens",
    "NearestPrompts",
    "Reader",
    "Reading",
    "SelfIE",
    "TokenIdentity",
    "patchscope",
]
