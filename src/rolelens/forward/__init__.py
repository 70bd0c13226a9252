"""Batched forward passes through a TransformerLens model, with hooks.

The only room that knows architectures. Everything that runs a model goes through here:
extraction stops at the last layer it needs, scoring unembeds only what it reads, and every
forward publishes which token of the prompt stands where, so that hooks can select positions.
"""

from rolelens.forward.backward import gradients
from rolelens.forward.baking import baked
from rolelens.forward.decoding import Pick, decode
from rolelens.forward.edits import Edit
from rolelens.forward.flops import Operations, count_operations
from rolelens.forward.layout import Layout
from rolelens.forward.memory import (
    batch_bytes,
    batched,
    choose_token_budget,
    chosen_token_budget,
    devices,
    generated_budget,
    is_out_of_memory,
    kept_bytes,
    running_out,
    shrink,
    token_budget,
    too_large,
)
from rolelens.forward.models import (
    Hook,
    HookedModel,
    HookFn,
    content,
    end_ids,
    fingerprint,
    is_centred,
    is_offloaded,
    release_memory,
)
from rolelens.forward.native import choose_attention
from rolelens.forward.operations import ABLATED, SITES, Kind, Operation, Point
from rolelens.forward.passes import (
    Hooks,
    Regrouped,
    RowHooks,
    answer_logprobs,
    check_effect,
    foreign_hooks,
    gated,
    install,
    installed,
    next_token_logits,
    probe,
    told,
    unembed,
)
from rolelens.forward.plain import Plain, cells, mixes, resumes
from rolelens.forward.points import graph, point_gradients, point_states
from rolelens.forward.selection import (
    Condition,
    Gated,
    Named,
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
from rolelens.forward.tangents import transported
from rolelens.forward.tokens import (
    Batch,
    Tokens,
    batches,
    common_prefix,
    groups,
)

__all__ = [
    "ABLATED",
    "SITES",
    "Batch",
    "Condition",
    "Edit",
    "Gated",
    "Hook",
    "HookFn",
    "HookedModel",
    "Hooks",
    "Kind",
    "Layout",
    "Named",
    "Operation",
    "Operations",
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
    "batch_bytes",
    "batched",
    "batches",
    "cells",
    "check_effect",
    "check_positions",
    "checked_selection",
    "choose_attention",
    "choose_token_budget",
    "chosen_token_budget",
    "common_prefix",
    "content",
    "count_operations",
    "decode",
    "devices",
    "end_ids",
    "fingerprint",
    "foreign_hooks",
    "gated",
    "generated_budget",
    "gradients",
    "graph",
    "groups",
    "install",
    "installed",
    "is_centred",
    "is_offloaded",
    "is_out_of_memory",
    "kept_bytes",
    "mixes",
    "next_token_logits",
    "point_gradients",
    "point_states",
    "probe",
    "release_memory",
    "residual_stream",
    "resumes",
    "running",
    "running_out",
    "selected",
    "shrink",
    "token_budget",
    "token_states",
    "told",
    "too_large",
    "transported",
    "unembed",
]
