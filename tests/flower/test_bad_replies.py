"""The rule for failures over Flower's messages: the one of a run in one process, and clients that fail."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import run_experiment
from helpers.bad_replies import Change, changing, damaged, only, turned_around, with_section
from helpers.flower_trial import CLIENTS, Watch, at_sites, experiment, frames, what_is_kept
from helpers.nan_model import write_nan_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Message

    from fedistill.communication.varint import varint
    from fedistill.flower.serde import Answer, Order
    from helpers.flower_desk import Desk, play, with_answers


pytestmark = pytest.mark.usefixtures("app")


def replies(change: Change) -> Callable[[int, Order, Message], Message]:
    """Change replies to work on their way back from the nodes."""

    def changed(node: int, order: Order, reply: Message) -> Message:
        def other(client: int, answer: Answer) -> Answer:
            if order.round == 0 or "error" in answer.words:
                return answer
            return Answer(change(order.round, client, answer.frame), answer.words)

        return with_answers(reply, other)

    return changed


BAD: dict[str, tuple[dict[str, Any], Callable[[bytes], bytes]]] = {
    "relative": ({"method": "fedavg", "codec": {"up": "qsgd", "down": "qsgd"}}, damaged),
    "cache": ({"method": "scarlet", "samples": 20}, damaged),
    "clusters": ({"method": "comet", "codec": {"name": "simplex", "bits": 2}}, damaged),
    "refused by its check": ({"method": "fedavg"}, with_section(1, varint(0))),
    "refused by the method": ({"method": "dsfl"}, with_section(1, varint(1))),
    "of an old turn": ({"method": "scarlet", "samples": 20, "codec": "fp32"}, with_section(1, varint(1))),
    "turned around": ({"method": "fedavg", "codec": "fp32"}, turned_around),
}


@pytest.mark.parametrize(("arm", "change"), BAD.values(), ids=BAD)
def test_an_invalid_reply_has_the_consequences_that_it_has_in_one_process(
    tmp_path: Path, arm: dict[str, Any], change: Callable[[bytes], bytes]
) -> None:
    asked = experiment(rounds=4, arms=[arm])
    once = only([2], [1], change)
    run_experiment(asked, tmp_path / "expected", "test", Watch(), changing(once))
    desk = Desk(asked, tmp_path)
    desk.change = replies(once)
    play(desk, asked, tmp_path / "run")
    found, expected = (RunFolder(tmp_path / name).records(arm["method"]) for name in ("run", "expected"))
    assert [record.missing for record in found] == [record.missing for record in expected]
    assert [list(record.missing) for record in found] == [[], ["1"], [], []]
    assert [record.views for record in found] == [record.views for record in expected]
    assert frames(tmp_path / "run") == frames(tmp_path / "expected")
    server, shared, clients = what_is_kept(tmp_path / "expected")
    assert what_is_kept(tmp_path / "run") == (server, shared, {})
    assert at_sites(tmp_path.glob("node-*"), round=4) == clients


def test_too_few_valid_replies_end_the_arm_and_the_others_go_on(tmp_path: Path) -> None:
    asked = experiment(
        rounds=2, arms=[{"method": "dsfl"}, {"method": "fedavg"}], flower={"wait": 30, "quorum": 1.0}
    )
    desk = Desk(asked, tmp_path)
    bad = replies(only([2], [1], damaged))
    honest = desk.change
    desk.change = lambda node, order, reply: (bad if order.arm == "dsfl" else honest)(node, order, reply)
    play(desk, asked, tmp_path / "run")
    dsfl, fedavg = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    assert (dsfl["status"], len(dsfl["rounds"]), fedavg["status"]) == ("failed", 1, "done")
    assert dsfl["error"] == (
        "round 2: 2 of 3 clients sent a valid reply, but flower.quorum asks for 3 (client 1: its reply is"
        " refused: frame is damaged: its checksum differs)"
    )
    # The same app again tries the round again; with another quorum, if it is asked to.
    again = experiment(
        rounds=2, arms=[{"method": "dsfl"}, {"method": "fedavg"}], flower={"wait": 30, "quorum": 0.5}
    )
    play(desk, again, tmp_path / "run")
    dsfl, _ = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    assert (dsfl["status"], dsfl["rounds"][1]["dropped"]) == ("done", [1])


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_nan_model(tmp_path / "site_nan.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("site_nan", None)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("method", ["dsfl", "local"])
def test_a_client_whose_model_predicts_nan_is_left_out_with_the_reason(tmp_path: Path, method: str) -> None:
    """Where it labels, and where it is only evaluated."""
    asked = experiment(
        rounds=2,
        arms=[{"method": method}],
        models={"clients": ["site_nan:fine", "site_nan:Net"], "server": "mlp-s"},
    )
    configs = [{"partition-id": number, "modules": "site_nan"} for number in range(CLIENTS)]
    play(Desk(asked, tmp_path, configs), asked, tmp_path / "run")
    records = RunFolder(tmp_path / "run").records(method)
    where = "" if method == "dsfl" else "evaluation, client 1: "
    for record in records:
        assert record.missing.keys() == {"1"}
        assert record.missing["1"].startswith(f"{where}the model's outputs are NaN or infinite for ")
