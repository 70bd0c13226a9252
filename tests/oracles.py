"""What rolelens has to agree with: plain Hugging Face models and plain PyTorch hooks.

Nothing here imports rolelens or TransformerLens. Every prompt runs alone, without padding.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt in the tokenizer's own chat template."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )


def blocks(model: Any) -> Any:
    """The list of blocks."""
    if hasattr(model, "backbone"):  # Mamba
        return model.backbone.layers
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def hidden(model: Any, ids: Sequence[int]) -> Tensor:
    """Residual stream entering every block: ``[layer, token, d_model]``."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.cat(states[:-1])


def mean_difference(model: Any, tokenizer: Any, role: list[str], base: list[str], n: int) -> Tensor:
    """Difference-in-means at the last ``n`` tokens, in float64: ``[layer, position, d_model]``."""

    def mean(prompts: list[str]) -> Tensor:
        streams = [hidden(model, chat_ids(tokenizer, p))[:, -n:].double() for p in prompts]
        return torch.stack(streams).mean(dim=0)

    return mean(role) - mean(base)


def logits(model: Any, ids: Sequence[int]) -> Tensor:
    """Logits at every token of one prompt."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def mean_jacobian(model: Any, ids: Sequence[int], layer: int, at: Sequence[int]) -> Tensor:
    """J-lens: of what leaves the last block by what enters another, ``[d_model, d_model]``.

    Summed over target tokens and a mean over source tokens, both of ``at``.
    """
    kept: dict[str, Tensor] = {}

    def enter(x: Tensor) -> Tensor:
        kept["source"] = x.detach().requires_grad_()
        return kept["source"]

    def leave(x: Tensor) -> Tensor:
        kept["target"] = x
        return x

    last = blocks(model)[-1].register_forward_hook(_on_first(leave))
    with _changed(model, layer, enter):
        model(torch.tensor([ids]))
    last.remove()
    wanted = kept["target"][0, list(at)].sum(dim=0)
    rows = [torch.autograd.grad(y, kept["source"], retain_graph=True)[0] for y in wanted]
    return torch.stack([row[0, list(at)].mean(dim=0) for row in rows])


def _on_first(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A forward hook that changes the output, or the first output."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


def _on_input(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    return hook


@contextmanager
def _changed(model: Any, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what enters a block."""
    hook = _on_input(change)
    handle = blocks(model)[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def added(
    model: Any, layer: int, delta: Tensor, where: slice | list[int] = slice(None)
) -> Iterator[None]:
    """Add ``delta`` to what enters a block, at some tokens."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, where] += delta
        return x

    with _changed(model, layer, change):
        yield


@contextmanager
def replaced(model: Any, layer: int, vector: Tensor, where: list[int]) -> Iterator[None]:
    """Put ``vector``, with the norm of what stands there, in place of what enters a block."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        for position in where:
            x[:, position] = vector / vector.norm() * x[:, position].norm(dim=-1, keepdim=True)
        return x

    with _changed(model, layer, change):
        yield


@contextmanager
def ablated(
    model: Any,
    vector: Tensor,
    where: slice | list[int] = slice(None),
    layers: Sequence[int] | None = None,
    share: float = 1.0,
) -> Iterator[None]:
    """Remove a direction from block inputs and from what attention and MLP add to the stream."""
    unit = vector / vector.norm()

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, where] -= share * (x[:, where] @ unit)[..., None] * unit
        return x

    handles = []
    for number, block in enumerate(blocks(model)):
        if layers is not None and number not in layers:
            continue
        handles.append(block.register_forward_pre_hook(_on_input(change), with_kwargs=True))
        if hasattr(block, "post_feedforward_layernorm"):  # Gemma 2 and 3: norms after the branches
            branches = [block.post_attention_layernorm, block.post_feedforward_layernorm]
        else:
            mlp = block.mlp if hasattr(block, "mlp") else block.feed_forward  # Llama 4
            branches = [block.attn if hasattr(block, "attn") else block.self_attn, mlp]
        handles += [branch.register_forward_hook(_on_first(change)) for branch in branches]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entering(
    model: Any, layer: int, change: Callable[[Tensor], Tensor], where: slice | list[int]
) -> Iterator[None]:
    """Change what enters a block, a token at a time, at some tokens of a whole pass."""

    def each(x: Tensor) -> Tensor:
        x = x.clone()
        chosen = range(x.shape[1])[where] if isinstance(where, slice) else where
        for position in chosen:
            x[0, position] = change(x[0, position])
        return x

    with _changed(model, layer, each):
        yield


def rescaled(delta: Tensor) -> Callable[[Tensor], Tensor]:
    """Add to one token, and give it its norm again."""
    return lambda x: (x + delta) / (x + delta).norm() * x.norm()


def within(vector: Tensor, low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Take off one token what its projection has beyond one bound or the other."""
    unit = vector / vector.norm()

    def change(x: Tensor) -> Tensor:
        x = x - torch.relu(x @ unit - high) * unit
        return x + torch.relu(low - x @ unit) * unit

    return change


def turned(
    first: Tensor, second: Tensor, degrees: float, *, absolute: bool, adaptive: bool
) -> Callable[[Tensor], Tensor]:
    """Turn one token by a matrix that turns the plane and nothing else."""
    basis = torch.linalg.qr(torch.stack([first, second], dim=1).double())[0]
    basis = basis * (basis * torch.stack([first, second], dim=1)).sum(dim=0).sign()

    def change(x: Tensor) -> Tensor:
        if adaptive and x @ first <= 0:
            return x
        a, b = (x.double() @ basis).tolist()
        angle = math.radians(degrees) - (math.atan2(b, a) if absolute else 0.0)
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        ).double()
        rotation = torch.eye(len(x)).double() + basis @ (turn - torch.eye(2).double()) @ basis.T
        return (rotation @ x.double()).float()

    return change


def greedy(model: Any, ids: Sequence[int], steps: int) -> list[int]:
    """Greedy decoding without a cache."""
    out = list(ids)
    for _ in range(steps):
        out.append(int(logits(model, out)[-1].argmax()))
    return out[len(ids) :]


def option_logprob(model: Any, ids: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Log-probability of each answer token after a prompt."""
    shares = logits(model, [*ids, *answer]).log_softmax(dim=-1)
    return torch.stack([shares[len(ids) - 1 + k, token] for k, token in enumerate(answer)])


def post_block_inputs(model: Any, ids: Sequence[int]) -> list[Tensor]:
    """What enters every block after hooks, and what leaves the last one."""
    seen: list[Tensor] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach()[0])

    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks(model)]
    try:
        logits(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of what is expected."""
    return float((found - expected).norm() / expected.norm())


def site_states(model: Any, ids: Sequence[int], site: str) -> Tensor:
    """What attention adds to the stream, or what the MLP's last matrix reads: [layer, token, d]."""
    found: list[Tensor] = []
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for block in blocks(model):
            if site == "mlp_post":
                mlp = block.mlp
                module = getattr(
                    mlp, "down_proj", getattr(mlp, "c_proj", getattr(mlp, "fc2", None))
                )
                handle = module.register_forward_pre_hook(lambda m, args: found.append(args[0][0]))
            else:
                normed = len([n for n, _ in block.named_children() if "feedforward" in n]) > 0
                module = (
                    block.post_attention_layernorm
                    if normed
                    else (block.attn if hasattr(block, "attn") else block.self_attn)
                )
                handle = module.register_forward_hook(
                    lambda m, args, out: found.append(
                        (out[0] if isinstance(out, tuple) else out)[0]
                    )
                )
            stack.callback(handle.remove)
        model(torch.tensor([ids]))
    return torch.stack(found)


@contextmanager
def mlp_added(model: Any, layer: int, delta: Tensor) -> Iterator[None]:
    """Add a vector to what the last matrix of one MLP reads."""
    mlp = blocks(model)[layer].mlp
    module = getattr(mlp, "down_proj", getattr(mlp, "c_proj", getattr(mlp, "fc2", None)))
    handle = module.register_forward_pre_hook(lambda m, args: (args[0] + delta,))
    try:
        yield
    finally:
        handle.remove()
