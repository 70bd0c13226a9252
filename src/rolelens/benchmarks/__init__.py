"""Multiple-choice benchmarks: questions with options and stable ids, and where they come from."""

from rolelens.benchmarks.paper import PAPER_DOMAINS
from rolelens.benchmarks.questions import LETTERS, Benchmark, Question
from rolelens.benchmarks.sources import load_benchmark

__all__ = ["LETTERS", "PAPER_DOMAINS", "Benchmark", "Question", "load_benchmark"]
