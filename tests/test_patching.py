"""Patches of parts: against plain Hugging Face hooks, and planted truths."""

import contextlib
from typing import Any

import pytest
import torch

import oracles
import planted
import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens.features import Part, SparseAutoencoder, attribute
from test_features import MARK, OTHER, ROLE, N, bridge, sae  # noqa: F401

TEXTS = ["Explain how a river finds the sea.", "Name five birds of the marsh.", "Prove it."]


def texts() -> rl.Task:
    return rl.load_task([rl.Text(f"t{n}", text) for n, text in enumerate(TEXTS)])


def branch(model: Any, layer: int, kind: str) -> Any:
    """The module whose output, or for a head whose input, is patched."""
    block = oracles.blocks(model)[layer]
    if kind == "head":
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        return getattr(attention, "o_proj", getattr(attention, "c_proj", None)) or attention.dense
    normed = hasattr(block, "post_feedforward_layernorm")
    if kind == "mlp":
        return block.post_feedforward_layernorm if normed else block.mlp
    if normed:
        return block.post_attention_layernorm
    return block.attn if hasattr(block, "attn") else block.self_attn


def states(model: Any, ids: Any, layer: int, kind: str) -> torch.Tensor:
    found = []
    module = branch(model, layer, kind)
    if kind == "head":
        handle = module.register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
    else:
        handle = module.register_forward_hook(
            lambda m, args, out: found.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(handle.remove)
        oracles.logits(model, ids)
    return found[0]


def score(model: Any, ids: Any) -> float:
    shares = oracles.logits(model, ids).log_softmax(dim=-1)
    return float(shares[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean())


def patched(model: Any, ids: Any, part: Part, delta: torch.Tensor) -> float:
    """The score while one branch, or one head, has its steered value."""
    with oracles.added(model, 1, delta):
        new = states(model, ids, part.layer, part.kind)
    module = branch(model, part.layer, part.kind)

    def put(module: Any, args: Any, out: Any) -> Any:
        return (new, *out[1:]) if isinstance(out, tuple) else new

    def put_head(module: Any, args: Any) -> Any:
        width = args[0].shape[-1] // 4
        mine = slice(part.index * width, (part.index + 1) * width)
        x = args[0].clone()
        x[..., mine] = new[..., mine]
        return (x,)

    if part.kind == "head":
        handle = module.register_forward_pre_hook(put_head)
    else:
        handle = module.register_forward_hook(put)
    try:
        return score(model, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2", "Phi"])
def test_patches_are_those_of_plain_hooks(architecture: str) -> None:
    lens = tiny_lens(architecture)
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(1)), layer=1)
    result = attribute(
        lens, rl.add(d, 0.5), texts(), kinds=["attention", "mlp", "head"], top=4, randoms=2
    )
    model = tiny.reference(architecture)
    rows = lens.encode(TEXTS, raw=True).ids
    plain = sum(score(model, ids) for ids in rows) / len(rows)
    with oracles.added(model, 1, 0.5 * d.vector):
        steered = sum(score(model, ids) for ids in rows) / len(rows)
    assert result.effect == pytest.approx(steered - plain, abs=1e-4)
    assert len(result.exact) >= 12
    for part, found in result.exact.items():
        each = [patched(model, ids, part, 0.5 * d.vector) for ids in rows]
        assert found == pytest.approx(sum(each) / len(each) - plain, abs=1e-4), part


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3", "GPT2"])
def test_small_changes_are_predicted(architecture: str) -> None:
    """To first order the screen is exact: the gap falls with the square of the strength."""
    lens = tiny_lens(architecture)
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(1)), layer=1)
    gaps = [
        attribute(lens, rl.add(d, alpha), texts(), top=20, randoms=0).gap for alpha in (0.04, 0.16)
    ]
    assert gaps[0] < gaps[1] / 6


def test_what_blocks_add_and_what_goes_past_them_is_all(llama: rl.Lens) -> None:
    """To first order in each, the last block's input decides what is left."""
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(1)), layer=3)
    result = attribute(llama, rl.add(d, 0.01), texts(), kinds=["block", "direct"], top=9)
    assert sum(result.predicted.values()) == pytest.approx(result.effect, rel=0.05)


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return rl.Lens(bridge(planted.model()))


def asked(n: int = 12) -> rl.Task:
    return rl.load_task([rl.Question(**row) for row in planted.questions(n)]).domain("math")


def steering() -> rl.Steering:
    """The role, and as much of noise."""
    drawn = torch.Generator().manual_seed(5)
    vector = torch.randn(planted.D, generator=drawn)
    for dimensions in (planted.HOLDS_MARK, planted.HOLDS_HIDDEN, planted.GIVES):
        vector[list(dimensions)] = 0
    vector = vector / vector.norm()
    vector[MARK] = 1.0
    return rl.add(rl.Direction(vector, layer=1, name="math"), 1.0)


def test_the_planted_feature_carries_the_effect(
    lens: rl.Lens,
    sae: SparseAutoencoder,  # noqa: F811
) -> None:
    null = rl.add(rl.Direction(torch.eye(planted.D)[planted.HOLDS_MARK[1]], layer=1), 1.0)
    result = attribute(
        lens, steering(), asked(), sae=sae, kinds=["feature", "error"], top=3, randoms=6,
        nulls=[null],
    )  # fmt: skip
    table = result.table()
    first = table.iloc[0]
    assert (first["kind"], first["index"]) == ("feature", ROLE)
    assert first["share"] > 0.8
    assert first["how"] == "top"
    others = table[table["index"] != ROLE]
    assert (others["exact"].abs() < 0.2 * abs(first["exact"])).all()
    assert (others["how"] == "random").sum() == 6
    assert first["null_most"] < 0.1 * abs(first["exact"])  # the other role does not carry it


def test_the_planted_mlp_carries_the_effect(lens: rl.Lens) -> None:
    table = attribute(lens, steering(), asked(), kinds=["mlp", "attention", "head"]).table()
    first = table.iloc[0]
    assert (first["kind"], first["layer"]) == ("mlp", 2)
    assert first["share"] == pytest.approx(1, abs=0.1)
    rest = table[(table["kind"] != "mlp") | (table["layer"] != 2)]
    assert (rest["exact"].abs() < 0.1 * abs(first["exact"])).all()


def test_cloze_answers_are_patched_too(llama: rl.Lens) -> None:
    """Where answers are read, all options run with their own changes."""
    questions = [
        rl.Question("a", "What is the weather?", ("rice", "a river", "fog"), 1),
        rl.Question("b", "Who was here first?", ("birds", "the sea"), 0),
    ]
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(2)), layer=3)
    result = attribute(
        llama, rl.add(d, 0.3), questions, kinds=["block", "direct"], method="cloze", top=2
    )
    # What enters the last block is steered; the block and what passes it are all there is.
    swept = rl.evaluate(llama, questions, rl.add(d, 0.3), "cloze").margin
    plain = rl.evaluate(llama, questions, (), "cloze").margin
    assert result.effect == pytest.approx(swept - plain, abs=1e-5)
    assert result.gap < abs(result.effect) + 0.5


def test_what_cannot_be_attributed_is_refused(
    lens: rl.Lens,
    sae: SparseAutoencoder,  # noqa: F811
    unchecked: object,
) -> None:
    d = steering()
    for sentence, options in (
        ("need an autoencoder", {"kinds": ["feature"]}),
        ("no kind of part", {"kinds": ["neuron"]}),
        ("no gradient", {"by": "accuracy"}),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            attribute(lens, d, asked(), **options)
    with pytest.raises(rl.InputError, match="does nothing"):
        attribute(lens, rl.Steering(), asked())
    above = rl.add(rl.Direction(torch.ones(planted.D), layer=2))
    with pytest.raises(rl.InputError, match="at or above"):
        attribute(lens, above, asked(), sae=sae)
    with pytest.raises(rl.InputError, match="have no gradient"):
        attribute(lens, d, rl.load_task("arithmetic").take([0]))
