"""Which tokens of a prompt carry content, and their features."""

import string
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError, unknown
from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.forward import Tokens
from rolelens.lens import Lens

Filter: TypeAlias = Literal["mended", "released", "none"]
SPACE = ("Ġ", "▁", "Ċ", "##")
"""How tokenizers write white space before a token, and what continues a word."""


def content_tokens(
    lens: Lens, tokens: Tokens, which: Filter = "mended"
) -> list[Bool[Tensor, " t"]]:
    """Which tokens of each prompt are neither special, nor stop words, nor punctuation.

    Args:
        lens: whose tokenizer it is.
        tokens: the prompts.
        which: ``mended``: as it is meant, whatever the tokenizer. ``released``: as the code of
            2506.07335 does it, which knows the marks of Llama's tokenizer only, so that elsewhere
            the first token and most stop words count. ``none``: all tokens count.

    Returns:
        For each prompt, which of its tokens count; all of them where none would.
    """
    if which not in get_args(Filter):
        raise unknown("filter of tokens", which, get_args(Filter))
    known: dict[int, bool] = {}
    for token in {token for ids in tokens.ids for token in ids}:
        known[token] = which == "none" or _counts(lens.tokenizer, token, which)
    masks = [torch.tensor([known[token] for token in ids]) for ids in tokens.ids]
    return [mask if bool(mask.any()) else torch.ones_like(mask) for mask in masks]


def mean_features(
    lens: Lens, sae: SparseAutoencoder, tokens: Tokens, which: Filter = "mended"
) -> Iterator[tuple[int, Float[Tensor, " feature"], float]]:
    """Features of each prompt, averaged over its content tokens, and the mean norm of these.

    Args:
        lens: the model.
        sae: the autoencoder; tokens are encoded one by one.
        tokens: the prompts.
        which: tokens that count, see :func:`content_tokens`.

    Yields:
        The row (index into ``tokens``), its features, and the mean norm of its activations.

    Raises:
        InputError: the autoencoder does not fit the model.
    """
    layer, site = sae.check(lens)
    masks = content_tokens(lens, tokens, which)
    for row, x in forward.token_states(lens.model, tokens, [layer], site):
        kept = x[0][masks[row].to(x.device)].float()
        if not bool(torch.isfinite(kept).all()):
            raise InputError(
                f"activations of layer {layer} are NaN or infinite; load the model with "
                "dtype=torch.float32."
            )
        mean = sae.encode(kept).mean(dim=0).cpu()
        yield row, mean, float(kept.norm(dim=-1).mean())


def _counts(tokenizer: Any, token: int, which: Filter) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    if which == "released":
        text = str(tokenizer.convert_ids_to_tokens(token)).replace("Ġ", "").lower()
        return not (
            text in ENGLISH_STOP_WORDS
            or text == "<|begin_of_text|>"
            or all(sign in string.punctuation for sign in text)
        )
    if token in tokenizer.all_special_ids:
        return False
    word = str(tokenizer.decode([token]))
    for mark in SPACE:
        word = word.replace(mark, "")
    word = word.strip().lower()
    return any(sign.isalnum() for sign in word) and word not in ENGLISH_STOP_WORDS
