"""A real HTTP server that speaks the wire formats of language models behind an API."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float

    @property
    def prompt(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Reply:
    content: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    url: str
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


HANG = Reply("", status=0)
"""No answer at all."""


def chat(content: object, finish_reason: str = "stop") -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    fields = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return Reply({**fields, "choices": choices})


def claude(*blocks: dict[str, object], stop_reason: str = "end_turn") -> Reply:
    """A reply of Anthropic's messages."""
    fields = {"id": "1", "type": "message", "role": "assistant", "model": "m"}
    usage = {"input_tokens": 1, "output_tokens": 1}
    return Reply({**fields, "content": blocks, "stop_reason": stop_reason, "usage": usage})


@contextmanager
def serving(reply: Callable[[Request], Reply]) -> Iterator[Server]:
    """Serve on a free local port until the end of the context."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.path, headers, body, time.monotonic())
            server.requests.append(request)
            made = reply(request)
            if made is HANG:
                server.closing.wait()
                return
            is_text = isinstance(made.content, str)
            data = (made.content if is_text else json.dumps(made.content)).encode()
            self.send_response(made.status)
            kind = "text/html" if is_text else "application/json"
            for name, value in {"Content-Type": kind, **made.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()
