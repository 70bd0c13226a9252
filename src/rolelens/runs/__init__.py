"""Whole runs that end in a report."""

from rolelens.runs.demonstration import ROLES, demo, describe
from rolelens.runs.planning import estimate_paper
from rolelens.runs.replication import paper

__all__ = ["ROLES", "demo", "describe", "estimate_paper", "paper"]
