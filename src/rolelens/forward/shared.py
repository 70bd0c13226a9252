"""Many steered versions of the same prompts, without running twice what they share.

What stands below the edited layer and before the first edited token is the same in every version;
a beginning that all prompts share is the same for all prompts of one version.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward.edits import Edit
from rolelens.forward.gates import decided
from rolelens.forward.layout import Layout, Masks, Part, repeated
from rolelens.forward.memory import token_budget
from rolelens.forward.models import Everywhere, HookedModel
from rolelens.forward.passes import token_logprobs, unembed
from rolelens.forward.resume import Pass, Past, resume
from rolelens.forward.selection import Selection
from rolelens.forward.tokens import Tokens


@dataclass
class _Run:
    """A part, and what is known of it unsteered.

    Attributes:
        part: the prompts.
        x: residual stream entering each layer at the prompts' tokens from ``part.start`` on.
        masks: which of these tokens each selection names.
        last: column of each prompt's last token.
        final: what leaves the last block at the prompts' last tokens.
        before: keys and values of the tokens before ``part.start``; None where they are edited too.
        answer_x, answer_masks, answer_final: the same for all tokens of the answers but the last.
    """

    part: Part
    x: dict[int, Tensor]
    masks: Masks
    last: Int[Tensor, " prompt"]
    final: Float[Tensor, "prompt d_model"]
    before: Past | None
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
        budget: int | None = None,
    ) -> None:
        """Run the prompts.

        Args:
            model: a model that :func:`resumes`.
            tokens: the prompts, each with its answer where answers are scored.
            layers: the lowest layers of the edits that will be asked for.
            selections: which tokens they edit.
            vocab: read the logits of these tokens at the end of each prompt; None: read the
                log-probability of every token of each answer.
            budget: tokens of one batch; as many as fit by default.
        """
        self.model, self.tokens, self.vocab = model, tokens, vocab
        self.layers = sorted(set(layers))
        self.selections = tuple(dict.fromkeys(selections))
        budget = budget or token_budget(model, max(map(len, tokens.ids)))
        gates = decided(model, tokens.distinct_prompts()[0], self.selections).gates
        self.layout = Layout(tokens, self.selections, budget, gates)
        self.beginning: Pass | None = None
        prefix = self.layout.prefix
        if prefix:
            ids = torch.tensor([self.layout.prompts[0][:prefix]])
            read = torch.tensor([[prefix - 1]])
            self.beginning = resume(model, ids, read=read, entries=self.layers, keep=True)
        self.runs = [self._run(part) for part in self.layout.parts]

    def unsteered(self) -> Float[Tensor, "row read"]:
        """Score every row as it is, as :meth:`steered` does; nothing runs again."""
        out = torch.zeros(len(self.tokens), self._reads)
        for run in self.runs:
            out[run.part.rows] = self._read(run.part, run.final, run.answer_final)[0]
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
        layout = self.layout
        before = self._steered_beginning(edit) if layout.prefix and layout.edits_prefix else None
        for run in self.runs:
            rows = torch.tensor(run.part.rows)
            for cells in torch.split(torch.arange(len(edit)), run.part.chunk(layout.budget)):
                out[cells[:, None], rows] = self._score(run, edit, cells, before)
        return out

    @property
    def _reads(self) -> int:
        """What is read of every row."""
        return self.layout.answer_width if self.vocab is None else len(self.vocab)

    def _run(self, part: Part) -> _Run:
        """Run some prompts and their answers unsteered."""
        layout, prompts = self.layout, part.prompts
        lengths, prefix = layout.lengths[prompts], layout.prefix
        ids = torch.zeros(len(prompts), part.longest - prefix, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            behind = layout.prompts[prompt][prefix:]
            ids[row, : len(behind)] = torch.tensor(behind)
        index = (part.start - prefix)[:, None] + torch.arange(part.width)
        index = index.clamp(max=ids.shape[1] - 1)
        clean = resume(
            self.model,
            ids,
            past=self.beginning.past if self.beginning else None,
            past_rows=torch.zeros(len(prompts), dtype=torch.long),
            read=(lengths - 1 - prefix)[:, None],
            entries=self.layers,
            columns=index,
            keep=bool(part.answer_width) or not layout.edits_prefix,
        )
        absolute = index + prefix
        before = None
        if clean.past and not layout.edits_prefix and int(part.start.max()):
            before = clean.past.ends(part.start)
        run = _Run(
            part,
            x=clean.entries,
            masks={
                chosen: mask[prompts].gather(1, absolute.clamp(max=mask.shape[1] - 1))
                for chosen, mask in layout.masks.items()
            },
            last=lengths - 1 - part.start,
            final=clean.final[:, 0],
            before=before,
        )
        if part.answer_width > 1:
            assert clean.past is not None
            self._run_answers(run, clean.past.ends(lengths))
        return run

    def _run_answers(self, run: _Run, past: Past) -> None:
        """Run the answers to some prompts unsteered, behind their keys and values."""
        layout, part = self.layout, run.part
        width = part.answer_width - 1
        asked = [layout.owner[row] for row in part.rows]
        lengths = layout.lengths[asked]
        ids = torch.zeros(len(part.rows), width, dtype=torch.long)
        for n, row in enumerate(part.rows):
            answer = layout.answers[row][:-1]
            ids[n, : len(answer)] = torch.tensor(answer, dtype=torch.long)
        after = resume(
            self.model,
            ids,
            past=past,
            past_rows=part.owner,
            first=lengths,
            read=torch.arange(width).expand(len(part.rows), -1),
            entries=self.layers,
        )
        run.answer_x, run.answer_final = after.entries, after.final
        columns = lengths[:, None] + torch.arange(width)
        run.answer_masks = {
            chosen: mask[asked].gather(1, columns) for chosen, mask in layout.masks.items()
        }

    def _steered_beginning(self, edit: Edit) -> Past:
        """Keys and values of the shared tokens under every cell."""
        assert self.beginning is not None
        x = self.beginning.entries[edit.layer]
        prefix = self.layout.prefix
        masks = {chosen: mask[:1, :prefix] for chosen, mask in self.layout.masks.items()}
        parts = []
        together = max(1, self.layout.budget // prefix)
        for cells in torch.split(torch.arange(len(edit)), together):
            rows = x.expand(len(cells), -1, -1)
            read = torch.zeros(len(cells), 1, dtype=torch.long)
            where = repeated(masks, len(cells))
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
        self, run: _Run, edit: Edit, cells: Int[Tensor, " cell"], before: Past | None
    ) -> Float[Tensor, "cell row read"]:
        part, n, prompts = run.part, len(cells), len(run.part.prompts)
        edits_prefix = self.layout.edits_prefix
        if part.width:
            rows = cells.repeat_interleave(prompts)
            done = self._resume(
                edit,
                rows,
                run.x[edit.layer].repeat(n, 1, 1),
                repeated(run.masks, n),
                past=before if edits_prefix else run.before,
                past_rows=rows if edits_prefix else torch.arange(prompts).repeat(n),
                first=part.start.repeat(n),
                read=run.last.repeat(n)[:, None],
                keep=part.answer_width > 1,
            )
            final, past = done.final[:, 0], done.past
            if past is not None:
                ends = past.length - part.width + run.last + 1
                past = past.ends(ends.repeat(n), part.longest)
            past_rows = torch.arange(n)[:, None] * prompts + part.owner
        else:
            final, past = run.final.repeat(n, 1), run.before
            past_rows = part.owner.repeat(n, 1)
        answered = None
        if part.answer_width > 1:
            rows = cells.repeat_interleave(len(part.rows))
            answered = self._resume(
                edit,
                rows,
                run.answer_x[edit.layer].repeat(n, 1, 1),
                repeated(run.answer_masks, n),
                past=past,
                past_rows=past_rows.flatten(),
                first=self.layout.lengths[part.prompts][part.owner].repeat(n),
                read=torch.arange(part.answer_width - 1).expand(len(rows), -1),
            ).final
        return self._read(part, final, answered)

    def _read(
        self,
        part: Part,
        final: Float[Tensor, "versions d_model"],
        after: Float[Tensor, "answers position d_model"] | None,
    ) -> Float[Tensor, "cell row read"]:
        """What is asked for, from what leaves the last block at the prompts' ends and after."""
        n = len(final) // len(part.prompts)
        if self.vocab is not None:
            logits = unembed(self.model, final, list(self.vocab)).float().cpu()
            return rearrange(logits, "(cell row) token -> cell row token", cell=n)[:, part.owner]
        answers = [self.layout.answers[row] for row in part.rows]
        out = torch.zeros(n, len(part.rows), self.layout.answer_width)
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
