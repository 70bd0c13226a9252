"""Inspect: a steered model as its provider, against plain Hugging Face models under plain hooks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_lens
from foreign import foreign

D = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(3)), 2, name="d")
NEW = 8


@pytest.fixture(scope="module")
def provider() -> Any:
    """The module with the provider; Inspect comes with the extra ``rolelens[inspect]``."""
    foreign("inspect_ai")
    return foreign("rolelens.interop.inspect_ai")


def answered(prompt: str, alpha: float) -> str:
    """What a plain Hugging Face model writes under a plain hook."""
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    with oracles.added(model, 2, alpha * D.vector):
        ids = oracles.greedy(model, oracles.chat_ids(tokenizer, prompt), NEW)
    ends = [n for n, token in enumerate(ids) if token in stops(tokenizer)]
    return tokenizer.decode(ids[: ends[0] if ends else NEW], skip_special_tokens=True).strip()


def stops(tokenizer: Any) -> set[int]:
    return set(tiny_lens("Llama")._stop_ids) | {tokenizer.eos_token_id}


def evaluated(model: Any, prompts: list[str], targets: list[str], folder: Path, **options: Any):
    """Inspect's own log of an evaluation, a sample a prompt."""
    inspect_ai = foreign("inspect_ai")
    dataset, scorer = foreign("inspect_ai.dataset"), foreign("inspect_ai.scorer")
    samples = [
        dataset.Sample(input=prompt, target=target, id=n)
        for n, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
    ]
    task = inspect_ai.Task(dataset=samples, scorer=scorer.exact(), name="local")
    (log,) = inspect_ai.eval(
        task, model=model, log_dir=str(folder), display="none", max_tokens=NEW, **options
    )
    return log


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_runs_steered(provider: Any, tmp_path: Path) -> None:
    """Texts and accuracy are those of a plain model under a plain hook, steered and not."""
    prompts = list(tiny.PROMPTS)
    targets = [answered(prompt, 3.0) for prompt in prompts]
    assert targets != [answered(prompt, 0.0) for prompt in prompts]
    lens = tiny_lens("Llama")
    for steering in (rl.add(D, 3.0), rl.Steering()):
        model = provider.inspect_model(lens, steering)
        log = evaluated(model, prompts, targets, tmp_path)
        assert log.status == "success", log.error
        expected = [answered(prompt, 3.0 if steering else 0.0) for prompt in prompts]
        samples = sorted(log.samples, key=lambda sample: sample.id)
        assert [sample.output.completion for sample in samples] == expected
        right = [sample.scores["exact"].value == "C" for sample in samples]
        assert right == [a == b for a, b in zip(expected, targets, strict=True)]
        assert samples[0].output.metadata["steering_sha"] == steering.sha
        length = len(oracles.chat_ids(tiny.tokenizer(), prompts[0]))
        assert samples[0].output.usage.input_tokens == length
        again = evaluated(model, prompts[:1], targets[:1], tmp_path)  # another event loop
        assert again.samples[0].output.completion == expected[0]


@pytest.mark.filterwarnings("ignore")
def test_questions_are_answered_together(
    provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = tiny_lens("Llama")
    sizes = []
    continued = lens.continued

    def counted(tokens: Any, **options: Any) -> Any:
        sizes.append(len(tokens))
        return continued(tokens, **options)

    monkeypatch.setattr(lens, "continued", counted)
    prompts = [f"{tiny.PROMPTS[0]} {n}" for n in range(12)]
    log = evaluated(provider.inspect_model(lens), prompts, [""] * 12, tmp_path)
    assert sum(sizes) == len(log.samples) == 12
    assert max(sizes) >= 6


def asked(model: Any, messages: Any, **settings: Any) -> Any:
    """One answer, with its settings."""
    config = foreign("inspect_ai.model").GenerateConfig(max_tokens=NEW, **settings)
    return anyio.run(lambda: model.api.generate(messages, [], "none", config))


def test_settings_of_an_answer(provider: Any) -> None:
    chat = foreign("inspect_ai.model")
    model = provider.inspect_model(tiny_lens("Llama"), rl.add(D, 3.0))
    messages = [chat.ChatMessageUser(content=tiny.PROMPTS[1])]
    whole = asked(model, messages)
    assert whole.completion == answered(tiny.PROMPTS[1], 3.0)
    stop = whole.completion[2:4]
    cut = asked(model, messages, stop_seqs=[stop])
    assert cut.completion == whole.completion[: whole.completion.index(stop)]
    assert cut.choices[0].stop_reason == "stop"
    hot = [asked(model, messages, temperature=1.5, seed=seed).completion for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    free = {asked(model, messages, temperature=1.5).completion for _ in range(3)}
    assert len(free) > 1  # epochs differ
    system = [chat.ChatMessageSystem(content="Be brief."), *messages]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": tiny.PROMPTS[1]},
    ]
    expected = model.api.lens.generate([turns], hooks=rl.add(D, 3.0), max_new_tokens=NEW)[0]
    assert asked(model, system).completion == expected


def test_what_it_cannot_do_is_refused(provider: Any) -> None:
    chat, tool = foreign("inspect_ai.model"), foreign("inspect_ai.tool")
    model = provider.inspect_model(tiny_lens("Llama"))
    user = chat.ChatMessageUser(content="Hello.")
    with pytest.raises(rl.InputError, match="the task sets logprobs, top_k, which rolelens has"):
        asked(model, [user], top_k=3, logprobs=True)
    image = chat.ChatMessageUser(content=[chat.ContentImage(image="data:image/png;base64,")])
    with pytest.raises(rl.InputError, match="role 'user' holds image, and rolelens reads texts"):
        asked(model, [image])
    offered = tool.ToolInfo(name="bash", description="Run a command.")
    with pytest.raises(rl.InputError, match="offers tools .bash., and rolelens writes texts"):
        anyio.run(model.api.generate, [user], [offered], "auto", chat.GenerateConfig())
    with pytest.raises(rl.InputError, match=r"steering is a Steering, .* name a file"):
        chat.get_model("rolelens/smollm2", steering=rl.add(D, 3.0), memoize=False)
    with pytest.raises(rl.InputError, match="arguments name stering; rolelens takes steering"):
        chat.get_model("rolelens/smollm2", stering="s.safetensors", memoize=False)


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import exact

@task
def local():
    return Task(dataset=[Sample(input={prompt!r}, target={target!r})], scorer=exact())
"""


@pytest.mark.filterwarnings("ignore")
def test_its_command_line_finds_the_provider(provider: Any, tmp_path: Path) -> None:
    """``inspect eval --model rolelens/FOLDER -M steering=FILE``, in a process of its own."""
    from importlib.metadata import entry_points

    if not [one for one in entry_points(group="inspect_ai") if one.name == "rolelens"]:
        pytest.skip("rolelens was installed before it had an entry point; run pip install -e .")
    folder = tmp_path / "model"
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    steering = rl.add(D, 3.0).save(tmp_path / "s.safetensors")
    target = answered(tiny.PROMPTS[1], 3.0)
    (tmp_path / "local.py").write_text(TASK.format(prompt=tiny.PROMPTS[1], target=target))
    command = ["eval", "local.py", "--model", f"rolelens/{folder}", "-M", f"steering={steering}"]
    command += ["--max-tokens", str(NEW), "--display", "none", "--log-format", "json"]
    run = subprocess.run(
        [sys.executable, "-m", "inspect_ai", *command, "--log-dir", "logs"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    told = json.loads(log.read_text())
    assert told["samples"][0]["scores"]["exact"]["value"] == "C"
    assert told["eval"]["model_args"]["steering"] == str(steering)
