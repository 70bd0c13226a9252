"""Prompts under many edits: shared work where the model allows it, a pass a cell where not."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.forward.caches import has_cache
from rolelens.forward.edits import Edit
from rolelens.forward.memory import is_out_of_memory, too_large
from rolelens.forward.models import Hook, HookedModel, is_bridge, is_hooked
from rolelens.forward.operations import Operation
from rolelens.forward.passes import Hooks, answer_logprobs, behind_blocks, next_token_logits
from rolelens.forward.selection import Selection
from rolelens.forward.shared import Shared
from rolelens.forward.tokens import Tokens


@dataclass(frozen=True)
class Plain:
    """One whole forward pass a cell; arguments as for :class:`Shared`."""

    model: HookedModel
    tokens: Tokens
    selections: Sequence[Selection] = ("all",)
    vocab: Sequence[int] | None = None
    budget: int | None = None

    def unsteered(self) -> Float[Tensor, "row read"]:
        """Score every row as it is."""
        return self._read(())

    def steered(self, edit: Edit) -> Float[Tensor, "cell row read"]:
        """Score every row under every cell of an edit, as :meth:`Shared.steered` does."""
        return torch.stack(
            [self._read(edit.hooks(torch.tensor([cell]))) for cell in range(len(edit))]
        )

    def _read(self, hooks: Sequence[Hook]) -> Float[Tensor, "row read"]:
        if self.vocab is not None:
            return next_token_logits(
                self.model, self.tokens, vocab=self.vocab, hooks=hooks, budget=self.budget
            )
        parts = answer_logprobs(self.model, self.tokens, hooks=hooks, budget=self.budget)
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def cells(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    selections: Sequence[Selection] = ("all",),
    *,
    vocab: Sequence[int] | None = None,
    budget: int | None = None,
) -> Shared | Plain:
    """Prepare prompts to be scored under many edits; arguments as for :class:`Shared`.

    A model that cannot be resumed runs whole passes, which is said once.
    """
    if resumes(model):
        return Shared(model, tokens, layers, selections, vocab=vocab, budget=budget)
    if model not in _said:
        _said[model] = True
        warnings.warn(
            f"{model.cfg.model_name!r} ({type(model).__name__}) cannot be resumed in the middle of "
            "a forward pass, so every cell runs whole passes and takes several times as long; load "
            "the model as a TransformerBridge, with no hooks on it, if you can.",
            stacklevel=2,
        )
    return Plain(model, tokens, selections, vocab, budget)


SELECTIONS_TRIED: tuple[Selection, ...] = ("all", "post-instruction")
_said: WeakKeyDictionary[HookedModel, bool] = WeakKeyDictionary()
_resumes: WeakKeyDictionary[HookedModel, bool] = WeakKeyDictionary()


def mixes(model: HookedModel, hooks: Hooks) -> bool:
    """Whether prompts of several lengths can be decoded together under these hooks."""
    own = () if callable(hooks) else hooks
    behind = any(behind_blocks(name) for name, _ in own)
    return not behind and has_cache(model) and resumes(model)


def resumes(model: HookedModel) -> bool:
    """Whether forward passes can begin above blocks and behind tokens; tried once.

    They do not while hooks are installed: those expect whole passes.
    """
    if is_hooked(model):
        return False
    if model not in _resumes:
        _resumes[model] = is_bridge(model) and _agrees(model)
    return _resumes[model]


def _agrees(model: HookedModel) -> bool:
    """Whether resumed scores are those of whole passes, tried on three short prompts."""
    layer = model.cfg.n_layers // 2
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(model.cfg.d_vocab, (3, 16), generator=drawn)
    ids[1:, :5] = ids[0, :5]
    rows = tuple(tuple(row[: 14 + n].tolist()) for n, row in enumerate(ids))
    tokens = Tokens(rows, (12, 12, 12), 2)
    delta = torch.randn(model.cfg.d_model, generator=drawn)
    try:
        for selection in SELECTIONS_TRIED:
            shared = Shared(model, tokens, [layer], [selection])
            norm = shared.runs[0].x[layer].float().norm(dim=-1).mean().cpu()
            points = ((layer, "hook_resid_pre"),)
            edit = Edit([[Operation("add", delta / delta.norm() * norm, points, selection)]])
            found = shared.steered(edit)
            expected = Plain(model, tokens, [selection]).steered(edit)
            tolerance = max(1e-3, 16 * torch.finfo(shared.runs[0].x[layer].dtype).eps)
            if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
                return False
    except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError):
        return False  # an architecture that is built otherwise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise too_large(f"a prompt of {ids.shape[1]} tokens") from error
        if any(word in str(error).lower() for word in ("device", "cuda")):
            raise
        return False
    return True
