"""Role prompts and base prompts: the shipped sets, those of a file, and new ones."""

from rolelens.prompts.generation import Generated, generate
from rolelens.prompts.personas import load_personas, matching
from rolelens.prompts.rules import TASKS, check, clean
from rolelens.prompts.sets import RolePrompts, Roles, digest, load_base, load_roles
from rolelens.prompts.traits import Trait, load_questions, load_traits, write_trait

__all__ = [
    "TASKS",
    "Generated",
    "RolePrompts",
    "Roles",
    "Trait",
    "check",
    "clean",
    "digest",
    "generate",
    "load_base",
    "load_personas",
    "load_questions",
    "load_roles",
    "load_traits",
    "matching",
    "write_trait",
]
