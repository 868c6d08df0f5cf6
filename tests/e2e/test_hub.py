"""Models and data sets come from a hub by name, once; what it refuses is said in one line, with what to do.

Each test asks a hub on this machine from a process of its own: the hub's client reads its variables on
import.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file

import fedistill
from fedistill.errors import RuntimeFailure
from helpers.fake_hub import TOKEN, FakeHub, fake_hub
from helpers.files import Files
from helpers.program import PATIENCE
from helpers.tiny_hf import save_bert

WORDS = ["alpha", "bravo", "xylem", *(str(number) for number in range(60))]
LOG_IN = "log in by `hf auth login` or set HF_TOKEN"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as one:
        yield one


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as a hub has it, with files that nobody wants."""
    folder = save_bert(tmp_path / "made" / "tiny", WORDS)
    (folder / "README.md").write_text("# A model\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code of a model was run')\n")
    return folder


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
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a model of the hub, begun and resumed when the hub is gone, ends with the folder's bits."""
    repository = hub.add("models/owner/tiny", model)
    env = variables(hub.address, tmp_path / "home")
    brought = Path(python(DOWNLOAD, env, tmp_path, "hf:owner/tiny(freeze=encoder)"))
    assert brought.name == repository.branches["main"]
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {path.name: path.read_bytes() for path in brought.iterdir()} == {
        name: (model / name).read_bytes() for name in wanted
    }
    assert sum(place.startswith("/large/") for _, place in hub.asked) == 1

    asked = len(hub.asked)
    repository.commit(save_bert(tmp_path / "newer", WORDS[::-1]))
    assert python(DOWNLOAD, env, tmp_path, "hf:owner/tiny") == str(brought)
    assert len(hub.asked) == asked

    hub.shutdown()
    hub.server_close()
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


REFUSED = """
import json
import os
import sys

from fedistill.config.task import TaskConfig
from fedistill.data.sources import read_splits
from fedistill.errors import ExperimentError
from fedistill.models.huggingface.folder import folder_of


def said(open_it, name):
    try:
        open_it(name)
    except ExperimentError as error:
        return str(error)


def data_set(name):
    return read_splits(TaskConfig(name=name, clients=2))


found = {}
for name in sys.argv[1:]:
    os.environ.pop("HF_TOKEN", None)
    kind, name, *token = name.split()
    os.environ.update({"HF_TOKEN": one for one in token})
    found[f"{kind} {name} {len(token)}"] = said({"model": folder_of, "data": data_set}[kind], name)
print(json.dumps(found))
"""


def refused(hub: str, folder: Path, *names: str) -> dict[str, str]:
    """What is said to somebody with an empty cache who names these; the third word is the token."""
    env = variables(hub, folder / "home")
    found: dict[str, str] = json.loads(python(REFUSED, env, folder, *names))
    assert not any("\n" in said for said in found.values() if said)
    return found


def test_what_a_hub_refuses_is_said_with_what_to_do(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    Files(tmp_path / "made").parquet("train.parquet", text=["alpha", "bravo"] * 30, label=[0, 1] * 30)
    (tmp_path / "made" / "data").mkdir()
    shutil.move(tmp_path / "made" / "train.parquet", tmp_path / "made" / "data")
    hub.add("models/owner/gated", model, gated=True)
    hub.add("models/owner/private", model, private=True)
    hub.add("models/owner/open", model)
    hub.add("datasets/owner/gated", tmp_path / "made" / "data", gated=True)
    said = refused(
        hub.address,
        tmp_path,
        "model hf:owner/nothing",
        "model hf:owner/gated",
        f"model hf:owner/gated {TOKEN}",
        "model hf:owner/private",
        f"model hf:owner/private {TOKEN}",
        "model hf:owner/open hf_old",
        "model hf:owner/open@v2",
        "data hf:owner/nothing",
        "data hf:owner/gated",
        "data hf:owner/gated hf_old",
    )
    here = hub.address
    missing = f"model 'hf:owner/{{}}' is not on this machine and was not fetched ({here} {{}}): {{}}"
    unknown = f"check the name, and if it is a private one, {LOG_IN}"
    closed = "gives it only to those whom its owner has let in"
    rejected = ("does not accept your token", "log in again by `hf auth login`, or correct or unset HF_TOKEN")
    ask = f"ask for access at {here}/owner/gated, then {LOG_IN}"
    assert said == {
        "model hf:owner/nothing 0": missing.format(
            "nothing", "has no model owner/nothing that you may read", unknown
        ),
        "model hf:owner/gated 0": missing.format("gated", closed, ask),
        "model hf:owner/gated 1": missing.format("gated", closed, ask),
        "model hf:owner/private 0": missing.format(
            "private", "has no model owner/private that you may read", unknown
        ),
        "model hf:owner/private 1": None,
        "model hf:owner/open 1": missing.format("open", *rejected),
        "model hf:owner/open@v2 0": missing.format(
            "open@v2",
            "has owner/open, but no revision 'v2' of it",
            f"take a branch, tag or commit that {here}/owner/open/tree/main lists",
        ),
        "data hf:owner/nothing 0": (
            "data set hf:owner/nothing is not on this machine and could not be fetched"
            f" ({here} has no data set owner/nothing that you may read); {unknown}"
        ),
        "data hf:owner/gated 0": (
            "data set hf:owner/gated is not on this machine and could not be fetched"
            f" ({here} {closed}); ask for access at {here}/datasets/owner/gated, then {LOG_IN}"
        ),
        "data hf:owner/gated 1": (
            "data set hf:owner/gated is not on this machine and could not be fetched"
            f" ({here} {rejected[0]}); {rejected[1]}"
        ),
    }
    assert not hub.forwarded  # the token stays where it belongs


def test_a_hub_that_cannot_be_reached_is_named_at_once(tmp_path: Path) -> None:
    with fake_hub() as hub:
        gone = hub.address
    said = refused(gone, tmp_path, "model hf:owner/tiny@v2", "data hf:owner/texts")
    reason = f"({gone} cannot be reached: ConnectError: "
    assert reason in said["model hf:owner/tiny@v2 0"]
    assert said["model hf:owner/tiny@v2 0"].endswith(
        ": bring it by `hf download owner/tiny --revision v2`, or name a folder that has it"
    )
    assert reason in said["data hf:owner/texts 0"]
    assert said["data hf:owner/texts 0"].endswith(
        "; download it once while online, or use local files with task.format"
    )


ROWS = """
import json

from fedistill.config.task import TaskConfig
from fedistill.data.sources import read_splits

print(json.dumps(read_splits(TaskConfig(name="hf:owner/texts", clients=2)).train[:]))
"""


def test_a_data_set_is_downloaded_once_and_is_what_its_files_are(hub: FakeHub, tmp_path: Path) -> None:
    rows = {"text": ["alpha 1", "bravo 2", "xylem 3"], "label": [0, 1, 2]}
    (tmp_path / "made").mkdir()
    Files(tmp_path / "made").parquet("train.parquet", **rows)
    hub.add("datasets/owner/texts", tmp_path / "made")
    env = variables(hub.address, tmp_path / "home")
    assert json.loads(python(ROWS, env, tmp_path)) == rows
    hub.shutdown()
    hub.server_close()
    assert json.loads(python(ROWS, env, tmp_path)) == rows
