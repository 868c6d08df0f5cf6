"""Byte formulas of methods against the ledger of a real run, worked out here without the package's help."""

import math
from typing import Any

import pytest

from fedistill.federation.expected_bytes import expected_bytes
from fedistill.methods.participants import sample_public
from helpers.byte_formulas import CLASSES, CLIENTS, PUBLIC, payloads, played


def test_jeong_counts_102400_bits() -> None:
    """Table 1 of arXiv 1811.11479: 16 exchanges of 10 x 10 outputs up and 10 x 10 down, 32 bits each.

    The mean of round t comes down at the start of round t + 1, so the 16th needs a 17th round.
    """
    _, run = played({"method": "fd", "codec": "fp32"}, rounds=17)
    for client in range(CLIENTS):
        up, down = payloads(run, "up", client), payloads(run, "down", client)
        assert (len(up), len(down)) == (17, 16)
        assert 8 * (sum(up[:16]) + sum(down)) == 102_400


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
def test_weights_take_their_width(codec: str) -> None:
    arm, run = played({"method": "fedavg", "codec": codec}, rounds=2)
    size = arm.federation.clients[0].parameters * (4 if codec == "fp32" else 2)
    assert payloads(run, "down") == [size] * 2
    assert payloads(run, "up") == [size + 1] * 2  # the number of samples is one byte below 128


@pytest.mark.parametrize("method", ["voting", "cfd"])
def test_a_label_takes_log2_c_bits_before_entropy_coding(method: str) -> None:
    """n ceil(log2 C) / 8 bytes: one bit a class, written as the number of the class; and the round."""
    plain = {"name": "onehot", "coder": "plain"}
    _, run = played({"method": method, "codec": plain}, rounds=3)
    size = math.ceil(PUBLIC * math.ceil(math.log2(CLASSES)) / 8)
    assert payloads(run, "up") == [size + 1] * 3
    assert payloads(run, "down") == [size + 1] * 2


def test_votes_take_little_more_than_log2_c_bits_while_the_coder_learns() -> None:
    _, run = played({"method": "voting"}, rounds=3)
    assert all(size <= PUBLIC * math.log2(CLASSES) / 8 + 10 for size in payloads(run, "up"))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_cfd_at_b_bits_costs_at_most_n_c_b_bits(bits: int) -> None:
    codec = {"name": "simplex", "bits": bits, "coder": "plain"}
    _, run = played({"method": "cfd", "codec": codec}, rounds=2)
    assert all(size <= math.ceil(PUBLIC * CLASSES * bits / 8) + 1 for size in payloads(run, "up"))


def test_delta_coding_sends_less_once_labels_settle() -> None:
    """CFD's delta coding against its plain labels (arXiv 2012.00632, equation 13)."""
    totals = {}
    for coder in ("order0", "delta", "predictive"):
        codec = {"name": "onehot", "coder": coder}
        train = {"epochs": 3, "batch_size": 10, "optimizer": {"lr": 0.05, "momentum": 0.9}}
        _, run = played({"method": "voting", "codec": codec}, rounds=8, train=train)
        totals[coder] = sum(payloads(run, "up")[4:])
    assert totals["delta"] < totals["order0"]
    assert totals["predictive"] < totals["order0"]


def due_samples(seed: int, samples: int, duration: int, turns: int) -> list[int]:
    """How many labels each turn of SCARLET exchanges, by the rule alone."""
    last: dict[int, int] = {}
    counts = []
    for turn in range(1, turns + 1):
        places = sample_public(seed, PUBLIC, samples, turn).tolist()
        due = [place for place in places if place not in last or turn - last[place] >= duration]
        last |= dict.fromkeys(due, turn)
        counts.append(len(due))
    return counts


def test_scarlet_sends_only_labels_that_are_due() -> None:
    rounds, samples, duration = 9, 20, 4
    settings = {"samples": samples, "duration": duration}
    _, run = played({"method": "scarlet", "codec": "fp16", **settings}, rounds)
    due = due_samples(0, samples, duration, rounds)
    assert due[0] == samples
    assert 0 < sum(due[3:]) < samples * len(due[3:])  # the cache saves some, and some come again
    assert payloads(run, "up") == [2 * CLASSES * count + 1 for count in due]
    assert payloads(run, "down") == [2 * CLASSES * count + 1 for count in due[:-1]]


def test_a_scarlet_client_that_was_away_is_sent_what_it_missed() -> None:
    rounds, samples = 6, 15
    arm = {"method": "scarlet", "codec": "fp16", "samples": samples, "duration": 50}
    _, run = played(arm, rounds, sampling={"fraction": 0.34})
    assert all(len(record.clients) == 1 for record in run.records)
    due = due_samples(0, samples, 50, rounds)
    held = dict.fromkeys(range(CLIENTS), 0)
    for record in run.records[1:]:
        (client,) = record.clients
        missed = sum(due[held[client] : record.round - 1])
        (sent,) = [e.payload for e in record.traffic if e.direction == "down"]
        assert sent == 2 * CLASSES * missed + 1
        held[client] = record.round - 1


def test_a_coder_without_memory_pays_for_no_base() -> None:
    """13 bytes of frame and lengths: no base; a predictive one names its memory in 5 more."""
    for coder, names in (("plain", False), ("order0", False), ("predictive", True)):
        _, run = played({"method": "voting", "codec": {"name": "onehot", "coder": coder}}, rounds=3)
        overhead = {e.bytes - e.payload for e in run.ledger.entries if e.round == 3}
        assert overhead == {13 + 4 * names}


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "gaussian", "width": 32},
        {"method": "ridge", "width": 24, "levels": 63},
        {"method": "naive-bayes"},
        {"method": "naive-bayes", "length": 200, "least": 8},
    ],
    ids=str,
)
def test_statistics_cost_what_doctor_says_or_somewhat_less(arm: dict[str, Any]) -> None:
    """The settings decide how fine moments are, and which counts are left out."""
    texts = {
        "task": {"name": "bbc-news", "clients": CLIENTS, "public": PUBLIC},
        "models": {"clients": ["bag"], "server": "bag"},
    }
    ready, run = played(arm, rounds=1, **(texts if arm["method"] == "naive-bayes" else {}))
    expected, _ = expected_bytes(ready)
    sent = sum(entry.bytes for entry in run.ledger.entries if entry.direction == "up")
    assert 0.5 * expected < sent < expected
