"""Bytes of labels on chosen samples: as many rows as were chosen, and at most a bit a sample to say which."""

import math

import pytest

from fedistill.federation.client import client_state
from helpers.byte_formulas import CLASSES, CLIENTS, PUBLIC, payloads, played


def subset(chosen: int, population: int) -> tuple[float, float]:
    """Bytes: how many there are to choose, and with what a range coder may add."""
    least = math.log2(math.comb(population, chosen)) / 8
    return least - 1, least + 8


@pytest.mark.parametrize(("method", "settings"), [("edge-fd", {}), ("selective-fd", {"ambiguity": 2.0})])
def test_abstaining(method: str, settings: dict[str, float]) -> None:
    arm, run = played({"method": method, "codec": "fp16", **settings}, rounds=3)
    masks = [client_state(arm, number, run.clients[number]).familiar for number in range(CLIENTS)]
    assert len({int(mask.sum()) for mask in masks}) > 1
    for number, mask in enumerate(masks):
        low, high = subset(int(mask.sum()), PUBLIC)
        rows = 2 * CLASSES * int(mask.sum())
        assert all(rows + low <= size <= rows + high for size in payloads(run, "up", number))
        answered = int(sum(masks).bool().sum())
        low, high = subset(answered, PUBLIC)
        rows = 2 * CLASSES * answered
        assert all(rows + low <= size <= rows + high for size in payloads(run, "down", number))


def test_fedgems_samples_go_one_way_or_the_other() -> None:
    """b s C / 8 down and b (n - s) C / 8 up, for the same s."""
    _, run = played({"method": "fedgems", "codec": "fp32", "confidence": 0.12}, rounds=4)
    row = 4 * CLASSES
    both = []
    for up, down in zip(payloads(run, "up")[1:], payloads(run, "down"), strict=True):
        asked, sure = up // row, down // row
        assert asked + sure == PUBLIC
        assert up - asked * row <= subset(asked, PUBLIC)[1]
        assert down - sure * row <= subset(sure, PUBLIC)[1]
        both.append(sure)
    assert any(0 < sure < PUBLIC for sure in both)
