import dataclasses
import math

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens.forward import Running
from rolelens.hooks import delta, selected


@pytest.fixture
def direction(lens: rl.Lens) -> rl.Direction:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)


def test_add_changes_logits_as_a_plain_hook_does(
    lens: rl.Lens, variant: Variant, direction: rl.Direction
) -> None:
    model = tiny.reference(variant.architecture)
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[1])
    for alpha in (1.0, -3.0):
        with oracles.added(model, 2, alpha * direction.vector):
            expected = oracles.logits(model, ids)
        with torch.no_grad():
            found = lens.model.run_with_hooks(
                torch.tensor([ids]), fwd_hooks=rl.add(direction, alpha)
            )[0]
        torch.testing.assert_close(found, expected, atol=variant.logit_tolerance, rtol=1e-4)
        assert not torch.allclose(found, oracles.logits(model, ids), atol=1e-2)


def test_ablate_changes_logits_as_plain_hooks_do(
    lens: rl.Lens, variant: Variant, direction: rl.Direction
) -> None:
    model = tiny.reference(variant.architecture)
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[1])
    with oracles.ablated(model, direction.vector):
        expected = oracles.logits(model, ids)
    with torch.no_grad():
        found = lens.model.run_with_hooks(
            torch.tensor([ids]), fwd_hooks=rl.ablate(direction, lens)
        )[0]
    torch.testing.assert_close(found, expected, atol=variant.logit_tolerance, rtol=1e-4)


def test_after_ablation_the_stream_is_orthogonal(
    lens: rl.Lens, variant: Variant, direction: rl.Direction
) -> None:
    unit = direction.vector / direction.vector.norm()
    names = [f"blocks.{n}.hook_resid_{at}" for n in range(lens.n_layers) for at in ("pre", "post")]
    seen: dict[str, torch.Tensor] = {}

    def read(name: str):
        return lambda x, hook: seen.__setitem__(name, x.detach())

    readers = [(name, read(name)) for name in names]
    ids = torch.tensor([oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[3])])
    with torch.no_grad():
        lens.model.run_with_hooks(ids, fwd_hooks=rl.ablate(direction, lens) + readers)
    assert len(seen) == len(names)
    for name, x in seen.items():
        cosine = (x @ unit) / x.norm(dim=-1)
        assert cosine.abs().max() < 1e-5, name


def test_several_layers_are_steered_by_joining_lists(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    first, second = vectors.at(1), vectors.at(3)
    model = tiny.reference("Llama")
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[0])
    with oracles.added(model, 1, first.vector), oracles.added(model, 3, 2 * second.vector):
        expected = oracles.logits(model, ids)
    hooks = rl.add(first, 1.0) + rl.add(second, 2.0)
    with torch.no_grad():
        found = llama.model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rows_are_steered_each_with_its_own_direction(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    directions = [vectors.at(1), vectors.at(3), vectors.at(1, -2), vectors.at(2)]
    alphas = [1.0, 2.0, 0.0, -1.0]
    prompts = [tiny.PROMPTS[0], tiny.PROMPTS[3], tiny.PROMPTS[2], tiny.PROMPTS[1]]
    together = rl.activations(llama, prompts, hooks=rl.add_rows(directions, alphas))
    for i, prompt in enumerate(prompts):
        alone = rl.activations(llama, [prompt], hooks=rl.add(directions[i], alphas[i]))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)


def test_strength_as_a_share_of_the_residual_norm(direction: rl.Direction) -> None:
    added = delta(direction, 0.1, "resid_norm")
    assert float(added.norm()) == pytest.approx(0.1 * direction.resid_norm, rel=1e-4)
    assert float(added @ direction.vector) > 0


def test_hooks_do_not_outlive_an_exception(llama: rl.Lens, direction: rl.Direction) -> None:
    def fail(x, hook):
        raise RuntimeError("broken hook")

    before = rl.activations(llama, tiny.PROMPTS)
    for broken in ([*rl.add(_unlabelled(direction), 3.0), ("blocks.3.hook_resid_pre", fail)],):
        with pytest.raises(RuntimeError, match="broken hook"):
            rl.activations(llama, tiny.PROMPTS, hooks=broken)
    with (
        pytest.raises(RuntimeError, match="outside"),
        llama.steered(rl.add(_unlabelled(direction))),
    ):
        raise RuntimeError("outside")
    assert torch.equal(rl.activations(llama, tiny.PROMPTS), before)


def _unlabelled(direction: rl.Direction) -> rl.Direction:
    return rl.Direction(direction.vector, direction.layer)


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_alpha_has_to_be_finite(alpha: float) -> None:
    with pytest.raises(rl.InputError, match=f"alpha is {alpha}; it has to be a finite number"):
        rl.add(rl.Direction(torch.ones(4), layer=1), alpha)


def test_a_zero_direction_cannot_be_ablated(llama: rl.Lens) -> None:
    zero = rl.Direction(torch.zeros(32), layer=0, role="lawyer")
    with pytest.raises(rl.InputError, match="direction of 'lawyer' at layer 0 is zero"):
        rl.ablate(zero, llama)


def test_a_direction_of_another_width_is_refused(llama: rl.Lens) -> None:
    narrow = rl.Direction(torch.ones(4), layer=1)
    with pytest.raises(rl.InputError, match="width 4 was used on a residual stream of width 32"):
        rl.activations(llama, tiny.PROMPTS, hooks=rl.add(narrow))


def test_resid_norm_needs_a_measured_direction() -> None:
    with pytest.raises(rl.InputError, match="does not know the norm of the residual stream"):
        rl.add(rl.Direction(torch.ones(4), layer=1), 0.1, unit="resid_norm")


def test_a_selection_is_refused_outside_a_lens_call(llama: rl.Lens) -> None:
    hooks = rl.add(rl.Direction(torch.ones(32), layer=1), tokens="prompt")
    with pytest.raises(rl.InputError, match="only calls of a Lens"):
        llama.model.run_with_hooks(torch.tensor([[5, 6]]), fwd_hooks=hooks)


@pytest.mark.parametrize("tokens", ["first", [-1]])
def test_an_unknown_selection_is_refused(llama: rl.Lens, tokens, unchecked) -> None:
    hooks = rl.add(rl.Direction(torch.ones(32), layer=1), tokens=tokens)
    with pytest.raises(rl.InputError, match="tokens is"):
        llama.generate(["Hi."], hooks=hooks)


def test_selections_name_the_right_tokens() -> None:
    # Two rows with prompts of 4 and 5 tokens, the last 2 of them post-instruction.
    lengths = torch.tensor([4, 5])
    prompt = Running(torch.arange(6), lengths, 2)
    step = Running(torch.tensor([5]), lengths, 2)

    def rows(now: Running, tokens) -> list[list[int]]:
        return selected(now, tokens).int().tolist()

    assert rows(prompt, "all") == [[1] * 6] * 2
    assert rows(prompt, "prompt") == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert rows(prompt, "generated") == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert rows(prompt, "post-instruction") == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert rows(prompt, "last") == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert rows(prompt, [1, 5]) == [[0, 1, 0, 0, 0, 1]] * 2
    assert rows(step, "generated") == rows(step, "last") == [[1], [1]]
    assert rows(step, "prompt") == rows(step, "post-instruction") == [[0], [0]]
    assert rows(step, [5]) == [[1], [1]]
    assert rows(step, [0]) == [[0], [0]]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"weights": "00", "model": "other"}, "their models .other and tiny-Llama. differ"),
        ({"template": "00"}, "their chat templates .00 and"),
        ({"centred": True}, "their writing weights .centred and raw. differ"),
    ],
)
def test_a_vector_file_from_elsewhere_is_refused_wherever_it_is_used(
    llama: rl.Lens, tmp_path, changed: dict, sentence: str
) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    foreign = dataclasses.replace(vectors, source=dataclasses.replace(llama.source, **changed))
    file = foreign.save(tmp_path / "v.safetensors")
    content = file.read_bytes()
    loaded = rl.RoleVectors.load(file)
    d = loaded["a"].at(2)
    before = llama.generate(tiny.PROMPTS[:1], max_new_tokens=5)
    question = [rl.Question("q", "Who?", ("you", "me"), 0)]
    for use in (
        lambda: llama.generate(tiny.PROMPTS, hooks=rl.add(d)),
        lambda: llama.generate(tiny.PROMPTS[:1], hooks=rl.add_rows([d], [1.0])),
        lambda: rl.ablate(d, llama),
        lambda: rl.sweep(llama, loaded, question),
        lambda: rl.patchscope(llama, d),
        lambda: loaded + vectors,
        lambda: d + vectors["a"].at(2),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            use()
    assert file.read_bytes() == content
    assert llama.generate(tiny.PROMPTS[:1], max_new_tokens=5) == before
