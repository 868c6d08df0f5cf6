"""Models are uploaded to a hub: here a small server that answers as the real one does."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import fedistill.deployment.push as pushing
from fedistill.deployment.push import push
from fedistill.errors import ExperimentError, RuntimeFailure
from helpers.program import here

TOKEN = "hf_" + "a" * 20


class FakeHub(ThreadingHTTPServer):
    """Keeps what is uploaded: repositories, branches, and the files of each commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.created: list[dict[str, Any]] = []
        self.branches: list[str] = []
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        """Keep stderr clean."""

    def do_POST(self) -> None:
        body = self._body()
        self.server.tokens.add(self.headers["Authorization"])
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._send({"url": f"{self.server.address}/me/model"})
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "/branch/" in self.path:
            self.server.branches.append(self.path.rpartition("/")[2])
            self._send({})
        elif "/preupload/" in self.path:
            answer = {"uploadMode": "regular", "shouldIgnore": False}
            files = json.loads(body)["files"]
            self._send({"files": [{"path": file["path"], **answer} for file in files]})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._send({"error": "no such place"}, 404)

    def do_GET(self) -> None:
        info = {"id": "me/model", "sha": "0" * 40, "siblings": [], "tags": [], "downloads": 0, "likes": 0}
        self._send({**info, "private": False})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        added = [line["value"] for line in lines if line["key"] == "file"]
        files = {file["path"]: base64.b64decode(file["content"]) for file in added}
        self.server.commits.append((self.path.rpartition("/")[2].partition("?")[0], files))
        address = f"{self.server.address}/me/model/commit/{'1' * 40}"
        self._send({"success": True, "commitOid": "1" * 40, "commitUrl": address})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a saved model, beside things that are none of the world's business."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "README.md").write_text("---\nlibrary_name: fedistill\n---\n# A model\n")
    (folder / "patients.csv").write_text("secret")
    (folder / ".env").write_text("secret")
    (folder / "cache").mkdir()
    (folder / "cache" / "README.md").write_text("secret")
    return folder


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Description.read` has tests of its own."""
    monkeypatch.setattr(pushing.Description, "read", lambda folder: None)


@pytest.mark.usefixtures("readable")
def test_a_model_goes_up_with_its_card_and_nothing_else(hub: FakeHub, model: Path) -> None:
    address = push(model, "me/model", private=True, endpoint=hub.address)
    assert address == f"{hub.address}/me/model/commit/{'1' * 40}"
    (asked,) = hub.created
    assert (asked["organization"], asked["name"]) == ("me", "model")
    assert asked.get("visibility") == "private" or asked.get("private") is True
    ((branch, files),) = hub.commits
    assert branch == "main"
    kept = ("model.json", "model.safetensors", "README.md")
    assert files == {name: (model / name).read_bytes() for name in kept}
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.usefixtures("readable")
def test_the_command_pushes_to_a_branch(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    ended = here("push", model, "me/model", "--revision", "v2", cwd=model)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{hub.address}/me/model/commit/{'1' * 40}\n"
    assert hub.branches == ["v2"]
    assert [branch for branch, _ in hub.commits] == ["v2"]


@pytest.mark.usefixtures("readable")
def test_what_the_hub_refuses_is_said_in_one_line(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(RuntimeFailure, match="set HF_TOKEN, with the right to write") as refused:
        push(model, "me/model", endpoint=hub.address)
    assert "\n" not in str(refused.value)
    assert hub.commits == []


def test_only_models_are_pushed(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("secret")
    with pytest.raises(ExperimentError, match="holds no saved model"):
        push(tmp_path, "me/model", endpoint=hub.address)
    with pytest.raises(ExperimentError, match="write OWNER/NAME"):
        push(tmp_path, "model", endpoint=hub.address)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").symlink_to(tmp_path / "data.csv")
    with pytest.raises(ExperimentError, match="is a link: put the file itself there"):
        push(tmp_path, "me/model", endpoint=hub.address)
    assert hub.created == []
