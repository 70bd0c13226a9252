"""GrAInS (2507.18043): directions of the tokens that gradients say decide an answer."""

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError, unknown
from rolelens.forward import Batch, Hook, Tokens
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.residuals import known_layers
from rolelens.rollouts.contrasts import Contrast
from rolelens.vectors import Direction, Directions
from rolelens.vectors.estimators import Estimator, Labelled, PairedPCA

Pick: TypeAlias = Literal["attribution", "random"]
Sides: TypeAlias = Literal["pooled", "opposed"]
ENTRY = "blocks.0.hook_resid_pre"


def token_scores(
    lens: Lens, tokens: Tokens, *, steps: int = 20, budget: int | None = None
) -> list[Float[Tensor, " token"]]:
    """Integrated gradients of the log-probability of each row's last token (1703.01365).

    From zero to what enters the first block, summed over the width: how much each token of the
    input raises the log-probability, in nats. The last token, which is what is predicted, has 0.
    A model that norms what enters the first block sees the direction of a token and not its size,
    so that what its first attention reads of a token counts near zero only: few steps miss it.

    Args:
        lens: the model.
        tokens: rows of two tokens at least.
        steps: points on the way, each in the middle of its part.
        budget: tokens of a batch; as many as fit by default.

    Raises:
        InputError: a row of one token, or no steps.
    """
    if steps < 1 or any(len(ids) < 2 for ids in tokens.ids):
        raise InputError(f"steps is {steps}; expected 1 or more, and rows of 2 tokens at least.")
    ends = Tokens(tokens.ids, tuple(len(ids) - 1 for ids in tokens.ids), 0, tokens.source)
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    batches = forward.batched(lens.model, ends, partial(_integrated, lens, steps), budget=budget)
    for batch, scores in track(batches, "attribution"):
        for place, row in enumerate(batch.rows.tolist()):
            out[row] = scores[place, : len(ends.ids[row])]
    return out


def _integrated(lens: Lens, steps: int, batch: Batch) -> Float[Tensor, "row position"]:
    """Integrated gradients of a batch."""
    total: Tensor | None = None
    entry = torch.empty(0)
    for step in range(steps):
        share = (step + 0.5) / steps
        hooks = [(ENTRY, partial(_scaled, share))]
        weights = torch.ones(len(batch.rows), 1)
        seen, score = forward.graph(lens.model, batch, [ENTRY], None, weights, hooks)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(score, [seen[ENTRY]])
        total = slope if total is None else total + slope
        entry = seen[ENTRY].detach() / share
    assert total is not None
    return (entry.float() * total.float() / steps).sum(dim=-1).cpu()


def grains_contrast(
    lens: Lens,
    prompts: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    k: int = 10,
    steps: int = 20,
    pick: Pick = "attribution",
    sides: Sides = "pooled",
    system: str | None = None,
    seed: int = 0,
) -> Contrast:
    """Activations of answers, and of the same with their most decisive tokens taken out.

    The objective is the log-probability of the last token of the positive answer minus that of the
    last token of the negative one. The ``k`` tokens that raise it most in the positive text, and
    those that lower it most in the negative one, are replaced by the padding token; activations are
    those of the last token. Keep the questions that are steered out of these prompts.

    Args:
        lens: the model.
        prompts: what the user says.
        positive: an answer to each.
        negative: another answer to each.
        layers: all of them by default.
        k: how many tokens are replaced; special tokens are not.
        steps: of the integrated gradients.
        pick: ``random``: ``k`` tokens drawn at random, the null of the attribution.
        sides: ``pooled``: differences of both sides count alike, as the paper has it; ``opposed``:
            those of the negative side count with a minus, as what speaks for the negative answer.
        system: a system prompt.
        seed: of the drawing.

    Raises:
        InputError: prompts and answers that do not pair up, or an unknown ``pick`` or ``sides``.
    """
    for what, value, known in (("pick", pick, get_args(Pick)), ("sides", sides, get_args(Sides))):
        if value not in known:
            raise unknown(what, value, known)
    if not len(prompts) == len(positive) == len(negative) or k < 1:
        raise InputError(
            f"{len(prompts)} prompts, {len(positive)} positive and {len(negative)} negative answers"
            f" and k {k}: as many of each are needed, and k of 1 or more."
        )
    chosen = known_layers(lens, layers)
    both = [lens.encode(prompts, answers, system=system) for answers in (positive, negative)]
    read: list[Tensor] = []
    for side, tokens in enumerate(both):
        scores = (
            token_scores(lens, tokens, steps=steps)
            if pick == "attribution"
            else _drawn(tokens, seed + side)
        )
        # What raises the log-probability of the negative answer lowers the objective.
        changed = _replaced(lens, tokens, scores, k)
        read += [_ends(lens, tokens, chosen), _ends(lens, changed, chosen)]
    with_, without = read[0], read[1]
    pairs = (read[2], read[3]) if sides == "pooled" else (read[3], read[2])
    groups = torch.arange(2 * len(prompts))
    labelled = {
        layer: Labelled(
            torch.cat([with_[:, n], pairs[0][:, n]]),
            torch.cat([without[:, n], pairs[1][:, n]]),
            groups,
            groups,
        )
        for n, layer in enumerate(chosen)
    }
    what = f"answers - the same without {k} {'decisive' if pick == 'attribution' else 'random'} "
    what += f"tokens, sides {sides}"
    return Contrast(labelled, "resid_pre", lens.source, what, {"pairs": len(prompts)})


def grains_vectors(
    lens: Lens,
    prompts: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    estimator: Estimator | None = None,
    name: str = "grains",
    **options: Any,
) -> Directions:
    """The direction of GrAInS (2507.18043) at every layer.

    The paper adds 10 alpha times the unit direction at the upper layers and keeps each token's
    norm: ``rl.add(d.normalise(), 10 * alpha, rescale=True)``. What its released code does instead
    is :func:`released_hooks`.

    Args:
        lens: the model.
        prompts: as for :func:`grains_contrast`.
        positive: likewise.
        negative: likewise.
        estimator: the first principal component of the differences by default, whose sign is that
            of their mean; :class:`rolelens.vectors.estimators.DifferenceInMeans` for their mean.
        name: of the direction.
        options: as for :func:`grains_contrast`.
    """
    contrast = grains_contrast(lens, prompts, positive, negative, **options)
    return contrast.directions(estimator or PairedPCA(), name)


def released_hooks(d: Direction, alpha: float) -> list[Hook]:
    """Steering as the released code of GrAInS does it, for ``hooks=``: not what the paper says.

    ``h' = h + 10 alpha v`` with the unit direction v, after which each coordinate is given the norm
    that it had over the *tokens* of a pass, where the paper keeps each token's norm over the width.
    So what is done to a token depends on those before and after it and on padding; and where
    answers are generated a token at a time, each coordinate keeps its size, so that at most its
    sign changes. It is here to repeat published numbers; ``rl.add(..., rescale=True)`` is the
    paper's.

    Args:
        d: the direction, at whose layer and hook it acts.
        alpha: the paper's strength, 0.5 to 4 there.

    Raises:
        InputError: ``alpha`` is 0 or not a finite number.
    """
    if not math.isfinite(alpha) or alpha == 0:
        raise InputError(f"alpha is {alpha}; it has to be a finite number other than 0.")
    name = f"blocks.{d.layer}.{forward.SITES[d.site]}"
    return [(name, partial(_rescaled_over_tokens, 10.0 * alpha * d.unit))]


def _rescaled_over_tokens(
    shift: Float[Tensor, " d"], x: Float[Tensor, "row token d"], hook: Any = None
) -> Float[Tensor, "row token d"]:
    wide = x.float()  # half precision has no 1e-12
    moved = wide + shift.to(wide)
    before, after = (y.norm(dim=1, keepdim=True) for y in (wide, moved))
    kept: Tensor = moved * (before / after.clamp_min(1e-12))
    return kept.to(x)


def _scaled(share: float, x: Tensor, hook: Any = None) -> Tensor:
    return x * share


def _drawn(tokens: Tokens, seed: int) -> list[Tensor]:
    rng = random.Random(f"grains {seed}")
    return [torch.tensor([rng.random() for _ in ids]) for ids in tokens.ids]


def _replaced(lens: Lens, tokens: Tokens, scores: Sequence[Tensor], k: int) -> Tokens:
    """Rows with their highest tokens replaced; neither special tokens nor the last."""
    tokenizer = lens.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise InputError(f"the tokenizer of {lens.name} has no padding token to put in; set one.")
    special = set(tokenizer.all_special_ids)
    rows = []
    for ids, score in zip(tokens.ids, scores, strict=True):
        free = [n for n, token in enumerate(ids[:-1]) if token not in special]
        taken = set(sorted(free, key=lambda n: -float(score[n]))[:k])
        rows.append(tuple(pad if n in taken else token for n, token in enumerate(ids)))
    return Tokens(tuple(rows), tokens.prompt_lengths, tokens.n_post, tokens.source)


def _ends(lens: Lens, tokens: Tokens, layers: Sequence[int]) -> Float[Tensor, "row layer d"]:
    """Activations of the last token of each row."""
    parts: dict[int, Tensor] = {}
    for rows, x in forward.answer_states(lens.model, tokens, layers, "resid_pre", "last"):
        parts |= dict(zip(rows.tolist(), x.float().cpu(), strict=True))
    return torch.stack([parts[row] for row in range(len(tokens))])
