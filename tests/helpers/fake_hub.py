"""A hub on this machine: it answers downloads as the public one does, but has no storage of chunks."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 20
_LARGE = ".safetensors"
"""Such files lie elsewhere, as all large ones do."""


@dataclass
class Repository:
    """A model or a data set: the files of each commit, and the commits that its branches point to."""

    gated: bool = False
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, folder: Path, branch: str = "main") -> str:
        """Put the files of a folder on a branch; return the commit."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        name = hashlib.sha1(repr(files).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class FakeHub(ThreadingHTTPServer):
    """Serves repositories by ``models/OWNER/NAME`` and ``datasets/OWNER/NAME``.

    Attributes:
        asked: method and path of each request.
        forwarded: whether a token has reached the place of large files, which must not see it.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.forwarded = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, *, gated: bool = False, private: bool = False) -> Repository:
        repository = Repository(gated, private)
        repository.commit(folder)
        self.repositories[name] = repository
        return repository


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub without repositories, until the block ends."""
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        """Keep stderr clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[0] == "large":
            self.server.forwarded |= "Authorization" in self.headers
            self._send(self._blob(parts[1]))
        elif parts[0] == "api" and parts[1] in ("models", "datasets"):
            self._api("/".join(parts[1:4]), parts[4:])
        elif "resolve" in parts:
            where = parts.index("resolve")
            owner, name = parts[where - 2 : where]
            kind = "datasets" if parts[0] == "datasets" else "models"
            self._resolve(f"{kind}/{owner}/{name}", parts[where + 1], "/".join(parts[where + 2 :]))
        else:
            self._refuse(404, None, "Sorry, we can't find the page you are looking for.")

    def _repository(self, name: str) -> Repository | None:
        """The repository, if who asks may see that it is there."""
        token = self.headers["Authorization"]
        if token is not None and token != f"Bearer {TOKEN}":
            self._refuse(401, None, "Invalid credentials in Authorization header")
            return None
        found = self.server.repositories.get(name)
        if found is not None and not (found.private and token is None):
            return found
        if token is None:
            self._refuse(401, None, "Invalid username or password.")
        else:
            self._refuse(404, "RepoNotFound", "Repository not found")
        return None

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.branches.get(revision, revision)
        if commit in repository.commits:
            return commit
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _api(self, name: str, parts: list[str]) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        what, revision = (parts + ["revision", "main"][len(parts) :])[:2]
        commit = self._commit(repository, revision)
        if what == "auth-check" and repository.gated:
            self._refuse_gated(name)
        elif commit is not None:
            self._send_json(self._listed(what, name, repository, commit, "/".join(parts[2:])))

    def _listed(self, what: str, name: str, repository: Repository, commit: str, folder: str) -> Any:
        files = repository.commits[commit]
        if what == "tree":
            return _entries(files, folder)
        if what == "paths-info":
            wanted = json.loads(self.body)["paths"]
            return [one for one in _entries(files, "") if one["path"] in wanted]
        told = {"id": name.partition("/")[2], "sha": commit, "private": repository.private, "tags": []}
        siblings = [{"rfilename": path} for path in files]
        return {**told, "gated": "manual" if repository.gated else False, "siblings": siblings}

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if repository.gated:
            self._refuse_gated(name)
        elif commit := self._commit(repository, revision):
            self._send_file(repository, commit, path)

    def _send_file(self, repository: Repository, commit: str, path: str) -> None:
        content = repository.commits[commit].get(path)
        told = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", told)
        elif path.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            elsewhere = {"Location": f"http://localhost:{self.server.server_port}/large/{digest}"}
            self._send(b"Found", told | linked | elsewhere, 302)
        else:
            self._send(content, told | {"ETag": f'"{_blob_id(content)}"'})

    def _refuse_gated(self, name: str) -> None:
        message = f"Access to {name.partition('/')[2]} is restricted"
        if self.headers["Authorization"] is None:
            self._refuse(401, "GatedRepo", f"{message}. You must be authenticated. Please log in.")
        else:
            self._refuse(403, "GatedRepo", f"{message} and you are not in the authorized list.")

    def _blob(self, digest: str) -> bytes:
        contents = (
            content
            for repository in self.server.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        )
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)

    def _refuse(
        self, status: int, code: str | None, message: str, more: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Message": message} | ({} if code is None else {"X-Error-Code": code}) | (more or {})
        self._send(json.dumps({"error": message}).encode(), told, status)

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, data: bytes, told: dict[str, str] | None = None, status: int = 200) -> None:
        total, start = len(data), 0
        if status == 200 and (wanted := self.headers["Range"]):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or total - 1)
            data, status = data[start : end + 1], 206
            told = {**(told or {}), "Content-Range": f"bytes {start}-{start + len(data) - 1}/{total}"}
        self.send_response(status)
        for key, value in (told or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob_id(content: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entries(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    """The files and folders below a folder, as the hub lists them."""
    below = {
        path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")
    }
    folders = {path.rpartition("/")[0] for path in below} - {"", folder}
    found: list[dict[str, Any]] = [
        {"type": "directory", "oid": _blob_id(one.encode()), "size": 0, "path": one}
        for one in sorted(folders)
    ]
    for path, content in below.items():
        entry: dict[str, Any] = {"type": "file", "oid": _blob_id(content), "size": len(content), "path": path}
        if path.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 135}
        found.append(entry)
    return found
