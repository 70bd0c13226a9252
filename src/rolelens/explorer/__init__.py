"""The explorer: a widget in which directions are tried, talked with and looked at."""

from typing import Any

from rolelens.errors import InputError
from rolelens.explorer.choices import Choice, Explored
from rolelens.lens import Lens
from rolelens.stats import Separation
from rolelens.sweeps import Sweep
from rolelens.vectors import Directions

__all__ = ["Choice", "Explored", "explore"]


def explore(
    lens: Lens,
    vectors: Directions,
    *,
    sweep: Sweep | None = None,
    separation: Separation | None = None,
    prompt: str = "What should I do this weekend?",
    max_new_tokens: int = 60,
) -> Any:
    """Try directions in a notebook: steer, talk, and see where they act.

    Text is written a token at a time between the cells of the notebook: the kernel stays free,
    what runs can be stopped, and while a cell of your own runs, the explorer waits for it.

    Args:
        lens: the model.
        vectors: directions that were measured on it.
        sweep: a sweep of them, whose heatmap is shown; a click on a cell steers with it.
        separation: how well prompts separate by layer, which is shown; the directions' norms as
            shares of the residual norm by default.
        prompt: what is answered first.
        max_new_tokens: length of an answer at most, in tokens.

    Returns:
        An ``anywidget``. ``.steering`` is the steering that is chosen, and ``.code`` the Python
        that makes it and answers the prompt.

    Raises:
        InputError: the directions are of another model, the sweep is no grid of these names, or
            anywidget is not installed (``pip install 'rolelens[widget]'``).
    """
    explored = Explored(lens, vectors, sweep, separation)
    try:
        from rolelens.explorer.widget import Explorer
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise InputError(
            "the explorer needs anywidget, which is not installed; run pip install "
            "'rolelens[widget]' and start the kernel again."
        ) from error
    return Explorer(explored, prompt, max_new_tokens)
