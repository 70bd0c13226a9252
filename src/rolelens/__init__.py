"""rolelens: what does a role do inside a language model?

Names are imported when they are first used, so that ``import rolelens`` takes no time and a command
that needs no model loads no torch.
"""

from importlib import import_module
from importlib.metadata import version as _version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rolelens import evidence, plots, stats
    from rolelens.errors import InputError
    from rolelens.evidence import Study, compare, load_study, side_effects, study
    from rolelens.explorer import explore
    from rolelens.extraction import (
        contrast,
        half_vectors,
        null_vectors,
        role_vectors,
        system_vectors,
    )
    from rolelens.flagging import flag
    from rolelens.hooks import (
        Steering,
        ablate,
        add,
        by_row,
        clamp,
        mean_ablate,
        replace,
        rotate,
        thresholds,
    )
    from rolelens.lens import Lens
    from rolelens.loading import load
    from rolelens.monitoring import drift, monitor
    from rolelens.patchscoping import Reading, patchscope
    from rolelens.personas import persona_space, role_answers, trait_vectors
    from rolelens.predictors import steerability
    from rolelens.prompts import (
        RolePrompts,
        Trait,
        load_base,
        load_questions,
        load_roles,
        load_traits,
    )
    from rolelens.residuals import activations, project
    from rolelens.rollouts import roast, roll_out
    from rolelens.stats import projections, separation
    from rolelens.suggesting import Suggestion, suggest
    from rolelens.sweeps import Estimate, Search, Sweep, estimate, load_sweep, search, sweep
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
    "Estimate",
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
    "Suggestion",
    "Sweep",
    "Task",
    "Text",
    "Trait",
    "ablate",
    "activations",
    "add",
    "by_row",
    "clamp",
    "compare",
    "concat",
    "contrast",
    "drift",
    "estimate",
    "evaluate",
    "evidence",
    "explore",
    "flag",
    "half_vectors",
    "load",
    "load_base",
    "load_questions",
    "load_roles",
    "load_study",
    "load_sweep",
    "load_task",
    "load_traits",
    "mean",
    "mean_ablate",
    "monitor",
    "null_vectors",
    "patchscope",
    "perplexity",
    "persona_space",
    "plots",
    "project",
    "projections",
    "replace",
    "roast",
    "role_answers",
    "role_vectors",
    "roll_out",
    "rotate",
    "search",
    "separation",
    "side_effects",
    "stats",
    "steerability",
    "study",
    "suggest",
    "sweep",
    "system_vectors",
    "thresholds",
    "trait_vectors",
]

_NAMES = {
    "errors": "InputError",
    "evidence": "Study compare load_study side_effects study",
    "explorer": "explore",
    "extraction": "contrast half_vectors null_vectors role_vectors system_vectors",
    "flagging": "flag",
    "hooks": "Steering ablate add by_row clamp mean_ablate replace rotate thresholds",
    "lens": "Lens",
    "loading": "load",
    "monitoring": "drift monitor",
    "patchscoping": "Reading patchscope",
    "personas": "persona_space role_answers trait_vectors",
    "predictors": "steerability",
    "prompts": "RolePrompts Trait load_base load_questions load_roles load_traits",
    "residuals": "activations project",
    "rollouts": "roast roll_out",
    "stats": "projections separation",
    "suggesting": "Suggestion suggest",
    "sweeps": "Estimate Search Sweep estimate load_sweep search sweep",
    "tasks": "Answers Problem Question Scores Task Text evaluate load_task perplexity",
    "vectors": "Direction Directions concat mean",
}
"""What is public of each module."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # so that a name that there is not is found by a type checker

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            value: Any = getattr(import_module(f"rolelens.{_MODULES[name]}"), name)
        elif not name.startswith("_") and find_spec(f"rolelens.{name}") is not None:
            value = import_module(f"rolelens.{name}")
        else:
            raise AttributeError(f"module 'rolelens' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
