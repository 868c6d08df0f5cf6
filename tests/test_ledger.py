"""The ledger: sums worked out by hand."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from fedistill.ledger import SETUP_ROUND, Entry, Ledger
from fedistill.wire.codec import CODECS
from fedistill.wire.frame import Frame, Kind, encode
from fedistill.wire.message import ClassOutputs, Weights, pack


def frame(kind: Kind, size: int) -> bytes:
    """A frame of ``size`` bytes: 11, and a section of 3 and its content."""
    data = encode(Frame(kind, 1, 0, {"x": b"\0" * (size - 14)}))
    assert len(data) == size
    return data


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(public=1000)
    for client in (0, 1):
        ledger.count(SETUP_ROUND, client, "down", frame(Kind.VOCABULARY, 50))
    ledger.count(1, 0, "down", frame(Kind.WEIGHTS, 20))
    ledger.count(1, 1, "down", frame(Kind.WEIGHTS, 21))
    ledger.count(1, 0, "up", frame(Kind.LOGITS, 30))
    ledger.count(1, 1, "up", frame(Kind.WEIGHTS, 40))
    ledger.count(2, 0, "up", frame(Kind.LOGITS, 31))
    ledger.count(2, 0, "up", frame(Kind.LOGITS, 32))
    return ledger


def test_kinds_by_round_and_direction(ledger: Ledger) -> None:
    assert ledger.kinds(1, "down") == {"weights": 41}
    assert ledger.kinds(1, "up") == {"logits": 30, "weights": 40}
    assert ledger.kinds(2, "up") == {"logits": 63}
    assert ledger.kinds(2, "down") == {}
    assert ledger.kinds(3, "up") == {}


def test_setup_is_apart_and_in_the_total(ledger: Ledger) -> None:
    assert ledger.setup == 100
    assert ledger.total == 100 + 41 + 70 + 63
    assert all(type(value) is int for value in (ledger.setup, ledger.total))


def test_public_data_are_not_in_the_total(ledger: Ledger) -> None:
    without = Ledger(ledger.entries)
    assert without.total == ledger.total
    assert (without.public, ledger.public) == (0, 1000)


def test_entries_keep_the_order_of_crossing(ledger: Ledger) -> None:
    assert ledger.of_round(1) == [
        Entry(1, 0, "down", "weights", 20),
        Entry(1, 1, "down", "weights", 21),
        Entry(1, 0, "up", "logits", 30),
        Entry(1, 1, "up", "weights", 40),
    ]


def test_an_empty_ledger_is_zero() -> None:
    assert (Ledger().setup, Ledger().total, Ledger().public, Ledger().kinds(1, "up")) == (0, 0, 0, {})
    one, other = Ledger(), Ledger()
    one.count(1, 0, "up", frame(Kind.LOGITS, 20))
    assert other.entries == []


def test_what_is_counted_is_the_length_of_the_real_frame() -> None:
    ledger = Ledger()
    ledger.count(1, 0, "up", pack(Weights(torch.zeros(10)), CODECS["fp32"], 1, 0))
    ledger.count(1, 0, "down", pack(ClassOutputs(torch.zeros(3, 3)), CODECS["fp16"], 1, None))
    # 11 bytes of frame; a section: its name's length, name, its size, content.
    assert ledger.kinds(1, "up") == {"weights": 11 + 1 + 6 + 1 + 40}
    assert ledger.kinds(1, "down") == {"class-outputs": 11 + 1 + 5 + 1 + 18}


def test_entries_cannot_be_changed(ledger: Ledger) -> None:
    with pytest.raises(FrozenInstanceError):
        ledger.entries[0].bytes = 0  # type: ignore[misc]  # frozen, as tested
