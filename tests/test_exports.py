"""``rolelens export``: files and sentences."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import rolelens as rl
import tiny
from rolelens import interop
from rolelens.cli import app


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def steering(tmp_path: Path) -> Path:
    d = rl.Direction(torch.ones(32), 2, name="ones")
    return rl.add(d, 2.0).save(tmp_path / "s.safetensors")


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_every_format_of_the_command(tmp_path: Path, model: str, steering: Path) -> None:
    told = json.loads(run(steering, tmp_path / "v.gguf", "--to", "gguf", "--json"))
    assert told["format"] == "gguf"
    assert torch.equal(
        interop.read_control_vector(tmp_path / "v.gguf").at(2).vector, torch.full((32,), 2.0)
    )
    run(steering, tmp_path / "v.pt", "--to", "steering-vectors")
    assert interop.read_layer_activations(tmp_path / "v.pt").layers == (2,)
    run(steering, tmp_path / "v.json", "--to", "boot-vllm")
    assert list(json.loads((tmp_path / "v.json").read_text())) == ["blocks.1.hook_out"]
    run(steering, tmp_path / "l.json", "--to", "vllm-lens")
    assert json.loads((tmp_path / "l.json").read_text())[0]["layer_indices"] == [1]
    run(steering, tmp_path / "hub", "--to", "hub")
    assert interop.from_pretrained(tmp_path / "hub") == rl.Steering.load(steering)
    run(steering, tmp_path / "s.pt", "--to", "lm-eval", "--model", model)
    assert list(torch.load(tmp_path / "s.pt", weights_only=True)) == ["layers.1"]
    said = run(steering, tmp_path / "baked", "--to", "hf", "--model", model)
    assert "add 2 x (ones of layer 2) in layer 2" in said
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    assert torch.equal(baked.model.layers[1].mlp.down_proj.bias, torch.full((32,), 2.0))


def test_bad_input_ends_with_one_sentence(tmp_path: Path, model: str, steering: Path) -> None:
    out = tmp_path / "out"
    assert "no format 'ggufs'; did you mean 'gguf'?" in run(steering, out, "--to", "ggufs", code=2)
    assert "no file" in run(tmp_path / "none", out, "--to", "gguf", code=2)
    said = run(steering, out, "--to", "gguf", "--model", model, code=2)
    assert "--model has no effect on the format 'gguf'" in said
    full = run(steering, model, "--to", "hf", "--model", model, code=2)
    assert "is there already and not empty" in full
    d = rl.Direction(torch.ones(32), 2)
    some = rl.add(d, tokens="generated").save(tmp_path / "some.safetensors")
    assert "tokens 'generated'" in run(some, out, "--to", "gguf", code=2)
    assert not out.exists()
