"""What is known of stock checkpoints: which of their weights write to the residual stream."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rolelens.errors import InputError
from rolelens.lens import Lens


@dataclass(frozen=True)
class Stock:
    """How a stock architecture writes to the residual stream.

    Attributes:
        writers: parameters of a block whose output is added to the stream, and along which axis of
            each the stream lies. A block may lack some, as one without experts does.
        bias: the parameter of a block that is added to the last that it writes, if there is one.
        switch: the field of the configuration that gives it this bias.
        scale: the field of the configuration that multiplies what a block writes.
        refused: why ablation and additions above the embedding cannot be baked.
    """

    writers: Mapping[str, int] = field(default_factory=dict)
    bias: str | None = None
    switch: str | None = None
    scale: str | None = None
    refused: str | None = None


_ATTENTION = {"self_attn.o_proj.weight": 0, "self_attn.o_proj.bias": 0}
_GATED = _ATTENTION | {"mlp.down_proj.weight": 0, "mlp.down_proj.bias": 0}
_NORMED = (
    "a norm follows what its attention and MLPs write, so that no weight before it has the effect"
)
STOCK = {
    "llama": Stock(_GATED, "mlp.down_proj.bias", "mlp_bias"),
    "granite": Stock(_GATED, "mlp.down_proj.bias", "mlp_bias", "residual_multiplier"),
    "mistral": Stock(_GATED),
    "qwen2": Stock(_GATED),
    "qwen3": Stock(_GATED),
    "phi3": Stock(_GATED),
    "cohere2": Stock(_GATED),
    "mixtral": Stock(_ATTENTION | {"mlp.experts.down_proj": 1}),
    "qwen3_moe": Stock(_GATED | {"mlp.experts.down_proj": 1}),
    "deepseek_v3": Stock(
        _GATED | {"mlp.experts.down_proj": 1, "mlp.shared_experts.down_proj.weight": 0}
    ),
    "llama4_text": Stock(
        _ATTENTION
        | {
            "feed_forward.down_proj.weight": 0,
            "feed_forward.experts.down_proj": 2,
            "feed_forward.shared_expert.down_proj.weight": 0,
        }
    ),
    # The weights of the experts that are chosen sum to 1, so that what all of them add is added.
    "gpt_oss": Stock(
        _ATTENTION | {"mlp.experts.down_proj": 2, "mlp.experts.down_proj_bias": 1},
        "mlp.experts.down_proj_bias",
    ),
    "gpt2": Stock(
        {
            "attn.c_proj.weight": 1,
            "attn.c_proj.bias": 0,
            "mlp.c_proj.weight": 1,
            "mlp.c_proj.bias": 0,
        },
        "mlp.c_proj.bias",
    ),
    "phi": Stock(
        {
            "self_attn.dense.weight": 0,
            "self_attn.dense.bias": 0,
            "mlp.fc2.weight": 0,
            "mlp.fc2.bias": 0,
        },
        "mlp.fc2.bias",
    ),
    "gemma2": Stock(refused=_NORMED),
    "gemma3_text": Stock(refused=_NORMED),
    "olmo2": Stock(refused=_NORMED),
}
"""The architectures that are known, by the ``model_type`` of their configuration."""


def stock_weights(lens: Lens) -> tuple[Any, dict[str, Tensor]]:
    """The configuration and the weights of the transformers model that a lens wraps.

    Raises:
        InputError: it wraps none, or its weights were folded or centred.
    """
    bridge: Any = lens.model
    original = getattr(bridge, "original_model", None)
    if original is None or getattr(bridge, "compatibility_mode", False):
        raise InputError(
            f"the weights of {lens.name} are not those of a checkpoint (a HookedTransformer, or a "
            "bridge in compatibility mode); load the model with rl.load(name)."
        )
    from transformers import AutoModelForCausalLM

    stock: Any = AutoModelForCausalLM
    # A bridge names what it wraps anew, and some of it twice.
    held = {k.replace("._original_component", ""): v for k, v in original.state_dict().items()}
    with torch.device("meta"):
        names = stock.from_config(original.config).state_dict()
    return original.config, {name: held[name] for name in names}


def stock_places(lens: Lens) -> tuple[str, list[str]]:
    """Where a checkpoint has its blocks, and its embeddings of tokens and of places.

    Returns:
        The name of the list of blocks, and those of the embeddings' weights.

    Raises:
        InputError: the lens wraps no transformers model.
    """
    bridge: Any = lens.model
    if not hasattr(bridge, "adapter"):
        raise InputError(
            f"{lens.name} is a HookedTransformer, which does not say where its checkpoint has its "
            "blocks; load the model with rl.load(name)."
        )
    parts = bridge.adapter.component_mapping
    embeddings = [parts[one].name for one in ("embed", "pos_embed") if one in parts]
    return parts["blocks"].name, [f"{name}.weight" for name in embeddings]


def stock_tokenizer(lens: Lens) -> Any:
    """The tokenizer of the checkpoint that a lens was loaded from.

    TransformerLens has every tokenizer put a beginning-of-sequence token before a text, whatever
    the model's own does. Where that cannot be read again, as of a model in memory, it is
    TransformerLens' one.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(lens.tokenizer.name_or_path)
    except (OSError, ValueError):
        return copy.deepcopy(lens.tokenizer)
