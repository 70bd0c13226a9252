import warnings

import pytest
import torch

import oracles
import planted
import rolelens as rl
import tiny
from conftest import Variant
from rolelens import forward
from rolelens.patchscoping import (
    IDENTITY,
    Addition,
    JacobianLens,
    LogitLens,
    NearestPrompts,
    Reader,
    SelfIE,
    TokenIdentity,
)


@pytest.fixture
def vectors(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]


def decoded(tokenizer, ids: list[int]) -> str:
    ends = [n for n, i in enumerate(ids) if i in (1, 3)]
    return tokenizer.decode(ids[: ends[0] if ends else None], skip_special_tokens=True).strip()


def test_a_reading_is_plain_steered_text(
    lens: rl.Lens, architecture: str, vectors: rl.Directions
) -> None:
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    reader = Addition(3.0, max_new_tokens=6)
    readings = rl.patchscope(lens, [vectors.at(1), vectors.at(3)], reader)
    ids = oracles.chat_ids(tokenizer, "What does ♦ represent?")
    for reading, layer in zip(readings, (1, 3), strict=True):
        with oracles.added(model, layer, 3 * vectors.at(layer).vector):
            new = oracles.greedy(model, ids, 6)
        assert reading.text == decoded(tokenizer, new)
        assert reading.baseline == lens.generate([reading.prompt], max_new_tokens=6)[0]
    alone = rl.patchscope(lens, vectors.at(3), reader)
    assert alone.text == readings[1].text
    assert alone.direction.layer == 3
    assert isinstance(reader, Reader)


def test_token_identity_is_plain_replacement(
    lens: rl.Lens, architecture: str, vectors: rl.Directions
) -> None:
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    several = [vectors.at(1), vectors.at(3), vectors.at(2, -3)]
    readings = rl.patchscope(lens, several, TokenIdentity(max_new_tokens=6))
    ids = [tokenizer.bos_token_id, *tokenizer(IDENTITY).input_ids]  # as TransformerLens does
    plain = decoded(tokenizer, oracles.greedy(model, ids, 6))
    for reading, d in zip(readings, several, strict=True):
        with oracles.replaced(model, d.layer, d.vector, [len(ids) - 1]):
            new = oracles.greedy(model, ids, 6)
        assert reading.text == decoded(tokenizer, new)
        assert reading.baseline == plain
    elsewhere = rl.patchscope(lens, several, TokenIdentity(0, max_new_tokens=6))
    for reading, d in zip(elsewhere, several, strict=True):
        with oracles.replaced(model, 0, d.vector, [len(ids) - 1]):
            assert reading.text == decoded(tokenizer, oracles.greedy(model, ids, 6))


def test_selfie_replaces_the_placeholders(
    lens: rl.Lens, architecture: str, vectors: rl.Directions
) -> None:
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    reader = SelfIE(1, ("Sure, it", "It"), placeholders=3, max_new_tokens=5)
    d = vectors.at(3)
    (reading,) = rl.patchscope(lens, [d], reader)
    start = oracles.chat_ids(tokenizer, "_ _ _")
    places = [n for n, i in enumerate(start) if tokenizer.decode([i]).strip() == "_"]
    assert len(places) == 3
    lines = []
    for begun in ("Sure, it", "It"):
        ids = start + tokenizer(begun, add_special_tokens=False).input_ids
        with oracles.replaced(model, 1, d.vector, places):
            lines.append(decoded(tokenizer, oracles.greedy(model, ids, 5)))
    assert reading.text == "\n".join(lines)
    assert reading.baseline != reading.text or lines[0] == reading.baseline.split("\n")[0]


def test_the_logit_lens_is_the_models_own_unembedding(
    lens: rl.Lens, variant: Variant, vectors: rl.Directions
) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    d = vectors.at(3)
    inner = model.transformer if hasattr(model, "transformer") else model.model
    norm = next(
        getattr(inner, name) for name in ("norm", "ln_f", "final_layernorm") if hasattr(inner, name)
    )
    with torch.no_grad():
        logits = model.lm_head(norm(d.vector))
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    table = LogitLens(4).table(lens, [d])
    for end, largest in (("top", True), ("bottom", False)):
        values, tokens = logits.topk(4, largest=largest)
        own = table[table["end"] == end]
        assert own["token"].tolist() == [tokenizer.decode([int(i)]) for i in tokens]
        assert own["logit"].tolist() == pytest.approx(values.tolist(), rel=1e-3, abs=1e-4)
    (reading,) = rl.patchscope(lens, [d], LogitLens(4))
    top = table.loc[table["end"] == "top", "token"].str.strip()
    assert reading.text == ", ".join(top)


@pytest.mark.parametrize("skip", [0, 5])
def test_a_transported_direction_is_the_mean_jacobian_times_it(
    lens: rl.Lens, variant: Variant, skip: int
) -> None:
    """J built entry by entry, by a backward pass for each dimension of the last block's output."""
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    prompts = tiny.PROMPTS[:2]
    d = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(lens.d_model)
    for prompt in prompts:
        ids = oracles.chat_ids(tokenizer, prompt)
        jacobian = oracles.mean_jacobian(model, ids, 2, range(skip, len(ids) - 1))
        expected += jacobian @ d / len(prompts)
    found = forward.transported(lens.model, lens.encode(prompts), d[None], [2], skip=skip)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_the_jacobian_lens_is_that_of_transformer_lens(llama: rl.Lens) -> None:
    analysis = pytest.importorskip("transformer_lens.tools.analysis")
    prompts = [f"{text} {text} {text}" for text in tiny.PROMPTS[:3]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = analysis.JacobianLens.fit(
            llama.model, prompts, corpus="tiny", skip_first_positions=4, show_progress=False
        )
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    several = [vectors.at(1), vectors.at(3)]
    raw = llama.encode(prompts, raw=True)
    ours = JacobianLens(raw, n=6, skip=4).table(llama, several)
    theirs = JacobianLens(n=6, fitted=fitted).table(llama, several)
    assert ours["token"].tolist() == theirs["token"].tolist()
    assert ours["logit"].tolist() == pytest.approx(theirs["logit"].tolist(), rel=1e-3, abs=1e-3)
    plain = LogitLens(6).table(llama, several)
    assert ours["token"].tolist() != plain["token"].tolist()
    (reading,) = rl.patchscope(llama, several[:1], JacobianLens(raw, n=6, skip=4))
    assert reading.text == ", ".join(ours.loc[:5, "token"].str.strip())
    other = analysis.JacobianLens({0: torch.eye(4)}, n_prompts=1, d_model=4)
    with pytest.raises(rl.InputError, match="has no layer 2, which the direction of 'a' leaves"):
        JacobianLens(fitted=other).table(llama, several)
    with pytest.raises(rl.InputError, match="does not fit tiny-Llama: lens was fitted for d_model"):
        JacobianLens(fitted=other).table(llama, several[:1])


def test_the_nearest_prompts_project_highest(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    several = [vectors.at(3, -1), vectors.at(1, -2)]
    prompts = tiny.PROMPTS + tiny.OTHERS
    readings = rl.patchscope(llama, several, NearestPrompts(prompts, 2))
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    for reading, d in zip(readings, several, strict=True):
        at = {
            prompt: float(
                oracles.hidden(model, oracles.chat_ids(tokenizer, prompt))[d.layer, d.position]
                @ d.vector
            )
            for prompt in prompts
        }
        order = sorted(at, key=at.__getitem__)
        assert reading.text.split("\n") == order[:-3:-1]
        assert reading.baseline.split("\n") == order[:2]


READERS = [
    Addition(5.0, max_new_tokens=5),
    TokenIdentity(max_new_tokens=5),
    TokenIdentity(2, max_new_tokens=5, temperature=0.7, seed=3),
    SelfIE(1, max_new_tokens=5),
    LogitLens(),
    JacobianLens(tiny.PROMPTS, skip=3),
    NearestPrompts(tiny.PROMPTS),
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: type(reader).__name__)
def test_many_are_read_as_one_by_one(llama: rl.Lens, reader: Reader) -> None:
    found = rl.role_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.OTHERS[1:])
    several = [found.direction(role, layer, -1) for role in "ab" for layer in (1, 2, 3)]
    together = [reading.text for reading in rl.patchscope(llama, several, reader)]
    if getattr(reader, "temperature", 0.0) == 0:
        assert together == [rl.patchscope(llama, d, reader).text for d in several]
    assert together == [reading.text for reading in rl.patchscope(llama, several, reader)]


@pytest.fixture(scope="module")
def concept() -> tuple[rl.Lens, rl.Directions]:
    """A model with a concept written into its weights, and the vectors of the concept."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "concept", hf_model=planted.concept(), tokenizer=tiny.tokenizer(), device="cpu"
    )
    lens = rl.Lens(bridge)
    role = {"concept": planted.prompts("math", 24)}
    return lens, rl.role_vectors(lens, role, planted.prompts(None, 24))


@pytest.mark.parametrize(
    ("reader", "layers"),
    [
        (TokenIdentity(max_new_tokens=1), (1, 2, 3)),
        (SelfIE(1, ("Sure",), max_new_tokens=1), (1, 2)),
        (LogitLens(1), (3,)),
    ],
    ids=("identity", "selfie", "logit lens"),
)
def test_a_planted_concept_is_read_where_it_is_one(concept, reader, layers) -> None:
    lens, vectors = concept
    for layer in layers:
        (reading,) = rl.patchscope(lens, [vectors["concept"].at(layer)], reader)
        assert reading.text == planted.CONCEPT, layer
    if isinstance(reader, LogitLens):
        for layer in (1, 2):
            (reading,) = rl.patchscope(lens, [vectors["concept"].at(layer)], reader)
            assert reading.text != planted.CONCEPT, layer
    else:
        assert reading.baseline != planted.CONCEPT
    d = vectors["concept"].at(layers[-1])
    noise = [d.random_like(seed) for seed in range(60)]
    said = [reading.text for reading in rl.patchscope(lens, noise, reader)]
    _, high = rl.stats.wilson(sum(text == planted.CONCEPT for text in said), 60)
    assert high < 0.2, said


def test_what_all_prompts_share_runs_once(llama: rl.Lens, monkeypatch) -> None:
    """Before the replaced token, one row; from there on, all of them."""
    d = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2)
    seen: list[tuple[int, ...]] = []

    def look(x, hook):
        seen.append(tuple(x.shape[:2]))

    with llama.model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", look)]):
        rl.patchscope(llama, [d * k for k in (1.0, 2.0, 3.0, 4.0)], TokenIdentity(max_new_tokens=3))
    n = len(tiny.tokenizer()(IDENTITY).input_ids)  # and a beginning-of-sequence token
    assert seen[:4] == [(1, n), (4, 1), (4, 1), (4, 1)]


def test_bad_readings_are_refused(llama: rl.Lens) -> None:
    d = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2)
    for reader, sentence in (
        (TokenIdentity(9), "layer is 9; tiny-Llama has layers 0 to 3"),
        (SelfIE(begun=()), "at least one placeholder and one beginning"),
        (NearestPrompts(tiny.PROMPTS, 99), "n is 99; there are"),
        (LogitLens(0), "n is 0"),
        (LogitLens(301), "n is 301; it has to be from 1 to 300"),
        (JacobianLens(tiny.PROMPTS, skip=99), "of which the first 99 and the last are left out"),
        (JacobianLens(tiny.PROMPTS, fitted=object()), "leave one of them out"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            rl.patchscope(llama, [d], reader)
    with pytest.raises(rl.InputError, match="is zero and writes no token"):
        rl.patchscope(llama, [d - d], LogitLens())
    with pytest.raises(rl.InputError, match="no directions to read"):
        rl.patchscope(llama, [])
    with pytest.raises(rl.InputError, match="raw prompts have no answers"):
        llama.generate(["a"], raw=True, system="Be kind.")
