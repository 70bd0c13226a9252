import itertools
import json
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
from scipy import stats

import rolelens as rl
from rolelens.prompts import digest, load_roles

TASKS = set("describe explain design what how analyze compare create solve recommend".split())
STOP = set(
    "the a an of for in on at to from with without by and or but not as is are was were be been do "
    "does did can could should would will may might must i my me we our you your it its this that "
    "these those which who what how when why where than then into over under between during after "
    "before about against within if while each every any some all both more most less least few "
    "many much one two three so such only".split()
)
SETS = {**load_roles(), "base": rl.load_base()}


def words(prompt: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9'\-]+", prompt)


def masked(prompt: str) -> str:
    """The prompt without its nouns (any word that may be one)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lemminflect import getAllLemmas

    out = []
    for n, word in enumerate(words(prompt)):
        lemmas = getAllLemmas(word.lower())
        noun = not lemmas or "NOUN" in lemmas or "PROPN" in lemmas or word[0].isupper()
        out.append("_" if n and word.lower() not in STOP and noun else word.lower())
    return re.sub(r"(_ )+_", "_", " ".join(out))


def test_the_shipped_sets_have_their_sizes() -> None:
    roles = load_roles()
    assert len(roles) == 29
    large = [own for own in roles.values() if len(own) == 64]
    assert {len(own) for own in roles.values()} == {24, 64}
    assert len(rl.load_base()) == 128
    assert len(large) == len({own.domain for own in large}) == 8


@pytest.mark.parametrize("name", SETS)
def test_prompts_are_distinct_and_not_made_from_templates(name: str) -> None:
    prompts = list(SETS[name])
    assert len(set(prompts)) == len(prompts)
    assert len({masked(p) for p in prompts}) == len(prompts)
    first_words = Counter(" ".join(words(p)[:3]).lower() for p in prompts)
    assert max(first_words.values()) <= 0.1 * len(prompts)
    assert all(len(words(p)) < 15 for p in prompts)
    if name != "base":
        assert not any(re.search(rf"\b{name}s?\b", p, re.IGNORECASE) for p in prompts)


@pytest.mark.parametrize("name", [name for name in SETS if name != "base"])
def test_roles_and_base_share_task_types_and_lengths(name: str) -> None:
    """A difference of style or length alone would make a direction."""
    role, base = list(SETS[name]), rl.load_base()
    counts = [Counter(words(p)[0].lower() for p in prompts) for prompts in (role, base)]
    assert set(counts[0]) == set(counts[1]) == TASKS
    shares = [[c[t] / n for t in TASKS] for c, n in zip(counts, (len(role), 128), strict=True)]
    assert max(abs(a - b) for a, b in zip(*shares, strict=True)) < 0.05
    lengths = [[len(words(p)) for p in prompts] for prompts in (role, base)]
    assert stats.ks_2samp(*lengths).statistic < 0.15
    assert abs(sum(lengths[0]) / len(role) - sum(lengths[1]) / 128) < 0.6
    ends = [sum(p.endswith("?") for p in prompts) / len(prompts) for prompts in (role, base)]
    assert abs(ends[0] - ends[1]) < 0.06


def test_no_prompt_belongs_to_two_sets() -> None:
    every = [p for prompts in SETS.values() for p in prompts]
    assert len(set(every)) == len(every)


ROWS = [
    {"role": "pilot", "domain": "air", "prompt": "Plan a route."},
    {"role": "pilot", "domain": "air", "prompt": "Read a chart, please."},
    {"role": "cook", "domain": "food", "prompt": "Boil an egg."},
]


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"prompts{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    else:
        lines = ["pilot,air,Plan a route.", 'pilot,air,"Read a chart, please."']
        path.write_text("role,domain,prompt\n" + "\n".join([*lines, "cook,food,Boil an egg.\n"]))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_own_files_are_read(tmp_path: Path, suffix: str) -> None:
    roles = load_roles(written(tmp_path, suffix))
    assert list(roles) == ["pilot", "cook"]
    assert roles["pilot"].prompts == ("Plan a route.", "Read a chart, please.")
    assert roles["cook"].domain == "food"
    assert rl.load_base(written(tmp_path, suffix)) == [row["prompt"] for row in ROWS]


def test_a_folder_with_a_file_a_role_is_read(tmp_path: Path) -> None:
    for role, rows in itertools.groupby(ROWS, key=lambda row: row["role"]):
        content = {"role": role, "prompts": [row["prompt"] for row in rows]}
        (tmp_path / f"{role}.json").write_text(json.dumps(content))
    roles = load_roles(tmp_path)
    assert roles["pilot"][1] == "Read a chart, please."
    assert roles["pilot"].domain is None


def test_a_hub_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` resolves 'owner/set' to a local folder of that name as it does on the hub."""
    (tmp_path / "owner" / "set").mkdir(parents=True)
    written(tmp_path / "owner" / "set", ".jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert rl.load_base("owner/set") == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"prompt": 3}\n',
            r"a.jsonl, line 2 has no text under 'promp",
        ),
        ("a.jsonl", '{"prompt": "x"\n', "a.jsonl, line 1 is not JSON"),
        ("a.json", '["x", ""]', "a.json, item 2 has no text"),
        ("a.json", '{"x": 1}', "holds no list of prompts"),
        ("a.json", "[", "is not JSON"),
        ("a.csv", "text\nx\n", "has no column 'prompt'"),
        ("a.csv", 'prompt\n"x\n', "a.csv, line 2 is not CSV"),
        ("a.txt", "x", "JSON, JSONL or CSV is read"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(rl.InputError, match=sentence):
        rl.load_base(tmp_path / name)


def test_missing_sources_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(rl.InputError, match="no file 'nothing.json'"):
        rl.load_base("nothing.json")
    with pytest.raises(rl.InputError, match="no JSON, JSONL or CSV file in the folder"):
        load_roles(tmp_path)
    (tmp_path / "base.json").write_text('["x"]')
    with pytest.raises(rl.InputError, match="base.json, item 1 has no role"):
        load_roles(tmp_path / "base.json")
    with pytest.raises(rl.InputError, match="'owner/none' cannot be reached"):
        rl.load_base("owner/none")


def test_the_digest_does_not_depend_on_the_order() -> None:
    assert digest(["a", "b"]) == digest(["b", "a"]) != digest(["a", "c"])


def test_the_papers_own_prompts_load() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the paper's prompts are not on this machine (../shared/data)")
    roles = load_roles(folder / "role_prompts")
    assert len(roles) == 29
    assert {len(role) for role in roles.values()} == {128}
    assert len(rl.load_base(folder / "base_prompts" / "train.json")) == 1000
    assert set(roles) == set(load_roles())
    assert {r: roles[r].domain for r in roles} == {r: p.domain for r, p in load_roles().items()}


def test_nothing_to_read_is_refused(tmp_path: Path, unchecked) -> None:
    for name, content, sentence in (
        ("a.json", "[]", "a.json holds no prompt; name another source"),
        ("b.jsonl", "\n\n", "b.jsonl holds no prompt"),
        ("c.csv", "role,prompt\n", "c.csv holds no prompt"),
        ("d.json", '{"role": "cook", "prompts": []}', "d.json holds no prompt"),
        ("e.csv", "role,prompt\ncook,\n", "line 2 has no text under 'prompt'"),
        ("f.jsonl", '{"role": "cook", "prompt": "x", "refused": ""}\n{"prompt": null}', "line 2"),
    ):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(rl.InputError, match=sentence):
            load_roles(path)
        with pytest.raises(rl.InputError, match=sentence):
            rl.load_base(path)
    with pytest.raises(rl.InputError, match="prompts of 'cook' are 'Boil rice'; pass several"):
        rl.RolePrompts("cook", None, "Boil rice")
    with pytest.raises(rl.InputError, match="prompts of 'cook' are .*; pass several texts"):
        rl.RolePrompts("cook", None, ())
    with pytest.raises(rl.InputError, match="prompt 2 of 'cook' is ' '; it has to be a text"):
        rl.RolePrompts("cook", None, ("Boil rice.", " "))


def test_a_role_has_one_domain(tmp_path: Path) -> None:
    path = tmp_path / "roles.csv"
    path.write_text("role,domain,prompt\ncook,,Boil rice.\ncook,,Bake bread.\n")
    assert load_roles(path)["cook"] == rl.RolePrompts("cook", None, ("Boil rice.", "Bake bread."))
    path.write_text("role,domain,prompt\ncook,food,Boil rice.\ncook,law,Sue them.\n")
    with pytest.raises(rl.InputError, match="line 3 has the domain 'law' and .*line 2 'food'"):
        load_roles(path)


def test_the_shipped_roles_print_as_a_line() -> None:
    roles = rl.load_roles()
    assert isinstance(roles, dict)
    assert len(repr(roles)) < 300
    assert len(repr(roles["lawyer"])) < 300
    assert {**roles} == roles
