import functools
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant, shared
from rolelens import forward
from rolelens.extraction import controlled_vectors


def test_directions_equal_plain_difference_in_means(lens: rl.Lens, variant: Variant) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    vectors = rl.role_vectors(lens, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.OTHERS[::-1])
    for role, prompts in (("a", tiny.PROMPTS), ("b", tiny.OTHERS)):
        expected = oracles.mean_difference(
            model, tokenizer, prompts, tiny.OTHERS, len(lens.positions)
        )
        found = vectors[role].directions[0].double()
        if role == "b":
            assert found.abs().max() < 1e-6
        else:
            assert oracles.relative(found, expected) < variant.direction_tolerance
    assert vectors.directions.dtype == torch.float32


def test_contrasts_equal_plain_difference_in_means(lens: rl.Lens, variant: Variant) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    found = rl.contrast(lens, tiny.PROMPTS, tiny.OTHERS, name="formal", kind="trait")
    expected = oracles.mean_difference(
        model, tokenizer, tiny.PROMPTS, tiny.OTHERS, len(lens.positions)
    )
    assert oracles.relative(found.directions[0].double(), expected) < variant.direction_tolerance
    roles = rl.role_vectors(lens, {"formal": tiny.PROMPTS}, base=tiny.OTHERS)
    assert torch.equal(roles.directions, found.directions)
    assert torch.equal(roles.resid_norm, found.resid_norm)
    assert roles.prompts == found.prompts
    assert (found.names, found.kind) == (("formal",), "trait")
    assert found.contrast == "positive prompts - negative prompts"


def test_contrasts_of_conversations_and_raw_texts(llama: rl.Lens, tmp_path: Path) -> None:
    model = tiny.reference("Llama")
    turns = [
        [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"},
        ]
        for prompt in tiny.PROMPTS
    ]

    def ends(texts: list, n: int) -> torch.Tensor:
        ids = llama.encode(texts, raw=isinstance(texts[0], str)).ids
        return torch.stack([oracles.hidden(model, one)[:, -n:].double() for one in ids]).mean(0)

    found = rl.contrast(llama, turns[:2], turns[2:], layers=[2, 1], positions=[-1, -2])
    expected = (ends(turns[:2], 2) - ends(turns[2:], 2))[[2, 1]].flip(1)
    assert oracles.relative(found.directions[0].double(), expected) < 1e-5
    assert found.prompts["contrast"][0] == 2
    assert found.prompts["contrast"][1] != found.prompts["base"][1]
    raw = rl.contrast(llama, ["Love"], ["Hate it"], raw=True, name="love")
    assert raw.positions == (-1,)
    assert (
        oracles.relative(raw.directions[0].double(), ends(["Love"], 1) - ends(["Hate it"], 1))
        < 1e-5
    )
    assert raw.contrast == "positive raw texts - negative raw texts"
    back = rl.Directions.load(raw.save(tmp_path / "v.safetensors"))
    assert torch.equal(back.directions, raw.directions)
    assert back.prompts == raw.prompts
    encoded = rl.contrast(llama, llama.encode(turns[:2]), llama.encode(turns[2:]), layers=[2, 1])
    torch.testing.assert_close(encoded.directions[:, :, [-1, -2]], found.directions)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"positive": []}, "the prompts of 'positive' are .* a list of at least one prompt"),
        ({"negative": "Hi."}, "the prompts of 'negative' are 'Hi.'"),
        ({"negative": {"a": ["Hi."]}}, "the prompts of 'negative' are .*; a mean needs a list"),
        ({"name": "base"}, "a contrast cannot be called 'base'"),
        ({"layers": [2, 2]}, "the layers are .2, 2., with 2 more than once"),
        ({"positions": [-1, -2, -1]}, "with -1 more than once; name each once"),
        ({"raw": True, "positions": [-40]}, "the length of the shortest prompt in tokens"),
    ],
)
def test_bad_contrasts_are_refused(llama: rl.Lens, arguments: dict, sentence: str) -> None:
    sets = {"positive": tiny.PROMPTS, "negative": tiny.OTHERS}
    with pytest.raises(rl.InputError, match=sentence):
        rl.contrast(llama, **(sets | arguments))
    if "layers" in arguments or "name" in arguments:
        options = {name: value for name, value in arguments.items() if name == "layers"}
        role = arguments.get("name", "a")
        with pytest.raises(rl.InputError, match=sentence.replace("contrast", "role")):
            rl.role_vectors(llama, {role: tiny.PROMPTS}, tiny.OTHERS, **options)


def test_layer_0_is_null_without_learned_positions(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    assert vectors["a"].at(layer=0).norm == 0
    assert vectors["a"].at(layer=1).norm > 0


def test_resid_norm_is_that_of_the_base_prompts(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    expected = rl.activations(llama, tiny.OTHERS).norm(dim=-1).mean(dim=0)
    torch.testing.assert_close(vectors.resid_norm, expected)
    assert vectors["a"].at(2).resid_norm == pytest.approx(float(expected[2, -1]))


def test_layers_and_positions_keep_their_order(llama: rl.Lens) -> None:
    full = rl.activations(llama, tiny.PROMPTS)
    some = rl.activations(llama, tiny.PROMPTS, layers=[3, 1], positions=[-1, -3])
    torch.testing.assert_close(some, full[:, [3, 1]][:, :, [-1, -3]])


@pytest.mark.parametrize("prompts", [[], ["one"]])
def test_a_mean_needs_two_prompts(llama: rl.Lens, prompts: list[str]) -> None:
    with pytest.raises(rl.InputError, match="a mean needs a list of at least two prompts"):
        rl.role_vectors(llama, {"a": prompts}, base=tiny.OTHERS)
    with pytest.raises(rl.InputError, match="prompts of 'base'"):
        rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=prompts)


def test_a_role_called_base_is_refused(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="cannot be called 'base'"):
        rl.role_vectors(llama, {"base": tiny.PROMPTS}, base=tiny.OTHERS)
    with pytest.raises(rl.InputError, match="cannot be called 'base'"):
        rl.system_vectors(llama, ["base", "cook"], tiny.PROMPTS)
    with pytest.raises(rl.InputError, match="with 'cook' more than once; name each once"):
        rl.system_vectors(llama, ["cook", "cook"], tiny.PROMPTS)


def test_system_vectors_equal_plain_differences(llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    vectors = rl.system_vectors(llama, ["lawyer", "cook"], tiny.PROMPTS)
    n = len(llama.positions)

    def mean(system: list[dict]) -> torch.Tensor:
        streams = []
        for prompt in tiny.PROMPTS:
            ids = tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=False,
            )
            streams.append(oracles.hidden(model, ids)[:, -n:].double())
        return torch.stack(streams).mean(dim=0)

    expected = mean([{"role": "system", "content": "You are a cook."}]) - mean([])
    assert oracles.relative(vectors["cook"].directions[0].double(), expected) < 1e-5
    assert "You are a {role}." in vectors.contrast


def test_a_system_prompt_has_to_name_the_role(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="has to contain '{role}'"):
        rl.system_vectors(llama, ["cook"], tiny.PROMPTS, system="Be kind.")
    with pytest.raises(rl.InputError, match="a list of at least one name"):
        rl.system_vectors(llama, [], tiny.PROMPTS)


ROLES = {"a": tiny.PROMPTS[:3], "b": tiny.PROMPTS[1:5]}


@pytest.fixture
def small_batches(monkeypatch) -> None:
    """Prompts come in several batches, sorted by length."""
    stream = functools.partial(forward.residual_stream, budget=80)
    monkeypatch.setattr(forward, "residual_stream", stream)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_estimated_nulls_are_plain_differences_of_relabelled_prompts(
    architecture: str, small_batches
) -> None:
    lens, base = shared(Variant(architecture)), tiny.OTHERS + tiny.PROMPTS[5:]
    found = rl.null_vectors(lens, ROLES, base, kinds=["base", "shuffled"], n=6, norms="raw")
    names = [f"shuffled {k} ~ {role}" for role in "ab" for k in range(6)]
    assert found.names == (*(f"base {k}" for k in range(6)), *names)
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    n = len(lens.positions)
    streams = {
        prompt: oracles.hidden(model, oracles.chat_ids(tokenizer, prompt))[:, -n:].double()
        for prompt in tiny.PROMPTS + tiny.OTHERS
    }
    for kind, pool, size in (
        ("shuffled {} ~ a", ROLES["a"] + base, 3),
        ("shuffled {} ~ b", ROLES["b"] + base, 4),
        ("base {}", base, 2),
    ):
        candidates = {}
        for first in itertools.combinations(pool, size):
            rest = [prompt for prompt in pool if prompt not in first]
            mu, nu = (sum(streams[p] for p in part) / len(part) for part in (first, rest))
            candidates[first] = mu - nu
        drawn = set()
        for k in range(6):
            null = found[kind.format(k)].directions[0].double()
            errors = {first: oracles.relative(null, x) for first, x in candidates.items()}
            closest = min(errors, key=errors.get)
            assert errors[closest] < 1e-5, (kind, k)
            drawn.add(closest)
        assert len(drawn) > 2


def test_halves_are_plain_differences_of_two_halves_of_the_prompts(small_batches) -> None:
    lens = shared(Variant("Llama"))
    roles, base = {"a": tiny.PROMPTS[:5]}, tiny.OTHERS + tiny.PROMPTS[5:]
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()

    def stream(prompt: str) -> torch.Tensor:
        x = oracles.hidden(model, oracles.chat_ids(tokenizer, prompt))
        return x[:, -len(lens.positions) :].double()

    def splits(prompts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        streams = [stream(prompt) for prompt in prompts]
        found = []
        for first in itertools.combinations(range(len(prompts)), len(prompts) // 2):
            rest = [n for n in range(len(prompts)) if n not in first]
            one, other = (torch.stack([streams[n] for n in own]).mean(0) for own in (first, rest))
            found += [(one, other), (other, one)]
        return found

    drawn = set()
    for seed in range(4):
        halves = rl.half_vectors(lens, roles, base, seed=seed)
        a, b = (half.directions[0].double() for half in halves)
        pairs = itertools.product(splits(roles["a"]), splits(base))
        errors = [
            max(oracles.relative(a, mu[0] - nu[0]), oracles.relative(b, mu[1] - nu[1]))
            for mu, nu in pairs
        ]
        assert min(errors) < 1e-5
        drawn.add(errors.index(min(errors)))
    assert len(drawn) > 1
    again = rl.half_vectors(lens, roles, base, seed=3)
    assert torch.equal(again[0].directions, halves[0].directions)


def test_halves_need_prompts(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="'a' has 3 prompts, too few for two halves"):
        rl.half_vectors(llama, {"a": tiny.PROMPTS[:3]}, tiny.PROMPTS)


def test_matched_nulls_have_the_norms_of_the_role(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, ROLES, tiny.OTHERS)
    found = rl.null_vectors(llama, ROLES, tiny.OTHERS, n=2)
    raw = rl.null_vectors(llama, ROLES, tiny.OTHERS, n=2, norms="raw")
    kinds = ("gaussian", "shuffled", "base")
    names = [f"{kind} {k} ~ {role}" for kind in kinds for role in "ab" for k in range(2)]
    assert found.names == tuple(names)
    assert raw.names == (*names[:8], "base 0", "base 1")
    for name in names:
        kind, role = name.split()[0], name[-1]
        size = vectors[role].directions[0].norm(dim=-1)
        null = found[name].directions[0]
        torch.testing.assert_close(null.norm(dim=-1), size, rtol=1e-5, atol=0)
        assert null[0].abs().sum() == 0
        estimated = raw["base " + name[5] if kind == "base" else name].directions[0]
        cosines = torch.nn.functional.cosine_similarity(null[1:], estimated[1:], dim=-1)
        assert cosines.min() > 1 - 1e-5
        if kind != "gaussian":
            assert not torch.allclose(estimated.norm(dim=-1)[1:], size[1:], rtol=0.01)
    assert rl.concat(vectors, found)["shuffled 1 ~ b"].at(2).layer == 2
    assert found.prompts == vectors.prompts
    assert found.source == llama.source


def test_a_null_is_exactly_zero_where_every_prompt_is_the_same(llama: rl.Lens) -> None:
    for norms in ("raw", "matched"):
        roles = {"a": tiny.PROMPTS}
        found = rl.null_vectors(llama, roles, [*tiny.OTHERS, *tiny.PROMPTS[:4]], n=8, norms=norms)
        assert found.directions[:, 0].abs().max() == 0
        assert found.directions[:, 1:].norm(dim=-1).min() > 0


def test_a_null_depends_on_its_seed_and_name_only(llama: rl.Lens) -> None:
    found = rl.null_vectors(llama, ROLES, tiny.OTHERS, n=3)
    few = rl.null_vectors(
        llama,
        {"b": ROLES["b"]},
        tiny.OTHERS,
        kinds=["base", "shuffled", "gaussian"],
        n=2,
        layers=[3, 1],
        positions=[-1],
    )
    for name in few.names:
        expected = found[name].directions[:, [3, 1], -1:]
        torch.testing.assert_close(few[name].directions, expected, atol=1e-5, rtol=1e-5)
    twins = rl.null_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.PROMPTS}, tiny.OTHERS, n=3)
    for kind in ("gaussian", "shuffled"):
        a, b = (twins[[f"{kind} {k} ~ {role}" for k in range(3)]] for role in "ab")
        assert not torch.allclose(a.directions, b.directions)
    other = rl.null_vectors(llama, ROLES, tiny.OTHERS, n=3, seed=1)
    for kind in ("gaussian", "shuffled", "base"):
        names = [f"{kind} {k} ~ {role}" for role in "ab" for k in range(3)]
        assert not torch.allclose(found[names].directions, other[names].directions)


def test_nulls_run_every_prompt_once(llama: rl.Lens, small_batches) -> None:
    ran: list[int] = []
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: ran.append(len(x)))]
    with llama.steered(hooks):
        rl.null_vectors(llama, ROLES, tiny.OTHERS, n=5)
    assert sum(ran) == 3 + 4 + len(tiny.OTHERS)
    assert len(ran) > 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kinds": ["gausian"]}, "no kind of null 'gausian'; did you mean 'gaussian'?"),
        ({"kinds": "base"}, "kinds is 'base'; pass a list"),
        ({"kinds": ()}, "pass a list that names each kind once"),
        ({"kinds": ["base", "base"]}, "pass a list that names each kind once"),
        ({"n": 0}, "n is 0; it has to be at least 1"),
        ({"norms": "unit"}, "norms is 'unit'; it has to be 'matched' or 'raw'"),
        ({"roles": {"base": tiny.PROMPTS}}, "cannot be called 'base'"),
        ({"roles": {}}, "dict of at least one role"),
        ({"base": ["one"]}, "prompts of 'base'"),
        (
            {"roles": ROLES | {"shuffled 1 ~ a": tiny.PROMPTS}},
            "a role is called 'shuffled 1 ~ a', which is the name of a null",
        ),
        ({"roles": {"base 3": tiny.PROMPTS}, "norms": "raw"}, "a role is called 'base 3'"),
    ],
)
def test_bad_nulls_are_refused_before_anything_runs(
    llama: rl.Lens, arguments: dict, sentence: str, unchecked, monkeypatch
) -> None:
    monkeypatch.setattr(forward, "residual_stream", None)
    with pytest.raises(rl.InputError, match=sentence):
        rl.null_vectors(llama, **{"roles": ROLES, "base": tiny.OTHERS} | arguments)


def test_one_run_gives_vectors_halves_and_nulls(small_batches) -> None:
    lens, base = shared(Variant("Qwen2")), [*tiny.OTHERS, *tiny.PROMPTS[4:]]
    roles = {**ROLES, "a": tiny.PROMPTS[:4]}
    found, halves, null = controlled_vectors(lens, roles, base, null_roles=["b"], n=2)
    alone = (
        rl.role_vectors(lens, roles, base),
        *rl.half_vectors(lens, roles, base),
        rl.null_vectors(lens, {"b": roles["b"]}, base, n=2),
    )
    for one, other in zip((found, *halves, null), alone, strict=True):
        assert one.names == other.names
        torch.testing.assert_close(one.directions, other.directions, atol=1e-5, rtol=1e-4)
    with pytest.raises(rl.InputError, match="no role 'c'"):
        controlled_vectors(lens, roles, base, null_roles=["c"])


@pytest.mark.model
def test_directions_of_the_embedded_model_equal_plain_ones(smollm2: rl.Lens) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rolelens import embedded

    folder = embedded.folder()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    role = list(rl.load_roles()["doctor"].prompts[:12])
    base = rl.load_base()[:12]
    vectors = rl.role_vectors(smollm2, {"doctor": role}, base=base)
    expected = oracles.mean_difference(model, tokenizer, role, base, len(smollm2.positions))
    found = vectors.directions[0].double()
    for layer in range(smollm2.n_layers):
        difference = (found[layer] - expected[layer]).norm()
        assert difference <= 1e-5 * expected[layer].norm() + 1e-4 * (layer == 0), layer
    assert smollm2.positions == (-6, -5, -4, -3, -2, -1)


@pytest.mark.model
def test_peak_memory_does_not_grow_with_the_number_of_prompts() -> None:
    program = """
import resource, sys, rolelens as rl
lens, base = rl.load("smollm2"), rl.load_base()
prompts = [p for role in rl.load_roles().values() for p in role][: int(sys.argv[1])]
assert len(prompts) == int(sys.argv[1])
rl.role_vectors(lens, {"a": prompts}, base=base[:16], layers=range(8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", program, str(n)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for n in (100, 1000)
    ]
    assert peaks[1] <= 1.05 * peaks[0], peaks


@pytest.mark.model
def test_vectors_of_the_papers_own_prompts_come_back_bit_for_bit(
    smollm2: rl.Lens, tmp_path: Path
) -> None:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the paper's prompts are not on this machine (../shared/data)")
    roles = rl.load_roles(folder / "role_prompts")
    base = rl.load_base(folder / "base_prompts" / "val.json")
    vectors = rl.role_vectors(smollm2, roles, base, layers=range(3))
    back = rl.Directions.load(vectors.save(tmp_path / "paper.safetensors"))
    assert vectors.directions.shape == (29, 3, 6, 576)
    assert torch.equal(back.directions, vectors.directions)
    assert (back.names, back.prompts, back.source) == (
        vectors.names,
        vectors.prompts,
        smollm2.source,
    )
    assert back.prompts["lawyer"][0] == 128
