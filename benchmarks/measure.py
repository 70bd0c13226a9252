"""How benchmarks measure: a clock, and a count of operations."""

import time
from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
