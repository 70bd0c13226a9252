"""What can be chosen in the explorer, and what a choice means: its steering, strength and code."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rolelens import plots
from rolelens.chat import Message
from rolelens.display import Line, token_html
from rolelens.errors import InputError, unknown
from rolelens.forward.selection import NAMES
from rolelens.hooks import Steering, ablate, add
from rolelens.lens import Lens
from rolelens.patchscoping import LogitLens, patchscope
from rolelens.residuals import project
from rolelens.stats import Separation
from rolelens.sweeps import Sweep
from rolelens.sweeps.cells import Change
from rolelens.vectors import Direction, Directions, check_sources

BREAKS = 0.75
"""Share of the residual norm from which on text often breaks; see ``docs/explanation.md``."""
CHANGES = get_args(Change)


@dataclass(frozen=True)
class Choice:
    """One setting of the explorer.

    Attributes:
        name: of the direction.
        layer: its layer.
        position: its position; None where it has none.
        tokens: which tokens are steered.
        change: ``add`` or ``ablate``.
        alpha: strength, raw; of no effect where the direction is ablated.
        prompt: what is answered.
    """

    name: str
    layer: int
    position: int | None
    tokens: str = "all"
    change: str = "add"
    alpha: float = 1.0
    prompt: str = ""


class Explored:
    """A model with directions on it, and what is known of them.

    Attributes:
        lens: the model.
        vectors: the directions.
        sweep: a sweep of them.
        separation: how well their prompts separate.

    Raises:
        InputError: they do not belong together.
    """

    def __init__(
        self,
        lens: Lens,
        vectors: Directions,
        sweep: Sweep | None = None,
        separation: Separation | None = None,
    ) -> None:
        check_sources(vectors.source, lens.source)
        if sweep is not None:
            if sweep.grid.axes is None:
                raise InputError(
                    "this sweep is of a list of steerings, which has no heatmap to click; pass one "
                    "of directions over layers and positions."
                )
            for name in sweep.names:
                if name not in vectors.names:
                    raise unknown(vectors.kind, name, vectors.names)
        self.lens, self.vectors = lens, vectors
        self.sweep, self.separation = sweep, separation

    @property
    def options(self) -> dict[str, list[Any]]:
        """What can be chosen."""
        return {
            "name": list(self.vectors.names),
            "layer": list(self.vectors.layers),
            "position": list(self.vectors.positions),
            "tokens": list(NAMES),
            "change": list(CHANGES),
        }

    def first(self, prompt: str) -> Choice:
        """Where one begins: the best cell of the sweep, or the layer at 55 % of the depth."""
        if self.sweep is not None:
            best = self.sweep.best()
            alpha = 1.0 if best.alpha is None else best.alpha
            (step, *_) = best.steering.steps
            tokens = step.tokens if isinstance(step.tokens, str) else "all"
            return Choice(best.name, best.layer, best.position, tokens, step.kind, alpha, prompt)
        middle = 0.55 * self.lens.n_layers
        layer = min(self.vectors.layers, key=lambda known: abs(known - middle))
        name, position = self.vectors.names[0], self.vectors.last_position
        return Choice(name, layer, position, alpha=3.0, prompt=prompt)

    def checked(self, content: dict[str, Any]) -> Choice:
        """A choice, if it is one.

        Raises:
            InputError: it names what there is not.
        """
        options = self.options
        for key, known in options.items():
            if content.get(key) not in known:
                raise unknown(key, content.get(key), known)
        alpha = content.get("alpha")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise InputError(f"alpha is {alpha!r}; it has to be a number such as 3.0.")
        kept = {key: content[key] for key in options}
        return Choice(**kept, alpha=float(alpha), prompt=str(content.get("prompt", "")))

    def direction(self, choice: Choice) -> Direction:
        """The direction that is chosen."""
        return self.vectors.direction(choice.name, choice.layer, choice.position)

    def steering(self, choice: Choice) -> Steering:
        """What is done to the model."""
        d = self.direction(choice)
        if choice.change == "ablate":
            return ablate(d, self.lens, tokens=choice.tokens)  # type: ignore[arg-type]
        return add(d, choice.alpha, tokens=choice.tokens)  # type: ignore[arg-type]

    def strength(self, choice: Choice) -> dict[str, Any]:
        """The strength in words, and whether text often breaks there."""
        d = self.direction(choice)
        if d.norm == 0:
            return {"text": "This direction is zero: nothing is done.", "warned": True}
        if choice.change == "ablate":
            return {"text": "The component along the direction is removed.", "warned": False}
        if not d.resid_norm:
            return {
                "text": f"Adds a vector of norm {abs(choice.alpha) * d.norm:.3g}.",
                "warned": False,
            }
        share = abs(choice.alpha) * d.norm / d.resid_norm
        text = f"Adds {share:.0%} of the residual norm."
        if share < BREAKS:
            return {"text": text, "warned": False, "share": share}
        more = " Text often breaks from about here on: take a smaller alpha."
        return {"text": text + more, "warned": True, "share": share}

    def code(self, choice: Choice, max_new_tokens: int) -> str:
        """The Python that does the same."""
        where = f"layer={choice.layer}"
        where += "" if choice.position is None else f", position={choice.position}"
        made = f"rl.add(d, {choice.alpha!r}, tokens={choice.tokens!r})"
        if choice.change == "ablate":
            made = f"rl.ablate(d, lens, tokens={choice.tokens!r})"
        prompt = json.dumps(choice.prompt, ensure_ascii=False)
        return (
            f"d = vectors[{choice.name!r}].at({where})\n"
            f"steering = {made}\n"
            f"print(lens.generate([{prompt}], hooks=steering, "
            f"max_new_tokens={max_new_tokens})[0])\n"
        )

    def curve(self, name: str) -> str:
        """By layer: the separation if it is known, else the norm of the directions."""
        if self.separation is not None:
            return plots.svg(plots.separation(self.separation).update_layout(height=300))
        shown = self.vectors[name]
        return plots.svg(plots.norms(shown, shown.last_position).update_layout(height=300))

    def heat(self, name: str) -> tuple[str, dict[str, float]]:
        """The sweep's heatmap, and the alpha of each of its panels."""
        if self.sweep is None or name not in self.sweep.names:
            return "", {}
        alphas = [alpha for alpha in self.sweep.alphas if alpha is not None]
        panels = {
            f"y{n or ''}": alpha for n, alpha in zip([0, *range(2, 99)], alphas, strict=False)
        }
        return plots.svg(plots.heatmap(self.sweep, name)), panels

    def swept(self) -> dict[str, str]:
        """How the cells of the sweep steer, beside their layer, position and alpha."""
        if self.sweep is None:
            return {}
        step = self.sweep.cells[0].steering.steps[0]
        tokens = step.tokens if isinstance(step.tokens, str) else "all"
        return {"tokens": tokens, "change": step.kind}

    def writes(self, choice: Choice) -> str:
        """The tokens that the direction writes, read through the unembedding."""
        d = self.direction(choice)
        if d.norm == 0 or d.site != "resid_pre":
            return ""
        return f"Writes: {patchscope(self.lens, d, LogitLens(n=8)).text}"

    def read(self, turns: Sequence[Message], choice: Choice) -> tuple[list[float | None], str]:
        """What every turn of a conversation projects to, and its last turns token by token.

        The text is read without steering, so that what was added does not count.

        Args:
            turns: a conversation that ends with an answer.
            choice: on which direction.

        Returns:
            The mean projection of each turn's tokens (residual units), and coloured text.
        """
        d = self.direction(choice)
        if d.norm == 0:
            return [None] * len(turns), ""
        whole = self.lens.encode([list(turns)])
        table = project(self.lens, whole, d)
        spans: list[tuple[int, int]] = []
        for n in range(1, len(turns), 2):
            part = self.lens.encode([list(turns[: n + 1])])
            (ids,), (begins,) = part.ids, part.prompt_lengths
            before = spans[-1][1] if spans else 0
            same = whole.ids[0][: len(ids)] == ids
            spans += [(before, begins), (begins, len(ids))] if same else [(0, 0), (0, 0)]
        means = [
            float(table["projection"].iloc[start:end].mean()) if end > start else None
            for start, end in spans
        ]
        sizes = table["projection"].abs()
        rows = list(zip(table["index"], table["token"], table["projection"], strict=True))
        lines = [
            Line(str(turn["role"]), [(int(i), str(t), float(v)) for i, t, v in rows[start:end]])
            for turn, (start, end) in list(zip(turns, spans, strict=True))[-2:]
        ]
        what = f"projection on {d.name}, layer {d.layer}"
        return means, token_html(lines, float(sizes.quantile(0.95)) or 1.0, what)
