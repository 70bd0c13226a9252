"""Public calls on devices that are not there; see :mod:`pretend`."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM

import pretend
import rolelens as rl
import tiny
from rolelens.forward.plain import resumes
from rolelens.patchscoping import Addition

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0),
    rl.Question("q2", "Which of these is cold to the touch?", ("fire", "ice"), 1),
]
TEXT = "how are you today, and where is it that you are? " * 6


def bridge(tied: bool, dtype: torch.dtype, layers: int = 4) -> Any:
    sizes = tiny.reference("Llama").config.to_dict()
    torch.manual_seed(0)
    config = LlamaConfig(**sizes | {"tie_word_embeddings": tied, "num_hidden_layers": layers})
    config._attn_implementation = "eager"
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config).eval().to(dtype)
    tokenizer = tiny.tokenizer()
    return TransformerBridge.boot_transformers(
        "tiny-Llama", hf_model=model, tokenizer=tokenizer, device="cpu", dtype=dtype
    )


def place(model: Any, *, several: bool, tied: bool) -> rl.Lens:
    """Put a bridge on ``cpu:1``, or its upper half on ``cpu:2``, and the head unless it is tied."""
    first, second = "cpu:1", "cpu:2" if several else "cpu:1"
    inside, head = model.original_model.model, model.original_model.lm_head
    on = {inside.embed_tokens: first, inside.rotary_emb: first, inside.norm: second}
    on |= {head: first if tied else second}
    half = len(inside.layers) // 2
    on |= {block: first if n < half else second for n, block in enumerate(inside.layers)}
    for part, device in on.items():
        pretend.move(part, device)
        if several and part is not inside.rotary_emb:
            pretend.carry(part, device)
    if tied:
        head.original_component._parameters["weight"] = inside.embed_tokens.weight
    model.cfg.device = torch.device(first)
    return rl.Lens(model)


def vectors(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]


def steering(lens: rl.Lens) -> rl.Steering:
    v = vectors(lens)
    return rl.add(v.at(1, -1), 2.0) + rl.add(v.at(2, -1), 1.0, tokens="post-instruction")


def rows(lens: rl.Lens) -> list[str]:
    d = vectors(lens).at(2, -1)
    hooks = rl.by_row([rl.add(d, alpha) for alpha in (1.0, 2.0, 3.0)])
    return lens.generate(tiny.PROMPTS[:1] * 3, hooks=hooks, max_new_tokens=4)


def operations(lens: rl.Lens) -> list[rl.Steering]:
    """Every kind of step, in layers of both devices, and one for some prompts only."""
    v = vectors(lens)
    d, e = v.at(2, -1), v.at(2, -2)
    low, high = rl.thresholds(lens, tiny.OTHERS, d, [20.0, 80.0]).iloc[0][[20.0, 80.0]].tolist()
    return [
        rl.add(d, 2.0, rescale=True, layers=[1, 2]),
        rl.clamp(d, low, high, layers=[1, 3]),
        rl.clamp(d, high=low, tokens="last"),
        rl.mean_ablate(d, lens, tiny.OTHERS, layers=[1, 3]),
        rl.rotate(d, e, 40.0, layers=[1, 2]),
        rl.rotate(d, e, 90.0, absolute=True, adaptive=True),
        gated(lens, v),
    ]


def gated(lens: rl.Lens, v: rl.Directions) -> rl.Steering:
    """Steering on a condition whose bound lies between the prompts, far from each of them."""
    d = v.at(3, -1)
    ends = sorted(rl.project(lens, tiny.PROMPTS, d).groupby("prompt").tail(1)["projection"])
    _, n = max((b - a, n) for n, (a, b) in enumerate(itertools.pairwise(ends)))
    return rl.add(v.at(1, -1), 3.0).when(d, above=float(ends[n] + ends[n + 1]) / 2)


def operated(lens: rl.Lens) -> Any:
    swept = rl.sweep(lens, operations(lens), QUESTIONS, method="cloze")
    return torch.from_numpy(swept.records)


def watched(lens: rl.Lens) -> Any:
    d = vectors(lens).at(2, -1)
    answers = ["It is so."] * 20
    watch = rl.monitor(lens, [d], ["Who is it?"] * 20, answers=answers, false_alarms=0.2)
    return torch.tensor(watch.read(tiny.PROMPTS, ["Yes, it is."] * 6).table["answer_mean"])


def swept(lens: rl.Lens, **options: Any) -> Any:
    grid = {"layers": [1, 3], "positions": [-1]}
    return torch.from_numpy(rl.sweep(lens, vectors(lens), QUESTIONS, **grid, **options).records)


def searched(lens: rl.Lens, method: str) -> Any:
    grid = {"layers": [1, 3], "positions": [-1], "alphas": [1.0], "method": method}
    found = rl.search(lens, vectors(lens), QUESTIONS, **grid)
    return found.best("a").label


CALLS: dict[str, Callable[[rl.Lens], Any]] = {
    "vectors": lambda lens: vectors(lens).directions,
    "every token": lambda lens: rl.activations(lens, tiny.PROMPTS, layers=[3], positions="all")[1],
    "attention": lambda lens: rl.activations(lens, tiny.PROMPTS, site="attn_out"),
    "projections": lambda lens: torch.tensor(
        rl.project(lens, tiny.PROMPTS, vectors(lens).at(2, -1))["projection"].to_numpy()
    ),
    "letters": lambda lens: rl.evaluate(lens, QUESTIONS, steering(lens)).logprobs,
    "cloze": lambda lens: rl.evaluate(lens, QUESTIONS, steering(lens), "cloze").logprobs,
    "sweep of letters": lambda lens: swept(lens, method="letter"),
    "sweep of cloze": lambda lens: swept(lens, method="cloze", tokens="post-instruction"),
    "ablation": lambda lens: swept(lens, method="cloze", change="ablate"),
    "search of letters": lambda lens: searched(lens, "letter"),
    "search of cloze": lambda lens: searched(lens, "cloze"),
    "text": lambda lens: lens.generate(tiny.PROMPTS, hooks=steering(lens), max_new_tokens=5),
    "sampled text": lambda lens: lens.generate(
        tiny.PROMPTS, temperature=1.0, top_p=0.9, max_new_tokens=5
    ),
    "without a cache": lambda lens: lens.generate(
        tiny.PROMPTS,
        hooks=rl.ablate(vectors(lens).at(2, -1), lens),
        max_new_tokens=3,
        cache=False,
    ),
    "rows": rows,
    "operations": operated,
    "operations on text": lambda lens: lens.generate(
        tiny.PROMPTS[:1] * 7, hooks=rl.by_row(operations(lens)), max_new_tokens=4
    ),
    "gates": lambda lens: lens.generate(
        tiny.PROMPTS, hooks=gated(lens, vectors(lens)), max_new_tokens=4
    ),
    "watching": watched,
    "streamed text": lambda lens: list(lens.stream(tiny.PROMPTS[0], max_new_tokens=5)),
    "reading": lambda lens: (
        rl.patchscope(lens, vectors(lens).at(2, -1), Addition(max_new_tokens=5)).text
    ),
    "perplexity": lambda lens: rl.perplexity(lens, TEXT, rl.add(vectors(lens).at(1, -1))).value,
}


@pytest.mark.parametrize(
    ("where", "dtype"),
    [
        ("one", torch.float32),
        ("two", torch.float32),
        ("two, tied", torch.bfloat16),
    ],
    ids=str,
)
def test_public_calls_give_the_numbers_of_the_cpu(where: str, dtype: torch.dtype) -> None:
    tied = where.endswith("tied")
    here = rl.Lens(bridge(tied, dtype))
    expected = {name: call(here) for name, call in CALLS.items()}
    with pretend.pretending():
        there = place(bridge(tied, dtype), several=where != "one", tied=tied)
        assert resumes(there.model)  # what cells share is shared
        for name, call in CALLS.items():
            found = call(there)
            if isinstance(found, torch.Tensor):
                assert not pretend.far(found), name
                torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-5)
            else:
                assert found == expected[name], name


@pytest.mark.parametrize(
    "name", ["letters", "ablation", "text", "vectors", "sweep of cloze", "gates"]
)
def test_copies_do_not_grow_with_the_layers(name: str) -> None:
    copies = []
    for layers in (4, 6):
        with pretend.pretending() as moved:
            lens = place(bridge(False, torch.float32, layers), several=False, tied=False)
            resumes(lens.model)
            moved.copies.clear()
            CALLS[name](lens)
        copies.append(len(moved.copies))
    assert copies[0] == copies[1]


def test_an_error_of_a_device_is_none_of_the_architecture(monkeypatch) -> None:
    """Whole passes in place of shared ones would hide it, and be slow."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Expected all tensors to be on the same device, but found two")

    monkeypatch.setattr("rolelens.forward.plain.Shared", fail)
    lens = rl.Lens(bridge(False, torch.float32))
    with pytest.raises(RuntimeError, match="same device"):
        resumes(lens.model)
