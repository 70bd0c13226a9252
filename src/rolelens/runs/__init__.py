"""Whole runs that end in a report."""

from rolelens.runs.demo import ROLES, demo, describe
from rolelens.runs.paper import paper

__all__ = ["ROLES", "demo", "describe", "paper"]
