"""How benchmarks measure: a clock, and a count of operations."""

import time
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


class _Counter(TorchDispatchMode):
    """Counts as ``FlopCounterMode`` does, which cannot be used around ``torch.autograd.grad``."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of matrix products."""
    with _Counter() as counter:
        run()
    return float(counter.total)
