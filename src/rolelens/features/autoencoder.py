"""A sparse autoencoder: features of the activations at one hook, and back."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.lens import Lens
from rolelens.vectors.direction import check_finite

Activation: TypeAlias = Literal["relu", "jumprelu", "topk"]


@dataclass(frozen=True, eq=False, repr=False)
class SparseAutoencoder(Shown):
    """Encoder and decoder of sparse features.

    pre = (x - b_dec) W_enc + b_enc, where ``subtracts`` says so, else x W_enc + b_enc; features are
    relu(pre), relu(pre) where pre > threshold (JumpReLU, 2407.14435), or the k largest of relu(pre)
    (TopK, 2406.04093); what is decoded is a W_dec + b_dec.

    Attributes:
        w_enc: encoder.
        b_enc: its bias.
        w_dec: decoder: a row is what a feature adds.
        b_dec: its bias.
        hook: name of the hook whose activations are read, such as ``blocks.12.hook_resid_post``.
        activation: which of the three.
        threshold: of a JumpReLU, for each feature.
        k: of a TopK.
        subtracts: whether b_dec is subtracted at the input.
        model: the model it was trained on, as its file says; for the record.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, or an activation without
            its threshold or k.
    """

    w_enc: Float[Tensor, "d feature"]
    b_enc: Float[Tensor, " feature"]
    w_dec: Float[Tensor, "feature d"]
    b_dec: Float[Tensor, " d"]
    hook: str
    activation: Activation
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None
    subtracts: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise unknown(
                "activation of a sparse autoencoder", self.activation, get_args(Activation)
            )
        d, n = self.w_enc.shape
        shapes = {"b_enc": (n,), "w_dec": (n, d), "b_dec": (d,)}
        if self.activation == "jumprelu":
            shapes["threshold"] = (n,)
        for name, shape in shapes.items():
            found = getattr(self, name)
            if found is None or tuple(found.shape) != shape:
                raise InputError(
                    f"{name} has the shape {None if found is None else tuple(found.shape)}, and an "
                    f"encoder of shape {(d, n)} needs {shape}; the files do not belong together."
                )
        if self.threshold is not None and self.activation != "jumprelu":
            raise InputError(f"a threshold is given, which a {self.activation} has not.")
        if self.activation == "topk" and (self.k is None or not 1 <= self.k <= n):
            raise InputError(f"k is {self.k}; a TopK of {n} features needs 1 to {n}.")
        for name in ("w_enc", *shapes):
            check_finite(f"the numbers of {name}", getattr(self, name))

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.w_enc.shape[1]

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.w_enc.shape[0]

    @property
    def place(self) -> tuple[int, str]:
        """The layer and the site that directions of its features have.

        What leaves a block is what enters the next.

        Raises:
            InputError: the hook is at no site of the residual stream.
        """
        block, _, rest = self.hook.partition(".")[2].partition(".")
        if self.hook.startswith("blocks.") and block.isdigit():
            layer = int(block)
            places = {
                "hook_resid_pre": (layer, "resid_pre"),
                "hook_resid_post": (layer + 1, "resid_pre"),
                "hook_attn_out": (layer, "attn_out"),
            }
            if rest in places:
                return places[rest]
        raise InputError(
            f"the autoencoder reads {self.hook!r}; those of hook_resid_pre, hook_resid_post and "
            "hook_attn_out of a block can be used here."
        )

    def check(self, lens: Lens) -> tuple[int, str]:
        """The layer and site in a model.

        Raises:
            InputError: the model has another width, or no such layer, or the autoencoder reads what
                leaves the last block, where nothing can be steered.
        """
        layer, site = self.place
        if self.d_in != lens.d_model:
            raise InputError(
                f"the autoencoder reads activations {self.d_in} wide"
                f"{f' of {self.model}' if self.model else ''}, and {lens.name} is {lens.d_model} "
                "wide; take one of this model."
            )
        if layer >= lens.n_layers:
            raise InputError(
                f"the autoencoder reads {self.hook!r}, and {lens.name} has {lens.n_layers} blocks; "
                "take one that reads what enters a block."
            )
        return layer, site

    def encode(self, x: Float[Tensor, "*row d"]) -> Float[Tensor, "*row feature"]:
        """Feature activations, on the device and in the dtype of the weights."""
        x = x.to(self.w_enc)
        pre = (x - self.b_dec if self.subtracts else x) @ self.w_enc + self.b_enc
        if self.activation == "topk":
            assert self.k is not None
            kept = pre.topk(self.k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())
        if self.threshold is not None:
            return pre.relu() * (pre > self.threshold)
        return pre.relu()

    def decode(self, features: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row d"]:
        """Activations of features."""
        decoded: Tensor = features @ self.w_dec + self.b_dec
        return decoded

    def explained(self, x: Float[Tensor, "row d"]) -> float:
        """Share of the variance of some activations that is left after encoding and decoding."""
        x = x.to(self.w_enc)
        rest = (x - self.decode(self.encode(x))).double().square().sum()
        whole = (x - x.mean(dim=0)).double().square().sum().clamp(min=1e-300)
        return float(1 - rest / whole)

    def to(self, device: str | torch.device) -> "SparseAutoencoder":
        """The same on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def card(self) -> Card:
        """Size, activation and hook."""
        facts = {
            "features": f"{self.n_features} of width {self.d_in}",
            "activation": self.activation + (f", k = {self.k}" if self.k else ""),
            "hook": self.hook,
            "model": self.model or "unknown",
        }
        return Card("SparseAutoencoder", facts, "sae.encode(activations)")
