"""The running mean of the server's model: what it is, and that nothing else depends on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedistill import compare
from fedistill.config.schema import Experiment, Sampling
from fedistill.errors import ExperimentError
from fedistill.experiment.preflight import examine
from fedistill.experiment.run_folder import RunFolder
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.running_mean import running_mean
from fedistill.federation.setup import start_run
from fedistill.methods.shared.own_model import ServerModel
from fedistill.testing.runs import bits, finish
from fedistill.training.model_state import ModelState
from helpers.runs import ready

DECAY = 0.75


def arm_of(method: str, **settings: Any) -> tuple[Experiment, ReadyArm]:
    return ready(
        {
            "rounds": 4,
            "task": {"name": "digits", "clients": 3, "limit": 120, "public": 40},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "runtime": {"kind": "serial"},
            "arms": [{"method": method, **settings}],
        }
    )


def played(method: str, **settings: Any) -> tuple[ReadyArm, ArmRun, list[Tensor]]:
    """The arm, its run, and the weights of the server's model after each round."""
    experiment, arm = arm_of(method, **settings)
    run, weights = start_run(arm), []
    with SerialExecutor(experiment, arm.task) as executor:
        while run.round < arm.rounds:
            play_round(run, arm, executor)
            weights.append(run.server.model.weights)
    return arm, run, weights


def state(weights: list[float], integers: list[int]) -> ServerModel:
    return ServerModel(ModelState(torch.tensor(weights), torch.tensor(integers)))


def test_the_mean_by_hand() -> None:
    first, second, third = state([9.0], [0]), state([2.0], [1]), state([6.0], [2])
    mean = running_mean(None, first, second, DECAY)
    assert mean == second.model
    mean = running_mean(mean, second, third, DECAY)
    assert mean is not None
    assert mean.weights.tolist() == [0.75 * 2 + 0.25 * 6]
    assert mean.integers.tolist() == [2]
    assert running_mean(mean, third, third, DECAY) is mean
    assert running_mean(None, third, third, DECAY) is None


@pytest.mark.parametrize("method", ["fedavg", "voting", "server-alone"])
def test_it_is_measured_and_nothing_else_changes(method: str) -> None:
    arm, run, weights = played(method, ema=DECAY)
    expected = weights[0]
    for later in weights[1:]:
        expected = DECAY * expected + (1 - DECAY) * later
    assert run.mean is not None
    torch.testing.assert_close(run.mean.weights, expected)
    server = arm.server(0)
    right = arm.answers("mlp-s", server.load(run.mean)).correct_by_class().sum()
    assert run.records[-1].views["server@global"] == float(right) / len(arm.task.test)
    _, plain, others = played(method)
    assert plain.mean is None
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))
    assert run.ledger == plain.ledger
    assert bits(run)["the server's state"] == bits(plain)["the server's state"]


def test_a_round_without_replies_does_not_count() -> None:
    experiment, arm = arm_of("fedavg", ema=DECAY)
    # A dropout of 1 is refused in experiments, since nothing would ever arrive.
    deaf = replace(arm, sampling=Sampling.model_construct(fraction=1.0, dropout=1.0))
    with SerialExecutor(experiment, arm.task) as executor:
        run = start_run(arm)
        play_round(run, deaf, executor)
        assert run.mean is None
        play_round(run, arm, executor)
        before = run.mean
        play_round(run, deaf, executor)
        assert run.mean is before


def test_a_resumed_run_has_the_same_mean(tmp_path: Path) -> None:
    experiment, arm = arm_of("voting", ema=DECAY)
    with SerialExecutor(experiment, arm.task) as executor:
        whole = finish(arm, executor)
        folder, run = RunFolder.create(tmp_path / "run", experiment, "test"), start_run(arm)
        for _ in range(2):
            play_round(run, arm, executor)
            folder.add_round(arm, run)
            folder.save(arm, run)
        loaded = folder.restore(arm)
        assert loaded.mean is not None
        again = finish(arm, executor, loaded)
    assert whole.mean is not None
    assert again.mean is not None
    assert torch.equal(again.mean.weights, whole.mean.weights)
    assert bits(again) == bits(whole)


def test_the_mean_is_the_model_that_is_saved(tmp_path: Path) -> None:
    experiment, arm = arm_of("fedavg", ema=DECAY)
    compare(experiment, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "models" / "fedavg" / "server" / "model.safetensors")
    run = RunFolder(tmp_path / "run").restore(arm)
    assert run.mean is not None
    found = torch.cat([value.flatten() for value in saved.values()])
    assert torch.equal(found.sort().values, run.mean.weights.sort().values)
    assert not torch.equal(found.sort().values, run.server.model.weights.sort().values)


def test_without_a_model_at_the_server_it_is_refused() -> None:
    experiment, arm = arm_of("local", ema=DECAY)
    errors = [finding for finding in examine(experiment, arm.task, [arm]) if finding.level == "error"]
    assert [(error.what, error.fix) for error in errors] == [
        ("method local has no model at the server, so there is none to average", "take `ema` out of this arm")
    ]


@pytest.mark.parametrize("decay", [0, 1, -0.5, "much"])
def test_the_share_of_the_past_is_between_0_and_1(decay: Any) -> None:
    with pytest.raises(ExperimentError, match="ema"):
        arm_of("fedavg", ema=decay)
