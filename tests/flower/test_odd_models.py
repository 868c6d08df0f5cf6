"""Models with a state of another kind end in the same bits in one process, in two, resumed, and on Flower."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedistill.experiment.runner import resume_experiment, run_experiment
from helpers.flower_desk import Desk, play
from helpers.flower_trial import CLIENTS, Watch, experiment, frames
from helpers.odd_models import CARRIED_OR_ANEW
from helpers.watchers import Watcher

pytestmark = pytest.mark.usefixtures("app")


def asked(name: str, **changes: Any) -> Any:
    models = {"clients": [f"helpers.odd_models:{name}"], "server": f"helpers.odd_models:{name}"}
    arms = [{"method": "fedavg"}, {"method": "dsfl"}, {"method": "fml", "codec": "fp32"}]
    train = {"batch_size": 16, "epochs": 3, "optimizer": {"lr": 0.05, "momentum": 0.9}}
    return experiment(models=models, arms=arms, train=train, **changes)


def outcome(folder: Path) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """Accuracies of each round of each arm, and the server's models."""
    results = json.loads((folder / "results.json").read_text())
    found = [[record["views"] for record in arm["rounds"]] for arm in results["arms"]]
    saved = sorted((folder / "models").glob("*/server/model.safetensors"))
    return found, {path.parents[1].name: load_file(path) for path in saved}


def require_same(folder: Path, expected: Path) -> None:
    (found, models), (accuracies, reference) = outcome(folder), outcome(expected)
    assert found == accuracies
    assert models.keys() == reference.keys() == {"fedavg", "dsfl", "fml"}
    for arm, tensors in reference.items():
        assert all(torch.equal(models[arm][name], value) for name, value in tensors.items()), arm
    assert frames(folder) == frames(expected)


# States of another type, and those that are there late; all others are of `make thorough`.
EVERYDAY = ("complex_buffer", "late")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in EVERYDAY else [pytest.mark.long]) for name in CARRIED_OR_ANEW],
)
def test_it_is_the_same_everywhere(tmp_path: Path, name: str) -> None:
    serial = asked(name)
    run_experiment(serial, tmp_path / "serial", "test", Watcher())
    accuracies, _ = outcome(tmp_path / "serial")
    assert max(views["server@global"] for views in accuracies[0]) > 0.2  # it learns

    run_experiment(
        asked(name, runtime={"kind": "processes", "workers": 2}), tmp_path / "two", "test", Watcher()
    )
    require_same(tmp_path / "two", tmp_path / "serial")

    def stop(round: int) -> None:
        if round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(serial, tmp_path / "resumed", "test", Watch(stop))
    resume_experiment(tmp_path / "resumed", Watcher())
    require_same(tmp_path / "resumed", tmp_path / "serial")

    sites = [{"partition-id": site, "modules": "helpers.odd_models"} for site in range(CLIENTS)]
    play(Desk(serial, tmp_path, sites), serial, tmp_path / "flower")
    require_same(tmp_path / "flower", tmp_path / "serial")
