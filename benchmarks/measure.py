"""How benchmarks measure and print: a clock, a count of operations, a table."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[float, T]:
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


def flops(run: Callable[[], T]) -> tuple[float, T]:
    """Floating-point operations of matrix products, and what was made of them."""
    with _Counter() as counter:
        made = run()
    return float(counter.total), made


def table(frame: pd.DataFrame, digits: int = 2) -> None:
    """Print a frame as Markdown."""
    print("| " + " | ".join(map(str, frame.columns)) + " |\n" + "|---" * frame.shape[1] + "|")
    for row in frame.itertuples(index=False):
        cells = [f"{x:.{digits}f}" if isinstance(x, float) else str(x) for x in row]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)
