"""rolelens: what does a role do inside a language model?"""

from importlib.metadata import version as _version

from rolelens import evidence, plots, stats
from rolelens.activations import activations, role_vectors, system_vectors
from rolelens.benchmarks import Benchmark, Question, load_benchmark
from rolelens.errors import InputError
from rolelens.hooks import ablate, add, add_rows
from rolelens.lens import Lens
from rolelens.loading import load
from rolelens.patchscope import Reading, patchscope
from rolelens.prompts import RolePrompts, load_base, load_roles
from rolelens.scoring import Scores, evaluate
from rolelens.stats import Projections, Separation, projections, separation
from rolelens.sweep import Sweep, sweep
from rolelens.vectors import Direction, RoleVectors, mean

__version__ = _version("rolelens")

__all__ = [
    "Benchmark",
    "Direction",
    "InputError",
    "Lens",
    "Projections",
    "Question",
    "Reading",
    "RolePrompts",
    "RoleVectors",
    "Scores",
    "Separation",
    "Sweep",
    "ablate",
    "activations",
    "add",
    "add_rows",
    "evaluate",
    "evidence",
    "load",
    "load_base",
    "load_benchmark",
    "load_roles",
    "mean",
    "patchscope",
    "plots",
    "projections",
    "role_vectors",
    "separation",
    "stats",
    "sweep",
    "system_vectors",
]
