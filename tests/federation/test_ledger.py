"""The ledger: sums worked out by hand."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from fedistill.communication.codecs.registry import create_codec
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.classwise import ClassOutputs
from fedistill.communication.messages.weights import Weights
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.frame import Frame, encode
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.federation.ledger import SETUP_ROUND, Entry, Ledger


def frame(kind: int, size: int) -> bytes:
    """A frame of ``size`` bytes: 11, and a section of 1 and its content."""
    data = encode(Frame(kind, 1, 0, (bytes(size - 12),)))
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


def test_messages_of_other_packages_are_counted_by_their_number() -> None:
    ledger = Ledger()
    for kind, size in ((64, 20), (64, 30), (127, 40)):
        ledger.count(1, 0, "up", frame(kind, size))
    assert ledger.kinds(1, "up") == {"custom-64": 50, "custom-127": 40}


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
        Entry(1, 0, "down", "weights", 20, 8),
        Entry(1, 1, "down", "weights", 21, 9),
        Entry(1, 0, "up", "logits", 30, 18),
        Entry(1, 1, "up", "weights", 40, 28),
    ]


def test_an_empty_ledger_is_zero() -> None:
    assert (Ledger().setup, Ledger().total, Ledger().public, Ledger().kinds(1, "up")) == (0, 0, 0, {})
    one, other = Ledger(), Ledger()
    one.count(1, 0, "up", frame(Kind.LOGITS, 20))
    assert other.entries == []


def test_what_is_counted_is_the_length_of_the_real_frame() -> None:
    exchange = MessageCoder(create_codec("fp32"), create_codec("fp16"), seed=0)
    sizes = MessageContext(classes=3, parameters=10)
    up = ClientEndpoint(exchange, {}, EMPTY, 1, 0).reply(Weights(torch.zeros(10)), sizes)
    down = ServerEndpoint(exchange, {}, lambda client: EMPTY, 1).send(
        0, "everyone", ClassOutputs(torch.zeros(3, 3)), sizes
    )
    ledger = Ledger()
    ledger.count(1, 0, "up", up)
    ledger.count(1, 0, "down", down)
    # 11 bytes of frame; a section: its size and its content.
    assert ledger.kinds(1, "up") == {"weights": 11 + 1 + 40}
    assert ledger.kinds(1, "down") == {"class-outputs": 11 + 1 + 18}
    assert [entry.payload for entry in ledger.entries] == [40, 18]


def test_entries_cannot_be_changed(ledger: Ledger) -> None:
    with pytest.raises(FrozenInstanceError):
        ledger.entries[0].bytes = 0  # type: ignore[misc]  # frozen, as tested
