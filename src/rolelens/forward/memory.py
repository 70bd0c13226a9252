"""How many tokens run together: what a model needs for each, and what to do where memory ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rolelens.errors import InputError
from rolelens.forward.models import HookedModel, release_memory
from rolelens.forward.tokens import TOKEN_BUDGET, Batch, Tokens, batches

ACCELERATED_BUDGET = 16384
"""Tokens of one batch on an accelerator, at most: there each launch costs, however small."""
GENERATED_SHARE = 4
"""Batches' worth of prompts that are generated from together, as a step has one token a row."""
SHARE = 0.5
"""Share of the free memory that a batch may be expected to take; the rest is for what is kept."""
WIDTHS = (32, 96)
"""Lengths, in tokens, at which the memory of a pass is measured."""

T = TypeVar("T")


@dataclass(frozen=True)
class Footprint:
    """Memory that a pass takes at its peak beside the weights, in bytes.

    Attributes:
        each: of a token.
        pair: of a token and each token of its row, as of attention computed step by step.
    """

    each: float
    pair: float

    def bytes(self, tokens: int, width: int) -> int:
        """Bytes of a batch of so many tokens in rows of some width."""
        return int(tokens * (self.each + self.pair * width))

    @classmethod
    def measured(cls, run: Callable[[int], Any], longest: int) -> "Footprint":
        """From passes of one row of two widths up to the longest, which ``run`` makes."""
        narrow, wide = (min(width, longest * width // WIDTHS[1]) for width in WIDTHS)
        peaks = []
        for width in (narrow, wide):
            with live_bytes() as live:
                run(width)
            peaks.append(live.peak / width)
        pair = max(0.0, (peaks[1] - peaks[0]) / (wide - narrow))
        return cls(max(1.0, peaks[1] - pair * wide), pair)


class live_bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # noqa: N801
    """Follows, inside its context, the bytes of tensors that operations made and that still live.

    Attributes:
        peak: the most at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if _is_dense(x)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not _is_dense(x):
                continue
            storage = x.untyped_storage()
            if id(storage) in given or id(storage) in self._known:
                continue
            size = storage.nbytes()
            self._known[id(storage)] = ref(storage, partial(self._freed, id(storage), size))
            self._now += size
        self.peak = max(self.peak, self._now)
        return out

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self._now -= size


def _is_dense(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided


_footprints: WeakKeyDictionary[HookedModel, dict[str, Footprint]] = WeakKeyDictionary()
_chosen: WeakKeyDictionary[HookedModel, int] = WeakKeyDictionary()
_shrunk: WeakKeyDictionary[HookedModel, int] = WeakKeyDictionary()


def footprint(model: HookedModel, kind: str, run: Callable[[int], Any]) -> Footprint:
    """What passes of some kind take, measured once a model."""
    known = _footprints.setdefault(model, {})
    if kind not in known:
        known[kind] = Footprint.measured(run, int(model.cfg.n_ctx))
    return known[kind]


def token_budget(model: HookedModel, width: int, kind: str = "forward") -> int:
    """Tokens of one batch, padding included.

    What was chosen by :func:`choose_token_budget`; else 2048 on a CPU, which keeps a few cores
    busy, and 16384 on an accelerator, or fewer where half of the free memory holds fewer.

    Args:
        model: the model.
        width: tokens of the longest prompt.
        kind: of the passes.
    """
    if model in _chosen:
        return _chosen[model]
    places = devices(model)
    most = TOKEN_BUDGET if all(place.type == "cpu" for place in places) else ACCELERATED_BUDGET
    most = min(most, _shrunk.get(model, most))
    needs = _footprints.get(model, {}).get(kind)
    if needs is None:
        return most
    free = min(free_bytes(place) for place in places)
    return max(1, min(most, int(SHARE * free / needs.bytes(1, width))))


def batch_bytes(model: HookedModel, tokens: int, width: int, kind: str = "forward") -> int:
    """Memory that a batch takes at its peak, as measured; 0 where it was not."""
    needs = _footprints.get(model, {}).get(kind)
    return needs.bytes(tokens, width) if needs else 0


def generated_budget(model: HookedModel, width: int, new: int, budget: int | None = None) -> int:
    """Tokens of the prompts of one batch that is generated from.

    Args:
        model: the model.
        width: tokens of the longest prompt.
        new: how many tokens may be generated.
        budget: tokens of one batch otherwise; of :func:`token_budget` by default.
    """
    budget = int((budget or token_budget(model, width)) * GENERATED_SHARE)
    if model in _chosen:
        return budget
    free = min(free_bytes(place) for place in devices(model))
    kept = SHARE * free / (kept_bytes(model) * (width + new)) * width
    return max(1, min(budget, int(kept)))


def kept_bytes(model: HookedModel) -> int:
    """Bytes of the keys and values of one token."""
    cfg = model.cfg
    heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return int(2 * cfg.n_layers * heads * cfg.d_head * model.unembed.W_U.dtype.itemsize)


def choose_token_budget(model: HookedModel, tokens: int | None) -> None:
    """Set the tokens of one batch; None: as many as the free memory holds.

    Raises:
        InputError: it is below 1.
    """
    _shrunk.pop(model, None)
    if tokens is None:
        _chosen.pop(model, None)
        return
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise InputError(
            f"token_budget is {tokens!r}; it has to be a whole number of tokens from 1 on, or None "
            "for as many as the free memory holds."
        )
    _chosen[model] = tokens


def chosen_token_budget(model: HookedModel) -> int | None:
    """What was chosen by :func:`choose_token_budget`, if anything was."""
    return _chosen.get(model)


def devices(model: Any) -> set[torch.device]:
    """Where the weights of a model are."""
    return {weight.device for weight in model.parameters()}


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; of a GPU, with what PyTorch holds and does not use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)


def batched(
    model: HookedModel,
    tokens: Tokens,
    run: Callable[[Batch], T],
    *,
    budget: int | None = None,
    kind: str = "forward",
    same_prompt_length: bool = False,
) -> Iterator[tuple[Batch, T]]:
    """Run prompts in batches; one that does not fit into memory is cut in half, and later ones.

    Args:
        model: the model.
        tokens: the prompts.
        run: runs a batch.
        budget: tokens of one batch; of :func:`token_budget` by default.
        kind: of the passes.
        same_prompt_length: as for :func:`rolelens.forward.tokens.batches`.

    Raises:
        InputError: one prompt alone does not fit.
    """
    if budget is None:
        budget = token_budget(model, max(map(len, tokens.ids)), kind)
    left = batches(tokens, budget, same_prompt_length=same_prompt_length)[::-1]
    limit = budget
    while left:
        batch = left.pop()
        rows = len(batch.rows)
        done: list[T] = []
        if rows == 1 or batch.ids.numel() <= limit:
            with running_out() as ended:
                done.append(run(batch))
            if not ended:
                yield batch, done.pop()
                continue
            if rows == 1:
                raise too_large(f"a prompt of {batch.ids.shape[1]} tokens") from None
            limit = batch.ids.numel() // 2
            shrink(model, limit)
        left += [
            batch.trimmed(torch.arange(rows // 2, rows)),
            batch.trimmed(torch.arange(rows // 2)),
        ]


@contextmanager
def running_out() -> Iterator[list[str]]:
    """Takes an error that says that memory ran out, and what it held; tells what it said."""
    told: list[str] = []
    try:
        yield told
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        told.append(str(error) or type(error).__name__)
    if told:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        release_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def shrink(model: HookedModel, budget: int) -> None:
    """Remember that no more than so many tokens fit together."""
    if model not in _chosen:
        _shrunk[model] = max(1, budget)


def too_large(what: str) -> InputError:
    """The error of what does not fit into memory alone."""
    return InputError(
        f"{what} does not fit into memory alone; load the model in a smaller dtype, over several "
        "devices (device_map='auto') or quantised, or leave out the longest prompts."
    )
