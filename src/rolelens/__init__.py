"""rolelens: what does a role do inside a language model?"""

from importlib.metadata import version as _version

from rolelens import evidence, plots, stats
from rolelens.errors import InputError
from rolelens.evidence import Study, compare, load_study, study
from rolelens.explorer import explore
from rolelens.extraction import (
    contrast,
    half_vectors,
    null_vectors,
    role_vectors,
    system_vectors,
)
from rolelens.hooks import Steering, ablate, add, by_row, replace
from rolelens.lens import Lens
from rolelens.loading import load
from rolelens.patchscoping import Reading, patchscope
from rolelens.prompts import RolePrompts, load_base, load_roles
from rolelens.residuals import activations, project
from rolelens.rollouts import roast, roll_out
from rolelens.stats import projections, separation
from rolelens.sweeps import Search, Sweep, load_sweep, search, sweep
from rolelens.tasks import (
    Answers,
    Problem,
    Question,
    Scores,
    Task,
    Text,
    evaluate,
    load_task,
    perplexity,
)
from rolelens.vectors import Direction, Directions, concat, mean

__version__ = _version("rolelens")

__all__ = [
    "Answers",
    "Direction",
    "Directions",
    "InputError",
    "Lens",
    "Problem",
    "Question",
    "Reading",
    "RolePrompts",
    "Scores",
    "Search",
    "Steering",
    "Study",
    "Sweep",
    "Task",
    "Text",
    "ablate",
    "activations",
    "add",
    "by_row",
    "compare",
    "concat",
    "contrast",
    "evaluate",
    "evidence",
    "explore",
    "half_vectors",
    "load",
    "load_base",
    "load_roles",
    "load_study",
    "load_sweep",
    "load_task",
    "mean",
    "null_vectors",
    "patchscope",
    "perplexity",
    "plots",
    "project",
    "projections",
    "replace",
    "roast",
    "role_vectors",
    "roll_out",
    "search",
    "separation",
    "stats",
    "study",
    "sweep",
    "system_vectors",
]
