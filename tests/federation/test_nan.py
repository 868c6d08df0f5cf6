"""NaN is never class 0, and whatever goes wrong in a step has its place: the round, and who it was."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedistill.communication.messages.labels import SoftLabels
from fedistill.errors import FrameError, TrainingError
from fedistill.experiment.runner import prepare, run_experiment
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.labels.dsfl import DsFl
from fedistill.testing.runs import finish
from helpers.runs import on_digits
from helpers.watchers import Watcher

DSFL = {"method": "dsfl", "codec": "fp32"}
FEDAVG = {"method": "fedavg", "codec": "fp32"}
BOTH = pytest.mark.parametrize("kind", ["serial", "processes"])


MODULE = '''
"""Models that train well, and are no good in evaluation."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, signature):
        super().__init__()
        self.head = nn.Linear(signature.shape[1] * signature.shape[2], signature.classes)

    def forward(self, x):
        return self.head(x.flatten(1))


class Nan(Net):
    """One logit of one sample in a batch is NaN."""

    value = float("nan")

    def forward(self, x):
        outputs = super().forward(x)
        if self.training:
            return outputs
        spoilt = outputs.clone()
        spoilt[0, 3] = self.value
        return spoilt


class Infinite(Nan):
    value = float("-inf")


class Variance(Net):
    """A running variance below zero, of which only evaluation takes the root."""

    def __init__(self, signature):
        super().__init__(signature)
        self.norm = nn.BatchNorm1d(signature.classes)

    def forward(self, x):
        self.norm.running_var.fill_(-1.0)
        return self.norm(super().forward(x))
'''


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "nan_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("nan_models", None)


def odd(method: str, client: str, server: str = "Net", **more: Any) -> dict[str, Any]:
    """An arm whose client 1 has an odd model, or whose server has."""
    pair = {"clients": ["nan_models:Net", f"nan_models:{client}"], "server": f"nan_models:{server}"}
    return {"name": "odd", "method": method, "models": pair, **more}


WHAT = (
    "the model's outputs are NaN or infinite for {} of {} samples in evaluation mode: lower"
    " train.optimizer.lr, or look for extreme inputs or for statistics that a normalisation layer cannot use"
)
TESTED = 359
BATCHES = 3
"""Of 128 test samples, and each has one that is odd."""
NAN: dict[str, tuple[dict[str, Any], str]] = {
    "evaluation": (odd("local", "Nan"), "round 1, evaluation, client 1: " + WHAT.format(BATCHES, TESTED)),
    "infinite": (odd("local", "Infinite"), "round 1, evaluation, client 1: " + WHAT.format(BATCHES, TESTED)),
    "batch norm": (odd("local", "Variance"), "round 1, evaluation, client 1: " + WHAT.format(TESTED, TESTED)),
    "server": (
        odd("server-alone", "Net", "Nan"),
        "round 1, evaluation, server: " + WHAT.format(BATCHES, TESTED),
    ),
    "votes": (odd("voting", "Nan"), "round 1, client 1: " + WHAT.format(1, 40)),
    "labels": (odd("dsfl", "Variance"), "round 1, client 1: " + WHAT.format(40, 40)),
    "labels, in few bits": (odd("cfd", "Variance"), "round 1, client 1: " + WHAT.format(40, 40)),
    "cached": (odd("scarlet", "Nan", samples=20), "round 1, client 1: " + WHAT.format(1, 20)),
    "clusters": (odd("comet", "Nan"), "round 1, client 1: " + WHAT.format(1, 40)),
    "logits": (odd("fedmd", "Nan"), "round 1, client 1: " + WHAT.format(1, 40)),
    "labels of the server": (odd("cfd", "Net", "Nan"), "round 1, server: " + WHAT.format(1, 40)),
    "teachers at the server": (
        odd("feddf", "Nan"),
        "round 1, server: on the weights of client 1, " + WHAT.format(1, 40),
    ),
    "ensemble at the server": (
        odd("fed-et", "Nan", share_head=False),
        "round 1, server: on the weights of client 1, " + WHAT.format(1, 40),
    ),
}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("arm", "said"), NAN.values(), ids=NAN)
def test_nan_in_predictions_ends_the_arm_with_its_place(arm: dict[str, Any], said: str) -> None:
    wanted = on_digits(arm)
    _, (prepared,) = prepare(wanted)
    run = start_run(prepared)
    with SerialExecutor(wanted, prepared.task) as executor, pytest.raises(TrainingError) as caught:
        play_round(run, prepared, executor)
    assert str(caught.value) == said
    assert run.records == []


@pytest.mark.usefixtures("models")
@BOTH
def test_nan_in_evaluation_is_of_its_arm_alone(kind: str, tmp_path: Path) -> None:
    wanted = on_digits(odd("local", "Nan"), FEDAVG, rounds=2, runtime={"kind": kind, "workers": 2})
    bad, fine = run_experiment(wanted, tmp_path / "run", "test", Watcher())["arms"]
    assert (bad["status"], bad["rounds"], bad["error"]) == ("failed", [], NAN["evaluation"][1])
    assert (fine["status"], len(fine["rounds"])) == ("done", 2)


def arm_with(step: str, function: Any, monkeypatch: pytest.MonkeyPatch, **more: Any) -> TrainingError:
    """What ends the arm where a step of its method is another."""
    wanted = on_digits(DSFL, rounds=2, **more)
    _, (arm,) = prepare(wanted)
    monkeypatch.setattr(DsFl, step, staticmethod(function))
    with SerialExecutor(wanted, arm.task) as executor, pytest.raises(TrainingError) as caught:
        finish(arm, executor)
    return caught.value


NAN_MESSAGE = (
    "the message to send has NaN or infinite numbers in 'probs': lower train.optimizer.lr, or look for"
    " extreme inputs"
)


def test_a_client_that_would_send_nan_ends_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(state: Any, client: Any, received: Any) -> Any:
        return state, SoftLabels(torch.full((40, 10), torch.nan), client.round)

    assert str(arm_with("client_step", step, monkeypatch)) == f"round 1, client 0: {NAN_MESSAGE}"


def test_a_server_that_would_send_nan_ends_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(state: Any, server: Any, client: int) -> Any:
        return SoftLabels(torch.full((40, 10), torch.inf), 1) if server.round == 2 else None

    assert str(arm_with("send", send, monkeypatch)) == f"round 2, server: {NAN_MESSAGE}"


# --- whatever is raised at the server is of its arm alone ---


@pytest.mark.parametrize("step", ["send", "server_step", "check_reply", "server_eval_models"])
@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ZeroDivisionError("of nothing"), "ZeroDivisionError: of nothing ("),
        (TrainingError("no luck"), "no luck"),
    ],
    ids=["anything", "said"],
)
def test_an_error_at_the_server_has_its_place(
    step: str, error: Exception, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Any:
        raise error

    said = arm_with(step, fail, monkeypatch)
    assert said.place == (
        "round 1, evaluation, server" if step == "server_eval_models" else "round 1, server"
    )
    assert said.what.startswith(what)


def test_a_frame_error_in_the_server_step_ends_the_arm_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(state: Any, server: Any, replies: Iterable[Any]) -> Any:
        for reply in replies:
            raise FrameError(f"client {reply.client} sent what it should not")

    said = arm_with("server_step", step, monkeypatch)
    assert str(said) == "round 1, server: client 0 sent what it should not"


def test_an_arm_whose_server_cannot_start_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(DsFl, "start_server", fail)
    wanted = on_digits(DSFL, FEDAVG, rounds=1)
    bad, fine = run_experiment(wanted, tmp_path / "run", "test", Watcher())["arms"]
    assert (bad["status"], fine["status"]) == ("failed", "done")
    assert bad["error"] is not None
    assert bad["error"].startswith("before round 1, server: ZeroDivisionError: of nothing (")
