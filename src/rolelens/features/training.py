"""A small trainer of TopK autoencoders, for demonstrations and tests."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.lens import Lens, Prompts
from rolelens.residuals import activations, known_layers


def train_sae(
    lens: Lens,
    prompts: Prompts,
    layer: int,
    *,
    n_features: int,
    k: int,
    steps: int = 2000,
    batch: int = 512,
    rate: float = 1e-3,
    seed: int = 0,
    raw: bool = False,
) -> SparseAutoencoder:
    """Train a TopK autoencoder on what enters a layer at all tokens of some prompts.

    The first token of each prompt is left out: its activation is of another size than all others.
    Minutes for a small model; for autoencoders to be relied on take published ones, or SAELens.

    Args:
        lens: the model.
        prompts: what is read.
        layer: the layer.
        n_features: how many features.
        k: how many are active at a token.
        steps: of Adam.
        batch: tokens of a step.
        rate: learning rate.
        seed: of the weights and of the batches.
        raw: take the prompts as texts that stand alone, without the chat format.

    Raises:
        InputError: as for :func:`fit_topk` and :func:`rolelens.activations`.
    """
    (layer,) = known_layers(lens, [layer])
    read = activations(lens, prompts, layers=[layer], positions="all", raw=raw)
    x = torch.cat([one[0, 1:] for one in read])
    hook = f"blocks.{layer}.hook_resid_pre"
    return fit_topk(
        x, hook, n_features=n_features, k=k, steps=steps, batch=batch, rate=rate, seed=seed,
        model=lens.name,
    )  # fmt: skip


def fit_topk(
    x: Float[Tensor, "token d"],
    hook: str,
    *,
    n_features: int,
    k: int,
    steps: int = 2000,
    batch: int = 512,
    rate: float = 1e-3,
    seed: int = 0,
    model: str = "",
) -> SparseAutoencoder:
    """Train a TopK autoencoder on activations (2406.04093).

    Decoder rows keep norm 1. Features that were never active in a twentieth of the steps begin
    again at a token that is decoded badly.

    Args:
        x: activations.
        hook: where they were read.
        n_features: how many features.
        k: how many are active at a token.
        steps: of Adam.
        batch: tokens of a step.
        rate: learning rate.
        seed: of the weights and of the batches.
        model: whose activations they are, for the record.

    Raises:
        InputError: fewer than two tokens, no step, or a ``k`` that is not from 1 to ``n_features``.
    """
    if len(x) < 2 or steps < 1 or not 1 <= k <= n_features:
        raise InputError(
            f"{len(x)} tokens, steps {steps}, k {k} and n_features {n_features}: it needs 2 tokens,"
            " 1 step, and k from 1 to n_features."
        )
    drawn = torch.Generator().manual_seed(seed)
    x = x.detach().float().cpu()
    scale = float((x - x.mean(dim=0)).square().mean().sqrt().clamp(min=1e-12))
    b_dec = (x.mean(dim=0) / scale).requires_grad_()
    rows = torch.randn(n_features, x.shape[1], generator=drawn)
    w_dec = (rows / rows.norm(dim=-1, keepdim=True)).requires_grad_()
    w_enc = w_dec.detach().T.clone().requires_grad_()
    b_enc = torch.zeros(n_features, requires_grad=True)
    weights = [w_enc, b_enc, w_dec, b_dec]
    adam = torch.optim.Adam(weights, lr=rate)
    fired = torch.zeros(n_features, dtype=torch.bool)
    often = max(steps // 20, 1)
    with torch.enable_grad():
        for step in range(1, steps + 1):
            some = x[torch.randint(len(x), (batch,), generator=drawn)] / scale
            kept = ((some - b_dec) @ w_enc + b_enc).topk(k, dim=-1)
            active = torch.zeros(len(some), n_features).scatter(
                -1, kept.indices, kept.values.relu()
            )
            errors = (active @ w_dec + b_dec - some).square().sum(dim=-1)
            adam.zero_grad()
            errors.mean().backward()
            adam.step()
            with torch.no_grad():
                w_dec /= w_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                fired |= (active > 0).any(dim=0)
                if step % often == 0:
                    if step <= steps // 2:
                        _revive(weights, adam, (~fired).nonzero()[:, 0], some, errors, drawn)
                    fired.zero_()
    w_enc, b_enc, w_dec, b_dec = (weight.detach() for weight in weights)
    # Weights of scaled inputs, as those of the inputs themselves.
    return SparseAutoencoder(
        w_enc, b_enc * scale, w_dec, b_dec * scale, hook, "topk", k=k, subtracts=True, model=model
    )


def _revive(
    weights: Sequence[Tensor],
    adam: torch.optim.Adam,
    dead: Tensor,
    some: Float[Tensor, "token d"],
    errors: Float[Tensor, " token"],
    drawn: torch.Generator,
) -> None:
    """Let features that are never active begin again where the error is large."""
    if not len(dead):
        return
    w_enc, b_enc, w_dec, b_dec = weights
    at = torch.multinomial(errors.detach(), len(dead), replacement=True, generator=drawn)
    rest = some[at] - b_dec
    unit = rest / rest.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    w_dec[dead], w_enc[:, dead], b_enc[dead] = unit, unit.T, 0.0
    for weight, index in ((w_dec, dead), (w_enc, (slice(None), dead)), (b_enc, dead)):
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[weight][moment][index] = 0.0
