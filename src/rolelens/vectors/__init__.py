"""Role vectors: difference-in-means directions, their algebra and their files.

Pure mathematics and storage: no model is known here.
"""

from rolelens.vectors.direction import Direction, Source, check_sources, mean
from rolelens.vectors.role_vectors import RoleVectors, concat
from rolelens.vectors.sums import RunningMean, WeightedSums

__all__ = [
    "Direction",
    "RoleVectors",
    "RunningMean",
    "Source",
    "WeightedSums",
    "check_sources",
    "concat",
    "mean",
]
