"""Directions: their algebra, estimators, nulls and files.

Pure mathematics and storage: no model is known here.
"""

from rolelens.vectors.direction import Direction, Null, Source, check_sources, mean
from rolelens.vectors.directions import Directions, concat
from rolelens.vectors.sums import RunningMean, WeightedSums

__all__ = [
    "Direction",
    "Directions",
    "Null",
    "RunningMean",
    "Source",
    "WeightedSums",
    "check_sources",
    "concat",
    "mean",
]
