"""Every codec in a real run, both ways: the same bits everywhere, absences, and what it costs in accuracy."""

from functools import lru_cache
from typing import Any

import pytest

from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.protocol.shared_state import SharedState
from fedistill.communication.tensor_specs import Content
from fedistill.config.schema import Experiment
from fedistill.experiment.preflight import examine
from fedistill.experiment.run_folder import RunFolder
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.round import play_round
from fedistill.state import decode_state
from helpers.runs import bits, finish, ready

WEIGHTS = [name for name, codec in CODECS.items() if Content.WEIGHTS in codec.codes]
LABELS = [name for name, codec in CODECS.items() if Content.PROBS in codec.codes]
CASES = [("fedavg", name) for name in WEIGHTS] + [("dsfl", name) for name in LABELS]
CASES += [
    ("feddf", "qsgd"),
    ("feddf", "stc"),
    ("fedprox", "top-k"),
    ("scarlet", "onehot"),
    ("cfd", "simplex"),
    ("fml", "qsgd"),
    ("fml", "stc"),
    ("fedkd", "low-rank"),
]
# A share of one in a hundred of few weights is nothing; these learn more slowly by design.
SETTINGS: dict[str, dict[str, Any]] = {"top-k": {"share": 0.05}, "stc": {"share": 0.1}}
MIXES = ("feddf", "scarlet", "cfd", "fml", "fedkd")
each = pytest.mark.parametrize(("method", "codec"), CASES)


def arm_of(method: str, codec: Any, **changes: Any) -> tuple[Experiment, ReadyArm]:
    return ready(
        {
            "rounds": 4,
            "task": {
                "name": "digits",
                "clients": 4,
                "limit": 240,
                "public": 100,
                "partition": {"kind": "dirichlet", "alpha": 0.5},
            },
            "models": {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}
            if method in MIXES
            else {"clients": ["cnn-s"], "server": "cnn-s"},
            "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
            "evaluate": {"every": 4},
            "sampling": {"fraction": 0.75, "dropout": 0.25},
            "arms": [{"method": method, "codec": codec}],
            **changes,
        }
    )


def settings(codec: str) -> dict[str, Any]:
    return {"name": codec, **SETTINGS.get(codec, {})}


@each
def test_same_bits_serial_in_processes_and_resumed(method: str, codec: str, tmp_path: Any) -> None:
    wanted, arm = arm_of(method, settings(codec))
    with SerialExecutor(wanted, arm.task) as executor:
        once = bits(finish(arm, executor))
        folder = RunFolder.create(tmp_path / "run", wanted, "test")
        run = start_run(arm)
        for _ in range(3):
            play_round(run, arm, executor)
            folder.save(arm, run)
        loaded = RunFolder.open(tmp_path / "run").restore(arm)
        assert bits(finish(arm, executor, loaded)) == once
    with ProcessExecutor(2, wanted, arm.task) as executor:
        assert bits(finish(arm, executor)) == once


@each
def test_both_sides_remember_the_same_whoever_was_away(method: str, codec: str) -> None:
    """Every client holds, as of before or after its last exchange, what the server holds of it."""
    wanted, arm = arm_of(method, settings(codec), rounds=8, sampling={"fraction": 0.5, "dropout": 0.4})
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    assert any(record.dropped for record in run.records)
    for client, memory in run.shared_states.items():
        link = decode_state(run.clients[client]).get("link") if run.clients.get(client) else None
        assert (link is not None) == arm.coder.remembers
        if link:
            assert memory.state_id in {
                SharedState.of(link[when]["memory"]).state_id for when in ("before", "after")
            }
    kinds = {entry.kind for entry in run.ledger.entries}
    assert "refresh" not in kinds


@pytest.mark.parametrize(("method", "codec"), [case for case in CASES if case[0] in ("fedavg", "dsfl")])
def test_accuracy_is_near_that_of_plain_numbers(method: str, codec: str) -> None:
    plain, coded = learned(method, "fp32"), learned(method, codec)
    assert coded[0] >= plain[0] - 0.12
    if codec != "fp32":
        assert coded[1] < 0.6 * plain[1]


@lru_cache
def learned(method: str, codec: str) -> tuple[float, int]:
    """Accuracy of the server's model after six rounds, and the bytes that they took."""
    wanted, arm = arm_of(
        method,
        settings(codec),
        rounds=6,
        evaluate={"every": 6},
        sampling={},
        train={"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        task={"name": "digits", "clients": 4, "limit": 900, "public": 300},
    )
    with ProcessExecutor(2, wanted, arm.task) as executor:
        run = finish(arm, executor)
    return run.records[-1].views["server@global"], run.ledger.total


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_does_not_fit_is_refused_with_a_fix(codec: str) -> None:
    method, content = ("dsfl", Content.PROBS) if codec in WEIGHTS else ("fedavg", Content.WEIGHTS)
    wanted, arm = arm_of(method, codec)
    errors = [str(f) for f in examine(wanted, arm.task, [arm]) if f.level == "error"]
    if content in create_codec(codec).codes:
        assert errors == []
    else:
        (said,) = errors
        assert f"codec {codec} cannot code the {content.value} that method {method} sends up and down" in said
        assert "choose one of fp32" in said


def test_codecs_differ_by_direction() -> None:
    wanted, arm = arm_of("fedavg", {"up": {"name": "qsgd", "levels": 3}, "down": "fp16"}, sampling={})
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    size = arm.federation.clients[0].parameters
    down = {entry.payload for entry in run.ledger.entries if entry.direction == "down"}
    up = [entry.payload for entry in run.ledger.entries if entry.direction == "up"]
    assert down == {2 * size}
    assert max(up) < size / 2
