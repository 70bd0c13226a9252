"""Texts, and how well a model predicts them, which steering must not destroy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import Gated, Hooks, Tokens
from rolelens.lens import Lens


@dataclass(frozen=True, eq=False, repr=False)
class Perplexity(Shown):
    """How well a model predicts a text.

    Attributes:
        logprobs: of every token but the first, in nats, given the tokens before it.
    """

    logprobs: Float[Tensor, " token"]

    @property
    def value(self) -> float:
        """Exp of the mean negative log-probability of a token."""
        return math.exp(-float(self.logprobs.double().mean()))

    def card(self) -> Card:
        """Perplexity and tokens."""
        facts = {"perplexity": f"{self.value:.2f}", "tokens": str(len(self.logprobs))}
        return Card("Perplexity", facts, "perplexity.logprobs")


def perplexity(
    lens: Lens,
    text: str,
    hooks: Hooks = (),
    *,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
) -> Perplexity:
    """Perplexity of a text, in a window that moves over it; no chat template is put around it.

    Every token but the first is predicted once, from at least ``window - stride`` tokens before it
    (fewer at the beginning).

    Args:
        lens: the model.
        text: what is read.
        hooks: steering.
        window: tokens the model sees at once; 512, or what fits into the context, by default.
        stride: by how many the window moves; half of it by default.
        max_tokens: how many tokens of the text are read; all by default.

    Raises:
        InputError: a text of fewer than two tokens, a window that does not fit, or steering that
            touches none of the tokens.
    """
    check_on_text(hooks)
    tokens, _ = windows(lens, [text], window, stride, max_tokens)
    return Perplexity(torch.cat(forward.answer_logprobs(lens.model, tokens, hooks=hooks)))


def check_on_text(hooks: Hooks) -> None:
    """Refuse steering of tokens that a text without a prompt does not have.

    Raises:
        InputError: a selection other than ``"all"``.
    """
    for fn in [hooks] if callable(hooks) else [fn for _, fn in hooks]:
        for chosen in getattr(fn, "selections", ()):
            if isinstance(chosen, Gated):
                raise InputError(
                    "steering on a condition is decided at a prompt, which a text does not have; "
                    "take the condition off."
                )
            if chosen != "all":
                raise InputError(
                    f"tokens is {chosen!r}, which a text without a prompt does not have; steer it "
                    "with tokens='all'."
                )


def windows(
    lens: Lens,
    texts: Sequence[str],
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
) -> tuple[Tokens, Int[Tensor, " row"]]:
    """Windows that together predict every token of some texts but the first of each, once.

    Returns:
        The windows, and which text each belongs to.

    Raises:
        InputError: as for :func:`perplexity`.
    """
    window = min(512, lens.n_ctx) if window is None else window
    stride = window // 2 if stride is None else stride
    if not 0 < stride < window <= lens.n_ctx:
        raise InputError(
            f"window is {window} and stride {stride}; expected 0 < stride < window <= {lens.n_ctx},"
            " the context."
        )
    rows: list[tuple[int, ...]] = []
    known: list[int] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        ids = lens.chat.raw_ids(text)[:max_tokens]
        if len(ids) < 2:
            raise InputError(
                f"the text {text[:40]!r} has {len(ids)} tokens; 2 are needed at least."
            )
        rows.append(ids[:window])
        known.append(1)
        for end in range(window + stride, len(ids) + stride, stride):
            rows.append(ids[max(0, end - window) : end])
            known.append(window - stride)
        owners += [number] * (len(rows) - len(owners))
    return Tokens(tuple(rows), tuple(known), 0, lens.source), torch.tensor(owners)
