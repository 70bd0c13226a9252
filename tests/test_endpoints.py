import re
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

import rolelens as rl
from chat_server import HANG, Reply, Request, Server, chat, claude, serving
from rolelens.endpoints import EmptyAnswerError, Endpoint, EndpointError, Loaded, connect

SECRET = "sk-a-secret-that-nobody-may-see"
SOON = {"Retry-After": "0.01"}
ASK = {"max_tokens": 50, "temperature": 1.0, "seed": 3}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", SECRET)
        monkeypatch.delenv(f"{name}_BASE_URL", raising=False)


@pytest.fixture(params=["openai", "compatible", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reach(kind: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Endpoint]:
    """Connects to a server, as each of the three kinds of endpoint."""

    def connected(server: Server, **options: float) -> Endpoint:
        if kind == "compatible":
            return connect("local-model", server.url, **options)
        # The official SDKs' own way to another address; Anthropic's adds /v1 itself.
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url.removesuffix("/v1"))
        return connect(f"{kind}/model-1", **options)

    return connected


def good(kind: str, text: str = " Hello. ") -> Reply:
    return claude({"type": "text", "text": text}) if kind == "anthropic" else chat(text)


def first(*replies: Reply) -> Callable[[Request], Reply]:
    """Each of the replies once, then the last one again and again."""
    left: Iterator[Reply] = iter(replies)
    return lambda request: next(left, replies[-1])


def failure(endpoint: Endpoint) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        endpoint.answer("Hi", **ASK)
    assert SECRET not in f"{caught.value}{caught.value!r}{endpoint}{endpoint!r}"
    assert str(caught.value).startswith(endpoint.name)
    assert str(caught.value).endswith(".")
    assert isinstance(caught.value, rl.InputError)
    return caught.value


def test_a_prompt_is_answered(kind: str, reach: Callable[..., Endpoint]) -> None:
    with serving(first(good(kind))) as server:
        endpoint = reach(server)
        assert isinstance(endpoint, Endpoint)
        assert endpoint.answer("Hi", system="Be brief.", **ASK) == "Hello."
        endpoint.answer("Hi", max_tokens=50, temperature=0.5, seed=None)
    full, plain = (request.body for request in server.requests)
    user = {"role": "user", "content": "Hi"}
    if kind == "anthropic":
        assert server.requests[0].path == "/v1/messages"
        assert full["system"] == "Be brief."
        assert full["messages"] == [user]
        assert full["max_tokens"] == 50
        assert not {"seed", "temperature"} & set(full)
        assert plain["temperature"] == 0.5
        assert server.requests[1].headers["anthropic-version"] == "2023-06-01"
        assert "system" not in plain
    else:
        assert server.requests[0].path == "/v1/chat/completions"
        assert full["messages"] == [{"role": "system", "content": "Be brief."}, user]
        assert full["max_tokens" if kind == "compatible" else "max_completion_tokens"] == 50
        assert (full["seed"], full["temperature"]) == (3, 1.0)
        assert plain["messages"] == [user]
        assert "seed" not in plain
    assert full["model"] == ("local-model" if kind == "compatible" else "model-1")


def test_the_key_goes_to_the_server_and_nowhere_else(
    kind: str, reach: Callable[..., Endpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(first(good(kind))) as server:
        endpoint = reach(server)
        endpoint.answer("Hi", **ASK)
    assert SECRET in " ".join(server.requests[0].headers.values())
    assert SECRET not in f"{endpoint}{endpoint!r}" + "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", ["compatible", "anthropic"], indirect=True)
def test_busy_servers_are_asked_again(kind: str, reach: Callable[..., Endpoint]) -> None:
    busy = Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"})
    with serving(first(busy, busy, good(kind))) as server:
        assert reach(server).answer("Hi", **ASK) == "Hello."
    assert len(server.requests) == 3


@pytest.mark.parametrize("kind", ["compatible", "anthropic"], indirect=True)
def test_retry_after_is_waited_for(kind: str, reach: Callable[..., Endpoint]) -> None:
    """Twice what the first backoff would be at most."""
    busy = Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"})
    with serving(first(busy, good(kind))) as server:
        reach(server).answer("Hi", **ASK)
    assert server.requests[1].time - server.requests[0].time >= 1


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (
            Reply({"error": {"message": "overload."}}, 503, SOON),
            r"\(503: overload\), asked 2",
        ),
        (Reply("<h1>Bad gateway</h1>", 502, SOON), r"failed \(502\), asked 2 times"),
        (
            Reply({"error": {"message": "quota"}}, 429, SOON),
            r"no more requests \(429: quota\), asked 2",
        ),
        (HANG, "did not answer within 0.2 s, asked 2 times"),
    ],
)
def test_what_may_pass_is_tried_again_and_then_told(
    reach: Callable[..., Endpoint], reply: Reply, sentence: str
) -> None:
    with serving(first(reply)) as server:
        error = failure(reach(server, timeout=0.2 if reply is HANG else 60.0, retries=1))
    assert len(server.requests) == 2
    assert re.search(sentence, str(error))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, r"does not accept the key \(401\); check the environment variable \w+_API_KEY"),
        (403, r"does not allow this \(403: no \*\*\* here\)"),
        (404, r"is not there \(404: no \*\*\* here\); check the model's name"),
        (400, r"refused the request \(400: no \*\*\* here\)"),
    ],
)
def test_what_will_not_pass_is_told_at_once(
    reach: Callable[..., Endpoint], status: int, sentence: str
) -> None:
    """Even by a server that sends the key back."""
    refusal = Reply({"type": "error", "error": {"message": f"no {SECRET}\nhere."}}, status)
    with serving(first(refusal)) as server:
        error = failure(reach(server))
    assert len(server.requests) == 1
    assert re.search(sentence, str(error))


@pytest.mark.parametrize(
    "reply",
    [
        Reply("<!doctype html><p>Welcome</p>"),
        Reply("{", headers={"Content-Type": "application/json"}),
        Reply({"choices": [], "content": None}),
        Reply({"choices": None, "content": [3]}),
        Reply([1]),
        chat(5),
    ],
)
def test_nonsense_is_told(reach: Callable[..., Endpoint], reply: Reply) -> None:
    with serving(first(reply)) as server:
        assert "did not answer as its API should" in str(failure(reach(server)))


@pytest.mark.parametrize("text", ["", " \n", None])
def test_no_text_is_told(kind: str, reach: Callable[..., Endpoint], text: str | None) -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    blocks = [thinking] if text is None else [thinking, {"type": "text", "text": text}]
    empty = claude(*blocks, stop_reason="length") if kind == "anthropic" else chat(text, "length")
    with serving(first(empty)) as server:
        error = failure(reach(server))
    assert isinstance(error, EmptyAnswerError)
    assert "gave no text (it ended with 'length')" in str(error)


def test_no_server_is_told(reach: Callable[..., Endpoint]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = failure(reach(Server(f"http://127.0.0.1:{port}/v1"), retries=1))
    assert re.search(r"cannot be reached \(.*refused.*\); check the network", str(error))


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("key", [None, " "])
def test_a_missing_key_is_named(
    monkeypatch: pytest.MonkeyPatch, provider: str, key: str | None
) -> None:
    name = f"{provider.upper()}_API_KEY"
    monkeypatch.setenv(name, key) if key else monkeypatch.delenv(name)
    with pytest.raises(rl.InputError, match=f"{provider}/x needs a key; set .* {name}"):
        connect(f"{provider}/x")


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(first(chat("Hello."))) as server:
        endpoint = connect("openai/gpt-oss-20b", server.url)
        assert endpoint.name == "openai/gpt-oss-20b"
        assert endpoint.answer("Hi", **ASK) == "Hello."
    assert server.requests[0].body["model"] == "openai/gpt-oss-20b"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(rl.InputError, match=r"pip install 'rolelens\[endpoints\]'"):
        connect(f"{provider}/x")


@pytest.mark.parametrize("model", ["gpt", "openai/", "mistral/x", ""])
def test_unknown_models_are_refused(model: str) -> None:
    with pytest.raises(rl.InputError, match=r"write 'openai/NAME', 'anthropic/NAME' or"):
        connect(model)


def test_unreadable_options_are_refused() -> None:
    with pytest.raises(rl.InputError, match="'localhost:80'; it has to begin with http"):
        connect("x", "localhost:80")
    for options in ({"timeout": 0.0}, {"retries": -1}):
        with pytest.raises(rl.InputError, match="timeout has to be above 0 and retries 0 or more"):
            connect("x", "http://localhost", **options)


def test_a_loaded_model_is_an_endpoint(llama: rl.Lens) -> None:
    here = Loaded(llama)
    assert isinstance(here, Endpoint)
    assert here.name == f"local/{llama.name}"
    said = here.answer("Hi", system="Be kind.", max_tokens=6, temperature=1.0, seed=3)
    options = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    assert [said] == llama.generate(["Hi"], system="Be kind.", **options)
    end = llama.tokenizer.eos_token_id
    silent = Loaded(llama)

    def stop(x, hook):
        x = torch.full_like(x, -100.0)
        x[..., end] = 100.0
        return x

    with (
        llama.model.hooks(fwd_hooks=[("unembed.hook_out", stop)]),
        pytest.raises(EmptyAnswerError, match="gave no text"),
    ):
        silent.answer("Hi", max_tokens=6, temperature=0.0, seed=None)


def test_a_model_to_load_is_named(tmp_path) -> None:
    with pytest.raises(rl.InputError, match="no file .*nothing.gguf"):
        connect(f"local/{tmp_path}/nothing.gguf")
