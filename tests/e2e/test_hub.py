"""Models and data sets come from a hub by name, once; what it refuses is said in one line, with what to do.

Each test asks a hub on this machine from a process of its own: the hub's client reads its variables on
import.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file

import fedistill
from fedistill.errors import RuntimeFailure
from helpers.fake_hub import TOKEN, fake_hub
from helpers.files import Files
from helpers.made_once import made_once
from helpers.program import PATIENCE
from helpers.tiny_hf import save_bert

WORDS = ["alpha", "bravo", "xylem", *(str(number) for number in range(60))]
LOG_IN = "log in by `hf auth login` or set HF_TOKEN"


def variables(hub: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of somebody who has a hub, and has downloaded nothing if `home` is new."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub, "HF_HOME": str(home)}
    return {
        **kept,
        **path,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


def python(code: str, env: dict[str, str], folder: Path, *arguments: str) -> str:
    """What a script prints last."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


DOWNLOAD = """
import sys

from fedistill.models.huggingface.folder import folder_of

print(folder_of(sys.argv[1]))
"""


class Stop(fedistill.Callback):
    """Stops a run after its first round."""

    def on_round_end(self, *_: Any) -> None:
        raise RuntimeError("that was a round")


def test_a_model_is_downloaded_once_and_is_what_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a model of the hub, begun and resumed when the hub is gone, ends with the folder's bits."""
    model = save_bert(tmp_path / "made", WORDS)
    for unwanted in ("README.md", "pytorch_model.bin", "modeling_tiny.py"):
        (model / unwanted).write_text("unwanted")
    with fake_hub() as hub:
        repository = hub.add("models/owner/tiny", model)
        commit = repository.branches["main"]
        env = variables(hub.address, tmp_path / "home")
        brought = Path(python(DOWNLOAD, env, tmp_path, "hf:owner/tiny(freeze=encoder)"))
        assert sum(place.startswith("/large/") for _, place in hub.asked) == 1
        asked = len(hub.asked)
        repository.commit(save_bert(tmp_path / "newer", WORDS[::-1]))
        assert python(DOWNLOAD, env, tmp_path, "hf:owner/tiny") == str(brought)
        assert len(hub.asked) == asked
    assert brought.name == commit
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {path.name: path.read_bytes() for path in brought.iterdir()} == {
        name: (model / name).read_bytes() for name in wanted
    }

    texts = [f"{('alpha', 'bravo', 'xylem')[number % 3]} {number}" for number in range(60)]
    path = Files(tmp_path).csv("texts.csv", text=texts, label=[number % 3 for number in range(60)])
    task = {"format": "csv", "train": path, "clients": 2, "public": 12, "text": {"length": 6}}
    name = "hf:owner/tiny(freeze=encoder)"
    experiment = fedistill.parse(
        {
            "rounds": 2,
            "runtime": {"kind": "serial"},
            "task": task,
            "models": {"clients": [name], "server": name},
            "train": {"batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}},
            "arms": [{"method": "fedavg"}],
        },
        "test",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    with pytest.raises(RuntimeFailure, match="that was a round"):
        fedistill.compare(experiment, tmp_path / "hub", callbacks=[Stop()], quiet=True)
    resumed = fedistill.resume(tmp_path / "hub", quiet=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "owner" / "tiny")
    whole = fedistill.compare(experiment, tmp_path / "folder", quiet=True)
    assert resumed["fedavg"].views == whole["fedavg"].views
    saved = Path("models", "fedavg", "server", "model.safetensors")
    ends = [load_file(run.path / saved) for run in (resumed, whole)]
    assert ends[0].keys() == ends[1].keys()
    assert all((ends[0][key] == value).all() for key, value in ends[1].items())


OPEN = """
import json
import os
import sys

from fedistill.config.task import TaskConfig
from fedistill.data.sources import read_splits
from fedistill.errors import ExperimentError
from fedistill.models.huggingface.folder import folder_of


def rows(name):
    return read_splits(TaskConfig(name=name, clients=2)).train[:]


found = {}
for name in sys.argv[1:]:
    kind, place, *token = name.split()
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": one for one in token})
    try:
        found[name] = rows(place) if kind == "data" else os.listdir(folder_of(place))
    except ExperimentError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


BEGIN = """
from fedistill.cli.main import main

main()
"""


@dataclass
class Opened:
    """What is read, or said, by what was named: ``model`` or ``data``, its name, and a token or none.

    Attributes:
        older: the commit of the data set's branch v1.
        online: to somebody with an empty cache.
        later: to the same when the hub is gone.
        in_memory: to who asks then for small data to be kept in memory.
        unknown: to who has, then, no note of what the branches were.
        forwarded: whether a token left the hub.
    """

    hub: str
    older: str
    online: dict[str, Any]
    later: dict[str, Any]
    in_memory: dict[str, Any]
    unknown: dict[str, Any]
    forwarded: bool


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(**made_once(tmp_path_factory, "hub", lambda: opened_in(tmp_path_factory.mktemp("hub"))))


def opened_in(folder: Path) -> dict[str, Any]:
    """What `Opened` has."""
    made = save_bert(folder / "bert", WORDS)
    (folder / "texts").mkdir()
    Files(folder / "texts").parquet("train.parquet", **ROWS)
    with fake_hub() as hub:
        hub.add("models/owner/gated", made, gated=True)
        hub.add("models/owner/private", made, private=True)
        hub.add("models/owner/open", made)
        hub.add("datasets/owner/gated", folder / "texts", gated=True)
        (folder / "older").mkdir()
        Files(folder / "older").parquet("train.parquet", **OLDER)
        texts = hub.add("datasets/owner/texts", folder / "texts")
        older = texts.commit(folder / "older", branch="v1")
        env = variables(hub.address, folder / "home")
        online = json.loads(python(OPEN, env, folder, *ONLINE))
    by_commit = [f"data hf:owner/texts@{older}", f"data hf:owner/texts@{older[:8]}"]
    later = json.loads(python(OPEN, env, folder, *LATER, *by_commit))
    in_memory = json.loads(python(OPEN, {**env, **SMALL}, folder, *LATER))
    shutil.rmtree(folder / "home" / "hub" / "datasets--owner--texts" / "refs")
    unknown = json.loads(python(OPEN, env, folder, *LATER))
    return {
        "hub": hub.address,
        "older": older,
        "online": online,
        "later": later,
        "in_memory": in_memory,
        "unknown": unknown,
        "forwarded": hub.forwarded,
    }


ROWS = {"text": ["alpha 1", "bravo 2", "xylem 3"], "label": [0, 1, 2]}
SMALL = {"HF_DATASETS_IN_MEMORY_MAX_SIZE": "1000000"}
OLDER = {"text": ["alpha 0", "bravo 0"], "label": [0, 1]}
DENIED = {
    "model hf:owner/nothing": "unknown",
    "model hf:owner/gated": "closed",
    f"model hf:owner/gated {TOKEN}": "closed",
    "model hf:owner/private": "unknown",
    "model hf:owner/open hf_old": "rejected",
    "model hf:owner/open@v2": "no revision",
    "data hf:owner/texts@v3": "no revision",
    "data hf:owner/nothing": "unknown",
    "data hf:owner/gated": "closed",
    "data hf:owner/gated hf_old": "rejected",
}
ONLINE = (*DENIED, f"model hf:owner/private {TOKEN}", "data hf:owner/texts", "data hf:owner/texts@v1")
LATER = (
    *("model hf:owner/tiny@v2", "model hf:owner/private", "data hf:owner/gated", "data hf:owner/texts"),
    *("data hf:owner/texts@v1", "data hf:owner/texts@v2"),
)


@pytest.mark.parametrize("asked", DENIED)
def test_what_a_hub_refuses_is_said_with_what_to_do(asked: str, opened: Opened) -> None:
    kind, name, *_ = asked.split()
    place, what = name.removeprefix("hf:"), {"model": "model", "data": "data set"}[kind]
    page = f"{opened.hub}/{'datasets/' if kind == 'data' else ''}{place.partition('@')[0]}"
    reason, fix = {
        "unknown": (
            f"has no {what} {place} that you may read",
            f"check the name, and if it is a private one, {LOG_IN}",
        ),
        "closed": (
            "gives it only to those whom its owner has let in",
            f"ask for access at {page}, then {LOG_IN}",
        ),
        "rejected": (
            "does not accept your token",
            "log in again by `hf auth login`, or correct or unset HF_TOKEN",
        ),
        "no revision": (
            f"has {place.partition('@')[0]}, but no revision {place.partition('@')[2]!r} of it",
            f"take a branch, tag or commit that {page}/tree/main lists",
        ),
    }[DENIED[asked]]
    start = {
        "model": f"model '{name}' is not on this machine and was not fetched",
        "data": f"data set {name} is not on this machine and could not be fetched",
    }[kind]
    assert opened.online[asked] == f"{start} ({opened.hub} {reason}){':' if kind == 'model' else ';'} {fix}"


def test_a_token_opens_what_is_private_and_stays_at_the_hub(opened: Opened) -> None:
    assert "model.safetensors" in opened.online[f"model hf:owner/private {TOKEN}"]
    assert not opened.forwarded


def test_a_hub_that_cannot_be_reached_is_named(opened: Opened) -> None:
    model, data = opened.later["model hf:owner/tiny@v2"], opened.later["data hf:owner/gated"]
    for said in (model, data):
        assert f"({opened.hub} cannot be reached: ConnectError: " in said
        assert "\n" not in said
    assert model.endswith(
        ": bring it by `hf download owner/tiny --revision v2`, or name a folder that has it"
    )
    assert data.endswith("; download it once while online, or use local files with task.format")


def test_what_is_here_needs_no_hub(opened: Opened) -> None:
    assert opened.online["data hf:owner/texts@v1"] == opened.later["data hf:owner/texts@v1"] == OLDER
    assert "model.safetensors" in opened.later["model hf:owner/private"]


def test_without_a_hub_another_revision_is_refused(opened: Opened) -> None:
    """`datasets` opens what it has prepared last, whichever revision that is and was asked for."""
    assert opened.online["data hf:owner/texts"] == ROWS
    for found in (opened.later, opened.in_memory):
        for name in ("hf:owner/texts", "hf:owner/texts@v2"):
            said = found[f"data {name}"]
            assert said.startswith(f"data set {name}: the hub did not give it now, and what was opened last")
            assert (
                f"is revision {opened.older} of it: connect once, write hf:owner/texts@{opened.older}" in said
            )


def test_without_a_hub_a_commit_is_known_by_its_name(opened: Opened) -> None:
    for name in (opened.older, opened.older[:8]):
        assert opened.later[f"data hf:owner/texts@{name}"] == OLDER


def test_where_nothing_tells_what_a_branch_was_it_is_refused(opened: Opened) -> None:
    """Whoever names none gets what is here."""
    assert "the hub did not give it now" in opened.unknown["data hf:owner/texts@v1"]
    assert opened.unknown["data hf:owner/texts"] == OLDER


def test_an_experiment_is_begun_with_data_of_a_hub(tmp_path: Path) -> None:
    (tmp_path / "news").mkdir()
    texts = [f"{('alpha', 'bravo')[number % 2]} {number}" for number in range(120)]
    Files(tmp_path / "news").parquet("train.parquet", text=texts, label=["good", "bad"] * 60)
    with fake_hub() as hub:
        hub.add("datasets/owner/Short-News", tmp_path / "news")
        env = variables(hub.address, tmp_path / "home")
        said = python(BEGIN, env, tmp_path, "init", "hf:owner/Short-News@main")
    begun = (tmp_path / "Short-News.toml").read_text()
    assert "fedistill doctor Short-News.toml" in said
    assert 'name = "hf:owner/Short-News@main"' in begun
    assert "120 texts" in begun
