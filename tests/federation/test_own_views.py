"""What is measured on clients' own held-out samples, and by other metrics, against plain computations."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.frame import Frame
from fedistill.errors import FrameError
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.summary import arm_json
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.client_evaluation import asked_of_clients, model_frame, read_model
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import ProcessExecutor
from fedistill.federation.scores import Scores
from fedistill.models.registry import build_model
from fedistill.models.signature import Preprocessing
from fedistill.testing.runs import bits, finish, require_same
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from helpers.runs import finished, ready, run_serially

CLIENTS = 3
METRICS = ["accuracy", "macro-f1", "auroc", "log-loss", "confusion"]
RAW: dict[str, Any] = {
    "rounds": 2,
    "task": {"name": "digits", "clients": CLIENTS, "limit": 180, "public": 40, "own_test_share": 0.25},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"batch_size": 16},
    "evaluate": {"metrics": METRICS},
    "runtime": {"kind": "serial"},
    "arms": [{"method": "dsfl"}],
}


@pytest.fixture(scope="module")
def run() -> tuple[ReadyArm, ArmRun]:
    return finished(RAW)


def model_of(arm: ReadyArm, state: ModelState) -> torch.nn.Module:
    return state.load_into(build_model("mlp-s", arm.signature("mlp-s"), seed=5, client=0))


def own(arm: ReadyArm, client: int, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """A model's logits for what a client has held out, and the true classes."""
    data = arm.task.own_tests[client]
    assert isinstance(data.samples, Tensor)
    return predict(model, data.samples), data.labels


def expected_values(logits: Tensor, labels: Tensor) -> dict[str, float]:
    soft = logits.double().softmax(dim=1).numpy()
    found = logits.argmax(dim=1)
    areas = [roc_auc_score(labels == one, soft[:, one]) for one in labels.unique().tolist()]
    return {
        "accuracy": float((found == labels).double().mean()),
        "macro-f1": f1_score(labels, found, average="macro"),
        "auroc": float(np.mean(areas)),
        "log-loss": float(torch.nn.functional.cross_entropy(logits.double(), labels)),
    }


def test_each_sites_figures_are_those_of_its_own_held_out_samples(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, played = run
    record = played.records[-1]
    models = {
        "client@own": [model_of(arm, client_state(arm, c, played.clients[c]).model) for c in range(CLIENTS)],
        "server@own": [model_of(arm, played.server.model)] * CLIENTS,
    }
    for view, served in models.items():
        answers = [own(arm, client, model) for client, model in enumerate(served)]
        expected = [expected_values(*one) for one in answers]
        for name in ("accuracy", "macro-f1", "auroc", "log-loss"):
            values = [one[name] for one in expected]
            assert record.measured["sites"][name][view] == pytest.approx(values)
            mean = record.views[view] if name == "accuracy" else record.measured["metrics"][name][view]
            assert mean == pytest.approx(sum(values) / CLIENTS)
            spread = record.measured["spread"][name][view]
            assert spread["worst"] == pytest.approx(max(values) if name == "log-loss" else min(values))
            assert spread["deviation"] == pytest.approx(np.std(values, ddof=1))
            assert spread["measured"] == CLIENTS
        matrices = [confusion_matrix(y, x.argmax(dim=1), labels=range(10)) for x, y in answers]
        assert record.measured["confusion"][view] == sum(matrices).tolist()


def test_results_have_the_sites_of_the_last_round_alone(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, played = run
    first, last = arm_json(arm, played, "done", None)["rounds"]
    assert "sites" not in first
    assert first["spread"] == played.records[0].measured["spread"]
    assert last["sites"] == played.records[1].measured["sites"]
    assert "sites" in played.records[0].to_json()["measured"]


def test_the_same_metrics_on_the_global_test_set(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, played = run
    inputs, labels = arm.task.test_inputs(Preprocessing()), arm.task.test.labels
    states = [client_state(arm, client, played.clients[client]).model for client in range(CLIENTS)]
    for view, models in (("server@global", [played.server.model]), ("client@global", states)):
        found = [expected_values(predict(model_of(arm, one), inputs), labels) for one in models]
        for name in ("macro-f1", "auroc", "log-loss"):
            mean = sum(one[name] for one in found) / len(found)
            assert played.records[-1].measured["metrics"][name][view] == pytest.approx(mean)
    matrix = torch.tensor(played.records[-1].measured["confusion"]["server@global"])
    assert matrix.sum(dim=1).tolist() == torch.bincount(labels, minlength=10).tolist()


def test_what_is_held_out_takes_part_in_no_training(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, _ = run
    held = {row.numpy().tobytes() for data in arm.task.own_tests for row in data.samples}
    assert len(held) == sum(map(len, arm.task.own_tests)) == 45
    for client in range(CLIENTS):
        worker = arm.client(client, round=1)
        assert arm.federation.clients[client].samples == len(worker.inputs()) == 45
        assert held.isdisjoint(row.numpy().tobytes() for row in worker.inputs())
        assert held.isdisjoint(row.numpy().tobytes() for row in worker.public_inputs())


def test_asking_about_the_servers_model_is_counted_by_itself(run: tuple[ReadyArm, ArmRun]) -> None:
    _, played = run
    crossed = played.records[-1].measured["evaluation"]
    assert crossed["down"] == CLIENTS * len(model_frame(played.server.model, 2))
    assert 0 < crossed["up"] < 1000 * CLIENTS
    _, without = finished({**RAW, "task": {**RAW["task"], "own_test_share": 0}})
    assert "evaluation" not in without.records[-1].measured
    # No frame of the method depends on what is measured.
    _, accuracy = finished({**RAW, "evaluate": {}})
    assert accuracy.ledger == played.ledger
    assert accuracy.records[-1].views == played.records[-1].views


def test_worker_processes_measure_the_same(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, played = run
    experiment, _ = ready(RAW)
    with ProcessExecutor(1, experiment, arm.task) as executor:
        require_same(finish(arm, executor), bits(played), "processes are bit-identical")


def test_scores_outlive_a_stop_and_absence(run: tuple[ReadyArm, ArmRun], tmp_path: Any) -> None:
    arm, played = run
    experiment, _ = ready(RAW)
    folder = RunFolder.create(tmp_path / "run", experiment, "test")
    for one in (replace(played, round=1, records=played.records[:1]), played):
        folder.add_round(arm, one)
        folder.save(arm, one)
    again = folder.restore(arm)
    assert again.scores == played.scores
    assert again.records == played.records


def test_without_them_a_clients_own_mix_of_classes_weighs_the_test_set() -> None:
    raw = {**RAW, "task": {**RAW["task"], "own_test_share": 0}, "rounds": 1}
    arm, played = finished(raw)
    labels = arm.task.test.labels
    tested = torch.bincount(labels, minlength=10).double()
    losses = []
    for client in range(CLIENTS):
        model = model_of(arm, client_state(arm, client, played.clients[client]).model)
        logits = predict(model, arm.task.test_inputs(Preprocessing())).double()
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        by_class = torch.zeros(10).double().index_add(0, labels, each) / tested
        held = torch.bincount(arm.task.clients[client].labels, minlength=10).double()
        losses.append(float((by_class * held / held.sum()).sum()))
    measured = played.records[-1].measured
    assert measured["metrics"]["log-loss"]["client@own"] == pytest.approx(sum(losses) / CLIENTS)
    assert set(measured["confusion"]) == {"server@global", "client@global"}
    assert not {"sites", "spread", "evaluation"} & set(measured)


def test_accuracy_alone_leaves_no_trace() -> None:
    raw = {**RAW, "task": {**RAW["task"], "own_test_share": 0}, "rounds": 1, "evaluate": {}}
    _, played = finished(raw)
    assert "measured" not in played.records[-1].to_json()
    assert list(played.records[-1].views) == ["server@global", "client@global", "client@own"]
    assert all(not scores.beyond_counts() for scores in played.scores.values())


@pytest.mark.parametrize(
    ("method", "views"),
    [
        ("fedavg", {"server@global", "server@own"}),
        ("local", {"client@global", "client@own"}),
        ("gaussian", {"server@global", "server@own"}),
        # Its server answers only together with the clients' models.
        ("fedgkt", {"server@global", "client@global", "client@own"}),
    ],
)
def test_views_of_methods_with_other_models(method: str, views: set[str]) -> None:
    _, played = finished({**RAW, "rounds": 1, "evaluate": {}, "arms": [{"method": method}]})
    assert set(played.records[-1].views) == views


def test_clients_are_asked_as_often_as_it_says() -> None:
    _, played = finished({**RAW, "rounds": 3, "evaluate": {"clients": 2}, "arms": [{"method": "fedavg"}]})
    assert ["server@own" in record.views for record in played.records] == [False, True, True]


def test_a_site_with_too_few_samples_is_in_no_mean() -> None:
    lists = [list(range(60)), list(range(60, 120)), list(range(120, 124))]
    partition = {"kind": "indices", "clients": lists}
    task = {"name": "digits", "partition": partition, "public": 40, "own_test_share": 0.1}
    experiment, arm = ready({**RAW, "task": task, "rounds": 1, "evaluate": {}})
    assert [len(held) > 0 for held in arm.task.own_tests] == [True, True, False]
    record = run_serially(experiment, arm).records[-1]
    for view in ("client@own", "server@own"):
        *values, none = record.measured["sites"]["accuracy"][view]
        assert none is None
        assert record.views[view] == pytest.approx(sum(filter(None, values)) / 2)
        assert record.measured["spread"]["accuracy"][view]["measured"] == 2


def test_a_model_that_comes_is_checked(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, played = run
    state: ModelState = played.server.model
    module = build_model("mlp-s", arm.signature("mlp-s"), seed=9, client=0)
    sent = model_frame(state, 3)
    assert frames.decode(sent).round == 3
    assert torch.equal(ModelState.of(read_model(sent, module)).weights, state.weights)
    part = state.weights.numpy().tobytes()
    for sections, kind, said in (
        ((part[:-4], b""), Kind.EVALUATED_MODEL, "came in place of a model with"),
        ((part,), Kind.EVALUATED_MODEL, "came in place of a model with"),
        ((part, b"12345678"), Kind.EVALUATED_MODEL, "came in place of a model with"),
        ((part, b""), Kind.WEIGHTS, "came in place of a model with"),
        ((part[:-4] + np.float32(math.nan).tobytes(), b""), Kind.EVALUATED_MODEL, "not finite"),
    ):
        with pytest.raises(FrameError, match=said):
            read_model(frames.encode(Frame(kind, 3, frames.EVERYONE, sections)), module)
    with pytest.raises(FrameError, match="checksum"):
        read_model(sent[:-1] + bytes([sent[-1] ^ 1]), module)


def test_scores_that_come_are_checked(run: tuple[ReadyArm, ArmRun]) -> None:
    arm, played = run
    asked, scores = asked_of_clients(arm), played.scores[0]
    assert asked.scores(scores.correct, scores.encode()) == scores
    site = Scores(own={"accuracy": 0.5, "auroc": None, "log-loss": 2.5})
    assert asked_of_clients(arm, frame=b"model").scores([], site.encode()) == site
    for beyond in (
        b"[]", b"{", b"\xff", '{"more": 1}',
        '{"own": []}', '{"own": {"ece": 0.1}}', '{"own": {"auroc": 1.5}}',
        '{"own": {"auroc": -0.5}}', '{"own": {"log-loss": NaN}}', '{"own": {"log-loss": true}}',
        '{"own": {"accuracy": "1"}}', '{"everywhere": {"accuracy": 1.0}}', '{"confusion": {"own": [[1]]}}',
        '{"confusion": {"here": []}}', 7, "[" * 10**5,
    ):  # fmt: skip
        with pytest.raises(FrameError):
            asked.scores(scores.correct, beyond)
    matrix = [[1] * 10 for _ in range(10)]
    for wrong in (-1, 1.0, True, 2**60):
        broken = Scores(confusion={"own": [[wrong, *row[1:]] for row in matrix]})
        with pytest.raises(FrameError, match="confusion matrix"):
            asked.scores(scores.correct, broken.encode())
    _, plain = ready({**RAW, "evaluate": {}})
    with pytest.raises(FrameError, match="not asked for"):
        asked_of_clients(plain).scores(scores.correct, Scores(confusion={"own": matrix}).encode())
