"""Models of a hub: which are here, and why one cannot be had."""

from collections.abc import Iterator
from typing import Any

from rolelens.forward import is_out_of_memory


def cached_models() -> dict[str, str]:
    """Hub models in the local cache, and where each is."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {r.repo_id: str(r.repo_path) for r in sorted(repos, key=str) if r.repo_type == "model"}


def commit(hf_model: Any) -> str | None:
    """The commit of the hub that a transformers model was read from, if any."""
    found = getattr(hf_model.config, "_commit_hash", None)
    return str(found) if found else None


def explanation(error: BaseException, name: str, revision: str | None, where: str) -> str | None:
    """Why a model could not be loaded, and what to do, in one sentence; None: nothing is known.

    Args:
        error: what was raised, with its causes.
        name: the model.
        revision: of the hub.
        where: the devices that it was to be loaded on.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return (
                f"{name!r} is gated: accept its terms on its page of the hub, then log in with "
                "'hf auth login' or set HF_TOKEN."
            )
        if isinstance(cause, RevisionNotFoundError):
            return (
                f"revision is {revision!r}, and {name!r} has no such branch, tag or commit; leave "
                "it out for the newest."
            )
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return (
                f"the hub cannot be reached, and {name!r} is not in its local cache; check the "
                "network and HF_HUB_OFFLINE, or name a local folder, a .gguf file or 'smollm2' "
                "(embedded)."
            )
        if is_out_of_memory(cause):
            return (
                f"{name!r} does not fit into the memory of {where}; load it in a smaller dtype, "
                "over several devices (device_map='auto') or with quantization_config."
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
