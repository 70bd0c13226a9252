"""Scores cells in pieces that are fixed beforehand, so that a run can stop between any two."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError
from rolelens.forward import TOKEN_BUDGET, Plain, Selection, Shared, Tokens
from rolelens.lens import Lens
from rolelens.scoring import Prepared
from rolelens.sweep.grid import UNSTEERED, Grid, Key

KEPT_BYTES = 512 << 20
"""What may be kept of a group of questions, unsteered."""
PIECE_TOKENS = 16 * TOKEN_BUDGET
"""Tokens of a piece: a few seconds to a minute, which is what a killed run loses at most."""


@dataclass(frozen=True)
class Piece:
    """Some cells of one layer on some questions.

    Attributes:
        group: questions that are prepared together.
        cells: names of the cells.
    """

    group: int
    cells: tuple[Key, ...]


@dataclass
class Engine:
    """Scores the cells of a grid on a benchmark.

    Attributes:
        lens: the model.
        prepared: the questions.
        grid: the cells.
        tokens: which tokens are steered.
        budget: tokens of one batch; halves when memory runs out.
        groups: questions that are prepared together.
        parts: the questions of each group.
    """

    lens: Lens
    prepared: Prepared
    grid: Grid
    tokens: Selection = "all"
    budget: int = TOKEN_BUDGET
    groups: list[tuple[int, ...]] = field(init=False)
    parts: list[Prepared] = field(init=False)
    _ready: tuple[tuple[int, int], Shared | Plain] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        owners = self.prepared.owners.tolist()
        limit = KEPT_BYTES // self._token_bytes()
        rows = forward.groups(self.prepared.tokens, limit)
        self.groups = [tuple(dict.fromkeys(owners[row] for row in group)) for group in rows]
        self.parts = [self.prepared.take(group) for group in self.groups]

    def plan(self, cells: Sequence[Key]) -> list[Piece]:
        """Cut cells into pieces: cells of one layer, on one group of questions."""
        layers: dict[int, list[Key]] = {}
        for key in cells:
            everywhere = self.grid.change == "ablate" and key != UNSTEERED
            layers.setdefault(0 if everywhere else key.layer, []).append(key)
        pieces = []
        for group, part in enumerate(self.parts):
            together = self._together(part.tokens)
            for layer in sorted(layers):
                own = layers[layer]
                pieces += [
                    Piece(group, tuple(own[n : n + together])) for n in range(0, len(own), together)
                ]
        return pieces

    def run(self, piece: Piece) -> tuple[Float[Tensor, "cell question option"], float]:
        """Score a piece; gives the option log-probabilities (nats) and the seconds it took.

        Raises:
            InputError: a score is NaN, or one prompt alone does not fit into memory.
        """
        begun = time.perf_counter()
        edit = None if piece.cells == (UNSTEERED,) else self.grid.edit(piece.cells)
        while True:
            try:
                prompts = self._prompts(piece.group)
                read = prompts.steered(edit) if edit else prompts.unsteered()[None]
                break
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._ready = None
                self.budget //= 2
                if self.budget < 1:
                    raise InputError(
                        "one prompt alone does not fit into memory; load the model in a smaller "
                        "dtype, or leave out the longest questions."
                    ) from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        forward.release_memory()
        lost = read.isnan().flatten(start_dim=1).any(dim=1).nonzero()[:, 0].tolist()
        if lost:
            raise InputError(
                f"scores of {_named(piece.cells[lost[0]])} are NaN; leave out this alpha, or "
                "load the model in float32."
            )
        return self.parts[piece.group].logprobs(read), time.perf_counter() - begun

    def _prompts(self, group: int) -> Shared | Plain:
        """The questions of a group, run once unsteered; the last group is kept."""
        if self._ready is None or self._ready[0] != (group, self.budget):
            self._ready = None
            taken = self.parts[group]
            layers = (0,) if self.grid.change == "ablate" else self.grid.layers
            prompts = forward.cells(
                self.lens.model,
                taken.tokens,
                layers,
                self.tokens,
                vocab=taken.letters if taken.method == "letter" else None,
                budget=self.budget,
            )
            self._ready = ((group, self.budget), prompts)
        return self._ready[1]

    def _token_bytes(self) -> int:
        """What is kept of a token: its residual stream at every layer, or its keys and values."""
        cfg = self.lens.model.cfg
        heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        cache = 2 * cfg.n_layers * heads * cfg.d_head
        stream = len(self.grid.layers) * cfg.d_model
        return int(self.lens.dtype.itemsize * max(cache, stream))

    def _together(self, tokens: Tokens) -> int:
        """How many cells of a layer make a piece."""
        starts = [ids[:n] for ids, n in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
        shared = forward.common_prefix(starts)
        size = sum(len(ids) - shared for ids in tokens.ids) + shared
        fitting = KEPT_BYTES // 2 // max(1, shared * self._token_bytes())
        return max(1, min(PIECE_TOKENS // size, fitting))


def _named(key: Key) -> str:
    if key == UNSTEERED:
        return "the unsteered model"
    return f"{key.role!r} at layer {key.layer}, position {key.position}, alpha {key.alpha:g}"


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
