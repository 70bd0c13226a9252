import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant, tiny_lens
from rolelens import forward

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": tiny.PROMPTS[0]},
    {"role": "assistant", "content": "A proof."},
    {"role": "user", "content": tiny.PROMPTS[3]},
]
RAW = ["The river finds the sea.", "Sing"]
ANSWERS = ["yes, it is", "no", "who was here first?"]


def chat_ids(prompt: str | list[dict]) -> list[int]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return tiny.tokenizer().apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )


def bare_ids(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False).input_ids


def plain(architecture: str, ids: list[int], site: str) -> torch.Tensor:
    model = tiny.reference(architecture)
    if site == "resid_pre":
        return oracles.hidden(model, ids)
    return oracles.site_states(model, ids, site)


def test_activations_equal_plain_hidden_states(lens: rl.Lens, variant: Variant) -> None:
    """Of texts and conversations in one batch, and of raw texts."""
    model, prompts = tiny.reference(variant.architecture), [*tiny.PROMPTS[:3], TURNS]
    at_end = rl.activations(lens, prompts)
    whole = rl.activations(lens, prompts, positions="all")
    raw = rl.activations(lens, RAW, positions="all", raw=True)
    for i, prompt in enumerate(prompts):
        expected = oracles.hidden(model, chat_ids(prompt))
        assert oracles.relative(whole[i], expected) < variant.direction_tolerance
        expected = expected[:, -len(lens.positions) :]
        assert oracles.relative(at_end[i], expected) < variant.direction_tolerance
    for x, text in zip(raw, RAW, strict=True):
        expected = oracles.hidden(model, [0, *bare_ids(text)])
        assert oracles.relative(x, expected) < variant.direction_tolerance
    last = rl.activations(lens, RAW, raw=True)
    assert last.shape[2] == 1
    torch.testing.assert_close(
        last[:, :, 0], torch.stack([x[:, -1] for x in raw]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("site", list(forward.SITES))
def test_activations_of_each_site_and_of_answers(
    lens: rl.Lens, variant: Variant, site: str
) -> None:
    prompts = tiny.PROMPTS[:3]
    options = {"layers": [3, 1], "site": site}
    at_end = rl.activations(lens, prompts, positions=[-1, -3], **options)
    means = rl.activations(lens, prompts, positions="mean", answers=ANSWERS, **options)
    whole = rl.activations(lens, prompts, positions="all", answers=ANSWERS, **options)
    for i, (prompt, answer) in enumerate(zip(prompts, ANSWERS, strict=True)):
        ids = chat_ids(prompt)
        expected = plain(variant.architecture, [*ids, *bare_ids(answer)], site)[[3, 1]]
        for found, part in (
            (whole[i], expected),
            (means[i], expected[:, len(ids) :].mean(dim=1)),
            (at_end[i], expected[:, [len(ids) - 1, len(ids) - 3]]),
        ):
            assert found.shape == part.shape
            assert oracles.relative(found, part) < variant.direction_tolerance


@pytest.mark.parametrize("tokens", ["prompt", "post-instruction", "generated", "last"])
def test_steering_finds_its_tokens_where_answers_are_read(llama: rl.Lens, tokens: str) -> None:
    """Given as an argument or installed: prompts end where their answers begin."""
    torch.manual_seed(0)
    d = rl.Direction(torch.randn(llama.d_model), layer=1)
    steering = rl.add(d, 2.0, tokens=tokens)
    options = {"layers": [1, 3], "answers": ANSWERS}
    found = rl.activations(llama, tiny.PROMPTS[:3], positions="mean", hooks=steering, **options)
    with llama.steered(steering):
        installed = rl.activations(llama, tiny.PROMPTS[:3], positions="mean", **options)
        whole = rl.activations(llama, tiny.PROMPTS[:3], positions="all", **options)
    assert torch.equal(found, installed)
    for i, (prompt, answer) in enumerate(zip(tiny.PROMPTS[:3], ANSWERS, strict=True)):
        n = len(chat_ids(prompt))
        where = {
            "prompt": slice(0, n),
            "post-instruction": slice(n - len(llama.positions), n),
            "generated": slice(n, None),
            "last": slice(n - 1, None),
        }[tokens]
        with oracles.added(tiny.reference("Llama"), 1, 2 * d.vector, where):
            # What enters a block is read there after hooks.
            states = oracles.post_block_inputs(
                tiny.reference("Llama"), [*chat_ids(prompt), *bare_ids(answer)]
            )
        expected = torch.stack([states[1], states[3]])
        assert oracles.relative(whole[i], expected) < 1e-5
        assert oracles.relative(found[i], expected[:, n:].mean(dim=1)) < 1e-5


def test_projections_are_those_of_plain_hidden_states(lens: rl.Lens, variant: Variant) -> None:
    torch.manual_seed(0)
    d = rl.Direction(torch.randn(lens.d_model) * 7, layer=2)
    table = rl.project(lens, [tiny.PROMPTS[0], TURNS], d)
    assert list(table.columns) == ["prompt", "index", "token", "projection"]
    for n, prompt in enumerate((tiny.PROMPTS[0], TURNS)):
        ids, rows = chat_ids(prompt), table[table["prompt"] == n]
        expected = oracles.hidden(tiny.reference(variant.architecture), ids)[2] @ (
            d.vector / d.vector.norm()
        )
        assert rows["index"].tolist() == list(range(len(ids)))
        assert rows["token"].tolist() == [tiny.tokenizer().decode([i]) for i in ids]
        found = torch.tensor(rows["projection"].tolist())
        assert oracles.relative(found, expected) < 10 * variant.direction_tolerance


def test_projections_of_answers_sites_and_steered_passes(llama: rl.Lens) -> None:
    torch.manual_seed(0)
    wide = int(llama.model.cfg.d_mlp)
    d = rl.Direction(torch.randn(wide), layer=1, site="mlp_post")
    table = rl.project(llama, tiny.PROMPTS[:1], d, answers=["yes"])
    ids = [*chat_ids(tiny.PROMPTS[0]), *bare_ids("yes")]
    expected = plain("Llama", ids, "mlp_post")[1] @ d.unit
    assert oracles.relative(torch.tensor(table["projection"].tolist()), expected) < 1e-4
    d = rl.Direction(torch.randn(llama.d_model), layer=1)
    clean, steered = (
        rl.project(llama, ["Hi."], d, hooks=hooks)["projection"] for hooks in ((), rl.add(d, 2.0))
    )
    assert (steered - clean).tolist() == pytest.approx([2 * d.norm] * len(clean), rel=1e-4)
    raw = rl.project(llama, ["<|bos|>Hi."], d, raw=True)
    assert raw["token"].tolist() == ["<|bos|>", *map(tiny.tokenizer().decode, bare_ids("Hi."))]


def test_a_table_of_tokens_is_coloured_text_in_a_notebook(llama: rl.Lens) -> None:
    d = rl.Direction(torch.ones(llama.d_model), layer=2)
    table = rl.project(llama, ["<b>\n&", "Hi."], d)
    page = table._repr_html_()
    assert page.count("<div") == 2
    assert page.count('<span style="background') == len(table)
    assert "&lt;" in page
    assert "<b>" not in page
    assert "↵\n" in page
    assert "213,94,0" in page
    assert "0,114,178" in page
    assert f"{table['projection'][3]:.4g} at token 3" in page
    part = table[table["prompt"] == 1].sort_values("projection").head(3)
    assert part._repr_html_().count("title=") == 3
    for other in (
        table[["token"]],
        table.head(0),
        table.describe(),
        table.rename(columns={"token": "t"}),
    ):
        assert "<table" in other._repr_html_()
    table.loc[0, "projection"] = float("nan")
    table.loc[1, "projection"] = 0.0
    assert "token 0" in table._repr_html_()
    assert "projection" in repr(table)


def test_what_cannot_be_projected_is_one_sentence(llama: rl.Lens, unchecked) -> None:
    d = rl.Direction(torch.ones(llama.d_model), layer=2)
    vectors = rl.contrast(llama, tiny.PROMPTS, tiny.OTHERS)
    for direction, sentence in (
        (vectors, "a Directions is no direction to project onto"),
        (d.vector, "a Tensor is no direction"),
        (d * 0.0, "is zero, so it has no unit vector"),
        (rl.Direction(d.vector, layer=9), "no layer 9"),
        (rl.Direction(torch.ones(5), layer=2), "is 5 wide, and resid_pre of tiny-Llama is 32 wide"),
        (rl.Direction(d.vector, layer=2, site="mlp_post"), "and mlp_post of tiny-Llama is 48 wide"),
        (rl.contrast(tiny_lens("GPT2"), tiny.PROMPTS, tiny.OTHERS).at(2), "measured elsewhere"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            rl.project(llama, ["Hi."], direction)


def test_memory_mapped_activations_are_the_same(llama: rl.Lens, tmp_path) -> None:
    path = tmp_path / "cache.bin"
    mapped = rl.activations(llama, tiny.PROMPTS, path=path)
    assert torch.equal(mapped, rl.activations(llama, tiny.PROMPTS))
    assert path.stat().st_size == mapped.numel() * 4
    answers = ["yes", "no"]
    means = [
        rl.activations(llama, tiny.PROMPTS[:2], positions="mean", answers=answers, path=file)
        for file in (None, tmp_path / "means.bin")
    ]
    assert torch.equal(*means)
    content = path.read_bytes()
    with pytest.raises(rl.InputError, match="exists already"):
        rl.activations(llama, tiny.PROMPTS, path=path)
    assert path.read_bytes() == content
    with pytest.raises(rl.InputError, match="positions are"):
        rl.activations(llama, tiny.PROMPTS, positions=[-99], path=tmp_path / "other.bin")
    assert not (tmp_path / "other.bin").exists()


def test_steered_activations_see_the_steering(llama: rl.Lens) -> None:
    direction = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2)
    clean = rl.activations(llama, tiny.PROMPTS)
    steered = rl.activations(llama, tiny.PROMPTS, hooks=rl.add(direction, 3.0))
    torch.testing.assert_close(steered[:, :2], clean[:, :2])
    delta = (3 * direction.vector).expand_as(clean[:, 2])
    torch.testing.assert_close(steered[:, 2] - clean[:, 2], delta, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(steered[:, 3], clean[:, 3])


def test_only_the_layers_needed_run(llama: rl.Lens) -> None:
    ran: list[int] = []
    hooks = [
        (f"blocks.{n}.hook_resid_pre", lambda x, hook, n=n: ran.append(n))
        for n in range(llama.n_layers)
    ]
    with llama.steered(hooks):
        rl.activations(llama, tiny.PROMPTS[:1], layers=[1])
    assert set(ran) == {0, 1}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layers": [9]}, "no layer 9; there are: 0, 1, 2, 3."),
        ({"positions": [0]}, "they count from the end, from -1 down to -"),
        ({"positions": [-99]}, "the length of the shortest prompt in tokens"),
        ({"layers": []}, "layers is empty; pass at least one"),
        ({"layers": 2}, "layers is 2; pass a list, such as .2."),
        ({"positions": -1}, "positions is -1; pass a list"),
        ({"positions": [-1.5]}, "a position is -1.5; it has to be a number such as -1"),
        ({"layers": [2, 2]}, "the layers are .2, 2., with 2 more than once; name each once"),
        ({"positions": [-1, -1]}, "the positions are .*, with -1 more than once"),
        ({"positions": "last"}, "positions is 'last'; pass 'all', 'mean' or a list"),
        ({"positions": "mean"}, "prompt 0 has no answer to read; pass an answer to each prompt"),
        ({"positions": "all", "path": "x.bin"}, "have no common shape for a file"),
        ({"site": "resid_post"}, "no site 'resid_post'"),
    ],
)
def test_bad_grids_are_refused(llama: rl.Lens, arguments: dict, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        rl.activations(llama, tiny.PROMPTS, **arguments)


def test_infinite_activations_name_their_layer(llama: rl.Lens) -> None:
    broken = [("blocks.2.hook_resid_pre", lambda x, hook: x * torch.inf)]
    for positions in ("all", "mean", [-1]):
        options = {"positions": positions, "answers": ["yes"] * len(tiny.PROMPTS), "hooks": broken}
        with pytest.raises(rl.InputError, match="entering layer 2 is NaN or infinite"):
            rl.activations(llama, tiny.PROMPTS, **options)
        with pytest.raises(rl.InputError, match="mlp_post of layer 2 is NaN or infinite"):
            rl.activations(llama, tiny.PROMPTS, layers=[1, 2], site="mlp_post", **options)
