"""How differences of a measure are put into words."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """Words for differences of a measure: points of an accuracy, else its plain numbers.

    Attributes:
        measure: the measure.
    """

    measure: str

    @property
    def in_points(self) -> bool:
        """Whether differences are shares of items."""
        return self.measure == "accuracy"

    def number(self, value: float) -> str:
        """A difference without its unit, such as ``+4.5``."""
        return f"{100 * value:+.1f}" if self.in_points else f"{value:+.3g}"

    def text(self, value: float) -> str:
        """A difference, such as ``+4.5 points``."""
        unit = "points" if self.in_points else f"in {self.measure}"
        return f"{self.number(value)} {unit}"

    def between(self, low: float, high: float) -> str:
        """Two differences, such as ``-1.0 to +4.5``."""
        return f"{self.number(low)} to {self.number(high)}"

    def shown(self, value: float | None) -> str:
        """What would have been found: ``4.0 points or more``, or ``no change``."""
        if value is None or math.isnan(value):
            return "no change"
        if self.in_points:
            return f"{100 * value:.1f} points or more"
        return f"{value:.3g} or more"
