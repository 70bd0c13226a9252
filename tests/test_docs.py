"""What the documents say in code runs, and what they name is there."""

import dataclasses
import json
import linecache
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rolelens as rl
import test_bias as bias
import tiny
from conftest import HAS_HOOKED, hooked_transformer
from rolelens import features, routing, updates
from rolelens.sweeps.runners import processes

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PEERS = ("steering_vectors", "nnsight")
"""Other libraries that a block may import; without them it is passed over."""
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\n```python\n.*?```\n", re.S)
LINES = 5
"""Lines of code in a block of the how-to at most."""


def blocks(path: Path, *, run: bool = False) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", NOT_RUN.sub("", text) if run else text, re.S)


def save_model(folder: Path) -> None:
    """A tiny model with as many layers as the documents name of the embedded one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**tiny.reference("Llama").config.to_dict() | {"num_hidden_layers": 22})
    config.max_position_embeddings = 512
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def fixed(function: Any, **options: Any) -> Any:
    """A function with some options, whatever it is asked for."""
    return lambda *given, **asked: function(*given, **asked | options)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where a document's blocks run: models loaded by name are tiny; sets and answers are short.

    What would take minutes takes fewer steps, nulls or items.
    """
    load, load_task, load_roles, load_base = rl.load, rl.load_task, rl.load_roles, rl.load_base
    generate = rl.Lens.generate
    save_model(tmp_path / "path" / "to" / "model")
    monkeypatch.chdir(tmp_path)

    def loaded(model: Any, **options: Any) -> rl.Lens:
        return load("path/to/model" if isinstance(model, str) else model, **options)

    def short_task(source: Any) -> rl.Task:
        task = load_task(source)
        return task.take(range(0, len(task), 5)) if source == "mini" else task

    def short_roles() -> dict[str, rl.RolePrompts]:
        return {
            role: dataclasses.replace(prompts, prompts=prompts.prompts[:8])
            for role, prompts in load_roles().items()
        }

    monkeypatch.setattr(rl, "load", loaded)
    monkeypatch.setattr(rl.Lens, "generate", fixed(generate, max_new_tokens=4))
    for place in (rl, rl.tasks):
        monkeypatch.setattr(place, "load_task", short_task)
    for place, name, options in (
        (rl, "side_effects", {"nulls": 3}),
        (rl, "suggest", {"items": 3}),
        (rl.evidence, "study_folds", {"anyway": True}),
        (routing, "oracle_gap", {"nulls": 1}),
        (features, "train_sae", {"steps": 5}),
        (features, "attribute", {"top": 1, "randoms": 1}),
        (updates, "train_adapter", {"steps": 4}),
        (updates, "fusion_bound", {"trials": 1, "max_new_tokens": 2}),
    ):
        monkeypatch.setattr(place, name, fixed(getattr(place, name), **options))
    monkeypatch.setattr(processes, "CORES", 1)  # a worker takes seconds to start
    monkeypatch.setattr(rl, "load_roles", short_roles)
    monkeypatch.setattr(rl, "load_base", lambda: load_base()[:8])
    return {}


def prepared(namespace: dict[str, Any]) -> dict[str, Any]:
    """What all pages but the README begin with: a lens, prompts, directions and a task."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model = AutoModelForCausalLM.from_pretrained("path/to/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("path/to/model")
    lens = rl.load("smollm2")
    roles, base = rl.load_roles(), rl.load_base()
    formal = [
        "Would you be so kind as to tell me the time?",
        "I should be obliged for your advice.",
    ]
    casual = ["hey what time is it", "got any advice?"]
    vectors = rl.contrast(lens, formal, casual, name="formal")
    task = rl.load_task("mini").domain("math")
    domains = {"formal": "math"}
    known = dict(
        rl=rl,
        domains=domains,
        lens=lens,
        roles=roles,
        base=base,
        formal=formal,
        casual=casual,
        task=task,
    )
    return namespace | known | dict(
        vectors=vectors, d=vectors.at(layer=16), hf_model=hf_model, tokenizer=tokenizer
    )  # fmt: skip


def with_roles(known: dict[str, Any]) -> None:
    """Directions of three roles."""
    known["roles"] = {name: known["roles"][name] for name in ("lawyer", "nurse", "doctor")}
    known["vectors"] = rl.role_vectors(known["lens"], known["roles"], known["base"])
    known["domains"] = dict.fromkeys(known["roles"], "math")


def with_an_autoencoder(known: dict[str, Any]) -> None:
    """An autoencoder in a folder as Gemma Scope's, and questions."""
    with_roles(known)
    width, n_features = known["lens"].d_model, 64
    shapes = {"W_enc": (width, n_features), "b_enc": n_features, "threshold": n_features}
    shapes |= {"W_dec": (n_features, width), "b_dec": width}
    folder = Path("layer_12/width_16k/average_l0_41")
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    weights = {name: drawn.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    np.savez(folder / "params.npz", **weights | {"threshold": abs(weights["threshold"])})
    known["null"] = known["vectors"]["lawyer"].at(12).random_like()
    known["role_questions"] = [f"The role answers: {prompt}" for prompt in known["formal"]]
    known["questions"] = known["casual"]


def with_sets_about_bias(known: dict[str, Any]) -> None:
    """Files as those of BBQ and CrowS-Pairs are, and a text."""
    with_roles(known)
    folder = Path("path/to/bbq")
    folder.mkdir()
    (folder / "Age.jsonl").write_text("\n".join(map(json.dumps, bias.rows(24))))
    rows = "\n".join(f"{n},He {n} sings a song.,She {n} sings a song.,stereo,gender" for n in "abc")
    header = ",sent_more,sent_less,stereo_antistereo,bias_type"
    Path("path/to/crows_pairs.csv").write_text(f"{header}\n{rows}\n")
    known["held_out"] = "The river finds the sea in the end. " * 8


def with_references(known: dict[str, Any]) -> None:
    """Directions of three roles, prompts, and another model with directions."""
    with_roles(known)
    known["prompts"], known["legal"] = known["formal"], known["roles"]["lawyer"].prompts
    known["other"], known["own"] = rl.load("smollm2"), known["vectors"]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_what_a_document_says_runs(path: Path, namespace: dict[str, Any]) -> None:
    known = namespace if path.name in ("README.md", "index.md") else prepared(namespace)
    match path.name:
        case "evidence.md":
            with_roles(known)
        case "features.md":
            with_an_autoencoder(known)
        case "side-effects.md":
            with_sets_about_bias(known)
        case "references.md":
            with_references(known)
    for number, block in enumerate(blocks(path, run=True), 1):
        if "HookedTransformer" in block:
            continue  # which not every TransformerLens has
        if any(f"from {peer}" in block and find_spec(peer) is None for peer in PEERS):
            continue
        name = f"{path.name}, block {number}"
        linecache.cache[name] = (len(block), None, block.splitlines(True), name)
        code = compile(block, name, "exec")
        with warnings.catch_warnings():
            if any(f"from {peer}" in block for peer in PEERS):
                warnings.simplefilter("ignore")
            exec(code, known)


def test_few_blocks_are_not_run() -> None:
    reasons = [reason for path in RUN for reason in NOT_RUN.findall(path.read_text("utf-8"))]
    assert len(reasons) <= 3
    assert all(reasons)


def test_every_public_name_is_in_the_reference_and_nothing_private() -> None:
    pages = "\n".join(p.read_text("utf-8") for p in (ROOT / "docs" / "reference").glob("*.md"))
    named = re.findall(r"^::: rolelens\.(\S+)$", pages, re.M)
    assert sorted(named) == sorted(rl.__all__)
    index = (ROOT / "docs" / "reference" / "index.md").read_text("utf-8")
    assert set(re.findall(r"`(\w+)`", index)) == set(rl.__all__)


def test_every_column_of_the_tables_is_explained(llama: rl.Lens) -> None:
    told = (ROOT / "docs" / "columns.md").read_text("utf-8")
    explained = set(re.findall(r"`(\w+)`", told)) | {"interaction_low", "interaction_high"}
    explained |= {"interaction_p", "interaction_p_holm", "interaction_p_bh", "measure", "name"}
    effects = {field.name for field in dataclasses.fields(rl.evidence.Effect)}
    assert effects <= explained, effects - explained
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    items = [rl.Question("q", "Is it?", ("yes", "no"), 0)]
    sweep = rl.sweep(llama, vectors, items, layers=[2], positions=[-1])
    projected = rl.project(llama, ["Hi"], vectors["a"].at(2))
    for table in (sweep.table(), projected):
        assert set(table.columns) <= explained, set(table.columns) - explained


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in site, page
    for notebook in NOTEBOOKS:
        assert f"notebooks/{notebook.name}" in site, notebook


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {rl.__version__}\n" in text


@pytest.mark.skipif(not HAS_HOOKED, reason="this TransformerLens has no HookedTransformer")
def test_the_block_with_a_hooked_transformer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens import HookedTransformer

    made = hooked_transformer("GPT2")
    monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda name: made)
    (block,) = [text for text in blocks(ROOT / "docs" / "how-to.md") if "HookedTransformer" in text]
    known: dict[str, Any] = {"rl": rl}
    exec(block, known)
    assert known["hooked"].model is made


def test_a_way_to_do_something_takes_five_lines() -> None:
    path = ROOT / "docs" / "how-to.md"
    assert len(blocks(path)) > 15
    for block in blocks(path):
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= LINES, block


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_imports_and_names_are_there(path: Path) -> None:
    text = "\n".join(blocks(path))
    for line in re.findall(r"^(?:import|from) .*$", text, re.M):
        if "HookedTransformer" in line and not HAS_HOOKED:
            continue
        if any(peer in line and find_spec(peer) is None for peer in PEERS):
            continue
        known: dict[str, object] = {}
        exec(line, known)
        for name in (known.keys() - {"__builtins__"}) & set(re.findall(r"(\w+)\.\w+\(", text)):
            for attribute in re.findall(rf"\b{name}\.(\w+)", text):
                assert hasattr(known[name], attribute), f"{name}.{attribute}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_the_text_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":  # which names what is gone in its first column
        text = re.sub(r"^\| [^|]* \|", "|", text, flags=re.M)
    for dotted in set(re.findall(r"\brl\.([a-zA-Z_]\w*(?:\.[a-zA-Z_]\w*)*)", text)):
        part: object = rl
        for name in dotted.split("."):
            part = getattr(part, name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_links_to_are_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_files_that_a_notebook_links_to_are_there(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), target


def test_commands_of_the_readme_have_their_options() -> None:
    from typer.main import get_command

    from rolelens.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^rolelens (.*)$", text, re.M)
    assert len(lines) > 8
    for line in lines:
        command: Any = get_command(app)
        words = line.split("#")[0].split()
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{line}: {word}"
