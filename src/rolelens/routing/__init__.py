"""A library of steerings, and a router that picks one for each prompt."""

from rolelens.routing.library import OracleGap, oracle_gap, values_of_library
from rolelens.routing.router import Routed, Router, fit_router, try_router

__all__ = [
    "OracleGap",
    "Routed",
    "Router",
    "fit_router",
    "oracle_gap",
    "try_router",
    "values_of_library",
]
