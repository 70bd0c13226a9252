import dataclasses
import math

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens.forward import Running, selected


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


def test_rows_are_steered_each_in_its_own_way(lens: rl.Lens) -> None:
    """Any steering a row: other layers, tokens, kinds, several steps, nothing at all."""
    vectors = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    first, second = vectors.at(1), vectors.at(3)
    steerings = [
        rl.add(first, 1.0),
        rl.add(second, 2.0, tokens="prompt") + rl.ablate(first, lens, layers=[2, 3]),
        rl.Steering(),
        rl.add(first, -1.0, layers=[1, 2, 3], tokens="last"),
        rl.replace(second, layers=[2], tokens=[1, 3]) + rl.add(first, 0.5),
    ]
    prompts = [tiny.PROMPTS[n] for n in (0, 3, 2, 1, 0)]
    together = rl.activations(lens, prompts, hooks=rl.by_row(steerings))
    texts = lens.generate(prompts, hooks=rl.by_row(steerings), max_new_tokens=5)
    for i, prompt in enumerate(prompts):
        alone = rl.activations(lens, [prompt], hooks=steerings[i])[0]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
        assert [texts[i]] == lens.generate([prompt], hooks=steerings[i], max_new_tokens=5)
    with pytest.raises(rl.InputError, match="5 steerings and 6 prompts do not pair up"):
        rl.activations(lens, [*prompts, "Hi."], hooks=rl.by_row(steerings))
    with pytest.raises(rl.InputError, match="5 steerings and 4 prompts do not pair up"):
        lens.generate(prompts[:4], hooks=rl.by_row(steerings), max_new_tokens=1)


def test_strength_as_a_share_of_the_residual_norm(direction: rl.Direction) -> None:
    (step,) = rl.add(direction, 0.1, unit="resid_norm").steps
    assert float(step.vector.norm()) == pytest.approx(0.1 * direction.resid_norm, rel=1e-4)
    assert float(step.vector @ direction.vector) > 0


def test_a_steering_is_a_value(llama: rl.Lens, tmp_path) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    d, e = vectors.at(1), vectors.at(3, -2)
    both = rl.add(d, 3.0, layers=[2, 1], tokens="generated") + rl.ablate(e, llama)
    assert isinstance(both, rl.Steering)
    assert str(both) == (
        "add 3 x (a of layer 1, position -1) in layers 1-2, tokens generated; "
        "ablate (a of layer 3, position -2) in layers 0-3, tokens all"
    )
    again = rl.add(d, 3.0, layers=(1, 2), tokens="generated") + rl.ablate(e, llama)
    assert again == both
    assert hash(again) == hash(both)
    others = [
        rl.add(d, 3.0, layers=[1, 2]) + rl.ablate(e, llama),
        rl.add(d, 2.0, layers=[1, 2], tokens="generated") + rl.ablate(e, llama),
        rl.add(e, 3.0, layers=[1, 2], tokens="generated") + rl.ablate(e, llama),
        rl.ablate(e, llama) + rl.add(d, 3.0, layers=[1, 2], tokens="generated"),
    ]
    assert len({both, *others}) == 5
    loaded = rl.Steering.load(both.save(tmp_path / "s.safetensors"))
    assert loaded == both
    assert loaded.to_dict() == both.to_dict()
    texts = [llama.generate(tiny.PROMPTS, hooks=s, max_new_tokens=5) for s in (both, loaded)]
    assert texts[0] == texts[1]
    assert "layers 1-2" in both._repr_html_()
    extra = ("blocks.0.hook_resid_pre", lambda x, hook: x)
    assert both + [extra] == [*both, extra]  # noqa: RUF005
    assert [extra] + both == [extra, *both]  # noqa: RUF005
    assert not rl.Steering()
    assert (rl.Steering() + both) == both


def test_a_damaged_steering_is_refused(llama: rl.Lens, tmp_path) -> None:
    file = rl.add(rl.Direction(torch.ones(32), 1), 1.0).save(tmp_path / "s.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(rl.InputError, match="is damaged or was not written by rolelens"):
        rl.Steering.load(file)
    with pytest.raises(rl.InputError, match="does not hold a steering"):
        rl.Steering.load(
            rl.role_vectors(llama, {"a": tiny.PROMPTS}, tiny.OTHERS).save(tmp_path / "v")
        )


def test_steering_that_touches_nothing_is_refused_wherever_it_is_used(llama: rl.Lens) -> None:
    d = rl.Direction(torch.ones(32), 1)
    generated, after = rl.add(d, tokens="generated"), rl.add(d, tokens="post-instruction")
    question = [rl.Question("q", "Who?", ("you", "me"), 0)]
    for use in (
        lambda: rl.evaluate(llama, question, generated),
        lambda: rl.evaluate(llama, question, rl.by_row([generated])),
        lambda: rl.sweep(llama, [generated], question),
        lambda: rl.activations(llama, ["Hi."], hooks=generated),
        lambda: llama.generate(["Hi."], hooks=generated, max_new_tokens=1),
        lambda: llama.generate(["Hi."], hooks=after, raw=True),
        lambda: rl.add(d, tokens=[500]) and llama.generate(["Hi."], hooks=rl.add(d, tokens=[500])),
    ):
        with pytest.raises(rl.InputError, match="none of the tokens that the model reads here"):
            use()
    with pytest.raises(rl.InputError, match="which a text without a prompt does not have"):
        rl.perplexity(llama, "Some text.", after)
    with llama.steered(generated):
        with pytest.raises(rl.InputError, match="none of the tokens that the model reads here"):
            rl.evaluate(llama, question)
        llama.generate(["Hi."], max_new_tokens=2)


def test_bad_steering_is_refused_at_once(llama: rl.Lens, unchecked: object) -> None:
    d = rl.Direction(torch.ones(32), 1)
    for sentence, make in (
        ("alpha is '3'; it has to be a finite number", lambda: rl.add(d, "3")),
        ("a Directions cannot be added; take one direction", lambda: rl.add(_set(d), 3.0)),
        ("unit is 'norms'; it has to be", lambda: rl.add(d, 3.0, unit="norms")),
        ("tokens is 'generate'; it has to be", lambda: rl.add(d, 3.0, tokens="generate")),
        ("tokens is .-1.; absolute positions count from 0", lambda: rl.add(d, tokens=[-1])),
        ("layers are .2, 2., with 2 more than once", lambda: rl.add(d, layers=[2, 2])),
        ("a layer is -1; layers count from 0", lambda: rl.add(d, layers=[-1])),
        ("no layer 9; there are", lambda: rl.ablate(d, llama, layers=[9])),
        ("share is 'all'; it has to be", lambda: rl.ablate(d, llama, share="all")),
        ("hooks is a Direction; pass steering", lambda: llama.generate(["Hi."], hooks=d)),
        ("a list is among the steerings", lambda: rl.by_row([[]])),
        ("there are no steerings", lambda: rl.by_row([])),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            make()
    known = dataclasses.replace(d, resid_norm=2.0)
    with pytest.raises(rl.InputError, match="known at layer 1 alone, and layers is .2, 3."):
        rl.add(known, 0.1, unit="resid_norm", layers=[2, 3])


def _set(d: rl.Direction) -> rl.Directions:
    return rl.Directions(d.vector[None, None, None], ("a",), (1,), (-1,), torch.ones(1, 1))


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
    zero = rl.Direction(torch.zeros(32), layer=0, name="lawyer")
    with pytest.raises(rl.InputError, match="direction of 'lawyer' at layer 0 is zero"):
        rl.ablate(zero, llama)


def test_a_direction_of_another_width_is_refused(llama: rl.Lens) -> None:
    narrow = rl.Direction(torch.ones(4), layer=1)
    with pytest.raises(rl.InputError, match="width 4 was used on activations of width 32"):
        rl.activations(llama, tiny.PROMPTS, hooks=rl.add(narrow))


def test_resid_norm_needs_a_measured_direction() -> None:
    with pytest.raises(rl.InputError, match="does not know the norm of the residual stream"):
        rl.add(rl.Direction(torch.ones(4), layer=1), 0.1, unit="resid_norm")


def test_a_selection_is_refused_outside_a_lens_call(llama: rl.Lens) -> None:
    hooks = rl.add(rl.Direction(torch.ones(32), layer=1), tokens="prompt")
    with pytest.raises(rl.InputError, match="only calls of a Lens"):
        llama.model.run_with_hooks(torch.tensor([[5, 6]]), fwd_hooks=hooks)


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
    loaded = rl.Directions.load(file)
    d = loaded["a"].at(2)
    before = llama.generate(tiny.PROMPTS[:1], max_new_tokens=5)
    question = [rl.Question("q", "Who?", ("you", "me"), 0)]
    for use in (
        lambda: llama.generate(tiny.PROMPTS, hooks=rl.add(d)),
        lambda: llama.generate(tiny.PROMPTS[:1], hooks=rl.by_row([rl.add(d)])),
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
