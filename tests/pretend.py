"""Tensors that hold CPU data and claim another device, which refuse what CUDA would.

Nothing here imports rolelens. Inside of :func:`pretending`, models that :func:`move` put on a
device run as they would there, but for speed. The devices are called ``cpu:1`` and ``cpu:2``, as
PyTorch lets tensors claim no kind of device that it was not built for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class Elsewhere(Tensor):
    """CPU data that claims a device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: Any) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=torch.device(device)
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {}, None)


class _Counting(TorchDispatchMode):
    """Catches calls that make tensors, and counts what moves between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {}, self.copies)


class _Making(TorchFunctionMode):
    """Lets ``torch.tensor`` make tensors elsewhere, which a dispatch mode does not see."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device)


def run(func: Any, args: Any, kwargs: dict[str, Any], copies: list[str] | None) -> Any:
    """One operation, where all of its tensors are in one place."""
    tensors = list(_tensors((*args, *kwargs.values())))
    far = [x for x in tensors if isinstance(x, Elsewhere)]
    wanted = kwargs.get("device")
    wanted = torch.device(wanted) if wanted is not None else None
    if not far and (wanted is None or near(wanted)):
        return func(*args, **kwargs)
    moves = func in (aten._to_copy.default, aten.copy_.default, aten.set_.source_Tensor)
    if not moves:
        _check(func, args, tensors)
    if moves or func is aten._local_scalar_dense.default:
        places = {str(x.device) for x in tensors} | ({str(wanted)} if wanted is not None else set())
        if copies is not None and (len(places) > 1 or not moves):
            copies.append(f"{func} {sorted(places)}")
    device = wanted if wanted is not None else (tensors[0] if moves else far[0]).device
    if "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("cpu")}
    out = func(*_held(args), **{name: _held(value) for name, value in kwargs.items()})
    if near(device):
        return out

    def claimed(x: Any) -> Any:
        if isinstance(x, Tensor):
            known = [one for one in far if one.held is x]
            return known[0] if known else Elsewhere(x, device)
        return type(x)(map(claimed, x)) if isinstance(x, (list, tuple)) else x

    return claimed(out)


def _tensors(x: Any) -> Iterator[Tensor]:
    """What an operation is given: tensors, numbers, and flat lists of these."""
    for part in x:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, (list, tuple)):
            yield from _tensors(part)


def _held(x: Any) -> Any:
    if isinstance(x, Elsewhere):
        return x.held
    return type(x)(map(_held, x)) if isinstance(x, (list, tuple)) else x


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of several devices, as CUDA does."""
    if func in INDEXED:
        here = args[0].device
        for index in args[1]:
            if index is not None and index.device != here and far(index):
                raise RuntimeError(f"indices should be on cpu or on {here}, not on {index.device}")
        tensors = [args[0], *args[2:3]]
    places = {x.device for x in tensors if isinstance(x, Tensor) and (far(x) or x.ndim)}
    if len(places) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(map(str, places)))}! ({func})"
        )


def far(x: Any) -> bool:
    """Whether a tensor claims another device."""
    return isinstance(x, Elsewhere)


def near(device: torch.device) -> bool:
    """Whether a device is the one that is there."""
    return device.type == "cpu" and not device.index


@contextmanager
def pretending() -> Iterator[_Counting]:
    """Let devices be there that are not."""
    with _Making(), _Counting() as counting:
        yield counting


def move(module: torch.nn.Module, device: str) -> None:
    """Put a module on a device, and what it is given."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and not far(tensor):
                    there = Elsewhere(tensor.detach(), device)
                    made = torch.nn.Parameter(there) if store is part._parameters else there
                    store[name] = made  # type: ignore[assignment]


def carry(module: torch.nn.Module, device: str) -> None:
    """Move what a module is given to its device, as accelerate does between devices."""

    def carried(x: Any) -> Any:
        return x.to(device) if isinstance(x, Tensor) else x

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        moved = {
            name: value if name == "past_key_values" else tree_map(carried, value)
            for name, value in kwargs.items()
        }
        return tree_map(carried, args), moved

    module.register_forward_pre_hook(before, with_kwargs=True)
