"""rolelens: what does a role do inside a language model?"""

from importlib.metadata import version as _version

from rolelens import evidence, plots, stats
from rolelens.activations import activations
from rolelens.benchmarks import Benchmark, Question, load_benchmark
from rolelens.errors import InputError
from rolelens.extraction import half_vectors, null_vectors, role_vectors, system_vectors
from rolelens.hooks import ablate, add, add_rows
from rolelens.lens import Lens
from rolelens.loading import load
from rolelens.patchscope import Reading, patchscope
from rolelens.prompts import RolePrompts, load_base, load_roles
from rolelens.rollouts import load_problems, roast, roll_out
from rolelens.scoring import Perplexity, Scores, evaluate, perplexity
from rolelens.stats import Projections, Separation, projections, separation
from rolelens.sweep import Search, Sweep, search, sweep
from rolelens.vectors import Direction, RoleVectors, concat, mean

__version__ = _version("rolelens")

__all__ = [
    "Benchmark",
    "Direction",
    "InputError",
    "Lens",
    "Perplexity",
    "Projections",
    "Question",
    "Reading",
    "RolePrompts",
    "RoleVectors",
    "Scores",
    "Search",
    "Separation",
    "Sweep",
    "ablate",
    "activations",
    "add",
    "add_rows",
    "concat",
    "evaluate",
    "evidence",
    "half_vectors",
    "load",
    "load_base",
    "load_benchmark",
    "load_problems",
    "load_roles",
    "mean",
    "null_vectors",
    "patchscope",
    "perplexity",
    "plots",
    "projections",
    "roast",
    "role_vectors",
    "roll_out",
    "search",
    "separation",
    "stats",
    "sweep",
    "system_vectors",
]
