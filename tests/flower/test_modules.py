"""What a node imports because an experiment names it: only what its site has allowed."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers

from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.run_folder import RunFolder
from fedistill.flower.allowed_modules import AllowedModules, modules_of
from fedistill.flower.app_template import write_app
from fedistill.flower.processes import TrialNetwork
from fedistill.models.huggingface import folder as hub_folder
from helpers.flower_trial import CLIENTS, experiment, frames, in_process
from helpers.installed import Installer, installed
from helpers.tiny_hf import save_vit

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop

    from fedistill.flower.serde import Order, seal_order
    from helpers.flower_desk import Desk, opened, play

BY_NAME = {"method": "ballots", "codec": "bf16", "aggregation": "geometric"}
BY_CLASS = {
    "method": "fedistill_outside.methods:Ballots",
    "codec": {"up": "fedistill_outside.codecs:BFloat16", "down": "fp32"},
    "aggregation": {"name": "fedistill_outside.aggregations:Geometric", "floor": 0.01},
}
MODELS = """
from pathlib import Path
from torch import nn

Path(MARK).touch()

def net(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, signature.classes))

def other(signature):
    return net(signature)
"""


pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Installer]:
    with installed(tmp_path / "installed") as installer:
        yield installer


@pytest.fixture
def mark(tmp_path: Path, install: Installer) -> Path:
    """A file that is there once the module `site_models` has been imported."""
    mark = tmp_path / "imported"
    points = {"methods": {"marked": "site_models:Marked"}}
    install.package("site-package", points, site_models=MODELS.replace("MARK", repr(str(mark))))
    return mark


def nodes(**config: Any) -> list[dict[str, Any]]:
    return [{"partition-id": number, **config} for number in range(CLIENTS)]


@pytest.mark.parametrize("arm", [BY_NAME, BY_CLASS])
def test_what_sites_allow_ends_in_the_same_bits_as_in_one_process(
    tmp_path: Path, install: Installer, arm: dict[str, Any]
) -> None:
    install.outside()
    asked = experiment(rounds=2, arms=[arm])
    in_process(asked, tmp_path / "expected")
    desk = Desk(asked, tmp_path, nodes(modules="another, fedistill_outside"))
    play(desk, asked, tmp_path / "run")
    assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    assert RunFolder(tmp_path / "run").records(arm["method"])[-1].missing == {}


def test_what_no_site_allows_ends_the_run_with_the_module_and_the_fix(
    tmp_path: Path, install: Installer
) -> None:
    install.outside()
    asked = experiment(arms=[{**BY_CLASS, "name": "mine"}], flower={"wait": 8, "deadline": 60, "quorum": 1.0})
    with pytest.raises(RuntimeFailure) as failed:
        play(Desk(asked, tmp_path), asked, tmp_path / "run")
    assert (
        "node 10: arm 'mine': method 'fedistill_outside.methods:Ballots': this node does not let an"
        " experiment name the module fedistill_outside.methods; if its site trusts that,"
        ' modules="fedistill_outside.methods" in its node config allows it'
    ) in str(failed.value)


def said(asked: Experiment, place: Path, kind: str = "query", **config: Any) -> str:
    """What a node's answer to its first message says is wrong; empty: nothing."""
    desk = Desk(asked, place, nodes(**config))
    arm, round = ("", 0) if kind == "query" else (asked.arms[0].name, 1)
    frames = {} if kind == "query" else {0: b""}
    (name,) = desk.push_messages([seal_order(Order("5e551", arm, round, frames), 10, kind)])
    (message,) = desk.pull_messages([name])
    reply = opened(message)
    return "".join(str(one.words.get("error", "")) for one in (reply, *reply.answers.values()))


NAMED: dict[str, dict[str, Any]] = {
    "arm 'site_models:Marked': method 'site_models:Marked'": {"arms": [{"method": "site_models:Marked"}]},
    "arm 'marked': method 'marked' (of site-package 1.0)": {
        "arms": [{"method": "dsfl"}, {"method": "marked"}]
    },
    "arm 'dsfl': codec 'site_models:Up'": {
        "arms": [{"method": "dsfl", "codec": {"up": {"name": "site_models:Up"}, "down": "fp32"}}]
    },
    "model 'site_models:net'": {"models": {"clients": ["mlp-s", "site_models:net"], "server": "mlp-s"}},
    "model 'site_models:other'": {"models": {"clients": ["mlp-s"], "server": "site_models:other"}},
    "optimizer 'site_models:mine'": {"train": {"optimizer": {"name": "site_models:mine", "lr": 0.1}}},
    "loss 'site_models:mine'": {"train": {"loss": "site_models:mine"}},
}


@pytest.mark.parametrize("kind", ["query", "train"])
@pytest.mark.parametrize("named", NAMED)
def test_nothing_is_imported_that_is_not_allowed(tmp_path: Path, mark: Path, named: str, kind: str) -> None:
    found = said(experiment(**NAMED[named]), tmp_path, kind, modules="site_model,site_models.net")
    assert found == (
        f"{named}: this node does not let an experiment name the module site_models; if its site trusts that,"
        ' modules="site_model,site_models.net,site_models" in its node config allows it'
    )
    assert not mark.exists()


def test_nor_an_aggregation(tmp_path: Path, mark: Path) -> None:
    asked = experiment(arms=[{"method": "dsfl", "aggregation": {"name": "site_models:Mean"}}])
    assert "`aggregation`: 'site_models:Mean': this node does not let an experiment" in said(asked, tmp_path)
    assert not mark.exists()


CODE = """
from pathlib import Path
from transformers import PreTrainedConfig, ViTForImageClassification

Path(MARK).touch()

class MineConfig(PreTrainedConfig):
    model_type = "mine"

class Mine(ViTForImageClassification):
    config_class = MineConfig
"""


@pytest.fixture
def with_code(tmp_path: Path, mark: Path) -> Path:
    """A folder of a model as the hub has them with code of their own, which leaves the mark."""
    folder = save_vit(tmp_path / "vit", side=8)
    (folder / "mine.py").write_text(CODE.replace("MARK", repr(str(mark))))
    point = {"AutoConfig": "mine.MineConfig", "AutoModelForImageClassification": "mine.Mine"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": point}))
    return folder


@pytest.mark.parametrize("kind", ["query", "train"])
@pytest.mark.parametrize("part", ["clients", "server", "features"])
def test_nor_a_model_of_the_hub(
    tmp_path: Path, with_code: Path, mark: Path, kind: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is not so much as looked at."""

    def look(*_: Any) -> None:
        raise AssertionError("the folder of a model that is not allowed was read")

    name = f"hf:{with_code}"
    models = {"clients": ["mlp-s"], "server": "mlp-s"}
    if part == "features":
        changes: dict[str, Any] = {"arms": [{"method": "ridge", "features": name}]}
    else:
        changes = {"models": models | {part: [name] if part == "clients" else name}}
    asked = experiment(**changes)
    monkeypatch.setattr(hub_folder, "read_json", look)
    monkeypatch.setattr(hub_folder, "_digest", look)
    assert said(asked, tmp_path, kind, modules="site_models") == (
        f"model {name!r}: this node does not let an experiment name the module hf; if its site trusts that,"
        ' modules="site_models,hf" in its node config allows it'
    )
    assert not mark.exists()


def test_a_model_of_the_hub_that_is_allowed_runs_no_code_of_its_folder(
    tmp_path: Path, with_code: Path, mark: Path
) -> None:
    """One of a known type is what transformers makes of its configuration; another is refused."""
    asked = experiment(models={"clients": [f"hf:{with_code}"], "server": "mlp-s"})
    assert said(asked, tmp_path / "known", "train", modules="hf") == ""
    config = with_code / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mine"}))
    assert "Unrecognized model identifier: mine" in said(asked, tmp_path / "unknown", "train", modules="hf")
    assert not mark.exists()
    transformers.AutoConfig.from_pretrained(with_code, trust_remote_code=True)
    assert mark.exists(), "it does run where it is trusted"


def test_nor_is_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    unchanged = huggingface_hub.snapshot_download

    def download(*given: Any, local_files_only: bool, **options: Any) -> str:
        wanted.append(local_files_only)
        return unchanged(*given, local_files_only=local_files_only, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    asked = experiment(models={"clients": ["hf:nobody/nothing"], "server": "mlp-s"})
    assert said(asked, tmp_path, "train", modules="hf").startswith(
        "model 'hf:nobody/nothing' is not on this machine and was not fetched"
    )
    assert wanted
    assert all(wanted)


def test_a_nodes_own_model_is_its_own_choice_and_nothing_else_of_its_module(
    tmp_path: Path, mark: Path
) -> None:
    own = {"model": "site_models:net"}
    assert said(experiment(), tmp_path, "train", **own) == ""
    assert mark.exists()
    asked = experiment(models={"clients": ["mlp-s", "site_models:other"], "server": "mlp-s"})
    assert said(asked, tmp_path, **own).startswith("model 'site_models:other': this node does not let")
    assert said(asked, tmp_path, modules="site_models", **own) == ""


def test_what_is_missing_at_a_site_is_said_at_once(tmp_path: Path) -> None:
    asked = experiment(arms=[{"method": "nowhere.methods:Mine"}])
    assert "module 'nowhere.methods' cannot be imported" in said(asked, tmp_path, modules="nowhere")
    assert "nowhere" not in sys.modules


@pytest.mark.parametrize("given", ["my_methods.py,", "a b", "a,,b", ",", 3, "./here"])
def test_a_list_that_names_no_modules_is_refused(given: Any) -> None:
    with pytest.raises(ExperimentError, match=r"^node config: modules = .* must name modules as Python"):
        AllowedModules.of({"modules": given})


@pytest.mark.parametrize(("given", "names"), [("", ()), ("a", ("a",)), ("a.b, c", ("a.b", "c"))])
def test_a_list_is_read(given: str, names: tuple[str, ...]) -> None:
    assert AllowedModules.of({"modules": given}).names == names


def test_a_trial_on_ones_own_machine_allows_what_its_experiment_names(
    tmp_path: Path, install: Installer, mark: Path
) -> None:
    install.outside()
    models = {"clients": ["mlp-s", "site_models:net"], "server": "mlp-s"}
    asked = experiment(models=models, arms=[BY_NAME, {**BY_CLASS, "name": "again"}])
    outside = [f"fedistill_outside.{module}" for module in ("aggregations", "codecs", "methods")]
    assert modules_of(asked) == [*outside, "site_models"]
    listed = ",".join([*outside, "site_models"])
    assert TrialNetwork(tmp_path, 1, modules_of(asked)).node_config(0).endswith(f' modules="{listed}"')
    assert "modules" not in TrialNetwork(tmp_path, 1, modules_of(experiment())).node_config(0)
    write_app(asked, tmp_path / "app", tmp_path / "out", "test")
    assert f'modules="{listed}"' in (tmp_path / "app" / "README.md").read_text()
    write_app(experiment(), tmp_path / "plain", tmp_path / "out", "test")
    assert "modules" not in (tmp_path / "plain" / "README.md").read_text()
