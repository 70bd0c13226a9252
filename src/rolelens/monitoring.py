"""What prompts and answers project to, and alarms with known false-alarm rates."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.chat import Prompt
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import SITES, Hook, Hooks, Tokens
from rolelens.hooks.measured import checked_directions
from rolelens.lens import Lens, Prompts
from rolelens.stats import wilson
from rolelens.vectors import Direction, Directions


@dataclass(frozen=True, eq=False, repr=False)
class Watched(Shown):
    """What prompts and their answers project to.

    Attributes:
        answers: the text of each answer; empty where there is none.
        tokens: a row a direction and token: ``direction``, ``name``, ``prompt`` (which one),
            ``index`` (-1 is the prompt's last token, the answer counts from 0), ``token`` and its
            ``projection``, in units of the residual stream.
        table: a row a direction and prompt: ``direction``, ``name``, ``layer``, ``prompt``,
            ``at_prompt`` (the projection of the prompt's last token), ``answer_mean``,
            ``answer_peak`` (the highest running mean over the answer's tokens), ``prompt_alarm``,
            ``answer_alarm``, and ``alarm_index``, the token of the answer that raised it.
    """

    answers: tuple[str, ...]
    tokens: pd.DataFrame
    table: pd.DataFrame

    def card(self) -> Card:
        """How many prompts, and how many alarms."""
        alarms = self.table[["prompt_alarm", "answer_alarm"]].any(axis=1)
        facts = {
            "prompts": str(len(self.answers)),
            "prompts with an alarm": str(self.table["prompt"][alarms].nunique()),
        }
        return Card("Watched", facts, "watched.table, watched.tokens, watched.answers")


@dataclass(frozen=True, eq=False, repr=False)
class Monitor(Shown):
    """Reads directions off prompts and answers, and raises alarms; from :func:`monitor`.

    Attributes:
        lens: the model.
        directions: what is read.
        thresholds: a row a direction: ``direction`` (its number), ``name``, ``layer``,
            ``position``, ``at_prompt`` and ``answer`` (the thresholds), and for each how often
            ordinary prompts that had no part in it raise an alarm: ``prompt_rate`` with
            ``prompt_low`` to ``prompt_high`` (95 % Wilson interval), ``answer_rate`` and so on,
            over ``ordinary`` prompts.
    """

    lens: Lens
    directions: tuple[Direction, ...]
    thresholds: pd.DataFrame

    def read(
        self,
        prompts: Prompts,
        answers: Sequence[str] | None = None,
        *,
        hooks: Hooks = (),
        system: str | Sequence[str] | None = None,
    ) -> Watched:
        """Read prompts, and answers that are given.

        Args:
            prompts: as for ``lens.encode``.
            answers: an answer to each.
            hooks: steering on the way.
            system: a system prompt for all of them, or one for each.

        Raises:
            InputError: as for ``lens.encode``.
        """
        return self._watched(self.lens.encode(prompts, answers, system=system), hooks)

    def generate(
        self,
        prompts: Prompts,
        *,
        hooks: Hooks = (),
        system: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Watched:
        """Answer prompts, and read what was answered, token by token.

        Args:
            prompts: as for ``lens.generate``.
            hooks: steering; it acts on what is read, too.
            system: a system prompt for all of them, or one for each.
            options: ``max_new_tokens``, ``temperature``, ``top_p`` and ``seed``.

        Raises:
            InputError: as for ``lens.generate``.
        """
        tokens = self.lens.encode(prompts, system=system)
        return self._watched(_answered(self.lens, tokens, hooks=hooks, **options), hooks)

    def stream(
        self, prompt: Prompt, *, hooks: Sequence[Hook] = (), **options: Any
    ) -> Iterator[tuple[str, pd.DataFrame]]:
        """Answer one prompt piece by piece, with what has been read so far.

        Stop iterating to stop the model, such as at an alarm.

        Args:
            prompt: as for ``lens.stream``.
            hooks: steering.
            options: as for ``lens.stream``.

        Yields:
            The piece, and a row a direction: ``name``, ``at_prompt``, ``projection`` of the last
            token that the model has read, ``answer_mean`` so far, ``prompt_alarm`` and
            ``answer_alarm``. The first piece comes with what was read of the prompt alone.
        """
        seen: list[list[float]] = [[] for _ in self.directions]
        readers: list[Hook] = [
            (f"blocks.{d.layer}.{SITES[d.site]}", _Reader(d, kept))
            for d, kept in zip(self.directions, seen, strict=True)
        ]
        for piece in self.lens.stream(prompt, hooks=[*hooks, *readers], **options):
            rows = []
            limits = self.thresholds.to_dict("records")
            for d, kept, limit in zip(self.directions, seen, limits, strict=True):
                answer = kept[1:]
                rows.append(
                    {
                        "name": d.name,
                        "at_prompt": kept[0],
                        "projection": kept[-1],
                        "answer_mean": float(np.mean(answer)) if answer else np.nan,
                        "prompt_alarm": kept[0] > limit["at_prompt"],
                        "answer_alarm": bool(answer) and _peak(answer)[0] > limit["answer"],
                    }
                )
            yield piece, pd.DataFrame(rows)

    def card(self) -> Card:
        """Directions, and how often ordinary prompts raise an alarm."""
        rates = self.thresholds[["prompt_rate", "answer_rate"]].max()
        facts = {
            "directions": ", ".join(f"{d.name} of layer {d.layer}" for d in self.directions[:4]),
            "false alarms at most": f"{rates['prompt_rate']:.1%} of prompts, "
            f"{rates['answer_rate']:.1%} of answers",
        }
        return Card("Monitor", facts, "watch.generate([...]).table, watch.thresholds")

    def _watched(self, tokens: Tokens, hooks: Hooks) -> Watched:
        """Projections of prompts and answers, with alarms."""
        read = _projections(self.lens, tokens, self.directions, hooks)
        each, rows = [], []
        limits = self.thresholds.to_dict("records")
        for n, (d, limit) in enumerate(zip(self.directions, limits, strict=True)):
            for prompt, along in enumerate(read[n]):
                ids = tokens.ids[prompt][tokens.prompt_lengths[prompt] - 1 :]
                each += [
                    (n, d.name, prompt, k - 1, self.lens.tokenizer.decode([i]), value)
                    for k, (i, value) in enumerate(zip(ids, along, strict=True))
                ]
                label = {"direction": n, "name": d.name, "layer": d.layer, "prompt": prompt}
                rows.append(label | _alarms(along, limit["at_prompt"], limit["answer"]))
        columns = ["direction", "name", "prompt", "index", "token", "projection"]
        answers = [
            self.lens.tokenizer.decode(list(ids[length:]), skip_special_tokens=True).strip()
            for ids, length in zip(tokens.ids, tokens.prompt_lengths, strict=True)
        ]
        return Watched(tuple(answers), pd.DataFrame(each, columns=columns), pd.DataFrame(rows))


def monitor(
    lens: Lens,
    directions: Direction | Directions | Sequence[Direction],
    ordinary: Prompts,
    *,
    answers: Sequence[str] | None = None,
    false_alarms: float = 0.05,
    max_new_tokens: int = 64,
) -> Monitor:
    """Watch directions with alarms that ordinary prompts seldom raise.

    The projection of the prompt's last token, and the running mean over the answer's tokens, tell
    how far a trait or role is present before and while it shows (2507.21509). Thresholds are the
    percentiles of one half of the ordinary prompts, every other one; the other half says how often
    they are passed.

    Args:
        lens: the model.
        directions: what is watched, each at its own layer and site, where greater is more.
        ordinary: ordinary prompts.
        answers: an ordinary answer to each; the model's own greedy ones by default.
        false_alarms: the share of ordinary prompts that may raise an alarm at the prompt, and the
            share of their answers.
        max_new_tokens: length of the model's own answers, in tokens.

    Raises:
        InputError: ``false_alarms`` is not between 0 and 1, or too few ordinary prompts for it; a
            direction of another model, or a zero one.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms is {false_alarms!r}; it has to lie between 0 and 1.")
    chosen = checked_directions(lens, directions)
    tokens = lens.encode(ordinary, answers)
    needed = 2 * int(np.ceil(1 / false_alarms))
    if len(tokens) < needed:
        raise InputError(
            f"{len(tokens)} ordinary prompts cannot show a false-alarm rate of {false_alarms:g}; "
            f"pass {needed} or more, or allow more false alarms."
        )
    if answers is None:
        tokens = _answered(lens, tokens, max_new_tokens=max_new_tokens)
    rows = []
    for n, (d, read) in enumerate(zip(chosen, _projections(lens, tokens, chosen), strict=True)):
        row = {"direction": n, "name": d.name, "layer": d.layer, "position": d.position}
        prompts = np.array([along[0] for along in read])
        peaks = np.array([_peak(along[1:])[0] for along in read if len(along) > 1])
        if len(peaks) < needed:
            raise InputError(
                f"the model answers only {len(peaks)} of {len(tokens)} ordinary prompts with any "
                "token; pass answers, or other prompts."
            )
        for what, short, values in (("at_prompt", "prompt", prompts), ("answer", "answer", peaks)):
            limit = _threshold(values[::2], false_alarms)
            passed, tried = int((values[1::2] > limit).sum()), len(values[1::2])
            low, high = wilson(passed, tried)
            row |= {what: limit, f"{short}_rate": passed / tried}
            row |= {f"{short}_low": low, f"{short}_high": high}
        rows.append(row | {"ordinary": len(tokens) // 2})
    return Monitor(lens, tuple(chosen), pd.DataFrame(rows))


def drift(
    lens: Lens,
    conversation: Sequence[Mapping[str, str]],
    directions: Direction | Directions | Sequence[Direction],
    *,
    hooks: Hooks = (),
) -> pd.DataFrame:
    """Project a conversation turn by turn, to see whether the assistant drifts (2601.10387).

    Args:
        lens: the model.
        conversation: its messages; the last may be the user's.
        directions: such as ``space.axis(layer)`` of a persona space, each read at its own layer.
        hooks: steering on the way.

    Returns:
        A row a direction and turn of the assistant: ``name``, ``layer``, ``turn`` (from 1),
        ``at_prompt``, the projection of the last token before the turn, ``answer_mean``, that of
        the mean over the turn's tokens (NaN of a turn that is still to come), and ``tokens``, its
        length. Units of the residual stream.

    Raises:
        InputError: no turn of the assistant or user, or as for ``lens.encode``.
    """
    chosen = checked_directions(lens, directions)
    if not conversation or not isinstance(conversation[0], Mapping):
        raise InputError(f"conversation is {conversation!r}; pass a list of messages.")
    ends = [n for n, message in enumerate(conversation, 1) if message.get("role") == "assistant"]
    if conversation[-1].get("role") != "assistant":
        ends.append(len(conversation))
    turns = [list(conversation[:end]) for end in ends]
    tokens = lens.encode(turns)
    rows = []
    for d, read in zip(chosen, _projections(lens, tokens, chosen, hooks), strict=True):
        for turn, along in enumerate(read, 1):
            answer = along[1:]
            rows.append(
                {
                    "name": d.name,
                    "layer": d.layer,
                    "turn": turn,
                    "at_prompt": along[0],
                    "answer_mean": float(np.mean(answer)) if answer else np.nan,
                    "tokens": len(answer),
                }
            )
    return pd.DataFrame(rows)


class _Reader:
    """Keeps what the last token of every pass projects to; the prompt's is the first."""

    def __init__(self, direction: Direction, kept: list[float]) -> None:
        self._unit, self._kept = direction.unit.double().cpu(), kept

    def __call__(self, x: Tensor, hook: Any = None) -> None:
        self._kept.append(float(x[0, -1].double().cpu() @ self._unit))


def _answered(lens: Lens, tokens: Tokens, **options: Any) -> Tokens:
    """Prompts with the answers that the model gives them."""
    written = lens.continued(tokens, **options)
    ids = [(*own, *answer) for own, answer in zip(tokens.ids, written, strict=True)]
    return dataclasses.replace(tokens, ids=tuple(ids))


def _projections(
    lens: Lens, tokens: Tokens, directions: Sequence[Direction], hooks: Hooks = ()
) -> list[list[list[float]]]:
    """For each direction and prompt, the projections from the prompt's last token on."""
    units = [d.unit.double().cpu() for d in directions]
    found: list[list[list[float]]] = [[[]] * len(tokens) for _ in directions]
    for site in dict.fromkeys(d.site for d in directions):
        layers = sorted({d.layer for d in directions if d.site == site})
        states = forward.token_states(lens.model, tokens, layers, site, hooks=hooks)
        for row, x in states:
            from_last = x[:, tokens.prompt_lengths[row] - 1 :].double().cpu()
            for n, d in enumerate(directions):
                if d.site == site:
                    along: Float[Tensor, " token"] = from_last[layers.index(d.layer)] @ units[n]
                    found[n][row] = along.tolist()
    return found


def _peak(answer: Sequence[float]) -> tuple[float, int]:
    """The highest running mean, and at which token it is reached."""
    running = np.cumsum(answer) / np.arange(1, len(answer) + 1)
    return float(running.max()), int(running.argmax())


def _threshold(values: Any, share: float) -> float:
    """The least of some values that at most a share of them passes."""
    ordered = np.sort(values)
    return float(ordered[max(len(ordered) - 1 - int(share * len(ordered)), 0)])


def _alarms(along: Sequence[float], at_prompt: float, answer: float) -> dict[str, Any]:
    """What one prompt and its answer say of a direction."""
    row: dict[str, Any] = {"at_prompt": along[0], "prompt_alarm": along[0] > at_prompt}
    if len(along) == 1:
        none = {"answer_mean": np.nan, "answer_peak": np.nan}
        return row | none | {"answer_alarm": False, "alarm_index": None}
    running = np.cumsum(along[1:]) / np.arange(1, len(along))
    passed = np.flatnonzero(running > answer)
    return row | {
        "answer_mean": float(running[-1]),
        "answer_peak": float(running.max()),
        "answer_alarm": bool(len(passed)),
        "alarm_index": int(passed[0]) if len(passed) else None,
    }
