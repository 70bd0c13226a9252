"""Baked checkpoints, against rolelens' hooks, plain Hugging Face hooks, and plain transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import oracles
import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens.interop import bake
from rolelens.interop.stock import STOCK

ABLATED = ("Llama", "Mistral", "Qwen2", "Qwen3", "GPT2", "Phi", "Phi3", "Mixtral", "Qwen3Moe")
ABLATED += ("GptOss", "Llama4", "DeepseekV3", "Granite", "Cohere2")
ADDED = ("Llama", "GPT2", "Phi", "GptOss", "Granite")
NORMED = ("Gemma2", "Gemma3", "Olmo2")
STEPS = 200
PLAIN = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

assert not any(part in sys.modules for part in ("rolelens", "transformer_lens"))
folders, ids, steps, out = json.loads(sys.argv[1])
found = {}
for name, folder in folders.items():
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        found[f"{name} logits"] = model(torch.tensor([ids])).logits[0].clone()
        written, cache, step = [], None, torch.tensor([ids])
        for _ in range(steps):
            answer = model(step, past_key_values=cache, use_cache=True)
            cache, step = answer.past_key_values, answer.logits[:, -1:].argmax(dim=-1)
            written.append(int(step))
    found[f"{name} text"] = torch.tensor(written)
assert not any(part in sys.modules for part in ("rolelens", "transformer_lens"))
save_file(found, out)
"""
"""A process without rolelens: it loads checkpoints, and tells logits and greedy tokens."""


def plainly(folders: dict[str, Path], ids: list[int], steps: int, out: Path) -> dict[str, Any]:
    told = {name: str(folder) for name, folder in folders.items()}
    arguments = json.dumps([told, ids, steps, str(out)])
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, arguments], check=True, env=bare, cwd=out.parent
    )
    return load_file(out)


def direction(layer: int, seed: int, size: float = 1.0, name: str = "d") -> rl.Direction:
    generator = torch.Generator().manual_seed(seed)
    return rl.Direction(size * torch.randn(32, generator=generator), layer, name=name)


def long(architecture: str) -> Any:
    """A random model with room for a prompt and 200 tokens more."""
    return tiny.reference(architecture, 320)


def lens_on(model: Any) -> rl.Lens:
    import copy

    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        f"tiny-{type(model).__name__}",
        hf_model=copy.deepcopy(model),
        tokenizer=tiny.tokenizer(),
        device="cpu",
    )
    return rl.Lens(bridge)


def hooked_logits(lens: rl.Lens, steering: rl.Steering, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        tokens = torch.tensor([ids])
        return lens.model.run_with_hooks(tokens, fwd_hooks=steering, return_type="logits")[0]


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every architecture ablated, and with additions where it holds them, loaded plainly."""
    place = tmp_path_factory.mktemp("baked")
    folders, expected = {}, {}
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[1])
    for architecture in ABLATED:
        model = long(architecture)
        lens = lens_on(model)
        d, e = direction(2, 1), direction(3, 2)
        with oracles.ablated(model, d.vector):
            text = oracles.greedy(model, ids, STEPS)
            plain = oracles.logits(model, ids)
        steering = rl.ablate(d, lens)
        folders[f"{architecture} ablate"] = bake(lens, steering, place / f"{architecture}-ablate")
        expected[f"{architecture} ablate"] = text, plain, hooked_logits(lens, steering, ids)
        if architecture in ADDED:
            steering = rl.add(d, 2.0) + rl.add(e, -1.0)
            with (
                oracles.added(model, 2, 2.0 * d.vector),
                oracles.added(model, 3, -e.vector),
            ):
                text, plain = oracles.greedy(model, ids, STEPS), oracles.logits(model, ids)
            folders[f"{architecture} add"] = bake(lens, steering, place / f"{architecture}-add")
            expected[f"{architecture} add"] = text, plain, hooked_logits(lens, steering, ids)
    for architecture in (*NORMED, "Llama", "GPT2", "Granite"):
        model = long(architecture)
        lens = lens_on(model)
        d = direction(0, 3)
        with oracles.added(model, 0, d.vector):
            text, plain = oracles.greedy(model, ids, STEPS), oracles.logits(model, ids)
        folders[f"{architecture} first"] = bake(lens, rl.add(d), place / f"{architecture}-first")
        expected[f"{architecture} first"] = text, plain, hooked_logits(lens, rl.add(d), ids)
    found = plainly(folders, ids, STEPS, place / "found.safetensors")
    return {"found": found, "expected": expected, "folders": folders, "ids": ids}


CASES = [
    *(f"{architecture} ablate" for architecture in ABLATED),
    *(f"{architecture} add" for architecture in ADDED),
    *(f"{architecture} first" for architecture in (*NORMED, "Llama", "GPT2", "Granite")),
]


@pytest.mark.parametrize("case", CASES)
def test_a_process_without_rolelens_does_what_hooks_do(baked: dict[str, Any], case: str) -> None:
    text, plain, hooked = baked["expected"][case]
    found = baked["found"][f"{case} logits"]
    assert (found - plain).abs().max() <= 1e-3
    assert (found - hooked).abs().max() <= 1e-3
    assert baked["found"][f"{case} text"].tolist() == text
    unsteered = oracles.logits(long(case.split()[0]), baked["ids"])
    assert (found - unsteered).abs().max() > 0.05  # something was baked


def test_every_known_architecture_is_among_them() -> None:
    types = {tiny.reference(name).config.model_type for name in (*ABLATED, *NORMED)}
    assert types == set(STOCK)


def test_the_folder_says_what_was_baked(baked: dict[str, Any]) -> None:
    folder = baked["folders"]["Llama ablate"]
    told = json.loads((folder / "rolelens.json").read_text())
    assert told["steering"]["steps"][0]["kind"] == "ablate"
    assert told["largest_logit_difference"] <= 1e-3
    assert "ablate (d of layer 2)" in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    lens = rl.load(folder)  # it is a model like any other, with its chat format
    assert lens.chat.template == tiny.TEMPLATE
    stock = AutoTokenizer.from_pretrained(folder)  # TransformerLens' one begins every text with BOS
    assert stock("Prove it.").input_ids == tiny.tokenizer()("Prove it.").input_ids


def test_ablation_and_addition_together(tmp_path: Path) -> None:
    model, lens = tiny.reference("Llama"), tiny_lens("Llama")
    d, e = direction(2, 4), direction(2, 5)
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[2])
    apart = e.project_out(d)
    for steering in (rl.add(e, 2.0) + rl.ablate(d, lens), rl.ablate(d, lens) + rl.add(apart, 2.0)):
        folder = bake(lens, steering, tmp_path / steering.sha)
        found = plainly({"m": folder}, ids, 1, tmp_path / "found.safetensors")["m logits"]
        with oracles.added(model, 2, 2.0 * apart.vector), oracles.ablated(model, d.vector):
            assert (found - oracles.logits(model, ids)).abs().max() <= 1e-3


def test_directions_that_are_ablated_together_are_orthogonal(tmp_path: Path) -> None:
    model, lens = tiny.reference("Qwen2"), tiny_lens("Qwen2")
    d, e = direction(2, 6), direction(2, 7, name="e")
    ids = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[2])
    with pytest.raises(rl.InputError, match=r"'e' has a cosine of .* take d.project_out"):
        bake(lens, rl.ablate(d, lens) + rl.ablate(e, lens), tmp_path / "m")
    apart = e.project_out(d)
    folder = bake(lens, rl.ablate(d, lens) + rl.ablate(apart, lens), tmp_path / "m")
    found = plainly({"m": folder}, ids, 1, tmp_path / "found.safetensors")["m logits"]
    with oracles.ablated(model, d.vector), oracles.ablated(model, apart.vector):
        assert (found - oracles.logits(model, ids)).abs().max() <= 1e-3


@pytest.mark.parametrize(
    ("architecture", "make", "said"),
    [
        ("Qwen2", lambda d, lens: rl.add(d), "stock 'qwen2' model has no bias .* layer 2"),
        ("Gemma2", lambda d, lens: rl.add(d), "in layer 0 alone: a norm follows"),
        ("Gemma3", lambda d, lens: rl.ablate(d, lens), "in layer 0 alone: a norm follows"),
        ("Llama", lambda d, lens: rl.add(d, tokens="generated"), "on tokens 'generated'"),
        ("Llama", lambda d, lens: rl.ablate(d, lens, layers=[1, 2]), "in every layer"),
        ("Llama", lambda d, lens: rl.ablate(d, lens, share=0.5), "wholly and in every layer"),
        ("Llama", lambda d, lens: rl.replace(d, tokens="all"), "cannot replace"),
        ("Llama", lambda d, lens: rl.ablate(d, lens) + rl.add(d), "after a direction was ablated"),
        ("Llama", lambda d, lens: rl.Steering(), "does nothing"),
        ("Mamba", lambda d, lens: rl.add(d), "not known how a 'mamba' model writes"),
    ],
)
def test_what_weights_cannot_hold_is_refused(
    tmp_path: Path, architecture: str, make: Any, said: str
) -> None:
    lens = tiny_lens(architecture)
    with pytest.raises(rl.InputError, match=said):
        bake(lens, make(direction(2, 8), lens), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_folder_that_is_not_empty_stays(tmp_path: Path, llama: rl.Lens) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(rl.InputError, match="not empty"):
        bake(llama, rl.add(direction(2, 9)), tmp_path)


def test_weights_of_no_checkpoint_are_refused(tmp_path: Path) -> None:
    lens = tiny_lens("GPT2")
    lens.model.enable_compatibility_mode(no_processing=True)
    with pytest.raises(rl.InputError, match="not those of a checkpoint"):
        bake(lens, rl.add(direction(2, 9)), tmp_path / "m")


@pytest.mark.model
def test_the_embedded_model(tmp_path: Path, smollm2: rl.Lens) -> None:
    vectors = rl.contrast(smollm2, ["Sir, may I ask?"], ["hey you"], name="formal")
    d = vectors.at(layer=16, position=-1)
    prompt = "What should I do this weekend?"
    ids = list(smollm2.encode([prompt]).ids[0])
    steerings = {"add": rl.add(d, 1.0), "ablate": rl.ablate(d, smollm2)}
    folders = {name: bake(smollm2, s, tmp_path / name) for name, s in steerings.items()}
    found = plainly(folders, ids, STEPS, tmp_path / "found.safetensors")
    for name, steering in steerings.items():
        assert (found[f"{name} logits"] - hooked_logits(smollm2, steering, ids)).abs().max() <= 1e-3
        text = smollm2.generate([prompt], hooks=steering, max_new_tokens=STEPS)[0]
        written = found[f"{name} text"].tolist()
        assert smollm2._text(written) == text
