"""Bytes where the model that travels is not the client's own, worked out without the package's help."""

import pytest
import torch

from fedistill.federation.expected_bytes import expected_bytes
from fedistill.models.registry import build_model
from fedistill.rng import SERVER
from fedistill.training.model_state import flatten
from helpers.byte_formulas import CLASSES, payloads, played

MLP = (64 * 64 + 64) + (64 * CLASSES + CLASSES)
"""mlp-s on 8 x 8 pixels."""
UNLIKE = {"clients": ["cnn-s", "cnn-m"], "server": "mlp-s"}


@pytest.mark.parametrize("method", ["fml", "fedkd", "fedekd-like"])
@pytest.mark.parametrize(("codec", "number"), [("fp32", 4), ("fp16", 2)])
def test_what_travels_is_of_the_size_of_the_servers_model(method: str, codec: str, number: int) -> None:
    arm, run = played({"method": method, "codec": codec}, rounds=2, models=UNLIKE)
    for client in range(3):
        assert arm.federation.clients[client].parameters != MLP
        assert payloads(run, "down", client) == [number * MLP] * 2
        assert payloads(run, "up", client) == [number * MLP + 1] * 2  # samples: one byte below 128
    assert expected_bytes(arm) == tuple(
        sum(e.bytes for e in run.ledger.entries if e.direction == way and e.round == 2)
        for way in ("up", "down")
    )


@pytest.mark.parametrize("method", ["fml", "fedkd"])
@pytest.mark.parametrize("codec", ["qsgd", "stc", "low-rank"])
def test_both_sides_start_from_the_servers_initial_weights(method: str, codec: str) -> None:
    """So the first message down is an update of zeros, which costs next to nothing."""
    arm, run = played({"method": method, "codec": codec}, rounds=1, models=UNLIKE)
    initial = flatten(build_model("mlp-s", arm.task.signature, seed=0, client=SERVER))
    for client in range(3):
        assert torch.equal(arm.initial_shared_state(client).value("reference")["weights"], initial)
        assert max(payloads(run, "down", client)) < 100
        assert sum(arm.message_context(client).parts[0]) == 64 + 64


def test_fedkd_is_low_rank_by_default_and_no_longer_than_whole_numbers() -> None:
    """At 127 levels of each sign, a number takes one byte; two for each factor's step, and a few of frame."""
    arm, run = played({"method": "fedkd"}, rounds=3, models=UNLIKE)
    assert arm.config.codec == {"name": "low-rank", "energy": 0.95, "levels": 127}
    sizes = [size for client in range(3) for way in ("up", "down") for size in payloads(run, way, client)]
    assert max(sizes) <= MLP + 50
    factors = 8 * (64 + 64)  # an update of rank 8 at most, of the one matrix that is worth it
    assert max(sizes) < factors + 64 * CLASSES + 64 + CLASSES + 50


def test_fed_et_sends_what_the_client_has() -> None:
    models = {"clients": ["mlp-s", "cnn-s"], "server": "cnn-m"}
    arm, run = played({"method": "fed-et", "codec": "fp32"}, rounds=2, models=models)
    for client in range(3):
        size = arm.federation.clients[client].parameters
        assert (size == MLP) == (client != 1)
        assert payloads(run, "down", client) == [4 * size] * 2
        assert payloads(run, "up", client) == [4 * size + 1] * 2
