"""A hub of models on this machine, as far as transformers asks one: files, commits and refusals."""

import json
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound")}
FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")
LAPSES = re.compile(r"/silence/|/answers-(?P<times>\d+)/")
API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(?P<rest>.*)$")


class Hub(BaseHTTPRequestHandler):
    """Serves the folder of ``owner/tiny``; other owners are refused by their name.

    Of the owner ``answers-3`` it answers three requests, and never another; once ``silence`` is
    asked for, nothing at all.
    """

    folder: Path
    asked: Counter[str]

    def log_message(self, *args: Any) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.is_silent(path):
            Event().wait()
        match = FILE.match(path) or API.match(path)
        if match is None:
            return self.refuse(404, "EntryNotFound")
        owner = match["repo"].split("/")[0]
        if owner in REFUSALS:
            return self.refuse(*REFUSALS[owner])
        if path.startswith("/api/"):
            known = {"id": match["repo"], "sha": COMMIT, "siblings": [], "tags": []}
            return (
                self.send(json.dumps(known).encode(), body)
                if not match["rest"]
                else self.refuse(404, "EntryNotFound")
            )
        if match["revision"] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        file = self.folder / match["file"]
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send(file.read_bytes(), body)

    def is_silent(self, path: str) -> bool:
        match = LAPSES.search(path)
        if match:
            self.asked[match[0]] += 1
        return self.asked["/silence/"] > 0 or bool(
            match and self.asked[match[0]] > int(match["times"] or 0)
        )

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content) & (2**64 - 1):064x}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def serve(folder: Path) -> str:
    """Serve a folder from a thread; gives the address."""
    handler = type("Served", (Hub,), {"folder": folder, "asked": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


LOAD = """
import json, sys
import rolelens as rl
for name, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(rl.load(name, revision=revision, device="cpu").source.origin))
    except rl.InputError as error:
        print(json.dumps({"refused": str(error)}))
"""


def environment(folder: Path, cache: Path) -> dict[str, str]:
    """What lets a process take a folder's server for the hub, and keep its cache elsewhere."""
    return {
        "HF_ENDPOINT": serve(folder),
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
