"""Batched forward passes through a TransformerLens model, with hooks.

The only room that knows architectures. Everything that runs a model goes through here:
extraction stops at the last layer it needs, scoring unembeds only what it reads, and every
forward publishes which token of the prompt stands where, so that hooks can select positions.
"""

from rolelens.forward.backward import gradients
from rolelens.forward.baking import baked
from rolelens.forward.decoding import Pick, decode
from rolelens.forward.edits import ABLATED, SITES, Edit, Kind, Operation, Point
from rolelens.forward.models import (
    Hook,
    HookedModel,
    HookFn,
    content,
    end_ids,
    fingerprint,
    is_centred,
    release_memory,
)
from rolelens.forward.passes import (
    Hooks,
    Regrouped,
    RowHooks,
    answer_logprobs,
    check_effect,
    foreign_hooks,
    install,
    installed,
    next_token_logits,
    probe,
    told,
    unembed,
)
from rolelens.forward.plain import Plain, cells, mixes
from rolelens.forward.points import graph, point_gradients, point_states
from rolelens.forward.selection import (
    Running,
    Selection,
    checked_selection,
    running,
    selected,
)
from rolelens.forward.shared import Shared
from rolelens.forward.streams import (
    Pooled,
    answer_states,
    check_positions,
    residual_stream,
    token_states,
)
from rolelens.forward.tokens import (
    GENERATED_BUDGET,
    TOKEN_BUDGET,
    Batch,
    Tokens,
    batches,
    common_prefix,
    groups,
)

__all__ = [
    "ABLATED",
    "GENERATED_BUDGET",
    "SITES",
    "TOKEN_BUDGET",
    "Batch",
    "Edit",
    "Hook",
    "HookFn",
    "HookedModel",
    "Hooks",
    "Kind",
    "Operation",
    "Pick",
    "Plain",
    "Point",
    "Pooled",
    "Regrouped",
    "RowHooks",
    "Running",
    "Selection",
    "Shared",
    "Tokens",
    "answer_logprobs",
    "answer_states",
    "baked",
    "batches",
    "cells",
    "check_effect",
    "check_positions",
    "checked_selection",
    "common_prefix",
    "content",
    "decode",
    "end_ids",
    "fingerprint",
    "foreign_hooks",
    "gradients",
    "graph",
    "groups",
    "install",
    "installed",
    "is_centred",
    "mixes",
    "next_token_logits",
    "point_gradients",
    "point_states",
    "probe",
    "release_memory",
    "residual_stream",
    "running",
    "selected",
    "token_states",
    "told",
    "unembed",
]
