"""Weight updates as activation shifts (2603.00425), and a trained reference for steering."""

from rolelens.updates.adapter import Adapter, correct_logprob, train_adapter
from rolelens.updates.fusion import Fusion, fusion_bound, overlap
from rolelens.updates.weights import baked_in, first_order_shift

__all__ = [
    "Adapter",
    "Fusion",
    "baked_in",
    "correct_logprob",
    "first_order_shift",
    "fusion_bound",
    "overlap",
    "train_adapter",
]
