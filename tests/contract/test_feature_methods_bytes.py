"""Bytes of prototypes, generators and class outputs beside weights, worked out without the package's help;
and what methods on features refuse before round 1."""

import sys
import types
from typing import Any

import pytest
from torch import Tensor, nn

from fedistill import parse
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare
from fedistill.models.signature import Signature
from helpers.byte_formulas import CLASSES, CLIENTS, payloads, played

FLAT = 8 * 8
MARKS = 4
"""Most bytes for a choice of 10 classes, of which there are at most 252: one word of the range coder."""
WIDTH = 64
"""Of mlp-s on digits: 64 pixels to 64 units to 10 classes."""
BODY, HEAD = FLAT * WIDTH + WIDTH, WIDTH * CLASSES + CLASSES
NUMBER = {"fp32": 4, "fp16": 2}
SKEWED = {"kind": "dirichlet", "alpha": 0.2}
SKEW = {"task": {"name": "digits", "clients": CLIENTS, "limit": 90, "partition": SKEWED}}
codecs = pytest.mark.parametrize("codec", NUMBER)


@codecs
@pytest.mark.parametrize("method", ["fedproto", "fedtgp"])
def test_prototypes_cost_what_a_client_has(method: str, codec: str) -> None:
    """Up, one vector for each of the client's own classes; down, for each that any has: here fewer than C."""
    arm, run = played({"method": method, "codec": codec}, rounds=3, **SKEW)
    counts = arm.task.class_counts()
    assert (counts.sum(dim=1) > 0).all()
    assert int((counts > 0).sum(dim=1).min()) < CLASSES
    for client in range(CLIENTS):
        for found in payloads(run, "up", client):
            assert 0 <= found - size(codec, counts[client]) <= MARKS
        assert payloads(run, "down", client) == [size(codec, counts.sum(dim=0))] * 2


def size(codec: str, counts: Tensor) -> int:
    """A vector for each class that there is, and a byte that says how many; which is said apart."""
    return NUMBER[codec] * WIDTH * int((counts > 0).sum()) + 1


@codecs
def test_fd_plus_is_weights_and_outputs(codec: str) -> None:
    _, run = played({"method": "fd-plus", "codec": codec}, rounds=2)
    length = NUMBER[codec] * (BODY + HEAD + CLASSES**2)
    assert payloads(run, "up") == [length + 1] * 2  # 30 samples of each client: one byte below 128
    assert payloads(run, "down") == [length + 1] * 2


@codecs
@pytest.mark.parametrize("share", ["all", "predictor"])
def test_fedgen_is_weights_counts_and_a_generator(codec: str, share: str) -> None:
    noise, hidden = 5, 7
    arm = {"method": "fedgen", "codec": codec, "share": share, "noise": noise, "hidden": hidden}
    _, run = played(arm, rounds=2)
    weights = HEAD + (BODY if share == "all" else 0)
    generator = (noise + CLASSES) * hidden + hidden + 2 * hidden + hidden * WIDTH + WIDTH
    assert payloads(run, "up") == [NUMBER[codec] * (weights + CLASSES)] * 2
    assert payloads(run, "down") == [NUMBER[codec] * (weights + generator + CLASSES)] * 2


def refusal(arm: dict[str, Any], **changes: Any) -> str:
    raw: dict[str, Any] = {
        "rounds": 1,
        "task": {"name": "digits", "clients": CLIENTS, "limit": 60},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "arms": [arm],
        **changes,
    }
    wanted = parse(raw, "test")
    task, (ready,) = prepare(wanted)
    return "; ".join(str(finding) for finding in examine(wanted, task, [ready]) if finding.level == "error")


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("odd_heads")
    flat = {"bias": True, "plain": False}
    for name, bias in flat.items():

        def net(signature: Signature, bias: bool = bias) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(FLAT, 5), nn.Linear(5, CLASSES, bias=bias))

        setattr(module, name, net)
    module.bounded = lambda signature: nn.Sequential(nn.Flatten(), nn.Linear(FLAT, CLASSES), nn.Tanh())  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "odd_heads", module)


@pytest.mark.parametrize("method", ["fedproto", "fedtgp", "fedgen"])
def test_a_model_without_a_head_is_refused(method: str, odd: None) -> None:
    models = {"clients": ["odd_heads:bounded"], "server": "odd_heads:bounded"}
    said = refusal({"method": method}, models=models)
    assert said.startswith(f"arm '{method}': model 'odd_heads:bounded' has no head")


def test_predictors_that_differ_are_refused(odd: None) -> None:
    models = {"clients": ["odd_heads:bias", "odd_heads:plain"], "server": "odd_heads:bias"}
    assert refusal({"method": "fedproto"}, models=models) == ""
    said = refusal({"method": "fedgen", "share": "predictor"}, models=models)
    assert said == (
        "arm 'fedgen': method fedgen: either all models or none must have a bias in their last layer"
    )


@pytest.mark.parametrize("method", ["fd-plus", "fedgen"])
def test_codecs_of_updates_are_refused(method: str) -> None:
    said = refusal({"method": method, "codec": "stc"})
    assert "codec stc cannot code the scores" in said
    assert "choose one of fp32, fp16, int8" in said


@pytest.mark.parametrize("method", ["fedproto", "fedtgp", "fedgen", "fd-plus"])
def test_methods_on_features_run_on_texts(method: str) -> None:
    """textcnn has dropout before its head, of which features know nothing."""
    raw: dict[str, Any] = {
        "task": {"name": "bbc-news", "clients": CLIENTS, "limit": 60, "public": 30},
        "models": {"clients": ["textcnn"], "server": "textcnn"},
    }
    _, run = played({"method": method, "codec": "int8"}, rounds=2, **raw)
    assert run.records[-1].views
