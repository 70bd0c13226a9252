"""Scores: the log-probability of every option of a question, and the perplexity of texts."""

from rolelens.scoring.multiple_choice import (
    Method,
    Prepared,
    checked_method,
    evaluate,
    prepare,
    score,
)
from rolelens.scoring.perplexity import Perplexity, perplexity
from rolelens.scoring.prompts import cloze_prompt, letter_prompt
from rolelens.scoring.scores import Scores, also_correct, true_options

__all__ = [
    "Method",
    "Perplexity",
    "Prepared",
    "Scores",
    "also_correct",
    "checked_method",
    "cloze_prompt",
    "evaluate",
    "letter_prompt",
    "perplexity",
    "prepare",
    "score",
    "true_options",
]
