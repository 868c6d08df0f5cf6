"""Bytes of FedGKT, in proportion to private samples, worked out without the package's help."""

import math

import pytest
import torch

from fedistill import parse
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare
from fedistill.federation.expected_bytes import expected_bytes
from helpers.byte_formulas import CLASSES, CLIENTS, payloads, played

WIDTH = 64
"""Features of mlp-s."""
NUMBER = {"fp32": 4, "fp16": 2}
SKEW = {
    "name": "digits",
    "clients": CLIENTS,
    "limit": 90,
    "partition": {"kind": "dirichlet", "alpha": 0.3},
}
SMALL = {"width": 8, "depth": 1, "server_epochs": 1}


@pytest.mark.parametrize("codec", NUMBER)
def test_features_logits_and_once_labels(codec: str) -> None:
    arm, run = played({"method": "fedgkt", "codec": codec, **SMALL}, rounds=3, task=SKEW)
    samples = [len(data) for data in arm.task.clients]
    assert len(set(samples)) > 1
    for client, (size, data) in enumerate(zip(samples, arm.task.clients, strict=True)):
        first, *others = payloads(run, "up", client)
        flat = NUMBER[codec] * size * (WIDTH + CLASSES) + 1
        assert others == [flat] * 2
        assert payloads(run, "down", client) == [NUMBER[codec] * size * CLASSES] * 2
        # Fewer than by numbers of fixed width and what learning the shares costs; more than knowing them.
        shares = torch.bincount(data.labels) / size
        entropy = -float(torch.xlogy(shares, shares).sum()) / math.log(2)
        assert size * entropy / 8 - 1 <= first - flat <= math.ceil(size * 4 / 8) + CLASSES
    up, _ = expected_bytes(arm)
    assert up >= sum(e.bytes for e in run.ledger.entries if e.direction == "up" and e.round == 1)


def test_labels_are_sent_until_they_have_arrived() -> None:
    lossy = {"fraction": 1.0, "dropout": 0.5}
    arm, run = played({"method": "fedgkt", "codec": "fp32", **SMALL}, rounds=5, task=SKEW, sampling=lossy)
    has: set[int] = set()
    again = 0
    for record in run.records:
        for entry in (entry for entry in record.traffic if entry.direction == "up"):
            size = len(arm.task.clients[entry.client])
            labelled = entry.payload > 4 * size * (WIDTH + CLASSES) + 1
            assert labelled == (entry.client not in has)
            again += labelled and record.round > 1
        told = {entry.client for entry in record.traffic if entry.direction == "down"}
        assert told == has
        has |= {*record.clients} - {*record.dropped}
    assert again > 0


def test_doctor_foretells_the_most() -> None:
    """Messages of unlike clients are unlike in length: a mean over clients, and labels in each round."""
    raw = {
        "rounds": 2,
        "task": SKEW,
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "arms": [{"method": "fedgkt", "codec": "fp32"}],
    }
    wanted = parse(raw, "test")
    task, (arm,) = prepare(wanted)
    samples = sum(len(data) for data in task.clients)
    up, down = expected_bytes(arm)
    assert 0 < up - 4 * samples * (WIDTH + CLASSES) < samples + CLIENTS * (18 + CLASSES)
    assert 0 < down - 4 * samples * CLASSES <= CLIENTS * 18
    facts = [str(finding) for finding in examine(wanted, task, [arm])]
    assert any("fedgkt" in fact and "at most" in fact for fact in facts)
