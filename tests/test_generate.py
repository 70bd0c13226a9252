import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rolelens as rl
from chat_server import Reply, Request, Server, chat, serving
from rolelens.endpoints import Endpoint, EndpointError, connect
from rolelens.prompts import TASKS, check, clean, generate, load_roles

PERSONAS = [f"A nurse who {what}" for what in ("runs a ward", "teaches", "sails", "does research")]
EVERYBODY = [*PERSONAS, "A pilot", "A nursery teacher"]
ALPHABET = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfgklmnprst", "aeiou", "lmnrst")]
DOWN = Reply({"error": {"message": "down"}}, 500)


def written(request: Request) -> Reply:
    """What a model might write: mostly a prompt; sometimes wrapped, sometimes useless."""
    opening = re.search(r'begins with "(.+?)"', request.prompt)[1]
    stream = random.Random(request.body["seed"])
    prompt = " ".join([opening, *stream.sample(ALPHABET, 8)])
    return chat(
        stream.choice(
            [
                prompt,
                f"{prompt}?",
                f'**User prompt:** "{prompt}."',
                f"1. {prompt}",
                "I'm sorry, but as an AI I cannot do that.",
                f"{prompt} for a nurse",
                "Sure!",
                "",
            ]
        )
    )


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(written) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")


def model(server: Server) -> Endpoint:
    return connect("writer", server.url, retries=0)


def dying(after: int) -> Callable[[Request], Reply]:
    count = itertools.count(1)
    return lambda request: written(request) if next(count) <= after else DOWN


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_are_written_and_kept(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "new" / "nurse.jsonl"
    made = generate("nurse", 20, model(server), EVERYBODY, domain="medicine", out=out)
    assert (made.prompts.role, made.prompts.domain, len(made.prompts)) == ("nurse", "medicine", 20)
    assert made.attempts == len(server.requests) == len(rows(out))
    assert made.acceptance == 20 / made.attempts
    assert set(made.refused) == {"a refusal", "names the role", "not 4 to 60 words", "no text"}
    assert sum(made.refused.values()) == made.attempts - 20
    assert load_roles(out) == {"nurse": made.prompts}
    assert rl.load_base(out) == list(made.prompts)
    for number, (row, request) in enumerate(zip(rows(out), server.requests, strict=True), 1):
        assert (row["attempt"], row["model"], row["role"]) == (number, "writer", "nurse")
        assert row["persona"] in PERSONAS
        assert row["persona"] in request.prompt
        assert request.body["temperature"] == 1.0
        if "prompt" in row:
            assert check(row["prompt"], "nurse", row["task"]) is None
        else:
            assert row["refused"] in made.refused
    assert len({row["task"] for row in rows(out)}) > 5
    assert len({request.body["seed"] for request in server.requests}) == made.attempts


def test_no_file_is_needed_and_the_seed_decides(server: Server) -> None:
    endpoint = model(server)
    made = [generate("nurse", 5, endpoint, PERSONAS, seed=seed) for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert not set(made[0].prompts) & set(made[2].prompts)


@pytest.mark.parametrize("after", [0, 1, 7, 15])
def test_an_interrupted_run_goes_on_as_if_unbroken(
    server: Server, tmp_path: Path, after: int
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    unbroken = generate("nurse", 12, model(server), EVERYBODY, out=whole)
    with serving(dying(after)) as failing, pytest.raises(EndpointError) as caught:
        generate("nurse", 12, model(failing), EVERYBODY, out=broken)
    lines = broken.read_text().splitlines() if after else []
    kept = sum("prompt" in json.loads(line) for line in lines)
    assert re.fullmatch(
        rf"writer failed \(500: down\), .*; try again later; {kept} prompts are kept in .*"
        r"broken.jsonl, and the same call goes on\.",
        str(caught.value),
    )
    before = len(server.requests)
    assert generate("nurse", 12, model(server), EVERYBODY, out=broken) == unbroken
    assert broken.read_bytes() == whole.read_bytes()
    assert len(server.requests) - before == unbroken.attempts - after
    assert generate("nurse", 12, model(server), EVERYBODY, out=broken) == unbroken
    assert len(server.requests) - before == unbroken.attempts - after


@pytest.mark.parametrize("cut", [1, 2, 40, 150, 100_000])
def test_a_write_that_was_cut_off_is_made_again(server: Server, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "nurse.jsonl"
    unbroken = generate("nurse", 3, model(server), PERSONAS, out=out)
    content = out.read_bytes()
    last = len(content.splitlines()[-1])
    out.write_bytes(content[: len(content) - min(cut, last)])
    before = len(server.requests)
    assert generate("nurse", 3, model(server), PERSONAS, out=out) == unbroken
    assert out.read_bytes() == content
    assert len(server.requests) - before == (cut > 1)


def test_a_finished_file_goes_on_to_more(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "nurse.jsonl"
    few = generate("nurse", 4, model(server), PERSONAS, out=out)
    more = generate("nurse", 9, model(server), PERSONAS, out=out)
    assert more.prompts[:4] == few.prompts.prompts
    assert more == generate("nurse", 9, model(server), PERSONAS)
    assert generate("nurse", 4, model(server), PERSONAS, out=out) == few


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"seed": 1}, "was made with seed 0 and this call has 1"),
        ({"domain": "x"}, "was made with domain None and this call has 'x'"),
        ({"temperature": 0.5}, r"was made with temperature 1.0 and this call has 0.5"),
        ({"role": "pilot"}, "was made with role 'nurse' and this call has 'pilot'"),
        ({"personas": PERSONAS[:1]}, "line 1 was made with other personas"),
        ({"model": "other"}, "was made with model 'writer' and this call has 'other'"),
    ],
)
def test_a_file_of_another_call_is_refused(
    server: Server, tmp_path: Path, other: dict[str, object], sentence: str
) -> None:
    out = tmp_path / "nurse.jsonl"
    generate("nurse", 3, model(server), EVERYBODY, out=out)
    content, asked = out.read_bytes(), len(server.requests)
    endpoint = connect(other.pop("model", "writer"), server.url)
    arguments = {"role": "nurse", "personas": EVERYBODY, **other}
    with pytest.raises(rl.InputError, match=sentence):
        generate(n=5, endpoint=endpoint, out=out, **arguments)
    assert out.read_bytes() == content
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    "content", [b"{}\n", b"notes", b"x\n", b"\n", b"[1]\n", b'{"role": "nurse"}\n', b"\xff"]
)
def test_a_file_of_something_else_is_left_alone(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "notes.jsonl"
    out.write_bytes(content)
    with pytest.raises(rl.InputError, match="line 1 is not attempt 1 at a prompt; name a new file"):
        generate("nurse", 3, model(server), PERSONAS, out=out)
    assert out.read_bytes() == content
    assert not server.requests


def test_a_file_whose_rows_are_shuffled_is_refused(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "nurse.jsonl"
    generate("nurse", 3, model(server), PERSONAS, out=out)
    lines = out.read_text().splitlines()
    out.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(rl.InputError, match="line 1 is not attempt 1"):
        generate("nurse", 3, model(server), PERSONAS, out=out)


def test_a_path_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(rl.InputError, match="cannot be written"):
        generate("nurse", 3, model(server), PERSONAS, out=tmp_path)


def test_what_there_is_is_given_when_the_attempts_run_out(server: Server) -> None:
    made = generate("nurse", 50, model(server), PERSONAS, max_attempts=10)
    assert made.attempts == len(server.requests) == 10
    assert 0 < len(made.prompts) < 10
    assert made.acceptance == len(made.prompts) / 10
    assert generate("nurse", 9, model(server), PERSONAS, attempts_per_prompt=1).attempts == 9


def test_nothing_at_all_is_an_error() -> None:
    with serving(lambda request: chat("I cannot help with that.")) as server:
        with pytest.raises(rl.InputError) as caught:
            generate("nurse", 2, model(server), PERSONAS)
        assert len(server.requests) == 8
    assert "wrote no usable prompt of 'nurse' in 8 attempts (8 times: a refusal)" in str(
        caught.value
    )


def test_a_model_that_repeats_itself_is_refused() -> None:
    def same(request: Request) -> Reply:
        opening = re.search(r'begins with "(.+?)"', request.prompt)[1]
        return chat(f"{opening} the same thing over and over again")

    with serving(same) as server:
        made = generate("nurse", 40, model(server), PERSONAS, attempts_per_prompt=1)
    assert len(made.prompts) <= len(TASKS)
    assert set(made.refused) == {"a duplicate"}


def test_bad_arguments_are_one_sentence(server: Server) -> None:
    with pytest.raises(rl.InputError, match="none of 6 personas names 'dentist'; pass other pers"):
        generate("dentist", 3, model(server), EVERYBODY)
    for options in ({"n": 0}, {"n": 2, "max_attempts": 0}, {"n": 2, "attempts_per_prompt": 0}):
        with pytest.raises(rl.InputError, match="both have to be above 0"):
            generate("nurse", endpoint=model(server), personas=PERSONAS, **options)
    with (
        serving(dying(0)) as failing,
        pytest.raises(EndpointError, match="pass out= to keep the prompts made before"),
    ):
        generate("nurse", 3, model(failing), PERSONAS)


GOOD = "Explain how to read a chart."


@pytest.mark.parametrize(
    ("text", "task", "reason"),
    [
        (GOOD, "explain", None),
        ("explain: how to read a chart", "explain", None),
        ("What are the usual doses of aspirin?", "what is", None),
        ("What is the usual dose of aspirin?", "what is", None),
        ("How do I read an ECG?", "how to", None),
        ("How should I read an ECG?", "how to", None),
        ("Analyse the results of this study.", "analyze", None),
        ("Explain what list[int] means in Python.", "explain", None),
        ("Explain the pattern [A-Z]+ in words.", "explain", None),
        ("Explain this chart.", "explain", "not 4 to 60 words"),
        ("", "explain", "not 4 to 60 words"),
        (f"Explain {'word ' * 59}", "explain", None),
        (f"Explain {'word ' * 60}", "explain", "not 4 to 60 words"),
        (f"{GOOD}\n\nThis fits the persona.", "explain", "several lines"),
        (GOOD, "describe", "another task type"),
        ("Explaining how to read a chart", "explain", "another task type"),
        ("How does one read an ECG?", "how to", "another task type"),
        ("Explain to a NURSE how charts work.", "explain", "names the role"),
        ("Explain how nurses read charts.", "explain", "names the role"),
        ("Explain a nurse's reading of charts.", "explain", "names the role"),
        ("Explain how a nursery is run well.", "explain", None),
        ("Explain how to treat [condition] at home.", "explain", "a placeholder"),
        ("I'm sorry, but I have to decline this.", "explain", "a refusal"),
        ("I am sorry, this is not possible.", "explain", "a refusal"),
        ("As an AI language model I do not ask.", "explain", "a refusal"),
        ("Sorry, I cannot write that prompt.", "explain", "a refusal"),
        ("Explain how to read a scan.", "explain", None),
        ("explain -- how to read: a map", "explain", "a duplicate"),
        ("Explain how to read a road map now.", "explain", None),
        (
            "Explain to me how the old town was built in ten years again.",
            "explain",
            "nearly a duplicate",
        ),
    ],
)
def test_the_rules(text: str, task: str, reason: str | None) -> None:
    known = [
        "Explain how to read a map.",
        "Explain to me how the old town was built in ten years.",
    ]
    assert check(text, "nurse", task, known) == reason


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("data scientist", "Explain what data scientists do all day."),
        ("data scientist", "Explain what a data-scientist does all day."),
        ("attorney", "Explain what attorneys do all day."),
        ("secretary", "Explain what secretaries do all day."),
        ("boss", "Explain what bosses do all day."),
    ],
)
def test_a_role_is_found_in_any_number(role: str, text: str) -> None:
    assert check(text, role, "explain") == "names the role"


def test_unknown_task_types_are_named() -> None:
    with pytest.raises(rl.InputError, match="no task type 'explains'; did you mean 'explain'"):
        check(GOOD, "nurse", "explains")


WRAPPINGS = (
    "{}",
    '"{}"',
    "“{}”",
    "'{}'",
    "**{}**",
    "`{}`",
    "1. {}",
    "2) {}",
    "- {}",
    "### {}",
    "> {}",
    "User prompt: {}",
    "prompt : {}",
    " \n{}\n",
)
BEFORE = ("", "<think>Let me see.\n\nYes.</think>\n\n", "**User prompt:** ")
words = st.lists(st.sampled_from(ALPHABET), min_size=3, max_size=50).map(" ".join)
tasks = st.sampled_from(list(TASKS))
texts = st.text() | st.text(st.sampled_from("\"'*_`#>-1.)[] \nExplain how Prompt:nurse"))


@given(tasks, words, st.lists(st.sampled_from(WRAPPINGS), max_size=3, unique=True))
def test_wrappings_are_taken_off(task: str, rest: str, wrappings: list[str]) -> None:
    prompt = text = f"{task.capitalize()} {rest}."
    for wrapping in wrappings:
        text = wrapping.format(text)
    assert {clean(before + text) for before in BEFORE} == {prompt}
    assert check(text, "nurse", task) is None


@given(texts)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(tasks, texts | words, st.booleans())
def test_what_is_accepted_keeps_the_rules(task: str, text: str, opened: bool) -> None:
    text = f"{task} {text}" if opened else text
    if check(text, "nurse", task) is None:
        prompt = clean(text)
        assert len(prompt.splitlines()) == 1
        assert 4 <= len(prompt.split()) <= 60
        assert prompt.lower()[:3] == task[:3]
        assert "nurse" not in re.split(r"\W", prompt.lower())
        assert check(text, "nurse", task, [prompt]) == "a duplicate"
        assert check(text.upper(), "nurse", task, [prompt]) == "a duplicate"


@given(tasks, words, words)
def test_near_duplicates_are_those_of_the_jaccard_index(task: str, one: str, two: str) -> None:
    known, prompt = f"{task} {one}", f"{task} {one} {two}"
    sets = [set(text.split()) for text in (known, prompt)]
    near = len(sets[0] & sets[1]) / len(sets[0] | sets[1]) > 0.8
    reason = check(prompt, "nurse", task, [known])
    if len(prompt.split()) <= 60:
        assert (reason == "nearly a duplicate") == near


def test_the_rules_accept_the_papers_own_prompts() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the paper's prompts are not on this machine (../shared/data)")
    found: Counter[str | None] = Counter()
    for role, prompts in load_roles(folder / "role_prompts").items():
        for prompt in prompts:
            reasons = [check(prompt, role, task) for task in TASKS]
            found[None if None in reasons else min(reasons, key="another task type".__eq__)] += 1
    assert found["another task type"] == 0
    assert found[None] > 0.97 * found.total()
