"""What Neuronpedia's own client sends, to a server on this machine."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

import rolelens as rl
from foreign import foreign
from rolelens.interop.neuronpedia import (
    KEY,
    neuronpedia_steering,
    neuronpedia_upload,
    upload_to_neuronpedia,
)

D = rl.Direction(torch.tensor([0.5, -1.0, 2.0]), 7, name="lawyer")


class Server(BaseHTTPRequestHandler):
    """Keeps what is posted, and answers as Neuronpedia does."""

    seen: list[tuple[str, str | None, Any]]
    status = 200

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers["X-Api-Key"], content))
        vector = {"modelId": content.get("modelId"), "source": "7-neuronpedia-resid-pre"}
        vector |= {"index": "1", "label": "lawyer", "hookName": "blocks.7.hook_resid_pre"}
        vector |= {"values": content.get("vector"), "defaultSteerStrength": 3.0}
        answer = json.dumps({"vector": vector, "url": "http://localhost/v"}).encode()
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    base = foreign("neuronpedia.requests.base_request")
    handler = type("Handler", (Server,), {"seen": []})
    with HTTPServer(("127.0.0.1", 0), handler) as listening:
        address = f"http://127.0.0.1:{listening.server_port}/api"
        monkeypatch.setattr(base.NPRequest, "BASE_URL", address)
        monkeypatch.setenv(KEY, "secret")
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield handler
        listening.shutdown()
        thread.join()


def test_the_client_sends_what_is_told(server: type[Server]) -> None:
    made = upload_to_neuronpedia(D, "gemma-2-2b-it", strength=3.0)
    told = neuronpedia_upload(D, "gemma-2-2b-it", strength=3.0)
    assert server.seen == [("/api/vector/new", "secret", told)]
    assert told["vector"] == [0.5, -1.0, 2.0]
    assert (told["layerNumber"], told["hookType"]) == (7, "hook_resid_pre")
    assert made.hook_name == "blocks.7.hook_resid_pre"
    request = foreign("neuronpedia.requests.steer_request").SteerCompletionRequest()
    options = {"temperature": 0.0, "n_tokens": 8, "freq_penalty": 0.0, "seed": 0}
    request.steer("gemma-2-2b-it", [made], "Hello", **options, strength_multiplier=1.0)
    assert server.seen[1][2] == neuronpedia_steering(made, "Hello", n_tokens=8)


def test_what_it_refuses_is_one_sentence(server: type[Server]) -> None:
    server.status = 401
    with pytest.raises(rl.InputError, match="took no vector of 'lawyer' .Unauthorized"):
        upload_to_neuronpedia(D, "gemma-2-2b-it")


def test_what_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(rl.InputError, match=f"set {KEY}"):
        upload_to_neuronpedia(D, "gemma-2-2b-it")
    for d in (D * 0.0, dataclasses.replace(D, site="attn_out")):
        with pytest.raises(rl.InputError, match="takes directions of the residual stream"):
            neuronpedia_upload(d, "gemma-2-2b-it")
