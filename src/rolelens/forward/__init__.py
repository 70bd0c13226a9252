"""Batched forward passes through a TransformerLens model, with hooks.

The only room that knows architectures. Everything that runs a model goes through here:
extraction stops at the last layer it needs, scoring unembeds only what it reads, and every
forward publishes which token of the prompt stands where, so that hooks can select positions.
"""

from rolelens.forward.models import (
    Hook,
    HookedModel,
    HookFn,
    end_ids,
    fingerprint,
    is_centred,
    steady_memory,
)
from rolelens.forward.passes import (
    Hooks,
    RowHooks,
    Running,
    answer_logprobs,
    check_positions,
    decode,
    next_token_logits,
    probe,
    residual_stream,
    running,
)
from rolelens.forward.tokens import TOKEN_BUDGET, Batch, Tokens, batches

__all__ = [
    "TOKEN_BUDGET",
    "Batch",
    "Hook",
    "HookFn",
    "HookedModel",
    "Hooks",
    "RowHooks",
    "Running",
    "Tokens",
    "answer_logprobs",
    "batches",
    "check_positions",
    "decode",
    "end_ids",
    "fingerprint",
    "is_centred",
    "next_token_logits",
    "probe",
    "residual_stream",
    "running",
    "steady_memory",
]
