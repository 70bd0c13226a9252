"""Activations of prompts, in memory or in a file, and what they project to, token by token."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.display import Line, token_html
from rolelens.errors import InputError, listed, unique, unknown
from rolelens.forward import SITES, Hooks, Tokens
from rolelens.lens import Lens, Prompts, positions_of
from rolelens.vectors import Direction, check_sources


@overload
def activations(
    lens: Lens,
    prompts: Prompts,
    layers: Sequence[int] | None = ...,
    positions: Sequence[int] | Literal["mean"] | None = ...,
    *,
    answers: Sequence[str] | None = ...,
    site: str = ...,
    hooks: Hooks = ...,
    raw: bool = ...,
    system: str | Sequence[str] | None = ...,
    path: str | Path | None = ...,
) -> Tensor: ...


@overload
def activations(
    lens: Lens,
    prompts: Prompts,
    layers: Sequence[int] | None = ...,
    *,
    positions: Literal["all"],
    answers: Sequence[str] | None = ...,
    site: str = ...,
    hooks: Hooks = ...,
    raw: bool = ...,
    system: str | Sequence[str] | None = ...,
) -> list[Tensor]: ...


def activations(
    lens: Lens,
    prompts: Prompts,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Literal["all", "mean"] | None = None,
    *,
    answers: Sequence[str] | None = None,
    site: str = "resid_pre",
    hooks: Hooks = (),
    raw: bool = False,
    system: str | Sequence[str] | None = None,
    path: str | Path | None = None,
) -> Tensor | list[Tensor]:
    """Activations of every prompt; by default the residual stream entering each layer.

    Args:
        lens: the model.
        prompts: texts, conversations or tokens, as for ``lens.encode``.
        layers: all of them by default.
        positions: counted from the end of the prompt; the post-instruction positions by default,
            or the last token where there are none, as of raw text. ``"all"``: every token of the
            prompt, and of its answer if it has one; ``"mean"``: the mean over the answer's tokens.
        answers: an answer to each prompt.
        site: where in the block: ``"resid_pre"``, what enters it (``blocks.{l}.hook_resid_pre``);
            ``"attn_out"``, what attention adds to the residual stream; ``"mlp_post"``, what the
            last matrix of the MLP reads.
        hooks: steering on the way.
        raw: take the prompts as texts that stand alone, without the chat format.
        system: a system prompt for all of them, or one for each.
        path: keep the result in this file (memory-mapped, float32) instead of in memory.

    Returns:
        ``Float["prompt layer position d"]``, float32; for ``"mean"`` ``Float["prompt layer d"]``;
        for ``"all"`` a list with one ``Float["layer token d"]`` a prompt.

    Raises:
        InputError: an unknown or repeated layer or position, an unknown site, or activations that
            are not finite.
    """
    tokens = lens.encode(prompts, answers, system=system, raw=raw)
    layers = known_layers(lens, layers)
    if site not in SITES:
        raise unknown("site", site, SITES)
    if isinstance(positions, str) and positions not in ("all", "mean"):
        raise InputError(
            f"positions is {positions!r}; pass 'all', 'mean' or a list of numbers such as [-1]."
        )
    if positions == "all":
        if path is not None:
            raise InputError(
                "activations of all tokens have no common shape for a file; leave path out, or "
                "name positions."
            )
        parts = {
            row: _finite(x, layers, site, axis=0).float().cpu()
            for row, x in forward.token_states(lens.model, tokens, layers, site, hooks=hooks)
        }
        return [parts[row] for row in range(len(tokens))]
    if positions == "mean":
        stream = (
            (rows, _finite(x, layers, site))
            for rows, x in forward.answer_states(
                lens.model, tokens, layers, site, "mean", hooks=hooks
            )
        )
        return _gathered(stream, (len(tokens), len(layers)), path)
    positions = known_positions(tokens, positions)
    shape = (len(tokens), len(layers), len(positions))
    return _gathered(streamed(lens, tokens, layers, positions, hooks, site), shape, path)


class TokenTable(pd.DataFrame):
    """A row a token, which Jupyter shows as coloured text.

    Orange tokens project above zero and blue ones below; hovering shows the number. The colours
    are full at the 95 % quantile of the sizes in the table, as the first token of a prompt is often
    far larger than the others. Answers stand in a line of their own.
    """

    @property
    def _constructor(self) -> type["TokenTable"]:
        return TokenTable

    def _repr_html_(self) -> str:
        needed = ["prompt", "index", "token", "projection"]
        if not self.columns.is_unique or not set(needed) <= set(self.columns) or self.empty:
            table: Any = pd.DataFrame(self)
            return str(table._repr_html_())
        values = pd.to_numeric(self["projection"], errors="coerce")
        sizes = values.fillna(0.0).abs()
        scale = float(sizes.quantile(0.95)) or float(sizes.max()) or 1.0
        prompt_lengths: dict[Any, int] = self.attrs.get("prompt_lengths", {})
        lines: dict[tuple[Any, bool], list[tuple[int, str, float]]] = {}
        columns = [self[name].tolist() for name in ("prompt", "index", "token")]
        for prompt, index, token, value in zip(*columns, values.tolist(), strict=True):
            answered = index >= prompt_lengths.get(prompt, index + 1)
            lines.setdefault((prompt, answered), []).append((index, str(token), value))
        what = self.attrs.get("what", "projection")
        return token_html(
            [
                Line(f"{prompt}, answer" if answered else str(prompt), tokens)
                for (prompt, answered), tokens in lines.items()
            ],
            scale,
            what,
        )


def project(
    lens: Lens,
    prompts: Prompts,
    d: Direction,
    *,
    answers: Sequence[str] | None = None,
    hooks: Hooks = (),
    raw: bool = False,
    system: str | Sequence[str] | None = None,
) -> TokenTable:
    """Project the activations of every token onto a direction, at its layer and site.

    Args:
        lens: the model.
        prompts: texts, conversations or tokens, as for ``lens.encode``.
        d: the direction; its norm does not matter, and its position neither.
        answers: an answer to each prompt, whose tokens have rows, too.
        hooks: steering on the way.
        raw: take the prompts as texts that stand alone, without the chat format.
        system: a system prompt for all of them, or one for each.

    Returns:
        A row a token: ``prompt`` and ``index``, which count from 0, the text of the ``token``, and
        its ``projection`` x · d̂, in units of the residual stream (of the direction's site). Jupyter
        shows the text in colours.

    Raises:
        InputError: the direction is zero, was measured on another model, or is none; activations
            that are not finite.
    """
    if not isinstance(d, Direction):
        raise InputError(
            f"a {type(d).__name__} is no direction to project onto; take one of it, as in "
            "vectors['lawyer'].at(layer=12, position=-1)."
        )
    check_sources(d.source, lens.source)
    unit = d.unit.double()
    (layer,) = known_layers(lens, [d.layer])
    if d.site not in SITES:
        raise unknown("site", d.site, SITES)
    tokens = lens.encode(prompts, answers, system=system, raw=raw)
    parts: dict[int, list[float]] = {}
    for row, x in forward.token_states(lens.model, tokens, [layer], d.site, hooks=hooks):
        x = _finite(x, [layer], d.site, axis=0)[0].double().cpu()
        if x.shape[-1] != len(unit):
            raise InputError(
                f"the direction of {d.name!r} is {len(unit)} wide, and {d.site} of {lens.name} is "
                f"{x.shape[-1]} wide; take one of this model and site."
            )
        parts[row] = (x @ unit.cpu()).tolist()
    rows = [
        (row, index, lens.tokenizer.decode([token]), value)
        for row, ids in enumerate(tokens.ids)
        for index, (token, value) in enumerate(zip(ids, parts[row], strict=True))
    ]
    table = TokenTable(rows, columns=["prompt", "index", "token", "projection"])
    table.attrs["prompt_lengths"] = dict(enumerate(tokens.prompt_lengths))
    table.attrs["what"] = f"projection on {d.name}, layer {d.layer}"
    return table


def streamed(
    lens: Lens,
    tokens: Tokens,
    layers: Sequence[int],
    positions: Sequence[int],
    hooks: Hooks = (),
    site: str = "resid_pre",
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row layer position d"]]]:
    """Activations batch by batch, with the rows they belong to.

    Raises:
        InputError: some are not finite.
    """
    stream = forward.residual_stream(lens.model, tokens, layers, positions, site=site, hooks=hooks)
    for rows, x in stream:
        yield rows, _finite(x, layers, site)


def known_positions(tokens: Tokens, positions: Sequence[int] | None) -> list[int]:
    """The positions that are meant; the post-instruction positions of the tokens by default.

    Raises:
        InputError: one is not in every prompt, or is named twice.
    """
    chosen = listed("positions", positions_of(tokens.n_post) if positions is None else positions)
    for position in chosen:
        if not isinstance(position, int):
            raise InputError(f"a position is {position!r}; it has to be a number such as -1.")
    unique("position", chosen)
    forward.check_positions(tokens, chosen)
    return chosen


def known_layers(lens: Lens, layers: Sequence[int] | None) -> list[int]:
    """The layers that are meant; all of them by default.

    Raises:
        InputError: one is unknown, or named twice.
    """
    chosen = listed("layers", range(lens.n_layers) if layers is None else layers)
    for layer in chosen:
        if not isinstance(layer, int) or layer not in range(lens.n_layers):
            raise unknown("layer", layer, range(lens.n_layers))
    unique("layer", chosen)
    return chosen


def _gathered(
    stream: Iterator[tuple[Int[Tensor, " row"], Tensor]],
    shape: tuple[int, ...],
    path: str | Path | None,
) -> Tensor:
    """What a stream gives, row by row, in float32; the width is that of the first batch."""
    if path is not None and (Path(path).exists() or not Path(path).parent.is_dir()):
        raise InputError(f"{path} exists already or has no folder; name a new file.")
    out = torch.empty(0)
    for rows, x in stream:
        if not len(out):
            whole = (*shape, x.shape[-1])
            if path is None:
                out = torch.empty(whole)
            else:
                size = torch.Size(whole).numel()
                out = torch.from_file(str(path), shared=True, size=size).reshape(whole)
        out[rows] = x.float().cpu()
    return out


def _finite(x: Tensor, layers: Sequence[int], site: str, axis: int = 1) -> Tensor:
    """Activations, if all are finite numbers.

    Raises:
        InputError: some are not; the first such layer along the axis of layers is named.
    """
    finite = torch.isfinite(x).movedim(axis, 0).flatten(1).all(dim=1)
    if finite.all():
        return x
    layer = layers[int((~finite).nonzero()[0])]
    what = "the residual stream entering" if site == "resid_pre" else f"{site} of"
    raise InputError(
        f"{what} layer {layer} is NaN or infinite; load the model with dtype=torch.float32."
    )
