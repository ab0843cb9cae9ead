"""A local Hugging Face hub: it answers huggingface_hub, and keeps what is pushed to it."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

MAIN = "main"


@dataclass
class Hub:
    """The state of the hub.

    Attributes:
        url: the server's address.
        cache: huggingface_hub's cache folder.
        repositories: the files of each branch of each repository.
        requests: method and path of each request.
        pushes: the JSON lines of each commit that was pushed.
        private: repositories that were created as private.
        proposals: the files of each commit that was pushed as a pull request.
        tokens: the Authorization header of each request.
        damaged: names of files that are sent with content that does not match their hash.
        gated: repositories whose terms the user has not accepted.
    """

    url: str
    cache: Path
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    pushes: list[list[dict[str, Any]]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    proposals: list[dict[str, bytes]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)

    def add(self, repository: str, files: dict[str, bytes], revision: str = MAIN) -> None:
        self.repositories.setdefault(repository, {})[revision] = files

    def find(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or of a commit."""
        branches = self.repositories[repository]
        commits = {commit_of(files): files for files in branches.values()}
        return branches.get(revision, commits.get(revision))


def commit_of(files: dict[str, bytes]) -> str:
    listed = [(name, etag_of(name, content)) for name, content in sorted(files.items())]
    return hashlib.sha1(repr(listed).encode()).hexdigest()


def etag_of(name: str, content: bytes) -> str:
    """The SHA-256 of files that the hub keeps in LFS; git's SHA-1 of the others."""
    if name.endswith((".safetensors", ".bin")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(cache: Path) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            running.requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/api/"):  # telemetry
                return self.answer(404, b"")
            running.tokens.append(self.headers["Authorization"])
            owner, name, _, revision, file = self.path[1:].split("/", 4)
            repository = f"{owner}/{name}"
            if repository in running.gated:
                return self.answer(403, b"", X_Error_Code="GatedRepo")
            if repository not in running.repositories:
                return self.answer(401, b"", X_Error_Code="RepoNotFound")
            files = running.find(repository, revision)
            if files is None:
                return self.answer(404, b"", X_Error_Code="RevisionNotFound")
            commit = commit_of(files)
            if file not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            content = files[file]
            etag = f'"{etag_of(file, content)}"'
            if file in running.damaged and self.command == "GET":
                content = content[:-1] + b"?"
            return self.answer(200, content, X_Repo_Commit=commit, ETag=etag)

        def do_POST(self) -> None:
            running.requests.append(f"POST {self.path}")
            running.tokens.append(self.headers["Authorization"])
            body = self.received()
            if self.path == "/api/repos/create":
                wanted = json.loads(body)
                repository = f"{wanted['organization']}/{wanted['name']}"
                if wanted.get("private") or wanted.get("visibility") == "private":
                    running.private.add(repository)
                running.repositories.setdefault(repository, {MAIN: {}})
                return self.answer_json({"url": f"{running.url}/{repository}"})
            if self.path == "/api/validate-yaml":
                return self.answer_json({"errors": [], "warnings": []})
            path, _, query = self.path.partition("?")
            _, _, _, owner, name, what, revision = path.split("/")
            branches = running.repositories[f"{owner}/{name}"]
            if revision not in branches:
                return self.answer(404, b"", X_Error_Code="RevisionNotFound")
            if what == "preupload":
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                files = json.loads(body)["files"]
                return self.answer_json({"files": [{"path": f["path"], **modes} for f in files]})
            lines = [json.loads(line) for line in body.splitlines()]
            running.pushes.append(lines)
            sent = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            if "create_pr=1" in query:
                running.proposals.append(sent)
                pages, commit = f"{running.url}/{owner}/{name}", commit_of(sent)
                urls = {
                    "commitUrl": f"{pages}/commit/{commit}",
                    "pullRequestUrl": f"{pages}/discussions/{len(running.proposals)}",
                }
                return self.answer_json(urls | {"commitOid": commit})
            branches[revision] = branches[revision] | sent
            commit = commit_of(branches[revision])
            url = f"{running.url}/{owner}/{name}/commit/{commit}"
            return self.answer_json({"commitUrl": url, "commitOid": commit})

        def received(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        running = Hub(f"http://127.0.0.1:{http.server_port}", cache)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        http.shutdown()
        thread.join()


def environment(hub: Hub) -> dict[str, str]:
    """Environment variables that make another process ask only this server."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(hub.cache.parent),
        "HF_HUB_CACHE": str(hub.cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def ask(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub in this process ask only this server, by patching its constants."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(hub.cache.parent / "token"))
    agents = str(hub.cache.parent / "agents")
    # Only newer versions have this constant.
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", agents, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SPLITATTN_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)


def stop_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the server unreachable, and fail the test if anything waits before a retry."""
    from huggingface_hub import constants

    def nobody_waits(_: float) -> None:
        raise AssertionError("huggingface_hub would retry for a minute")

    monkeypatch.setattr(time, "sleep", nobody_waits)
    nowhere = "http://127.0.0.1:9"  # port 9 is the discard service, which nobody runs
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.url, nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
