"""Tasks: what is asked of a model, and what its answers are worth."""

from rolelens.tasks.asking import (
    BareOptions,
    Choices,
    Generated,
    Method,
    NumberedOptions,
    Options,
    Passages,
    Plainly,
    Prepared,
    Records,
    SeededOptions,
    Tokenised,
    checked_method,
)
from rolelens.tasks.evaluation import (
    evaluate,
    generate,
    prepare,
    run_records,
    says_plainly,
    score_plainly,
)
from rolelens.tasks.numbers import final_number
from rolelens.tasks.paper import PAPER_DOMAINS
from rolelens.tasks.passages import Text, Texts
from rolelens.tasks.problems import (
    BRIEFLY,
    STEPWISE,
    Problem,
    Problems,
    Verifier,
    arithmetic,
    right_number,
)
from rolelens.tasks.questions import LETTERS, Question, Questions, equal_options
from rolelens.tasks.restoring import restored, restored_prepared, task_fields
from rolelens.tasks.scores import (
    Answers,
    Scored,
    Scores,
    Values,
    metric_name,
    option_margins,
    true_options,
)
from rolelens.tasks.sources import AnyTask, load_task
from rolelens.tasks.task import Item, Metric, Task
from rolelens.tasks.texts import Perplexity, check_on_text, perplexity
from rolelens.tasks.wording import cloze_prompt, letter_prompt

__all__ = [
    "BRIEFLY",
    "LETTERS",
    "PAPER_DOMAINS",
    "STEPWISE",
    "Answers",
    "AnyTask",
    "BareOptions",
    "Choices",
    "Generated",
    "Item",
    "Method",
    "Metric",
    "NumberedOptions",
    "Options",
    "Passages",
    "Perplexity",
    "Plainly",
    "Prepared",
    "Problem",
    "Problems",
    "Question",
    "Questions",
    "Records",
    "Scored",
    "Scores",
    "SeededOptions",
    "Task",
    "Text",
    "Texts",
    "Tokenised",
    "Values",
    "Verifier",
    "arithmetic",
    "check_on_text",
    "checked_method",
    "cloze_prompt",
    "equal_options",
    "evaluate",
    "final_number",
    "generate",
    "letter_prompt",
    "load_task",
    "metric_name",
    "option_margins",
    "perplexity",
    "prepare",
    "restored",
    "restored_prepared",
    "right_number",
    "run_records",
    "says_plainly",
    "score_plainly",
    "task_fields",
    "true_options",
]
