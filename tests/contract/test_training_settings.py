"""The settings of training, all at once: every method that trains on labels obeys each of them."""

from collections.abc import Callable
from typing import Any

import pytest

from fedistill.experiment.preflight import examine
from fedistill.federation.local_executor import SerialExecutor
from fedistill.methods.participants import Client
from fedistill.methods.registry import registry
from fedistill.methods.shared import own_model
from fedistill.testing.methods import (
    MethodCase,
    resumed_ends_as_never_stopped,
    worker_processes_end_in_the_same_bits,
)
from fedistill.testing.runs import SAME, TEXTS, bits, finish
from fedistill.training import loop, losses, optimizers
from helpers.method_rows import FAMILIES, Row, each
from helpers.own_training import EVERYTHING, OF_ONES_OWN, Counting

LABELS = {"validation", "augmentation", "own loss"}
"""What takes labels; methods of statistics alone train a network on none."""


class Seen:
    """Notes which settings training has obeyed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: set[str] = set()
        self._patch = patch
        Counting.rates.clear()
        self._watch(loop, "_mean_loss", "validation")
        self._watch(optimizers, "_clip", "clipping")
        augmentation = own_model.augmentation

        def augmenting(*given: Any) -> Any:
            change = augmentation(*given)
            return change and self._noting("augmentation", change)

        patch.setattr(own_model, "augmentation", augmenting)
        self._watch(Client, "common_model", "common model")
        named = losses.named
        patch.setattr(losses, "named", lambda *given: self._noting("own loss", named(*given)))

    def _watch(self, module: Any, function: str, name: str) -> None:
        self._patch.setattr(module, function, self._noting(name, getattr(module, function)))

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **settings: Any) -> Any:
            self.names.add(name)
            return function(*given, **settings)

        return noted


@each(everyday=FAMILIES)
def test_every_method_that_trains_obeys_all_settings(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    method = registry.find(row.method)
    text = method.needs.inputs == "text"
    augment = {"drop_words": 0.3} if text else EVERYTHING["augment"]
    task = {"clients": 2, "limit": 100, "public": 40, "partition": {"kind": "iid"}}
    case = MethodCase(row.method, row.models, row.settings)
    rounds = 3 if row.method == "bridge" else 2  # votes come before starts, and starts before merges
    wanted, arm = case.ready(
        rounds=rounds, task=task, train={**OF_ONES_OWN, "augment": augment}, evaluate={"every": 3}
    )
    findings = examine(wanted, arm.task, [arm])
    assert [one for one in findings if one.level == "error"] == []
    seen = Seen(monkeypatch)
    with SerialExecutor(wanted, arm.task) as executor:
        finish(arm, executor)
    assert ("common model" in seen.names) == arm.method.clients_build_common
    statistics = method.one_shot
    assert seen.names & LABELS == (set() if statistics else LABELS)
    trains = arm.method.has_server_model or not statistics
    assert ("clipping" in seen.names) == trains
    # A schedule over steps: after the warm-up the rate falls in each step.
    assert (len(set(Counting.rates)) > 3) == trains
    if trains:
        assert max(Counting.rates) <= 0.02 * getattr(arm.method.settings, "lr_factor", 1)


@pytest.mark.parametrize(
    ("method", "train"), [("fml", EVERYTHING), ("dsfl", OF_ONES_OWN)], ids=["fml", "dsfl"]
)
@pytest.mark.parametrize("check", [worker_processes_end_in_the_same_bits, resumed_ends_as_never_stopped])
def test_all_settings_end_in_the_same_bits(
    method: str, train: dict[str, Any], check: Callable[[MethodCase], None]
) -> None:
    task = {"limit": 160, "partition": {"kind": "iid"}}
    check(MethodCase(method, SAME, experiment={"train": train, "task": task}))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (
            {"augment": {"drop_words": 0.1}},
            "train.augment has drop_words, but the samples of this task are images",
        ),
        ({"loss": "helpers.own_training:per_class"}, "loss 'helpers.own_training:per_class' returns (3, 10)"),
        (
            {"optimizer": {"name": "helpers.own_training:fails", "lr": 0.1}},
            "optimizer 'helpers.own_training:fails', called with a list of parameters and lr = 0.1, raised",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_refused_before_round_1(change: dict[str, Any], where: str) -> None:
    wanted, arm = MethodCase("fedavg", SAME).ready(train=change)
    errors = [str(one) for one in examine(wanted, arm.task, [arm]) if one.level == "error"]
    assert len(errors) == 1
    assert errors[0].startswith(f"arm 'fedavg': {where}")


def test_an_own_optimizer_of_the_server_is_checked_too() -> None:
    broken = {"name": "helpers.own_training:forgetful", "lr": 0.1}
    wanted, arm = MethodCase("feddf", SAME, {"optimizer": broken}).ready()
    errors = [str(one) for one in examine(wanted, arm.task, [arm]) if one.level == "error"]
    assert len(errors) == 1
    assert "goes on otherwise after it was saved" in errors[0]


def test_words_are_dropped_in_training_on_texts() -> None:
    found = []
    for augment in (None, {"drop_words": 0.0}, {"drop_words": 0.5}):
        case = MethodCase("fedavg", {"clients": ["bag"], "server": "bag"}, experiment=TEXTS)
        train = {"epochs": 1, **({"augment": augment} if augment else {})}
        task = {**TEXTS["task"], "clients": 2, "limit": 60, "public": 20}
        _, run = case.run(rounds=1, task=task, train=train)
        found.append(bits(run))
    assert found[0] == found[1]
    assert found[0]["the server's state"] != found[2]["the server's state"]
