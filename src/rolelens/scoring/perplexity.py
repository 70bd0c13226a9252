"""How well a model predicts held-out text, which steering must not destroy."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, cat

from rolelens import forward
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import Hooks, Tokens
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
        InputError: a text of fewer than two tokens, or a window that does not fit.
    """
    window = min(512, lens.n_ctx) if window is None else window
    stride = window // 2 if stride is None else stride
    if not 0 < stride < window <= lens.n_ctx:
        raise InputError(
            f"window is {window} and stride {stride}; expected 0 < stride < window <= {lens.n_ctx},"
            " the context."
        )
    ids = tuple(lens.tokenizer(text).input_ids)[:max_tokens]
    if len(ids) < 2:
        raise InputError(f"the text {text[:40]!r} has {len(ids)} tokens; 2 are needed at least.")
    windows, known = [ids[:window]], [1]
    for end in range(window + stride, len(ids) + stride, stride):
        own = ids[max(0, end - window) : end]
        windows.append(own)
        known.append(window - stride)
    tokens = Tokens(tuple(windows), tuple(known), 0, lens.source)
    return Perplexity(cat(forward.answer_logprobs(lens.model, tokens, hooks=hooks)))
