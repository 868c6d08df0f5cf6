"""Every codec, on tensors and in real runs, by the rules of `fedistill.testing`; and its cost in accuracy."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pytest

from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.tensor_specs import Content
from fedistill.experiment.preflight import examine
from fedistill.federation.local_executor import SerialExecutor
from fedistill.testing.codecs import RUN_CHECKS, TENSOR_CHECKS, CodecCase
from fedistill.testing.runs import MIXED, SAME, finish

WEIGHTS = [name for name, codec in CODECS.items() if Content.WEIGHTS in codec.codes]
LABELS = [name for name, codec in CODECS.items() if Content.PROBS in codec.codes]
CASES = [("fedavg", name) for name in WEIGHTS] + [("dsfl", name) for name in LABELS]
MORE = [
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
# Those that lose most; the others keep more of the same numbers.
LOSSY = ("onehot", "simplex", "sign", "stc", "low-rank")
MIXES = ("feddf", "scarlet", "cfd", "fml", "fedkd")
LONG = {case for case in MORE if case[1] != "low-rank"}
each = pytest.mark.parametrize(
    ("method", "codec"),
    [pytest.param(*case, marks=[pytest.mark.long] if case in LONG else []) for case in CASES + MORE],
)


def case_of(method: str, codec: Any) -> CodecCase:
    return CodecCase(codec, method, MIXED if method in MIXES else SAME)


def settings(codec: str) -> dict[str, Any]:
    return {"name": codec, **SETTINGS.get(codec, {})}


@each
@pytest.mark.parametrize("check", RUN_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_in_a_run(method: str, codec: str, check: Callable[[CodecCase], None]) -> None:
    check(case_of(method, settings(codec)))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("check", TENSOR_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_tensors(codec: str, check: Callable[[Mapping[str, Any]], None]) -> None:
    check(settings(codec))


@pytest.mark.parametrize(
    ("method", "codec"),
    [pytest.param(*case, marks=[] if case[1] in LOSSY else [pytest.mark.long]) for case in CASES],
)
def test_accuracy_is_near_that_of_plain_numbers(method: str, codec: str) -> None:
    plain, coded = learned(method, "fp32"), learned(method, codec)
    assert coded[0] >= plain[0] - 0.12
    if codec != "fp32":
        assert coded[1] < 0.6 * plain[1]


@lru_cache
def learned(method: str, codec: str) -> tuple[float, int]:
    """Accuracy of the server's model after six rounds, and the bytes that they took."""
    wanted, arm = case_of(method, settings(codec)).ready(
        rounds=6,
        evaluate={"every": 6},
        sampling={},
        train={"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        task={"limit": 900, "public": 300, "partition": {"kind": "iid"}},
    )
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    return run.records[-1].views["server@global"], run.ledger.total


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_does_not_fit_is_refused_with_a_fix(codec: str) -> None:
    method, content = ("dsfl", Content.PROBS) if codec in WEIGHTS else ("fedavg", Content.WEIGHTS)
    wanted, arm = case_of(method, codec).ready()
    errors = [str(f) for f in examine(wanted, arm.task, [arm]) if f.level == "error"]
    if content in create_codec(codec).codes:
        assert errors == []
    else:
        (said,) = errors
        assert f"codec {codec} cannot code the {content.value} that method {method} sends up and down" in said
        assert "choose one of fp32" in said


def test_codecs_differ_by_direction() -> None:
    wanted, arm = case_of("fedavg", {"up": {"name": "qsgd", "levels": 3}, "down": "fp16"}).ready(sampling={})
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    size = arm.federation.clients[0].parameters
    down = {entry.payload for entry in run.ledger.entries if entry.direction == "down"}
    up = [entry.payload for entry in run.ledger.entries if entry.direction == "up"]
    assert down == {2 * size}
    assert max(up) < size / 2
