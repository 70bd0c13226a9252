"""Steering: what is done to a model, as a value.

A :class:`Steering` knows its steps and is at the same time the list of ``(hook_name, function)``
that does them: it works in ``lens.generate(..., hooks=...)`` and in raw
``model.run_with_hooks(..., fwd_hooks=...)`` alike, and ``+`` joins two of them. ``steps`` says what
one step may be, ``making`` makes steerings, ``measured`` those that need ordinary prompts.
"""

from rolelens.hooks.making import ablate, add, clamp, replace, rotate
from rolelens.hooks.measured import mean_ablate, thresholds
from rolelens.hooks.steering import ByRow, Steering, by_row, installed
from rolelens.hooks.steps import KINDS, Step

__all__ = [
    "KINDS",
    "ByRow",
    "Steering",
    "Step",
    "ablate",
    "add",
    "by_row",
    "clamp",
    "installed",
    "mean_ablate",
    "replace",
    "rotate",
    "thresholds",
]
