"""Where a model runs and how exactly it computes."""

from collections.abc import Mapping
from typing import Any

import torch

from rolelens.errors import InputError

DTYPES = ("float32", "bfloat16", "float16", "float64")
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate works out by itself."""


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device of a name; the GPU by default if there is one.

    Raises:
        InputError: there is none.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(
            f"device is {device!r}; it has to be one such as 'cpu' or 'cuda'."
        ) from error
    if chosen.type == "cuda":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if n == 0:
            raise InputError(f"device is {str(device)!r}, and there is no GPU here; use 'cpu'.")
        if (chosen.index or 0) >= n:
            raise InputError(f"device is {str(device)!r}, and the last GPU here is 'cuda:{n - 1}'.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device is {str(device)!r}, and there is none here; use 'cpu'.")
    return chosen


def checked_map(device_map: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """A device map as accelerate takes it.

    Raises:
        InputError: an unknown name, a device that does not exist, or weights that are left on disk
            or, beside GPUs, on the CPU: these are moved in and out while a block runs, so that
            nothing but the block can read them.
    """
    if isinstance(device_map, str):
        if device_map not in MAPS:
            raise InputError(
                f"device_map is {device_map!r}; use one of {', '.join(map(repr, MAPS))}, or a "
                "mapping of modules to devices."
            )
        return device_map
    if not isinstance(device_map, Mapping) or not device_map:
        raise InputError(
            f"device_map is {device_map!r}; pass {MAPS[0]!r}, or a mapping of modules to devices."
        )
    for module, place in device_map.items():
        if place == "disk":
            raise InputError(
                f"device_map puts {module!r} on disk, from where nothing but its block could read "
                "its weights; keep it on a device, or quantise the model."
            )
        if isinstance(place, bool) or not isinstance(place, int | str | torch.device):
            raise InputError(
                f"device_map puts {module!r} on {place!r}, which is no device; use one such as "
                "'cpu', 'cuda:0' or 0."
            )
        checked_device(f"cuda:{place}" if isinstance(place, int) else place)
    kinds = {"cpu" if str(place) == "cpu" else "other" for place in device_map.values()}
    if len(kinds) > 1:
        raise InputError(
            "device_map puts some modules on the CPU and others not, which would move weights at "
            "each pass; keep all on GPUs or all on the CPU, or quantise the model."
        )
    return dict(device_map)


def check_covers(device_map: Mapping[str, Any], model: Any) -> None:
    """Refuse a device map that says nothing of some weights, which stay on the CPU then.

    Raises:
        InputError: it leaves some out.
    """
    left = [
        name.rpartition(".")[0]
        for name, _ in model.named_parameters()
        if not any(key == "" or f"{name}.".startswith(f"{key}.") for key in device_map)
    ]
    if left:
        several = f" and {len(left) - 1} others" if len(left) > 1 else ""
        raise InputError(
            f"device_map names no device for {left[0]!r}{several}; add them, or use "
            "device_map='auto'."
        )


def checked_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype of a name: float32 on a CPU by default, bfloat16 on a GPU that computes in it.

    Raises:
        InputError: it is none for weights.
    """
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype in DTYPES:
        named: torch.dtype = getattr(torch, str(dtype))
        return named
    if dtype is None and device.type == "cpu":
        return torch.float32
    if dtype not in (None, "auto"):
        raise InputError(
            f"dtype is {dtype!r}; pass a torch dtype, one of {', '.join(map(repr, DTYPES))}, "
            "'auto' or nothing."
        )
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16, and does not only emulate it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        cpu: Any = torch.cpu
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return True
