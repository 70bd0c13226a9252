"""Tokenised prompts, cut into batches by length."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rolelens.forward.selection import Condition
from rolelens.vectors import Source

TOKEN_BUDGET = 2048
"""Tokens of one batch on a CPU: enough to keep a few cores busy, small in memory."""


@dataclass(frozen=True)
class Tokens:
    """Tokenised prompts.

    Attributes:
        ids: token ids of each prompt, with its answer where one is scored.
        prompt_lengths: how many of them are the prompt; the rest is the answer.
        n_post: how many of the prompt's last tokens are post-instruction tokens.
        source: the lens that made them.
        gates: for each condition that was asked for, which prompts meet it.
    """

    ids: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]
    n_post: int
    source: Source | None = None
    gates: Mapping[Condition, Bool[Tensor, " row"]] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concat(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """The prompts of several, which one lens made."""
        return dataclasses.replace(
            parts[0],
            ids=tuple(ids for part in parts for ids in part.ids),
            prompt_lengths=tuple(n for part in parts for n in part.prompt_lengths),
            gates={},
        )

    def distinct_prompts(self) -> "tuple[Tokens, list[int]]":
        """Each prompt once, without answers, as they first stand; and which is that of each row."""
        starts = [ids[:n] for ids, n in zip(self.ids, self.prompt_lengths, strict=True)]
        place = {ids: n for n, ids in enumerate(dict.fromkeys(starts))}
        once = Tokens(tuple(place), tuple(map(len, place)), self.n_post, self.source)
        return once, [place[ids] for ids in starts]

    def take(self, rows: Sequence[int]) -> "Tokens":
        """Some of the prompts."""
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            prompt_lengths=tuple(self.prompt_lengths[row] for row in rows),
            gates={condition: met[list(rows)] for condition, met in self.gates.items()},
        )


@dataclass(frozen=True)
class Batch:
    """Some of the prompts, right-padded to one length (causal attention needs no mask then)."""

    rows: Int[Tensor, " row"]
    ids: Int[Tensor, "row position"]
    lengths: Int[Tensor, " row"]
    prompt_lengths: Int[Tensor, " row"]
    n_post: int
    source: Source | None = None
    gates: Mapping[Condition, Bool[Tensor, " row"]] = field(default_factory=dict)

    def part(self, rows: Int[Tensor, " part"], columns: slice) -> "Batch":
        """Some rows and columns."""
        ids = self.ids[rows][:, columns]
        return dataclasses.replace(
            self,
            rows=self.rows[rows],
            ids=ids,
            lengths=self.lengths[rows],
            prompt_lengths=self.prompt_lengths[rows],
            gates={condition: met[rows] for condition, met in self.gates.items()},
        )

    def trimmed(self, rows: Int[Tensor, " part"]) -> "Batch":
        """Some rows, with no more columns than they have tokens."""
        return self.part(rows, slice(int(self.lengths[rows].max())))


def batches(
    tokens: Tokens, budget: int = TOKEN_BUDGET, *, same_prompt_length: bool = False
) -> list[Batch]:
    """Sort prompts by length and cut them into batches of at most ``budget`` tokens.

    Args:
        tokens: the prompts.
        budget: tokens of a batch, padding included; a longer prompt makes a batch of its own.
        same_prompt_length: put only prompts of equal length together; what follows them then
            stands at the same positions in every row.
    """
    order = sorted(range(len(tokens)), key=lambda i: (tokens.prompt_lengths[i], len(tokens.ids[i])))
    groups: list[list[int]] = []
    longest = 0
    for i in order:
        longest = max(longest, len(tokens.ids[i])) if groups else len(tokens.ids[i])
        fits = groups and (len(groups[-1]) + 1) * longest <= budget
        if fits and same_prompt_length:
            fits = tokens.prompt_lengths[groups[-1][0]] == tokens.prompt_lengths[i]
        if fits:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = len(tokens.ids[i])
    return [_batch(tokens, group) for group in groups]


def _batch(tokens: Tokens, group: list[int]) -> Batch:
    longest = max(len(tokens.ids[i]) for i in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    for row, i in enumerate(group):
        ids[row, : len(tokens.ids[i])] = torch.tensor(tokens.ids[i])
    return Batch(
        rows=torch.tensor(group),
        ids=ids,
        lengths=torch.tensor([len(tokens.ids[i]) for i in group]),
        prompt_lengths=torch.tensor([tokens.prompt_lengths[i] for i in group]),
        n_post=tokens.n_post,
        source=tokens.source,
        gates={condition: met[group] for condition, met in tokens.gates.items()},
    )


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving at least one to each."""
    columns = zip(*prompts, strict=False)
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(same, min(map(len, prompts)) - 1)


def groups(tokens: Tokens, limit: int) -> list[list[int]]:
    """Put prompts together that share their beginning, where that leaves fewer tokens to run.

    Args:
        tokens: the prompts.
        limit: tokens of a group at most, those that all its prompts share not counted; a longer
            prompt makes a group of its own.

    Returns:
        Rows of each group; rows of one prompt stay together.
    """
    pairs = zip(tokens.ids, tokens.prompt_lengths, strict=True)
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, length) in enumerate(pairs):
        rows.setdefault(ids[:length], []).append(row)
    out: list[list[int]] = []
    for prompts in _families(sorted(rows)):
        shared = common_prefix(prompts)
        family: list[int] = []
        size = 0
        for prompt in sorted(prompts, key=lambda p: (len(p), p)):
            own = rows[prompt]
            width = len(prompt) - shared + sum(len(tokens.ids[i]) - len(prompt) for i in own)
            if family and size + width > limit:
                out.append(family)
                family, size = [], 0
            family, size = family + own, size + width
        out.append(family)
    return out


def _families(prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Cut sorted prompts apart where they part, if the parts then share enough among themselves."""
    if len(prompts) == 1:
        return [prompts]
    shared = common_prefix(prompts)
    branches: dict[int, list[tuple[int, ...]]] = {}
    for prompt in prompts:
        branches.setdefault(prompt[shared], []).append(prompt)
    if len(branches) == 1:
        return [prompts]
    parts = [part for branch in branches.values() for part in _families(branch)]
    # Families smaller than this make batches too small to be worth it.
    apart = sum(map(_cost, parts))
    return parts if apart < 0.9 * _cost(prompts) else [prompts]


def _cost(family: list[tuple[int, ...]]) -> int:
    """Tokens that run when what all prompts share runs once."""
    return sum(map(len, family)) - (len(family) - 1) * common_prefix(family)
