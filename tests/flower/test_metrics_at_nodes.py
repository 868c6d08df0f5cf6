"""Metrics on a network: measured at the nodes by the same code, and what returns is checked."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedistill.config.plugins import before_import
from fedistill.errors import ExperimentError
from fedistill.experiment.results import RoundJson
from fedistill.experiment.run_folder import read_results
from helpers.flower_trial import CLIENTS, experiment, in_process, site_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Message

    from fedistill.flower.allowed_modules import AllowedModules, look_up, modules_of
    from fedistill.flower.serde import Answer, Order
    from helpers.flower_desk import Desk, play, with_answers

pytestmark = pytest.mark.usefixtures("app")

OWN = "site_measures:half"
METRICS = ["accuracy", "balanced-accuracy", "macro-f1", "auroc", "ece", "log-loss", "confusion", OWN]
RAW: dict[str, Any] = {
    "rounds": 2,
    "task": {"name": "digits", "clients": CLIENTS, "limit": 180, "public": 40, "own_test_share": 0.2},
    "evaluate": {"metrics": METRICS},
    # Some are away, and are asked for their scores by themselves.
    "sampling": {"fraction": 0.7},
    "flower": {"wait": 60, "deadline": 30, "quorum": 0.5},
}


def rounds(folder: Path) -> list[RoundJson]:
    """The rounds of a run's only arm."""
    results = read_results(folder)
    assert "tasks" not in results
    return results["arms"][0]["rounds"]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "site_measures.py").write_text(
        "def half(probabilities, labels):\n    return len(labels) / 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("site_measures", None)


def nodes(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """The configs of all nodes; ``more``: of the first ones."""
    own = [*more, *({} for _ in range(CLIENTS - len(more)))]
    return [{"partition-id": client, "modules": "site_measures", **own[client]} for client in range(CLIENTS)]


@pytest.mark.parametrize("share", [0.2, 0.0])
def test_a_network_measures_what_one_process_measures(tmp_path: Path, share: float) -> None:
    asked = experiment(**{**RAW, "task": {**RAW["task"], "own_test_share": share}})
    expected = in_process(asked, tmp_path / "expected")["arms"][0]
    play(Desk(asked, tmp_path, nodes()), asked, tmp_path / "run")
    for found, wanted in zip(rounds(tmp_path / "run"), expected["rounds"], strict=True):
        assert set(wanted["metrics"]) == set(METRICS) - {"accuracy", "confusion"}
        for key in ("views", "metrics", "confusion", "sites", "spread", "evaluation"):
            assert found.get(key) == wanted.get(key), key
        assert ("spread" in wanted) == bool(share)


def test_a_site_with_data_of_its_own_has_figures_of_its_own(tmp_path: Path) -> None:
    """Nobody needs its class counts; and what it holds out is of its own file."""
    asked = experiment(**{**RAW, "sampling": {}, "rounds": 1})
    path = site_file(tmp_path / "mine.parquet", ["7", "3", "7", "9", "1"] * 4)
    play(Desk(asked, tmp_path, nodes({"train": str(path)})), asked, tmp_path / "run")
    (record,) = rounds(tmp_path / "run")
    assert {"client@own", "server@own"} <= set(record["views"])
    # Four of its twenty samples.
    assert record["sites"][OWN]["client@own"] == [2.0, 6.0, 6.0]
    own = record["sites"]["accuracy"]["client@own"][0]
    assert own is not None
    assert own * 4 == int(own * 4)


@pytest.mark.parametrize("scores", ['{"own": {"accuracy": 2.0}}', "nonsense", 7])
def test_impossible_scores_are_those_of_nobody(tmp_path: Path, scores: Any) -> None:
    asked = experiment(**{**RAW, "sampling": {}, "rounds": 1})
    desk = Desk(asked, tmp_path, nodes())

    def changed(node: int, order: Order, reply: Message) -> Message:
        def other(client: int, said: Answer) -> Answer:
            if order.frames[client] and not order.round:
                return Answer(str(scores).encode(), said.words)
            return Answer(
                said.frame, {**said.words, **({"scores": scores} if "scores" in said.words else {})}
            )

        return with_answers(reply, other) if node == 11 else reply

    desk.change = changed
    play(desk, asked, tmp_path / "run")
    (record,) = rounds(tmp_path / "run")
    for view in ("client@own", "server@own"):
        values = record["sites"]["accuracy"][view]
        assert [value is None for value in values] == [False, True, False]
    assert record["spread"]["accuracy"]["client@own"]["measured"] == 2


def test_a_metric_of_the_experiments_own_needs_a_sites_permission() -> None:
    asked = experiment(evaluate={"metrics": [OWN]})
    assert modules_of(asked) == ["site_measures"]
    refused = pytest.raises(ExperimentError, match="does not let an experiment name the module site_measures")
    with before_import(AllowedModules(()).check), refused:
        look_up(asked)
