"""Random models of a few thousand parameters, one of every architecture in the test matrix.

Nothing here imports rolelens: the oracles are built from the same models.
"""

import copy
import tempfile
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}<|turn|>system\n{{ messages[0]['content'] }}<|end|>\n"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
PROMPTS = [
    "Prove it.",
    "What is the weather like over there today?",
    "Explain how a river finds the sea.",
    "Compare two ways to cook rice, please, and say which is quicker.",
    "How do I fold a paper boat?",
    "Describe a lighthouse in the fog.",
]
OTHERS = ["Sing me a song.", "Name five birds of the marsh.", "Who was here first?"]
LETTERS = " ".join("ABCDEFGHIJ")

_SHARED = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
)
# Windows shorter than the prompts, so that sliding attention matters.
_CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": _SHARED,
    "Mistral": _SHARED | {"sliding_window": 8},
    "Qwen2": _SHARED,
    "Qwen3": _SHARED | {"head_dim": 8},
    "Gemma2": _SHARED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Gemma3": _SHARED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "GPT2": dict(
        vocab_size=300,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    ),
    "Phi": {k: v for k, v in _SHARED.items() if k != "num_key_value_heads"},
}
_EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=24)
FURTHER: dict[str, dict[str, Any]] = {
    "Olmo2": _SHARED,
    "Phi3": _SHARED | {"sliding_window": 8, "original_max_position_embeddings": 128},
    "Mixtral": _SHARED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "Qwen3Moe": _SHARED | _EXPERTS | {"num_experts": 4, "head_dim": 8},
    "GptOss": _SHARED
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8},
    "Llama4": _SHARED
    | {
        "num_local_experts": 2,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
        "interleave_moe_layer_step": 2,
    },
    "DeepseekV3": _SHARED
    | _EXPERTS
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "Granite": _SHARED | {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "Cohere2": _SHARED | {"head_dim": 8, "sliding_window": 8, "logit_scale": 0.25},
    "Mamba": dict(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=4,
        state_size=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    ),
    "Mamba2": dict(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=4,
        state_size=4,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    ),
    "Qwen3Next": _SHARED
    | _EXPERTS
    | {
        "num_experts": 4,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 24,
    },
}
"""Architectures beyond the matrix: right, or refused."""
GEMMA_3N = dict(
    vocab_size=300,
    vocab_size_per_layer_input=300,
    hidden_size=32,
    hidden_size_per_layer_input=8,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=8,
    num_kv_shared_layers=2,
    laurel_rank=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    initializer_range=0.3,
)
"""The text part of Gemma 3n, which is no model alone in TransformerLens."""
_CLASSES = {
    "Llama4": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
}
ARCHITECTURES = tuple(_CONFIGS)
_folders: list[tempfile.TemporaryDirectory] = []


@cache
def _tokenizer() -> Tokenizer:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|eos|>", "<|turn|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([*PROMPTS, *OTHERS, "user assistant system"], trainer)
    return plain


@cache
def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML-like template."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(_tokenizer()),
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|eos|>",
        extra_special_tokens={"turn": "<|turn|>", "end": "<|end|>"},
    )
    wrapped.chat_template = template
    # TransformerLens reads a tokenizer again from where it was read before, so it has to be a file.
    folder = tempfile.TemporaryDirectory(prefix="tokenizer-")
    _folders.append(folder)
    wrapped.save_pretrained(folder.name)
    return AutoTokenizer.from_pretrained(folder.name)


@cache
def reference(architecture: str, n_ctx: int = 128) -> Any:
    """A random Hugging Face model, eager attention, eval mode; never to be changed."""
    default = (f"{architecture}Config", f"{architecture}ForCausalLM")
    config_name, model_name = _CLASSES.get(architecture, default)
    torch.manual_seed(0)
    fields = dict((_CONFIGS | FURTHER)[architecture])
    for name in ("n_positions", "max_position_embeddings"):
        fields |= {name: n_ctx} if name in fields else {}
    config = getattr(transformers, config_name)(**fields)
    config._attn_implementation = "eager"
    config.architectures = [model_name]
    return getattr(transformers, model_name)(config).eval()


def hf_model(architecture: str) -> Any:
    """A copy of the reference that may be wrapped."""
    return copy.deepcopy(reference(architecture))
