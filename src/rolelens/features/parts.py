"""Parts of a model that a change can pass through, and what a steering changes in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.forward import SITES
from rolelens.lens import Lens

Kind: TypeAlias = Literal["feature", "error", "direct", "block", "attention", "mlp", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)
States: TypeAlias = Mapping[str, Tensor]
"""What passes some hooks, ``[row, position, ...]``."""


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        kind: ``block`` all that a block adds to the stream, ``attention`` and ``mlp`` one of its
            branches, ``head`` one head; ``feature`` what one feature adds, ``error`` what none
            explains; ``direct`` the stream from the steered layer past all blocks.
        layer: of which block; of features the layer that is read, of ``direct`` the steered one.
        index: of the head or the feature.
    """

    kind: Kind
    layer: int
    index: int | None = None


def hooks_read(
    lens: Lens, sae: SparseAutoencoder | None, kinds: Sequence[Kind], lowest: int
) -> list[str]:
    """The hooks that have to be read for some kinds of parts, from a layer on."""
    names: list[str] = []
    last = lens.n_layers - 1
    for layer in range(lowest, lens.n_layers):
        ends = {
            "block": ("hook_resid_pre", "hook_resid_post"),
            "attention": ("hook_attn_out",),
            "mlp": ("hook_mlp_out",),
            "head": ("attn.hook_z",),
        }
        names += [f"blocks.{layer}.{end}" for kind in kinds for end in ends.get(kind, ())]
    if "direct" in kinds:
        names += [f"blocks.{lowest}.hook_resid_pre", f"blocks.{last}.hook_resid_post"]
    if sae is not None and {"feature", "error"} & set(kinds):
        names.append(_read_by(sae))
    return list(dict.fromkeys(names))


def change(
    lens: Lens, sae: SparseAutoencoder | None, part: Part, plain: States, steered: States
) -> tuple[str, Float[Tensor, "row position ..."]]:
    """What a steering changes in a part, as something that is added at a hook."""
    block = f"blocks.{part.layer}"
    match part.kind:
        case "block":
            left, entered = (
                _difference(f"{block}.{end}", plain, steered)
                for end in ("hook_resid_post", "hook_resid_pre")
            )
            return f"{block}.hook_resid_post", left - entered
        case "attention" | "mlp":
            name = f"{block}.hook_{'attn' if part.kind == 'attention' else 'mlp'}_out"
            return name, _difference(name, plain, steered)
        case "head":
            name = f"{block}.attn.hook_z"
            whole = _difference(name, plain, steered)
            heads = whole.reshape(*whole.shape[:2], int(lens.model.cfg.n_heads), -1)
            one = torch.zeros_like(heads)
            one[:, :, part.index] = heads[:, :, part.index]
            return name, one.reshape(whole.shape)
        case "direct":
            end = f"blocks.{lens.n_layers - 1}.hook_resid_post"
            return end, _difference(f"{block}.hook_resid_pre", plain, steered)
        case _:
            assert sae is not None
            name = _read_by(sae)
            before, after = (sae.encode(states[name]) for states in (plain, steered))
            moved = after - before
            if part.kind == "feature":
                return name, moved[..., part.index, None] * sae.w_dec[part.index]
            return name, _difference(name, plain, steered) - moved @ sae.w_dec


def predictions(
    lens: Lens,
    sae: SparseAutoencoder | None,
    kinds: Sequence[Kind],
    lowest: int,
    states: tuple[States, States],
    slopes: States,
) -> dict[tuple[Kind, int], Float[Tensor, " index"]]:
    """Gradient times change, summed over rows and tokens, for the parts of each kind and layer.

    Args:
        lens: the model.
        sae: the autoencoder.
        kinds: of parts.
        lowest: the steered layer.
        states: what passes the hooks of :func:`hooks_read`, unsteered and steered.
        slopes: the gradients there, unsteered.
    """
    out: dict[tuple[Kind, int], Tensor] = {}
    for kind in kinds:
        if kind in ("feature", "error"):
            continue
        for layer in [lowest] if kind == "direct" else range(lowest, lens.n_layers):
            if kind == "head":
                name = f"blocks.{layer}.attn.hook_z"
                product = (_difference(name, *states) * slopes[name]).double()
                heads = product.reshape(*product.shape[:2], int(lens.model.cfg.n_heads), -1)
                out[kind, layer] = heads.sum(dim=(0, 1, 3)).cpu()
            else:
                name, moved = change(lens, sae, Part(kind, layer), *states)
                out[kind, layer] = (moved * slopes[name]).double().sum()[None].cpu()
    if sae is not None and {"feature", "error"} & set(kinds):
        layer, name = sae.place[0], _read_by(sae)
        features = torch.zeros(sae.n_features, dtype=torch.float64)
        error = torch.zeros(1, dtype=torch.float64)
        for x, y, slope in zip(states[0][name], states[1][name], slopes[name], strict=True):
            moved, slope = sae.encode(y) - sae.encode(x), slope.to(sae.w_dec)
            each = einsum(moved, slope @ sae.w_dec.T, "t feature, t feature -> feature")
            whole = ((y - x).to(slope) * slope).double().sum()
            features += each.double().cpu()
            error += (whole - each.double().sum()).cpu()
        if "feature" in kinds:
            out["feature", layer] = features
        if "error" in kinds:
            out["error", layer] = error
    return out


def _read_by(sae: SparseAutoencoder) -> str:
    """The hook of rolelens' site that the autoencoder reads."""
    layer, site = sae.place
    return f"blocks.{layer}.{SITES[site]}"


def _difference(name: str, plain: States, steered: States) -> Tensor:
    return steered[name] - plain[name]
