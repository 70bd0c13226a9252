"""Many steered versions of the same prompts, without running twice what they share.

What stands below the edited layer and before the first edited token is the same in every version;
a beginning that all prompts share is the same for all prompts of one version.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward.edits import Edit
from rolelens.forward.gates import decided
from rolelens.forward.models import Everywhere, HookedModel
from rolelens.forward.passes import token_logprobs, unembed
from rolelens.forward.resume import Pass, Past, resume
from rolelens.forward.selection import Running, Selection, first_selected, selected
from rolelens.forward.tokens import TOKEN_BUDGET, Tokens, common_prefix

Masks: TypeAlias = dict[Selection, Tensor]
"""Which tokens each selection names, as booleans ``[row, position]``."""


@dataclass
class _Part:
    """Prompts that run together, and what is known of them unsteered.

    Attributes:
        prompts: which prompts.
        rows: which rows answer them; all, in the order of ``prompts``.
        owner: for each row, which of ``prompts`` it answers.
        start: where each prompt begins to run.
        width: columns that run.
        x: residual stream entering each layer at the prompts' tokens from ``start`` on.
        masks: which of these tokens each selection names.
        last: column of each prompt's last token.
        before: keys and values of the tokens before ``start``; None where they are edited too.
        final: what leaves the last block at the prompts' last tokens.
        answer_width: tokens of its longest answer.
        answer_x, answer_masks, answer_final: the same for all tokens of the answers but the last.
    """

    prompts: list[int]
    rows: list[int]
    owner: Int[Tensor, " row"]
    start: Int[Tensor, " prompt"]
    answer_width: int
    width: int
    x: dict[int, Tensor] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Past | None = None
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    answer_x: dict[int, Tensor] = field(default_factory=dict)
    answer_masks: Masks = field(default_factory=dict)
    answer_final: Tensor | None = None


class Shared:
    """Prompts, run once unsteered, that are then scored under many edits at once."""

    def __init__(
        self,
        model: HookedModel,
        tokens: Tokens,
        layers: Sequence[int],
        selections: Sequence[Selection] = ("all",),
        *,
        vocab: Sequence[int] | None = None,
        budget: int = TOKEN_BUDGET,
    ) -> None:
        """Run the prompts.

        Args:
            model: a model that :func:`resumes`.
            tokens: the prompts, each with its answer where answers are scored.
            layers: the lowest layers of the edits that will be asked for.
            selections: which tokens they edit.
            vocab: read the logits of these tokens at the end of each prompt; None: read the
                log-probability of every token of each answer.
            budget: tokens of one batch.
        """
        self.model, self.tokens, self.vocab, self.budget = model, tokens, vocab, budget
        self.layers = sorted(set(layers))
        self.selections = tuple(dict.fromkeys(selections))
        starts = [i[:n] for i, n in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
        index = {prompt: n for n, prompt in enumerate(dict.fromkeys(starts))}
        self.prompts = list(index)
        self.owner = [index[prompt] for prompt in starts]
        self.lengths = torch.tensor([len(prompt) for prompt in self.prompts])
        self.answers = [i[n:] for i, n in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
        self.answer_width = max(map(len, self.answers))
        columns = torch.arange(int(self.lengths.max()) + self.answer_width)
        alone = Tokens(
            tuple(self.prompts), tuple(map(len, self.prompts)), tokens.n_post, tokens.source
        )
        gates = decided(model, alone, self.selections).gates
        now = Running(columns, self.lengths, tokens.n_post, gates=gates)
        self.masks: Masks = {chosen: selected(now, chosen) for chosen in self.selections}
        first = first_selected(now, self.selections).clamp(max=self.lengths)
        self.prefix = common_prefix(self.prompts)
        if gates:  # prompts that begin alike may be edited differently there
            self.prefix = min(self.prefix, int(first.min()))
        self.edits_prefix = bool((first < self.prefix).any())
        self.start = torch.full_like(first, self.prefix) if self.edits_prefix else first
        self.beginning: Pass | None = None
        if self.prefix:
            ids = torch.tensor([self.prompts[0][: self.prefix]])
            read = torch.tensor([[self.prefix - 1]])
            self.beginning = resume(model, ids, read=read, entries=self.layers, keep=True)
        self.parts = [self._run(prompts) for prompts in self._batches()]

    def unsteered(self) -> Float[Tensor, "row read"]:
        """Score every row as it is, as :meth:`steered` does; nothing runs again."""
        out = torch.zeros(len(self.tokens), self._reads)
        for part in self.parts:
            out[part.rows] = self._read(part, part.final, part.answer_final)[0]
        return out

    def steered(self, edit: Edit) -> Float[Tensor, "cell row read"]:
        """Score every row under every cell of an edit.

        Returns:
            Logits of ``vocab``, or the log-probability of every token of the answer (0 past its
            end), float32 on the CPU.
        """
        unknown = [chosen for chosen in edit.selections if chosen not in self.selections]
        if edit.layer not in self.layers or unknown:
            raise InputError(
                f"an edit begins at layer {edit.layer} and selects {list(edit.selections)}; the "
                f"prompts were run for layers {self.layers} and {list(self.selections)}."
            )
        out = torch.zeros(len(edit), len(self.tokens), self._reads)
        before = self._steered_beginning(edit) if self.prefix and self.edits_prefix else None
        for part in self.parts:
            for cells in self._chunks(part, len(edit)):
                out[cells[:, None], torch.tensor(part.rows)] = self._score(
                    part, edit, cells, before
                )
        return out

    @property
    def _reads(self) -> int:
        """What is read of every row."""
        return self.answer_width if self.vocab is None else len(self.vocab)

    def _batches(self) -> Iterator[list[int]]:
        """Prompts that run together: of one length where answers follow, else of similar ones."""
        starts = self.start.tolist()
        keys = [(n - s, n) for n, s in zip(self.lengths.tolist(), starts, strict=True)]
        longest, rows = [0] * len(keys), [0] * len(keys)
        for prompt, answer in zip(self.owner, self.answers, strict=True):
            longest[prompt], rows[prompt] = max(longest[prompt], len(answer)), rows[prompt] + 1
        group: list[int] = []
        for prompt in sorted(range(len(keys)), key=lambda i: (*keys[i], longest[i])):
            width, length = keys[prompt]
            if group:
                n = len(group) + 1
                fits = n * max(width, 1) <= self.budget and n * length <= 4 * self.budget
                if self.answer_width:
                    answering = sum(rows[own] for own in [*group, prompt]) * longest[prompt]
                    fits = fits and keys[group[0]] == keys[prompt] and answering <= self.budget
                else:
                    fits = fits and keys[group[0]][0] >= 0.9 * width
                if not fits:
                    yield group
                    group = []
            group.append(prompt)
        yield group

    def _run(self, prompts: list[int]) -> _Part:
        """Run some prompts and their answers unsteered."""
        rows = [row for prompt in prompts for row, own in enumerate(self.owner) if own == prompt]
        owner = torch.tensor([prompts.index(self.owner[row]) for row in rows])
        lengths, start = self.lengths[prompts], self.start[prompts]
        width = int((lengths - start).max())
        longest = max(len(self.answers[row]) for row in rows)
        part = _Part(prompts, rows, owner, start, longest, width)
        ids = torch.zeros(len(prompts), int(lengths.max()) - self.prefix, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            own = self.prompts[prompt][self.prefix :]
            ids[row, : len(own)] = torch.tensor(own)
        index = (start - self.prefix)[:, None] + torch.arange(width)
        index = index.clamp(max=ids.shape[1] - 1)
        clean = resume(
            self.model,
            ids,
            past=self.beginning.past if self.beginning else None,
            past_rows=torch.zeros(len(prompts), dtype=torch.long),
            read=(lengths - 1 - self.prefix)[:, None],
            entries=self.layers,
            columns=index,
            keep=bool(self.answer_width) or not self.edits_prefix,
        )
        part.x = clean.entries
        absolute = index + self.prefix
        part.masks = {
            chosen: mask[prompts].gather(1, absolute.clamp(max=mask.shape[1] - 1))
            for chosen, mask in self.masks.items()
        }
        part.last = lengths - 1 - start
        part.final = clean.final[:, 0]
        if not self.edits_prefix:
            part.before = clean.past.ends(start) if clean.past and int(start.max()) else None
        if part.answer_width > 1:
            length, width = int(lengths[0]), part.answer_width - 1
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            for n, row in enumerate(rows):
                own = self.answers[row][:-1]
                ids[n, : len(own)] = torch.tensor(own, dtype=torch.long)
            after = resume(
                self.model,
                ids,
                past=clean.past,
                past_rows=owner,
                read=torch.arange(width).expand(len(rows), -1),
                entries=self.layers,
            )
            part.answer_x, part.answer_final = after.entries, after.final
            asked = [self.owner[row] for row in rows]
            part.answer_masks = {
                chosen: mask[asked, length:][:, :width] for chosen, mask in self.masks.items()
            }
        return part

    def _chunks(self, part: _Part, n: int) -> list[Int[Tensor, " cell"]]:
        """Cells that run together."""
        heaviest = max(
            len(part.prompts) * max(part.width, 1),
            len(part.rows) * (part.answer_width - 1),
            len(part.prompts) * int(self.lengths[part.prompts].max()) // 8,
        )
        return list(torch.split(torch.arange(n), max(1, self.budget // heaviest)))

    def _steered_beginning(self, edit: Edit) -> Past:
        """Keys and values of the shared tokens under every cell."""
        assert self.beginning is not None
        x = self.beginning.entries[edit.layer]
        masks = {chosen: mask[:1, : self.prefix] for chosen, mask in self.masks.items()}
        parts = []
        for cells in torch.split(torch.arange(len(edit)), max(1, self.budget // self.prefix)):
            rows = x.expand(len(cells), -1, -1)
            read = torch.zeros(len(cells), 1, dtype=torch.long)
            where = _repeated(masks, len(cells))
            done = self._resume(edit, cells, rows, where, read=read, keep=True)
            assert done.past is not None
            parts.append(done.past)
        return Past.concat(parts)

    def _resume(
        self,
        edit: Edit,
        cells: Int[Tensor, " row"],
        x: Float[Tensor, "row position d_model"],
        masks: Masks,
        **options: Any,
    ) -> Pass:
        there = {tokens: Everywhere(mask) for tokens, mask in masks.items()}
        hooks = edit.hooks(cells, partial(_masked, there))
        return resume(self.model, x, edit.layer, hooks=hooks, **options)

    def _score(
        self, part: _Part, edit: Edit, cells: Int[Tensor, " cell"], before: Past | None
    ) -> Float[Tensor, "cell row read"]:
        n, prompts = len(cells), len(part.prompts)
        own = torch.arange(prompts)
        if part.width:
            rows = cells.repeat_interleave(prompts)
            done = self._resume(
                edit,
                rows,
                part.x[edit.layer].repeat(n, 1, 1),
                _repeated(part.masks, n),
                past=before if self.edits_prefix else part.before,
                past_rows=rows if self.edits_prefix else own.repeat(n),
                first=part.start.repeat(n),
                read=part.last.repeat(n)[:, None],
                keep=part.answer_width > 1,
            )
            final, past = done.final[:, 0], done.past
            past_rows = torch.arange(n)[:, None] * prompts + part.owner
        else:
            final, past = part.final.repeat(n, 1), part.before
            past_rows = part.owner.repeat(n, 1)
        answered = None
        if part.answer_width > 1:
            rows = cells.repeat_interleave(len(part.rows))
            answered = self._resume(
                edit,
                rows,
                part.answer_x[edit.layer].repeat(n, 1, 1),
                _repeated(part.answer_masks, n),
                past=past,
                past_rows=past_rows.flatten(),
                read=torch.arange(part.answer_width - 1).expand(len(rows), -1),
            ).final
        return self._read(part, final, answered)

    def _read(
        self,
        part: _Part,
        final: Float[Tensor, "versions d_model"],
        after: Float[Tensor, "answers position d_model"] | None,
    ) -> Float[Tensor, "cell row read"]:
        """What is asked for, from what leaves the last block at the prompts' ends and after."""
        n = len(final) // len(part.prompts)
        if self.vocab is not None:
            logits = unembed(self.model, final, list(self.vocab)).float().cpu()
            return rearrange(logits, "(cell row) token -> cell row token", cell=n)[:, part.owner]
        answers = [self.answers[row] for row in part.rows]
        out = torch.zeros(n, len(part.rows), self.answer_width)
        firsts = torch.tensor([ids[0] for ids in answers])
        shares = token_logprobs(self.model, final, firsts.expand(len(final), -1))
        shares = rearrange(shares, "(cell prompt) row -> cell prompt row", cell=n)
        out[:, :, 0] = shares[:, part.owner, torch.arange(len(part.rows))]
        if after is not None:
            width = part.answer_width - 1
            follows = torch.tensor([[k < len(ids) - 1 for k in range(width)] for ids in answers])
            follows = follows.repeat(n, 1)
            after_first = [i for ids in answers for i in ids[1:]]
            targets = torch.tensor(after_first, dtype=torch.long).repeat(n)[:, None]
            found = torch.zeros(follows.shape)
            found[follows] = token_logprobs(self.model, after[follows], targets)[:, 0]
            found = rearrange(found, "(cell row) token -> cell row token", cell=n)
            out[:, :, 1 : part.answer_width] = found
        return out


def _masked(masks: dict[Selection, Everywhere], tokens: Selection, x: Tensor) -> Tensor | None:
    return None if tokens == "all" else masks[tokens].on(x.device)


def _repeated(masks: Masks, n: int) -> Masks:
    """The masks of rows that are run n times."""
    return {chosen: mask.repeat(n, 1) for chosen, mask in masks.items()}
