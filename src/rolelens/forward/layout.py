"""Which tokens of many prompts run, where some of them are edited: what is shared runs once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rolelens.forward.selection import (
    Condition,
    Running,
    Selection,
    first_selected,
    selected,
    ungated,
)
from rolelens.forward.tokens import Tokens, common_prefix

Masks: TypeAlias = dict[Selection, Tensor]
"""Which tokens each selection names, as booleans ``[row, position]``."""


@dataclass(frozen=True)
class Part:
    """Prompts that run together.

    Attributes:
        prompts: which prompts.
        rows: which rows answer them; all, in the order of ``prompts``.
        owner: for each row, which of ``prompts`` it answers.
        start: where each prompt begins to run when it is edited.
        width: columns that run then.
        longest: tokens of the longest prompt.
        answer_width: tokens of the longest answer.
    """

    prompts: list[int]
    rows: list[int]
    owner: Int[Tensor, " row"]
    start: Int[Tensor, " prompt"]
    width: int
    longest: int
    answer_width: int

    @property
    def edited(self) -> int:
        """Tokens that run for each edit, padding included."""
        return len(self.prompts) * self.width + self.answering

    @property
    def answering(self) -> int:
        """Tokens of the answers that run."""
        return len(self.rows) * max(0, self.answer_width - 1)

    def chunk(self, budget: int) -> int:
        """How many edits run together."""
        heaviest = max(
            len(self.prompts) * max(self.width, 1),
            self.answering,
            len(self.prompts) * self.longest // 8,
        )
        return max(1, budget // heaviest)


class Layout:
    """Prompts with their answers, cut into parts.

    Attributes:
        tokens: what was given.
        budget: tokens of one batch.
        prompts: distinct prompts.
        owner: the prompt of each row.
        lengths: tokens of each prompt.
        answers: the answer of each row.
        answer_width: tokens of the longest.
        masks: the tokens of each prompt, and of an answer to it, that each selection names.
        prefix: tokens that all prompts begin with.
        edits_prefix: whether some of them are edited.
        start: where each prompt begins to run when it is edited.
        parts: prompts that run together.
    """

    def __init__(
        self,
        tokens: Tokens,
        selections: Sequence[Selection],
        budget: int,
        gates: Mapping[Condition, Bool[Tensor, " prompt"]] | None = None,
    ) -> None:
        self.tokens, self.budget = tokens, budget
        prompts, self.owner = tokens.distinct_prompts()
        self.prompts = list(prompts.ids)
        self.lengths = torch.tensor([len(prompt) for prompt in self.prompts])
        self.answers = [i[n:] for i, n in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
        self.answer_width = max(map(len, self.answers))
        columns = torch.arange(int(self.lengths.max()) + self.answer_width)
        now = Running(columns, self.lengths, tokens.n_post, gates=gates or {})
        self.masks: Masks = {chosen: selected(now, chosen) for chosen in selections}
        first = first_selected(now, selections).clamp(max=self.lengths)
        self._rows: list[list[int]] = [[] for _ in self.prompts]
        for row, its in enumerate(self.owner):
            self._rows[its].append(row)
        self.prefix = common_prefix(self.prompts)
        if gates:  # prompts that begin alike may be edited differently there
            self.prefix = min(self.prefix, int(first.min()))
        self.edits_prefix = bool((first < self.prefix).any())
        self.start = torch.full_like(first, self.prefix) if self.edits_prefix else first
        self.parts = [self._part(prompts) for prompts in self._together()]

    @classmethod
    def planned(cls, tokens: Tokens, selections: Sequence[Selection], budget: int) -> "Layout":
        """What it is before conditions are decided, if all prompts meet them."""
        return cls(tokens, [ungated(chosen) for chosen in selections], budget)

    @property
    def unedited(self) -> int:
        """Tokens that run once, padding included."""
        behind = sum(
            len(part.prompts) * (part.longest - self.prefix) + part.answering for part in self.parts
        )
        return self.prefix + behind

    @property
    def edited(self) -> int:
        """Tokens that run for each edit, padding included."""
        beginning = self.prefix if self.edits_prefix else 0
        return beginning + sum(part.edited for part in self.parts)

    def _part(self, prompts: list[int]) -> Part:
        place = {prompt: n for n, prompt in enumerate(prompts)}
        rows = [row for prompt in prompts for row in self._rows[prompt]]
        lengths, start = self.lengths[prompts], self.start[prompts]
        return Part(
            prompts=prompts,
            rows=rows,
            owner=torch.tensor([place[self.owner[row]] for row in rows]),
            start=start,
            width=int((lengths - start).max()),
            longest=int(lengths.max()),
            answer_width=max(len(self.answers[row]) for row in rows),
        )

    def _together(self) -> Iterator[list[int]]:
        """Prompts of similar length that run together."""
        starts = self.start.tolist()
        keys = [(n - s, n) for n, s in zip(self.lengths.tolist(), starts, strict=True)]
        longest, rows = [0] * len(keys), [0] * len(keys)
        for prompt, answer in zip(self.owner, self.answers, strict=True):
            longest[prompt], rows[prompt] = max(longest[prompt], len(answer)), rows[prompt] + 1
        group: list[int] = []
        for prompt in sorted(range(len(keys)), key=lambda i: (keys[i][0], longest[i], keys[i][1])):
            width, length = keys[prompt]
            if group:
                n = len(group) + 1
                answering = sum(rows[its] for its in [*group, prompt])
                answering *= max(longest[its] for its in [*group, prompt])
                if not (
                    n * max(width, 1) <= self.budget
                    and n * length <= 4 * self.budget
                    and answering <= self.budget
                    and keys[group[0]][0] >= 0.9 * width
                ):
                    yield group
                    group = []
            group.append(prompt)
        yield group


def repeated(masks: Masks, n: int) -> Masks:
    """The masks of rows that are run n times."""
    return {chosen: mask.repeat(n, 1) for chosen, mask in masks.items()}
