"""A network that learns how one-shot statistics label the public set: what it is, and what it depends on."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedistill.config.schedules import Cosine
from fedistill.errors import Refusal
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.rng import scoped, stream
from fedistill.training.loop import fit, predict
from fedistill.training.optimizers import make_optimizer
from helpers.runs import finished, ready


def played(rounds: int = 1, own: dict[str, Any] | None = None, **changes: Any) -> tuple[ReadyArm, ArmRun]:
    task = {"name": "digits", "clients": 4, "limit": 600, "public": 200}
    return finished(
        {
            "rounds": rounds,
            "models": {"clients": ["mlp-s"], "server": "cnn-s"},
            "train": {"optimizer": {"lr": 0.05, "momentum": 0.9}},
            "arms": [{"method": "gaussian", "width": 24, **({"distill_epochs": 3} if own is None else own)}],
            **changes,
            "task": {**task, **changes.get("task", {})},
        }
    )


def test_it_learns_the_classes_that_the_statistics_name() -> None:
    """The same as training by hand on the answers of the arm that has no student."""
    plain, teacher = played(own={})
    arm, run = played()
    found = plain.method.server_net(plain.federation)
    assert found is not None
    assert arm.method.server_net(arm.federation) is None
    server = arm.server(1)
    with torch.no_grad():
        labels = predict(teacher.server.model.load_into(found[1]), server.public_inputs()).argmax(dim=1)
    falling = server.train.optimizer.model_copy(update={"schedule": Cosine(name="cosine", over="steps")})
    with scoped(0, "start"):
        module = server.load(server.initial_model())
        fit(
            module,
            make_optimizer(falling, module),
            server.public_inputs(),
            lambda logits, at: cross_entropy(logits, labels[at], label_smoothing=0.1),
            epochs=3,
            batch_size=32,
            generator=stream(0, "start"),
        )
    expected = torch.cat([value.flatten() for value in module.parameters()])
    torch.testing.assert_close(run.server.model.weights, expected, rtol=0, atol=0)


def test_it_is_what_is_measured_and_costs_no_byte() -> None:
    plain, teacher = played(own={})
    arm, run = played(own={"distill_epochs": 20})
    assert run.ledger.total == teacher.ledger.total > 0
    assert run.ledger.public == 0  # only the server has public images
    assert set(arm.parameters()) == set(plain.parameters()) == {"server"}
    assert arm.parameters()["server"] != plain.parameters()["server"]
    (views,), (before,) = ([record.views for record in one.records] for one in (run, teacher))
    assert set(views) == {"server@global"}
    assert views["server@global"] > before["server@global"] - 0.1 > 0.5


def test_no_order_of_arrival_changes_a_bit() -> None:
    _, expected = played()
    _, found = played(rounds=12, sampling={"fraction": 0.25, "dropout": 0.3})
    assert found.server.clients == [0, 1, 2, 3]
    # Sums of floats depend on their order in the last bits, and classes hardly ever on those.
    assert torch.equal(found.server.model.weights, expected.server.model.weights)


def test_before_any_statistics_it_is_the_initial_model() -> None:
    arm, run = played(sampling={"dropout": 0.999})
    assert run.server.clients == []
    assert torch.equal(run.server.model.weights, arm.server(1).initial_model().weights)


@pytest.mark.parametrize("method", ["ridge", "gaussian"])
def test_without_a_public_set_it_is_refused(method: str) -> None:
    raw: dict[str, Any] = {
        "rounds": 1,
        "task": {"name": "digits", "clients": 2, "limit": 100},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    }
    _, plain = ready({**raw, "arms": [{"method": method}]})
    plain.method.check(plain.federation)
    _, arm = ready({**raw, "arms": [{"method": method, "distill_epochs": 1}]})
    with pytest.raises(Refusal, match=f"method {method} needs a public set: set task.public"):
        arm.method.check(arm.federation)


def test_a_text_model_learns_from_word_counts_and_clients_need_no_vocabulary() -> None:
    task = {"name": "bbc-news", "text": {"length": 16, "vocabulary": 300}, "clients": 3, "limit": 200}
    arm, run = finished(
        {
            "rounds": 1,
            "task": {**task, "public": 100},
            "models": {"clients": ["bag"], "server": "bag"},
            "arms": [{"method": "naive-bayes", "distill_epochs": 20}],
        }
    )
    assert run.ledger.setup == 0
    assert run.records[0].views["server@global"] > 0.3
    assert arm.server_model() is not None
