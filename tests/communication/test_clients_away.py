"""Clients that are away while the model moves: what codecs of updates lose stays bounded."""

from collections.abc import Mapping
from typing import Any

import hypothesis.extra.numpy as hypothesis_numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from fedistill.communication.codecs.base import Sender
from fedistill.communication.codecs.bounded_rounding import energy, read_nearest, write_nearest
from fedistill.communication.codecs.qsgd import Qsgd, QsgdSettings
from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import SharedState
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError

SHAPES = ((40, 50), (40,))
COUNT = 2040
CONTEXT = MessageContext(classes=2, parameters=COUNT, parts=SHAPES)
CLIENTS, ROUNDS = 6, 60
CASES: list[Mapping[str, Any]] = [{"name": name} for name, kind in CODECS.items() if kind.relative]
CASES += [
    {"name": "qsgd", "levels": 1},
    {"name": "qsgd", "levels": 1, "norm": "l2"},
    {"name": "qsgd", "levels": 1, "bucket": 64},
    {"name": "dadaquant", "last": 1},
    {"name": "low-rank", "levels": 3},
]
each = pytest.mark.parametrize("codec", CASES, ids=str)


class Link:
    """A server and clients that change nothing: every third client takes part in a round."""

    def __init__(self, codec: Mapping[str, Any]) -> None:
        down = create_codec(codec)
        self.coder = MessageCoder(create_codec("fp32"), down, seed=1, messages=(TrainedWeights, Weights))
        self.start = self.coder.start(torch.zeros(COUNT))
        self.shared: dict[int, SharedState] = {}
        self.kept: dict[int, Any] = {}

    def play(
        self, round: int, weights: torch.Tensor, clients: list[int]
    ) -> tuple[list[Floats], list[Floats]]:
        """Return what each client decoded, and what the server read when it was sent back unchanged."""
        server = ServerEndpoint(self.coder, self.shared, lambda _: self.start, round)
        decoded, read = [], []
        for client in clients:
            frame = server.send(client, "all", Weights(weights), CONTEXT)
            end = ClientEndpoint(self.coder, self.kept.get(client, {}), self.start, round, client)
            got = end.receive(Weights, frame, CONTEXT)
            reply = end.reply(TrainedWeights(got.values, 1), CONTEXT)
            self.kept[client] = end.kept()
            came = server.receive(client, TrainedWeights, reply, CONTEXT)
            assert came is not None
            decoded.append(got.values.numpy())
            read.append(came.values.numpy())
        self.shared = dict(server.shared_states)
        return decoded, read


def walk(seed: int = 0) -> list[torch.Tensor]:
    """A model that moves by heavy-tailed steps of norm 1."""
    random = np.random.default_rng(seed)
    steps = random.standard_t(2, size=(ROUNDS, COUNT))
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    return [torch.from_numpy(place.astype(np.float32)) for place in np.cumsum(steps, axis=0)]


@each
def test_errors_do_not_grow_while_clients_are_away(codec: Mapping[str, Any]) -> None:
    """Two of six clients take part in a round: from round 10 on, none is further off than all moves together.

    In the first rounds all hold the initial weights, and are sent random rounding; that is forgotten by then.
    A contraction is not further off than the moves whose norms add up to the number of rounds, of 1 each;
    random rounding to one level was off by many powers of ten.
    """
    link = Link(codec)
    chance = np.random.default_rng(5)
    for number, weights in enumerate(walk(), start=1):
        clients = sorted(chance.choice(CLIENTS, 2, replace=False).tolist())
        decoded, _ = link.play(number, weights, clients)
        for got in decoded:
            assert number < 10 or np.linalg.norm(got - weights.numpy()) <= number


@pytest.mark.parametrize("levels", [1, 2])
def test_qsgd_loses_no_more_than_its_bound(levels: int) -> None:
    spec = TensorSpec(Content.WEIGHTS, (COUNT,), SHAPES)
    known = SharedKnowledge(reference=np.zeros(COUNT, np.float32))
    codec = Qsgd(QsgdSettings(levels=levels, bound=0.25))
    for seed in range(5):
        update = walk(seed)[-1].numpy()
        away = codec.encode(update, spec, known, Sender(None, behind=True)).payload
        error = codec.decode(away, spec, known).values - update
        assert np.square(error).sum() <= 0.25 * np.square(update).sum()
        present = codec.encode(update, spec, known, Sender(None)).payload
        lost = codec.decode(present, spec, known).values - update
        assert np.square(lost).sum() > np.square(update).sum()


def sent_behind(
    values: list[float], bound: float, shape: tuple[int, ...], bits: float = 0.01
) -> tuple[bytes, list[float]]:
    """Return the bytes to a client that may have been away, and what it decodes."""
    spec = TensorSpec(Content.WEIGHTS, (len(values),), (shape,))
    known = SharedKnowledge(reference=np.zeros(len(values), np.float32))
    codec = Qsgd(QsgdSettings(levels=1, bound=bound, bits=bits))
    payload = codec.encode(np.array(values, np.float32), spec, known, Sender(None, behind=True)).payload
    return payload, codec.decode(payload, spec, known).values.tolist()


def test_random_rounding_is_kept_where_it_is_near_enough() -> None:
    """By hand: 8 and -8 are on the one level, and 0 is always rounded to 0."""
    payload, decoded = sent_behind([8, -8, 0], 0.1, (3,))
    assert payload[:2] == bytes([2, 1])
    assert decoded == [8, -8, 0]


def test_the_largest_step_that_is_near_enough_is_taken() -> None:
    """By hand: of [8, 3, 3], a step of 8 loses 18 of 82.

    A step of up to 6 rounds 3 to one step. The first of the steps 8, 7.375, 6.75, 6.1875, 5.6875 (eighths of
    an octave, up to bfloat16) that does is 5.6875: 1, 1, 1 steps for 1.407, 0.527, 0.527, a mean excess of
    -0.18, or -11 / 64. Read as 4.71 each, they are off by 16.7.
    """
    payload, decoded = sent_behind([8, 3, 3], 0.25, (3,))
    assert payload[:2] == bytes([2, 0])
    assert decoded == [8, 0, 0]
    _, decoded = sent_behind([8, 3, 3], 0.21, (3,))
    assert decoded == [5.6875 * (1 - 11 / 64)] * 3


def test_as_many_bits_as_may_be_used_are_used() -> None:
    """2,040 numbers in 1, 2 and 4 bits each: the message is at most so long, and barely shorter."""
    spec = TensorSpec(Content.WEIGHTS, (COUNT,), SHAPES)
    update = walk()[-1].numpy()
    lost = []
    for bits in (1, 2, 4):
        body = write_nearest(update, spec, 0.9, bits)
        assert 0.85 * bits * COUNT / 8 <= len(body) <= bits * COUNT / 8
        lost.append(energy(read_nearest(body, spec) - update) / energy(update))
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.02


def test_the_sum_of_a_row_is_kept() -> None:
    """By hand: 31 of 32 numbers are too small for the step of 16; the mean of these, 2, is not lost."""
    row = [16.0] + [2.0] * 31
    _, decoded = sent_behind(row * 2, 0.4, (2, 32))
    assert decoded == pytest.approx([18, *[2] * 31] * 2, abs=0.5)


@settings(deadline=None)
@given(hypothesis_numpy.arrays(np.float32, (3, 40), elements=st.floats(-1e6, 1e6, width=32)))
@example(np.full((3, 40), 1.5e-42, np.float32))
def test_rounding_to_the_nearest_never_loses_more_than_the_update(update: Floats) -> None:
    """Of numbers so small that float32 has no steps for them, all may be lost."""
    spec = TensorSpec(Content.WEIGHTS, (120,), ((2, 40), (40,)))
    values = update.ravel()
    for bound in (0.01, 0.4, 0.99):
        lost = read_nearest(write_nearest(values, spec, bound, 0.01), spec) - values
        most = bound if np.abs(values).max() > 1e-30 else 1
        assert energy(lost) <= most * energy(values) * (1 + 1e-5)


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x80", b"\x80\x08", b"\xff\xff\xff\xff\x7f", b"\x01"])
def test_stated_levels_are_checked(body: bytes) -> None:
    spec = TensorSpec(Content.WEIGHTS, (3,), ((3,),))
    known = SharedKnowledge(reference=np.zeros(3, np.float32))
    for name, kind in CODECS.items():
        if kind.relative:
            with pytest.raises(FrameError):
                create_codec(name).decode(b"\2" + body, spec, known)


@each
def test_the_server_reads_changes_and_not_what_rounding_lost(codec: Mapping[str, Any]) -> None:
    """A client that changes nothing leaves the server's weights as they are, whatever it decoded."""
    link, places = Link(codec), walk()
    link.play(1, places[0], [0, 1])
    link.play(2, places[1], [0])
    decoded, read = link.play(3, places[2], [0, 1])
    assert any(np.abs(got - places[2].numpy()).max() > 1e-4 for got in decoded)
    for came in read:
        np.testing.assert_allclose(came, places[2].numpy(), atol=1e-5)


def test_a_downlink_to_clients_that_were_never_away_is_as_before() -> None:
    """All hold one reference: random rounding to the levels of the settings, and replies as they came."""
    link = Link({"name": "qsgd", "levels": 1})
    for number, weights in enumerate(walk()[:4], start=1):
        decoded, read = link.play(number, weights, [0, 1, 2])
        for got, came in zip(decoded, read, strict=True):
            np.testing.assert_array_equal(got, decoded[0])
            np.testing.assert_array_equal(came, got)
