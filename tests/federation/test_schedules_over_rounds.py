"""A schedule over rounds sets the rate by the number of the round, for whoever takes part in it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedistill.experiment.preflight import examine
from fedistill.federation.arm import ReadyArm
from fedistill.federation.local_executor import SerialExecutor
from fedistill.methods.shared import own_model
from fedistill.methods.shared.label_student import learn_labels
from fedistill.testing.runs import finish, ready, small_experiment

OPTIMIZER = {"lr": 0.1, "schedule": "step(every=2, falls_to=0.5)"}
TABLES: dict[str, Any] = {
    "rounds": 6,
    "task": {"clients": 3, "limit": 60, "public": 40},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"optimizer": OPTIMIZER},
    "sampling": {"fraction": 0.34},
    "evaluate": {"every": 6},
}


def arm(**changes: Any) -> ReadyArm:
    return ready(small_experiment({**TABLES, "arms": [{"method": "local"}], **changes}))


def test_clients_and_server_have_the_rate_of_the_round() -> None:
    made = arm()
    rates = [made.server(number).train.optimizer.lr for number in range(7)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    assert [made.client(1, number).train.optimizer.lr for number in range(7)] == rates
    assert made.train.optimizer.lr == 0.1


def test_a_client_that_was_away_trains_at_the_rate_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three clients takes part in each round, and its momentum outlasts its absence."""
    seen: dict[int, float] = {}
    train = own_model.fit

    def spy(model: Any, optimizer: Any, *args: Any, **settings: Any) -> None:
        seen[len(seen) + 1] = optimizer._settings.lr
        train(model, optimizer, *args, **settings)

    monkeypatch.setattr(own_model, "fit", spy)
    experiment = small_experiment({**TABLES, "arms": [{"method": "local"}]})
    made = ready(experiment)
    with SerialExecutor(experiment, made.task) as executor:
        run = finish(made, executor)
    clients = [record.clients for record in run.records]
    assert all(len(one) == 1 for one in clients)
    assert len({client for one in clients for client in one}) > 1
    assert list(seen.values()) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize(
    ("warm_up", "over", "warned"), [(6, "rounds", True), (5, "rounds", False), (6, "steps", False)]
)
def test_a_warm_up_that_outlasts_the_run_is_warned_of(warm_up: int, over: str, warned: bool) -> None:
    train = {"optimizer": {"schedule": {"warm_up": warm_up, "over": over}}}
    experiment = small_experiment({**TABLES, "train": train, "arms": [{"method": "local"}]})
    made = ready(experiment)
    found = [str(one) for one in examine(experiment, made.task, [made]) if one.level == "warning"]
    assert any("a warm-up of 6 rounds does not end within 6" in one for one in found) == warned


def test_a_start_from_labels_is_the_same_in_every_round() -> None:
    """Whoever makes it later must get the same weights."""
    made, labels = arm(arms=[{"method": "bridge"}]), torch.arange(40) % 10

    def start(number: int, client: int | None) -> Tensor:
        site = made.server(number) if client is None else made.client(client, number)
        return learn_labels(site, "mlp-s", labels, epochs=1, batch_size=16, smoothing=0.1).weights

    assert torch.equal(start(1, None), start(5, 2))
