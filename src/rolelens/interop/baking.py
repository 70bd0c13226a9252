"""Steering baked into the weights of an ordinary checkpoint, which transformers loads by itself.

Ablation of a direction at every layer and token equals weights whose outputs are orthogonal to it
(Arditi et al., 2406.11717, section 4.1): the embedding and every matrix that writes to the residual
stream. Addition before layer l equals a bias on what the block before it writes last.
"""

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError, writing
from rolelens.hooks import Steering
from rolelens.interop.additions import check_whole
from rolelens.interop.stock import STOCK, Stock, stock_places, stock_tokenizer, stock_weights
from rolelens.lens import Lens

PROBES = ("What is a river?", "Name three birds, please.")
"""What the hooks and the baked weights are compared on."""
TOLERANCE = 1e-3
"""Largest difference of logits between hooks and baked weights, in float32 and above."""
ROUNDED = 0.1
"""The same below float32, as a share of the largest logit: a guard against errors, not rounding."""


@dataclass(frozen=True)
class Plan:
    """What is done to the weights.

    Attributes:
        removed: orthonormal directions that no weight writes any more.
        added: what is added to what enters each layer.
    """

    removed: Float[Tensor, "direction d_model"]
    added: Mapping[int, Float[Tensor, " d_model"]]


def bake(lens: Lens, steering: Steering, folder: str | Path) -> Path:
    """Write a checkpoint that does by itself what a steering does to a model.

    It is an ordinary one: ``transformers`` loads it without rolelens. Before it is written, its
    logits are compared with those of the model under hooks. Tied embeddings are untied, as the
    unembedding would change with the embedding else. A second copy of the model is held in memory.

    Args:
        lens: the model, as it was loaded: a bridge whose weights were not folded or centred.
        steering: ablations (whole, in every layer) and additions, on every token.
        folder: where to write; it has to be new or empty.

    Returns:
        The folder, with weights, configuration, tokenizer, a card and ``rolelens.json``, which says
        what was baked.

    Raises:
        InputError: the model's weights are not those of a stock checkpoint, its architecture is
            unknown or cannot hold the steering, or the folder is not empty.
    """
    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target} is there already and not empty; name a new folder.")
    steering.check(lens.source, lens.n_layers)
    config, state = stock_weights(lens)
    if config.model_type not in STOCK:
        raise InputError(
            f"it is not known how a {config.model_type!r} model writes to its residual stream, so "
            f"that nothing is baked into it; known are {', '.join(STOCK)}."
        )
    stock, plan = STOCK[config.model_type], plan_of(steering, lens.n_layers)
    _check_held(config.model_type, stock, plan)
    changed = _changed(lens, config, state, stock, plan)
    model = _model(lens, config, changed, plan)
    difference = _compare(lens, model, steering)
    scratch_of = partial(tempfile.TemporaryDirectory, dir=target.parent, prefix=f".{target.name}-")
    # A folder beside it is on the same disk, so that the result appears whole or not at all.
    with writing(target), scratch_of() as scratch:
        whole = Path(scratch) / "checkpoint"
        model.save_pretrained(whole)
        tokenizer = stock_tokenizer(lens)
        tokenizer.chat_template = lens.chat.template
        tokenizer.save_pretrained(whole)
        record = {
            "model": lens.source.model,
            "origin": lens.source.origin,
            "steering": steering.to_dict(),
            "largest_logit_difference": difference,
        }
        (whole / "rolelens.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        (whole / "README.md").write_text(_card(lens, steering, difference), encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        whole.replace(target)
    return target


def plan_of(steering: Steering, n_layers: int) -> Plan:
    """What has to be done to weights to have the effect of a steering.

    Raises:
        InputError: no change of weights has it.
    """
    what = "a checkpoint"
    removed: list[Tensor] = []
    added: dict[int, Tensor] = {}
    if steering.is_zero:
        raise InputError(f"the steering does nothing ({steering}), so there is nothing to bake.")
    for step in steering.steps:
        if step.is_zero:
            continue
        check_whole(step, what)
        vector = step.vector.detach().cpu().double()
        if step.kind == "ablate":
            if step.alpha != 1 or step.layers != tuple(range(n_layers)):
                raise InputError(
                    "weights can only ablate a direction wholly and in every layer, and this "
                    f"steering has {step}; make it with rl.ablate(d, lens)."
                )
            for other in removed:
                if not 1e-5 < float((vector @ other).abs()) < 1 - 1e-5:
                    continue
                raise InputError(
                    "hooks ablate several directions one after the other, which equals weights only"
                    f" where these are orthogonal, and {step.direction.name!r} has a cosine of "
                    f"{float(vector @ other):.3f} with another; take d.project_out(e)."
                )
            # What was added before is ablated with the rest.
            added = {layer: one - (one @ vector) * vector for layer, one in added.items()}
            removed.append(vector)
        elif step.kind == "add":
            for other in removed:
                if float((vector @ other).abs()) > 1e-5 * float(vector.norm()):
                    raise InputError(
                        f"{step.direction.name!r} is added after a direction was ablated that it "
                        "is not orthogonal to, which no weights do; add it before, or take "
                        "d.project_out(e)."
                    )
            for layer in step.layers:
                added[layer] = added.get(layer, torch.zeros_like(vector)) + vector
        else:
            raise InputError(f"weights cannot {step.kind} a direction, as in {step}.")
    width = steering.steps[0].direction.d_model
    basis = torch.stack(removed) if removed else torch.zeros(0, width, dtype=torch.float64)
    return Plan(basis, added)


def _check_held(model_type: str, stock: Stock, plan: Plan) -> None:
    """Refuse what an architecture cannot hold."""
    above = [layer for layer in plan.added if layer > 0]
    if stock.refused and (above or len(plan.removed)):
        raise InputError(
            f"a {model_type!r} checkpoint holds additions in layer 0 alone: {stock.refused}; run "
            "the steering in rolelens."
        )
    if above and stock.bias is None:
        raise InputError(
            f"a stock {model_type!r} model has no bias on what its blocks write, so that nothing "
            f"can be added in layer {above[0]}; run the steering in rolelens."
        )


def _changed(
    lens: Lens, config: Any, state: Mapping[str, Tensor], stock: Stock, plan: Plan
) -> dict[str, Tensor]:
    """The weights with a plan carried out, each in the dtype that it had."""
    original: Any = lens.model
    original = original.original_model
    new = dict(state)
    blocks, embeddings = stock_places(lens)
    for layer in range(lens.n_layers):
        for writer, axis in stock.writers.items():
            name = f"{blocks}.{layer}.{writer}"
            if name in new:
                new[name] = _without(new[name], axis, plan.removed)
    for name in embeddings:
        new[name] = _without(new[name], 1, plan.removed)
    for layer, vector in plan.added.items():
        if layer == 0:
            name, scale = embeddings[0], _embedding_scale(original, config)
        else:
            name = f"{blocks}.{layer - 1}.{stock.bias}"
            scale = float(getattr(config, stock.scale)) if stock.scale else 1.0
        like = new.get(name, new[embeddings[0]][0])
        before = new.get(name, torch.zeros_like(like))
        new[name] = (before.double() + (vector / scale).to(before.device)).to(before.dtype)
    return new


def _embedding_scale(original: Any, config: Any) -> float:
    """What a model multiplies its embedding with."""
    scale = getattr(original.get_input_embeddings(), "scalar_embed_scale", None)
    return float(scale or getattr(config, "embedding_multiplier", None) or 1.0)


def _without(weight: Tensor, axis: int, removed: Float[Tensor, "direction d_model"]) -> Tensor:
    """A weight whose output has no component along some orthonormal directions."""
    moved = weight.detach().double().movedim(axis, -1)
    for unit in removed.to(moved.device):
        moved = moved - (moved @ unit)[..., None] * unit
    return moved.movedim(-1, axis).to(weight.dtype).contiguous()


def _model(lens: Lens, config: Any, state: dict[str, Tensor], plan: Plan) -> Any:
    """A transformers model of its own with these weights."""
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM
    original: Any = lens.model
    stock = STOCK[config.model_type]
    config = copy.deepcopy(config)
    config.architectures = [type(original.original_model).__name__]
    if len(plan.removed) or 0 in plan.added:  # the embedding changes, and the unembedding may not
        config.tie_word_embeddings = False
    if stock.switch and any(name.endswith(str(stock.bias)) for name in state):
        setattr(config, stock.switch, True)
    model = made.from_config(config, dtype=lens.dtype)
    model = model.to(next(iter(state.values())).device).eval()
    for name, weight in model.state_dict().items():
        # Biases that came with the one that was needed.
        if name not in state and name.endswith(".bias"):
            state[name] = torch.zeros_like(weight)
    model.load_state_dict(state)
    model.generation_config = copy.deepcopy(original.original_model.generation_config)
    return model


def _compare(lens: Lens, model: Any, steering: Steering) -> float:
    """The largest difference of logits between the model under hooks and the baked one.

    Raises:
        InputError: it is larger than rounding explains.
    """
    hooked: Any = lens.model
    largest = limit = 0.0
    for ids in lens.encode(list(PROBES)).ids:
        tokens = torch.tensor([ids], device=hooked.cfg.device)
        with torch.inference_mode(), lens.steered(steering):
            expected = hooked(tokens, return_type="logits").float()
        with torch.inference_mode():
            found = model(tokens).logits.float()
        largest = max(largest, float((found - expected).abs().max()))
        exact = lens.dtype in (torch.float32, torch.float64)
        limit = TOLERANCE if exact else max(limit, ROUNDED * float(expected.abs().max()))
    if not largest <= limit:
        raise InputError(
            f"the baked weights of {lens.name} differ from hooks by {largest:.2g} in the logits, "
            f"where at most {limit:.2g} was expected; nothing is written. Run it in rolelens."
        )
    return largest


def _card(lens: Lens, steering: Steering, difference: float) -> str:
    """What the folder says of itself."""
    steps = "\n".join(f"- {step}" for step in steering.steps if not step.is_zero)
    base = f"base_model: {lens.source.model}\n" if "/" in lens.source.model else ""
    return f"""---
library_name: transformers
{base}tags: [steering, rolelens]
---
# {lens.source.model}, steered

The weights of {lens.source.model} ({lens.source.origin}) with this baked in, at every token:

{steps}

It loads with plain `transformers` (`AutoModelForCausalLM.from_pretrained`). On {len(PROBES)}
prompts its logits differ from those of the model under hooks by at most {difference:.2g}
({lens.source.dtype}). `rolelens.json` has the directions' names, norms and hashes. What the change
does beyond those prompts was not measured here.
"""
